"""Draws queries as they are answered, and asks the largest model about them in a thread of its own."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal

from confcascade.asks import Generate
from confcascade.attempts import Outcome
from confcascade.audit import Audit
from confcascade.audit.file import AuditFile, DrawnQuery, Guarded
from confcascade.cost import attempt_cost
from confcascade.drivers import call_model
from confcascade.errors import ConfcascadeError, ConfigurationError, kept_of
from confcascade.stage import Stage
from confcascade.types import Request, Response

__all__ = ["Auditor", "question_hash"]

_IDLE_S = 5.0  # after which the thread ends, until there is something to do again
_HOUR_S = 3600.0
_log = logging.getLogger("confcascade.audit")
_auditors: weakref.WeakSet[Auditor] = weakref.WeakSet()


@dataclass(frozen=True)
class _Kept:
    """A query that was drawn, and the answer of a smaller model that was kept."""

    request: Request
    response: Response


class _Counts:
    """Counts of this process that the file does not have yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._queries = self._kept = 0

    def answered(self, kept: bool) -> None:
        """One more query: all that most of them cost."""
        with self._lock:
            self._queries += 1
            self._kept += kept

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def take(self) -> Counter[str]:
        with self._lock:
            taken, self._counts = self._counts, Counter()
            taken.update(queries=self._queries, kept=self._kept)
            self._queries = self._kept = 0
        return taken


