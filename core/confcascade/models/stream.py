"""A streamed answer as it comes in, whatever client reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from confcascade.asks import Chunk, Generate
from confcascade.errors import ModelError
from confcascade.models.base import Watcher
from confcascade.models.logprobs import TokenReader
from confcascade.models.remote import estimated_usage
from confcascade.types import Response, Token

__all__ = ["Piece", "StreamReader"]


@dataclass(frozen=True)
class Piece:
    """What one event of a stream adds.

    Attributes:
        text: To what the user sees.
        thoughts: To the thoughts, where they are told apart from the text.
        logprobs: In any form that `TokenReader` reads; None if there are none.
        calls_tool: It adds to a call of a tool.
        finish_reason: Why the answer ended, where this says so.
        native: The framework's own event.
    """

    text: str = ""
    thoughts: str = ""
    logprobs: Any = None
    calls_tool: bool = False
    finish_reason: str | None = None
    native: Any = None


class StreamReader:
    """Adds up the pieces of an answer, and asks the ask's watch after each.

    Attributes:
        text: So far.
        thoughts: Those that were told apart, so far.
        finish_reason: Once it is told.
    """

    def __init__(self, ask: Generate) -> None:
        self.text = ""
        self.thoughts = ""
        self.finish_reason: str | None = None
        self._ask = ask
        self._watcher = Watcher(ask)
        self._reader = TokenReader(ask.top_logprobs)
        self._tokens: list[Token] | None = None

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
        self.text += piece.text
        self.thoughts += piece.thoughts
        self.finish_reason = piece.finish_reason or self.finish_reason
        tokens = self._reader.read(piece.logprobs) or ()
        if tokens:
            self._tokens = self._tokens or []
            self._tokens += tokens
        if self._tokens and self._watcher.undecided and self._reader.problem is None:
            self._watcher.see(self._tokens, self.text)
        if piece.text or piece.thoughts or tokens or piece.calls_tool:
            yield Chunk(
                piece.text,
                tokens,
                released=self.released,
                calls_tool=piece.calls_tool,
                native=piece.native,
                thoughts=piece.thoughts,
            )

    def finished(self, response: Response, *, must_finish: bool = False) -> Response:
        """What the client made of the whole, with what only the reader knows.

        Args:
            response: Its usage is what was told, and estimated if none was.
            must_finish: The server says why an answer ended: one without a reason was cut off.

        Raises:
            ModelError: If it was.
        """
        if must_finish and not self.aborted and self.finish_reason is None:
            raise ModelError(f"The stream of model '{self._ask.model.name}' ended before the answer did.")
        response = response.replace(
            tokens=self.tokens,
            thoughts=response.thoughts or self.thoughts,
            unscored=self._reader.problem,
        )
        if not self.aborted:
            return response
        # closed before the server told all
        told, guess = response.usage, estimated_usage(self._ask, response.text, response.tokens)
        usage = replace(
            told,
            input_tokens=told.input_tokens or guess.input_tokens,
            output_tokens=max(told.output_tokens, guess.output_tokens),
            estimated=True,
        )
        return response.replace(usage=usage, finish_reason="aborted")
