"""The shipped questions are graded as a reader would grade them."""

import itertools

import pytest
from confcascade.demo.questions import ShortAnswer, shipped_questions
from confcascade.graders import Example, is_right

QUESTIONS = shipped_questions()


def right(example, answer):
    return is_right(ShortAnswer().grade(example, answer).value)


def named(example):
    """The reference in words: of a choice its text."""
    return example.choices["ABCD".index(example.references[0])] if example.choices else example.references[0]


def test_there_are_a_few_dozen_of_many_kinds():
    """Each once; and the first dozen, which `--questions 12` asks, has one of every kind."""
    assert 36 <= len(QUESTIONS) <= 48
    assert len({question.id for question in QUESTIONS}) == len({q.question for q in QUESTIONS}) == len(QUESTIONS)
    assert {question.group for question in QUESTIONS[:12]} == {question.group for question in QUESTIONS}


@pytest.mark.parametrize("example", QUESTIONS, ids=lambda example: example.id)
def test_a_question_is_graded_right_by_its_own_references(example):
    """As they stand, with a full stop, as a sentence, and in another case."""
    for reference in example.references:
        for form in ("{}", "{}.", " {}\n", "The answer is {}.", "**{}**", "It is {}."):
            if not (example.choices and form.startswith("It is")):  # a letter that a sentence hides
                assert right(example, form.format(reference)), form
    assert right(example, named(example))
    assert right(example, named(example).upper())


@pytest.mark.parametrize("example", QUESTIONS, ids=lambda example: example.id)
def test_a_question_is_graded_wrong_by_anything_else(example):
    """By the references of every other question, by itself, by nothing, by all of its choices, by a refusal."""
    for other in QUESTIONS:
        if not set(other.references) & set(example.references) | ({named(other)} & {named(example)}):
            assert not right(example, other.references[0]), other.id
    assert not right(example, example.question)
    assert not right(example, " ".join(example.choices))
    assert not right(example, "")
    assert not right(example, "I don't know.")


def test_a_list_of_everything_is_no_answer():
    """A word among many is not right, and neither is one that begins another."""
    capital = Example("What is the capital of France?", references=("Paris",))
    cities = " ".join(f"city{i}" for i in range(30))
    assert not right(capital, f"{cities} Paris")
    assert not right(capital, "Parisian")
    assert right(capital, "The capital is PARIS, of course.")


def test_a_number_may_end_a_working_or_a_first_line():
    """The last number counts, or that of the first line; in words, where the references have it so."""
    legs = next(question for question in QUESTIONS if "spider" in question.question)
    assert right(legs, "Eight")
    assert right(legs, "2 * 4 = 8 legs")
    assert right(legs, "A spider has 8.\n\nAn insect has 6 legs.")
    assert right(legs, "2 * 3 = 6\n6 + 2 = 8")
    assert not right(legs, "8 or 6")
    assert not right(legs, "6 legs.\nAn octopus has 8 arms, and 2 eyes.")


def test_kinds_are_spread_over_the_file():
    """No kind comes three times in a row, so that any beginning is a fair sample."""
    assert max(len(list(run)) for _, run in itertools.groupby(question.group for question in QUESTIONS)) < 3
