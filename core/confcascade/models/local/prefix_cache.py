"""What prompts have in common at their beginning, such as a system prompt and examples: read once, not for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confcascade.models.local.batch import Batch
from confcascade.models.local.decoder import Decoder, pairs_of

__all__ = ["PrefixCache"]

_FEWEST, _SHARE = 32, 0.25  # tokens in common that are worth it, and of a prompt's: a pass behind others costs more
_SEEN = 64  # prompts whose tokens are remembered, so that it is known what comes again


@dataclass(frozen=True, eq=False)
class _Prefix:
    """Tokens, and what the model has read of them: keys and values (1, heads, tokens, dimension) by layer."""

    ids: list[int]
    pairs: list[tuple[Any, Any]]


class PrefixCache:
    """Beginnings of prompts that came more than once, with their keys and values.

    A beginning is kept once two prompts have had it, in one pass or one after the other: the third reads only what is
    its own. What was used last stays, as far as the memory allows. Only for models whose cache is the keys and values
    of every token.

    Args:
        decoder: Reads.
        device: Where the model is.
        most: Bytes that may be kept; 0 keeps nothing between passes.
    """

    def __init__(self, decoder: Decoder, device: Any, most: int) -> None:
        self._decoder = decoder
        self._device = device
        self._bytes = most
        self._most = most // decoder.token_bytes if decoder.shares else 0  # tokens
        self._kept: list[_Prefix] = []  # used last, last
        self._seen: deque[list[int]] = deque(maxlen=_SEEN)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one in another process, has kept nothing."""
        return type(self), (self._decoder, self._device, self._bytes)

    def unread(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt are still to be read."""
        return len(prompt) - (self._longest(list(prompt))[0] if self._kept else 0)

    def look_up(self, prompts: Sequence[Sequence[int]]) -> tuple[list[int], Any]:
        """How many first tokens of each prompt need not be read, and a cache of those, padded on the left; or None.

        Each prompt keeps at least one token to be read.
        """
        rows = [list(prompt) for prompt in prompts]
        if not self._decoder.shares:
            return [0] * len(rows), None
        found = [self._longest(row) for row in rows]
        most = min([len(rows[0]), *(_common(rows[0], row) for row in rows[1:])])
        most = min(most, min(map(len, rows)) - 1)
        worth = most if len(rows) > 1 else self._seen_before(rows[0], most)
        self._seen.extend(rows)
        least, pairs = min(found, key=lambda each: each[0])
        if worth - least >= _FEWEST and worth >= _SHARE * max(map(len, rows)):
            pairs = self._extended(pairs, rows[0][least:worth], least)  # what they have in common, once
            self._keep(_Prefix(rows[0][:worth], pairs))
            found = [(worth, pairs) if known < worth else (known, its) for known, its in found]
        lengths = [known for known, _ in found]
        if max(lengths) < _SHARE * max(map(len, rows)):
            return [0] * len(rows), None
        return lengths, self._joined(found)

    def keep(self, ids: Sequence[int], batch: Batch, row: int) -> None:
        """Keep what a row of a batch has read, because something goes on from it."""
        if self._decoder.shares and len(ids) >= _FEWEST:
            columns = batch.mask[row].nonzero()[: len(ids), 0]
            pairs = [
                (k[row : row + 1][:, :, columns], v[row : row + 1][:, :, columns]) for k, v in pairs_of(batch.cache)
            ]
            self._keep(_Prefix(list(ids), pairs))

    # ------------------------------------------------------------------ what is kept

    def _longest(self, ids: list[int]) -> tuple[int, list[tuple[Any, Any]]]:
        """How many first tokens of a prompt are kept, all but one at most, and their keys and values."""
        known, best = max(((_common(kept.ids, ids), i) for i, kept in enumerate(self._kept)), default=(0, 0))
        if (known := min(known, len(ids) - 1)) < _FEWEST:
            return 0, []
        self._kept.append(self._kept.pop(best))
        return known, [(keys[:, :, :known], values[:, :, :known]) for keys, values in self._kept[-1].pairs]

    def _seen_before(self, ids: list[int], most: int) -> int:
        """How many first tokens some earlier prompt had, too; 0 if they could not be kept."""
        return min(most, self._most, max((_common(seen, ids) for seen in self._seen), default=0))

    def _keep(self, new: _Prefix) -> None:
        if len(new.ids) > self._most:
            return
        self._kept = [kept for kept in self._kept if _common(kept.ids, new.ids) < len(kept.ids)]  # all of it is in this
        self._kept.append(new)
        while sum(len(kept.ids) for kept in self._kept) > self._most:
            self._kept.pop(0)

    def _extended(self, pairs: list[tuple[Any, Any]], ids: list[int], behind: int) -> list[tuple[Any, Any]]:
        """Keys and values of one row, and of more tokens."""
        import torch

        new = torch.tensor([ids], device=self._device)
        positions = torch.arange(behind, behind + len(ids), device=self._device)[None]
        mask = new.new_ones(1, behind + len(ids))
        _, cache = self._decoder(new, mask, positions, self._joined([(behind, pairs)]))
        return pairs_of(cache)

    @staticmethod
    def _joined(found: Sequence[tuple[int, list[tuple[Any, Any]]]]) -> Any:
        """A cache of what each row has read, padded on the left."""
        import torch
        from torch.nn.functional import pad
        from transformers import DynamicCache

        cache = DynamicCache()
        past = max(known for known, _ in found)
        shaped = next((pairs for known, pairs in found if known == past), [])
        for layer, pair in enumerate(shaped):
            sides = []
            for side in (0, 1):
                empty = pair[side][:, :, :0]
                rows = [(pairs[layer][side] if known else empty, past - known) for known, pairs in found]
                sides.append(torch.cat([pad(each, (0, 0, missing, 0)) if missing else each for each, missing in rows]))
            cache.update(sides[0], sides[1], layer)
        return cache


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many first tokens two lists have in common."""
    low, high = 0, min(len(ids), len(others))
    while low < high:  # slices are compared in C
        middle = (low + high + 1) // 2
        if ids[low:middle] == others[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
