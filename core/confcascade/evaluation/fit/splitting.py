"""Questions in three parts: those that calibrate scores, those that choose policies with them, and the proof."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.errors import ConfigurationError

__all__ = ["SHARES", "Parts", "split_by_key"]

SHARES = {"calibrate": 0.4, "choose": 0.2, "certify": 0.4}


@dataclass(frozen=True)
class Parts:
    """Indices of questions: disjoint, and no question on two sides.

    Attributes:
        calibrate: By which scores become confidences.
        choose: By which, and `calibrate`, policies are chosen and ordered.
        certify: Which prove them.
    """

    calibrate: NDArray[np.intp]
    choose: NDArray[np.intp]
    certify: NDArray[np.intp]

    @property
    def ordering(self) -> NDArray[np.intp]:
        """`calibrate` and `choose`."""
        return np.concatenate([self.calibrate, self.choose])

    def check(self, keys: Sequence[bytes]) -> None:
        """Refuse parts that share a question.

        Raises:
            ConfigurationError: If one that proves a policy also chose it.
        """
        chose = {keys[i] for i in self.ordering}
        shared = [i for i in self.certify if keys[i] in chose]
        if shared:
            raise ConfigurationError(
                f"{len(shared):,} questions that are to prove a policy also chose it: split by the question's text, so "
                "that one which occurs twice is on one side."
            )


def split_by_key(keys: Sequence[bytes], *, seed: int = 0, shares: Mapping[str, float] | None = None) -> Parts:
    """Parts by a hash of each question, which hangs on the question and the seed alone.

    Args:
        keys: Of the questions (`Material.keys`).
        seed: Another seed, another split.
        shares: Of the three parts, 1 in all; by default `SHARES`.
    """
    wanted = SHARES if shares is None else shares
    places = np.array([_place(key, seed) for key in keys])
    ends = np.cumsum([wanted[name] for name in ("calibrate", "choose")])
    side = np.searchsorted(ends, places, side="right")
    return Parts(*(np.flatnonzero(side == i) for i in range(3)))


def _place(key: bytes, seed: int) -> float:
    hashed = hashlib.sha256(f"{seed}\0".encode() + key).digest()
    return (int.from_bytes(hashed[:8], "big") >> 11) / 2**53
