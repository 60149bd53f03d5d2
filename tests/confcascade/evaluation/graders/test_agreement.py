"""Two answers are the same if a grader takes one for right where the other is the reference."""

from __future__ import annotations

import pytest
from confcascade import Audit
from confcascade.evaluation import Row
from confcascade.evaluation.fit import agreement, material_of
from confcascade.evaluation.graders import Agreement, Function, LLMJudge, Numeric
from confcascade.testing import ScriptedModel


@pytest.mark.parametrize(
    ("grader", "answer", "larger", "same"),
    [
        ("choice", "(B)", "The answer is B.", True),
        ("choice", "A or B", "B", False),
        ("choice", "B", "I cannot say.", None),
        ("numeric", "So it is 1,080.", "1080.0", True),
        ("numeric", "17", "18", False),
        ("normalized", "the Eiffel Tower", "Eiffel tower!", True),
        (Numeric(tolerance=1), "17", "18", True),
        (Function(lambda example, answer: 0.5), "half", "right", True),
        (Function(lambda example, answer: 0.25), "less", "right", False),
    ],
)
def test_answers(grader, answer, larger, same):
    assert Agreement(grader)("Which?", answer, larger) is same


def test_an_audit_takes_it():
    """By the grader's name, which a certificate names, too."""
    assert Audit(same=Agreement("choice")).same.name == "choice"
    assert Agreement("numeric:0.1")("", "1", "1.05") is True


@pytest.mark.parametrize("verdict", ["yes", "1", "0.75", "0.5", "0.25", "no"])
def test_an_audit_calls_the_same_what_a_fit_does(verdict):
    """Or a promise that holds would raise alarms: here, of a judge that answers by a number."""
    judge = LLMJudge(ScriptedModel("judge", lambda request: f"Verdict: {verdict}"))
    rows = [Row(question="q", model=name, prompt="Who?", answer=f"says {name}") for name in ("small", "large")]
    material = material_of(rows, graded=False, texts=True)
    fitted = agreement(material, judge)[0, material.columns.index("small")]
    assert Agreement(judge)("Who?", "says small", "says large") == fitted
