"""Promises other than accuracy are kept where the truth is known, and naive tuning breaks them."""

from __future__ import annotations

import pytest
from scipy.stats import binom

DRAWS = 40


@pytest.fixture
def script(load_script, monkeypatch):
    module = load_script("targets_simulation")
    monkeypatch.setattr(module, "WORLD", 4000)
    return module


def test_promises_are_kept(script):
    """A correct procedure breaks this test with probability 1e-5."""
    population = script.world()
    naive = 0
    for setting in script.settings(population):
        if not setting.words.startswith(("f1", "recall of each", "mean cost", "drop ≤ 2 and", "late")):
            continue
        row, best = script.simulate(population, setting, DRAWS), script.hindsight(population, setting.wanted)
        assert row.violations <= binom.ppf(1 - 1e-6, DRAWS, 0.05), setting.words
        assert row.nothing < DRAWS / 2, setting.words
        assert best is not None
        assert row.goal > best if setting.wanted.goal == "loss" else 0 < row.goal < best
        naive += row.naive_violations
    assert naive > 5 * DRAWS * 0.15  # the world is one in which they can be broken


def test_parts_are_what_is_taken(script):
    import numpy as np

    population = script.world()
    drawn = np.random.default_rng(0).integers(population.questions, size=60)
    every = population.played.take(population.candidates, drawn)
    direct = population.played.take(population.candidates, drawn[20:])
    part = script.part(every, slice(20, None))
    for name in ("asked", "cost", "largest_cost", "grade", "largest_grade", "seconds", "answers", "references"):
        assert (getattr(part, name) == getattr(direct, name)).all()
    assert (part.tops["others"] == direct.tops["others"]).all()


def test_the_goal_of_hindsight_is_a_maximum_over_policies_that_hold(script):
    population = script.world()
    for setting in script.settings(population):
        kept, reached = script.keeping(population, setting.wanted), script.goals(population, setting.wanted)[:-1]
        best = script.hindsight(population, setting.wanted)
        if setting.wanted.goal == "loss":
            assert all(value >= best for value, holds in zip(reached, kept, strict=True) if holds)
        else:
            assert all(value <= best for value, holds in zip(reached, kept, strict=True) if holds)
