"""The benchmark of plan escalation asks what it says it asks, goes on where it stopped, and bills both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confcascade import Example
from confcascade.bench.recording import read_rows
from confcascade.cost import Architecture
from confcascade.testing import ScriptedModel
from rich.console import Console

SMALL, LARGE = Architecture(1_000, 2, 16), Architecture(30_000, 4, 64)


def by_plan(request: Any) -> Any:
    text = request.messages[-1].content
    if "Do not answer yet" in text:
        return "weak plan"
    return ("#### 4", 0.9) if "strong" in text else ("#### 5", 0.4)


def test_five_models_answer_and_are_compared(load_script: Any, tmp_path: Path):
    """A plan that helps shows: the small model is right with the large one's, and only then."""
    script = load_script("plan_escalation")
    small = ScriptedModel("small", by_plan, batch_size=4, architecture=SMALL)
    large = ScriptedModel("large", lambda _: ("strong #### 4", 0.99), batch_size=4, architecture=LARGE)
    models = script.planned(small, large, 8)
    examples = [Example(question=f"q{i}?", references=("4",), id=str(i)) for i in range(6)]
    out = tmp_path / "rec.jsonl"
    script.record(examples[:4], models, out, answer_tokens=16, minutes=1)
    calls = len(small.calls)
    script.record(examples[:4], models, out, answer_tokens=16, minutes=1)
    assert len(small.calls) == calls  # nothing is asked again
    script.record(examples, models, out, answer_tokens=16, minutes=1)

    rows = list(read_rows(out))
    assert len(rows) == 30
    assert {row.model: row.grade for row in rows} == {
        "small": 0,
        "large": 1,
        "small+small": 0,
        "large+small": 1,
        "large+large": 1,
    }
    assert {row.thoughts for row in rows if row.model == "large+small"} == {"strong #### 4"}
    console = Console(record=True, width=200)
    script.report(out, models, console)
    told = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.startswith("│")}
    assert "6, 0, 0.031" in told["large+small"]
    assert "0, 0, 1" in told["small+small"]
    assert "small > large" in told


def test_nothing_is_begun_when_time_is_over(load_script: Any, tmp_path: Path):
    """What is left is asked by the next run."""
    script = load_script("plan_escalation")
    models = script.planned(ScriptedModel("small"), ScriptedModel("large"), 8)
    stopped = tmp_path / "rec.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.threading, "Timer", _AtOnce)
        script.record([Example(question="q?", references=("4",), id="1")], models, stopped, answer_tokens=4, minutes=1)
    assert not list(read_rows(stopped))


class _AtOnce:
    """A timer whose time is over."""

    def __init__(self, seconds: float, function: Any) -> None:
        del seconds
        self.start = function

    def cancel(self) -> None:
        pass
