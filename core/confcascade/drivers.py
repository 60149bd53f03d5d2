"""What answers a flow's asks: one flow or many, synchronously or asynchronously, whole or streamed.

All share `_Run`, which sends answers into a flow and frees the KV caches that it no longer needs.  Many flows share
`_Schedule`, which decides what is called next: asks for one local model go out together, in batches no larger than
the model's own; asks for an API go out one by one, at once, and never wait for a batch.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import aclosing, closing
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from confcascade.asks import Answer, Ask, Flow, Generate, Prefill
from confcascade.errors import ConfigurationError, ModelError, StreamBrokenError
from confcascade.flow import Outcome
from confcascade.models import Chunk, LanguageModel
from confcascade.types import Prefilled, Response

__all__ = ["AsyncBatcher", "Batcher", "arun", "arun_many", "astream", "run", "run_many", "stream"]

T = TypeVar("T")


class _Run(Generic[T]):
    """A flow in progress: its open asks, or its result."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self._held: list[Prefilled] = []
        self.asks: tuple[Ask, ...] = ()
        self.result: T | None = None
        self.error: Exception | None = None
        self.done = False
        self._advance(lambda: next(flow))

    def send(self, answers: Sequence[Answer[Any]]) -> None:
        """Answer the open asks, in their order."""
        self._held += [answer.value for answer in answers if isinstance(answer.value, Prefilled)]
        self._advance(lambda: self._flow.send(tuple(answers)))
        if self._held:
            self._keep([ask.prefilled for ask in self.asks if isinstance(ask, Generate) and ask.prefilled is not None])

    def close(self) -> None:
        """Free the KV caches that are held."""
        self._keep([])

    def _keep(self, wanted: Sequence[Prefilled]) -> None:
        ids = {id(prefilled) for prefilled in wanted}
        for held in self._held:
            if id(held) not in ids:
                held.close()
        self._held = [held for held in self._held if id(held) in ids]

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


async def _aanswers(asks: Sequence[Ask]) -> list[Answer[Any]]:
    """Every ask's answer; several run concurrently, a single one without a task of its own."""
    if len(asks) == 1:
        return await _acall(asks[0].model, asks)
    called = await asyncio.gather(*(_acall(ask.model, [ask]) for ask in asks))
    return [answers[0] for answers in called]


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
            running.send(await _aanswers(running.asks))
        return running.unwrap()


class _Draft:
    """A streamed answer: what may be shown of it, and what is held back until the flow has decided."""

    def __init__(self) -> None:
        self._held: list[Chunk] = []
        self._response: Response | None = None
        self._error: Exception | None = None
        self._shown = False
        self._elapsed_s = 0.0  # in the model, not in whoever reads the stream

    def read(self, ask: Generate) -> Iterator[Chunk]:
        """Let the model answer; yields what may be shown at once."""
        items = self._step(lambda: iter(ask.model.stream(ask)))
        try:
            while items is not None and (item := self._step(lambda: next(items, None))) is not None:
                yield from self._add(item)
        finally:
            if close := getattr(items, "close", None):
                close()

    async def aread(self, ask: Generate) -> AsyncIterator[Chunk]:
        """`read`, without blocking the event loop."""
        items = self._step(lambda: aiter(ask.model.astream(ask)))
        try:
            while items is not None and (item := await self._astep(anext(items, None))) is not None:
                for chunk in self._add(item):
                    yield chunk
        finally:
            if aclose := getattr(items, "aclose", None):
                await aclose()

    def answer(self) -> Answer[Response]:
        error = self._error
        if error is None and self._response is None:
            error = ModelError("The stream ended without a response.")
        if error is not None and self._shown:
            broken = StreamBrokenError(
                f"The stream broke after part of the answer had been shown ({type(error).__name__}: {error})."
            )
            broken.__cause__ = error
            error = broken
        value = None if error is not None else self._response
        return Answer(value, error, elapsed_s=self._elapsed_s, busy_s=self._elapsed_s)

    def rest(self, outcome: Outcome) -> list[Chunk]:
        """What is left to show once the flow has decided."""
        if self._response is outcome.response:
            return self._release()
        response = outcome.response  # an earlier attempt's: its own framework object keeps tool calls and the like
        return [Chunk(response.text, response.tokens or (), released=True, native=response.native)]

    def _step(self, step: Callable[[], T]) -> T | None:
        started = time.perf_counter()
        try:
            return step()
        except Exception as error:
            self._error = error
            return None
        finally:
            self._elapsed_s += time.perf_counter() - started

    async def _astep(self, step: Awaitable[T]) -> T | None:
        started = time.perf_counter()
        try:
            return await step
        except Exception as error:
            self._error = error
            return None
        finally:
            self._elapsed_s += time.perf_counter() - started

    def _add(self, item: Chunk | Response) -> list[Chunk]:
        """Take the next piece; returns those that may be shown now."""
        if isinstance(item, Response):
            self._response = item
            return []
        self._held.append(item)
        # an answer of nothing but white space is empty, and is withdrawn, unless it calls a tool
        if not self._shown and not (item.released and any(c.text.strip() or c.calls_tool for c in self._held)):
            return []
        self._shown = True
        return self._release()

    def _release(self) -> list[Chunk]:
        held, self._held = self._held, []
        return [chunk if chunk.released else replace(chunk, released=True) for chunk in held]


