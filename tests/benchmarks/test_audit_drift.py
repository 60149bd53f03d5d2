"""The simulation of drift computes what the library computes; alarms are as rare and as quick as the page says."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from confcascade.audit.sequential import SequentialTest
from scipy.stats import binom

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DATA = Path(__file__).parents[3] / "shared" / "data" / "mmlu_llama31_logits"


def load(name: str, monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drift(monkeypatch) -> ModuleType:
    return load("audit_drift", monkeypatch)


@pytest.mark.parametrize(("lowest", "values"), [(0.0, (0, 1)), (-1.0, (-1, 0, 1))])
def test_it_simulates_the_librarys_test(drift, lowest, values):
    """Stream by stream, observation by observation."""
    losses = np.random.default_rng(0).choice(values, size=(5, 200)).astype(float)
    tests = [SequentialTest(0.05, lowest=lowest) for _ in losses]
    for t, e in enumerate(drift.evidence(losses, 0.05, lowest)):
        for test, stream, value in zip(tests, losses, e, strict=True):
            test.observe(stream[t])
            assert math.log(value) == pytest.approx(test.log_e)


@pytest.mark.parametrize("world", ["disagreement", "accuracy, all labelled"])
def test_false_alarms_stay_under_what_is_promised(drift, world):
    """Of 1,000 quiet streams that just keep a promise of 2%, at most 5% ever raise an alarm in 3,000 drawn queries.

    A correct test breaks this with a probability of at most 1e-6 (binomial tail).
    """
    draw, lowest = drift.WORLDS[world]
    at = drift.alarms(draw(np.random.default_rng(7), 1000, 3000, 0, 0.02), 0.02, lowest)
    assert np.sum(at >= 0) <= binom.ppf(1 - 1e-6, 1000, drift.FALSE_ALARMS)


def test_a_fall_of_five_points_is_seen_in_time(drift):
    """2% promised, 1.4% quiet, 1,000 drawn queries before: 95% of the streams see it within 650 drawn, 390 audits."""
    losses = drift.disagreements(np.random.default_rng(8), 500, 1000, 650, 0.014)
    at = drift.alarms(losses, 0.02)
    assert np.mean(at >= 1000) >= 0.93  # the 5%, and 2 points of chance
    assert np.mean((at >= 0) & (at < 1000)) < 0.05


def test_the_plain_product_is_slower(drift):
    """What it lost in a quiet time it has to win back."""
    losses = drift.disagreements(np.random.default_rng(9), 200, 5000, 1000, 0.014)
    restarted, plain = (drift.delays(drift.alarms(losses, 0.02, restarts=restarts), 5000) for restarts in (True, False))
    assert np.median(restarted) < 500
    assert np.median(plain) > 1000


@pytest.mark.skipif(not DATA.exists(), reason="needs the recorded answers")
def test_recorded_answers(drift):
    """At 0.9 of Llama-3.1's P(T), a fall of five points is seen within 239 audits in 95% of the streams."""
    *_, at_090, _ = (line.split(" | ") for line in drift.recorded_table(DATA, streams=200))
    threshold, _, certified, differ, falls, then, false, *_, audits = at_090
    assert threshold == "| 0.9"
    assert falls == "5.0%"
    assert float(differ.rstrip("%")) < float(certified.rstrip("%")) < float(then.rstrip("%"))
    assert float(false.rstrip("%")) <= 5
    assert 150 < float(audits.rstrip(" |")) < 330


def test_overhead_is_measured(monkeypatch, tmp_path):
    """Each rate as often as asked, in a way that draws."""
    overhead = load("audit_overhead", monkeypatch)
    spent = overhead.measured([0.0, 1.0], calls=5, repeats=2)
    assert {rate: len(values) for rate, values in spent.items()} == {0.0: 2, 1.0: 2}
    asked = overhead.cascade(tmp_path, 1.0)
    overhead.cpu_s(asked, 5)
    assert asked.auditor.file.state().audited == 5
