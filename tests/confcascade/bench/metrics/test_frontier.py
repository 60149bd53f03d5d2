"""Curves of accuracy over cost: envelopes, blind choice, oracle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from confcascade.bench.metrics.frontier import frontier, gap_closed, oracle, random_routing
from hypothesis import given
from hypothesis import strategies as st

points = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12)


@given(points)
def test_the_frontier_is_the_concave_envelope(found):
    """No point lies above it, no mixture of two points lies above it, and it is made of such mixtures."""
    cost, accuracy = np.array(found, dtype=float).T
    curve = frontier(cost, accuracy)
    assert (np.diff(curve.cost) > 0).all()
    assert (np.diff(curve.accuracy) > 0).all()
    assert all(curve.at(x) >= y - 1e-9 for x, y in found)
    assert set(zip(curve.cost, curve.accuracy, strict=True)) <= set(zip(cost, accuracy, strict=True))
    for (x1, y1), (x2, y2) in itertools.combinations(found, 2):
        assert curve.at((x1 + x2) / 2) >= (y1 + y2) / 2 - 1e-9


def test_area_and_quality_neutral_cost():
    """From (1, 0.5) by (2, 0.9) to (4, 1.0): areas of trapezoids, and costs between the corners."""
    curve = frontier([1, 2, 4, 5], [0.5, 0.9, 1.0, 0.8])
    assert curve.area(1, 4) == pytest.approx((0.7 + 2 * 0.95) / 3)
    assert curve.area(2, 8) == pytest.approx((2 * 0.95 + 4 * 1.0) / 6)
    assert curve.cost_of(0.8) == pytest.approx(1.75)
    assert curve.cost_of(0.2) == 1
    assert math.isnan(curve.cost_of(1.01))
    assert math.isnan(curve.at(0.5))
    with pytest.raises(ValueError, match="low < high"):
        curve.area(0.5, 2)


@given(st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=6))
def test_the_oracle_is_the_best_of_all_assignments(grades):
    """No assignment of questions to models is better than the oracle at its cost, and the best one is its end."""
    y, c = np.array(grades, dtype=float), np.tile([1.0, 3.0, 10.0], (len(grades), 1))
    curve = oracle(y, c)
    rows = np.arange(len(y))
    best = 0.0
    for assigned in itertools.product(range(3), repeat=len(y)):
        reached = y[rows, list(assigned)].mean()
        assert curve.at(c[rows, list(assigned)].mean()) >= reached - 1e-9
        best = max(best, reached)
    assert curve.accuracy[-1] == pytest.approx(best)
    assert curve.cost[0] == pytest.approx(1)


def test_gap_closed_is_between_blind_and_best():
    """Two models, half of the questions each; blind choice at cost 2 is right on 3 of 4, the oracle on all."""
    y, c = np.array([[1, 1], [0, 1], [1, 1], [0, 1]], dtype=float), np.tile([1.0, 3.0], (4, 1))
    assert random_routing(y, c).at(2.0) == pytest.approx(0.75)
    assert oracle(y, c).at(2.0) == pytest.approx(1.0)
    assert gap_closed(2.0, 0.75, y, c) == 0
    assert gap_closed(2.0, 1.0, y, c) == 1
    assert gap_closed(2.0, 0.7, y, c) == pytest.approx(-0.2)
    assert math.isnan(gap_closed(5.0, 1.0, y, c))
