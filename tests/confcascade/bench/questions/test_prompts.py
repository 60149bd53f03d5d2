from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confcascade import ConfigurationError, Message
from confcascade.bench.questions.prompts import PROMPTS, Prompt, prompt_from
from confcascade.graders.example import Example
from hypothesis import given
from hypothesis import strategies as st

CHOICE = Example("Is it so?", ("yes", "no", "at times", "never"), group="abstract_algebra", id="x1")
OPEN = Example("Who made the bell?")


def said(prompt: Prompt, example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages(example)]


def test_the_papers_multiple_choice_prompt():
    """To the letter, as one user's message; the group is the subject, the choices are lettered."""
    assert said(PROMPTS["multiple-choice"], CHOICE) == [
        (
            "user",
            "The following are multiple choice questions about abstract algebra. Please determine the correct answer "
            'in the format "Answer: <answer>", where <answer> is A, B, C or D.\n Question: Is it so?\n Choices: '
            "A. yes\nB. no\nC. at times\nD. never\n Answer:",
        )
    ]


def test_the_papers_open_ended_prompt():
    """To the letter, and the assistant's turn is not begun for it: then "Answer" can be its first token."""
    assert said(PROMPTS["open-ended"], OPEN) == [
        (
            "system",
            "The following are questions about entity relationship. Please determine the correct answer in the format "
            '"Answer: <answer>".',
        ),
        ("user", "Question: Who made the bell?"),
    ]


@pytest.mark.parametrize(
    ("example", "user"),
    [
        (OPEN, "Who made the bell?"),
        (Example("Who?", context="Ann did."), "Ann did.\n\nWho?"),
        (Example("Who?", ("Ann", "Bo")), "Who?\nA. Ann\nB. Bo"),
        (Example("Who?", ("Ann",), context="Ann\n\n\ndid."), "Ann\n\n\ndid.\n\nWho?\nA. Ann"),
    ],
    ids=["question", "context", "choices", "all"],
)
def test_the_plain_prompt(example: Example, user: str):
    """What an example has not leaves no gap, and what it has stays as it is."""
    assert said(PROMPTS["plain"], example) == [("user", user)]


def test_letters_are_those_of_the_choices():
    """Three choices are "A, B or C", two "A or B", one "A"."""
    prompt = Prompt("letters", None, "{question} {letters}")
    lettered = [said(prompt, Example("Q", tuple("xyz"[:n])))[0][1] for n in (3, 2, 1)]

    assert lettered == ["Q A, B or C", "Q A or B", "Q A"]


@given(st.text(min_size=1).filter(str.strip), st.lists(st.text(), max_size=5), st.none() | st.text(min_size=1))
def test_values_are_never_read_as_templates(question: str, choices: list[str], context: str | None):
    """Braces and blank lines of a question stay as they are."""
    example = Example(question, tuple(choices), context=context)
    ((role, text),) = said(PROMPTS["plain"], example)

    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False))
    assert (role, text) == ("user", (f"{context}\n\n" if context else "") + question + listed)


def test_braces_of_a_template_are_doubled():
    """A template may ask for JSON."""
    prompt = Prompt("json", "", '{question}\nAnswer as {{"answer": ...}}.')

    assert prompt.messages(OPEN) == (Message("user", 'Who made the bell?\nAnswer as {"answer": ...}.'),)


def test_lines_without_a_value_are_left_out():
    """With their label; a system message of which nothing is left is not sent."""
    prompt = Prompt("mine", "{context}", "Text: {context}\n\nOn {question}\n\nChoices: {choices}\n\nBegin.")

    assert said(prompt, OPEN) == [("user", "On Who made the bell?\n\nBegin.")]
    assert said(prompt, Example("Q", ("a",), context="C")) == [
        ("system", "C"),
        ("user", "Text: C\n\nOn Q\n\nChoices: A. a\n\nBegin."),
    ]


def test_the_templates_own_blank_lines_stay():
    """Where nothing is left out, nothing is tidied."""
    assert said(Prompt("mine", None, "\n{question}\n\n\nEnd.\n"), OPEN)[0][1] == "\nWho made the bell?\n\n\nEnd.\n"


@pytest.mark.parametrize(
    ("prompt", "example", "named"),
    [
        ("multiple-choice", Example("Q", ("a", "b")), "{subject}"),
        ("multiple-choice", Example("Q", group="g", id="x2"), "{letters}, and example 'x2'"),
    ],
)
def test_what_cannot_be_left_out_is_an_error(prompt: str, example: Example, named: str):
    """The paper's sentence on the subject makes no sense without one."""
    with pytest.raises(ConfigurationError) as raised:
        PROMPTS[prompt].messages(example)

    assert named in str(raised.value)


def test_the_version_is_the_texts():
    """Another text is another version, another name is not; and the versions of our own prompts stay as they are."""
    prompt = Prompt("a", None, "{question}")

    assert prompt.version == Prompt("b", "", "{question}").version
    assert prompt.version != Prompt("a", None, "{question} ").version
    assert prompt.version != Prompt("a", "Be brief.", "{question}").version
    # a recording or a fitted threshold belongs to a version: change a prompt, and they are void
    assert {name: prompt.version for name, prompt in PROMPTS.items()} == VERSIONS


VERSIONS = {"plain": "0bd30cb2c2af", "multiple-choice": "01a3fb11f4f6", "open-ended": "41501fb33d6f"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Prompt("p", None, "{question} {name}"), "Prompt 'p' has the field {name}; its fields can be"),
        (lambda: Prompt("p", None, "{question!r}"), "has the field {question} with a format"),
        (lambda: Prompt("p", None, "{question:>9}"), "has the field {question} with a format"),
        (lambda: Prompt("p", None, "{question.id}"), "has the field {question.id}"),
        (lambda: Prompt("p", None, "{}{question}"), "has the field {}"),
        (lambda: Prompt("p", None, "{question"), "cannot be read: expected '}' before end of string"),
        (lambda: Prompt("p", None, "{question} }"), "cannot be read: Single '}'"),
        (lambda: Prompt("p", "{question}", "{context}"), "does not ask: its `user` has no {question}"),
        (lambda: Prompt("p", 1, "{question}"), "`system` of prompt 'p' must be a text. Got int"),  # type: ignore[arg-type]
        (lambda: prompt_from("none"), "There is no prompt 'none', only plain, multiple-choice, open-ended"),
        (lambda: prompt_from({"system": "x"}), "Got ['system']"),
        (lambda: prompt_from({"user": "{question}", "assistant": "x"}), "Got ['assistant', 'user']"),
        (lambda: prompt_from({"user": None}), "`user` of prompt 'own' must be a text. Got NoneType"),
        (lambda: prompt_from(3), "Got int"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_templates_are_refused(make: Callable[[], Any], said: str):
    """Each error is one line that names the prompt and says what can be."""
    with pytest.raises(ConfigurationError) as raised:
        make()

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_prompts_of_ones_own():
    """By the keys of a mapping; a name alone is one of ours."""
    own = prompt_from({"user": "{question}", "system": "Be brief.", "name": "brief"})

    assert own == Prompt("brief", "Be brief.", "{question}")
    assert prompt_from({"user": "{question}"}).name == "own"
    assert prompt_from("plain") is PROMPTS["plain"]
