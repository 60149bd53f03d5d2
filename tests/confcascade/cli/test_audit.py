"""`confcascade audit`: where a promise stands, for people and for scripts."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from confcascade.audit.file import AuditFile, DrawnQuery, Guarded
from confcascade.guarantee import Certificate, Equivalence, Promise, examine


@pytest.fixture
def file(tmp_path):
    """A state that guards a certificate of 2%."""
    promise = Promise(0.02, equivalence=Equivalence("choice"))
    told = Certificate.of(examine([0.0] * 400, 1.0, promise, "harms"), promise).model_dump(mode="json")
    guarded = Guarded("0123456789ab", ("small", "large"), "choice", 0.05, {"agreement": 0.02, "accuracy": 0.02}, told)
    file = AuditFile.begin(tmp_path / "audit.sqlite", guarded)
    with file.held_open():
        for i in range(100):
            file.record(DrawnQuery(i % 2 == 0, i == 50, "hash"), Counter(queries=50, kept=30, nano_usd=10**6))
    return file


def test_a_promise_that_holds(file, confcascade, tmp_path):
    """Counts, the estimate and its interval, the evidence and how near an alarm is, the certificate; a plot; code 0."""
    done = confcascade("audit", file.path, "--plot", tmp_path / "evidence.png")

    assert done.returncode == 0, done.stderr
    for told in ("5,000", "3,000 (60.0%)", "50 (50.0%)", "1.00% (", "of 20 (", "$0.1000", "Nothing speaks against it"):
        assert told in done.stdout
    assert "at most 2.00% of the answers differ from the largest model's by 'choice'" in done.stdout
    assert "takes labels (disagreements: 1)" in done.stdout
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")


def test_an_alarm(file, confcascade):
    """Is told first, and by the code 1, in JSON, too."""
    for _ in range(20):
        file.record(DrawnQuery(True, True, "hash"), Counter())
    done = confcascade("audit", file.path)
    assert done.returncode == 1
    assert done.stdout.startswith("ALARM since ")

    done = confcascade("audit", file.path, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["alarms"] == ["agreement"]
    assert told["disagreements"] == 21
    assert told["tests"]["agreement"]["e_value"] > 20


def test_errors(confcascade, tmp_path):
    """One line and the code 2."""
    done = confcascade("audit", tmp_path / "missing")
    assert done.returncode == 2
    assert "There is no audit state" in done.stderr
    empty = AuditFile.begin(tmp_path / "empty", Guarded("0", ("small", "large"), "choice", 0.05, {}))
    done = confcascade("audit", empty.path, "--plot", tmp_path / "evidence.png")
    assert done.returncode == 2
    assert "nothing to plot" in done.stderr


def test_without_a_promise(confcascade, tmp_path):
    """It measures, and says that it does no more."""
    file = AuditFile.begin(tmp_path / "measures", Guarded("0", ("small", "large"), "choice", 0.05, {}))
    done = confcascade("audit", file.path)
    assert done.returncode == 0
    assert "measures only" in done.stdout
