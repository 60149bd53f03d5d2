"""The benchmark of calibrators: its tables on made-up answers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from confcascade.bench.recording import Columns, RecordedScore, Row

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration_benchmark", SCRIPTS / "calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def columns() -> Columns:
    rng = np.random.default_rng(0)
    rows = []
    for i, (p, stated, luck) in enumerate(rng.random((400, 3))):
        scores = {"p_t": RecordedScore(value=p**0.3), "verbalized": RecordedScore(value=stated)}
        rows.append(Row(question=f"q{i}", model="own", answer="x", grade=float(luck < p), scores=scores))
        rows.append(Row(question=f"q{i}", model="larger", answer="x", grade=float(luck < p or stated > 0.5)))
    return Columns.of(rows)


def test_calibration_shows(script: ModuleType, columns: Columns) -> None:
    """A score that says too much has a larger error than each of its confidences; the halves share no question."""
    fit = next(script.halves(columns.questions, 1))
    assert 150 < fit.sum() < 250
    cells = [cell.strip() for cell in script.single(columns, "own", "p_t", 2).split("|")]
    raw, platt, isotonic, _ = map(float, cells[2:6])  # a temperature cannot mend a bias
    assert cells[0] == "400"
    assert raw > 2 * max(platt, isotonic)


def test_the_other_tables_are_whole(script: ModuleType, columns: Columns) -> None:
    """Three figures a part, a line for each way to choose, and a cost for each calibrator."""
    assert len(script.fused(columns, "own", ["p_t", "verbalized"], 2).split("|")) == 1 + 2 * 3
    assert len(list(script.gains(columns, "own", "larger", "p_t", 2))) == 2
    assert len(list(script.costs())) == 4


def test_the_accuracy_of_a_share(script: ModuleType) -> None:
    """Of four answers the two that score highest are kept, the larger model answers the others."""
    right, theirs = np.array([True, False, True, False]), np.array([False, False, False, True])
    assert script.accuracy(np.array([0.9, 0.1, 0.8, 0.2]), right, theirs, 0.5) == 0.75
