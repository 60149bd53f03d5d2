"""One flow: its asks answered synchronously or asynchronously, whole or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from confcascade.asks import Answer, Ask, Chunk, Flow, Generate, LanguageModel, Left, Prefill, Session
from confcascade.attempts import Outcome
from confcascade.errors import ModelError, StreamBrokenError, joined, kept_of
from confcascade.models.remote import estimated_usage
from confcascade.notices import log_failed_batch
from confcascade.trace import Within
from confcascade.types import Prefilled, Response, Token, Usage

__all__ = ["Run", "acall_model", "arun", "astream", "call_model", "run", "stream", "submitted_answer"]

T = TypeVar("T")


class Run(Generic[T]):
    """A flow in progress.

    Attributes:
        asks: What is open.
        result: Of a flow that has ended.
        error: That it ended with.
        done: Whether it has ended.
        draft: The answer that is being streamed, if one is.
    """

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self._held: list[Prefilled] = []
        self._sessions: dict[int, Session] = {}
        self.asks: tuple[Ask, ...] = ()
        self.result: T | None = None
        self.error: Exception | None = None
        self.done = False
        self.draft: _Draft | None = None
        self._asked: float | None = None
        self._advance(None)

    def begin(self) -> tuple[Ask, ...]:
        """The open asks, whose models are called from now on."""
        self._asked = time.perf_counter()
        return self.asks

    def send(self, answers: Sequence[Answer[Any]]) -> None:
        """Answer the open asks, in their order."""
        self._asked = self.draft = None
        for answer in answers:
            if isinstance(answer.value, Prefilled):
                self._held.append(answer.value)
        self._advance(tuple(answers))
        if self._held:
            self._keep([ask.prefilled for ask in self.asks if isinstance(ask, Generate) and ask.prefilled is not None])

    def close(self) -> None:
        """Leave the flow, if it has not ended, and free the KV caches that are held."""
        if not self.done:
            self._leave()
        if self._held:
            self._keep([])

    def _leave(self) -> None:
        answers = [] if self._asked is None else [self._so_far(ask, self._asked) for ask in self.asks]
        self.asks, self.done = (), True
        with suppress(Left, StopIteration):
            self._flow.throw(Left(answers))
        self._close_sessions()

    def _so_far(self, ask: Ask, asked: float) -> Answer[Any]:
        """What has come of an ask; what it has cost is an estimate, for nobody waits for the account."""
        elapsed = time.perf_counter() - asked
        text, tokens = ("", None) if self.draft is None else self.draft.so_far()
        told = None if self.draft is None else self.draft.told
        usage = told or _estimated(ask, text, tokens)
        return Answer(Response(text, tokens, usage, "aborted"), elapsed_s=elapsed, busy_s=elapsed)

    def _keep(self, wanted: Sequence[Prefilled]) -> None:
        ids = {id(prefilled) for prefilled in wanted}
        for held in self._held:
            if id(held) not in ids:
                held.close()
        self._held = [held for held in self._held if id(held) in ids]

    def unwrap(self) -> T:
        """The result of a flow that has ended; raises its error."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # a finished flow without error has one

    def _advance(self, answers: Any) -> None:
        """Let the flow go on, or begin where there are no answers yet."""
        try:
            self.asks = self._flow.send(answers)
        except StopIteration as stop:
            self.asks, self.result, self.done = (), stop.value, True
        except Exception as error:
            self.asks, self.error, self.done = (), error, True
        for ask in self.asks:
            if ask.session is not None:
                self._sessions[id(ask.session)] = ask.session
        if self.done and self._sessions:
            self._close_sessions()

    def _close_sessions(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()


# ---------------------------------------------------------------------- calling a model


def _answers(asks: Sequence[Ask], values: Sequence[Any], started: float, within: Within) -> list[Answer[Any]]:
    elapsed = time.perf_counter() - started
    if len(asks) == len(values) == 1 and not isinstance(values[0], Exception):  # nearly always
        return [Answer(values[0], elapsed_s=elapsed, busy_s=asks[0].progress.busy_s or elapsed)]
    return [
        Answer(error=value, elapsed_s=elapsed, busy_s=busy, usage=within.usage or _usage_of(value, ask))
        if isinstance(value, Exception)
        else Answer(value, elapsed_s=elapsed, busy_s=busy)
        for ask, value in zip(asks, values, strict=True)
        for busy in [ask.progress.busy_s or elapsed / len(values)]
    ]


def _usage_of(error: Exception, ask: Ask) -> Usage | None:
    """What a call has cost that gave no answer: a server that was too slow has read the prompt, others bill nothing.

    What the model has noted as used (`Progress`) is paid in any case.
    """
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return _estimated(ask, "", ())
    return ask.progress.paid


def _estimated(ask: Ask, text: str, tokens: Sequence[Token] | None) -> Usage:
    """What an ask has used of which so much has come: an estimate, and what was used before the call under way."""
    if not isinstance(ask, Generate):
        return estimated_usage(ask, text, tokens)
    return estimated_usage(ask.progress.asked or ask, text, tokens) + (ask.progress.paid or Usage())


def _alone(ask: Any) -> Any:
    """An ask to repeat: its KV cache was that of the batch."""
    return replace(ask, prefilled=None) if isinstance(ask, Generate) else ask


def call_model(model: LanguageModel, asks: Sequence[Any]) -> list[Answer[Any]]:
    """The answers to asks of one kind, in their order, each with its time.

    If a call for several fails, each is asked again alone, so that one bad query fails alone.
    """
    started = time.perf_counter()
    values: Any = None
    within = Within()
    try:
        with within:
            values = model.prefill(asks) if isinstance(asks[0], Prefill) else model.generate(asks)
    except Exception as error:
        if len(asks) > 1:
            log_failed_batch(model.name, error, len(asks))
        else:
            values = [error]
    if values is None:  # the error is gone by now, and with it what it kept in memory
        again = [call_model(model, [_alone(ask)])[0] for ask in asks]
        values = [answer.error or answer.value for answer in again]
    return _answers(asks, values, started, within)


def submitted_answer(ask: Ask, future: Future[Any], started: float) -> Answer[Any]:
    """The answer to an ask that was submitted then, and has ended (`SelfBatching`)."""
    return _answers([ask], [future.result()], started, Within())[0]


async def acall_model(model: LanguageModel, asks: Sequence[Any]) -> list[Answer[Any]]:
    """`call_model`, without blocking the event loop."""
    started = time.perf_counter()
    values: Any = None
    within = Within()
    try:
        with within:
            values = await (model.aprefill(asks) if isinstance(asks[0], Prefill) else model.agenerate(asks))
    except Exception as error:
        if len(asks) > 1:
            log_failed_batch(model.name, error, len(asks))
        else:
            values = [error]
    if values is None:
        again = [(await acall_model(model, [_alone(ask)]))[0] for ask in asks]
        values = [answer.error or answer.value for answer in again]
    return _answers(asks, values, started, within)


async def _aanswers(asks: Sequence[Ask]) -> list[Answer[Any]]:
    """Every ask's answer; several run concurrently, a single one without a task of its own."""
    if len(asks) == 1:
        return await acall_model(asks[0].model, asks)
    called = await asyncio.gather(*(acall_model(ask.model, [ask]) for ask in asks))
    return [answers[0] for answers in called]


# ---------------------------------------------------------------------- one flow


def run(flow: Flow[T]) -> T:
    """Play a flow to its end."""
    running = Run(flow)
    try:
        while not running.done:
            running.send([call_model(ask.model, [ask])[0] for ask in running.begin()])
        return running.unwrap()
    finally:
        running.close()


async def arun(flow: Flow[T]) -> T:
    """Play a flow to its end without blocking the event loop; asks of one step run concurrently."""
    running = Run(flow)
    try:
        while not running.done:
            asks = running.begin()
            running.send(await (acall_model(asks[0].model, asks) if len(asks) == 1 else _aanswers(asks)))
        return running.unwrap()
    finally:
        running.close()


class _Draft:
    """A streamed answer: what may be shown of it, and what is held back until the flow has decided."""

    def __init__(self) -> None:
        self._held: list[Chunk] = []
        self._response: Response | None = None
        self._error: Exception | None = None
        self._shown = False
        self._elapsed_s = 0.0  # in the model, not in whoever reads the stream
        self._final = False
        self._within = Within()
        self._text: list[str] = []
        self._tokens: list[Token] = []

    def so_far(self) -> tuple[str, tuple[Token, ...] | None]:
        """The text that has come, and its tokens, if the model lists them."""
        return "".join(self._text), tuple(self._tokens) or None

    @property
    def told(self) -> Usage | None:
        """What cascades say that they used, of a model that is one; None of any other."""
        return self._within.usage

    def read(self, ask: Generate) -> Iterator[Chunk]:
        """Let the model answer; yields what may be shown at once."""
        self._final = ask.final
        items = self._step(lambda: iter(ask.model.stream(ask)))
        try:
            while items is not None and (item := self._step(lambda: next(items, None))) is not None:
                yield from self._add(item)
        finally:
            if close := getattr(items, "close", None):
                close()

    async def aread(self, ask: Generate) -> AsyncIterator[Chunk]:
        """`read`, without blocking the event loop."""
        self._final = ask.final
        items = self._step(lambda: aiter(ask.model.astream(ask)))
        try:
            while items is not None and (item := await self._astep(anext(items, None))) is not None:
                for chunk in self._add(item):
                    yield chunk
        finally:
            if aclose := getattr(items, "aclose", None):
                await aclose()

    def answer(self, ask: Generate) -> Answer[Response]:
        error = self._error
        if error is None and self._response is None:
            error = ModelError("The stream ended without a response.")
        if error is not None and self._shown:
            broken = f"The stream broke after part of the answer had been shown ({kept_of(error)})."
            error = joined(StreamBrokenError(broken), error)
        if error is None:
            return Answer(self._response, elapsed_s=self._elapsed_s, busy_s=self._elapsed_s)
        usage = self.told or (_estimated(ask, *self.so_far()) if self._text else _usage_of(error, ask))
        return Answer(error=error, elapsed_s=self._elapsed_s, busy_s=self._elapsed_s, usage=usage)

    def rest(self, outcome: Outcome) -> list[Chunk]:
        """What is left to show once the flow has decided."""
        if outcome.response.steps and self._response is not None:  # the last of them is kept, or is asked for anew
            return self._release()
        if (response := outcome.response).altered:  # what came is the model's own
            return [Chunk(response.text, response.tokens or (), released=True, thoughts=response.thoughts_apart)]
        latest = next((response for response in reversed(outcome.responses) if response is not None), None)
        if self._response is not None and outcome.response is latest:  # this one's, its tokens parted
            return self._release()
        response = outcome.response  # an earlier attempt's: its own framework object keeps tool calls and the like
        return [Chunk(response.text, response.tokens or (), released=True, native=response.native)]

    def kept(self, text: str) -> list[Chunk]:
        """This text, with its tokens where it is what was held back."""
        same = "".join(chunk.text for chunk in self._held) == text
        return self._release() if same else [Chunk(text, released=True)]

    def _step(self, step: Callable[[], T]) -> T | None:
        started = time.perf_counter()
        try:
            with self._within:
                return step()
        except Exception as error:
            self._error = error
            return None
        finally:
            self._elapsed_s += time.perf_counter() - started

    async def _astep(self, step: Awaitable[T]) -> T | None:
        started = time.perf_counter()
        try:
            with self._within:
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
        self._text.append(item.text)
        self._tokens += item.tokens
        # an answer of nothing but white space is empty, and is withdrawn, unless it calls a tool or is the last stage's
        shows = self._final or any(c.text.strip() or c.calls_tool for c in self._held)
        if not self._shown and not (item.released and shows):
            return []
        self._shown = True
        return self._release()

    def _release(self) -> list[Chunk]:
        held, self._held = self._held, []
        return [chunk if chunk.released else chunk.as_released() for chunk in held]


class _Shown:
    """How much has been shown of an answer that is written in turn: what asks go on from stands, and can be shown."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self._characters = max((len(ask.request.written) for ask in asks), default=0)  # by the caller

    def written(self, asks: Sequence[Ask], draft: _Draft) -> Iterator[Chunk]:
        """What was written before these asks and has not been shown: the last draft, if it is kept."""
        for ask in asks:
            if new := ask.request.written[self._characters :]:
                for chunk in draft.kept(new):
                    yield self.now(chunk)

    def now(self, chunk: Chunk) -> Chunk:
        """It is shown."""
        self._characters += len(chunk.text)
        return chunk


def stream(flow: Flow[Outcome]) -> Iterator[Chunk | Outcome]:
    """Play a flow, yielding chunks of the answer that nothing can withdraw, and last the outcome.

    Decides exactly as `run` does: both apply the same watches to the same tokens.
    """
    with closing(Run(flow)) as running:
        draft, shown = _Draft(), _Shown(running.asks)
        while not running.done:
            yield from shown.written(running.asks, draft)
            if len(running.asks) == 1 and isinstance(ask := running.asks[0], Generate) and not ask.aside:
                draft = running.draft = _Draft()
                running.begin()
                with closing(draft.read(ask)) as chunks:  # type: ignore[type-var]  # a generator
                    for chunk in chunks:
                        yield shown.now(chunk)
                running.send([draft.answer(ask)])
            else:
                running.send([call_model(ask.model, [ask])[0] for ask in running.begin()])
        outcome = running.unwrap()
        yield from draft.rest(outcome)
        yield outcome


async def astream(flow: Flow[Outcome]) -> AsyncIterator[Chunk | Outcome]:
    """`stream`, without blocking the event loop."""
    with closing(Run(flow)) as running:
        draft, shown = _Draft(), _Shown(running.asks)
        while not running.done:
            for chunk in shown.written(running.asks, draft):
                yield chunk
            if len(running.asks) == 1 and isinstance(ask := running.asks[0], Generate) and not ask.aside:
                draft = running.draft = _Draft()
                running.begin()
                async with aclosing(draft.aread(ask)) as chunks:  # type: ignore[type-var]  # an async generator
                    async for chunk in chunks:
                        yield shown.now(chunk)
                running.send([draft.answer(ask)])
            else:
                running.send(await _aanswers(running.begin()))
        outcome = running.unwrap()
        for chunk in draft.rest(outcome):
            yield chunk
        yield outcome
