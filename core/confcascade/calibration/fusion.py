"""A confidence from several signals' scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from confcascade.calibration.base import Calibrator, Input, Space, as_space, finite, sigmoid, times
from confcascade.calibration.fitting import checked
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Feature", "Fusion"]


@dataclass(frozen=True)
class Feature:
    """What a `Fusion` makes of one score.

    Attributes:
        input: The score.
        mean: Of the transformed score, where it was there.
        scale: Its standard deviation.
        weight: Of the standardised score.
        missing: Added where the score is missing; None where none was missing, so that nothing is known of it.
    """

    input: Input
    mean: float
    scale: float
    weight: float
    missing: float | None

    def part(self, score: float) -> float:
        """What a score adds to the log-odds."""
        return times(self.weight, (self.input.transformed(score) - self.mean) / self.scale)


@dataclass(frozen=True)
class Fusion(Calibrator):
    """One confidence from several scores: σ(intercept + Σ weight · z), a regularised logistic regression.

    Each score is transformed (log-odds where its space is [0, 1]) and standardised to z; one that is missing adds a
    weight of its own instead, if some were missing when this was fitted, else there is no confidence.
    """

    kind: ClassVar[str] = "fusion"
    features: tuple[Feature, ...]
    intercept: float

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(feature.input for feature in self.features)

    @property
    def monotone(self) -> bool:
        return all(feature.weight >= 0 for feature in self.features)

    def confidence(self, scores: Mapping[str, float | None]) -> float | None:
        total = self.intercept
        for feature in self.features:
            score = scores[feature.input.name]
            part = feature.missing if score is None else feature.part(score)
            if part is None:
                return None
            total += part
        return sigmoid(total)

    def bounds(self, low: Mapping[str, float], high: Mapping[str, float]) -> tuple[float, float]:
        least = most = self.intercept
        for feature in self.features:
            read, name = feature.input, feature.input.name
            ends = [feature.part(read.within(low[name])), feature.part(read.within(high[name]))]
            if feature.missing is not None:
                ends.append(feature.missing)
            least, most = least + min(ends), most + max(ends)
        return sigmoid(least), sigmoid(most)

    @classmethod
    def fit(cls, scores: Mapping[str, ArrayLike], right: ArrayLike, spaces: Mapping[str, Space]) -> Fusion:
        """Fit to scores by signal, arrays of shape (n,) with NaN where missing, and whether each answer was right.

        The regularisation is scikit-learn's default, L2 with C = 1 on standardised features; the intercept is free.

        Raises:
            ConfigurationError: As `Platt.fit`, but scores may be missing.
        """
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        parts, columns = [], []
        for name, values in scores.items():
            read = Input(name, as_space(spaces[name]))
            x, y = checked(values, right, read, missing=True)
            gone = np.isnan(x)
            mean, scale = float(np.nanmean(x)), float(np.nanstd(x))
            columns.append(np.where(gone, 0.0, (x - mean) / scale))
            if gone.any():
                columns.append(gone.astype(float))
            parts.append((read, mean, scale, bool(gone.any())))
        if not parts:
            raise ConfigurationError("A fusion needs at least one signal. Got none.")
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(np.stack(columns, axis=1), y)
        weights = iter(fitted.coef_[0].tolist())
        features = [
            Feature(read, mean, scale, next(weights), next(weights) if missing else None)
            for read, mean, scale, missing in parts
        ]
        return cls(tuple(features), float(fitted.intercept_[0]))

    def _numbers(self) -> dict[str, Any]:
        told = ("mean", "scale", "weight", "missing")
        return {
            "intercept": self.intercept,
            "features": [{key: getattr(feature, key) for key in told} for feature in self.features],
        }

    @classmethod
    def _from(cls, inputs: tuple[Input, ...], numbers: Mapping[str, Any]) -> Fusion:
        features = []
        for read, told in zip(inputs, numbers["features"], strict=True):
            mean, scale, weight = (finite(told[key]) for key in ("mean", "scale", "weight"))
            if scale <= 0:
                raise ValueError("`scale` must be above 0")
            features.append(
                Feature(read, mean, scale, weight, None if told["missing"] is None else finite(told["missing"]))
            )
        return cls(tuple(features), finite(numbers["intercept"]))
