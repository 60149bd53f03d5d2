"""What a cascade of two models would have done at other thresholds: arithmetic on answers that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from confcascade.demo.comparison import Comparison

__all__ = ["AtThreshold", "at_thresholds", "thresholds_table"]

LISTED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class AtThreshold:
    """The cascade at a threshold.

    Attributes:
        threshold: Of the score.
        kept: How many answers the smaller model gave.
        right: How many answers were right.
        share: The cost of every model that ran, relative to the largest model alone.
    """

    threshold: float
    kept: int
    right: int
    share: float


def at_thresholds(
    compared: Comparison, scores: Sequence[float | None], thresholds: Sequence[float]
) -> list[AtThreshold]:
    """A cascade of the smallest and the largest model, at each threshold.

    Args:
        compared: Both alone, and the unit of costs.
        scores: Of the smaller model's answers, one for each question; None of one that is never kept.
        thresholds: At which.
    """
    smallest, largest, unit = compared.smallest, compared.largest, compared.unit
    found = []
    for threshold in thresholds:
        keeps = [score is not None and score >= threshold for score in scores]
        right = [
            small if kept else large for kept, small, large in zip(keeps, smallest.right, largest.right, strict=True)
        ]
        escalated = sum(getattr(cost, unit) for kept, cost in zip(keeps, largest.every, strict=True) if not kept)
        share = (smallest.spent(unit) + escalated) / largest.spent(unit)
        found.append(AtThreshold(threshold, sum(keeps), sum(right), share))
    return found


def thresholds_table(rows: Sequence[AtThreshold], small: str) -> Table:
    """One line for each threshold."""
    table = Table(title="Other thresholds, on the same answers", title_justify="left", title_style="bold")
    for column in ("threshold", f"{small} keeps", "right", "every model that ran"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(f"{row.threshold:g}", str(row.kept), str(row.right), f"{row.share:.1%}")
    return table
