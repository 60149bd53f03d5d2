"""Costs in every unit, and the units in the order in which they are preferred."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNITS", "UNIT_NAMES", "Costs", "known"]

Figures: TypeAlias = NDArray[np.float64]

UNITS = ("flops", "usd", "tokens", "seconds")  # in the order in which a cost is preferred
UNIT_NAMES = {"flops": "operations", "usd": "dollars", "tokens": "tokens", "seconds": "seconds"}


@dataclass(frozen=True)
class Costs:
    """Costs of every question (of every policy: their means); NaN where unknown, as `Cost` has None."""

    flops: Figures
    usd: Figures
    tokens: Figures
    seconds: Figures


def known(value: float) -> float | None:
    """A plain number; None for NaN and infinities, which JSON lacks."""
    return float(value) if math.isfinite(value) else None
