"""One step of a local model's while it grows: raw text, thoughts and their marks included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from confcascade.asks import Chunk, Generate
from confcascade.models.local.batch import Batch
from confcascade.models.local.decoding import Alternatives
from confcascade.models.local.detokenizer import Detokenizer
from confcascade.models.local.generation import DecoderSettings
from confcascade.models.local.sampling import TokenChoice
from confcascade.types import Response, Token, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["GrowingStep"]


class GrowingStep:
    """A part of an answer while it is generated. It consists of whole tokens, so that another step can follow.

    Args:
        ask: What is answered.
        speaker: How its model writes.
        take: Takes one row's own keys and values out of a cache, given its mask.
        opened: The mark with which the prompt has opened the thoughts, where this is the first step: its text begins
            with it, so that other models read it.
        begun: What was written of this step before it was paused.

    Attributes:
        ids: Its tokens, without one that ends the answer.
        ends: For each, how many characters of `own_text` are complete with it; None within a character.
        own_text: What the tokens spell.
        kept: What `take` has taken when it ended, and of how many tokens it is; None before.
    """

    def __init__(
        self,
        ask: Generate,
        speaker: DecoderSettings,
        take: Callable[[Any, torch.Tensor, int], Any],
        opened: str = "",
        begun: str = "",
    ) -> None:
        self.ask = ask
        self.position = 0  # in the batch
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.ids: list[int] = []
        self.ends: list[int | None] = []
        self.own_text = ""
        self.kept: tuple[Any, int] | None = None
        self._take = take
        self._speaker = speaker
        self._opened = opened
        self._begun = begun
        self._stops = tuple(filter(None, ask.request.stop))
        self._choice = TokenChoice(speaker.settings, ask.request)
        self._detokenizer = Detokenizer(speaker.tokenizer)
        self._tokens: list[Token] = []
        self._generated = 0
        self._limit = 0
        self._over = False  # the delimiter is complete
        self._max_logit: float | None = None
        self._shown = 0
        self._shown_tokens = 0

    def goes_on(self, ids: Sequence[int], prompt: int, random: Any) -> None:
        """Behind these tokens.

        Args:
            ids: Of the prompt, and of what was written.
            prompt: How many are the prompt's.
            random: The state of what tokens are drawn with, if they are; None begins anew.
        """
        asked = self.ask.request.max_tokens
        limit = self._speaker.limit(asked, prompt)
        written = len(ids) - prompt
        if asked is None:  # the model's own limit is that of a whole answer
            limit -= written
        if self._speaker.context is not None:
            limit = min(limit, self._speaker.context - len(ids))
        self._limit = max(1, limit)
        self._choice.begin(ids[:prompt], written + self._limit, written=ids[prompt:], random=random)
        self._detokenizer.behind(ids[prompt:])

    @property
    def random(self) -> Any:
        """The state of what tokens are drawn with; None where the most probable is taken."""
        return self._choice.random

    @property
    def spelled(self) -> int:
        """How many characters of `own_text` are those of `ids`: a stop string may have cut a token."""
        return next((end for end in reversed(self.ends) if end is not None), 0)

    # ------------------------------------------------------------------ what decoding asks of a row

    def begin(self, prompt: Sequence[int]) -> None:
        """All is set by `goes_on`."""

    def choose(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The next token, from raw logits (vocabulary,); None if it is the most probable."""
        self._max_logit = float(logits.max())
        return None if self._choice.plain else self._choice.next(logits)

    def push(self, token: int, logprob: float, alternatives: Alternatives) -> None:
        """Take the next token, and what else was probable in its place."""
        self._generated += 1
        if token in self._speaker.settings.ends:
            self.finish_reason = "stop"
        else:
            mark = self._speaker.marks.get(token)
            if mark is not None:
                self._complete()
                self._detokenizer.restart()
            piece = self._detokenizer.add(token) if mark is None else mark
            self.own_text += piece
            self.ids.append(token)
            self.ends.append(None if self._detokenizer.pending and mark is None else len(self.own_text))
            self._tokens.append(Token(piece, min(0.0, logprob), self._speaker.spelled(alternatives), self._max_logit))
            self._end_where_asked(len(piece))
            if self.finish_reason in (None, "step") and self._generated >= self._limit:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self._complete()

    def overflow(self) -> None:
        """End with logits that are not finite."""
        self.fail(self._speaker.overflow())

    def fail(self, error: Exception) -> None:
        """End without a step."""
        self.error = error
        self.finish_reason = "error"

    def pause(self, batch: Batch) -> None:
        """End here, to be gone on with by the next ask of the session; not within a character or a stop string."""
        if not self._held and not self._detokenizer.pending:
            self.finish_reason = "paused"
            self.keep(batch)

    def leave(self) -> None:
        """End here: nobody waits for the rest."""
        self.finish_reason = "aborted"

    def keep(self, batch: Batch) -> None:
        """It has ended: its keys and values are in this batch."""
        self.kept = self._take(batch.cache, batch.mask, self.position), int(batch.mask[self.position].sum())

    # ------------------------------------------------------------------ text

    def _complete(self) -> None:
        """Show what an incomplete character left behind."""
        if rest := self._detokenizer.rest():
            self.own_text += rest
            last = self._tokens[-1]
            self._tokens[-1] = replace(last, text=last.text + rest)
            self.ends[-1] = len(self.own_text)

    def _end_where_asked(self, new: int) -> None:
        """End before a stop string, or behind the delimiter of a step, if one is complete with the last token."""
        text, until = self.own_text, self.ask.until
        if found := [
            at for stop in self._stops if (at := text.find(stop, max(0, len(text) - new - len(stop) + 1))) >= 0
        ]:
            self.finish_reason = "stop"
            self._cut(min(found))
            return
        step = self._begun + text
        at = step.find(until, max(0, len(step) - new - len(until) + 1)) if until else -1
        self._over = self._over or (at >= 0 and bool(step[:at].strip()))
        # no stop string, and no character, begins in one step and ends in another
        if self._over and not self._held and not self._detokenizer.pending:
            self.finish_reason = "step"

    def _cut(self, end: int) -> None:
        """Keep so many characters, whole tokens of `ids`, and of the last token its part."""
        self.own_text = self.own_text[:end]
        while self.ends and (self.ends[-1] is None or self.ends[-1] > end):
            del self.ends[-1], self.ids[-1]
        length = count = 0
        while length < end:
            text = self._tokens[count].text[: end - length]
            self._tokens[count] = replace(self._tokens[count], text=text)
            length, count = length + len(text), count + 1
        del self._tokens[count:]

    @property
    def _held(self) -> int:
        """How many of the last characters may begin a stop string."""
        text = self.own_text
        return max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)

    def new_chunks(self) -> Iterator[Chunk]:
        """What no stop string can still cut, and was not shown before."""
        end, tokens = len(self.own_text), len(self._tokens)
        if self.finish_reason is None:
            end -= self._held
            known = range(self._shown_tokens, tokens)
            tokens = max((i + 1 for i in known if (at := self.ends[i]) is not None and at <= end), default=0)
        text = (self._opened + self.own_text)[self._shown : len(self._opened) + end]
        told = tuple(self._tokens[self._shown_tokens : tokens])
        if text or told:
            yield Chunk(text, told if self.ask.logprobs else (), released=self.ask.live)
            self._shown, self._shown_tokens = self._shown + len(text), max(tokens, self._shown_tokens)

    def response(self, read: int) -> Response:
        """What was written, for which so many tokens had to be read."""
        return Response(
            text=self._opened + self.own_text,
            tokens=tuple(self._tokens) if self.ask.logprobs else None,
            usage=Usage(read, self._generated),
            finish_reason=self.finish_reason,
        )
