"""Calibrators of one signal's score."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from confcascade.calibration.base import Calibrator, Input, Space, as_space, finite, sigmoid, times
from confcascade.calibration.fitting import checked, logistic
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Isotonic", "Platt", "Temperature"]


class Single(Calibrator):
    """What calibrators of one score share: without it there is no confidence."""

    input: Input

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (self.input,)

    @property
    def monotone(self) -> bool:
        return True

    @abstractmethod
    def _of(self, score: float) -> float:
        """The confidence of a score."""

    def confidence(self, scores: Mapping[str, float | None]) -> float | None:
        score = scores[self.input.name]
        return None if score is None else self._of(score)

    def bounds(self, low: Mapping[str, float], high: Mapping[str, float]) -> tuple[float, float]:
        within, name = self.input.within, self.input.name
        return self._of(within(low[name])), self._of(within(high[name]))


@dataclass(frozen=True)
class Platt(Single):
    """confidence = σ(slope · x + intercept), where x is the log-odds of the score (the score itself outside [0, 1]).

    Fitted with Platt's targets, (n₊ + 1)/(n₊ + 2) for right answers and 1/(n₋ + 2) for wrong ones, so that scores
    which separate the two perfectly do not make it certain.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", section 2.2, there on raw scores.
    """

    kind: ClassVar[str] = "platt"
    input: Input
    slope: float
    intercept: float

    @property
    def monotone(self) -> bool:
        return self.slope >= 0

    def _of(self, score: float) -> float:
        return sigmoid(times(self.slope, self.input.transformed(score)) + self.intercept)

    @classmethod
    def fit(cls, scores: ArrayLike, right: ArrayLike, *, signal: str, space: Space = (0.0, 1.0)) -> Platt:
        """Fit to scores of shape (n,) and whether each answer was right.

        Raises:
            ConfigurationError: If there are fewer than 30 rows, one class only, a missing score, one outside the space,
                or one value throughout.
        """
        read = Input(signal, as_space(space))
        x, y = checked(scores, right, read)
        slope, intercept = logistic(x, y, intercept=True)
        return cls(read, slope, intercept)

    def _numbers(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}

    @classmethod
    def _from(cls, inputs: tuple[Input, ...], numbers: Mapping[str, Any]) -> Platt:
        (only,) = inputs
        return cls(only, finite(numbers["slope"]), finite(numbers["intercept"]))


@dataclass(frozen=True)
class Temperature(Single):
    """confidence = σ(log-odds(score) / temperature), for scores in [0, 1]: one number, which cannot mend a bias.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2, of a score that is a probability already; the targets are
    Platt's.
    """

    kind: ClassVar[str] = "temperature"
    input: Input
    temperature: float

    def _of(self, score: float) -> float:
        return sigmoid(self.input.transformed(score) / self.temperature)

    @classmethod
    def fit(cls, scores: ArrayLike, right: ArrayLike, *, signal: str) -> Temperature:
        """Fit to scores of shape (n,) in [0, 1] and whether each answer was right.

        Raises:
            ConfigurationError: As `Platt.fit`, and if wrong answers score higher than right ones.
        """
        read = Input(signal, (0.0, 1.0))
        x, y = checked(scores, right, read)
        slope, _ = logistic(x, y, intercept=False)
        if slope <= 0:
            raise ConfigurationError(f"No temperature fits signal '{signal}': it is wrong as often as it is sure.")
        return cls(read, 1 / slope)

    def _numbers(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    @classmethod
    def _from(cls, inputs: tuple[Input, ...], numbers: Mapping[str, Any]) -> Temperature:
        (only,) = inputs
        temperature = finite(numbers["temperature"])
        if temperature <= 0:
            raise ValueError("`temperature` must be above 0")
        return cls(only, temperature)


@dataclass(frozen=True)
class Isotonic(Single):
    """The best confidence that never falls as the score rises: straight lines between `scores` and `confidences`.

    Needs about 1,000 answers, and makes ties, within which nothing is ranked any more.

    Source: pool-adjacent-violators, Zadrozny & Elkan 2002, as in scikit-learn's `IsotonicRegression`.
    """

    kind: ClassVar[str] = "isotonic"
    input: Input
    scores: tuple[float, ...]
    confidences: tuple[float, ...]

    def _of(self, score: float) -> float:
        self.input.transformed(score)  # checks it
        after = bisect_right(self.scores, score)
        if after == 0:
            return self.confidences[0]
        if after == len(self.scores):
            return self.confidences[-1]
        (x0, x1), (y0, y1) = self.scores[after - 1 : after + 1], self.confidences[after - 1 : after + 1]
        return min(y1, y0 + (y1 - y0) * ((score - x0) / (x1 - x0)))  # rounding must not lift it above the next

    @classmethod
    def fit(cls, scores: ArrayLike, right: ArrayLike, *, signal: str, space: Space = (0.0, 1.0)) -> Isotonic:
        """Fit to scores of shape (n,) and whether each answer was right; errors as of `Platt.fit`."""
        import numpy as np
        from sklearn.isotonic import IsotonicRegression

        read = Input(signal, as_space(space))
        _, y = checked(scores, right, read)
        fitted = IsotonicRegression(y_min=0, y_max=1).fit(np.asarray(scores, dtype=float), y)
        return cls(read, tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))

    def _numbers(self) -> dict[str, Any]:
        return {"scores": list(self.scores), "confidences": list(self.confidences)}

    @classmethod
    def _from(cls, inputs: tuple[Input, ...], numbers: Mapping[str, Any]) -> Isotonic:
        (only,) = inputs
        scores, confidences = (tuple(map(finite, numbers[key])) for key in ("scores", "confidences"))
        if len(scores) != len(confidences) or not scores:
            raise ValueError("there must be one confidence to each score")
        if any(a >= b for a, b in pairwise(scores)):
            raise ValueError("`scores` must rise")
        if list(confidences) != sorted(confidences) or not 0 <= confidences[0] <= confidences[-1] <= 1:
            raise ValueError("`confidences` must never fall, and lie in [0, 1]")
        return cls(only, scores, confidences)
