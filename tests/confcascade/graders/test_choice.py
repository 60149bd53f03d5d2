"""Letters out of what models write."""

from __future__ import annotations

import pytest
from confcascade.graders import ChoiceLetter
from confcascade.graders.example import LETTERS, Example
from hypothesis import given, settings
from hypothesis import strategies as st

CITIES = ("London", "Paris", "Rome", "Cannot be determined")
GRADER = ChoiceLetter()

READ = [
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("[B]", "B"),
    ("**B**", "B"),
    ("Answer: B", "B"),
    ("**Answer:** (B) Paris", "B"),
    ("Answer:\n\nB", "B"),
    ("The correct answer is B.", "B"),
    ("The answer is $\\boxed{B}$.", "B"),
    ("The answer is: (B) Paris, which lies on the Seine.", "B"),
    ("B) Paris", "B"),
    ("B. Paris", "B"),
    ("B: Paris", "B"),
    ("B - Paris", "B"),
    ("B, because of the Louvre", "B"),
    ("B is right, because A is in England", "B"),
    ("Option B", "B"),
    ("Choice (B).", "B"),
    ("option B. Paris", "B"),
    ("Paris", "B"),
    ("paris.", "B"),
    ("Answer: Paris", "B"),
    ("Cannot be determined", "D"),
    ("The Louvre is on the Seine.\n\nB", "B"),
    ("B\n\nExplanation: A. is wrong", "B"),
    ("B. Paris\n\nExplanation:\nA. London has the Tate.", "B"),
    ("B. The answer is not A because of the Louvre", "B"),
    ("Answer: A\nWait.\nAnswer: B", "B"),
]
NOT_READ = [
    ("A or B", "no letter"),
    ("A and B", "no letter"),
    ("A, B", "more than one"),
    ("A. London or B. Paris", "more than one"),
    ("(A) London and (B) Paris", "more than one"),
    ("A. London\nB. Paris\nC. Rome", "more than one"),
    ("A dog", "no letter"),
    ("I think so", "no letter"),
    ("It is Paris, not London", "no letter"),
    ("B. Rome", "beside the text of another choice"),
    ("A. Rome", "beside the text of another choice"),  # and not Rome, with an article
    ("E", "none of A to D"),
    ("The answer is E.", "none of A to D"),
    ("42", "no letter"),
    ("...", "no letter"),
]


@pytest.mark.parametrize(("answer", "letter"), READ)
def test_a_letter_is_read(answer, letter):
    grade = GRADER.grade(Example("?", CITIES, (letter,)), answer)
    assert (grade.value, grade.predicted, grade.refused) == (1, letter, False)
    other = "A" if letter != "A" else "C"
    assert GRADER.grade(Example("?", CITIES, (other,)), answer).value == 0


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (("heat", "light", "neither", "Both A and B"), "D. Both A and B.", "D"),  # MMLU has several such
        (("I and II only", "II only", "I, II and III", "none"), "C. I, II and III", "C"),
        (("B", "C", "D", "A"), "A. B", "A"),
        (("$C$ or D", "x"), "The answer is A: C or D.", "A"),
        (("Paris", "Rome"), "A. Paris or B. Rome", None),
        (("Both A and B", "x"), "A. Both A and B, or B.", None),
    ],
)
def test_letters_in_the_choices_own_text_are_no_second_answer(choices, answer, letter):
    grade = GRADER.grade(Example("?", choices, ("A",)), answer)

    assert (grade.predicted, grade.reason) == (letter, "" if letter else "more than one letter can be read")


@pytest.mark.parametrize(("answer", "reason"), NOT_READ)
def test_what_names_no_letter_or_several_is_wrong_with_a_reason(answer, reason):
    for letter in "ABCD":
        grade = GRADER.grade(Example("?", CITIES, (letter,)), answer)
        assert (grade.value, grade.predicted) == (0, None)
        assert reason in grade.reason


texts = st.lists(
    st.text(st.characters(categories=["L", "N"]), min_size=2, max_size=8),
    min_size=2,
    max_size=10,
    unique_by=str.casefold,
)


@given(texts, st.data())
@settings(max_examples=300)
def test_every_common_form_reads_as_its_letter(choices, data):
    """Whatever the choices, in every form that names one of them alone."""
    i = data.draw(st.integers(0, len(choices) - 1))
    letter, text = LETTERS[i], choices[i]
    forms = ["{letter}", "({letter})", "{letter}.", "{letter}) {text}", "({letter}) {text}", "Answer: {letter}"]
    forms += [
        "The answer is {letter}.",
        "Answer: ({letter}) {text}",
        "{text}",
        "**{letter}. {text}**",
        "Option {letter}",
    ]
    form = data.draw(st.sampled_from(forms))
    said = form.format(letter=letter, text=text)
    assert GRADER.grade(Example("?", tuple(choices), (letter,)), said).predicted == letter


def test_a_letter_goes_before_a_choice_that_is_that_letter():
    """As P(T) of the letters has it. MMLU has such choices: "B", "Al", "In", "Tl"."""
    assert GRADER.grade(Example("?", ("B", "Al", "In", "Tl"), ("B",)), "B").value == 1
    assert GRADER.grade(Example("?", ("B", "Al", "In", "Tl"), ("B",)), "Al").value == 1


def test_choices_that_differ_in_a_sign_alone_are_told_apart():
    """MMLU's formal logic: "A", "~A", "B", "~B"; and numbers with a sign."""
    assert GRADER.grade(Example("?", ("X", "~X", "Y", "~Y"), ("B",)), "~X").predicted == "B"
    assert GRADER.grade(Example("?", ("4", "-4"), ("B",)), "-4").predicted == "B"


def test_the_text_of_two_choices_names_neither():
    grade = GRADER.grade(Example("?", ("12", "-4", "12"), ("A",)), "12")
    assert (grade.value, grade.predicted) == (0, None)
    assert "A, C have the same text" in grade.reason


def test_a_choice_that_says_that_nobody_knows_is_no_refusal():
    grade = GRADER.grade(Example("?", CITIES, ("D",)), "Cannot be determined")
    assert (grade.value, grade.refused) == (1, False)


def test_without_choices_any_letter_counts():
    """Questions that hold their choices in their text, as the bundled models' do."""
    assert GRADER.grade(Example("Which? A. x B. y", references=("B",)), "B").value == 1
    assert GRADER.grade(Example("Which?", references=("Z",)), "Answer: Z").value == 1


def test_a_choice_may_itself_say_what_the_answer_is():
    grade = GRADER.grade(Example("?", ("The answer is B", "Neither"), ("A",)), "The answer is B")
    assert (grade.value, grade.predicted) == (1, "A")


def test_a_choice_called_answer_is_not_named_by_the_word():
    assert GRADER.grade(Example("?", ("Question", "Answer"), ("A",)), "Answer: A").predicted == "A"


def test_several_right_letters():
    assert GRADER.grade(Example("?", CITIES, ("A", "B")), "B").value == 1
