"""How many weights take part in a matrix product for a token, by what a pass over one token goes through."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MultipliedWeights"]


class MultipliedWeights:
    """Counts the weights of the modules that this thread's pass over one token goes through, as often as it does.

    So of a mixture the experts that the token is sent to are counted, shared blocks each time, and towers for images
    and sound not at all. Embeddings are looked up, not multiplied; one that is tied counts as the output's weights.
    Packed weights count as what they unpack to.

    Args:
        model: A `torch` module.
        routed: Experts that a token is sent to, where a mixture computes all of them; None if that is not known.
        blocks: Modules that are told apart from the others.

    Attributes:
        count: So far.
        outside: How many of them are in none of the `blocks`.
    """

    def __init__(self, model: Any, routed: int | None, blocks: Sequence[Any] = ()) -> None:
        self._model = model
        self._routed = routed
        self._inside = {id(module) for block in blocks for module in block.modules()}
        self._thread = threading.get_ident()
        self.count = self.outside = 0

    def __enter__(self) -> MultipliedWeights:
        from torch.nn import Embedding

        self.count = self.outside = 0
        self._handles = [
            module.register_forward_pre_hook(self._add, with_kwargs=True)
            for module in self._model.modules()
            if module._parameters and not isinstance(module, Embedding)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if threading.get_ident() != self._thread:  # other threads may be running the same model
            return
        count = self._count(module, [*args, *kwargs.values()])
        self.count += count
        if id(module) not in self._inside:
            self.outside += count

    def _count(self, module: Any, inputs: list[Any]) -> int:
        count = 0
        weights = {name: weight for name, weight in module._parameters.items() if weight is not None}
        if isinstance(rows := getattr(module, "out_features", None), int) and "weight" in weights:
            del weights["weight"]
            count += rows * int(module.in_features)
        experts = max((len(each) for each in weights.values() if each.dim() == 3), default=0)
        for weight in weights.values():
            if experts and weight.dim() > 1 and len(weight) == experts:
                count += weight.numel() // experts * self._sent_to(experts, inputs)
            else:
                count += weight.numel()
        return count

    def _sent_to(self, experts: int, inputs: list[Any]) -> int:
        """To how many of a module's experts: by their indices among its inputs, or by the rows that it is given."""
        import torch

        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        indices = [each for each in tensors if each.dtype in (torch.int64, torch.int32)]
        if indices:
            return int((indices[0] < experts).sum())
        rows = tensors[0].numel() // tensors[0].shape[-1]
        return int(min(rows, self._routed or experts, experts))
