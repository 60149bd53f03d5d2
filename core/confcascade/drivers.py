"""What answers a flow's asks: one flow or many, synchronously or asynchronously, whole or streamed.

All share `_Run`, which sends answers into a flow and frees the KV caches that it no longer needs.  Many flows share
`_Schedule`, which decides what is called next: asks for one local model go out together, in batches no larger than
the model's own; asks for an API go out one by one, at once, and never wait for a batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import aclosing, closing
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from confcascade.asks import Answer, Ask, Flow, Generate, Prefill
from confcascade.flow import Outcome
from confcascade.models import Chunk, LanguageModel
from confcascade.errors import StreamBrokenError
from confcascade.types import Prefilled, Response

__all__ = ["arun", "arun_many", "astream", "run", "run_many", "stream"]

T = TypeVar("T")


class _Run(Generic[T]):
    """A flow in progress: its open asks, or its result."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self._held: Prefilled | None = None
        self.asks: tuple[Ask, ...] = ()
        self.result: T | None = None
        self.error: Exception | None = None
        self.done = False
        self._advance(lambda: next(flow))

    def send(self, answers: Sequence[Answer[Any]]) -> None:
        """Answer the open asks, in their order."""
        for ask, answer in zip(self.asks, answers, strict=True):
            if isinstance(ask, Prefill) and isinstance(answer.value, Prefilled):
                self._held = answer.value
        self._advance(lambda: self._flow.send(tuple(answers)))
        if self._held is not None and not any(isinstance(ask, Generate) and ask.prefilled is self._held for ask in self.asks):
            self.close()

    def close(self) -> None:
        """Free the KV cache, if one is held."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # a finished flow without error has one

    def _advance(self, step: Callable[[], tuple[Ask, ...]]) -> None:
        try:
            self.asks = step()
        except StopIteration as stop:
            self.asks, self.result, self.done = (), stop.value, True
        except Exception as error:
            self.asks, self.error, self.done = (), error, True


# ---------------------------------------------------------------------- calling a model


def _answers(values: Sequence[Any] | Exception, count: int, started: float) -> list[Answer[Any]]:
    elapsed = time.perf_counter() - started
    listed = [values] * count if isinstance(values, Exception) else list(values)
    return [
        Answer(error=value, elapsed_s=elapsed, busy_s=elapsed / count)
        if isinstance(value, Exception)
        else Answer(value, elapsed_s=elapsed, busy_s=elapsed / count)
        for value in listed
    ]


def _call(model: LanguageModel, asks: Sequence[Any]) -> list[Answer[Any]]:
    started = time.perf_counter()
    try:
        values: Any = model.prefill(asks) if isinstance(asks[0], Prefill) else model.generate(asks)
    except Exception as error:
        values = error
    return _answers(values, len(asks), started)


async def _acall(model: LanguageModel, asks: Sequence[Any]) -> list[Answer[Any]]:
    started = time.perf_counter()
    try:
        values: Any = await (model.aprefill(asks) if isinstance(asks[0], Prefill) else model.agenerate(asks))
    except Exception as error:
        values = error
    return _answers(values, len(asks), started)


# ---------------------------------------------------------------------- one flow


def run(flow: Flow[T]) -> T:
    """Play a flow to its end."""
    with closing(_Run(flow)) as running:
        while not running.done:
            running.send([_call(ask.model, [ask])[0] for ask in running.asks])
        return running.unwrap()


async def arun(flow: Flow[T]) -> T:
    """Play a flow to its end without blocking the event loop; asks of one step run concurrently."""
    with closing(_Run(flow)) as running:
        while not running.done:
            called = await asyncio.gather(*(_acall(ask.model, [ask]) for ask in running.asks))
            running.send([answers[0] for answers in called])
        return running.unwrap()


class _Draft:
    """A streamed answer: what may be shown of it, and what is held back until the flow has decided."""

    def __init__(self) -> None:
        self.held: list[Chunk] = []
        self.response: Response | None = None
        self.shown = False
        self._started = time.perf_counter()

    def add(self, item: Chunk | Response) -> list[Chunk]:
        """Take the next piece; returns those that may be shown now."""
        if isinstance(item, Response):
            self.response = item
            return []
        self.held.append(item)
        if not (item.released or self.shown):
            return []
        self.shown = True
        ready, self.held = self.held, []
        return ready

    def answer(self, error: Exception | None = None) -> Answer[Response]:
        if error is not None and self.shown:
            broken = StreamBrokenError(f"The stream broke after part of the answer had been shown ({type(error).__name__}: {error}).")
            broken.__cause__ = error
            error = broken
        value: Any = self.response if error is None else error
        return _answers([value], 1, self._started)[0]

    def rest(self, outcome: Outcome) -> list[Chunk]:
        """What is left to show once the flow has decided."""
        if self.response is outcome.response:
            return self.held
        return [Chunk(outcome.response.text, outcome.response.tokens or (), released=True)]


def stream(flow: Flow[Outcome]) -> Iterator[Chunk | Outcome]:
    """Play a flow, yielding chunks of the answer that nothing can withdraw, and last the outcome.

    Decides exactly as `run` does: both apply the same watches to the same tokens.
    """
    with closing(_Run(flow)) as running:
        draft = _Draft()
        while not running.done:
            if len(running.asks) == 1 and isinstance(ask := running.asks[0], Generate):
                draft, failure = _Draft(), None
                items = ask.model.stream(ask)
                try:
                    for item in items:
                        yield from draft.add(item)
                except Exception as error:
                    failure = error
                finally:
                    if close := getattr(items, "close", None):
                        close()
                running.send([draft.answer(failure)])
            else:
                running.send([_call(ask.model, [ask])[0] for ask in running.asks])
        outcome = running.unwrap()
        yield from draft.rest(outcome)
        yield outcome


async def astream(flow: Flow[Outcome]) -> AsyncIterator[Chunk | Outcome]:
    """`stream`, without blocking the event loop."""
    with closing(_Run(flow)) as running:
        draft = _Draft()
        while not running.done:
            if len(running.asks) == 1 and isinstance(ask := running.asks[0], Generate):
                draft, failure = _Draft(), None
                async with aclosing(ask.model.astream(ask)) as items:  # type: ignore[type-var]  # an async generator
                    try:
                        async for item in items:
                            for chunk in draft.add(item):
                                yield chunk
                    except Exception as error:
                        failure = error
                running.send([draft.answer(failure)])
            else:
                called = await asyncio.gather(*(_acall(ask.model, [ask]) for ask in running.asks))
                running.send([answers[0] for answers in called])
        outcome = running.unwrap()
        for chunk in draft.rest(outcome):
            yield chunk
        yield outcome


# ---------------------------------------------------------------------- many flows


@dataclass(frozen=True)
class _Place:
    """Where an answer goes: to which ask of which flow."""

    flow: int
    ask: int


@dataclass(frozen=True)
class _Calling:
    """Asks of one kind for one model that go out in one call."""

    model: LanguageModel
    asks: tuple[Ask, ...]
    places: tuple[_Place, ...]
    local: bool


class _Schedule(Generic[T]):
    """Decides what to call next for many flows. Knows no clock, no thread and no event loop.

    One local call is under way at a time: local models share the machine. A batch that was prefilled is generated
    before the next is prefilled, so KV caches never exceed one batch. Flows start as there is room for their asks.
    """

    def __init__(self, flows: Iterable[Flow[T]], concurrency: int) -> None:
        self._flows = enumerate(flows)
        self._concurrency = concurrency
        self._runs: dict[int, _Run[T]] = {}
        self._answers: dict[int, dict[int, Answer[Any]]] = {}
        self._local: dict[int, list[tuple[_Place, Ask]]] = {}  # by id of the model
        self._remote: deque[tuple[_Place, Ask]] = deque()
        self._remote_calls = 0
        self._local_busy = False
        self._more = True
        self._finished: list[tuple[int, _Run[T]]] = []

    @property
    def done(self) -> bool:
        return not self._more and not self._runs

    def calls(self) -> list[_Calling]:
        """Calls to begin now."""
        self._start()
        begun = []
        while self._remote and self._remote_calls < self._concurrency:
            place, ask = self._remote.popleft()
            self._remote_calls += 1
            begun.append(_Calling(ask.model, (ask,), (place,), local=False))
        if not self._local_busy and (batch := self._next_batch()):
            self._local_busy = True
            begun.append(batch)
        return begun

    def complete(self, call: _Calling, answers: Sequence[Answer[Any]]) -> list[tuple[int, _Run[T]]]:
        """Hand in a call's answers; returns the flows that ended, with their index."""
        if call.local:
            self._local_busy = False
        else:
            self._remote_calls -= 1
        for place, answer in zip(call.places, answers, strict=True):
            received = self._answers[place.flow]
            received[place.ask] = answer
            running = self._runs[place.flow]
            if len(received) == len(running.asks):
                running.send([received[i] for i in range(len(received))])
                self._queue(place.flow, running)
        ended, self._finished = self._finished, []
        return ended

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
            self._queue(index, _Run(flow))

    def _room_is_taken(self) -> bool:
        return any(len(waiting) >= waiting[0][1].model.capability.batch_size for waiting in self._local.values() if waiting)

    def _queue(self, index: int, running: _Run[T]) -> None:
        if running.done:
            self._runs.pop(index, None)
            self._answers.pop(index, None)
            self._finished.append((index, running))
            return
        self._runs[index] = running
        self._answers[index] = {}
        for i, ask in enumerate(running.asks):
            entry = _Place(index, i), ask
            if ask.model.capability.batch_size > 1:
                self._local.setdefault(id(ask.model), []).append(entry)
            else:
                self._remote.append(entry)

    def _next_batch(self) -> _Calling | None:
        """What was prefilled is generated first; then a full batch; then, if no flow is left to fill one, the largest."""
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

    def _take(self, entries: list[tuple[_Place, Ask]], eligible: list[tuple[_Place, Ask]]) -> _Calling:
        model = eligible[0][1].model
        chosen = eligible[: model.capability.batch_size]
        taken = {place for place, _ in chosen}
        entries[:] = [entry for entry in entries if entry[0] not in taken]
        return _Calling(model, tuple(ask for _, ask in chosen), tuple(place for place, _ in chosen), local=True)


