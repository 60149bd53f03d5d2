"""Published logits become a recording whose scores are those of the live signal."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
from confcascade import Cascade, ConfigurationError, Stage, TokenProbability
from confcascade.evaluation import RecordedModel
from confcascade.evaluation.importers import read_choice_logits

LINES = """id,subject,index,answer,model,logit_A,logit_B,logit_C,logit_D
law/test/0,law,0,B,small,-1.0,2.0,0.5,0.0
law/test/2,law,2,D,small,800.0,799.0,0.0,0.0
law/test/0,law,0,B,large,0.0,0.0,0.0,0.0
law/test/2,law,2,D,large,0.0,0.0,0.0,9.0
"""


@pytest.mark.parametrize("name", ["logits.csv", "logits.csv.gz"])
def test_choice_logits(name: str, tmp_path: Path):
    """Answer, grade, group and normalised P(T) of each row; the first of equal logits, as numpy's argmax has it."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode())
    rows = list(read_choice_logits(path))
    assert [(row.question, row.model, row.group, row.answer, row.grade) for row in rows] == [
        ("law/test/0", "small", "law", "B", 1.0),
        ("law/test/2", "small", "law", "A", 0.0),
        ("law/test/0", "large", "law", "A", 0.0),
        ("law/test/2", "large", "law", "D", 1.0),
    ]
    exponents = [math.exp(x) for x in (-1.0, 2.0, 0.5, 0.0)]
    assert rows[0].scores["p_t"].value == pytest.approx(exponents[1] / sum(exponents))
    assert rows[1].scores["p_t"].value == pytest.approx(1 / (1 + math.exp(-1)))
    assert rows[0].scores["p_t"].details["label_mass"] == pytest.approx(1)
    assert rows[0].usage.total_tokens == 1
    assert rows[0].usage.estimated


def test_live_p_t_is_the_imported_one(tmp_path: Path):
    """The signal judges the recorded labels anew, and finds the same number, whichever way it goes."""
    path = tmp_path / "logits.csv"
    path.write_text(LINES)
    rows = list(read_choice_logits(path))
    small, large = RecordedModel("small", rows), RecordedModel("large", rows)
    cascade = Cascade([Stage(small, [TokenProbability("ABCD")], {"p_t": 0.74}), Stage(large)])
    for outcome, row, answer in zip(cascade.run_batch(["law/test/0", "law/test/2"]), rows[:2], "AD", strict=True):
        score = outcome.record.attempts[0].scores["p_t"]
        assert score.value == row.scores["p_t"].value
        assert outcome.text == (row.answer if score.passed else answer)


def test_a_missing_number_is_named_by_its_line(tmp_path: Path):
    path = tmp_path / "logits.csv"
    path.write_text(LINES.replace("9.0", ""))
    with pytest.raises(ConfigurationError, match="Line 5"):
        list(read_choice_logits(path))


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_logit_that_is_not_finite_is_named_by_its_line(tmp_path: Path, number: str):
    """The letter of a NaN is no answer, and no other would have been the largest."""
    path = tmp_path / "logits.csv"
    path.write_text(LINES.replace(",9.0", f",{number}"))
    with pytest.raises(ConfigurationError, match=f"Line 5 .*: '{number}' is not finite"):
        list(read_choice_logits(path))
