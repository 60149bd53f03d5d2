"""Conversations whose answer several models write in turn: what one model has read of each stays in its KV cache.

Between two asks, every conversation keeps the keys and values of its own tokens, without padding. For a forward pass
those of several are put side by side, so that steps are read and written in batches, whoever wrote what came before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from confcascade.asks import Chunk, Generate, Prefill
from confcascade.models.local.batch import Batch
from confcascade.models.local.decoder import Capture, Decoder, pairs_of
from confcascade.models.local.decoding import Decoding
from confcascade.models.local.detokenizer import Detokenizer
from confcascade.models.local.generation import DecoderSettings
from confcascade.models.local.growing_step import GrowingStep
from confcascade.models.local.prompts import Prompts
from confcascade.thoughts import closed_after, part
from confcascade.types import Position, Prefilled, Request, Response, Token, Usage, WrittenTokens

if TYPE_CHECKING:
    import torch

__all__ = ["Sessions", "position_of"]

_MOST_LOGITS = 2048  # positions of one pass that whole distributions are kept of
_STRAGGLERS = 4  # as few as one in so many are paused, for others to join them
_FEWEST_TOKENS = 16  # that every call writes
_SPREAD = 16  # tokens: rows that have so many more to read than others, and twice as many, are read apart


@dataclass(frozen=True)
class _Read:
    """What a model has read of one conversation: the state of a `Session`.

    Attributes:
        prompt: As rendered.
        opened: The mark with which it has opened the thoughts.
        prompt_tokens: How many tokens the prompt has.
        ids: Its tokens, then those of the written text.
        text: The written text that these are of, without `opened`.
        cached: How many of `ids` are in `cache`.
        cache: Keys and values (heads, tokens, dimension) layer by layer, or a whole cache of one row; never changed.
        logits: What is expected after the last of `ids`, (vocabulary,), if that is known.
        random: The state of what tokens are drawn with, where they are.
        before: The same before the model's own last step, which may yet be thrown away.
        paused: Whether that step is not finished.
    """

    prompt: str
    opened: str
    prompt_tokens: int
    ids: list[int]
    text: str = ""
    cached: int = 0
    cache: Any = None
    logits: Any = None
    random: Any = None
    before: _Read | None = None
    paused: bool = False

    @property
    def pending(self) -> list[int]:
        """Tokens that are still to be read."""
        return self.ids[self.cached :]

    def up_to(self, written: str) -> _Read:
        """As much of it as a written text begins with: all, all but the own last step, or else the prompt."""
        for read in (self, self.before):
            if read is not None and written.startswith(read.text):
                goes_on = read.paused and written == read.text
                return read if goes_on else replace(read, before=None, paused=False)
        prompt = replace(self, ids=self.ids[: self.prompt_tokens], text="", logits=None, before=None, paused=False)
        return prompt.uncached(min(self.cached, self.prompt_tokens))

    def uncached(self, tokens: int) -> _Read:
        """With no more than the first so many tokens in the cache."""
        cache = _cut_cache(self.cache, tokens)
        return replace(self, cached=0 if cache is None else tokens, cache=cache, logits=None)


class Sessions:
    """Reads and writes for one model.

    Args:
        decoder: Calls it.
        prompts: Renders and encodes for it.
        speaker: How it writes.
        device: Where the model is.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Prompts,
        speaker: DecoderSettings,
        device: Any,
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._speaker = speaker
        self._device = device

    def read(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        """Read what is new, and tell what is expected next."""
        found: list[Any] = [None] * len(asks)
        rows: list[_Row] = []
        for i, ask in enumerate(asks):  # one that cannot be read fails alone
            try:
                rows.append(_Row(i, *self._aligned(ask, peeks=ask.tokens, looks=bool(ask.layers))))
            except Exception as error:
                found[i] = error
        for group in self._groups(rows, most=_MOST_LOGITS if any(ask.tokens for ask in asks) else None):
            layers = sorted({layer for row in group for layer in asks[row.ask].layers})
            told = [row.written if asks[row.ask].tokens else 0 for row in group]
            reads, seen, hidden = self._forward([row.read for row in group], layers, told)
            for position, (row, read) in enumerate(zip(group, reads, strict=True)):
                ask, following = asks[row.ask], position_of(read.logits)
                if following is None:
                    found[row.ask] = self._speaker.overflow()
                    continue
                try:
                    found[row.ask] = Prefilled(
                        usage=Usage(row.new, 0),
                        hidden_states={layer: hidden[layer][position] for layer in ask.layers},
                        label_logprobs=self._labels(read, ask.labels),
                        tokens=self._tokens(read, seen[position]),
                        following=following,
                    )
                except Exception as error:  # a label that is not a token, say
                    found[row.ask] = error
                assert ask.session is not None
                ask.session.state = read
        return found

    def write(self, asks: Sequence[Generate], wanted: Callable[[Any], bool]) -> list[Response | Exception]:
        """Write a step each; those whose rows are not `wanted` any more end with the token under way."""
        answers: list[Any] = [None] * len(asks)
        rows: list[_Row] = []
        for i, ask in enumerate(asks):
            try:
                rows.append(_Row(i, *self._aligned(ask)))
            except Exception as error:
                answers[i] = error
        read = [
            replace(row, read=after)
            for group in self._groups(rows)
            for row, after in zip(group, self._forward([row.read for row in group])[0], strict=True)
        ]
        for together in [read] if self._side_by_side and read else [[row] for row in read]:
            growing: list[tuple[_Row, GrowingStep]] = []
            for row in together:
                try:
                    growing.append((row, self._growing(asks[row.ask], row.read)))
                except Exception as error:  # an option that is not known, say
                    answers[row.ask] = error
            if growing:
                batch = self._stacked([row.read for row, _ in growing])
                self._write_together([step for _, step in growing], batch, wanted)
            for row, step in growing:
                answers[row.ask] = step.error or self._ended(step, asks[row.ask], row)
        return answers

    def _write_together(self, steps: list[GrowingStep], batch: Batch, wanted: Callable[[Any], bool]) -> None:
        """Write until all have ended, or only a few are left: those are paused, that others can join them."""
        for written, _ in enumerate(self._decoded(steps, batch, wanted), 1):
            left = [step for step in steps if step.finish_reason is None]
            if written >= _FEWEST_TOKENS and _STRAGGLERS * len(left) <= len(steps):
                for step in left:
                    step.pause(batch)

    def stream(self, ask: Generate, wanted: Callable[[Any], bool], emit: Callable[[Chunk], None]) -> Response:
        """`write` for one, piece by piece."""
        row = _Row(0, *self._aligned(ask))
        (read,), _, _ = self._forward([row.read])
        step = self._growing(ask, read)
        for _ in self._decoded([step], self._stacked([read]), wanted):
            for chunk in step.new_chunks():
                emit(chunk)
        if step.error is not None:
            raise step.error
        return self._ended(step, ask, replace(row, read=read))

    def _decoded(self, steps: list[GrowingStep], batch: Batch, wanted: Callable[[Any], bool]) -> Iterator[None]:
        """Decode to the end; yields after each token."""
        decoding = Decoding(self._decoder)
        decoding.join(steps, batch)
        return decoding.run(wanted)

    # ------------------------------------------------------------------ what is read

    def _aligned(self, ask: Prefill | Generate, *, peeks: bool = False, looks: bool = False) -> tuple[_Read, int]:
        """What of a conversation has been read, with the tokens that have not, and how many of those are new.

        Args:
            ask: Which conversation, and how far.
            peeks: Whether it is wanted what was expected before the new text, too.
            looks: Whether the hidden states of the last token are wanted.
        """
        assert ask.session is not None
        request = ask.request
        rendered = self._prompts.render(request)
        shut = self._shut_by(request, rendered)
        state: _Read | None = ask.session.state
        if state is None or state.prompt not in (rendered, rendered + shut):
            ids = self._prompts.encode(rendered)
            read, known = _Read(rendered, self._prompts.opened(request, rendered), len(ids), ids), 0
        else:
            read = state.up_to(_without(state.opened, request.written) if state.prompt == rendered + shut else "")
            known = len(read.ids)
        if shut and read.prompt == rendered:
            read = self._shut(read, shut)
        written = _without(read.opened, request.written)
        if rest := written[len(read.text) :]:
            if peeks and read.logits is None and not read.pending and read.cached:
                read = read.uncached(read.cached - 1)
            new = self._own_tokens(read, request)
            if new is None:
                new = self._prompts.encode_behind(read.prompt + read.text, rest)
            read = replace(read, ids=read.ids + new, text=written)
            self._prompts.check(read.ids)
        if not read.pending and (looks or read.logits is None):
            read = read.uncached(read.cached - 1)
        return read, len(read.ids) - known

    def _shut_by(self, request: Request, rendered: str) -> str:
        """What closes the thoughts that the prompt has opened, where the answer was begun by a model without any.

        What that one has written is an answer, and would be read as thoughts.
        """
        opened = self._prompts.opened(request, rendered) if request.written else ""
        own = not opened or _without(opened, request.written) != request.written
        return "" if own or part(request.written).thinking else closed_after(opened)

    def _shut(self, read: _Read, shut: str) -> _Read:
        """A prompt that was read, with its thoughts closed."""
        ids = [*read.ids, *self._prompts.encode_behind(read.prompt, shut)]
        return replace(read, prompt=read.prompt + shut, opened="", prompt_tokens=len(ids), ids=ids)

    def _own_tokens(self, read: _Read, request: Request) -> list[int] | None:
        """The tokens behind what was read, if they are told and are this model's; else None."""
        told, known = request.written_tokens, read.ids[read.prompt_tokens :]
        if told is None or told.vocabulary != self._vocabulary(read.opened) or list(told.ids[: len(known)]) != known:
            return None
        return list(told.ids[len(known) :])

    def _vocabulary(self, opened: str) -> str:
        """Identifies the tokens of an answer: by the tokenizer, and the mark of thoughts that the prompt ends with."""
        return f"{self._prompts.vocabulary} {opened.strip()}"

    def _groups(self, rows: Sequence[_Row], *, most: int | None = None) -> Iterator[list[_Row]]:
        """Rows that are read in one pass: about as much each, and no more than `most` tokens in all."""
        group: list[_Row] = []
        least = 0
        for row in sorted(rows, key=lambda row: len(row.read.pending)):
            pending = len(row.read.pending)
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

    def _forward(
        self, reads: Sequence[_Read], layers: Sequence[int] = (), told: Sequence[int] = ()
    ) -> tuple[list[_Read], list[Any], dict[int, Any]]:
        """Read all pending tokens.

        Args:
            reads: Of whom all have some, or none.
            layers: Whose hidden states are wanted.
            told: Of how many tokens, the last of each, it is wanted what was expected in their place.

        Returns:
            What is read then; of each, the logits before its last tokens (tokens, vocabulary), None where none are
            wanted; hidden states of the last tokens (rows, hidden size) by layer.
        """
        import torch

        pending = [read.pending for read in reads]
        told = told or [0] * len(reads)
        if not any(pending):
            return list(reads), [None] * len(reads), {}
        past, width = max(read.cached for read in reads), max(map(len, pending))
        ids = torch.zeros(len(reads), width, dtype=torch.long)
        mask = torch.zeros(len(reads), past + width, dtype=torch.long)
        wanted: set[int] = set()
        for i, (read, new) in enumerate(zip(reads, pending, strict=True)):  # in one piece: some attend by columns
            mask[i, past - read.cached : past + len(new)] = 1
            ids[i, : len(new)] = torch.tensor(new)
            wanted |= set(range(max(0, len(new) - 1 - told[i]), len(new)))
        ids, mask = ids.to(self._device), mask.to(self._device)
        positions = (mask.cumsum(-1)[:, past:] - 1).clamp(min=0)
        at = sorted(wanted)
        with Capture([self._decoder.blocks[layer - 1] for layer in layers], whole=True) as captured:
            logits, cache = self._decoder(
                ids,
                mask,
                positions,
                self._joined(reads, past),
                hooked=bool(layers),
                **({} if at == [width - 1] else {"at": at}),
            )
        logits = logits[:, None] if logits.dim() == 2 else logits
        done, seen = [], []
        for i, (read, new) in enumerate(zip(reads, pending, strict=True)):
            end = at.index(len(new) - 1)
            before = logits[i, max(0, end - told[i]) : end]
            if told[i] == len(new):
                before = torch.cat([read.logits[None].to(before.dtype), before])
            seen.append(before if told[i] else None)
            last = logits[i, end].clone()  # and nothing of the others
            done.append(replace(read, cached=len(read.ids), cache=self._taken(cache, mask, i), logits=last))
        last_of = [len(new) - 1 for new in pending] if len(pending) > 1 else [-1]
        hidden = captured.states_at(last_of) if layers else []
        return done, seen, dict(zip(layers, hidden, strict=True))

    def _joined(self, reads: Sequence[_Read], past: int) -> Any:
        """Keys and values side by side, padded on the left; the pass may change what is returned."""
        if not self._decoder.separable:
            assert len(reads) == 1
            return copy.deepcopy(reads[0].cache)
        from transformers import DynamicCache

        cache = DynamicCache()  # which keeps all, also of layers that attend to a window
        shaped: list[Any] = next((read.cache for read in reads if read.cache is not None), [])
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

    def _growing(self, ask: Generate, read: _Read) -> GrowingStep:
        opened = "" if ask.request.written else read.opened
        begun = read.text[len(read.before.text) :] if read.paused and read.before is not None else ""
        row = GrowingStep(ask, self._speaker, self._taken, opened=opened, begun=begun)
        row.goes_on(read.ids, read.prompt_tokens, read.random)
        return row

    def _ended(self, step: GrowingStep, ask: Generate, row: _Row) -> Response:
        """What was written; the session keeps it."""
        assert ask.session is not None
        assert step.kept is not None
        began, (cache, cached) = row.read, step.kept
        before = began.before if began.paused and began.before is not None else began
        read = replace(
            began,
            ids=began.ids + step.ids,
            text=began.text + step.own_text[: step.spelled],
            cached=cached,
            cache=cache,
            logits=None,
            random=step.random,
            before=before if not isinstance(cache, list) else replace(before, cache=_cut_cache(cache, before.cached)),
            paused=step.finish_reason == "paused",
        )
        if cached > len(read.ids):  # a stop string has cut some off
            read = read.uncached(len(read.ids))
        ask.session.state = read
        tokens = WrittenTokens(self._vocabulary(read.opened), tuple(step.ids))
        return step.response(row.new).replace(written_tokens=tokens)

    def _tokens(self, read: _Read, seen: Any) -> tuple[Token, ...]:
        """The last tokens, with what was expected in their place, (tokens, vocabulary); None if nothing is to tell."""
        import torch

        if seen is None:
            return ()
        seen = seen.float()
        ids = torch.tensor(read.ids[-len(seen) :], device=seen.device)
        total, (peaks, expected) = seen.logsumexp(-1), seen.max(-1)
        chosen = seen.gather(-1, ids[:, None])[:, 0] - total
        text = Detokenizer(self._speaker.tokenizer)
        text.behind(read.ids[: -len(seen)])
        decode = self._speaker.tokenizer.decode
        tops = zip(expected.tolist(), (peaks - total).tolist(), strict=True)
        told = zip(ids.tolist(), chosen.tolist(), peaks.tolist(), tops, strict=True)
        return tuple(
            Token(text.add(token), min(0.0, logprob), ((decode([best]), min(0.0, its)),), peak)
            for token, logprob, peak, (best, its) in told
        )

    def _labels(self, read: _Read, labels: Sequence[str]) -> dict[str, float]:
        if not labels:
            return {}
        logprobs = read.logits.float().log_softmax(-1)
        text = read.prompt + read.text
        ids = {label: list(self._prompts.label_ids(text, label)) for label in labels}
        return {label: float(logprobs[which].logsumexp(-1)) for label, which in ids.items()}


@dataclass(frozen=True)
class _Row:
    """One ask of a call.

    Attributes:
        ask: Its index.
        read: Of its conversation.
        new: How many tokens were not known before.
    """

    ask: int
    read: _Read
    new: int

    @property
    def written(self) -> int:
        """How many of the new tokens are of the written text."""
        return min(self.new, len(self.read.ids) - self.read.prompt_tokens)


def _without(opened: str, written: str) -> str:
    """What was written, without the mark with which the prompt has opened the thoughts already."""
    mark = next((mark for mark in (opened, opened.strip()) if mark and written.startswith(mark)), "")
    return written[len(mark) :]


def _cut_cache(cache: Any, tokens: int) -> Any:
    """Its first so many tokens, in the same memory; None where it cannot be cut, or nothing is left."""
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
