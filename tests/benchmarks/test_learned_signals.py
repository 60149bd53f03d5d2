"""The benchmark of signals that are learnt from texts: on a made-up data set, and what it costs."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("openai")


@pytest.fixture
def script(load_script) -> ModuleType:
    return load_script("learned_signals")


def test_its_tables_are_whole(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each model of a data set that is there, areas within their intervals, and a cost for each length."""
    (tmp_path / "ik_labels").mkdir()
    with gzip.open(tmp_path / "ik_labels" / "nq.jsonl.gz", "wt") as file:
        for i in range(60):
            known = int("bell" in (text := f"who made the {['bell', 'tower'][i % 2]} of {i}"))
            file.write(json.dumps({"text": text, "knows": {"one": known, "two": 1 - known}}) + "\n")

    script.main(data=tmp_path, draws=20, calls=2)
    told, cost = capsys.readouterr().out.split("\n\n", 1)

    *_, one, two = told.splitlines()
    assert one.startswith("| NQ, one | 60 | 50.0% | 1.00 (1.00–1.00) | – |")
    assert two.startswith("| NQ, two | 60 | 50.0% |")
    lines = [line for line in cost.splitlines() if " us " in line]
    assert [line.split("|")[2].strip() for line in lines][1:] == ["16", "1,000", "4,000"]
    assert all(float(ratio) >= 1 for line in lines for ratio in re.findall(r"×([\d.]+)", line))


def test_it_scores_what_was_recorded(script: ModuleType) -> None:
    """A recorded score is judged beside the learnt ones, on the same rows."""
    right = [i % 2 == 0 for i in range(60)]
    answers = ["sure" if each else "perhaps" for each in right]
    answered = script.Answered("set", [f"q {i}" for i in range(60)], right, answers, {"P(T)": list(map(float, right))})

    *_, scorer, recorded = (cell.strip() for cell in script.judged(answered, 20).strip("|").split("|"))

    assert scorer == "1.00 (1.00–1.00)"
    assert recorded == "P(T) 1.00 (1.00–1.00)"
