"""Metrics are the libraries', or their own definition written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from confcascade.bench.metrics.ranking import (
    aurc,
    auroc,
    auroc_interval,
    brier,
    calibration_error,
    drop_points,
    drop_relative,
    excess_aurc,
    hallucination_rate,
    macro_scores,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score

answers = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.51, 0.9, 1.0])), min_size=1, max_size=40)


def arrays(pairs):
    return np.array([right for right, _ in pairs]), np.array([score for _, score in pairs])


def test_drops_are_in_points_and_in_percent():
    """The paper's 8B -> 70B: -0.35 points in Table 1 and -0.42 % in Table 15 are the same run."""
    assert drop_points(0.8322, 0.8357) == pytest.approx(-0.35)
    assert drop_relative(0.8322, 0.8357) == pytest.approx(-0.42, abs=0.005)


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABCD")), min_size=1))
def test_macro_scores_are_scikit_learns(pairs):
    """Means over labels, those that are only predicted included."""
    predicted, reference = zip(*pairs, strict=True)
    options = {"average": "macro", "zero_division": 0}
    assert macro_scores(predicted, reference) == pytest.approx(
        [score(reference, predicted, **options) for score in (precision_score, recall_score, f1_score)]
    )


def test_not_knowing_is_no_hallucination():
    """Of four answers one is right, one refuses, one is wrong and one half right."""
    assert hallucination_rate([1, 0, 0, 0.5], [False, True, False, False]) == pytest.approx(1.5 / 4)


def test_auroc_of_one_class_is_unknown():
    """Without right and wrong answers there is no AUROC, and none is invented."""
    assert auroc(np.array([True, True]), np.array([0.1, 0.2])) is None
    assert auroc(np.array([True, False]), np.array([0.2, 0.1])) == 1.0
    assert auroc([1, 0, 0], [0.2, 0.2, 0.1]) == pytest.approx(0.75)


def test_the_interval_of_auroc_holds_the_true_value():
    """Of 400 samples of 60 answers, about 95 % of the intervals hold the area of two normal distributions.

    A correct 95 % interval fails in more than 37 with probability 1e-4; the method is a little conservative.
    """
    rng, true, missed = np.random.default_rng(0), norm.cdf(1 / math.sqrt(2)), 0
    for _ in range(400):
        right = rng.random(60) < 0.6
        low, high = auroc_interval(right, rng.normal(size=60) + right)
        missed += not low < true < high
    assert missed <= 37


def test_the_interval_of_auroc_at_its_ends():
    """A perfect order of few answers is no certainty; one class alone has no interval."""
    right = np.array([False] * 5 + [True] * 5)
    low, high = auroc_interval(right, np.arange(10))
    assert 0.5 < low < 0.9
    assert high == 1
    assert auroc_interval(right, -np.arange(10)) == pytest.approx((0, 1 - low))
    assert auroc_interval([True, True], [1, 2]) is None


def test_the_interval_of_auroc_knows_groups():
    """Answers that come in fives, all alike, tell no more than one of each: the interval is about as wide."""
    rng = np.random.default_rng(1)
    right = rng.random(80) < 0.5
    score = rng.normal(size=80) + right
    one = auroc_interval(right, score)
    fives = auroc_interval(np.repeat(right, 5), np.repeat(score, 5))
    grouped = auroc_interval(np.repeat(right, 5), np.repeat(score, 5), groups=[str(i // 5) for i in range(400)])
    assert fives[1] - fives[0] < 0.6 * (one[1] - one[0])
    assert grouped[1] - grouped[0] == pytest.approx(one[1] - one[0], rel=0.15)
    alone = auroc_interval(right, score, groups=[str(i) for i in range(80)])
    assert alone == one


@given(answers)
def test_aurc_is_the_mean_over_random_orders_of_ties(pairs):
    """Breaking ties by chance gives, on average over every rotation of each tie's members, the same area."""
    right, score = arrays(pairs)
    order = np.argsort(-score, kind="stable")
    risk = []
    for k in range(1, len(right) + 1):
        least = score[order[k - 1]]
        above, tied = score > least, score == least
        share = (k - above.sum()) / tied.sum()
        risk.append(((~right[above]).sum() + share * (~right[tied]).sum()) / k)
    assert aurc(right, score) == pytest.approx(np.mean(risk))


def test_a_perfect_order_has_no_excess():
    """Of a perfect order it vanishes with many answers; of a useless one it is -(1 - r) ln(1 - r)."""
    n, r = 100_000, 0.3
    right = np.arange(n) >= r * n
    assert excess_aurc(right, np.arange(n)) == pytest.approx(0, abs=1e-4)
    assert excess_aurc(right, np.zeros(n)) == pytest.approx(-(1 - r) * math.log(1 - r), abs=1e-4)
    assert excess_aurc([False, False], [0.1, 0.2]) == 0


@given(answers)
def test_brier_is_scikit_learns(pairs):
    """The mean squared error of a probability."""
    right, score = arrays(pairs)
    assert brier(right, score) == pytest.approx(brier_score_loss(right, score, pos_label=True))


def test_calibration_error_by_hand():
    """Two bins of two: |1/2 - 0.15| and |1 - 0.85|, of equal weight."""
    assert calibration_error([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], bins=2) == pytest.approx((0.35 + 0.15) / 2)


def test_calibrated_confidence_has_little_error():
    """Right with the probability that it names: the error is that of chance, fifteen bins of 2,000 (fixed seed)."""
    rng = np.random.default_rng(0)
    p = rng.random(30_000)
    assert calibration_error(rng.random(30_000) < p, p) < 0.015
    assert calibration_error(rng.random(30_000) < p, 1 - p) > 0.4


@given(answers, st.randoms())
def test_calibration_error_does_not_depend_on_order(pairs, random):
    """Neither does the order of equal confidences decide into which bin a right answer falls."""
    mixed = list(pairs)
    random.shuffle(mixed)
    assert calibration_error(*arrays(pairs)) == pytest.approx(calibration_error(*arrays(mixed)))


@pytest.mark.parametrize(
    ("right", "score", "message"),
    [([1, 0], [0.5], "same length"), ([], [], "same length"), ([1], [math.nan], "finite"), ([1], [1.2], r"\[0, 1\]")],
)
def test_what_cannot_be_measured_is_refused(right, score, message):
    """Missing scores and scores that are no probabilities are not made up for."""
    with pytest.raises(ValueError, match=message):
        brier(right, score)


def test_bins_must_be_some():
    with pytest.raises(ValueError, match="`bins`"):
        calibration_error([1], [0.5], bins=0)
