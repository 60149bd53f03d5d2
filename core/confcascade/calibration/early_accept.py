"""A confidence with two looks at an answer: early, and once it is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from confcascade.calibration.base import CLIP, Calibrator, Input, finite, sigmoid
from confcascade.calibration.fitting import log_odds, logistic
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["EarlyAccept"]


@dataclass(frozen=True)
class EarlyAccept(Calibrator):
    """confidence = σ(slope · log-odds(the greater of two) + intercept): by what is known early, and by the whole.

    So one threshold makes a rule of two steps: an answer whose early scores are sure enough is kept whatever follows,
    and can be shown from there; any other is judged once it is whole. What has two chances to pass is a little too sure
    of itself, which slope and intercept put right; the order of answers is that of the greater one.

    Args:
        early: Of scores that are known before the answer has ended; a higher one never means a lower confidence.
        whole: Of all scores, those of `early` among them.
        slope: Above 0.
        intercept: Of the log-odds.

    Source: two looks of a group-sequential test (Pocock 1977), of which the first can only accept; that the threshold
    holds for both looks together is for the proof to show, not for a correction.
    """

    kind: ClassVar[str] = "early_accept"
    early: Calibrator
    whole: Calibrator
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not set(self.early.signals) <= set(self.whole.signals):
            raise ValueError("`early` must read scores that `whole` reads, too")
        if not (self.early.monotone and self.slope > 0):
            raise ValueError("`early` must never fall as a score rises, and `slope` must be above 0")

    @property
    def inputs(self) -> tuple[Input, ...]:
        return self.whole.inputs

    @property
    def monotone(self) -> bool:
        return True  # in the early scores, and `bounds` takes no more of the whole than holds

    def _of(self, greater: float) -> float:
        p = min(max(greater, CLIP), 1 - CLIP)
        return sigmoid(self.slope * (math.log(p) - math.log1p(-p)) + self.intercept)

    def confidence(self, scores: Mapping[str, float | None]) -> float | None:
        known = [c for each in (self.early, self.whole) if (c := each.confidence(scores)) is not None]
        return self._of(max(known)) if known else None

    def bounds(self, low: Mapping[str, float], high: Mapping[str, float]) -> tuple[float, float]:
        least, most = self.early.bounds(low, high)
        if any(low[each.name] <= each.space[0] for each in self.early.inputs):  # it may yet have no early score
            least = 0.0
        highest = self.whole.bounds(low, high)[1] if self.whole.monotone else 1.0
        return self._of(least), self._of(max(most, highest))

    @classmethod
    def fit(
        cls, early: Calibrator, whole: Calibrator, scores: Mapping[str, ArrayLike], right: ArrayLike
    ) -> EarlyAccept:
        """Put two fitted calibrators together, and right what the greater of them is too sure of.

        Args:
            early: Of scores that are known early.
            whole: Of all.
            scores: By signal, shape (n,); NaN where missing. Answers without a confidence are left out.
            right: Whether each answer was right, shape (n,).

        Raises:
            ConfigurationError: If a higher early score means a lower confidence: nothing can be accepted by it.
        """
        import numpy as np

        if not early.monotone:
            raise ConfigurationError(
                f"By {', '.join(early.signals)} no answer can be accepted early: a higher score means that it is more "
                "often wrong."
            )
        both = np.stack([early.predict({name: scores[name] for name in early.signals}), whole.predict(scores)])
        greater: NDArray[np.float64] = np.fmax(*both)
        known = ~np.isnan(greater)
        slope, intercept = logistic(log_odds(greater[known]), np.asarray(right, dtype=float)[known], intercept=True)
        return cls(early, whole, slope, intercept) if slope > 0 else cls(early, whole, 1.0, 0.0)

    def _numbers(self) -> dict[str, Any]:
        return {
            "early": self.early.as_dict(),
            "whole": self.whole.as_dict(),
            "slope": self.slope,
            "intercept": self.intercept,
        }

    @classmethod
    def _from(cls, inputs: tuple[Input, ...], numbers: Mapping[str, Any]) -> EarlyAccept:
        from confcascade.calibration import calibrator_from_dict  # which knows this class

        early, whole = calibrator_from_dict(numbers["early"]), calibrator_from_dict(numbers["whole"])
        made = cls(early, whole, finite(numbers["slope"]), finite(numbers["intercept"]))
        if made.inputs != inputs:
            raise ValueError("its inputs are not those of its parts")
        return made
