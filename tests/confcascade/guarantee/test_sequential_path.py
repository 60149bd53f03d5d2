"""Policies certified from labels that come one by one, the safest first."""

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.guarantee import SequentialPath
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

DROP, DELTA = 0.1, 0.05


def world(seed, n=300, policies=4, first=0.2, step=0.1, harm=0.4):
    """Nested policies, of which each keeps more; a kept answer differs from the largest's with probability 0.3."""
    rng = np.random.default_rng(seed)
    rank = rng.random(n)
    needs = (rank < first + step * np.arange(policies)[:, None]) & (rng.random(n) < 0.3)
    told = rng.choice([1.0, -1.0, 0.0], p=[harm, 0.2, 0.8 - harm], size=n)
    return np.where(needs, np.nan, 0.0), np.broadcast_to(told, needs.shape)


def path_of(losses, **changes):
    return SequentialPath(losses, **({"drop": DROP, "delta": DELTA, "spread": [0.1] * len(losses)} | changes))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_what_is_certified_does_not_hang_on_the_order_of_labels(seed, random):
    """All labels in any order, or known from the start: the same policies, at the same depth."""
    losses, told = world(seed)
    one, all_known = path_of(losses), path_of(np.where(np.isnan(losses), told, losses))
    places = np.flatnonzero(np.isnan(losses).any(axis=0)).tolist()
    random.shuffle(places)
    for place in places:
        one.learn(place, told[:, place])
        assert one.certified <= all_known.certified

    assert one.certified == all_known.certified
    assert one.labels == len(places)
    for i in range(len(losses)):
        ours, theirs = one.examined(i, cost=1.0), all_known.examined(i, cost=1.0)
        assert (ours.n, ours.harms, ours.benefits) == (theirs.n, theirs.harms, theirs.benefits)
        assert ours.bound == pytest.approx(theirs.bound)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_buying_what_is_wanted_comes_to_the_same_as_buying_all(seed):
    """And takes no label that the policies up to the first uncertified one do without."""
    losses, told = world(seed)
    some = path_of(losses)
    while places := some.wanted():
        some.learn(places[0], told[:, places[0]])
    all_known = path_of(np.where(np.isnan(losses), told, losses))

    assert some.certified == all_known.certified
    reached = min(some.certified, len(losses) - 1)
    assert some.labels <= np.isnan(losses[: reached + 1]).any(axis=0).sum()


def test_a_policy_counts_only_if_all_before_it_do():
    """The second never loses; the first loses always: nothing is certified, and the first one's labels are wanted."""
    losses = np.zeros((2, 200))
    losses[0, :20] = 1.0
    losses[0, 30] = np.nan
    path = path_of(losses)

    assert path.examined(1, cost=1.0).bound <= DROP
    assert not path.examined(1, cost=1.0).certified
    assert path.certified == 0
    assert path.wanted(5) == (30,)


def test_nothing_is_read_beyond_a_question_that_is_not_known():
    """Else a label would be left out for what it is."""
    losses = np.zeros((1, 400))
    losses[0, 7] = np.nan
    path = path_of(losses)

    assert path.certified == 0
    assert path.examined(0, cost=1.0).n == 7
    assert path.attainable(0)
    assert path.outlook(0) == 1
    path.learn(7, [0.0])
    assert path.certified == 1
    assert path.examined(0, cost=1.0).labels == 1


def test_a_false_policy_is_seldom_certified_however_labels_are_bought():
    """Third of four, at the target; labels are bought as wanted, and one looks after each."""
    draws, false = 300, 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        n, shares = 400, np.array([0.1, 0.2, 0.25, 0.5])[:, None]
        rank, lost = rng.random(n), rng.random(n) < 0.4  # of the third: 0.25 * 0.4 is the target
        needs = rank < shares
        path = path_of(np.where(needs, np.nan, 0.0))
        while path.certified < 3 and (places := path.wanted()):
            path.learn(places[0], np.where(needs[:, places[0]], float(lost[places[0]]), 0.0))
        false += path.certified > 2

    assert false <= binom.ppf(0.999, draws, DELTA)


def test_it_says_when_nothing_can_help():
    """After so many losses that the questions left would not do; but gains to come might."""
    losses = np.zeros((1, 60))
    losses[0, :10], losses[0, 40] = 1.0, np.nan
    path = path_of(losses)
    assert not path.attainable(0)
    assert path.outlook(0) is None
    losses[0, 20:] = np.nan
    assert path_of(losses).attainable(0)


def test_what_cannot_be_is_refused():
    losses = np.array([[np.nan, 0.0]])
    with pytest.raises(ConfigurationError, match="one number a policy"):
        path_of(losses, spread=[0.1, 0.2])
    with pytest.raises(ConfigurationError, match="shape"):
        path_of(losses[0])
    with pytest.raises(ConfigurationError, match=r"\[-1, 1\]"):
        path_of(losses + 3)
    path = path_of(losses)
    with pytest.raises(ConfigurationError, match="needs no label"):
        path.learn(1, [0.0])
    with pytest.raises(ConfigurationError, match="of every policy"):
        path.learn(0, [np.nan])
