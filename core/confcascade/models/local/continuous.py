"""Continuous batching: asks that come one by one are read and decoded together, and join what is under way."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from confcascade.asks import Generate, Prefill
from confcascade.errors import ModelError
from confcascade.models.local.batch import Batch, RowState
from confcascade.models.local.decoder import Decoder
from confcascade.models.local.decoding import Decoding
from confcascade.models.local.jobs import Job
from confcascade.models.local.worker import Worker
from confcascade.notices import log_failed_batch
from confcascade.types import Prefilled, Response

__all__ = ["ContinuousBatching"]

_PASS_TOKENS = 8192  # most tokens, padding included, of the prompts that are read in one pass of several
_WINDOW = 4  # batches of waiting prompts among which those of like length are looked for
_ALIKE = 1.5  # how many times as long the longest prompt of a pass may be as the shortest, and
_SLACK = 32  # so many tokens more
_PART = 0.25  # of all rows that join at a time, where more wait
_RETURN_S = 0.005  # how long rows that have been read, and fill the batch, are waited for


class ContinuousBatching:
    """What a worker does for one model's weights.

    Whoever comes waits for no one, as long as there is room: prompts are read as soon as the pass under way has ended,
    several that wait in one pass, those of like length; answers join those that are being written. Rows leave as they
    end. What was read goes on before anything else is read, and so the caches seldom exceed two batches. The first to
    come is always among those that are read next.

    A model whose rows cannot join (`Batch.joinable`) answers batch after batch.

    Args:
        decoder: Calls the model.
        size: Most rows.
        device: Where it computes.
    """

    def __init__(self, decoder: Decoder, size: int, device: Any) -> None:
        self._decoder = decoder
        self._size = size
        self._device = device
        self._open: set[Job] = set()  # all that have not ended
        self._in_sessions: deque[Job] = deque()
        self._continuing: deque[Job] = deque()
        self._new: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}  # of the rows, by id
        self._ended: list[tuple[Job, Any]] = []
        self._decoding = Decoding(decoder)
        self._held: weakref.WeakSet[Batch] = weakref.WeakSet()  # that have been read, and may be gone on from
        self._full_since: float | None = None  # these fill a batch, and nothing else is to be done

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one in another process, begins with no rows."""
        return type(self), (self._decoder, self._size, self._device)

    def submit(self, job: Job) -> None:
        """Let a job wait its turn; returns at once."""
        Worker.of(self._device).submit(self, job)

    # ------------------------------------------------------------------ what the worker calls

    def take(self, job: Job) -> None:
        """One more job."""
        self._open.add(job)
        if job.ask.session is not None:
            self._in_sessions.append(job)
        elif job.continues:
            self._continuing.append(job)
        else:
            self._new.append(job)

    def step(self) -> bool:
        """Write one token of each row, and let new rows in. Returns whether something is left to do."""
        self._in_session()
        self._advance()
        self._let_in()
        self._choose()
        self._hand_over()
        return bool(self._in_sessions or self._continuing or self._new or self._decoding.rows)

    def fail(self, error: BaseException) -> None:
        """End all jobs with an error."""
        self._hand_over()
        for kept in (self._in_sessions, self._continuing, self._new, self._jobs):
            kept.clear()
        self._decoding.clear()
        for job in self._open:
            job.end(error if isinstance(error, Exception) else ModelError(f"The model was stopped: {error!r}"))
        self._open.clear()

    # ------------------------------------------------------------------ conversations that are written in turn

    def _in_session(self) -> None:
        """Read or write for several conversations, each one step."""
        if not self._in_sessions:
            return
        first = self._in_sessions[0]
        jobs = [job for job in self._in_sessions if job.runner is first.runner and type(job.ask) is type(first.ask)]
        if first.alone or first.emit is not None:
            jobs = [first]
        else:
            jobs = [job for job in jobs if job.emit is None and not job.alone][: self._size]
        for job in jobs:
            self._in_sessions.remove(job)
        jobs = [job for job in jobs if self._is_wanted(job)]
        if not jobs:
            return
        by_ask = {id(job.ask): job for job in jobs}
        try:
            with _busy(jobs):
                values = first.runner.in_sessions(
                    [job.ask for job in jobs], lambda row: by_ask[id(row.ask)].wanted, first.emit
                )
        except Exception as error:
            self._retry(jobs, error)
        else:
            self._ended += zip(jobs, values, strict=True)

    # ------------------------------------------------------------------ rows that are there

    def _advance(self) -> None:
        if not self._decoding.rows:
            return
        jobs = [self._jobs[id(row)] for row in self._decoding.rows]
        try:
            with _busy(jobs):
                self._decoding.advance()
        except Exception as error:
            self._decoding.clear()
            self._retry(jobs, error)

    def _choose(self) -> None:
        if not self._decoding.rows:
            return
        jobs = [self._jobs[id(row)] for row in self._decoding.rows]
        try:
            with _busy(jobs):
                self._decoding.choose(lambda row: self._jobs[id(row)].wanted)
        except Exception as error:
            self._decoding.clear()
            self._retry(jobs, error)
            return
        for job in jobs:
            if job.emit is not None and job.row is not None and job.row.error is None:
                for chunk in job.row.new_chunks():
                    job.shown = True
                    job.emit(chunk)
        for row in self._decoding.end():
            job = self._jobs.pop(id(row))
            self._ended.append((job, row.error or row.response()))

    def _retry(self, jobs: Sequence[Job], error: Exception) -> None:
        """A pass has failed: each job anew and alone, so that one bad query fails alone."""
        for job in jobs:
            if job.row is not None:
                self._jobs.pop(id(job.row), None)
        if len(jobs) == 1 or isinstance(error, ModelError) or any(job.alone for job in jobs):
            self._ended += [(job, error) for job in jobs]
            return
        log_failed_batch(jobs[0].runner.name, error, len(jobs))
        for job in reversed(jobs):
            if job.shown:  # what comes could differ from what was shown
                self._ended.append((job, error))
            else:
                ask = replace(job.ask, prefilled=None) if isinstance(job.ask, Generate) else job.ask
                job.ask, job.row, job.alone = ask, None, True
                (self._new if ask.session is None else self._in_sessions).appendleft(job)

    def _hand_over(self) -> None:
        ended, self._ended = self._ended, []
        for job, value in ended:
            self._open.discard(job)
            job.end(value)

    # ------------------------------------------------------------------ rows that come

    def _let_in(self) -> None:
        """Join what goes on from a prompt that was read, or else read prompts, as far as there is room.

        Where more wait than there is room for, nobody joins before a part of the rows has left: each time costs a copy
        of the cache and a pass.
        """
        if len(self._continuing) + len(self._new) > self._room() < self._size * _PART:
            return
        while self._continuing and self._room() > 0:
            self._go_on()
        if self._new and (room := self._room_to_read()) > 0 and (jobs := self._next(room)):
            self._read(jobs)

    def _room(self) -> int:
        """How many rows may join those that are there."""
        rows = self._decoding.rows
        if rows and (not self._decoding.open or any(self._jobs[id(row)].alone for row in rows)):
            return 0
        return self._size - len(rows)

    @property
    def open_prefills(self) -> int:
        """How many prompts have been read that may be gone on from."""
        return sum(len(batch.open) for batch in self._held)

    def _room_to_read(self) -> int:
        """How many prompts may be read: those that have been, and may be gone on from, count as rows."""
        rows = self._decoding.rows
        if rows and self._new[0].alone:
            return 0
        held = self.open_prefills
        if held < self._size or rows:
            self._full_since = None
            return self._room() - held
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since < _RETURN_S:  # they are about to, or are held by somebody who waits for these
            time.sleep(_RETURN_S / 10)
            return 0
        self._full_since = None
        return self._size

    def _go_on(self) -> None:
        """Join all that goes on from the batch that the first goes on from."""
        first = self._continuing[0]
        batch = _state(first).batch
        jobs = [job for job in self._continuing if _state(job).batch is batch][: self._room()]
        for job in jobs:
            self._continuing.remove(job)
        jobs = [job for job in jobs if self._is_wanted(job) and self._begins(job)]
        try:
            self._join(jobs, batch.take([_state(job).row for job in jobs]))
        except ModelError:  # one of them was closed, or continued before
            for job in jobs:
                try:
                    self._join([job], batch.take([_state(job).row]))
                except ModelError as error:
                    self._ended.append((job, error))
        except Exception as error:
            self._retry(jobs, error)

    def _is_wanted(self, job: Job) -> bool:
        """Whether somebody waits for a job; one that nobody does ends."""
        if not job.wanted:
            left = isinstance(job.ask, Generate)
            self._ended.append((job, Response("", None, finish_reason="aborted") if left else _LEFT))
            return False
        return True

    def _begins(self, job: Job) -> bool:
        """Whether a job's answer can begin."""
        try:
            assert isinstance(job.ask, Generate)
            job.row = job.runner.answer(job.ask, job.prompt)
        except Exception as error:  # an option that is not known, say
            self._ended.append((job, error))
            return False
        return True

    def _join(self, jobs: Sequence[Job], batch: Batch) -> None:
        if jobs:
            self._decoding.join([job.row for job in jobs], batch)
            self._jobs |= {id(job.row): job for job in jobs}

    def _next(self, room: int) -> list[Job]:
        """The first that waits, and others of its kind whose prompts are about as long."""
        window = [job for job in islice(self._new, _WINDOW * self._size) if self._is_readable(job)]
        for _ in range(min(len(self._new), _WINDOW * self._size)):
            self._new.popleft()
        chosen: list[Job] = []
        if window:
            first = window[0]
            alike = [
                job
                for job in window
                if type(job.ask) is type(first.ask) and job.runner is first.runner and not job.alone
            ]
            alike = [first] if first.alone else alike
            widths = {id(job): job.runner.unread(job.prompt) for job in alike if job.prompt is not None}
            alike.sort(key=lambda job: abs(widths[id(job)] - widths[id(first)]))
            for job in alike:
                lengths = [widths[id(each)] for each in (*chosen, job)]
                fits = max(lengths) <= _ALIKE * min(lengths) + _SLACK and max(lengths) * len(lengths) <= _PASS_TOKENS
                if chosen and not (fits and len(chosen) < room):
                    break
                chosen.append(job)
        taken = {id(job) for job in chosen}
        self._new.extendleft(reversed([job for job in window if id(job) not in taken]))
        return chosen

    def _is_readable(self, job: Job) -> bool:
        """Whether a job is wanted and its prompt can be read; one that cannot be fails alone."""
        if not self._is_wanted(job):
            return False
        if job.prompt is None:
            try:
                job.prompt = job.runner.prompt(job.ask.request)
            except Exception as error:
                self._ended.append((job, error))
                return False
        return True

    def _read(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of jobs in one pass."""
        reads = isinstance(jobs[0].ask, Prefill)
        if not reads:
            jobs = [job for job in jobs if self._begins(job)]
        if not jobs:
            return
        runner, prompts = jobs[0].runner, [job.prompt for job in jobs if job.prompt is not None]
        try:
            with _busy(jobs):
                if reads:
                    values = runner.prefill([job.ask for job in jobs if isinstance(job.ask, Prefill)], prompts)
                else:
                    self._join(jobs, runner.read(prompts))
                    return
        except Exception as error:
            self._retry(jobs, error)
            return
        self._ended += zip(jobs, values, strict=True)
        self._held |= {
            value.state.batch for value in values if isinstance(value, Prefilled) and value.state is not None
        }


_LEFT = ModelError("Nobody waits for this any more.")


def _state(job: Job) -> RowState:
    assert isinstance(job.ask, Generate)
    assert job.ask.prefilled is not None
    state: RowState = job.ask.prefilled.state
    return state


@contextmanager
def _busy(jobs: Sequence[Job]) -> Iterator[None]:
    """Account a pass to the jobs that share it."""
    began = time.perf_counter()
    try:
        yield
    finally:
        for job in jobs:
            job.ask.progress.busy_s += (time.perf_counter() - began) / len(jobs)
