"""A fitted policy beside 0.9 / 0.9: the whole comparison, on few questions."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

import pytest
from confcascade.bench.fitting import material_of
from confcascade.bench.recording import read_rows
from confcascade.bench.replay import PolicyStage

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fit_bundled.py"
FEW = 12  # questions of a task


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fit_bundled", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_bundled"] = module
    spec.loader.exec_module(module)
    module.DROPS = (0.01, 0.3)  # so few questions can prove nothing finer
    yield module
    del sys.modules["fit_bundled"]


@pytest.fixture(scope="module")
def ran(script, tmp_path_factory):
    """The folder of the recordings, and what was printed."""
    folder, out = tmp_path_factory.mktemp("recordings"), io.StringIO()
    with contextlib.redirect_stdout(out):
        script.main(per_task=FEW, folder=folder)
    return folder, out.getvalue()


def cells(printed, start):
    """Of the table whose first heading starts so, without headings."""
    lines = printed.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {start}"))
    found = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def counted(rows, chain):
    """Points lost by P(IK) and P(T) >= 0.9 against the large model, counted question by question."""
    by_model = {}
    for row in rows:
        by_model.setdefault(row.model, {})[row.question] = row
    lost = 0.0
    for question, largest in by_model["large"].items():
        for model in chain:
            row = by_model[model][question]
            if model == chain[-1] or all(row.scores[name].value >= 0.9 for name in ("p_ik", "p_t")):
                break
        lost += largest.grade - row.grade
    return 100 * lost / len(by_model["large"])


def test_every_model_is_asked_every_question_once(script, ran):
    """None is both fitted on and tested on; a second run takes the rows that are kept."""
    folder, printed = ran
    prompts = {}
    for split in ("calibration", "test"):
        rows = list(read_rows(folder / f"{split}.jsonl"))
        prompts[split] = {row.prompt for row in rows}
        assert sorted((row.prompt, row.model) for row in rows) == sorted(
            (prompt, model) for prompt in prompts[split] for model in script.SIZES
        )
        kept = (folder / f"{split}.jsonl").read_bytes()
        assert len(script.collected(folder, split, FEW)) == len(rows)
        assert (folder / f"{split}.jsonl").read_bytes() == kept
    assert not prompts["calibration"] & prompts["test"]
    assert printed.startswith(f"{len(prompts['calibration'])} questions to fit on, {len(prompts['test'])} to test on")


def test_the_usual_thresholds_lose_what_is_counted(script, ran):
    folder, printed = ran
    rows = list(read_rows(folder / "test.jsonl"))
    table = cells(printed, "policy")
    assert [row[0] for row in table] == [
        f"0.9 / 0.9, {chain}"
        for chain in ("small → medium", "small → large", "medium → large", "small → medium → large")
    ]
    for name, drop, *_ in table:
        chain = name.removeprefix("0.9 / 0.9, ").split(" → ")
        assert float(drop) == pytest.approx(counted(rows, chain), abs=0.006)


def test_what_is_fitted_loses_no_more_where_both_could_look(script, ran):
    """The cheapest of those that do not; none if all lose more."""
    sizes = {size: script.bundled_model(size).architecture for size in script.SIZES}
    seen = material_of(read_rows(ran[0] / "calibration.jsonl"), models=script.SIZES, architectures=sizes)
    bill = script.Costing.of(seen.columns, script.SIZES, sizes)
    gate = [PolicyStage("small", {"p_ik": 0.9, "p_t": 0.9}), PolicyStage("large")]
    lost, _ = script.measured(seen, gate, bill)
    known = [(lost + 0.1, 0.9, "loses more"), (lost, 0.4, "cheapest"), (lost - 1, 0.3, "dearer")]

    assert script.at_equal_accuracy(seen, gate, known, bill) == "cheapest"
    assert script.at_equal_accuracy(seen, gate, known[:1], bill) is None
    assert script.measured(seen, [PolicyStage("large")], bill) == (0, 0)


def test_what_is_promised_is_told_with_what_came_of_it(ran):
    finer, coarser = cells(ran[1], "promised, points")

    assert finer[0] == "1"
    assert finer[1].endswith("takes 299 to promise 1.00% with 0.95 confidence")
    assert coarser[0] == "30"
    assert float(coarser[2]) <= 30
    assert 0 < float(coarser[3].removesuffix("%")) < 100
