"""The promise over a grid is kept where the truth is known, and choosing in hindsight breaks it."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binom


@pytest.mark.parametrize("labels", [True, False])
def test_the_promise_is_kept(labels: bool, load_script: Any) -> None:
    """Where every configuration loses the target exactly; a correct procedure breaks this with probability 1e-6."""
    script, draws = load_script("grid_certificate"), 60
    row = script.simulate(script.World("all lose exactly the target", 300, labels), draws)

    assert row.any_violations <= binom.ppf(1 - 1e-6, draws, 0.05)
    assert row.naive_violations > binom.ppf(1 - 1e-6, draws, 0.05)


@pytest.mark.parametrize("labels", [True, False])
def test_the_worlds_truth_is_its_draws(labels: bool, load_script: Any) -> None:
    """What a configuration is said to lose is the mean of what it loses on drawn answers."""
    import numpy as np

    script = load_script("grid_certificate")
    world = script.World("losses grow", 1000, labels)
    right, same = script.draw(world, 200_000, np.random.default_rng(0))
    lost = right[0].mean() - right[1:].mean(axis=1) if labels else 1 - same[1:].mean(axis=1)

    assert lost == pytest.approx(world.losses, abs=0.003)
