"""Rows that are decoded together, a token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from confcascade.models.local.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from confcascade.asks import Generate
    from confcascade.models.local.decoder import Decoder

__all__ = ["Alternatives", "Decoding", "Row", "not_finite"]

Alternatives = list[tuple[int, float]]  # tokens and their log-probabilities, most probable first


class Row(Protocol):
    """An answer, or a step of one, while it grows."""

    ask: Generate
    position: int
    finish_reason: str | None
    error: Exception | None

    def begin(self, prompt: Sequence[int]) -> None:
        """Its prompt's tokens have been read."""

    def choose(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The next token, from raw logits (vocabulary,); None if it is the most probable."""

    def push(self, token: int, logprob: float, alternatives: Alternatives) -> None:
        """Take the next token."""

    def overflow(self) -> None:
        """End with logits that are not finite."""

    def fail(self, error: Exception) -> None:
        """End without an answer."""

    def leave(self) -> None:
        """End here: nobody waits for the rest."""

    def keep(self, batch: Batch) -> None:
        """It has ended, in this batch."""


class Decoding:
    """Rows, and the batch in which they stand.

    Args:
        decoder: Calls the model.

    Attributes:
        rows: Those that have not ended.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.rows: list[Any] = []
        self._decoder = decoder
        self._batch: Batch | None = None
        self._chosen: Any = None

    @property
    def open(self) -> bool:
        """Whether rows of another batch can join."""
        return self._batch is None or (self._decoder.batches and self._decoder.separable and self._batch.joinable)

    def join(self, rows: Sequence[Any], batch: Batch) -> None:
        """Let rows go on from a batch: the n-th from its n-th row. Only while `open`, and where the batch is joinable.

        Anything else begins with no rows.
        """
        if self._batch is None:
            self._batch = batch
        else:
            self._drop_ended()
            self._batch.join(batch)
        for row, prompt in zip(rows, batch.prompts, strict=True):
            row.position = len(self.rows)
            self.rows.append(row)
            row.begin(prompt)

    def choose(self, wanted: Callable[[Any], bool]) -> None:
        """The next token of every row; those that are not `wanted` any more end with it."""
        assert self._batch is not None
        batch = self._batch
        raw = batch.logits.float()
        logprobs = raw.log_softmax(-1)
        best = logprobs.argmax(-1)
        broken = not_finite(logprobs)
        for row in self.rows:
            if broken[row.position]:
                row.overflow()
                continue
            try:
                if (token := row.choose(raw[row.position])) is not None:
                    best[row.position] = token
            except Exception as error:  # probabilities that are all 0, say
                row.fail(error)
        picked = logprobs.gather(-1, best[:, None])[:, 0].tolist()
        chosen = best.tolist()
        tops = self._alternatives(logprobs)
        for row in self.rows:
            if row.error is None:
                try:
                    row.push(chosen[row.position], picked[row.position], tops.get(row.position, []))
                except Exception as error:  # a watch's, say: this row fails, not its batch
                    row.fail(error)
            if row.finish_reason is None and not wanted(row):
                row.leave()
            if row.finish_reason is not None:
                row.keep(batch)
        self._chosen = best

    def _alternatives(self, logprobs: torch.Tensor) -> dict[int, Alternatives]:
        """The most probable tokens of the rows that want them, by position."""
        wanting = [row for row in self.rows if row.ask.top_logprobs]
        if not wanting:
            return {}
        positions = [row.position for row in wanting]
        most = min(max(row.ask.top_logprobs for row in wanting), logprobs.shape[-1])
        values, ids = logprobs[positions].topk(most)
        return {
            row.position: list(zip(which, its, strict=True))[: row.ask.top_logprobs]
            for row, which, its in zip(wanting, ids.tolist(), values.tolist(), strict=True)
        }

    def end(self) -> list[Any]:
        """Let go of the rows that have ended, and return them."""
        ended = [row for row in self.rows if row.finish_reason is not None]
        self.rows = [row for row in self.rows if row.finish_reason is None]
        if not self.rows:
            self._batch = self._chosen = None
        return ended

    def advance(self) -> None:
        """One forward pass: what each row expects after its last token."""
        import torch

        assert self._batch is not None
        if 2 * len(self.rows) <= self._batch.mask.shape[0]:  # drop the rows that have ended once they are half
            self._drop_ended()
        batch = self._batch
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(batch.mask.shape[0], 1)], 1)
        positions = batch.mask.sum(-1, keepdim=True) - 1
        batch.logits, batch.cache = self._decoder(self._chosen[:, None], batch.mask, positions, batch.cache)
        self._chosen = None

    def run(self, wanted: Callable[[Any], bool]) -> Iterator[None]:
        """Decode to the end of all rows; yields after each token."""
        while self.rows:
            self.choose(wanted)
            yield
            self.end()
            if self.rows:
                self.advance()

    def clear(self) -> None:
        """Give up all rows."""
        self.rows = []
        self._batch = self._chosen = None

    def _drop_ended(self) -> None:
        assert self._batch is not None
        if len(self.rows) == self._batch.mask.shape[0]:
            return
        kept = [row.position for row in self.rows]
        self._batch.select(kept)
        self._batch.prompts = [self._batch.prompts[at] for at in kept]
        if self._chosen is not None:
            self._chosen = self._chosen[kept]
        for position, row in enumerate(self.rows):
            row.position = position


def not_finite(logprobs: torch.Tensor) -> list[bool]:
    """Which rows of log-probabilities (rows, vocabulary) are NaN: all of a row is, if a logit is NaN or infinite."""
    flags: list[bool] = logprobs[:, 0].isnan().tolist()
    return flags
