"""Numbers out of texts, and GSM8K's own verdicts on 5,276 solutions."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from confcascade.bench.questions import read_examples
from confcascade.errors import ConfigurationError
from confcascade.graders import Numeric
from confcascade.graders.example import Example
from confcascade.graders.numeric import number
from hypothesis import given
from hypothesis import strategies as st

DATA = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"),
        ("$18.", "18"),
        ("It costs $1,080.50 in all.", "1080.50"),
        ("16 - 3 = 13", "13"),
        ("16 -3", "3"),
        ("(16)-3", "3"),
        ("it is -5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("−5 degrees", "-5"),
        ("between 3-5", "5"),
        ("1,5", "5"),
        ("1,2345", "2345"),
        ("1e3", "1000"),
        ("18%", "18"),
        ("x = .5", "0.5"),
        ("COVID-19", "19"),
        ("4 of 7\nAnswer: 3 + 4 = 7 eggs", "7"),
        ("The answer is 18 dollars.", "18"),
        ("9 * 2 = <<9*2=18>>18", "18"),
        ("1/2", "0.5"),
        ("16/4 = 4", "4"),
        ("Answer: \\(\\frac{3}{4}\\)", "0.75"),
        ("-\\dfrac{1}{2}", "-0.5"),
        ("60 km/h", "60"),
        ("#### 18", "18"),
        ("####18 eggs in 7 days", "18"),
        ("#### 3\nNo.\n#### 1,234", "1234"),
    ],
)
def test_the_number_of_a_text(text, value):
    assert number(text) == Fraction(value)


@pytest.mark.parametrize("text", ["", "none", "eighteen", "####", "x2", "#### twelve", "1/0", "9" * 5000])
def test_a_text_without_a_number_has_none(text):
    assert number(text) is None


numbers = st.decimals(-(10**12), 10**12, allow_nan=False, allow_infinity=False, places=2)


@given(numbers, st.sampled_from(["{:f}", "{:,f}", "The total is {:,f}.", "1 + 2 = 3\n#### {:f}", "Answer: {:f} eggs"]))
def test_a_number_is_read_as_it_was_written(value, form):
    """Thousands set apart or not, in a sentence or behind a mark."""
    assert number(form.format(value)) == Fraction(value)


@given(numbers, numbers, st.decimals(0, 10**12, places=2))
def test_right_is_within_the_tolerance(value, reference, tolerance):
    grade = Numeric(tolerance=float(tolerance)).grade(Example("?", references=(f"{reference:f}",)), f"{value:f}")
    assert grade.value == (abs(value - reference) <= Decimal(str(float(tolerance))))


@pytest.mark.parametrize(
    ("answer", "predicted"), [("3.0", "3"), ("1,000", "1000"), ("0.50", "0.5"), ("-0.0", "0"), ("1/4", "0.25")]
)
def test_what_was_read_is_told_plainly(answer, predicted):
    assert Numeric().grade(Example("?", references=("3",)), answer).predicted == predicted


def test_fractions_are_numbers():
    """Their last digits alone would make 3/2 the same as 1/2."""
    example = Example("?", references=("1/2",))
    assert Numeric().grade(example, "0.5").value == 1
    assert Numeric().grade(example, "3/2").value == 0


def test_no_number_in_the_answer_is_wrong_and_none_in_the_reference_is_not_known():
    assert Numeric().grade(Example("?", references=("3",)), "three").value == 0
    assert Numeric().grade(Example("?", references=("three",)), "3").value is None


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_is_a_distance(tolerance):
    with pytest.raises(ConfigurationError, match="tolerance"):
        Numeric(tolerance=tolerance)


@pytest.mark.skipif(not DATA.exists(), reason="the data set is not at hand")
def test_gsm8ks_own_verdicts():
    """On the published solutions of four models every grade is the one that was published with it."""
    examples = {example.question: example for example in read_examples(DATA / "test.jsonl.gz")}
    graded = 0
    with gzip.open(DATA / "example_model_solutions.jsonl.gz", "rt") as file:
        for line in file:
            record = json.loads(line)
            for solution in (value for value in record.values() if isinstance(value, dict)):
                grade = Numeric().grade(examples[record["question"]], solution["solution"])
                assert grade.value == solution["is_correct"]
                graded += 1
            # and its reference solution is right
            assert Numeric().grade(examples[record["question"]], record["ground_truth"]).value == 1
    assert graded == 4 * 1319
