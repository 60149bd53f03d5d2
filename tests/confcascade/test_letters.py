"""One reader of the letter: what it reads stands where it says."""

from __future__ import annotations

import pytest
from confcascade.letters import begins_with, folded, named_by, read_label, read_letter
from hypothesis import given
from hypothesis import strategies as st

SAID = [  # and which character the letter is
    ("B", 0),
    ("(B)", 1),
    ("**B**", 2),
    ("Answer: B", 8),
    ("**Answer:** (B) Paris", 13),
    ("Answer: B. warm climate", 8),
    ("B. The answer is not A because", 0),
    ("The answer is $\\boxed{B}$.", 22),
    ("Option B", 7),
    ("The Louvre is on the Seine.\n\n  B ", 31),
    ("Answer: A\nWait.\nAnswer: B", 24),
    ("  B is right, because A is in England", 2),
    ("Answer: B (Paris)", 8),
    ("It is on the Seine.\n<answer>B</answer>", 28),
    ("{'answer': 'B'}", 12),
    ("The answer to this question is (B) Paris.", 32),
]


@pytest.mark.parametrize(("answer", "at"), SAID)
def test_where_a_letter_stands(answer, at):
    for read in (read_letter(answer), read_label(answer, "ABCD"), read_letter(answer, ("x", "y", "z", "w"))):
        assert (read.label, read.at, answer[at]) == ("B", at, "B")


@given(st.text(alphabet="AB .:()*\n`nswer", max_size=30), st.sampled_from(["", "Answer: ", "**Answer:** ", "so\n\n"]))
def test_a_letter_that_is_read_stands_there(text, lead):
    answer = lead + text
    read = read_letter(answer, letters="ABCD")
    if read.label is not None:
        assert read.at is not None
        assert answer[read.at].upper() == read.label


@pytest.mark.parametrize("answer", ["A or B", "A dog", "E", "", "Paris", "A, B"])
def test_what_gives_none_says_why(answer):
    read = read_label(answer, "ABCD")

    assert (read.label, read.at) == (None, None)
    assert read.problem


def test_words_are_labels_however_they_are_spelled():
    assert [read_label(said, ["yes", "no"]).label for said in ("Yes.", "NO", "Answer: Yes, it is")] == [
        "yes",
        "no",
        "yes",
    ]
    assert read_label("true", ["True", "False"]).label == "True"
    assert read_label("No", ["no", "No"]).label == "No"
    assert read_label("It is HR", ["IT", "HR"]).label is None


def test_numerals_count_statements_where_they_are_no_labels():
    """As in many of MMLU's choices."""
    assert read_label("B. I and II only", "ABCD").label == "B"
    assert read_label("B. I and II only", "ABCDEFGHI").label is None
    assert read_label("B. C and D", "ABCD").label is None


def test_labels_that_are_words():
    assert read_label("Answer: yes, it does", ["yes", "no"]).at == 8
    assert read_label("no.", ["yes", "no"]).label == "no"
    assert read_label("nothing", ["yes", "no"]).label is None


def test_a_prefix_of_ones_own():
    """Only what follows the last of them; the whole, where there is none."""
    assert read_label("C. Hm.\nFinal choice - B", "ABCD", after="choice -").at == 22
    assert read_label("C", "ABCD", after="choice -").label == "C"


@pytest.mark.parametrize("token", ["B", " B", "B.", "(B", " B)", "**B**", "\nB", "B:"])
def test_tokens_that_are_a_label(token):
    assert named_by(token, "ABCD") == folded(token.lower(), "ABCD") == "B"


@pytest.mark.parametrize("token", ["", " ", "Because", "b", "AB", "E", "Answer"])
def test_tokens_that_are_none(token):
    assert named_by(token, "ABCD") is None


@pytest.mark.parametrize(
    ("answer", "labels"),
    [("I'd say so", "ABCDEFGHI"), ("B-cells do", "ABCD"), ("A/B tests", "ABCD"), ("1.5 kg", "1234"), ("2,000", "1234")],
)
def test_a_letter_of_a_word_and_a_digit_of_a_number_are_no_labels(answer, labels):
    """Nor may one that can still become so be taken for one."""
    assert begins_with(answer, labels) is None
    assert begins_with(answer[:2], labels, open_ended=True) is None
    assert begins_with("1. Paris", labels + "1", open_ended=True) == ("1", 0)


def test_what_may_become_another_word_is_not_a_label_yet():
    assert begins_with("B", "ABCD") == ("B", 0)
    assert begins_with("B", "ABCD", open_ended=True) is None
    assert begins_with("B. x", "ABCD", open_ended=True) == ("B", 0)
    assert begins_with("A good question", "ABCD", open_ended=True) is None
