"""What models share: obeying a watch, being asked without blocking the event loop, and being left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context

from confcascade.answers import AnswerTokens
from confcascade.asks import Chunk, Generate, Prefill, Verdict, Watch
from confcascade.types import Prefilled, Response, Token

__all__ = ["InThreads", "Waiting", "Watcher"]


class Watcher:
    """Asks a `Watch` after every token of the answer and remembers a final verdict."""

    def __init__(self, ask: Generate) -> None:
        self._watch: Watch | None = ask.watch
        self._answer = AnswerTokens()
        self.verdict: Verdict = "release" if ask.live else "hold"

    @property
    def undecided(self) -> bool:
        """Whether `see` can still change anything; once it cannot, nothing need be prepared for it."""
        return self._watch is not None and self.verdict == "hold"

    def see(self, tokens: Sequence[Token], text: str | None = None) -> Verdict:
        """The verdict on what came so far; nothing is decided before the answer itself has begun.

        Args:
            tokens: All of them.
            text: All of it, without thoughts that are told apart; by default what the tokens spell.
        """
        if self.verdict == "hold" and self._watch is not None:
            text = "".join(token.text for token in tokens) if text is None else text
            if answer := self._answer.seen(tokens, text):
                self.verdict = self._watch(answer)
        return self.verdict


class Waiting:
    """Which answers of a call somebody still waits for.

    A thread cannot be stopped from outside, so a model that computes in this process looks after every token.
    """

    _current: ContextVar[Waiting | None] = ContextVar("waiting", default=None)

    def __init__(self) -> None:
        self._left: dict[int, Generate] = {}
        self._all_left = False

    @classmethod
    def current(cls) -> Waiting | None:
        """That of the call which this code is part of."""
        return cls._current.get()

    def context(self) -> Context:
        """A copy of the caller's context in which the model finds this."""
        context = copy_context()
        context.run(self._current.set, self)
        return context

    def leave(self, *asks: Generate) -> None:
        """Wait no longer: for these asks, or for any."""
        self._left |= {id(ask): ask for ask in asks}
        self._all_left = self._all_left or not asks

    @property
    def is_left(self) -> bool:
        """Whether some answer is not waited for."""
        return self._all_left or bool(self._left)

    def wants(self, ask: Prefill | Generate) -> bool:
        """Whether the answer to this ask is waited for."""
        return not self._all_left and id(ask) not in self._left


class InThreads:
    """The asynchronous half of a model that computes in this process: its synchronous half, in threads.

    One that is cancelled leaves a model that looks at `Waiting.current` after the token under way.
    """

    prefill: Callable[[Sequence[Prefill]], Sequence[Prefilled | Exception]]
    generate: Callable[[Sequence[Generate]], Sequence[Response | Exception]]
    stream: Callable[[Generate], Iterator[Chunk | Response]]

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return await asyncio.to_thread(self.prefill, asks)

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        waiting = Waiting.current() or Waiting()
        call = asyncio.get_running_loop().run_in_executor(None, waiting.context().run, self.generate, asks)
        try:
            return await call
        except asyncio.CancelledError:
            waiting.leave()
            raise

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        waiting, loop, stream = Waiting(), asyncio.get_running_loop(), self.stream(ask)
        context = waiting.context()

        def step() -> Chunk | Response | None:
            return next(stream, None)

        try:
            while (item := await loop.run_in_executor(None, context.run, step)) is not None:
                yield item
        finally:
            waiting.leave()
            if close := getattr(stream, "close", None):
                with suppress(ValueError):  # a step under way in its thread ends by itself
                    close()
