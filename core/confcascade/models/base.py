"""What models share: obeying a watch, and being asked without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from confcascade.answers import AnswerTokens
from confcascade.asks import Chunk, Generate, Prefill, Verdict, Watch
from confcascade.types import Prefilled, Response, Token

__all__ = ["InThreads", "Watcher"]


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


class InThreads:
    """The asynchronous half of a model that computes in this process: its synchronous half, in threads."""

    prefill: Callable[[Sequence[Prefill]], Sequence[Prefilled | Exception]]
    generate: Callable[[Sequence[Generate]], Sequence[Response | Exception]]
    stream: Callable[[Generate], Iterator[Chunk | Response]]

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return await asyncio.to_thread(self.prefill, asks)

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return await asyncio.to_thread(self.generate, asks)

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        stream = self.stream(ask)
        while (item := await asyncio.to_thread(next, stream, None)) is not None:
            yield item
