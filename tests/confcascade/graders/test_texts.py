"""Texts: against SQuAD's and PopQA's published rules, written out here."""

from __future__ import annotations

import re
import string

import pytest
from confcascade.graders import ContainsAny, ExactMatch, NormalizedMatch
from confcascade.graders.example import Example
from confcascade.graders.texts import normalized
from hypothesis import given
from hypothesis import strategies as st

prose = st.lists(
    st.sampled_from(["The", "a", "an", "the", "Louvre", "!", "-", " ", "\n", "Ann's", "É", "U.S.", "7"])
).map(" ".join)


def squad(text):
    """What SQuAD's evaluation script makes of a text, step by step as it describes them."""
    lowered = text.lower()
    without_punctuation = "".join(letter for letter in lowered if letter not in set(string.punctuation))
    without_articles = re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", without_punctuation)
    return " ".join(without_articles.split())


@given(st.text() | prose)
def test_normalisation_is_squads(text):
    assert normalized(text) == squad(text)


@given(prose)
def test_normalising_twice_changes_nothing_more(text):
    assert normalized(normalized(text)) == normalized(text)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The Eiffel Tower!", True),
        ("eiffel   tower", True),
        ("Reasoning first.\nAnswer: Eiffel Tower.", True),
        ("Eiffel Towers", False),
        ("It is the Eiffel Tower", False),
    ],
)
def test_normalised_match(answer, right):
    assert NormalizedMatch().grade(Example("?", references=("Big Ben", "an Eiffel tower")), answer).value == right


def test_texts_of_which_normalising_leaves_nothing_are_not_all_the_same():
    for reference, answer, right in (("A", "the", 0), ("!", "?", 0), ("A", "A", 1), ("-", "-", 1)):
        assert NormalizedMatch().grade(Example("?", references=(reference,)), answer).value == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Paris", True), (" Paris.\n", True), ("17-3\nAnswer: Paris", True), ("paris", False), ("Paris!", False)],
)
def test_exact_match(answer, right):
    assert ExactMatch().grade(Example("?", references=("Rome", "Paris")), answer).value == right


def popqa(prediction, possible_answers):
    """The rule of PopQA's published evaluation, in its words: the name, its lower case, or it capitalised."""
    return any(
        name in prediction or name.lower() in prediction or name.capitalize() in prediction for name in possible_answers
    )


words = st.text(st.sampled_from("aAbB zZéÉ"), min_size=1).filter(str.strip)


@given(words, st.lists(words, min_size=1))
def test_contains_is_popqas_rule(answer, references):
    grade = ContainsAny().grade(Example("?", references=tuple(references)), answer)
    assert grade.value == popqa(answer, references)


def test_contains_is_as_generous_as_published():
    """Not to the word, but to the case: a name in small letters is not found in one with capitals within."""
    example = Example("?", references=("Art", "rock music"))
    assert ContainsAny().grade(example, "a party").value == 1
    assert ContainsAny().grade(example, "Rock music, mostly").value == 1
    assert ContainsAny().grade(example, "Rock Music").value == 0
    assert ContainsAny().grade(example, "a party").predicted == "Art"
