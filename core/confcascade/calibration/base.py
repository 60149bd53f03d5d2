"""The contract of a calibrator, and the arithmetic that all share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Calibrator", "Input", "Scores", "Space", "as_space", "finite", "sigmoid", "times"]

Space: TypeAlias = tuple[float, float]
Scores: TypeAlias = "Mapping[str, ArrayLike] | ArrayLike"

VERSION = 1  # of the stored form
CLIP = 1e-6  # of probabilities, whose log-odds are infinite at 0 and 1
C = TypeVar("C", bound="Calibrator")


@dataclass(frozen=True)
class Input:
    """A score that a calibrator reads: the name of its signal, and the signal's space."""

    name: str
    space: Space

    def transformed(self, score: float) -> float:
        """The log-odds of a score whose space is [0, 1], clipped to [1e-6, 1 - 1e-6]; of any other the score itself.

        Raises:
            ConfigurationError: If the score lies outside its space.
        """
        low, high = self.space
        if not low <= score <= high:
            raise ConfigurationError(f"A score of '{self.name}' must lie in [{low:g}, {high:g}]. Got {score!r}.")
        if self.space != (0.0, 1.0):
            return score
        p = min(max(score, CLIP), 1 - CLIP)
        return math.log(p) - math.log1p(-p)

    def within(self, score: float) -> float:
        """The nearest score in the space, for a bound of one whose signal knows no bounds."""
        return min(max(score, self.space[0]), self.space[1])


class Calibrator(ABC):
    """Scores in, confidence out. Made by `fit` or `calibrator_from_dict`."""

    kind: ClassVar[str]

    # ------------------------------------------------------------------ what each has

    @property
    @abstractmethod
    def inputs(self) -> tuple[Input, ...]:
        """What it reads."""

    @property
    @abstractmethod
    def monotone(self) -> bool:
        """Whether a higher score never means a lower confidence, so that `bounds` holds."""

    @abstractmethod
    def confidence(self, scores: Mapping[str, float | None]) -> float | None:
        """The confidence of one answer, from its scores by signal, None where one is missing; needs no numpy.

        Returns:
            The confidence; None if it cannot be told without what is missing.
        """

    @abstractmethod
    def bounds(self, low: Mapping[str, float], high: Mapping[str, float]) -> tuple[float, float]:
        """The least and greatest confidence while each score may still fall anywhere in [low, high].

        Only of a `monotone` one. Covers scores that come to be missing, as far as there is a confidence then; but the
        early ones of an `EarlyAccept` are there once they have a bound above the least of their space.
        """

    @abstractmethod
    def _numbers(self) -> dict[str, Any]:
        """What `as_dict` adds to kind, version and inputs."""

    @classmethod
    @abstractmethod
    def _from(cls: type[C], inputs: tuple[Input, ...], numbers: Mapping[str, Any]) -> C:
        """The reverse of `_numbers`."""

    # ------------------------------------------------------------------ what all share

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that it reads."""
        return tuple(each.name for each in self.inputs)

    def predict(self, scores: Scores) -> NDArray[np.float64]:
        """Confidences of many answers, bit for bit those of `confidence`.

        Args:
            scores: By signal, arrays of shape (n,); or an array of shape (n, signals), or (n,) for one signal. NaN
                where a score is missing.

        Returns:
            Shape (n,); NaN where there is no confidence.
        """
        import numpy as np

        names = self.signals
        found = [
            self.confidence({name: None if math.isnan(v) else v for name, v in zip(names, row, strict=True)})
            for row in _table(scores, names).tolist()
        ]
        return np.array([math.nan if c is None else c for c in found], dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, numbers and names alone; `calibrator_from_dict` reads it."""
        inputs = [{"signal": each.name, "space": [e if math.isfinite(e) else None for e in each.space]}
                  for each in self.inputs]  # JSON knows no infinity  # fmt: skip
        return {"calibrator": self.kind, "version": VERSION, "inputs": inputs, **self._numbers()}


# ---------------------------------------------------------------------- arithmetic


def sigmoid(z: float) -> float:
    """The logistic function, of any size of `z`."""
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    grown = math.exp(z)  # of a large negative z, exp(-z) would overflow
    return grown / (1 + grown)


def times(weight: float, x: float) -> float:
    """The product, where a weight of 0 makes nothing even of an infinite bound."""
    return weight * x if weight else 0.0  # 0 times an infinite bound is nothing


def as_space(space: Sequence[float]) -> Space:
    """(low, high) as numbers, if they are a space."""
    low, high = map(float, space)
    if not low < high:
        raise ConfigurationError(f"A space must be (low, high) with low < high. Got {tuple(space)!r}.")
    return low, high


def finite(value: Any) -> float:
    """A number that was read from JSON; `ValueError` if it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _table(scores: Scores, names: Sequence[str]) -> NDArray[np.float64]:
    """Scores of shape (n, signals)."""
    import numpy as np

    if isinstance(scores, Mapping):
        if absent := [name for name in names if name not in scores]:
            raise ConfigurationError(f"The calibrator reads {list(names)}. Missing: {absent}.")
        return np.stack([np.asarray(scores[name], dtype=float) for name in names], axis=1)
    array = np.asarray(scores, dtype=float)
    table = array[:, None] if array.ndim == 1 else array
    if table.ndim != 2 or table.shape[1] != len(names):
        raise ConfigurationError(f"`scores` must have shape (n, {len(names)}), by {list(names)}. Got {array.shape}.")
    return table
