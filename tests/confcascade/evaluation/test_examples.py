"""What a question brings along, and from which grade on an answer is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from confcascade.evaluation.examples import RIGHT, is_right


@pytest.mark.parametrize(
    ("grade", "right"), [(1.0, True), (0.75, True), (RIGHT, True), (0.49, False), (0.0, False), (None, False)]
)
def test_a_grade_is_of_a_right_answer(grade, right):
    assert is_right(grade) is right


def test_so_are_grades():
    """In whatever shape; one that is missing is not right."""
    assert is_right(np.array([[1.0, 0.75], [0.25, math.nan]])).tolist() == [[True, True], [False, False]]
