"""What both benchmarks share: ratios of blocks in turns, and their tables."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def overhead(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("overhead")


def test_a_contender_that_asks_the_large_model_is_marked(overhead):
    row = overhead.Row("invoke", 16, "x", 3, 0.0, 1.0, 1.0, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))

    assert overhead.cell(row, "CPU") == "×2.00 (1.00–3.00), accepted 0%"


def test_ratios_compare_blocks_of_one_turn(overhead):
    """A machine that becomes slower from turn to turn changes no ratio."""
    asked = {overhead.SMALL: 0, overhead.LARGE: 0}
    turns = dict.fromkeys((overhead.DIRECT, "twice", "wrong"), 0)

    def measure(runner: asyncio.Runner, contender: Any, prompt: str, calls: int) -> Any:
        name, cost = contender
        turns[name] += 1
        asked[overhead.SMALL] += calls
        asked[overhead.LARGE] += calls if name == "wrong" else 0
        assert prompt.count(" ") == 15
        return overhead.Spent(cost * turns[name], 2 * cost * turns[name])

    contenders = {name: (name, cost) for name, cost in ((overhead.DIRECT, 1e-3), ("twice", 2e-3), ("wrong", 1e-3))}
    measures = {"calls": (measure, 9)}
    ((direct, twice, wrong),) = overhead.measured(contenders, measures, lambda: dict(asked), 16, repeats=3)

    assert direct.cpu_ratio == (1.0, 1.0, 1.0)
    assert twice.cpu_ratio == twice.wall_ratio == (2.0, 2.0, 2.0)
    assert (direct.calls, direct.accepted, wrong.accepted) == (9, 1.0, 0.0)
    assert overhead.tables([direct, twice, wrong], "CPU").splitlines()[2] == (
        "| calls | 16 | 3,000 us | ×2.00 (2.00–2.00) | ×1.00 (1.00–1.00), accepted 0% |"
    )
