"""Many flows: which ask is called next, and with which others.

Asks for one local model go out together, in batches no larger than the model's own, or one by one where the model
batches them itself; asks for an API go out one by one, at once, and never wait for a batch.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from confcascade.asks import Answer, Ask, Flow, Generate, LanguageModel, SelfBatching
from confcascade.drivers.one import Run, acall_model, call_model, submitted_answer
from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.base import Waiting
from confcascade.types import Prefilled

__all__ = ["AsyncBatcher", "Batcher", "arun_many", "run_many"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Place:
    """Where an answer goes: to which ask of which flow."""

    flow: int
    ask: int


@dataclass(frozen=True)
class _Call:
    """Asks of one kind for one model that go out in one call, or one that is submitted to a model that batches."""

    model: LanguageModel
    asks: tuple[Ask, ...]
    places: tuple[_Place, ...]
    local: bool
    submitted: bool = False
    waiting: Waiting = field(default_factory=Waiting)
    started: float = field(default_factory=time.perf_counter)


@dataclass
class _Queue:
    """The asks of one model that batches by itself.

    Attributes:
        limit: How many may be in flight.
        in_flight: How many are.
        waiting: The others.
    """

    limit: int
    in_flight: int = 0
    waiting: deque[tuple[_Place, Ask]] = field(default_factory=deque)


class _Schedule(Generic[T]):
    """Decides what to call next for many flows. Knows no clock, no thread and no event loop.

    A model that batches by itself has two batches of asks, so that others take the place of those that end. Of other
    local models, one call is under way at a time: they share the machine. A batch that was prefilled is generated
    before the next is prefilled, so KV caches never exceed one batch. Flows start as there is room for their asks.
    """

    def __init__(self, flows: Iterable[Flow[T]], concurrency: int) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError(f"`max_concurrency` must be a whole number of at least 1. Got {concurrency!r}.")
        self._flows = enumerate(flows)
        self._concurrency = concurrency
        self._runs: dict[int, Run[T]] = {}
        self._answers: dict[int, dict[int, Answer[Any]]] = {}
        self._local: dict[int, list[tuple[_Place, Ask]]] = {}  # by id of the model
        self._queues: dict[int, _Queue] = {}  # likewise, of models that batch by themselves
        self._remote: deque[tuple[_Place, Ask]] = deque()
        self._remote_calls = 0
        self._local_busy = False
        self._more = True
        self._ended: list[tuple[int, Run[T]]] = []

    @property
    def done(self) -> bool:
        return not self._more and not self._runs

    def add(self, index: int, flow: Flow[T]) -> None:
        """Take one more flow, whose index is its own."""
        self._queue(index, Run(flow))

    def drop(self, index: int) -> None:
        """Forget a flow that nobody waits for any more; of its asks, those under way are answered in vain."""
        if (running := self._runs.pop(index, None)) is None:
            return
        self._answers.pop(index)
        for entries in (self._remote, *self._local.values(), *(queue.waiting for queue in self._queues.values())):
            kept = [entry for entry in entries if entry[0].flow != index]
            entries.clear()
            entries.extend(kept)
        running.close()

    def calls(self, *, partial: bool = True) -> list[_Call]:
        """Calls to begin now.

        Args:
            partial: Also begin a local call that has room for more asks.
        """
        self._start()
        begun = []
        while self._remote and self._remote_calls < self._concurrency:
            place, ask = self._remote.popleft()
            self._remote_calls += 1
            self._runs[place.flow].begin()
            begun.append(_Call(ask.model, (ask,), (place,), local=False))
        for queue in self._queues.values():
            while queue.waiting and queue.in_flight < queue.limit:
                place, ask = queue.waiting.popleft()
                queue.in_flight += 1
                self._runs[place.flow].begin()
                begun.append(_Call(ask.model, (ask,), (place,), local=True, submitted=True))
        if not self._local_busy and (partial or self._room_is_taken()) and (batch := self._next_batch()):
            self._local_busy = True
            begun.append(batch)
        return begun

    def complete(self, call: _Call, answers: Sequence[Answer[Any]]) -> None:
        """Hand in a call's answers."""
        if call.submitted:
            self._queues[id(call.model)].in_flight -= 1
        elif call.local:
            self._local_busy = False
        else:
            self._remote_calls -= 1
        for place, answer in zip(call.places, answers, strict=True):
            if place.flow not in self._runs:  # dropped
                _discard([answer])
                continue
            received = self._answers[place.flow]
            received[place.ask] = answer
            running = self._runs[place.flow]
            if len(received) == len(running.asks):
                running.send([received[i] for i in range(len(received))])
                self._queue(place.flow, running)

    def ended(self) -> Iterator[tuple[int, T | Exception]]:
        """Index and result, or error, of the flows that have ended since the last call."""
        while self._ended:
            index, running = self._ended.pop(0)
            yield index, running.error or running.unwrap()

    def close(self) -> None:
        for running in self._runs.values():
            running.close()

    def _start(self) -> None:
        while self._more and len(self._remote) + self._remote_calls < self._concurrency and not self._room_is_taken():
            try:
                index, flow = next(self._flows)
            except StopIteration:
                self._more = False
                return
            self._queue(index, Run(flow))

    def _room_is_taken(self) -> bool:
        batched = any(
            len(waiting) >= waiting[0][1].model.capability.batch_size for waiting in self._local.values() if waiting
        )
        return batched or any(len(queue.waiting) + queue.in_flight >= queue.limit for queue in self._queues.values())

    def _queue(self, index: int, running: Run[T]) -> None:
        if running.done:
            self._runs.pop(index, None)
            self._answers.pop(index, None)
            self._ended.append((index, running))
            return
        self._runs[index] = running
        self._answers[index] = {}
        for i, ask in enumerate(running.asks):
            entry = _Place(index, i), ask
            if isinstance(ask.model, SelfBatching):
                queue = self._queues.setdefault(id(ask.model), _Queue(2 * ask.model.capability.batch_size))
                queue.waiting.append(entry)
            elif ask.model.capability.local:
                self._local.setdefault(id(ask.model), []).append(entry)
            else:
                self._remote.append(entry)

    def _next_batch(self) -> _Call | None:
        """What was prefilled is generated first; then the batch that is nearest to full."""
        waiting = [entries for entries in self._local.values() if entries]
        if not waiting:
            return None

        def continues(entry: tuple[_Place, Ask]) -> bool:
            return isinstance(entry[1], Generate) and entry[1].prefilled is not None

        for entries in waiting:
            if begun := [entry for entry in entries if continues(entry)]:
                return self._take(entries, begun)
        entries = max(waiting, key=lambda candidate: len(candidate) / candidate[0][1].model.capability.batch_size)
        kind = type(entries[0][1])
        return self._take(entries, [entry for entry in entries if isinstance(entry[1], kind)])

    def _take(self, entries: list[tuple[_Place, Ask]], eligible: list[tuple[_Place, Ask]]) -> _Call:
        model = eligible[0][1].model
        chosen = eligible[: model.capability.batch_size]
        taken = {place for place, _ in chosen}
        entries[:] = [entry for entry in entries if entry[0] not in taken]
        for place in taken:
            self._runs[place.flow].begin()
        return _Call(model, tuple(ask for _, ask in chosen), tuple(place for place, _ in chosen), local=True)


