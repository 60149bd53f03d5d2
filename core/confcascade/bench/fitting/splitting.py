"""Questions in three parts: those that calibrate scores, those that choose a path with them, and the proof.

How many are spent before the proof follows what there is to choose (docs/design/guarantee.md).

The proof is drawn by lot from the draws: a text that was drawn several times may stand on both sides, as it will come
again in the traffic that the promise is about. The other two are told by the text, so that none trains a calibrator and
judges it (docs/design/repeated-questions.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.errors import ConfigurationError

__all__ = ["SHARES", "FitSplit", "split_by_key"]

SHARES = {
    "threshold": {"calibrate": 0.0, "choose": 0.0, "certify": 1.0},
    "path": {"calibrate": 0.0, "choose": 0.15, "certify": 0.85},
    "signals": {"calibrate": 0.2, "choose": 0.1, "certify": 0.7},
}


@dataclass(frozen=True)
class FitSplit:
    """Indices of drawn questions: no index in two parts, and no text in both of the first two.

    Attributes:
        calibrate: By which scores become confidences.
        choose: By which, and `calibrate`, a path of policies is chosen.
        certify: Which prove it.
    """

    calibrate: NDArray[np.intp]
    choose: NDArray[np.intp]
    certify: NDArray[np.intp]

    @property
    def ordering(self) -> NDArray[np.intp]:
        """`calibrate` and `choose`."""
        return np.concatenate([self.calibrate, self.choose])

    def check(self, keys: Sequence[bytes]) -> None:
        """Refuse parts that share what they must not.

        Args:
            keys: Of all questions (`FitData.keys`).

        Raises:
            ConfigurationError: If a row is there twice, or a text both calibrates and chooses.
        """
        rows, counts = np.unique(np.concatenate([self.ordering, self.certify]), return_counts=True)
        if more := len(rows[counts > 1]):
            raise ConfigurationError(
                f"{more:,} rows are in two of the `parts`, or twice in one: what chose a policy cannot prove it. Put "
                "each row into one part, once."
            )
        calibrated = {keys[i] for i in self.calibrate}
        if shared := sum(keys[i] in calibrated for i in self.choose):
            raise ConfigurationError(
                f"{shared:,} rows of `choose` have a text that is in `calibrate`, too: a calibrator would be judged by "
                "what it was trained on. Split these two parts by the question's text."
            )


def split_by_key(keys: Sequence[bytes], *, seed: int = 0, shares: Mapping[str, float]) -> FitSplit:
    """Parts by hashes, which hang on the questions and the seed alone.

    Whether a draw is in `certify` hangs on its text and on how many draws of this text stand before it. Of the others
    the text alone says whether they calibrate or choose.

    Args:
        keys: Of the questions (`FitData.keys`), that of a text once for each draw.
        seed: Another seed, another split.
        shares: Of the three parts, 1 in all, such as one of `SHARES`.
    """
    calibrate, ordering = np.cumsum([shares[name] for name in ("calibrate", "choose")])
    before, drawn, text = Counter[bytes](), np.empty(len(keys)), np.empty(len(keys))
    for i, key in enumerate(keys):
        drawn[i], text[i] = _place(key, seed, before[key]), _place(key, seed, 0)
        before[key] += 1
    # where a text's first draw stands on its own side, stretched to the side of those that order policies
    beyond = text >= ordering
    text[beyond] = (text[beyond] - ordering) * ordering / (1 - ordering)
    certify = drawn >= ordering
    return FitSplit(
        np.flatnonzero(~certify & (text < calibrate)),
        np.flatnonzero(~certify & (text >= calibrate)),
        np.flatnonzero(certify),
    )


def _place(key: bytes, seed: int, number: int) -> float:
    again = f"\0{number}".encode() if number else b""
    hashed = hashlib.sha256(f"{seed}\0".encode() + key + again).digest()
    return (int.from_bytes(hashed[:8], "big") >> 11) / 2**53
