"""A table's answers keep their promise, exactly, and the oracle is asked no more than that takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.guarantee.table import answer_table, check_rate, planned_errors
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, nbinom


def world(rows: int, seed: int, bias: float = 0.0, noise: float = 1.0) -> tuple[Any, Any]:
    """Probabilities of two labels by a small model, and what the oracle says."""
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 2, rows)
    p = 1 / (1 + np.exp(-(lean + bias + noise * rng.normal(size=rows))))
    return np.column_stack([1 - p, p]), (rng.random(rows) < 1 / (1 + np.exp(-lean))).astype(int)


@pytest.mark.parametrize(("errors", "allowed", "confidence"), [(0, 0, 0.95), (3, 20, 0.95), (40, 2000, 0.9)])
def test_the_rate_is_the_one_at_which_the_promise_breaks_as_often_as_it_may(errors, allowed, confidence):
    rate = check_rate(errors, allowed, confidence)
    assert nbinom.cdf(errors, allowed + 1, 1 - rate) == pytest.approx(1 - confidence, abs=1e-9)


@pytest.mark.parametrize(
    ("bias", "noise", "useless"), [(0.0, 1.0, False), (-2.0, 1.0, False), (0.0, 0.2, False), (0.0, 1.0, True)]
)
def test_the_promise_is_kept(bias: float, noise: float, useless: bool):
    """A correct procedure breaks this with probability 1e-6; on a table of which nearly all could be kept, too."""
    table, oracle = world(1500, 1, bias, noise)
    if useless:  # a small model that is sure, and wrong as often as not
        oracle = np.random.default_rng(5).integers(0, 2, len(oracle))
    draws, broken = 150, 0
    for seed in range(draws):
        made = answer_table(table, oracle.__getitem__, max_disagreement=0.05, seed=seed)
        broken += int((made.answers != oracle).sum()) > 75
    assert broken <= binom.ppf(1 - 1e-6, draws, 0.05)


def test_it_is_broken_as_often_as_it_may_be():
    """The proof gives nothing away: where there are errors enough, 5 % of the draws break the promise."""
    table, oracle = world(600, 2)
    draws = 500
    broken = sum(
        int((made.answers != oracle).sum()) > made.allowed
        for made in (answer_table(table, oracle.__getitem__, max_disagreement=0.05, seed=seed) for seed in range(draws))
    )
    low, high = binom.ppf([1e-6, 1 - 1e-6], draws, 0.05)
    assert low <= broken <= high


@given(
    rows=st.integers(1, 120), labels=st.integers(2, 4), epsilon=st.sampled_from([0.0, 0.01, 0.1, 0.5]), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_what_is_asked_is_asked_once_and_answered_so(rows: int, labels: int, epsilon: float, data: Any):
    """Whatever table: every asked row has the oracle's answer, no row is asked twice, all others have a label."""
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    table, oracle = rng.dirichlet(np.ones(labels), rows).round(1).clip(0, 1), rng.integers(0, labels, rows)
    asked: list[int] = []

    def ask(chosen: Any) -> Any:
        asked.extend(chosen.tolist())
        return oracle[chosen]

    made = answer_table(table, ask, max_disagreement=epsilon, seed=seed)
    assert len(asked) == len(set(asked))
    assert sorted(asked) == np.flatnonzero(made.asked).tolist()
    assert (made.answers[made.asked] == oracle[made.asked]).all()
    assert ((made.answers >= 0) & (made.answers < labels)).all()
    assert made.share == len(asked) / rows
    kept = ~made.asked
    for label in range(labels):
        own = table[kept & (made.answers == label), label]
        assert not len(own) or own.min() >= made.cuts[label]


def test_a_biased_small_model_is_corrected():
    """One that says the first label too readily: rows are kept as the second although the first is more probable."""
    table, oracle = world(6000, 3, bias=-2.5, noise=0.2)
    made = answer_table(table, oracle.__getitem__, max_disagreement=0.08)
    assert made.cuts[1] < 0.5
    assert made.share < 0.6


def test_fewer_are_asked_the_more_may_disagree():
    table, oracle = world(4000, 4)
    shares = [answer_table(table, oracle.__getitem__, max_disagreement=each).share for each in (0.01, 0.03, 0.06, 0.1)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] > 0.2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"probabilities": [[0.1], [0.2]]}, "a column for each of two labels"),
        ({"probabilities": [[0.1, 1.2]]}, "from 0 to 1"),
        ({"max_disagreement": 1.0}, "max_disagreement"),
        ({"confidence": 1.0}, "confidence"),
        ({"ask": lambda rows: [2] * len(rows)}, "one index of a label, 0 to 1"),
        ({"ask": lambda rows: [0.5] * len(rows)}, "one index of a label, 0 to 1"),
        ({"ask": lambda rows: [0]}, "for each of the 2 rows"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], told: str):
    given = {"probabilities": [[0.1, 0.9], [0.4, 0.6]], "ask": lambda rows: [0] * len(rows), "max_disagreement": 0.05}
    given |= changes
    table, ask = given.pop("probabilities"), given.pop("ask")
    with pytest.raises(ConfigurationError, match=told):
        answer_table(table, ask, **given)


def test_more_errors_are_planned_where_more_rows_may_disagree():
    planned = [planned_errors(5000, each) for each in (0.001, 0.01, 0.03, 0.1)]
    assert planned[0] == 0
    assert planned == sorted(planned)