def _discard(answers: Sequence[Answer[Any]]) -> None:
    """Free the KV caches among answers that nobody waits for any more."""
    for answer in answers:
        if isinstance(answer.value, Prefilled):
            answer.value.close()


def run_many(flows: Iterable[Flow[T]], concurrency: int) -> Iterator[tuple[int, T | Exception]]:
    """Play many flows; yields each one's index and result, or error, as they end."""
    schedule = _Schedule(flows, concurrency)
    pending: dict[Future[Any], _Call] = {}
    with closing(schedule), ThreadPoolExecutor(concurrency + 1, thread_name_prefix="confcascade") as pool:
        try:
            while True:
                yield from schedule.ended()  # before anything new is asked: whoever keeps results has these safe then
                for call in schedule.calls():
                    pending[_begun(call, pool)] = call
                yield from schedule.ended()  # of those just begun, any that ask nothing
                if schedule.done:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    call = pending.pop(future)
                    schedule.complete(call, _answers_of(call, future))
        finally:  # left early: what is under way is waited for, which is a token where the model looks
            for call in pending.values():
                call.waiting.leave()
            for future, call in [(future, call) for future, call in pending.items() if not future.cancel()]:
                _discard(_answers_of(call, future))


def _begun(call: _Call, pool: ThreadPoolExecutor) -> Future[Any]:
    if call.submitted and isinstance(call.model, SelfBatching):
        return call.model.submit(call.asks[0])
    return pool.submit(call.waiting.context().run, call_model, call.model, call.asks)


def _answers_of(call: _Call, future: Future[Any]) -> list[Answer[Any]]:
    return [submitted_answer(call.asks[0], future, call.started)] if call.submitted else future.result()


