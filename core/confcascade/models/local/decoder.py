"""A `transformers` model as generation calls it: what it can do is tried once, not read off a signature."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from confcascade.asks import Gate
from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.local.compute import MultipliedWeights
from confcascade.models.local.stopping import RowArguments, StoppablePass

if TYPE_CHECKING:
    import torch

__all__ = ["Capture", "Decoder", "pairs_of"]

_WORDS = ("cache", "past_key_values")  # what forward calls its cache; transformers 5.24 renamed it
_ROUTED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_TRIED = 5  # tokens after as much padding; what compresses four tokens into one reads them otherwise then
# What only a longer trial would show: attention that goes by columns, padding among them, from so many columns on.
_BY_COLUMN = ("keep_window_size", "attn_temperature_tuning")
_ROUNDING = 0.05  # of the logits' spread; a shift by one position moves them several times as far


class Decoder:
    """Calls a model token by token. When it is made, passes over a few tokens try what the model can do.

    Args:
        model: A `transformers` model, or a wrapper around one.
        config: Of its decoder.

    Attributes:
        blocks: The blocks whose outputs are hidden states of shape (rows, tokens, hidden_size); empty if the model has
            no such list.
        multiplied: Weights that take part in a matrix product for a token, as `MultipliedWeights` counts them.
        outside_blocks: How many of them are not in the blocks.
        stops: Whether a pass can end behind any block: each is called once, one after the other.
        row_arguments: Of each block, where among its arguments the rows are (`RowArguments.paths`), if some rows can
            be taken out of a pass without a change to the others; else None.
        separable: Whether it can go on from a cache of every token's keys and values, and nothing else: then those of
            one row can be taken out, cut, and put beside others.
        shares: Whether the cache that it makes itself is of that kind, so that rows can join others, and begin with
            what has been read once for all.
        token_bytes: What the keys and values of one token take, where it `shares`.
        extends: Whether it takes several tokens at once behind a cache: some layers without attention forget it then,
            and are given them one by one.
        batches: Whether a prompt beside others, padded on the left, is read as it is alone, and rows of the cache can
            be selected.

    Raises:
        ConfigurationError: If the model cannot continue from a cache.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self._model = model
        self._as_written = _as_written(model)
        self._word = ""  # once one has worked
        self._options: dict[str, int] = {}
        self.multiplied = self.outside_blocks = 0
        self.stops = False
        self.row_arguments: list[frozenset[Any]] | None = None
        self.separable = self.shares = False
        self.token_bytes = 0
        self.extends = True
        try:
            self.blocks, self.batches = self._try(config)
        except Exception as error:
            said = (str(error).splitlines() or [""])[0].rstrip(".")
            why = said if isinstance(error, ModelError) else f"{type(error).__name__}: {said}"
            if getattr(model, "is_quantized", False) and not isinstance(error, ModelError):
                raise ConfigurationError(
                    f"{type(model).__name__} cannot be run here with its weights in fewer bits. In a trial pass: {why}"
                    ". Load it without them, in another number of bits, or on a GPU: on a CPU, some kernels take only "
                    "layers whose sizes are multiples of their blocks."
                ) from error
            raise ConfigurationError(
                f"{type(model).__name__} does not work as a decoder. In a trial pass: {why}. "
                "TransformersModel needs a model whose forward takes `attention_mask` and `position_ids`, and "
                "continues from the KV cache that it returns. Serve this one instead, and use OpenAICompatibleModel."
            ) from error

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any = None,
        *,
        hooked: bool = False,
        at: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """One forward pass.

        Args:
            ids: New tokens, shape (rows, new tokens).
            mask: 1 for each token so far, 0 for padding, shape (rows, tokens).
            positions: Of the new tokens, shape (rows, new tokens).
            cache: What the tokens before left; None if there are none.
            hooked: Whether hooks wait for what blocks return, which compiled code would pass over.
            at: The new tokens whose logits are wanted, from 0; by default the last.

        Returns:
            The logits, the last token's of shape (rows, vocabulary), or of those asked for (rows, tokens, vocabulary),
            and the cache.
        """
        if cache is not None and ids.shape[1] > 1 and not self.extends:
            return self._one_by_one(ids, mask, positions, cache, hooked=hooked, at=at)
        out = self._pass(self._as_written if hooked else self._model, ids, mask, positions, cache, at)
        word = _word_in(out)
        logits = out.logits[:, -1] if at is None else out.logits
        if at is not None and logits.shape[1] != len(at):
            logits = logits[:, list(at)]
        return logits, None if word is None else out[word]

    def _one_by_one(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
        *,
        hooked: bool,
        at: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, Any]:
        import torch

        told, new = [], ids.shape[1]
        for i in range(new):
            known = mask[:, : mask.shape[1] - new + i + 1]
            logits, cache = self(ids[:, i : i + 1], known, positions[:, i : i + 1], cache, hooked=hooked)
            if at is None or i in at:
                told.append(logits)
        return told[-1] if at is None else torch.stack(told, 1), cache

    def _pass(
        self,
        model: Any,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any = None,
        at: Sequence[int] | None = None,
    ) -> Any:
        import torch

        before = {} if cache is None else {self._word: cache}
        options: dict[str, Any] = dict(self._options)
        if options and at is not None:
            options = {"logits_to_keep": torch.tensor(at, device=ids.device)} if len(at) < ids.shape[1] else {}
        with torch.inference_mode():
            return model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **before, **options
            )

    # ------------------------------------------------------------------ the trial

    def _try(self, config: Any) -> tuple[Sequence[Any], bool]:
        """Read a few tokens after padding beside the same without; continue from them in another order, and alone.

        Returns:
            Attributes `blocks` and `batches`.
        """
        import torch

        n = _TRIED
        few, more, other = self._tokens(config)
        device = self._model.device
        ids = torch.tensor([few + few, few + more, other + few], device=device)
        mask = torch.ones_like(ids)
        mask[0, :n] = 0
        captures = [Capture(blocks, whole=True) for blocks in _lists(self._model, config.num_hidden_layers)]
        arguments = [RowArguments(each.blocks, len(ids)) for each in captures]
        with ExitStack() as stack:
            for capture, called in zip(captures, arguments, strict=True):
                stack.enter_context(capture)
                stack.enter_context(called)
            out = self._pass(self._as_written, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
        shape = *ids.shape, config.hidden_size
        fit = [i for i, each in enumerate(captures) if all(getattr(s, "shape", None) == shape for s in each.states)]
        blocks = captures[fit[0]].blocks if fit else ()
        self.stops = bool(fit) and arguments[fit[0]].in_turn
        told = _word_in(out)
        if told is None:
            raise ModelError("it returned no KV cache")
        last = ids[:1, -1:]
        positions = torch.arange(n + 1, device=device)[None]
        read = self(ids[:1, n:], mask[:1, n:], positions[:, :n], hooked=True)[1]
        alone = self._continue(last, read, told, config, blocks)
        self.separable = self._separates(ids, out.logits[1, n - 1], out[told])
        self.shares = self.separable and bool(pairs_of(out[told]))
        sides = [side[0, :, 0] for pair in pairs_of(out[told]) for side in pair] if self.shares else []
        self.token_bytes = sum(side.nelement() * side.element_size() for side in sides)
        self.extends = self.separable or self._extends(ids[1:2], out.logits[1, -1])
        by_column = any(getattr(config, name, None) for name in _BY_COLUMN)
        if not by_column and _alike(out.logits[0, -1], out.logits[1, n - 1]):
            with suppress(Exception):  # some caches cannot select rows
                rows = torch.tensor([2, 0], device=device)
                out[told].reorder_cache(rows)
                longer = torch.cat([mask[rows], mask.new_ones(2, 1)], 1)
                logits, _ = self(last.repeat(2, 1), longer, longer.sum(-1, keepdim=True) - 1, out[told], hooked=True)
                batches = _alike(logits[1:], alone)
                if batches and self.stops:
                    expected = out.logits[rows, -1], logits
                    self.row_arguments = self._leaves(blocks, arguments[fit[0]].paths, ids, mask, rows, expected)
                return blocks, batches
        return blocks, False

    def _leaves(
        self,
        blocks: Sequence[Any],
        paths: list[frozenset[Any]],
        ids: torch.Tensor,
        mask: torch.Tensor,
        rows: torch.Tensor,
        expected: tuple[torch.Tensor, torch.Tensor],
    ) -> list[frozenset[Any]] | None:
        """The paths, if the other rows can leave a pass early and late without a change to these, now and later.

        Args:
            blocks: All.
            paths: Where they are given rows.
            ids: Of the pass.
            mask: Of it.
            rows: Those that stay, in the order of `expected`.
            expected: Their logits behind the whole pass, and behind one token more, their last again.
        """
        import torch

        kept = sorted(rows.tolist())
        order = [kept.index(row) for row in rows.tolist()]
        with suppress(Exception):
            for layer in {1, max(1, len(blocks) // 2)}:
                gates: list[Gate | None] = [None if row in kept else _never for row in range(len(ids))]
                with StoppablePass(blocks, [[layer]] * len(ids), gates, paths) as passed:
                    logits, cache = self(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), hooked=True)
                if passed.rows != kept or not _alike(logits[order], expected[0]):
                    return None
                longer = torch.cat([mask[kept], mask.new_ones(len(kept), 1)], 1)
                last = ids[:1, -1:].repeat(len(kept), 1)
                logits, _ = self(last, longer, longer.sum(-1, keepdim=True) - 1, cache, hooked=True)
                if not _alike(logits[order], expected[1]):
                    return None
            return paths
        return None

    def _separates(self, ids: torch.Tensor, expected: torch.Tensor, cache: Any) -> bool:
        """Whether a row that is padded on the right is read so, too, into a cache that keeps keys and values."""
        from transformers import DynamicCache

        kinds = {type(layer).__name__ for layer in getattr(cache, "layers", None) or ()}
        if not kinds or kinds - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
            return False
        with suppress(Exception):
            mask = ids.new_ones(ids.shape)
            mask[0, _TRIED:] = 0
            logits, kept = self(
                ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), DynamicCache(), hooked=True, at=(0, _TRIED - 1)
            )
            return bool(pairs_of(kept)) and _alike(logits[0, 1], expected)
        return False

    def _extends(self, ids: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether the second half of a row, read at once behind the first, is read as it is token by token."""
        mask, n = ids.new_ones(ids.shape), _TRIED
        positions = mask.cumsum(-1) - 1
        found = []
        with suppress(Exception):
            for read in (self, self._one_by_one):
                _, cache = self(ids[:, :n], mask[:, :n], positions[:, :n], hooked=True)
                logits, _ = read(ids[:, n:], mask, positions[:, n:], cache, hooked=True)
                found.append(float((logits[0].float() - expected.float()).norm() / expected.float().norm()))
            return found[0] <= 4 * found[1] + 1e-4  # what is forgotten may be little, of so short a text
        return False

    def _tokens(self, config: Any) -> list[list[int]]:
        """Three lists of a few tokens, without the one for padding: its embedding is often zero, and shows nothing."""
        blank = getattr(config, "pad_token_id", None)
        known = [token for token in range(min(config.vocab_size, 3 * _TRIED + 1)) if token != blank]
        return [[known[(i * _TRIED + j) % len(known)] for j in range(_TRIED)] for i in range(3)]

    def _continue(self, new: torch.Tensor, cache: Any, told: str, config: Any, blocks: Sequence[Any]) -> torch.Tensor:
        """The logits after one row's next token; finds the arguments by which the model takes it."""
        words = sorted(_WORDS, key=lambda word: word != told)
        problems: list[Exception] = []
        routed = next((count for name in _ROUTED if isinstance(count := getattr(config, name, None), int)), None)
        mask = new.new_ones(1, _TRIED + 1)
        for self._options in ({"logits_to_keep": 1}, {}):
            for self._word in words:
                try:
                    with MultipliedWeights(self._model, routed, blocks) as weights:
                        logits, after = self(new, mask, new.new_full((1, 1), _TRIED), cache, hooked=True)
                    length = int(after.get_seq_length())
                except Exception as error:
                    problems.append(error)
                    continue
                if (len(logits), length) == (1, _TRIED + 1):
                    self.multiplied, self.outside_blocks = weights.count, weights.outside
                    return logits
                # an unknown word may be swallowed, and the token then be read without what came before
                problems.append(ModelError(f"its KV cache holds {length} tokens after {_TRIED + 1}"))
        raise problems[0]


def pairs_of(cache: Any) -> list[tuple[Any, Any]]:
    """Keys and values (rows, heads, tokens, dimension) by layer, of a cache that holds nothing else; else none."""
    layers = getattr(cache, "layers", None) or ()
    if any(type(layer).__name__ != "DynamicLayer" or layer.keys is None for layer in layers):
        return []
    return [(layer.keys, layer.values) for layer in layers]


class Capture:
    """Keeps what some blocks return in this thread's forward pass.

    Args:
        blocks: Whose outputs.
        whole: Keep them as they are; otherwise the last position's, as float32 arrays of shape (rows, hidden_size).
    """

    def __init__(self, blocks: Sequence[Any], *, whole: bool = False) -> None:
        self.blocks = blocks
        self.states: list[Any] = [None] * len(blocks)
        self._whole = whole
        self._thread = threading.get_ident()

    def __enter__(self) -> Capture:
        self._handles = [block.register_forward_hook(self._hook(i)) for i, block in enumerate(self.blocks)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def states_at(self, tokens: Sequence[int]) -> list[Any]:
        """Of each block, the output at one token of each row, (rows, hidden size); of what was kept whole."""
        rows = list(range(len(tokens)))
        return [state[rows, list(tokens)].detach().float().cpu().numpy() for state in self.states]

    def _hook(self, index: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:  # other threads may be running the same model
                hidden = output[0] if isinstance(output, tuple) else output
                self.states[index] = hidden if self._whole else hidden[:, -1].detach().float().cpu().numpy()

        return hook


def _never(hidden_states: Any) -> bool:
    """A gate that ends every pass."""
    del hidden_states
    return False


def _as_written(model: Any) -> Any:
    """The same weights called as they are written, where `torch.compile` or `model.compile()` has compiled them."""
    model = getattr(model, "_orig_mod", model)
    return model if getattr(model, "_compiled_call_impl", None) is None else model._call_impl


def _alike(logits: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether they are the same but for rounding; NaN is another matter."""
    logits, others = logits.float().flatten(), others.float().flatten()
    return not (logits - others).norm() > _ROUNDING * (others - others.mean()).norm()


def _word_in(out: Any) -> str | None:
    """By which a model's output holds its cache."""
    return next((word for word in _WORDS if word in out), None)


def _lists(model: Any, count: int) -> list[Any]:
    """The lists of modules that are as long as the decoder is deep; a vision tower's may be among them."""
    from torch.nn import ModuleList

    return [module for module in model.modules() if isinstance(module, ModuleList) and len(module) == count]
