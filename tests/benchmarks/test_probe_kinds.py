"""The benchmark of kinds of probes: a small one, run as it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "probe_kinds.py"


def test_its_tables_are_those_of_the_runs(tmp_path, monkeypatch, capsys):
    """A row for each kind, with the figures of ``training.json``; nothing is run twice."""
    spec = importlib.util.spec_from_file_location("probe_kinds", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "KINDS", ("linear",))
    facts = script.World.facts_in_every_wording
    monkeypatch.setattr(script.World, "facts_in_every_wording", lambda self, split: facts(self, split)[:200])
    arguments = [str(tmp_path), "--sizes", "small", "--seeds", "0", "--per-task", "80", "--depths", "0.5,1.0"]

    script.main(arguments)
    printed = capsys.readouterr().out
    plain, balanced = (
        json.loads((tmp_path / f"small-linear-{balance}-0" / "training.json").read_text())
        for balance in ("plain", "balanced")
    )
    areas = [each["auroc"] for each in plain["candidates"]]
    assert f"2: {areas[0]:.3f}, 4: {areas[1]:.3f}" in printed
    assert printed.count(f"{plain['test']['auroc']:.3f} (") >= 2
    assert f"{balanced['test']['brier']:.3f}" in printed
    assert not (tmp_path / "small-linear-balanced-0" / "recording.jsonl").exists()

    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: pytest.fail("it was run already"))
    script.main(arguments)
    assert capsys.readouterr().out == printed
