"""Bets that may be looked at after every question: never favoured by chance, the same however losses come in."""

import itertools
import math

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.guarantee import sequential_bets
from confcascade.guarantee.sequential_bets import Bets
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

LOSSES = st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=80)


@pytest.mark.parametrize("harm", [0.2, 0.35])
def test_at_the_target_the_expected_capital_stays_one(monkeypatch, harm):
    """All ways in which eight questions can go, weighed by their chances: the stakes are changed three times."""
    monkeypatch.setattr(sequential_bets, "_EVERY", 2)
    drop, chances = 0.2, {1.0: harm, -1.0: harm - 0.2, 0.0: 1.2 - 2 * harm}
    ways = list(itertools.product(chances, repeat=8))
    weights = np.array([math.prod(chances[loss] for loss in way) for way in ways])
    bets = Bets(np.full(len(ways), 0.3), questions=8, drop=drop, delta=0.05)
    capital = np.exp(bets.take(np.array(ways)))

    assert weights.sum() == pytest.approx(1)
    assert weights @ capital == pytest.approx(np.ones(8))
    assert len(bets.stakes) == 4
    assert len(np.unique(bets.stakes[-1])) > 3  # they hang on what was seen


@pytest.mark.parametrize(("harm", "benefit", "spread"), [(0.05, 0.0, 0.05), (0.09, 0.04, 0.02), (0.2, 0.15, 1.0)])
def test_what_breaks_the_target_is_seldom_certified(harm, benefit, spread):
    """At the target itself, whatever spread was guessed; 2,000 samples, all their questions looked at."""
    draws, rng = 2000, np.random.default_rng(5)
    told = rng.choice([1.0, -1.0, 0.0], p=[harm, benefit, 1 - harm - benefit], size=(draws, 600))
    bets = Bets(np.full(draws, spread), questions=600, drop=0.05, delta=0.05)
    won = (bets.take(told) >= bets.goal).any(axis=1).sum()

    assert won <= binom.ppf(0.999, draws, 0.05)


@given(LOSSES, st.data())
def test_losses_may_come_in_any_pieces(losses, data):
    """One at a time, all at once, or anything between: the same capital and the same stakes."""
    values = np.array([losses])
    whole = Bets([0.1], questions=100, drop=0.1, delta=0.05)
    told = whole.take(values)
    pieces, parts, at = Bets([0.1], questions=100, drop=0.1, delta=0.05), [], 0
    while at < len(losses):
        more = data.draw(st.integers(1, len(losses) - at))
        parts.append(pieces.take(values[:, at : at + more]))
        at += more

    assert np.concatenate(parts, axis=1) == pytest.approx(told)
    assert np.array(pieces.stakes) == pytest.approx(np.array(whole.stakes))


@given(LOSSES)
def test_the_bound_is_where_the_goal_is_just_reached(losses):
    """The product of the same stakes against the bound reaches the goal, and against less it does not."""
    values = np.array(losses * 4)
    bets = Bets([0.2], questions=400, drop=0.3, delta=0.05)
    bets.take(values[None])
    bound = bets.bound(values, tolerance=1e-6)
    stakes = np.repeat([each[0] for each in bets.stakes], 16)[: len(values)]

    def reached(mean):
        ahead = 1 + stakes * (mean - values)
        return bool((ahead > 0).all()) and np.cumsum(np.log(ahead)).max() >= bets.goal

    assert bound == 1 or reached(bound)
    assert not reached(bound - 2e-6)


def test_a_policy_that_never_loses_takes_little_more_than_the_least():
    """(1 - drop)^n <= delta is the least that any test takes; the bets take at most a third more."""
    for drop in (0.01, 0.05):
        least = math.log(0.05) / math.log1p(-drop)
        n = math.ceil(1.34 * least)
        bets = Bets([0.5 / n], questions=n, drop=drop, delta=0.05)
        assert (bets.take(np.zeros((1, n))) >= bets.goal).any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"drop": 0.0}, "between 0 and 1"),
        ({"delta": 1.0}, "between 0 and 1"),
        ({"spread": [0.0]}, "a share above 0"),
        ({"spread": 0.1}, "for each policy"),
        ({"questions": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_bet_on_is_refused(change, told):
    given = {"spread": [0.1], "questions": 10, "drop": 0.1, "delta": 0.05} | change
    with pytest.raises(ConfigurationError, match=told):
        Bets(**given)
