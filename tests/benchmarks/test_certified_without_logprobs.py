"""The benchmark of a cascade over a server without log-probabilities, with scripted models behind that server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("openai")

import typer
from confcascade import Architecture, Cascade, Request, Stage, TokenProbability
from confcascade.signals.verbalized import SECOND_TURN
from confcascade.testing import ScriptedModel


def _value(text: str) -> tuple[int, int]:
    a, sign, b = re.search(r"(\d+) ([-+*]) (\d+)", text).groups()  # type: ignore[union-attr]
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign], int(a)


def _knowing(most: int, honest: bool):
    """Right if the first number is small enough; honest if it says so."""

    def says(request: Request) -> str:
        last = request.messages[-1].content
        value, first = _value(request.messages[0].content)
        if last == SECOND_TURN:
            return f"Probability: {0.9 if honest == (first <= most) else 0.3}"
        return str(value if first <= most else value + 1)

    return says


@pytest.fixture
def script(load_script) -> ModuleType:
    return load_script("certified_without_logprobs")


@pytest.fixture
def data(load_script, tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    load_script("stated_confidence").sums(path, questions=260)
    return path


@pytest.fixture
def run(script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def _run(honest: bool) -> None:
        models = {
            "small": ScriptedModel("small", _knowing(40, honest), architecture=Architecture(10**8, 0, 0)),
            "large": ScriptedModel("large", _knowing(10**6, True), architecture=Architecture(10**10, 0, 0)),
        }
        monkeypatch.setattr(script, "from_string", models.__getitem__)
        script.collect(tmp_path, "small", "large", data)
        script.run(tmp_path, "small", "large", data, live=30, max_drop=0.1)

    return _run


def test_what_is_certified_runs_live_as_replayed(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And keeps the promise, where the small model is honest."""
    run(honest=True)
    told = capsys.readouterr().out

    assert "260 of 260 can be read" in told
    assert "Promised: accuracy at most 10.00 points below" in told
    live, replayed = (
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in told.splitlines()
        if line.startswith(("| live", "| replayed"))
    )
    assert live == replayed
    assert "otherwise live than replayed: 0 of 30" in told
    kept = json.loads((tmp_path / "policy.json").read_text())
    assert set(kept["stages"][0]["thresholds"]) <= {"stated", "confidence", "gain"}


def test_nothing_is_certified_of_statements_that_are_lies(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        run(honest=False)
    told = capsys.readouterr().out
    assert "Nothing can be promised" in told


def test_its_server_refuses_log_probabilities(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """P(T) has no score of it, and escalates."""
    models = {name: ScriptedModel(name, architecture=Architecture(10**8, 0, 0)) for name in ("small", "large")}
    monkeypatch.setattr(script, "from_string", models.__getitem__)
    with script.served("small", "large") as (server, (small, large)):
        cascade = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.0}), Stage(large)])
        outcome = cascade.run("How far?")
        assert server.refused
    assert outcome.record.stage == 1
    assert outcome.text == "large: How far?"