class Auditor:
    """Watches one cascade. Made by `Cascade`, whose attribute `auditor` it is.

    Args:
        audit: What it is told.
        stages: Of the cascade.
        policy_id: Of the cascade.

    Raises:
        ConfigurationError: If there is nothing to audit, a budget cannot be kept, or the file is of something else.
    """

    def __init__(self, audit: Audit, stages: Sequence[Stage], policy_id: str) -> None:
        if len(stages) < 2:
            raise ConfigurationError("A cascade of one stage keeps no smaller model's answer, so none can be audited.")
        self.audit = audit
        self._stage = stages[-1]
        self._last = len(stages) - 1
        if audit.usd is not None and self._stage.prices is None:
            raise ConfigurationError(
                f"To spend at most {audit.usd} dollars on audits, `prices` of the last stage, "
                f"'{self._stage.model.name}', must be known. Give them, or `per_hour`."
            )
        names = tuple(stage.model.name for stage in stages)
        certificate = None if audit.certificate is None else audit.certificate.model_dump(mode="json")
        self.file = AuditFile.begin(
            audit.state,
            Guarded(policy_id, names, audit.same.name, audit.false_alarms, audit.bounds, certificate),
        )
        self._begin()

    def _begin(self) -> None:
        """All that belongs to this process."""
        self._rate = self.audit.rate
        self._random = random.Random(self.audit.seed)
        self._counts = _Counts()
        self._queue: queue.Queue[_Kept | Literal["escalated"]] = queue.Queue(self.audit.queue)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._at_end = weakref.finalize(self, _flush, self.file, self._counts, os.getpid())
        _auditors.add(self)

    def __repr__(self) -> str:
        return f"Auditor(rate={self.audit.rate}, state={str(self.audit.state)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("audit", "file", "_stage", "_last")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def observe(self, request: Request, outcome: Outcome) -> None:
        """Take note of an answer that is complete; never waits.

        Whether a query is drawn, or dropped because too many wait just now, is decided without a look at the answer.
        """
        kept = outcome.stage < self._last
        self._counts.answered(kept)
        if self._random.random() >= self._rate:
            return
        if request.judged_whole or outcome.record.degraded:
            self._counts.add(skipped=1)
            return
        try:
            self._queue.put_nowait(_Kept(request, outcome.response) if kept else "escalated")
        except queue.Full:
            self._counts.add(dropped=1)
            return
        self._work()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was drawn so far is judged, and the counts are in the file: at the end of a script.

        Returns:
            Whether it was, in that time.
        """
        finished = self._queue.all_tasks_done
        with finished:
            done = finished.wait_for(lambda: not self._queue.unfinished_tasks, timeout_s)
        self.file.count(self._counts.take())
        return done

    # ------------------------------------------------------------------ in the audit's thread

    def _work(self) -> None:
        with self._starting:
            if self._thread is None:
                # in a context of its own: nothing around the query's call, be it callbacks or traces, sees an audit
                thread = threading.Thread(
                    target=Context().run, args=(self._judge_all,), name="confcascade-audit", daemon=True
                )
                with suppress(RuntimeError):  # Python is ending, and begins no thread any more
                    thread.start()
                    self._thread = thread

    def _judge_all(self) -> None:
        with self.file.held_open():
            while (item := self._next()) is not None:
                try:
                    self._judge(item)
                except Exception as error:  # an audit never disturbs what it audits
                    self._counts.add(failed=1)
                    _log.warning("An audit failed (%s).", _shown(error))
                finally:
                    self._queue.task_done()

    def _next(self) -> _Kept | Literal["escalated"] | None:
        """What waits longest; None if there was nothing for so long that the thread may end."""
        while True:
            try:
                return self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._starting:
                    if self._queue.empty():
                        self._thread = None
                        return None

    def _judge(self, item: _Kept | Literal["escalated"]) -> None:
        judged = None
        if not self._may_spend():  # whoever answered: what is looked at is decided by the past alone
            self._counts.add(dropped=1)
        elif item == "escalated":
            judged = DrawnQuery(audited=False)
        elif (judged := self._compared(item.request, item.response)) is None:
            self._counts.add(failed=1)
        if judged is None:
            self.file.count(self._counts.take())
        else:
            self.file.record(judged, self._counts.take())
        if self.file.untold_alarms():
            self._alarm()

    def _may_spend(self) -> bool:
        if self.audit.per_hour is None and self.audit.usd is None:
            return True
        calls, usd = self.file.spent(time.time() - _HOUR_S)
        if self.audit.per_hour is not None and calls >= self.audit.per_hour:
            return False
        return self.audit.usd is None or (usd is not None and usd < self.audit.usd)

    def _compared(self, request: Request, kept: Response) -> DrawnQuery | None:
        """What the largest model says beside what was kept; None if that cannot be told."""
        model = self._stage.model
        if self.audit.per_hour is not None:
            self.file.called(since=time.time() - _HOUR_S)
        (answer,) = call_model(model, [Generate(model, request, logprobs=False, live=True)])
        if answer.error is not None:
            _log.warning("An audit failed: '%s' gave no answer (%s).", model.name, _shown(answer.error))
            return None
        larger: Response = answer.unwrap()
        usd = attempt_cost(larger.usage, answer.busy_s, model.architecture, self._stage.prices).usd
        self._counts.add(**({"unpriced": 1} if usd is None else {"nano_usd": round(usd * 1e9)}))
        question = request.messages[-1].content
        if larger.is_empty or (same := self.audit.same(question, kept.text, larger.text)) is None:
            return None
        if same:
            return DrawnQuery(audited=True)
        texts = (question, kept.text, larger.text) if self.audit.keep_texts else None
        return DrawnQuery(audited=True, differs=True, question_hash=question_hash(request), texts=texts)

    def _alarm(self) -> None:
        state = self.file.state()
        _log.warning(
            "The promise of cascade %s is broken (%s): see `confcascade audit %s`.",
            state.policy_id,
            ", ".join(f"{name} beyond {state.tests[name].bound:g}" for name in state.alarms),
            self.file.path,
        )
        if self.audit.on_alarm is not None:
            try:
                self.audit.on_alarm(state)
            except Exception:  # the user's own, which holds no query
                _log.exception("The audit's `on_alarm` failed.")


def question_hash(request: Request) -> str:
    """First sixteen hexadecimal digits of the SHA-256 of the messages' roles and texts."""
    said = "\x1e".join(f"{message.role}\x1f{message.content}" for message in request.messages)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _shown(error: Exception) -> str:
    """Nothing of a query may be in a log, and a model's error may hold one; that of the state's file holds none."""
    return str(error) if isinstance(error, ConfigurationError) else kept_of(error)


def _flush(file: AuditFile, counts: _Counts, process: int) -> None:
    if os.getpid() == process:
        try:
            file.count(counts.take())
        except ConfcascadeError:  # the file is gone, and so is who could be told
            return


def _after_fork() -> None:
    """A child has no thread of its parent's, and must not wait for a lock that one of them held."""
    for auditor in list(_auditors):
        auditor._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
