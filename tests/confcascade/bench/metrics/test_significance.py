"""Tests and intervals are scipy's and statsmodels'."""

from __future__ import annotations

import numpy as np
import pytest
from confcascade.bench.metrics import significance
from confcascade.bench.metrics.significance import discordant, mcnemar, paired_difference, saving, savings


def test_statistics_are_the_libraries():
    """McNemar's p is statsmodels'; intervals contain the mean and shrink to nothing without a difference."""
    statsmodels = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(1)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.85
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert mcnemar(a, b) == pytest.approx(statsmodels.mcnemar(table, exact=True).pvalue)
    assert mcnemar(a, a) == 1.0
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert low < mean < high
    assert paired_difference(a, a) == (0.0, 0.0, 0.0)
    share, low, high = saving(np.full(300, 1.0) + rng.random(300), np.full(300, 4.0))
    assert low < share < high


def test_of_one_question_nothing_is_known_of_others():
    """It has no interval that could be resampled, and is no crash either: groups of one are common."""
    assert paired_difference(np.array([0.0]), np.array([1.0])) == (-1.0, -1.0, 1.0)
    assert paired_difference(np.array([1.0]), np.array([1.0])) == (0.0, 0.0, 0.0)


def test_the_papers_own_p_value():
    """Table 9, 8B -> 70B: p = 0.4048 is that of 14 harms and 9 benefits."""
    largest = np.array([True] * 14 + [False] * 9 + [True] * 1407)
    cascade = np.array([False] * 14 + [True] * 9 + [True] * 1407)
    assert discordant(cascade, largest) == (14, 9)
    assert mcnemar(cascade, largest) == pytest.approx(0.40487, abs=5e-6)


def test_memory_is_bounded_without_changing_figures(monkeypatch):
    """Resampling in batches draws the same questions as at once."""
    rng = np.random.default_rng(2)
    a, b = rng.random(337) < 0.7, rng.random(337) < 0.8
    spent, alone = rng.random(337), 1 + rng.random(337)
    at_once = paired_difference(a, b), saving(spent, alone)
    monkeypatch.setattr(significance, "_BATCH", 337 * 64)
    assert (paired_difference(a, b), saving(spent, alone)) == at_once


def test_the_interval_of_the_best_of_many_holds_what_it_promises():
    """Ten policies that truly save nothing, and the one that seems to save most: an interval of its own misleads."""
    rng = np.random.default_rng(4)
    held = alone = 0
    for _ in range(100):
        costs, largest = rng.exponential(size=(10, 200)), np.ones(200)
        best = int(costs.sum(axis=1).argmin())
        _, low, high = savings(costs, largest, best)
        held += low <= 0 <= high
        _, low, high = savings(costs[best : best + 1], largest, 0)
        alone += low <= 0 <= high
    assert held >= 90
    assert alone < 85


def test_one_policy_has_the_interval_of_percentiles():
    rng = np.random.default_rng(5)
    spent, largest = rng.exponential(size=500), 2 + rng.random(500)
    share, low, high = saving(spent, largest)
    assert savings(spent[None], largest, 0) == pytest.approx((share, low, high), abs=0.005)
    (_, wide, _), (_, same, _) = (savings(np.stack([spent, each]), largest, 0) for each in (spent[::-1], spent))
    assert wide < same == pytest.approx(low, abs=0.005)


def test_the_interval_holds_what_it_promises():
    """95 % intervals of a difference of -0.05 contain it in about 95 of 100 samples (fixed seed; 88 to 100 here)."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        both = rng.random(400)
        _, low, high = paired_difference(both < 0.75, both < 0.80)
        held += low <= -0.05 <= high
    assert 88 <= held <= 100


def test_blocks_of_very_many_questions_give_the_same_intervals(monkeypatch):
    """Of 12,345 questions in an order that is no accident: widths within 5 % of those of single questions."""
    rng = np.random.default_rng(4)
    n = 12_345
    a, b = np.sort(rng.random(n)) < 0.7, np.linspace(0, 1, n) < 0.72  # their differences stand together
    spent, alone = np.sort(rng.random(n)), 1 + rng.random(n)
    in_blocks = paired_difference(a, b), saving(spent, alone)
    monkeypatch.setattr(significance, "_MANY", n)
    for (mean, low, high), (exact, least, most) in zip(
        in_blocks, (paired_difference(a, b), saving(spent, alone)), strict=True
    ):
        assert mean == pytest.approx(exact)
        assert high - low == pytest.approx(most - least, rel=0.05)
        assert (low, high) == pytest.approx((least, most), abs=0.1 * (most - least))
