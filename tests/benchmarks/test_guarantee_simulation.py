"""The promise is kept where the truth is known, and naive tuning breaks it; the planner finds simulation's numbers."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from confcascade.guarantee import Promise, examples_needed
from scipy.stats import binom

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("guarantee_simulation")
    monkeypatch.setattr(module, "REFERENCE", 20_000)
    for cached in (module.reference, module.truths):
        cached.cache_clear()
    return module


@pytest.mark.parametrize(("stages", "labels"), [(2, True), (3, False)])
def test_the_promise_is_kept(script, stages, labels):
    """Ordering, tests, certification and all; a correct procedure breaks this test with probability 1e-6."""
    draws = 80
    setting = script.Setting(0.05, stages, labels, 300)

    row, best = script.simulate(setting, draws), script.oracle(setting)

    assert row.violations <= binom.ppf(1 - 1e-6, draws, 0.05)
    assert row.violations < row.naive_violations
    assert row.naive_violations > binom.ppf(1 - 1e-6, draws, 0.05)  # the world is one in which it can be broken
    assert 0.5 * best.kept < row.kept < best.kept
    assert 0 < row.saved < best.saved


def test_the_worlds_truth_is_its_draws(script):
    """What a policy is said to lose, from probabilities, is the mean of what it loses on drawn answers."""
    drawn = script.reference(3)
    policies = script.policies(drawn.score)
    for labels in (True, False):
        stop, costs = script.play(policies[::40], drawn.score)
        means = script.losses(stop, drawn, labels).mean(axis=1)
        for policy, mean, cost in zip(policies[::40], means, costs, strict=True):
            known = script.truth(policy, 3, labels)
            assert known.loss == pytest.approx(mean, abs=0.01)
            assert known.saved == pytest.approx(1 - cost)


def test_the_planner_agrees_with_simulation(monkeypatch):
    """Within 15 %, for a promise on labels and one on agreement."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("planner_simulation")
    for drop, discordance, net_loss, test, same in (
        (0.05, 0.05, 0.0, "score", None),
        (0.05, 0.02, 0.02, "harms", script.SAME),
    ):
        planned = examples_needed(Promise(drop, equivalence=same), discordance=discordance, net_loss=net_loss)
        found = script.simulated(drop, discordance, net_loss, test, planned, draws=1_000)
        assert planned == pytest.approx(found, rel=0.15)
