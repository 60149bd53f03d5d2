"""The test that may be looked at for ever: an e-process in the exact sense, and quick to see a change."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.audit.sequential import SequentialTest, rate_interval, stakes, waiting
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

BOUNDS = st.floats(0.001, 0.9)


def evidence(losses, bound, lowest=0.0):
    test = SequentialTest(bound, lowest=lowest)
    for loss in losses:
        test.observe(loss)
    return test.log_e


@given(BOUNDS, st.floats(0, 1))
def test_expected_evidence_is_at_most_one(bound, part):
    """Over all sequences of six losses with a mean at the bound it is 1 exactly, below the bound less."""
    at_bound = below = 0.0
    for losses in itertools.product((0, 1), repeat=6):
        e = math.exp(evidence(losses, bound))
        lost, kept = sum(losses), 6 - sum(losses)
        at_bound += bound**lost * (1 - bound) ** kept * e
        below += (part * bound) ** lost * (1 - part * bound) ** kept * e
    assert at_bound == pytest.approx(1.0)
    assert below <= 1 + 1e-9


@given(st.floats(0.001, 0.3), st.floats(0, 0.3))
def test_expected_evidence_where_answers_are_gained_too(bound, gained):
    """With losses of 1, 0 and -1 whose mean is the bound, it is 1 exactly, and no wealth is ever negative."""
    chance = {1: bound + gained, -1: gained, 0: 1 - bound - 2 * gained}
    total = sum(
        math.prod(chance[loss] for loss in losses) * math.exp(evidence(losses, bound, -1.0))
        for losses in itertools.product(chance, repeat=4)
    )
    assert total == pytest.approx(1.0)


@given(BOUNDS, st.lists(st.sampled_from((0, 1)), max_size=30))
def test_it_is_the_sum_over_times_to_begin_and_stakes(bound, losses):
    """As the definition has it, with a product for each beginning; the part that has not begun is worth itself."""
    total = waiting(len(losses))
    for begin in range(len(losses)):
        weight = waiting(begin) - waiting(begin + 1)
        for stake in stakes(bound):
            total += weight / 4 * math.prod(1 + stake * (loss - bound) for loss in losses[begin:])
    assert evidence(losses, bound) == pytest.approx(math.log(total), abs=1e-9)


@given(BOUNDS, st.lists(st.sampled_from((0, 1)), max_size=20), st.lists(st.sampled_from((0, 1)), max_size=20))
def test_it_goes_on_where_it_was_left(bound, before, after):
    """Its state is a count and four numbers."""
    first = SequentialTest(bound)
    for loss in before:
        first.observe(loss)
    second = SequentialTest(bound, n=first.n, log_wealth=first.log_wealth)
    for loss in after:
        second.observe(loss)
    assert second.log_e == evidence([*before, *after], bound)


def test_each_stake_is_a_likelihood_ratio():
    """Of a rate whose odds have grown 1.5 to 8 times."""
    for odds, stake in zip((1.5, 2.5, 4, 8), stakes(0.02), strict=True):
        risen = odds * 0.02 / 0.98 / (1 + odds * 0.02 / 0.98)
        assert 1 + stake * (1 - 0.02) == pytest.approx(risen / 0.02)
        assert 1 + stake * (0 - 0.02) == pytest.approx((1 - risen) / 0.98)


def test_a_quiet_time_is_not_held_against_a_change():
    """After 10,000 quiet queries a rate of 10% where 2% are promised still takes fewer than 300 to be seen."""
    losses = np.random.default_rng(0).random(11_000) < np.where(np.arange(11_000) < 10_000, 0.01, 0.1)
    test, alarm = SequentialTest(0.02), None
    for i, loss in enumerate(losses):
        test.observe(int(loss))
        if alarm is None and test.log_e >= math.log(20):
            alarm = i
    assert alarm is not None
    assert 10_000 <= alarm < 10_300


def test_interval_holds_at_all_times_at_once():
    """It misses the rate, ever within 1,000 observations, in at most a share alpha of streams.

    A correct interval breaks this test with probability 1e-6 (binomial tail over the streams).
    """
    rate, alpha, streams = 0.03, 0.1, 300
    events = np.random.default_rng(0).random((streams, 1000)) < rate
    looks = [10, 20, 50, 100, 200, 300, 500, 700, 1000]
    missed = 0
    for stream in np.cumsum(events, axis=1):
        ends = [rate_interval(int(stream[n - 1]), n, alpha) for n in looks]
        missed += any(not low <= rate <= high for low, high in ends)
    assert missed <= binom.ppf(1 - 1e-6, streams, alpha)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.01, 0.5))
def test_interval_ends_where_the_mixture_wins_enough(events, others, alpha):
    """It holds the estimate; at its ends the mixture's likelihood is 1/alpha times that of the rate."""
    n = events + others
    low, high = rate_interval(events, n, alpha)
    assert 0 <= low <= (events / n if n else 0) <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            beta = math.lgamma(events + 0.5) + math.lgamma(others + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
            ratio = beta - events * math.log(end) - others * math.log1p(-end)
            assert ratio == pytest.approx(math.log(1 / alpha), abs=1e-6)


def test_what_cannot_be():
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        SequentialTest(0.0)
    with pytest.raises(ValueError, match="between 0 and n"):
        rate_interval(3, 2)
    with pytest.raises(ValueError, match="alpha"):
        rate_interval(1, 2, 0.0)
