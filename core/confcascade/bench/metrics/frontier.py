"""What policies reach for their cost, beside what anyone reaches without a signal, and what none can beat.

Costs are means over the questions in any unit, every model that ran. Points between two policies can be had by
drawing for each question which of them answers it: curves are concave, and straight between policies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid

__all__ = ["Curve", "frontier", "gap_closed", "oracle", "random_routing", "share_of_gap"]


@dataclass(frozen=True)
class Curve:
    """The accuracy that can be had for a cost: both ascending, the accuracy concave in the cost."""

    cost: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def at(self, cost: float) -> float:
        """The accuracy for `cost`: beyond the last point no more than there, and NaN below the first."""
        return math.nan if cost < self.cost[0] else float(np.interp(cost, self.cost, self.accuracy))

    def area(self, low: float, high: float) -> float:
        """The mean accuracy over costs from `low` to `high` (those of the smallest and of the largest model, say).

        Raises:
            ValueError: If nothing can be had for `low`, or `high` is not above it.
        """
        if not self.cost[0] <= low < high:
            raise ValueError(f"An area needs {self.cost[0]:g} <= low < high. Got low={low:g}, high={high:g}.")
        inner = self.cost[(self.cost > low) & (self.cost < high)]
        x = np.concatenate([[low], inner, [high]])
        return float(trapezoid(np.interp(x, self.cost, self.accuracy), x) / (high - low))

    def cost_of(self, accuracy: float) -> float:
        """The least cost for an accuracy, NaN if it is out of reach.

        Of the largest model's accuracy, this is the quality-neutral cost (QNC).
        """
        if accuracy > self.accuracy[-1]:
            return math.nan
        if accuracy <= self.accuracy[0]:
            return float(self.cost[0])
        return float(np.interp(accuracy, self.accuracy, self.cost))


def frontier(cost: ArrayLike, accuracy: ArrayLike) -> Curve:
    """The best that policies reach: the upper concave envelope of their points, up to the highest accuracy.

    >>> curve = frontier([1, 2, 3, 4], [0.5, 0.8, 0.7, 0.9])
    >>> curve.cost.tolist(), round(curve.at(3), 2)
    ([1.0, 2.0, 4.0], 0.85)
    """
    x, y = np.asarray(cost, dtype=float), np.asarray(accuracy, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or not len(x) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Costs and accuracies must be two lists of the same length, of finite numbers.")
    hull: list[tuple[float, float]] = []
    for i in np.lexsort((-y, x)):  # cheapest first, of equally cheap ones the best
        point = float(x[i]), float(y[i])
        if hull and point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return Curve(*np.array(hull).T)


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def random_routing(grades: ArrayLike, costs: ArrayLike) -> Curve:
    """What a blind choice reaches: for each question one of the models is drawn, and it alone is paid for.

    No signal is needed for that, and no draft is thrown away, so a cascade below this curve is worth nothing.

    Args:
        grades: Shape (questions, models).
        costs: Of a whole answer, shape (questions, models).
    """
    return frontier(np.asarray(costs, dtype=float).mean(axis=0), np.asarray(grades, dtype=float).mean(axis=0))


def oracle(grades: ArrayLike, costs: ArrayLike) -> Curve:
    """What nobody can beat: who knows every grade and cost asks each question of the one model that is worth it.

    The curve begins with the cheapest model for each question, and takes the best gains for their cost first. It is
    the exact optimum where models are asked whole and questions may be divided in shares.

    Args:
        grades: Shape (questions, models).
        costs: Of a whole answer, shape (questions, models).
    """
    y, c = np.asarray(grades, dtype=float), np.asarray(costs, dtype=float)
    n, gains, prices = len(y), [], []
    first_cost = first_grade = 0.0
    steps: dict[tuple[float, ...], tuple[list[float], list[float], float, float]] = {}
    for row_grades, row_costs in zip(y, c, strict=True):
        key = (*row_grades, *row_costs)
        if key not in steps:  # questions that are alike are many where costs are the same for all
            own = frontier(row_costs, row_grades)
            steps[key] = (np.diff(own.accuracy).tolist(), np.diff(own.cost).tolist(), own.cost[0], own.accuracy[0])
        more, extra, cost, grade = steps[key]
        gains += more
        prices += extra
        first_cost += cost
        first_grade += grade
    worth = np.argsort(-np.array(gains) / np.array(prices), kind="stable") if gains else np.array([], dtype=int)
    return frontier(
        (first_cost + np.concatenate([[0.0], np.cumsum(np.array(prices)[worth])])) / n,
        (first_grade + np.concatenate([[0.0], np.cumsum(np.array(gains)[worth])])) / n,
    )


def gap_closed(cost: float, accuracy: float, grades: ArrayLike, costs: ArrayLike) -> float:
    """How far a cascade comes from a blind choice (0) to the oracle (1), both at the cascade's own cost.

    Below 0, blind choice is better; NaN where the two do not differ, or the cost is below every model's.

    Args:
        cost: Mean cost of the cascade, every model that ran.
        accuracy: Its mean grade.
        grades: Of the single models, shape (questions, models).
        costs: Of their whole answers, shape (questions, models).
    """
    return share_of_gap(accuracy, random_routing(grades, costs).at(cost), oracle(grades, costs).at(cost))


def share_of_gap(accuracy: float, blind: float, best: float) -> float:
    """How far an accuracy lies from `blind` (0) to `best` (1); NaN where the two do not differ.

    >>> round(share_of_gap(0.8, blind=0.7, best=0.9), 2)
    0.5
    """
    return (accuracy - blind) / (best - blind) if best > blind else math.nan
