"""What asks one model only, to stand beside a cascade: single models, and routers by scores known before an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.proof import losses
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage

__all__ = ["Rival", "rivals"]

_LEVELS = np.linspace(0, 1, 101)  # quantiles of a router's score that are tried as its threshold


@dataclass(frozen=True)
class Rival:
    """What asks one model only.

    Attributes:
        name: In words.
        loss: Mean loss of a question against the largest model; of the router that saves most within the target.
        saved: Share of the largest model's cost, of that router likewise.
        within: Whether the loss is within the target; None where there is none. A router that never is, asks the
            largest model alone, and saves nothing.
    """

    name: str
    loss: float
    saved: float
    within: bool | None


def rivals(
    columns: Columns,
    models: Sequence[str],
    same: NDArray[np.bool_] | None,
    bill: Costing,
    max_drop: float | None,
) -> tuple[Rival, ...]:
    """Every model but the last alone, and a router between every two models by each recorded score of the phase "pre".

    All in hindsight: thresholds are the best for the questions that they are judged on, and nothing is certified. That
    favours them.

    Args:
        columns: The questions.
        models: Smallest first.
        same: As for `losses`.
        bill: Of costs.
        max_drop: The target; without one there are single models only, for a router has then no best threshold.
    """
    *smaller, largest = models
    policies = [(PolicyStage(model),) for model in smaller]
    lost, saved = _judged(columns, policies, largest, same, bill)
    found = [
        Rival(f"{model} alone", float(loss), float(gain), None if max_drop is None else bool(loss <= max_drop))
        for model, loss, gain in zip(smaller, lost, saved, strict=True)
    ]
    if max_drop is None:
        return tuple(found)
    for (model, name), column in columns.signals.items():
        known = column.values[np.isfinite(column.values)]
        if model not in smaller or column.phase != "pre" or not len(known):
            continue
        at = np.unique(np.quantile(known, _LEVELS, method="higher")).tolist()
        routed = [(PolicyStage(model, {name: each}), PolicyStage(largest)) for each in at]
        lost, saved = _judged(columns, routed, largest, same, bill)
        kept = np.flatnonzero((lost <= max_drop) & (saved > 0))
        best = None if not len(kept) else int(kept[saved[kept].argmax()])
        told = (0.0, 0.0, False) if best is None else (float(lost[best]), float(saved[best]), True)
        found.append(Rival(f"a router from {model} to {largest} by {name}", *told))
    return tuple(found)


def _judged(
    columns: Columns,
    policies: Sequence[Sequence[PolicyStage]],
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean losses and savings, both of shape (policies,)."""
    *costs, alone = bill.means(columns, [*policies, [PolicyStage(largest)]])
    return losses(columns, policies, largest, same).mean(axis=1), 1 - np.array(costs) / alone
