"""The benchmark measures what it says: accepted calls, every contender in every measure."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """As a module, its blocks cut to three calls."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("langchain_overhead")
    monkeypatch.setattr(module, "MEASURES", {name: (measure, 3) for name, (measure, _) in module.MEASURES.items()})
    return module


@pytest.mark.parametrize("client", ["instant", "openai"])
def test_every_contender_keeps_the_small_models_answer(script, client):
    """Otherwise it would be charged for a large model's call."""
    with script.models_of(client) as models:
        llms = script.contenders(models)
        rows = [row for rows in script.measured(llms, script.MEASURES, models.asked, 16, repeats=2) for row in rows]

    assert {row.contender for row in rows} == set(script.installed())
    assert {row.measure for row in rows} == set(script.MEASURES)
    assert {row.accepted for row in rows} == {1.0}
    assert {row.cpu_ratio for row in rows if row.contender == script.DIRECT} == {(1.0, 1.0, 1.0)}


def test_importing_loads_no_learning_library(script):
    found = script.import_cost("langchain_confcascade", script.CHAT_MODEL, repeats=1)

    assert found["loaded"] == []
    assert found["extra_s"] > 0
