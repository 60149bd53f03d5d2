"""The plots of the pages on thresholds: what they draw, on few questions and draws."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from confcascade.guarantee import Promise, examples_needed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """All three plots, as axes by file name, and their folder."""
    pytest.importorskip("matplotlib")
    folder, found = tmp_path_factory.mktemp("plots") / "new", []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        simulation = importlib.import_module("guarantee_simulation")
        patch.setattr(simulation, "REFERENCE", 20_000)
        simulation.reference.cache_clear()
        script = importlib.import_module("promise_plots")
        patch.setattr(script, "DRAWS", 12)
        patch.setattr(script, "QUESTIONS", 600)
        make = script.axes

        def axes(*args):
            figure, axis = make(*args)
            found.append(axis)
            return figure, axis

        patch.setattr(script, "axes", axes)
        script.main(folder)
        simulation.reference.cache_clear()
    return dict(zip(("choosing", "promised", "examples"), found, strict=True)), folder


def lines(axis):
    return {line.get_label(): np.array(line.get_xydata()) for line in axis.get_lines()}


def test_the_plots(drawn):
    """Three pictures; the bound is above what was seen, certified policies break the target more rarely than tuned
    ones, and the more models differ, the more examples it takes."""
    axes, folder = drawn
    for name in axes:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.stem for path in folder.iterdir()) == sorted(axes)

    known = lines(axes["choosing"])
    seen, bound = known["seen on 1,200 questions"], known["upper bound, 95 %, of each threshold"]
    assert (bound[:, 0] == seen[:, 0]).all()
    assert (bound[:, 1] > seen[:, 1]).all()
    assert np.abs(known["true"][:, 1] - seen[:, 1]).max() < 4

    naive, certified = (each.get_offsets() for each in axes["promised"].collections)
    broken, failed = (int((points[:, 1] > 2).sum()) for points in (naive, certified))
    told = [each.get_text() for each in axes["promised"].get_legend().get_texts()]
    assert told[0].endswith(f"{broken} of 12 break the target")
    assert told[1].endswith(f"{failed} of {len(certified)} do")
    assert len(naive) == 12
    assert broken > failed


def test_examples_are_the_planners(drawn):
    """Each point is all questions, of which 40 % prove: those that the page's table names among them."""
    needed = lines(drawn[0]["examples"])
    for label, discordance in (("0 %", 0.0), ("0.5 %", 0.005), ("2 %", 0.02), ("5 %", 0.05)):
        (at,) = np.flatnonzero(needed[label][:, 0] == 2)
        assert needed[label][at, 1] == examples_needed(Promise(0.02), discordance=discordance)
        assert (np.diff(needed[label][:, 1]) < 0).all()
    rows = [line for line in (ROOT / "docs" / "how-many-examples.md").read_text().splitlines() if line[:4] == "| 2 "]
    (table,) = [[int(cell.replace(",", "")) for cell in row.strip("|").split("|")[1:]] for row in rows]
    told = [each[each[:, 0] == 2][0, 1] for each in needed.values()]
    assert table == pytest.approx(told, abs=10)
