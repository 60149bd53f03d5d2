"""The health check: what cannot route is named, what can is let through, and the bound of the AUROC is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError, Usage
from confcascade.evaluation import Columns, PolicyStage, RecordedScore, Row
from confcascade.evaluation.evaluate import evaluate
from confcascade.evaluation.gathered import gather
from confcascade.evaluation.health import auroc_lower_bound, check_signals, signal_health
from confcascade.evaluation.metrics import auroc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

RNG = np.random.default_rng(0)
RIGHT = RNG.random(1000) < 0.7
GOOD = RIGHT + RNG.normal(size=1000)


def test_a_signal_that_tells_right_from_wrong_can_route():
    """Its figures say why."""
    found = signal_health(GOOD, RIGHT)
    assert found.can_route
    assert (found.answers, found.coverage, found.distinct) == (1000, 1.0, 1000)
    assert 0.7 < found.auroc_low < found.auroc == auroc(RIGHT, GOOD)
    assert found.verdict.startswith("can route (AUROC 0.7")


@pytest.mark.parametrize(
    ("scores", "right", "reason"),
    [
        (np.full(1000, 0.95), RIGHT, "every score is 0.95"),
        (np.full(1000, np.nan), RIGHT, "no answer has a score"),
        (np.where(RNG.random(1000) < 0.9, 1.0, GOOD), RIGHT, "of its scores are 1 (at most 60%)"),
        ((GOOD > -1.5).astype(float), RIGHT, "2 different scores"),
        (RNG.normal(size=1000), RIGHT, "(must be above 0.55)"),
        (-GOOD, RIGHT, "wrong answers score higher than right ones"),
        (np.where(RNG.random(1000) < 0.1, np.nan, GOOD), RIGHT, "of the answers have a score (at least 95%)"),
        (GOOD, np.arange(1000) > 3, "996 right and 4 wrong answers"),
        (GOOD, np.ones(1000), "1000 right and 0 wrong answers"),
        (GOOD[:12], np.arange(12) % 2 == 0, "may be as low as"),
    ],
)
def test_what_cannot_route_is_told_why(scores: Any, right: Any, reason: str):
    """One line, which begins with the verdict."""
    found = signal_health(scores, right)
    assert not found.can_route
    assert found.verdict.startswith("this signal cannot route: ")
    assert reason in found.verdict


def test_few_scores_that_are_spread_can_route():
    """Five levels in words are fewer than 20 scores, but more than a bit."""
    assert signal_health(np.clip(np.round(GOOD), -1, 3), RIGHT).can_route


def test_no_answers_are_refused():
    """There is nothing to look at."""
    with pytest.raises(ConfigurationError, match="one score to each of some answers"):
        signal_health([], [])


def test_every_recorded_signal_is_checked_on_its_own_answers():
    """Only usable, graded answers of its own model count."""
    rows = []
    for i in range(200):
        good, grade = float(GOOD[i]), float(RIGHT[i])
        scores = {"good": RecordedScore(value=good), "flat": RecordedScore(value=1.0)}
        rows.append(Row(question=f"q{i}", model="small", answer="x", grade=grade, scores=scores))
        rows.append(Row(question=f"q{i}", model="large", answer="x", grade=1.0))
    rows.append(Row(question="failed", model="small", error="down", grade=0.0))
    rows.append(Row(question="ungraded", model="small", answer="x"))
    found = check_signals(Columns.of(rows))
    assert set(found) == {("small", "good"), ("small", "flat")}
    assert found["small", "good"] == signal_health(GOOD[:200], RIGHT[:200])
    assert found["small", "flat"].reasons == ("every score is 1",)
    with pytest.raises(ConfigurationError, match="no graded answer"):
        check_signals(Columns.of([row.model_copy(update={"grade": None}) for row in rows]))


def test_an_answer_is_right_from_the_grade_that_the_report_says():
    """Three quarters right is right, here as there; and so a signal that ranks it above wrong ones can route."""
    rows = []
    for i in range(200):
        for name in ("small", "large"):
            score = {"s": RecordedScore(value=float(GOOD[i]))}
            grade, usage = 0.75 * float(RIGHT[i]), Usage(1, 1)
            rows.append(Row(question=f"q{i}", model=name, answer="x", grade=grade, scores=score, usage=usage))
    stages = [PolicyStage("small", {"s": 0.5}), PolicyStage("large")]
    (reported,) = [each for each in evaluate(gather(rows), stages).signals if each.model == "small"]
    found = check_signals(Columns.of(rows))["small", "s"]
    assert found == signal_health(GOOD[:200], RIGHT[:200])
    assert (found.auroc, found.can_route) == (reported.auroc, True)
    assert not reported.hint.startswith("this signal cannot route")


@pytest.mark.parametrize(("n", "shift"), [(60, 1.0), (200, 0.3), (40, 2.0), (30, 3.5)])
def test_the_bound_lies_above_the_truth_no_more_often_than_it_may(n: int, shift: float):
    """Of 1,000 samples at most a twentieth, plus two points that the approximation is granted for few answers.

    A bound of exactly that rate breaks this test with probability 1e-6 (binomial tail).
    """
    rng = np.random.default_rng(n)
    truth = norm.cdf(shift / np.sqrt(2))
    above = 0
    for _ in range(1000):
        right = np.arange(n) % 3 > 0
        low = auroc_lower_bound(right, rng.normal(size=n) + shift * right)
        above += low is not None and low > truth
    assert above <= binom.ppf(1 - 1e-6, 1000, 0.07)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_bound_is_below_the_area(rows: list[tuple[bool, int]]):
    """Ties and small samples included; and there is one where there is an area."""
    right, score = zip(*rows, strict=True)
    area, low = auroc(right, score), auroc_lower_bound(right, score)
    assert (area is None) == (low is None)
    assert area is None or low is None or 0 <= low <= area + 1e-12
