"""Several guesses and their probabilities: the forms that models use, and what is no list of them."""

import time

import pytest
from confcascade.signals.stated_guesses import guesses_in
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "first", "values"),
    [
        ("G1: Paris\nP1: 0.9\nG2: Lyon\nP2: 0.1", "Paris", (0.9, 0.1)),
        ("**G1:** New York\n\n**P1:** 90%\n\n**G2:** Lyon", "New York", (0.9, None)),
        ("G1: Paris P1: 0.9", "Paris", (0.9,)),
        ("Guess 1: Paris\nProbability 1: 0.9", "Paris", (0.9,)),
        ("G1: Paris\nP1: no idea", "Paris", (None,)),
    ],
)
def test_guesses(text, first, values):
    """The first guess is the answer, its probability the score."""
    found = guesses_in(text)
    assert text[slice(*found.first)] == first
    assert found.values == values


@pytest.mark.parametrize("text", ["Paris", "1. Paris\n2. Lyon", "G1:\nP1: 0.9", "G2: Lyon\nP2: 0.1"])
def test_no_first_guess(text):
    assert guesses_in(text) is None


@given(st.text(max_size=300) | st.text(alphabet="GP12:. 059%\n", max_size=40))
def test_any_text(text):
    """Whatever a model writes is read without an error: the first guess says something, values are shares."""
    if (found := guesses_in(text)) is not None:
        assert text[slice(*found.first)].strip()
        assert all(value is None or 0 <= value <= 1 for value in found.values)


@pytest.mark.parametrize(
    "piece", ["G1: Paris\nP1: 0.9\n", "G1: ", "P1: 9", "**", "Guess ", "(0-", "9", "Confidence: 90%\n"]
)
def test_long_texts_take_no_time(piece):
    """Hostile repetition is no matter of seconds."""
    begun = time.perf_counter()
    guesses_in(f"G1: Paris\n{piece * 1000}")
    assert time.perf_counter() - begun < 10  # a second at most, on a machine that does nothing else
