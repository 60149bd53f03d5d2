"""One answer of a local model while it grows: text from tokens, stop strings, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confcascade.asks import Chunk, Generate
from confcascade.models.base import Watcher
from confcascade.models.local.sampling import GenerationSettings, TokenChoice
from confcascade.types import Response, Token, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["DecoderSettings", "Decoding"]


@dataclass(frozen=True)
class DecoderSettings:
    """How a model writes.

    Attributes:
        name: Of the model, for errors.
        tokenizer: Its `transformers` tokenizer.
        max_new_tokens: Most tokens of an answer, where the request does not say; None leaves it to the settings.
        context: Most tokens of prompt and answer together; None if unknown.
        settings: What decides which token follows.
    """

    name: str
    tokenizer: Any
    max_new_tokens: int | None
    context: int | None
    settings: GenerationSettings

    def limit(self, asked: int | None, prompt_tokens: int) -> int:
        """Most tokens of an answer to a prompt of so many: as asked, or as the model's settings say, or 512."""
        wanted = (asked, self.max_new_tokens, self.settings.max_new_tokens)
        limit = next((each for each in wanted if each is not None), None)
        if limit is None and self.settings.max_length is not None:
            limit = max(1, self.settings.max_length - prompt_tokens)
        limit = 512 if limit is None else limit
        return limit if self.context is None else min(limit, self.context - prompt_tokens)


class Decoding:
    """One answer while it is generated: its text, its tokens, and when it ends.

    Args:
        ask: What is answered.
        speaker: How its model writes.
        prompt: Its tokens, where they are still to be read.
        position: Its row in the batch.

    Raises:
        ModelError: If the request has options that local generation does not know.
    """

    def __init__(self, ask: Generate, speaker: DecoderSettings, prompt: Sequence[int], position: int) -> None:
        self.ask = ask
        self.prompt = prompt
        self.position = position
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._speaker = speaker
        self._tokenizer = speaker.tokenizer
        self._watcher = Watcher(ask)
        self._tokens: list[Token] = []
        self._settled = 0  # tokens that no stop string can still cut
        self._shown = 0
        self._ids: list[int] = []
        self._decoded = (0, 0)  # where the last undecoded window begins, and up to where it was decoded
        self._text = ""
        self._generated = 0
        self._prompt = 0
        self._limit = 0
        self._was_cut = False
        self._choice = TokenChoice(speaker.settings, ask.request)

    # ------------------------------------------------------------------ growing

    def begin(self, prompt: Sequence[int]) -> None:
        """Set what hangs on the prompt's tokens: the answer's limit, and which tokens are penalised."""
        self._prompt = len(prompt)
        self._limit = self._speaker.limit(self.ask.request.max_tokens, len(prompt))
        self._choice.begin(prompt, self._limit)

    def choose(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The next token, from raw logits (vocabulary,); None if it is the most probable."""
        return None if self._choice.plain else self._choice.next(logits)

    def leave(self) -> None:
        """End here: nobody waits for the rest."""
        self.finish_reason = "aborted"

    def push(self, token: int, logprob: float, logprobs: torch.Tensor) -> None:
        """Take the next token; `logprobs` is the whole distribution (vocabulary,) it came from."""
        self._generated += 1
        if token in self._speaker.settings.ends:
            self.finish_reason = "stop"
        else:
            self._ids.append(token)
            piece = self._decode_new()
            self._tokens.append(Token(piece, min(0.0, logprob), self._alternatives(logprobs)))
            self._text += piece
            if self._cut_at_stop():
                self.finish_reason = "stop"
            elif self._generated >= self._limit:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self._flush()
        self._settle()
        # a watch speaks of answers that go on; a finished one is judged by its scores
        if self.finish_reason is not None or not self._settled or not self.ask.logprobs:
            return
        text = self._text if self._settled == len(self._tokens) else None
        if self._watcher.see(self._tokens[: self._settled], text) == "abort":
            self.finish_reason = "aborted"
            self._tokens = self._tokens[: self._settled]
            self._text = "".join(each.text for each in self._tokens)

    def fail(self, error: Exception) -> None:
        """End without an answer."""
        self.error = error
        self.finish_reason = "error"

    def _alternatives(self, logprobs: torch.Tensor) -> tuple[tuple[str, float], ...]:
        if not self.ask.top_logprobs:
            return ()
        values, ids = logprobs.topk(min(self.ask.top_logprobs, logprobs.shape[-1]))
        return tuple((self._tokenizer.decode([i]), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))

    def _decode_new(self) -> str:
        """Text that the last token adds; empty while a character is incomplete."""
        start, done = self._decoded
        before = self._tokenizer.decode(self._ids[start:done], skip_special_tokens=True)
        now: str = self._tokenizer.decode(self._ids[start:], skip_special_tokens=True)
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._decoded = (done, len(self._ids))
        return now[len(before) :]

    def _flush(self) -> None:
        """Show what an incomplete character left behind."""
        start, done = self._decoded
        if self.finish_reason != "aborted" and self._tokens and done < len(self._ids) and not self._was_cut:
            before = self._tokenizer.decode(self._ids[start:done], skip_special_tokens=True)
            rest: str = self._tokenizer.decode(self._ids[start:], skip_special_tokens=True)[len(before) :]
            if rest:
                last = self._tokens[-1]
                self._tokens[-1] = Token(last.text + rest, last.logprob, last.top)
                self._text += rest

    def _cut_at_stop(self) -> bool:
        """End the text before the first stop string, if one has appeared."""
        ends = [at for stop in self.ask.request.stop if stop and (at := self._text.find(stop)) >= 0]
        if not ends:
            return False
        self._was_cut = True
        self._text = self._text[: min(ends)]
        kept, length = [], 0
        for token in self._tokens:
            if length >= len(self._text):
                break
            text = token.text[: len(self._text) - length]
            kept.append(Token(text, token.logprob, token.top))
            length += len(text)
        self._tokens = kept
        return True

    def _settle(self) -> None:
        """Count the tokens that cannot turn out to begin a stop string."""
        if self.finish_reason is not None or not self.ask.request.stop:
            self._settled = len(self._tokens)
            return
        held = max(
            (n for stop in self.ask.request.stop for n in range(1, len(stop)) if self._text.endswith(stop[:n])),
            default=0,
        )
        safe, length, count = len(self._text) - held, 0, 0
        for token in self._tokens:
            length += len(token.text)
            if length > safe:
                break
            count += 1
        self._settled = max(self._settled, count)

    # ------------------------------------------------------------------ showing

    def new_chunks(self) -> Iterator[Chunk]:
        """What has settled since the last call."""
        if self._settled > self._shown:
            fresh = tuple(self._tokens[self._shown : self._settled])
            self._shown = self._settled
            yield Chunk(
                "".join(token.text for token in fresh),
                fresh if self.ask.logprobs else (),
                released=self._watcher.verdict == "release",
            )

    def response(self) -> Response:
        return Response(
            text=self._text,
            tokens=tuple(self._tokens) if self.ask.logprobs else None,
            usage=Usage(self._prompt, self._generated),
            finish_reason=self.finish_reason,
        )