async def arun_many(flows: Iterable[Flow[T]], concurrency: int) -> AsyncIterator[tuple[int, T | Exception]]:
    """`run_many`, without blocking the event loop."""
    schedule = _Schedule(flows, concurrency)
    pending: dict[asyncio.Task[list[Answer[Any]]], _Call] = {}
    with closing(schedule):
        try:
            while True:
                for ended in schedule.ended():
                    yield ended
                for call in schedule.calls():
                    pending[asyncio.ensure_future(acall_model(call.model, call.asks))] = call
                for ended in schedule.ended():
                    yield ended
                if schedule.done:
                    return
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    schedule.complete(pending.pop(task), task.result())
        finally:  # left early, or cancelled
            for task in pending:
                task.cancel()
            for answers in await asyncio.gather(*pending, return_exceptions=True):
                if not isinstance(answers, BaseException):
                    _discard(answers)


# ---------------------------------------------------------------------- flows that come one by one


class Batcher(Generic[T]):
    """Plays flows that many threads bring, each waiting for its own; their asks go out together, as in `run_many`.

    For a caller that has a thread for each query and cannot hand them over as a list. The waiting threads themselves
    make the calls.
    """

    _quiet_s = 0.002  # a local call that has room waits for more flows while they arrive at shorter intervals

    def __init__(self, concurrency: int) -> None:
        self._schedule: _Schedule[T] = _Schedule((), concurrency)
        self._changed = threading.Condition()
        self._ready: deque[_Call] = deque()
        self._results: dict[int, T | Exception] = {}
        self._indices = itertools.count()
        self._arrived = 0.0

    def run(self, flow: Flow[T]) -> T:
        """Play a flow to its end."""
        with self._changed:
            mine = next(self._indices)
            self._arrived = time.monotonic()
            self._schedule.add(mine, flow)
            try:
                while mine not in self._results:
                    self._step()
            except BaseException:
                self._schedule.drop(mine)
                raise
            result = self._results.pop(mine)
        if isinstance(result, Exception):
            raise result
        return result

    def _step(self) -> None:
        """Make a call, or wait for a change; holds the lock but while it does."""
        quiet = time.monotonic() - self._arrived >= self._quiet_s
        self._ready.extend(self._schedule.calls(partial=quiet))
        self._collect()
        if not self._ready:
            self._changed.wait(None if quiet else self._quiet_s)
            return
        call = self._ready.popleft()
        if self._ready:
            self._changed.notify()
        answers = [Answer[Any](error=ModelError("The call was interrupted."))] * len(call.asks)
        self._changed.release()
        try:
            answers = call_model(call.model, call.asks)
        finally:
            self._changed.acquire()
            self._schedule.complete(call, answers)
            self._collect()
            self._changed.notify_all()

    def _collect(self) -> None:
        ended = dict(self._schedule.ended())
        if ended:
            self._results |= ended
            self._changed.notify_all()


class AsyncBatcher(Generic[T]):
    """`Batcher` for the tasks of one event loop."""

    def __init__(self, concurrency: int) -> None:
        self._schedule: _Schedule[T] = _Schedule((), concurrency)
        self._waiting: dict[int, asyncio.Future[T]] = {}
        self._calling: dict[asyncio.Task[list[Answer[Any]]], _Call] = {}
        self._indices = itertools.count()
        self._planned = False

    async def arun(self, flow: Flow[T]) -> T:
        """Play a flow to its end without blocking the event loop."""
        mine = next(self._indices)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[mine] = future
        self._schedule.add(mine, flow)
        self._plan()
        try:
            return await future
        finally:
            del self._waiting[mine]
            if future.cancelled():
                self._drop(mine)

    def _plan(self) -> None:
        """Begin calls once the tasks that are ready now have brought their flows."""
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._planned = False
        for call in self._schedule.calls():
            task = call.waiting.context().run(asyncio.ensure_future, acall_model(call.model, call.asks))
            self._calling[task] = call
            task.add_done_callback(self._ended)
        for index, result in self._schedule.ended():
            if (future := self._waiting.get(index)) is None or future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _ended(self, task: asyncio.Task[list[Answer[Any]]]) -> None:
        call = self._calling.pop(task)
        interrupted = [Answer[Any](error=ModelError("The call was interrupted."))] * len(call.asks)
        self._schedule.complete(call, interrupted if task.cancelled() else task.result())
        self._plan()

    def _drop(self, index: int) -> None:
        self._schedule.drop(index)
        for task, call in self._calling.items():
            if not any(place.flow in self._waiting for place in call.places):
                task.cancel()
            left = [ask for ask, place in zip(call.asks, call.places, strict=True) if place.flow == index]
            if asks := [ask for ask in left if isinstance(ask, Generate)]:
                call.waiting.leave(*asks)
        self._plan()
