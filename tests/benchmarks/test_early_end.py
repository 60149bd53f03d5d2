"""The benchmark measures what it says: every early end is one, and its stream is closed at the server."""

from __future__ import annotations

import importlib
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_streams_are_closed_at_the_server(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("early_end")

    script.main(rounds=1, calls=2, pause_ms=1.0)

    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| L")]
    assert [row.split("|")[5].strip() for row in rows] == ["2 of 2", "2 of 2"]
