"""A user's own function as a grader."""

from __future__ import annotations

import numpy as np
import pytest
from confcascade.demo.world import UNKNOWN
from confcascade.errors import ConfigurationError
from confcascade.graders import Function
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade

EXAMPLE = Example("?", references=("Paris",))


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (True, 1.0),
        (False, 0.0),
        (0.25, 0.25),
        (1, 1.0),
        (np.bool_(True), 1.0),
        (np.float32(0.5), 0.5),
        (Grade(0.5, predicted="x"), 0.5),
        (None, None),
    ],
)
def test_what_a_function_may_say(said, value):
    grade = Function(lambda example, answer: said).grade(EXAMPLE, "Paris")
    assert grade.value == value
    assert type(grade.value) in (float, type(None))


def test_it_sees_the_example_and_the_answer():
    grader = Function(lambda example, answer: answer in example.references)
    assert grader.grade(EXAMPLE, "Paris").value == 1
    assert grader.grade(EXAMPLE, "").value == 0
    assert grader.grade(Example("?"), "Paris").value == 0  # whether a reference is needed is its own affair


def test_refusals_are_found_for_it_unless_it_gives_a_grade():
    assert Function(lambda example, answer: False).grade(EXAMPLE, UNKNOWN).refused
    assert not Function(lambda example, answer: Grade(0.0)).grade(EXAMPLE, UNKNOWN).refused


def test_a_function_that_fails_loses_no_answer():
    """The answer was paid for: it stays without a grade, with the reason."""

    def broken(example, answer):
        raise KeyError("colour")

    grade = Function(broken).grade(EXAMPLE, "Paris")
    assert grade.value is None
    assert "broken failed: KeyError: 'colour'" in grade.reason


@pytest.mark.parametrize("said", ["yes", 2, -0.1, float("nan"), [1], np.array([1.0, 2.0])])
def test_anything_else_is_an_error(said):
    with pytest.raises(ConfigurationError, match="must give True or False"):
        Function(lambda example, answer: said).grade(EXAMPLE, "Paris")


def test_what_cannot_be_called_plainly_is_an_error():
    async def later(example, answer):
        return True

    for function in (later, "Paris"):
        with pytest.raises(ConfigurationError, match=r"plain one of \(example, answer\)"):
            Function(function)


def test_its_identity_changes_with_its_source():
    def one(example, answer):
        return True

    first = Function(one).identity()

    def one(example, answer):
        return False

    assert first["function"] == Function(one).identity()["function"]
    assert first["source_digest"] != Function(one).identity()["source_digest"]
    assert Function(max).identity()["source_digest"] is None
