"""The public benchmark is read as it was published, and hindsight is the best there is."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_hindsight_is_the_best_two_cuts(load_script: Any) -> None:
    """Against all pairs of cuts, one by one."""
    script, rng = load_script("streaming_cascades"), np.random.default_rng(0)
    p = rng.permutation(np.linspace(0.01, 0.99, 40))  # no ties
    oracle = rng.random(40) < p
    table = script.Table("made", p, oracle)
    cuts = [0.0, *np.sort(p), 1.0]
    for wrong in range(12):
        best = 1.0
        for low, high in product(cuts, cuts):
            no, yes = p <= low, p >= high
            if low < high and (oracle[no].sum() + (~oracle[yes]).sum()) <= wrong:
                best = min(best, 1 - (no.sum() + yes.sum()) / 40)
        assert table.hindsight(wrong) == pytest.approx(best)


def test_the_promise_is_kept_on_a_published_set(load_script: Any) -> None:
    """A few draws, which a correct procedure breaks with a probability of 1e-6 at most."""
    script = load_script("streaming_cascades")
    if not (script.HERE / "MMLU_5K.csv.gz").exists():
        pytest.skip("the sets are not part of the source distribution")
    table = script.read(script.HERE, "MMLU_5K")
    point = script.play(table, 0.04, range(20))

    assert len(table.p) == 5000
    assert point.broken <= 9
    assert script.verdict(table, script.HERE, {0.04: point}).startswith("MMLU_5K: ε = 0.04")
    assert 0.95 < point.accuracy < 1
    assert table.hindsight((1 - point.accuracy) * 5000) < point.share < 0.75


def test_a_folder_without_the_sets_is_told(load_script: Any, tmp_path: Path) -> None:
    script = load_script("streaming_cascades")
    with pytest.raises(Exception, match="has no file SST2_68221"):
        script.read(tmp_path, "SST2")
