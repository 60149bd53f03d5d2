"""The benchmark of stated confidences as they come: its questions, and its table."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("openai")

from confcascade.testing import Reply, ScriptedModel


@pytest.fixture
def script(load_script) -> ModuleType:
    return load_script("stated_confidence")


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("hard", [False, True])
def test_sums_are_right_and_none_comes_twice(script: ModuleType, tmp_path: Path, hard: bool) -> None:
    script.sums(tmp_path / "a.jsonl", questions=150, hard=hard)
    script.sums(tmp_path / "b.jsonl", questions=150, seed=1, hard=hard, without=tmp_path / "a.jsonl")
    rows = _read(tmp_path / "a.jsonl") + _read(tmp_path / "b.jsonl")

    assert len({row["question"] for row in rows}) == 300
    for row in rows:
        first, sign, second = row["question"].removeprefix("What is ").partition("?")[0].split()
        assert (
            int(row["reference"])
            == {
                "+": int(first) + int(second),
                "-": int(first) - int(second),
                "*": int(first) * int(second),
            }[sign]
        )


def test_stories_have_one_step(script: ModuleType, tmp_path: Path) -> None:
    script.sums(tmp_path / "a.jsonl", questions=20, stories=True)
    rows = _read(tmp_path / "a.jsonl")
    assert len(rows) == 20
    for row in rows:
        has, changes = (
            int(part.split()[-1 if "finds" in part or "loses" in part else -2])
            for part in row["question"].partition(".")[0].split(",")
        )
        sign = 1 if "finds" in row["question"] else -1
        assert int(row["reference"]) == has + sign * changes


def test_the_table_tells_what_was_stated(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the answers right, of which the model is surer; one in four says nothing that can be read."""
    data = tmp_path / "sums.jsonl"
    script.sums(data, questions=24)
    at = {row["question"]: (i, row["reference"]) for i, row in enumerate(_read(data))}

    def says(request: object) -> Reply:
        asked = request.messages[-1].content  # type: ignore[attr-defined]
        i, right = next(found for question, found in at.items() if asked.startswith(question))
        said = f"{right if i % 2 else 'many'}\n"
        return Reply(said + ("well" if i % 4 == 2 else f"<confidence>{0.9 if i % 2 else 0.4}</confidence>"), 0.8)

    monkeypatch.setattr(script, "from_string", lambda name: ScriptedModel(name, says))
    script.collect(tmp_path / "out", "m", data, grader="numeric", styles="one-step")
    (recording,) = (tmp_path / "out").glob("*.jsonl")
    with gzip.open(f"{recording}.gz", "wb") as packed:  # as those that lie beside the benchmarks
        packed.write(recording.read_bytes())
    recording.unlink()
    capsys.readouterr()
    script.report(tmp_path / "out")
    head, _, row = capsys.readouterr().out.splitlines()

    told = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row)), strict=True))
    assert told["model, questions"] == "m, sums"
    assert told["answers"] == "24"
    assert told["right"] == "50.0%"
    assert told["can be read"] == "75%"
    assert told["most frequent"] == "0.9 (50%), 0.4 (25%)"
    assert told["ECE"] == f"{(12 * 0.1 + 6 * 0.4) / 18:.3f}"
    assert told["AUROC (95 %)"].startswith("1.000")
    assert told["P(T)"].startswith("0.500")
