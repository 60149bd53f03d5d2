"""Structured output, judged by a pydantic class and its fields."""

from __future__ import annotations

import json
from datetime import date
from typing import Literal

import pytest
from confcascade.errors import ConfigurationError
from confcascade.graders import StructuredMatch
from confcascade.graders.example import Example
from pydantic import BaseModel, Field


class Review(BaseModel):
    label: Literal["positive", "negative"]
    stars: int = Field(ge=1, le=5)
    on: date | None = None


SAID = {"label": "positive", "stars": 4, "on": "2024-05-01"}
GRADER = StructuredMatch(Review)


def grade(grader, reference, answer):
    reference, answer = (each if isinstance(each, str) else json.dumps(each) for each in (reference, answer))
    return grader.grade(Example("?", references=(reference,)), answer)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(SAID),
        json.dumps(dict(reversed(SAID.items())), indent=2),
        f"Here it is:\n```json\n{json.dumps(SAID)}\n```\nAnything else?",
        '{"label": "positive", "stars": "4", "on": "2024-05-01"}',
    ],
)
def test_the_same_values_are_right(answer):
    """In whatever order, layout and form that the class accepts."""
    assert grade(GRADER, SAID, answer).value == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({**SAID, "stars": 5}, "stars differ"),
        ({**SAID, "stars": 6}, "less_than_equal"),
        ({**SAID, "label": "hush"}, "'label': literal_error"),
        ({"stars": 4}, "missing"),
        ("positive", "does not validate"),
    ],
)
def test_what_differs_or_does_not_validate_is_wrong_with_a_reason(answer, reason):
    found = grade(GRADER, SAID, answer)
    assert found.value == 0
    assert reason in found.reason
    assert "hush" not in found.reason  # the rule, not the value


@pytest.mark.parametrize("reference", ["positive", SAID, {"label": "positive", "stars": 1}])
def test_one_field_alone(reference):
    """The reference is its value, or JSON of the whole class."""
    grader = StructuredMatch(Review, key="label")
    assert grade(grader, reference, SAID).value == 1
    assert grade(grader, reference, SAID).predicted == "positive"
    assert grade(grader, reference, {**SAID, "label": "negative"}).value == 0


def test_values_of_one_field_are_read_as_its_type():
    assert grade(StructuredMatch(Review, key="stars"), "4", SAID).value == 1
    assert grade(StructuredMatch(Review, key="on"), "2024-05-01", SAID).value == 1


def test_any_of_several_references_will_do():
    references = (json.dumps({**SAID, "stars": 1}), json.dumps(SAID))
    assert GRADER.grade(Example("?", references=references), json.dumps(SAID)).value == 1


def test_a_reference_that_does_not_validate_is_no_reference():
    assert grade(GRADER, "positive", SAID).value is None
    assert grade(StructuredMatch(Review, key="stars"), "9", SAID).value is None


def test_what_is_no_class_or_no_field_is_an_error():
    with pytest.raises(ConfigurationError, match="must be a pydantic class"):
        StructuredMatch(dict)
    with pytest.raises(ConfigurationError, match="no field `colour`; it has label, stars, on"):
        StructuredMatch(Review, key="colour")
