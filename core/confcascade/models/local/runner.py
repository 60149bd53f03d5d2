"""The forward passes of one local model, as its batching asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from confcascade.asks import Chunk, Generate, Prefill
from confcascade.errors import ModelError
from confcascade.models.local.batch import Batch, RowState
from confcascade.models.local.decoder import Decoder
from confcascade.models.local.decoding import not_finite
from confcascade.models.local.generation import DecoderSettings, GrowingAnswer
from confcascade.models.local.prefix_cache import PrefixCache
from confcascade.models.local.prompts import Prompt, Prompts
from confcascade.models.local.sessions import Sessions, position_of
from confcascade.models.local.stopping import StoppablePass
from confcascade.thoughts import may_open_mark
from confcascade.types import Prefilled, Request, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["ModelRunner"]


class ModelRunner:
    """Reads prompts for one model, and begins its answers; batching decides what is read when, and together with what.

    Models that share their weights, and are asked in different ways, have a runner each.

    Args:
        decoder: Calls the weights.
        prompts: Encodes for the model.
        settings: How it writes.
        prefix_cache: What prompts had in common at their beginning.
        device: Where it computes.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Prompts,
        settings: DecoderSettings,
        prefix_cache: PrefixCache,
        device: Any,
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._settings = settings
        self._prefix_cache = prefix_cache
        self._device = device
        self._sessions = Sessions(decoder, prompts, settings, device)

    @property
    def name(self) -> str:
        """The model's."""
        return self._settings.name

    def prompt(self, request: Request) -> Prompt:
        """What the model reads, up to where its answer begins.

        Raises:
            ModelError: If it does not fit the context.
        """
        text = self._prompts.render(request)
        return Prompt(text, self._prompts.encode(text), self._prompts.opened(request, text))

    def unread(self, prompt: Prompt) -> int:
        """How many tokens of a prompt are still to be read."""
        return self._prefix_cache.unread(prompt.ids)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers whose hidden states the model does not give.

        Raises:
            ModelError: If there are any.
        """
        blocks = len(self._decoder.blocks)
        if not all(1 <= layer <= blocks for layer in layers):
            known = f"1 to {blocks}" if blocks else "of no block: they do not have the shape (tokens, hidden size)"
            raise ModelError(f"Model '{self.name}' gives hidden states {known}. Got the layers {tuple(layers)}.")

    def prefill(self, asks: Sequence[Prefill], prompts: Sequence[Prompt]) -> list[Prefilled | Exception]:
        """Answer asks about prompts, in one pass, which goes no further than the asks' gates let it."""
        found: list[Any] = [None] * len(asks)
        readable: list[tuple[int, dict[str, tuple[int, ...]]]] = []
        for i, (ask, prompt) in enumerate(zip(asks, prompts, strict=True)):  # one that cannot be fails alone
            try:
                self.check_layers(ask.layers)
                readable.append((i, {label: self._prompts.label_ids(prompt.text, label) for label in ask.labels}))
            except Exception as error:
                found[i] = error
        if not readable:
            return found
        batch, passed = self._read_gated([prompts[i].ids for i, _ in readable], [asks[i] for i, _ in readable])
        for row, layer in passed.ended.items():
            i = readable[row][0]
            depth = layer / len(self._decoder.blocks)
            found[i] = Prefilled(Usage(len(prompts[i].ids), 0), hidden_states=passed.states[row], depth=depth)
        if batch is None:
            return found
        logprobs = batch.logits.float().log_softmax(-1)
        broken = not_finite(logprobs)
        likeliest = logprobs.argmax(-1).tolist()
        for row, read in enumerate(passed.rows):
            i, ids = readable[read]
            ask, opened = asks[i], prompts[i].opened
            if broken[row]:
                RowState(batch, row).close()
                found[i] = self._settings.overflow()
                continue
            if opened or (ids and self._begins_thoughts(likeliest[row])):
                ids = {}  # what comes first are thoughts, so that labels are read behind them
            label_logprobs = {label: logprobs[row, list(which)].logsumexp(-1) for label, which in ids.items()}
            found[i] = Prefilled(
                usage=Usage(len(batch.prompts[row]), 0),
                hidden_states=passed.states[read],
                label_logprobs={label: float(logprob) for label, logprob in label_logprobs.items()},
                following=position_of(batch.logits[row]) if ask.following else None,
                state=RowState(batch, row, opened),
            )
        return found

    def read(self, prompts: Sequence[Prompt]) -> Batch:
        """Read prompts in one pass, to answer them."""
        encoded = [prompt.ids for prompt in prompts]
        ids, mask, positions, cache = self._padded(encoded)
        batch = Batch(encoded, mask)
        batch.logits, batch.cache = self._decoder(ids, mask, positions, cache)
        return batch

    def answer(self, ask: Generate, prompt: Prompt | None) -> GrowingAnswer:
        """An answer that begins, to a prompt or behind what has been prefilled.

        Raises:
            ModelError: If the request has options that local generation does not know.
        """
        opened = prompt.opened if prompt is not None else ask.prefilled.state.opened  # type: ignore[union-attr]
        return GrowingAnswer(ask, self._settings, opened, self._prefix_cache.keep)

    def in_sessions(
        self, asks: Sequence[Any], wanted: Callable[[Any], bool], emit: Callable[[Chunk], None] | None
    ) -> list[Any]:
        """What asks that belong to sessions are answered; the chunks of a single one are emitted."""
        if isinstance(asks[0], Prefill):
            return self._sessions.read(asks)
        if emit is None:
            return self._sessions.write(asks, wanted)
        return [self._sessions.stream(asks[0], wanted, emit)]

    # ------------------------------------------------------------------ passes over prompts

    def _read_gated(
        self, encoded: Sequence[Sequence[int]], asks: Sequence[Prefill]
    ) -> tuple[Batch | None, StoppablePass]:
        """One forward pass over prompts, which goes no further than the asks' gates let it.

        Returns:
            The batch of the rows that went to the end, None if there are none; and the pass: what was seen of each row.
        """
        ids, mask, positions, cache = self._padded(encoded)
        layers, gates = [ask.layers for ask in asks], [ask.gate for ask in asks]
        logits = None
        with StoppablePass(self._decoder.blocks, layers, gates, self._decoder.row_arguments) as passed:
            logits, cache = self._decoder(ids, mask, positions, cache, hooked=any(layers))
        self._check_seen(set(layers[row]) <= set(passed.states[row]) for row in passed.rows)
        if not passed.rows:
            return None, passed
        return Batch([encoded[row] for row in passed.rows], mask[passed.rows], cache, logits), passed

    def _padded(self, encoded: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        """Prompts side by side.

        Returns:
            Tokens that are to be read; the mask of all; positions of those to be read, each of shape (rows, tokens);
            and a cache of what need not be read, or None.
        """
        import torch

        known, cache = self._prefix_cache.look_up(encoded)
        past, longest = max(known), max(len(row) - its for row, its in zip(encoded, known, strict=True))
        ids = torch.zeros(len(encoded), longest, dtype=torch.long)
        mask = torch.zeros(len(encoded), past + longest, dtype=torch.long)
        for i, (row, its) in enumerate(zip(encoded, known, strict=True)):
            new = len(row) - its
            ids[i, longest - new :] = torch.tensor(row[its:])  # on the right, so that all answers begin in one column
            mask[i, past - its : past] = 1
            mask[i, past + longest - new :] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)[:, past:], cache

    def _check_seen(self, seen: Iterable[bool]) -> None:
        if not all(seen):
            raise ModelError(
                f"Model '{self.name}' shows no hidden states: parts of it are compiled, and compiled code passes over "
                "hooks. Compile it as a whole, by `torch.compile(model)` or `model.compile()`."
            )

    def _begins_thoughts(self, token: int) -> bool:
        """Whether an answer that begins with this token begins with a mark of thoughts."""
        return may_open_mark(self._settings.tokenizer.decode([token]))
