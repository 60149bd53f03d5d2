"""The comparison of promised and realised, on one recording and few halves."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def benchmark_module():
    spec = importlib.util.spec_from_file_location("fit_recorded", ROOT / "benchmarks" / "fit_recorded.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_recorded"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not there")
def test_promises_on_recorded_answers(benchmark_module):
    """Llama 3 on ARC: something is saved, less than the oracle saves, and the mean loss is within the promise."""
    source = next(each for each in benchmark_module.SOURCES if each.name == "ARC, Llama 3 8B → 70B")
    rows = [each for each in source.rows(DATA) if each.model in source.models]
    material = benchmark_module.material_of(rows, models=source.models)
    summary = benchmark_module.Summary()
    for seed in range(4):
        benchmark_module.one(source, material, None, 0.05, seed, summary)

    assert summary.splits == 4
    assert np.mean(summary.loss) <= 0.05
    assert 0.2 < np.mean(summary.saved) < np.mean(summary.oracle)
    assert "| 5 |" in benchmark_module.row(source, len(material), "accuracy", 0.05, summary)
