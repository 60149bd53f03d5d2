"""The page on STEER says what the report says of the recorded answers, and a run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def stepwise(load_script):
    return load_script("stepwise")


def test_the_pages_table_is_that_of_the_recorded_answers(stepwise):
    found = stepwise.points(ROOT / "benchmarks" / "recordings" / "stepwise" / "qwen")
    lines = list(stepwise.table(found))
    page = (ROOT / "docs" / "papers" / "steer.md").read_text()
    shown = [line for line in page.partition("## On real models")[2].splitlines() if line.startswith("| ")]

    assert len(shown) == 13
    assert [line for line in shown if line not in lines] == []


def test_whole_answers_are_replayed_at_the_cost_of_both(stepwise):
    found = stepwise.points(ROOT / "benchmarks" / "recordings" / "stepwise" / "qwen")
    small, large = (next(each for each in found if each.method == name) for name in ("small", "large"))
    for point in (each for each in found if each.method == "query"):
        up = point.flops > small.flops
        assert point.flops == pytest.approx(small.flops + up * large.flops)
        assert (point.right == (up * large.right + ~up * small.right).astype(bool)).all()


def test_a_run_goes_on_where_it_was(stepwise, tmp_path):
    pair = stepwise.bundled(3, 1)
    signals, file = stepwise.watched_signals(), tmp_path / "small.jsonl"
    passing = {signal.name: max(stepwise.NOTHING, signal.space[0]) for signal in signals}
    stepwise.ask(file, pair, pair.test[:1], signals, passing)
    first = file.read_text()
    stepwise.ask(file, pair, pair.test, signals, passing)

    assert file.read_text().startswith(first)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["question"] for row in rows][:1] == ["0"]
    assert {row["question"] for row in rows} == {"0", "1", "2"}
    assert all(set(told) == set(passing) for row in rows for *_, told in row["steps"][:-1])
