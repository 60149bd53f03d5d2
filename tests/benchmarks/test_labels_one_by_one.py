"""The benchmark walks as the library buys, and its tables count what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from confcascade.bench.labelling import Aim, Journal, Label, buy
from confcascade.guarantee import Promise


@pytest.fixture
def script(load_script: Any) -> Any:
    return load_script("labels_one_by_one")


@pytest.fixture
def world(script: Any) -> Any:
    """Five thresholds, of which the last loses too much."""
    rng = np.random.default_rng(1)
    score = rng.random(4000)
    loss = rng.choice([1.0, -1.0, 0.0], p=[0.5, 0.3, 0.2], size=4000)
    needs = rng.random(4000) < 0.4 * (1 - score)
    cuts = np.array([0.9, 0.8, 0.7, 0.6, 0.2])
    kept = score >= cuts[:, None]
    lost = kept * loss * needs
    return script.World(
        score,
        loss,
        needs,
        cuts,
        lost.mean(axis=1),
        kept.mean(axis=1) - script.COST,
        np.abs(lost).mean(axis=1),
        (kept & needs).mean(axis=1),
    )


class Task:
    """What `buy` needs of a `LabelTask`, made of a drawn recording."""

    def __init__(self, world: Any, rows: Any, spread: Any) -> None:
        self.open = (world.score[rows] >= world.cuts[:, None]) & world.needs[rows]
        self.lost = np.where(self.open, world.loss[rows], 0.0)
        self.largest = "large"
        self.spread, self.saved, self.policies = spread, world.saved, tuple(world.cuts)
        self.material = self
        self.columns = self
        self.questions = tuple(map(str, range(len(rows))))

    def losses(self) -> Any:
        return np.where(self.open, np.nan, 0.0)

    def losses_of(self, place: int, grades: Any) -> Any:
        return self.lost[:, place]

    def wanted(self, place: int) -> Any:
        return type("Wanted", (), {"place": place, "question": str(place)})

    def repeats(self, place: int) -> tuple[int, ...]:
        return (place,)


class Source:
    batch = 1

    def ask(self, wanted: Any) -> list[Label]:
        return [Label(wanted[0], {"large": 1.0})]


def test_it_walks_as_labels_are_bought(script: Any, world: Any, tmp_path: Any) -> None:
    """Policies, depths and labels of each recording, where it stops by itself."""
    n, draws, drop = 400, 6, 0.05
    found = script.walks(world, n, draws, drop)
    rng = np.random.default_rng(n)
    rows = rng.integers(len(world.score), size=(draws, n))
    aside = round(n / 9)
    spread = np.array([(rng.binomial(aside, share, size=draws) + 1) / (aside + 2) for share in world.open])
    for draw in range(draws):
        task: Any = Task(world, rows[draw], spread[:, draw])
        journal = Journal(tmp_path / f"{draw}.labels.jsonl", {})
        state = buy(task, Promise(drop), journal, Source(), aim=Aim())
        assert state.path.certified == found.stopped[draw]
        for i in range(state.path.certified):
            assert state.path.examined(i, cost=0).n == found.depth[draw, i]
        if state.ended == "enough":
            assert state.labels == pytest.approx(found.spent[draw], abs=1)
        else:
            assert state.labels <= found.spent[draw]


def test_what_breaks_the_target_is_counted(script: Any, world: Any) -> None:
    """By true loss; the saving is that of the best certified."""
    saved, broken, nothing = script.gained(world, np.array([0, 2, 5]), float(world.risk[3]) + 1e-9)
    assert broken == 1
    assert nothing == pytest.approx(1 / 3)
    assert saved == pytest.approx((0 + world.saved[1] + world.saved[4]) / 3)


def test_tables_are_put_in_their_places(script: Any, world: Any) -> None:
    """What stood there before is gone; what has no place is an error."""
    made = script.tables(world, world, 4)
    page = "# A\n" + "".join(f"<!-- {name} -->\nSTALE\n<!-- end -->\nb\n" for name in made)
    once = script.written(page, made)
    assert "STALE" not in once
    assert once.count("\nb\n") == len(made)
    assert script.written(once, made) == once
    assert all(line in once for lines in made.values() for line in lines)
    with pytest.raises(SystemExit, match="no place for 'what'"):
        script.written("# A", made)
