"""Conversations whose answer several models write in turn: what one model has read of each stays in its KV cache.

Between two asks, every conversation keeps the keys and values of its own tokens, without padding. For a forward pass
those of several are put side by side, so that steps are read and written in batches, whoever wrote what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from confcascade.asks import Chunk, Generate, Prefill
from confcascade.errors import ModelError
from confcascade.models.local.batch import Batch
from confcascade.models.local.decoder import Capture, Decoder, pairs_of
from confcascade.models.local.generation import DecoderSettings
from confcascade.models.local.growing_step import GrowingStep
from confcascade.models.local.prompts import Prompts
from confcascade.types import Position, Prefilled, Request, Response, Token, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["Sessions", "position_of"]

_MOST_LOGITS = 2048  # positions of one pass that whole distributions are kept of
_STRAGGLERS = 4  # as few as one in so many are paused, for others to join them
_FEWEST_TOKENS = 16  # that every call writes
_SPREAD = 16  # tokens: rows that have so many more to read than others, and twice as many, are read apart


@dataclass
class _Read:
    """What a model has read of one conversation: the state of a `Session`.

    Attributes:
        prompt: As rendered.
        opened: The mark with which it has opened the thoughts.
        ids: Its tokens, then those of the written text.
        ends: For each token of the written text, how many characters of it are complete with that token; None within
            what was written by another model, or within a character.
        text: The written text, without `opened`.
        cached: How many of `ids` are in `cache`.
        cache: Keys and values (heads, tokens, dimension) layer by layer, or a whole cache of one row.
        logits: What is expected after the last of `ids`, (vocabulary,), if all are cached; else None.
        random: What tokens are drawn with, where they are.
    """

    prompt: str
    opened: str
    ids: list[int]
    ends: list[int | None]
    text: str = ""
    cached: int = 0
    cache: Any = None
    logits: Any = None
    random: Any = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.ids) - len(self.ends)

    def cut(self, text: str) -> _Read:
        """As much of it as agrees with another written text."""
        same = next((i for i, (a, b) in enumerate(zip(self.text, text, strict=False)) if a != b), None)
        same = min(len(self.text), len(text)) if same is None else same
        if same == len(self.text):
            return replace(self, ids=list(self.ids), ends=list(self.ends))
        kept = next(
            (i for i in range(len(self.ends), 0, -1) if (end := self.ends[i - 1]) is not None and end <= same), 0
        )
        ids, end = self.ids[: self.prompt_tokens + kept], self.ends[kept - 1] if kept else 0
        return replace(self, ids=ids, ends=self.ends[:kept], text=self.text[:end]).uncached(len(ids))

    def uncached(self, tokens: int) -> _Read:
        """With no more than the first so many tokens in the cache."""
        if tokens >= self.cached:
            return self
        cut = _cut_cache(self.cache, tokens)
        return replace(self, cached=0 if cut is None else tokens, cache=cut, logits=None)


class Sessions:
    """Reads and writes for one model.

    Args:
        decoder: Calls it.
        prompts: Renders and encodes for it.
        speaker: How it writes.
        decode: Generates token by token for rows of a batch (`TransformersModel`).
        overflow: The error of a row whose logits are not finite.
        device: Where the model is.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Prompts,
        speaker: DecoderSettings,
        decode: Callable[[list[Any], Batch], Iterator[None]],
        overflow: Callable[[], ModelError],
        device: Any,
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._speaker = speaker
        self._decode = decode
        self._overflow = overflow
        self._device = device

    def read(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        """Read what is new, and tell what is expected next."""
        found: list[Any] = [None] * len(asks)
        rows: list[tuple[int, _Read, int]] = []
        for i, ask in enumerate(asks):  # one that cannot be read fails alone
            try:
                rows.append((i, *self._aligned(ask, ask.request, peeks=ask.tokens)))
            except Exception as error:
                found[i] = error
        for group in self._groups(rows, most=_MOST_LOGITS if any(ask.tokens for ask in asks) else None):
            layers = sorted({layer for i, *_ in group for layer in asks[i].layers})
            every = any(asks[i].tokens for i, *_ in group)
            before = [read.logits for _, read, _ in group]
            reads, logits, hidden = self._forward([read for _, read, _ in group], layers, every=every)
            for row, ((i, _, new), read) in enumerate(zip(group, reads, strict=True)):
                ask, following = asks[i], position_of(read.logits)
                if following is None:
                    found[i] = self._overflow()
                    continue
                assert ask.session is not None
                ask.session.state = read
                labels = self._labels(read, ask.labels)
                found[i] = Prefilled(
                    usage=Usage(new, 0),
                    hidden_states={layer: hidden[layer][row] for layer in ask.layers},
                    label_logprobs=labels,
                    tokens=self._tokens(read, new, before[row], logits[row]) if ask.tokens else (),
                    following=following,
                )
        return found

    def write(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        """Write a step each."""
        answers: list[Any] = [None] * len(asks)
        rows: list[tuple[int, _Read, int]] = []
        for i, ask in enumerate(asks):
            try:
                rows.append((i, *self._aligned(ask, ask.request)))
            except Exception as error:
                answers[i] = error
        reads: dict[int, tuple[_Read, int]] = {}
        for group in self._groups(rows):
            for (i, _, new), read in zip(group, self._forward([read for _, read, _ in group], [])[0], strict=True):
                reads[i] = read, new
        for part in self._parts(list(reads)):
            growing = [self._growing(asks[i], reads[i][0], position) for position, i in enumerate(part)]
            batch = self._stacked([reads[i][0] for i in part])
            for written, _ in enumerate(self._decode(growing, batch), 1):
                open_ = [row for row in growing if row.finish_reason is None]
                if written >= _FEWEST_TOKENS and _STRAGGLERS * len(open_) <= len(growing):
                    for row in open_:
                        row.pause()
                        row.keep(batch)
            for i, row in zip(part, growing, strict=True):
                answers[i] = row.error or self._ended(row, asks[i], *reads[i])
        return answers

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        """`write`, piece by piece."""
        aligned, new = self._aligned(ask, ask.request)
        (read,), _, _ = self._forward([aligned], [])
        row = self._growing(ask, read, 0)
        for _ in self._decode([row], self._stacked([read])):
            yield from row.new_chunks()
        if row.error is not None:
            raise row.error
        yield self._ended(row, ask, read, new)

    # ------------------------------------------------------------------ what is read

    def _aligned(self, ask: Prefill | Generate, request: Request, *, peeks: bool = False) -> tuple[_Read, int]:
        """What of a conversation has been read, with the tokens that have not, and how many of those are new."""
        assert ask.session is not None
        rendered = self._prompts.render(request)
        opened = self._prompts.opened(request, rendered)
        written = request.written.removeprefix(opened).removeprefix(opened.strip()) if opened else request.written
        state: _Read | None = ask.session.state
        if state is None or state.prompt != rendered:
            read = _Read(rendered, opened, self._prompts.encode(rendered), [])
            known = 0
        else:
            read = state.cut(written)
            known = len(read.ids)
        if rest := written[len(read.text) :]:
            whole = self._prompts.encode(rendered + written)
            before = self._prompts.tokenize(rendered + read.text)
            ids = whole[len(before) :] if whole[: len(before)] == before else self._prompts.tokenize_piece(rest)
            if peeks and read.cached == len(read.ids) and read.logits is None:
                read = read.uncached(len(read.ids) - 1)  # what was expected before the new text is wanted, too
            read.ids += ids
            read.ends += [None] * (len(ids) - 1) + [len(written)] if ids else []
            read.text = written
        if read.cached == len(read.ids) and read.logits is None:
            read = read.uncached(len(read.ids) - 1)
        return read, len(read.ids) - known

    def _groups(
        self, rows: Sequence[tuple[int, _Read, int]], *, most: int | None = None
    ) -> Iterator[list[tuple[int, _Read, int]]]:
        """Rows that are read in one pass: about as much each, and no more than `most` tokens in all."""
        group: list[tuple[int, _Read, int]] = []
        least = 0
        for row in sorted(rows, key=lambda row: len(row[1].ids) - row[1].cached):
            pending = len(row[1].ids) - row[1].cached
            apart = pending > 2 * least + _SPREAD or (pending > 0 and least == 0) or not self._side_by_side
            if group and (apart or (most is not None and pending * (len(group) + 1) > most)):
                yield group
                group = []
            least = pending if not group else least
            group.append(row)
        if group:
            yield group

    @property
    def _side_by_side(self) -> bool:
        """Whether several can be read in one pass."""
        return self._decoder.batches and self._decoder.separable

    def _parts(self, rows: list[int]) -> Iterator[list[int]]:
        """Which can be written together."""
        if self._side_by_side and rows:
            yield rows
        else:
            yield from ([row] for row in rows)

    def _forward(
        self, reads: Sequence[_Read], layers: Sequence[int], *, every: bool = False
    ) -> tuple[list[_Read], Any, dict[int, Any]]:
        """Read all pending tokens.

        Returns:
            What was read then; logits of the last position, or of all new ones, if `every`; hidden states by layer.
        """
        import torch

        pending = [read.ids[read.cached :] for read in reads]
        if not any(pending):  # all is read
            return list(reads), [None] * len(reads), {}
        past, width = max(read.cached for read in reads), max(map(len, pending))
        ids = torch.zeros(len(reads), width, dtype=torch.long)
        mask = torch.zeros(len(reads), past + width, dtype=torch.long)
        for i, (read, new) in enumerate(zip(reads, pending, strict=True)):  # both padded on the left
            mask[i, past - read.cached : past] = 1
            mask[i, past + width - len(new) :] = 1
            ids[i, width - len(new) :] = torch.tensor(new)
        ids, mask = ids.to(self._device), mask.to(self._device)
        positions = (mask.cumsum(-1)[:, past:] - 1).clamp(min=0)
        with Capture([self._decoder.blocks[layer - 1] for layer in layers]) as captured:
            logits, cache = self._decoder(
                ids, mask, positions, self._joined(reads, past), hooked=bool(layers), every=every
            )
        done = [
            replace(
                read,
                cached=len(read.ids),
                cache=self._taken(cache, mask, i),
                logits=logits[i][-1] if every else logits[i],
            )
            for i, read in enumerate(reads)
        ]
        return done, logits, dict(zip(layers, captured.states, strict=True))

    def _joined(self, reads: Sequence[_Read], past: int) -> Any:
        """Keys and values side by side, padded on the left; None if nothing was read yet."""
        if past == 0:
            return None
        if not all(read.cache is None or isinstance(read.cache, list) for read in reads):
            assert len(reads) == 1
            return reads[0].cache
        from transformers import DynamicCache

        cache = DynamicCache()
        shaped = next(read.cache for read in reads if read.cache is not None)
        for layer, pair in enumerate(shaped):
            sides = []
            for side in (0, 1):
                heads, _, size = pair[side].shape
                joined = pair[side].new_zeros(len(reads), heads, past, size)
                for i, read in enumerate(reads):
                    if read.cached:
                        joined[i, :, past - read.cached :] = read.cache[layer][side]
                sides.append(joined)
            cache.update(sides[0], sides[1], layer)
        return cache

    def _stacked(self, reads: Sequence[_Read]) -> Batch:
        """A batch to go on from, all read."""
        import torch

        past = max(read.cached for read in reads)
        mask = torch.zeros(len(reads), past, dtype=torch.long)
        for i, read in enumerate(reads):
            mask[i, past - read.cached :] = 1
        logits = torch.stack([read.logits for read in reads])
        return Batch([read.ids for read in reads], mask.to(self._device), self._joined(reads, past), logits)

    def _taken(self, cache: Any, mask: torch.Tensor, row: int) -> Any:
        """One row's own keys and values, layer by layer; of another kind of cache, the cache itself."""
        if not self._decoder.separable:
            return cache
        columns = mask[row].nonzero()[:, 0]
        return [(keys[row][:, columns], values[row][:, columns]) for keys, values in pairs_of(cache)]

    # ------------------------------------------------------------------ what is told

    def _growing(self, ask: Generate, read: _Read, position: int) -> GrowingStep:
        opened = "" if ask.request.written else read.opened
        row = GrowingStep(ask, self._speaker, position, self._taken, opened=opened)
        row.goes_on(read.ids, read.prompt_tokens, read.random)
        return row

    def _ended(self, row: GrowingStep, ask: Generate, read: _Read, new: int) -> Response:
        """What was written; the session keeps it."""
        assert ask.session is not None
        begun = len(read.text)
        read = replace(
            read,
            ids=read.ids + row.ids,
            ends=read.ends + [None if end is None else begun + end for end in row.ends],
            text=read.text + row.own_text,
            random=row.random,
        )
        if row.kept is not None:
            read.cache, cached = row.kept
            read.cached, read.logits = cached, None
            read = read.uncached(len(read.ids))  # a stop string may have cut some off
        ask.session.state = read
        return row.response(new)

    def _tokens(self, read: _Read, new: int, before: Any, logits: Any) -> tuple[Token, ...]:
        """The new tokens of the written text, with the probabilities that this model gives them."""
        import torch

        count = min(new, len(read.ends))
        if not count or logits is None:
            return ()
        seen = logits[:-1] if before is None else torch.cat([before[None].to(logits.dtype), logits[:-1]])
        seen = seen[-count:].float()
        ids = torch.tensor(read.ids[-len(seen) :], device=seen.device)
        chosen = seen.gather(-1, ids[:, None])[:, 0] - seen.logsumexp(-1)
        told = zip(ids.tolist(), chosen.tolist(), seen.max(-1).values.tolist(), strict=True)
        return tuple(
            Token(self._speaker.tokenizer.decode([token]), min(0.0, logprob), max_logit=peak)
            for token, logprob, peak in told
        )

    def _labels(self, read: _Read, labels: Sequence[str]) -> dict[str, float]:
        if not labels:
            return {}
        logprobs = read.logits.float().log_softmax(-1)
        text = read.prompt + read.text
        ids = {label: list(self._prompts.label_ids(text, label)) for label in labels}
        return {label: float(logprobs[which].logsumexp(-1)) for label, which in ids.items()}


def _cut_cache(cache: Any, tokens: int) -> Any:
    """Its first so many tokens; None where it cannot be cut, or nothing is left."""
    if isinstance(cache, list) and tokens:
        return [(keys[:, :tokens], values[:, :tokens]) for keys, values in cache]
    return None


def position_of(logits: Any) -> Position | None:
    """What logits (vocabulary,) expect; None if they are not finite."""
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    entropy = -float((logprobs.exp() * logprobs.clamp(min=-1e4)).sum())
    if entropy != entropy:  # NaN
        return None
    return Position(max(0.0, entropy), float(logits.max()))