def run_many(flows: Iterable[Flow[T]], concurrency: int) -> Iterator[tuple[int, T | Exception]]:
    """Play many flows; yields each one's index and result, or error, as they end."""
    schedule = _Schedule(flows, concurrency)
    pending: dict[Future[list[Answer[Any]]], _Calling] = {}
    with closing(schedule), ThreadPoolExecutor(concurrency + 1, thread_name_prefix="confcascade") as pool:
        try:
            while True:
                for call in schedule.calls():
                    pending[pool.submit(copy_context().run, _call, call.model, call.asks)] = call
                if schedule.done:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    for index, ended in schedule.complete(pending.pop(future), future.result()):
                        yield index, ended.error or ended.unwrap()
        finally:
            for future in pending:
                future.cancel()


async def arun_many(flows: Iterable[Flow[T]], concurrency: int) -> AsyncIterator[tuple[int, T | Exception]]:
    """`run_many`, without blocking the event loop."""
    schedule = _Schedule(flows, concurrency)
    pending: dict[asyncio.Task[list[Answer[Any]]], _Calling] = {}
    with closing(schedule):
        try:
            while True:
                for call in schedule.calls():
                    pending[asyncio.ensure_future(_acall(call.model, call.asks))] = call
                if schedule.done:
                    return
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    for index, ended in schedule.complete(pending.pop(task), task.result()):
                        yield index, ended.error or ended.unwrap()
        finally:
            for task in pending:
                task.cancel()
