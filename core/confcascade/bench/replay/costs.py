"""Costs in every unit, and the units in the order in which they are preferred."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from confcascade.errors import ConfigurationError

__all__ = ["UNITS", "UNIT_NAMES", "Costs", "Figures", "chosen_unit", "known"]

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


def chosen_unit(alone: Costs, unit: str | None = None) -> str:
    """The unit that was asked for, else the first of `UNITS` that is known of all models.

    Args:
        alone: Mean costs of each model by itself, of shape (models,), smallest first.
        unit: What was asked for.

    Raises:
        ConfigurationError: If nothing is known, or not the unit that was asked for.
    """
    if unit is not None and unit not in UNITS:
        raise ConfigurationError(f"The unit of costs must be one of {', '.join(UNITS)}. Got '{unit}'.")
    found = [each for each in UNITS if np.isfinite(getattr(alone, each)).all() and getattr(alone, each)[-1] > 0]
    if not found:
        raise ConfigurationError(
            "Nothing is known of what the models cost: the recording has no tokens, no times. Give sizes "
            "(`architectures=...`) or prices (`prices=...`) of every model, or collect again."
        )
    if unit is not None and unit not in found:
        raise ConfigurationError(
            f"Costs cannot count in {unit}: that is not known of every model. Known of all: {', '.join(found)}. "
            "Give sizes (`architectures=...`) or prices (`prices=...`) of every model."
        )
    return unit or found[0]


def known(value: float) -> float | None:
    """A plain number; None for NaN and infinities, which JSON lacks."""
    return float(value) if math.isfinite(value) else None
