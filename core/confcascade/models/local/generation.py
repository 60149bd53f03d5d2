"""One answer of a local model while it grows: text from tokens, stop strings, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from confcascade.asks import Chunk, Generate
from confcascade.errors import ModelError
from confcascade.models.base import Watcher
from confcascade.models.local.batch import Batch
from confcascade.models.local.decoding import Alternatives
from confcascade.models.local.detokenizer import Detokenizer
from confcascade.models.local.sampling import GenerationSettings, TokenChoice
from confcascade.thoughts import ThoughtReader, calls_by_header
from confcascade.tools import LEFT_CALL
from confcascade.types import Response, ThoughtToken, Token, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["DecoderSettings", "GrowingAnswer"]


@dataclass(frozen=True)
class DecoderSettings:
    """How a model writes.

    Attributes:
        name: Of the model, for errors.
        tokenizer: Its `transformers` tokenizer.
        marks: The special tokens that are marks of thoughts, by id.
        call_marks: The tokens that begin a tool call, and whether they are special.
        max_new_tokens: Most tokens of an answer, where the request does not say; None leaves it to the settings.
        context: Most tokens of prompt and answer together; None if unknown.
        settings: What decides which token follows.
        dtype: Of its numbers, for errors.
        texts: Of the tokens that were spelled, each alone.
    """

    name: str
    tokenizer: Any
    marks: Mapping[int, str]
    call_marks: Mapping[int, bool]
    max_new_tokens: int | None
    context: int | None
    settings: GenerationSettings
    dtype: Any = None
    texts: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def overflow(self) -> ModelError:
        """The error of an answer whose logits are not finite."""
        return ModelError(
            f"The logits of model '{self.name}' are not finite: its numbers overflow in {self.dtype}, or its weights "
            'are broken. Load it in another precision, such as dtype="float32".'
        )

    def spelled(self, alternatives: Alternatives) -> tuple[tuple[str, float], ...]:
        """Tokens and their log-probabilities, as text."""
        return tuple((self._text_of(token), logprob) for token, logprob in alternatives)

    def _text_of(self, token: int) -> str:
        text = self.texts.get(token)
        if text is None:
            text = self.texts[token] = self.tokenizer.decode([token])
        return text

    def limit(self, asked: int | None, prompt_tokens: int) -> int:
        """Most tokens of an answer to a prompt of so many: as asked, or as the model's settings say, or 512."""
        wanted = (asked, self.max_new_tokens, self.settings.max_new_tokens)
        limit = next((each for each in wanted if each is not None), None)
        if limit is None and self.settings.max_length is not None:
            limit = max(1, self.settings.max_length - prompt_tokens)
        limit = 512 if limit is None else limit
        return limit if self.context is None else min(limit, self.context - prompt_tokens)


