"""A streamed answer as it comes in, whatever client reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from confcascade.asks import Chunk, Generate
from confcascade.errors import ModelError
from confcascade.models.base import Watcher
from confcascade.models.continuing import Overlap, rest_of
from confcascade.models.logprobs import TokenReader
from confcascade.models.remote import check_continues, estimated_usage
from confcascade.quick_init import quick_init
from confcascade.types import Response, Token

__all__ = ["Piece", "StreamReader"]


@quick_init
@dataclass(frozen=True)
class Piece:
    """What one event of a stream adds.

    Attributes:
        text: To what the user sees.
        thoughts: To the thoughts, where they are told apart from the text.
        logprobs: In any form that `TokenReader` reads; None if there are none.
        calls_tool: It adds to a call of a tool.
        finish_reason: Why the answer ended, where this says so.
        stopped_at: The stop string that ended it, "" for its own end; None where the server does not say.
        native: The framework's own event.
    """

    text: str = ""
    thoughts: str = ""
    logprobs: Any = None
    calls_tool: bool = False
    finish_reason: str | None = None
    native: Any = None
    stopped_at: str | None = None


class StreamReader:
    """Adds up the pieces of an answer, asks the ask's watch after each, and finds the end of a step.

    Args:
        ask: What is asked.
        repeated: Whether the server repeats what was written before; None if its response is only what follows.

    Attributes:
        text: So far.
        thoughts: Those that were told apart, so far.
        finish_reason: Once it is told.
    """

    def __init__(self, ask: Generate, *, repeated: bool | None = None) -> None:
        check_continues(ask)
        self.text = ""
        self.thoughts = ""
        self.finish_reason: str | None = None
        self._ask = ask
        self._watcher = Watcher(ask)
        self._reader = TokenReader(ask.top_logprobs)
        self._tokens: list[Token] | None = None
        self._overlap = Overlap("" if repeated is None else ask.request.written, repeated=bool(repeated))
        self._stepped: Literal["cut", "told"] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more is read."""
        return self.closed

    @property
    def closed(self) -> bool:
        """Whether it is closed before the server has told all: the watch has ended it, or its step is complete."""
        return self.aborted or self._stepped == "cut"

    @property
    def aborted(self) -> bool:
        """Whether the watch has ended it."""
        return self._watcher.verdict == "abort"

    @property
    def released(self) -> bool:
        """Whether what comes is shown, so that nothing can withdraw it."""
        return self._watcher.verdict == "release"

    @property
    def tokens(self) -> tuple[Token, ...] | None:
        """All that were told so far; None if none were, or what was told is no log-probability."""
        return tuple(self._tokens) if self._tokens is not None and self._reader.problem is None else None

    def add(self, piece: Piece) -> Iterator[Chunk]:
        """Take the next piece; yields it as a chunk, unless there is nothing in it."""
        if self.closed:
            return
        self.thoughts += piece.thoughts
        self.finish_reason = piece.finish_reason or self.finish_reason
        tokens = self._reader.read(piece.logprobs) or ()
        text = self._overlap.add(piece.text, last=piece.finish_reason is not None)
        if self._ask.until:
            text, tokens = self._within_step(piece, text, tokens)
        self.text += text
        if tokens:
            self._tokens = self._tokens or []
            self._tokens += tokens
        if self._tokens and self._watcher.undecided and self._reader.problem is None:
            self._watcher.see(self._tokens, self.text)
        if text or piece.thoughts or tokens or piece.calls_tool:
            yield Chunk(
                text,
                tokens,
                released=self.released,
                calls_tool=piece.calls_tool,
                native=piece.native,
                thoughts=piece.thoughts,
            )

    def _within_step(self, piece: Piece, text: str, tokens: tuple[Token, ...]) -> tuple[str, tuple[Token, ...]]:
        """Of what has come, the part up to the end of the step; what a server has cut off there is put back."""
        until = self._ask.until
        if piece.stopped_at == until:
            self._stepped = "told"
            rest = rest_of(self.text + text, until)
            if tokens:
                tokens = (*tokens[:-1], replace(tokens[-1], text=tokens[-1].text + rest))
            elif self._tokens:  # the delimiter's own token was not told: no probability is invented for it
                self._tokens[-1] = replace(self._tokens[-1], text=self._tokens[-1].text + rest)
            return text + rest, tokens
        before = self.text[-len(until) + 1 :] if len(until) > 1 else ""
        found = (before + text).find(until)
        if found < 0:
            return text, tokens
        self._stepped = "cut"
        end = found + len(until) - len(before)
        ends = list(accumulate(len(token.text) for token in tokens))
        if ends and ends[-1] == len(text):  # behind the token, of several that came together
            whole = next(i for i, at in enumerate(ends) if at >= end)
            return text[: ends[whole]], tokens[: whole + 1]
        return text[: len(text) - len(text[end:].lstrip())], tokens

    def finished(self, response: Response, *, must_finish: bool = False) -> Response:
        """What the client made of the whole, with what only the reader knows.

        Args:
            response: Its usage is what was told, and estimated if none was.
            must_finish: The server says why an answer ended: one without a reason was cut off.

        Raises:
            ModelError: If it was.
        """
        if must_finish and not self.closed and self.finish_reason is None:
            raise ModelError(f"The stream of model '{self._ask.model.name}' ended before the answer did.")
        response = response.replace(
            tokens=self.tokens,
            thoughts=response.thoughts or self.thoughts,
            unscored=self._reader.problem,
        )
        if self._stepped and not self.aborted:
            response = response.replace(finish_reason="step")
        if not self.closed:
            return response
        # closed before the server told all
        told, guess = response.usage, estimated_usage(self._ask, response.text, response.tokens)
        if not self.aborted and not told.estimated and told.output_tokens:  # some report it with every event
            return response
        usage = replace(
            told,
            input_tokens=told.input_tokens or guess.input_tokens,
            output_tokens=max(told.output_tokens, guess.output_tokens),
            estimated=True,
        )
        return response.replace(usage=usage, finish_reason="aborted" if self.aborted else "step")
