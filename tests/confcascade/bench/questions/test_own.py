"""The format of confcascade itself: what its keys may hold, and how the right choice may be named."""

from __future__ import annotations

import json

import pytest
from confcascade.bench.questions.own import example
from confcascade.graders.example import LETTERS, Example
from hypothesis import given
from hypothesis import strategies as st

CITIES = ["London", "Paris", "Rome"]


def test_everything_at_once():
    record = {
        "question": "Where is the Louvre?",
        "choices": CITIES,
        "reference": "Paris",
        "context": "The Louvre is in Paris.",
        "group": "cities",
        "id": 7,
        "source": "ignored",
    }
    assert example(record) == Example(
        "Where is the Louvre?", tuple(CITIES), ("B",), "The Louvre is in Paris.", "cities", "7"
    )


def test_a_question_alone_is_enough():
    """Without a reference answers can be collected, and compared with a larger model's."""
    assert example({"question": "Why?"}) == Example("Why?")


@given(st.lists(st.text(min_size=2).filter(lambda text: text.strip() == text), min_size=2, max_size=26, unique=True))
def test_letter_text_and_index_name_the_same_choice(choices):
    for i in range(len(choices)):
        named = {"letter": {"reference": LETTERS[i]}, "text": {"answer": choices[i]}, "index": {"reference_index": i}}
        for given_as in named.values():
            assert example({"question": "?", "choices": choices, **given_as}).references == (LETTERS[i],)


def test_small_letters_are_letters():
    assert example({"question": "?", "choices": CITIES, "reference": "b"}).references == ("B",)


@pytest.mark.parametrize(
    "columns",
    [
        {"choice_a": "London", "choice_b": "Paris", "choice_c": "Rome", "choice_d": ""},
        {"A": "London", "B": "Paris", "C": "Rome", "D": ""},
        {"choices": json.dumps(CITIES)},
        {"choices": CITIES},
    ],
)
def test_choices_of_a_table(columns):
    """One in each column, of which the last may be empty, or a JSON list in one cell."""
    made = example({"question": "?", "reference": "C", **columns})
    assert made.choices == tuple(CITIES)
    assert made.references == ("C",)


def test_labelled_choices_are_named_by_their_label():
    """As ARC's, some of which are numbered from 1: a label goes before a text, and a number is no index then."""
    numbered = {"1": "2", "2": "1", "3": "5"}
    assert example({"question": "?", "choices": numbered, "reference": "2"}).references == ("B",)
    assert example({"question": "?", "choices": numbered, "reference": 2}).references == ("B",)
    assert example({"question": "?", "choices": numbered, "reference": "5"}).references == ("C",)


def test_several_references():
    assert example({"question": "?", "references": ["Paris", "Lutetia"]}).references == ("Paris", "Lutetia")
    assert example({"question": "?", "references": '["Paris", 75]'}).references == ("Paris", "75")
    assert example({"question": "?", "answer": ["Paris"]}).references == ("Paris",)
    assert example({"question": "?", "answer": '["a"]'}).references == ('["a"]',)  # text, as it stands
    assert example({"question": "?", "choices": CITIES, "references": ["A", "London", "C"]}).references == ("A", "C")


def test_numbers_are_texts_and_missing_values_are_none():
    made = example({"question": "?", "reference": 0.5, "group": float("nan"), "context": None})
    assert (made.references, made.group, made.context) == (("0.5",), None, None)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": ""}, "no `question`"),
        ({"reference": "a"}, "no `question`"),
        ({"question": "?", "reference": "a", "answer": "b"}, "both `reference` and `answer`"),
        ({"question": "?", "reference": "A", "reference_index": 0, "choices": CITIES}, "both"),
        ({"question": "?", "choices": CITIES, "reference": "Berlin"}, "none of the choices A, B, C"),
        ({"question": "?", "choices": CITIES, "reference": "D"}, "none of the choices"),
        ({"question": "?", "choices": CITIES, "reference": 1}, "could be an index or a text"),
        ({"question": "?", "choices": ["1", "2"], "reference": 1}, "could be an index or a text"),
        ({"question": "?", "choices": ["1", "2"], "references": [1]}, "could be an index or a text"),
        ({"question": "?", "choices": CITIES, "reference": "1"}, "none of the choices"),
        ({"question": "?", "choices": ["B", "A"], "reference": "A"}, "letter of one choice and the text of another"),
        ({"question": "?", "choices": ["x", "x"], "reference": "x"}, "could be any of the choices A, B"),
        ({"question": "?", "choices": CITIES, "reference_index": 3}, "no choice at the index 3"),
        ({"question": "?", "choices": CITIES, "reference_index": -1}, "whole number"),
        ({"question": "?", "reference_index": 0}, "of a question with choices"),
        ({"question": "?", "choices": "London;Paris"}, "must be a JSON list"),
        ({"question": "?", "choice_a": "x", "choice_b": "", "choice_c": "y"}, "`choice_b` is empty"),
        ({"question": "?", "choices": ["x"] * 27}, "At most 26"),
        ({"question": "?", "reference": True}, "text or a number"),
        ({"question": "?", "group": ["a"]}, "text or a number"),
    ],
)
def test_what_cannot_be_understood_is_not_guessed(record, said):
    with pytest.raises((ValueError, TypeError), match=said):
        example(record)


@pytest.mark.parametrize(
    ("record", "key", "kind"),
    [
        ({"question": "Which?", "endings": ["a", "b"], "label": "1", "answer": "b"}, "endings", "choices"),
        ({"question": "Which?", "option_a": "1", "option_b": "2", "answer": "A"}, "option_a", "choices"),
        ({"question": "Who?", "answers": ["Marie Curie"]}, "answers", "a reference"),
        ({"question": "Who?", "choices": CITIES, "label": 1}, "label", "a reference"),
        ({"question": "How many?", "ground_truth": "72"}, "ground_truth", "a reference"),
    ],
)
def test_what_would_be_lost_is_refused(record, key, kind):
    """A question without its choices is another question, and one without its reference is never graded."""
    with pytest.raises(ValueError, match=f"`{key}` looks like {kind}, and is not read: rename it"):
        example(record)


def test_what_only_describes_a_question_is_ignored():
    """And so is a second name for a reference that is there, or an empty cell."""
    record = {"question": "2+2?", "answer": "4", "target": "4", "category": "sums", "difficulty": 1, "src": "x"}
    assert example(record) == Example("2+2?", references=("4",))
    assert example({"question": "Why?", "answers": [], "label": "", "level": "hard"}) == Example("Why?")