class GrowingAnswer:
    """One answer while it is generated: its text, its tokens, and when it ends.

    Args:
        ask: What is answered.
        speaker: How its model writes.
        opened: The mark with which the prompt has opened the thoughts, if it has.
        keep: Keeps what a row of a batch has read, these tokens, for what is asked next.

    Raises:
        ModelError: If the request has options that local generation does not know.
    """

    def __init__(
        self,
        ask: Generate,
        speaker: DecoderSettings,
        opened: str = "",
        keep: Callable[[Sequence[int], Batch, int], None] | None = None,
    ) -> None:
        self.ask = ask
        self._keep = keep if ask.followed else None
        self._ids: list[int] = []  # the prompt's and its own, where they are kept
        self.position = 0  # in the batch
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._speaker = speaker
        self._tokenizer = speaker.tokenizer
        self._watcher = Watcher(ask)
        self._tokens: list[Token] = []
        self._settled = 0  # tokens that no stop string can still cut, and whose part of the text is known
        self._shown = 0
        self._detokenizer = Detokenizer(speaker.tokenizer)
        self._reader = ThoughtReader(opened)
        self._start: int | None = None  # the answer's first token, once it has begun
        self._text = ""  # of the answer
        self._solid = 0  # characters in settled tokens: of the answer, once it has begun
        self._stops = tuple(filter(None, ask.request.stop))
        self._generated = 0
        self._prompt = 0
        self._limit = 0
        self._was_cut = False
        self._problem: str | None = None
        self._choice = TokenChoice(speaker.settings, ask.request)

    # ------------------------------------------------------------------ growing

    def begin(self, prompt: Sequence[int]) -> None:
        """Set what hangs on the prompt's tokens: the answer's limit, and which tokens are penalised."""
        self._prompt = len(prompt)
        self._ids = list(prompt) if self._keep is not None else []
        self._limit = self._speaker.limit(self.ask.request.max_tokens, len(prompt))
        self._choice.begin(prompt, self._limit)

    def choose(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The next token, from raw logits (vocabulary,); None if it is the most probable."""
        return None if self._choice.plain else self._choice.next(logits)

    def overflow(self) -> None:
        """End with logits that are not finite."""
        self.fail(self._speaker.overflow())

    def leave(self) -> None:
        """End here: nobody waits for the rest."""
        self.finish_reason = "aborted"

    def push(self, token: int, logprob: float, alternatives: Alternatives) -> None:
        """Take the next token, and what else was probable in its place."""
        self._generated += 1
        if self._keep is not None:
            self._ids.append(token)
        if token in self._speaker.settings.ends:
            self.finish_reason = "stop"
        else:
            if token in self._speaker.call_marks and not self._reader.thinking:
                self._see_call(special=self._speaker.call_marks[token])
            # within the answer, special tokens have no text, unless they may close what was opened around it
            mark = self._speaker.marks.get(token) if self._start is None or self._reader.closers else None
            if mark is None:
                piece = self._detokenizer.add(token)
            else:
                self._flush()
                self._detokenizer.restart()
                piece = mark
            self._tokens.append(Token(piece, min(0.0, logprob), self._speaker.spelled(alternatives)))
            self._grow(piece)
            if self.finish_reason is None and self._generated >= self._limit:
                self.finish_reason = "length"
        if self.finish_reason is not None and not self._was_cut:
            self._flush()
            self._grow("", last=True)
        self._settle()
        # a watch speaks of answers that go on; a finished one is judged by its scores
        if self.finish_reason is None and self._watcher.undecided and self.ask.logprobs:
            self._watch()

    def _watch(self) -> None:
        """Ask the watch about the answer, as far as it has settled; nothing of the thoughts is its business."""
        if self._start is None or self._settled <= self._start:
            return
        text = self._text if self._settled == len(self._tokens) else None
        if self._watcher.see(self._tokens[self._start : self._settled], text) == "abort":
            self.finish_reason = "aborted"
            del self._tokens[self._settled :]
            self._text = self._text[: self._solid]

    def _see_call(self, *, special: bool) -> None:
        """Know a call by the token that begins it; one that has text may be quoted within a line, or in a fence."""
        text = self._text.rstrip(" ")
        if special or ((not text or text.endswith("\n")) and text.count("```") % 2 == 0):
            self._problem = LEFT_CALL

    def keep(self, batch: Batch) -> None:
        """It has ended; its last token has not been read."""
        if self._keep is not None and self.error is None:
            self._keep(self._ids[:-1], batch, self.position)

    def fail(self, error: Exception) -> None:
        """End without an answer."""
        self.error = error
        self.finish_reason = "error"

    def _flush(self) -> None:
        """Show what an incomplete character left behind."""
        if rest := self._detokenizer.rest():
            last = self._tokens[-1]
            self._tokens[-1] = replace(last, text=last.text + rest)
            self._grow(rest)

    def _grow(self, piece: str, *, last: bool = False) -> None:
        """Add to the text what its last token did."""
        if self._start is None:
            self._reader.add(piece, last=last)
            if self._reader.begun is None:
                return
            self._begin_answer(self._reader.begun)
            piece = self._text
        else:
            self._text += piece
        if piece and self._cut_at_stop(len(self._text) - len(piece)):
            self.finish_reason = "stop"

    def _begin_answer(self, begun: int) -> None:
        """Take the tokens apart, now that the answer is known to begin at the character `begun` of what was written."""
        start, end = 0, 0
        if begun:
            while start < len(self._tokens) and end + len(self._tokens[start].text) <= begun:
                end += len(self._tokens[start].text)
                start += 1
            while start and not self._tokens[start - 1].text:  # the first bytes of a character
                start -= 1
        marks = set(self._speaker.marks.values())
        if calls_by_header("".join(token.text for token in self._tokens[start:])):
            self._problem = LEFT_CALL  # for certain: special tokens say so
        while self._problem is None and start < len(self._tokens) and self._tokens[start].text in marks:
            end, begun = end + len(self._tokens[start].text), 0
            start += 1
        if start < len(self._tokens) and begun > end:  # in the midst of a token
            self._tokens[start] = replace(self._tokens[start], text=self._tokens[start].text[begun - end :])
        self._are_thoughts(start)
        self._start, self._settled, self._solid = start, start, 0
        self._text = "".join(token.text for token in self._tokens[start:])
        self._stops += self._reader.closers

    def _are_thoughts(self, end: int) -> None:
        """Mark the tokens up to there, but for those that have been."""
        for i in range(self._settled, end):
            token = self._tokens[i]
            self._tokens[i] = ThoughtToken(token.text, token.logprob, token.top)
        self._settled = max(self._settled, end)

    def _cut_at_stop(self, new: int) -> bool:
        """End the answer before the first stop string, if one has appeared with the characters from `new` on."""
        ends = [at for stop in self._stops if (at := self._text.find(stop, max(0, new - len(stop) + 1))) >= 0]
        if not ends:
            return False
        self._was_cut = True
        self._text = self._text[: min(ends)]
        length, count = self._solid, self._settled
        while length < len(self._text):
            text = self._tokens[count].text[: len(self._text) - length]
            self._tokens[count] = replace(self._tokens[count], text=text)
            length += len(text)
            count += 1
        del self._tokens[count:]
        return True

    def _settle(self) -> None:
        """Count the tokens that are known to be thoughts, or that cannot turn out to begin a stop string."""
        ended = self.finish_reason is not None
        whole = len(self._tokens) - (0 if ended else self._detokenizer.pending)
        if self._start is None:
            if ended:
                self._are_thoughts(whole)
            elif self._reader.thinking:
                self._are_thoughts(self._up_to(whole, self._reader.sure))
            return
        held = 0
        if not ended and self._stops:
            text = self._text
            held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._settled = self._up_to(whole, len(self._text) - held)

    def _up_to(self, count: int, characters: int) -> int:
        """How many of the first `count` tokens lie within so many characters: of the answer, once it has begun."""
        settled = self._settled
        while settled < count and self._solid + len(self._tokens[settled].text) <= characters:
            self._solid += len(self._tokens[settled].text)
            settled += 1
        return settled

    # ------------------------------------------------------------------ showing

    def new_chunks(self) -> Iterator[Chunk]:
        """What has settled since the last call."""
        thoughts = self._reader.fresh()
        if self._settled > self._shown or thoughts:
            fresh = tuple(self._tokens[self._shown : self._settled])
            self._shown = self._settled
            yield Chunk(
                "".join([token.text for token in fresh if not isinstance(token, ThoughtToken)]),
                fresh if self.ask.logprobs else (),
                released=self._watcher.verdict == "release",
                thoughts=thoughts,
            )

    def response(self) -> Response:
        return Response(
            text=self._text,
            tokens=tuple(self._tokens) if self.ask.logprobs else None,
            usage=Usage(self._prompt, self._generated),
            finish_reason=self.finish_reason,
            thoughts=self._reader.thoughts,
            problem=self._problem,
        )
