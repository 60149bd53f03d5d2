"""The benchmark measures what it says: accepted calls, every contender in every measure."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "langchain_overhead.py"


@pytest.fixture
def overhead(monkeypatch) -> ModuleType:
    """The script as a module, its blocks cut to three calls."""
    spec = importlib.util.spec_from_file_location("langchain_overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MEASURES", {name: (measure, 3) for name, (measure, _) in module.MEASURES.items()})
    return module


@pytest.mark.parametrize("client", ["instant", "openai"])
def test_every_contender_keeps_the_small_models_answer(overhead, client):
    """Otherwise it would be charged for a large model's call."""
    with overhead.models_of(client) as models:
        rows = [row for measure in overhead.measured(models, 16, repeats=2) for row in measure]

    assert {row.contender for row in rows} == set(overhead._installed())
    assert {row.measure for row in rows} == set(overhead.MEASURES)
    assert {row.accepted for row in rows} == {1.0}
    assert {row.cpu_ratio for row in rows if row.contender == overhead.DIRECT} == {(1.0, 1.0, 1.0)}


def test_a_contender_that_asks_the_large_model_is_marked(overhead):
    row = overhead.Row("invoke", 16, "x", 3, 0.0, 1.0, 1.0, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))

    assert overhead._cell(row, "CPU") == "×2.00 (1.00–3.00), accepted 0%"


def test_importing_loads_no_learning_library(overhead):
    found = overhead.import_cost(repeats=1)

    assert found["loaded"] == []
    assert found["extra_s"] > 0
