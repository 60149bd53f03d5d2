"""Prompts that were read in one forward pass, and the KV cache that their answers continue from."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confcascade.errors import ModelError
from confcascade.models.local.decoder import pairs_of

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "RowState"]


@dataclass(eq=False)
class Batch:
    """Prompts that were read together, and where they stand."""

    prompts: list[Sequence[int]]  # the tokens of each row's
    mask: torch.Tensor  # (rows, tokens so far), padded on the left
    cache: Any = None
    logits: Any = None  # (rows, vocabulary) of the last position
    open: set[int] = field(default_factory=set)  # rows whose state nobody has closed
    lock: threading.Lock = field(default_factory=threading.Lock)  # rows may be continued by several threads

    def __post_init__(self) -> None:
        self.open = set(range(len(self.prompts)))

    def take(self, rows: list[int]) -> Batch:
        """These rows, to continue from; the others' cache is kept only while somebody may still want it."""
        with self.lock:
            if not set(rows) <= self.open:
                raise ModelError("This prefill was closed, or was continued before; a KV cache can be continued once.")
            self.open -= set(rows)
            taken = Batch([self.prompts[row] for row in rows], self.mask, self.cache, self.logits)
            if rows != list(range(len(self.prompts))):
                if self.open:  # others go on from the same cache
                    taken.cache = _parted(self.cache)
                taken.select(rows)
            elif self.open:
                taken.cache = copy.deepcopy(self.cache)
            self._free()
        return taken

    def close(self, row: int) -> None:
        """Give up a row, if nobody has continued it."""
        with self.lock:
            self.open.discard(row)
            self._free()

    def _free(self) -> None:
        if not self.open:
            self.cache = self.logits = None

    def select(self, rows: list[int]) -> None:
        """Keep these rows of the tensors, in this order, and no column that is padding in all of them."""
        import torch

        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.logits = self.logits[index]
        self.cache.reorder_cache(index)  # which layers without attention have, too
        self._trim()

    def _trim(self) -> None:
        """Let go of columns that are padding in every row, where the cache can be cut."""
        pairs = pairs_of(self.cache)
        if not pairs or (padding := int((self.mask.cumsum(-1) == 0).all(0).sum())) == 0:
            return
        self.mask = self.mask[:, padding:]
        _set_pairs(self.cache, [(keys[:, :, padding:], values[:, :, padding:]) for keys, values in pairs])

    @property
    def joinable(self) -> bool:
        """Whether rows of another batch can be put next to these: the cache is the keys and values of every token."""
        return bool(pairs_of(self.cache))

    def join(self, other: Batch) -> None:
        """Put the rows of another batch behind these; both are `joinable`."""
        import torch
        from torch.nn.functional import pad

        width = max(self.mask.shape[1], other.mask.shape[1])
        missing = [width - batch.mask.shape[1] for batch in (self, other)]
        self.mask = torch.cat([pad(batch.mask, (more, 0)) for batch, more in zip((self, other), missing, strict=True)])
        self.logits = torch.cat([self.logits, other.logits])
        self.prompts = [*self.prompts, *other.prompts]
        self.open = set(range(len(self.prompts)))
        joined = []
        for mine, its in zip(pairs_of(self.cache), pairs_of(other.cache), strict=True):
            sides = [
                torch.cat([pad(a, (0, 0, missing[0], 0)), pad(b, (0, 0, missing[1], 0))])
                for a, b in zip(mine, its, strict=True)
            ]
            joined.append((sides[0], sides[1]))
        _set_pairs(self.cache, joined)


@dataclass
class RowState:
    """One row of a batch, as a `Prefilled` carries it.

    Attributes:
        batch: The batch.
        row: Which of its rows.
        opened: The mark with which the prompt has opened the thoughts, if it has.
    """

    batch: Batch
    row: int
    opened: str = ""

    def close(self) -> None:
        self.batch.close(self.row)


def _set_pairs(cache: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
        layer.keys, layer.values = keys, values


def _parted(cache: Any) -> Any:
    """A cache of its own: selecting of rows makes new tensors, but changes other caches' in place."""
    if not pairs_of(cache):
        return copy.deepcopy(cache)
    parted = copy.copy(cache)
    parted.layers = [copy.copy(layer) for layer in cache.layers]
    return parted