def stream(flow: Flow[Outcome]) -> Iterator[Chunk | Outcome]:
    """Play a flow, yielding chunks of the answer that nothing can withdraw, and last the outcome.

    Decides exactly as `run` does: both apply the same watches to the same tokens.
    """
    with closing(_Run(flow)) as running:
        draft = _Draft()
        while not running.done:
            if len(running.asks) == 1 and isinstance(ask := running.asks[0], Generate):
                draft = _Draft()
                yield from draft.read(ask)
                running.send([draft.answer()])
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
                draft = _Draft()
                async with aclosing(draft.aread(ask)) as chunks:  # type: ignore[type-var]  # an async generator
                    async for chunk in chunks:
                        yield chunk
                running.send([draft.answer()])
            else:
                running.send(await _aanswers(running.asks))
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
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError(f"`max_concurrency` must be a whole number of at least 1. Got {concurrency!r}.")
        self._flows = enumerate(flows)
        self._concurrency = concurrency
        self._runs: dict[int, _Run[T]] = {}
        self._answers: dict[int, dict[int, Answer[Any]]] = {}
        self._local: dict[int, list[tuple[_Place, Ask]]] = {}  # by id of the model
        self._remote: deque[tuple[_Place, Ask]] = deque()
        self._remote_calls = 0
        self._local_busy = False
        self._more = True
        self._ended: list[tuple[int, _Run[T]]] = []

    @property
    def done(self) -> bool:
        return not self._more and not self._runs

    def add(self, index: int, flow: Flow[T]) -> None:
        """Take one more flow, whose index is its own."""
        self._queue(index, _Run(flow))

    def drop(self, index: int) -> None:
        """Forget a flow that nobody waits for any more; of its asks, those under way are answered in vain."""
        if (running := self._runs.pop(index, None)) is None:
            return
        self._answers.pop(index)
        for entries in (self._remote, *self._local.values()):
            kept = [entry for entry in entries if entry[0].flow != index]
            entries.clear()
            entries.extend(kept)
        running.close()

    def calls(self, *, partial: bool = True) -> list[_Calling]:
        """Calls to begin now.

        Args:
            partial: Also begin a local call that has room for more asks.
        """
        self._start()
        begun = []
        while self._remote and self._remote_calls < self._concurrency:
            place, ask = self._remote.popleft()
            self._remote_calls += 1
            begun.append(_Calling(ask.model, (ask,), (place,), local=False))
        if not self._local_busy and (partial or self._room_is_taken()) and (batch := self._next_batch()):
            self._local_busy = True
            begun.append(batch)
        return begun

    def complete(self, call: _Calling, answers: Sequence[Answer[Any]]) -> None:
        """Hand in a call's answers."""
        if call.local:
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
            self._queue(index, _Run(flow))

    def _room_is_taken(self) -> bool:
        return any(
            len(waiting) >= waiting[0][1].model.capability.batch_size for waiting in self._local.values() if waiting
        )

    def _queue(self, index: int, running: _Run[T]) -> None:
        if running.done:
            self._runs.pop(index, None)
            self._answers.pop(index, None)
            self._ended.append((index, running))
            return
        self._runs[index] = running
        self._answers[index] = {}
        for i, ask in enumerate(running.asks):
            entry = _Place(index, i), ask
            if ask.model.capability.local:
                self._local.setdefault(id(ask.model), []).append(entry)
            else:
                self._remote.append(entry)

    def _next_batch(self) -> _Calling | None:
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

    def _take(self, entries: list[tuple[_Place, Ask]], eligible: list[tuple[_Place, Ask]]) -> _Calling:
        model = eligible[0][1].model
        chosen = eligible[: model.capability.batch_size]
        taken = {place for place, _ in chosen}
        entries[:] = [entry for entry in entries if entry[0] not in taken]
        return _Calling(model, tuple(ask for _, ask in chosen), tuple(place for place, _ in chosen), local=True)


def _discard(answers: Sequence[Answer[Any]]) -> None:
    """Free the KV caches among answers that nobody waits for any more."""
    for answer in answers:
        if isinstance(answer.value, Prefilled):
            answer.value.close()


def run_many(flows: Iterable[Flow[T]], concurrency: int) -> Iterator[tuple[int, T | Exception]]:
    """Play many flows; yields each one's index and result, or error, as they end."""
    schedule = _Schedule(flows, concurrency)
    pending: dict[Future[list[Answer[Any]]], _Calling] = {}
    with closing(schedule), ThreadPoolExecutor(concurrency + 1, thread_name_prefix="confcascade") as pool:
        try:
            while True:
                for call in schedule.calls():
                    pending[pool.submit(copy_context().run, _call, call.model, call.asks)] = call
                yield from schedule.ended()
                if schedule.done:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    schedule.complete(pending.pop(future), future.result())
        finally:  # left early: what is under way cannot be stopped, only waited for
            for future in [future for future in pending if not future.cancel()]:
                _discard(future.result())


async def arun_many(flows: Iterable[Flow[T]], concurrency: int) -> AsyncIterator[tuple[int, T | Exception]]:
    """`run_many`, without blocking the event loop."""
    schedule = _Schedule(flows, concurrency)
    pending: dict[asyncio.Task[list[Answer[Any]]], _Calling] = {}
    with closing(schedule):
        try:
            while True:
                for call in schedule.calls():
                    pending[asyncio.ensure_future(_acall(call.model, call.asks))] = call
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
        self._ready: deque[_Calling] = deque()
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
            answers = _call(call.model, call.asks)
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
        self._calling: dict[asyncio.Task[list[Answer[Any]]], _Calling] = {}
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
            task = asyncio.ensure_future(_acall(call.model, call.asks))
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
        self._plan()
