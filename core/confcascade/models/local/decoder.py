"""A `transformers` model as generation calls it: what it can do is tried once, not read off a signature."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from confcascade.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["Capture", "Decoder"]

_WORDS = ("cache", "past_key_values")  # what forward calls its cache; transformers 5.24 renamed it
_ROUNDING = 0.05  # of the logits' spread; a shift by one position moves them several times as far


class Decoder:
    """Calls a model token by token. When it is made, passes over two tokens try what the model can do.

    Args:
        model: A `transformers` model, or a wrapper around one.
        config: Of its decoder.

    Attributes:
        blocks: The blocks whose outputs are hidden states of shape (rows, tokens, hidden_size); empty if the model has
            no such list.
        batches: Whether a prompt beside others, padded on the left, is read as it is alone, and rows of the cache can
            be selected.

    Raises:
        ConfigurationError: If the model cannot continue from a cache.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self._model = model
        self._word = ""  # once one has worked
        self._options: dict[str, int] = {}
        try:
            self.blocks, self.batches = self._try(config)
        except Exception as error:
            said = (str(error).splitlines() or [""])[0].rstrip(".")
            why = said if isinstance(error, ModelError) else f"{type(error).__name__}: {said}"
            raise ConfigurationError(
                f"{type(model).__name__} does not work as a decoder. In a trial pass over two tokens: {why}. "
                "TransformersModel needs a model whose forward takes `attention_mask` and `position_ids`, and "
                "continues from the KV cache that it returns. Serve this one instead, and use OpenAICompatibleModel."
            ) from error

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any = None
    ) -> tuple[torch.Tensor, Any]:
        """One forward pass.

        Args:
            ids: New tokens, shape (rows, new tokens).
            mask: 1 for each token so far, 0 for padding, shape (rows, tokens).
            positions: Of the new tokens, shape (rows, new tokens).
            cache: What the tokens before left; None if there are none.

        Returns:
            The logits, the last token's of shape (rows, vocabulary), and the cache.
        """
        out = self._pass(ids, mask, positions, cache)
        word = _word_in(out)
        return out.logits[:, -1], None if word is None else out[word]

    def _pass(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any = None) -> Any:
        import torch

        before = {} if cache is None else {self._word: cache}
        with torch.inference_mode():
            return self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **before, **self._options
            )

    # ------------------------------------------------------------------ the trial

    def _try(self, config: Any) -> tuple[Sequence[Any], bool]:
        """Read a token after padding beside the same token without; continue from that row, and from it alone.

        Returns:
            Attributes `blocks` and `batches`.
        """
        import torch

        device = self._model.device
        blank = getattr(config, "pad_token_id", None)  # its embedding is often zero, which would show nothing
        one, two = [token for token in range(3) if token != blank][:2]
        ids = torch.tensor([[two, one], [one, two]], device=device)
        mask = torch.tensor([[0, 1], [1, 1]], device=device)
        positions = torch.tensor([[0, 0], [0, 1]], device=device)
        captures = [Capture(blocks, whole=True) for blocks in _lists(self._model, config.num_hidden_layers)]
        with ExitStack() as stack:
            for capture in captures:
                stack.enter_context(capture)
            out = self._pass(ids, mask, positions)
        shape = 2, 2, config.hidden_size
        fit = [each.blocks for each in captures if all(getattr(s, "shape", None) == shape for s in each.states)]
        blocks = fit[0] if fit else ()
        told = _word_in(out)
        if told is None:
            raise ModelError("it returned no KV cache")
        new = ids.new_full((1, 1), one)
        alone = self._continue(new, self(ids[1:], mask[1:], positions[1:])[1], told)
        if _alike(out.logits[0, 1], out.logits[1, 0]):
            with suppress(Exception):  # some caches cannot select rows
                out[told].reorder_cache(torch.tensor([1], device=device))
                return blocks, _alike(self(new, mask.new_ones(1, 3), new.new_full((1, 1), 2), out[told])[0], alone)
        return blocks, False

    def _continue(self, new: torch.Tensor, cache: Any, told: str) -> torch.Tensor:
        """The logits after one row's third token; finds the arguments by which the model takes it."""
        words = sorted(_WORDS, key=lambda word: word != told)
        problems: list[Exception] = []
        for self._options in ({"logits_to_keep": 1}, {}):
            for self._word in words:
                try:
                    logits, after = self(new, new.new_ones(1, 3), new.new_full((1, 1), 2), cache)
                    length = int(after.get_seq_length())
                except Exception as error:
                    problems.append(error)
                    continue
                if (len(logits), length) == (1, 3):
                    return logits
                # an unknown word may be swallowed, and the token then be read without what came before
                problems.append(ModelError(f"its KV cache holds {length} tokens after the third"))
        raise problems[0]


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

    def _hook(self, index: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:  # other threads may be running the same model
                hidden = output[0] if isinstance(output, tuple) else output
                self.states[index] = hidden if self._whole else hidden[:, -1].detach().float().cpu().numpy()

        return hook


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
