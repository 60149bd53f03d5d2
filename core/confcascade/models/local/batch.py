"""Prompts that were read in one forward pass, and the KV cache that their answers continue from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confcascade.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "RowState"]


@dataclass
class Batch:
    """Prompts that were read together, and where they stand."""

    prompts: list[Sequence[int]]  # the tokens of each row's
    mask: torch.Tensor  # (rows, tokens so far)
    cache: Any = None
    logits: Any = None  # (rows, vocabulary) of the last position
    open: set[int] = field(default_factory=set)  # rows whose state nobody has closed
    lock: threading.Lock = field(default_factory=threading.Lock)  # rows may be continued by several threads

    def __post_init__(self) -> None:
        self.open = set(range(len(self.prompts)))

    def take(self, rows: list[int]) -> Batch:
        """These rows, to continue from; the others' cache is kept only while somebody may still want it."""
        import copy

        with self.lock:
            if not set(rows) <= self.open:
                raise ModelError("This prefill was closed, or was continued before; a KV cache can be continued once.")
            self.open -= set(rows)
            cache = copy.deepcopy(self.cache) if self.open else self.cache
            taken = Batch([self.prompts[row] for row in rows], self.mask, cache, self.logits)
            self._free()
        if rows != list(range(len(self.prompts))):
            taken.select(rows)
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
        """Keep these rows of the tensors, in this order."""
        import torch

        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.logits = self.logits[index]
        self.cache.reorder_cache(index)  # which layers without attention have, too


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
