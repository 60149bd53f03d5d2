"""What all graders share: conclusions, "I don't know", references that are another model's answers, and identities."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from confcascade import drivers
from confcascade.demo.world import UNKNOWN
from confcascade.errors import ConfigurationError
from confcascade.graders import (
    ChoiceLetter,
    ContainsAny,
    ExactMatch,
    Function,
    LLMJudge,
    NormalizedMatch,
    Numeric,
    StructuredMatch,
)
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.letters import conclusion
from confcascade.testing import ScriptedModel
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel


class City(BaseModel):
    name: str


PLAIN = [ChoiceLetter(), ContainsAny(), ExactMatch(), NormalizedMatch(), Numeric(), StructuredMatch(City)]
ALL = [*PLAIN, Function(str.__eq__), LLMJudge(ScriptedModel("judge", lambda request: "no"))]
by_name = pytest.mark.parametrize("grader", PLAIN, ids=lambda grader: grader.name)


@pytest.mark.parametrize(
    ("answer", "concluded"),
    [
        ("14", "14"),
        ("17-3=14\nAnswer: 14", "14"),
        ("**Answer:** 14", "14"),
        ("**Answer: 14**", "14"),
        ("Answer: 13\nNo, wait. Answer: 14", "14"),
        ("So the answer is 14.", "14."),
        ("The final answer is:\n\n14", "14"),
        ("I don't know what the answer is.", "I don't know what the answer is."),
        ("I don't know what the answer is to that.", "I don't know what the answer is to that."),
        ("Answer:", "Answer:"),
        ("14. Answer: .", "14. Answer: ."),
        (" 14\n", "14"),
    ],
)
def test_a_conclusion_is_what_stands_behind_answer(answer, concluded):
    assert conclusion(answer) == concluded


REFUSALS = [
    UNKNOWN,
    f"{UNKNOWN}.",
    f"Answer: {UNKNOWN}",
    "I do not know who that is.",
    "I don’t know.",
    "Sorry, I don't know",
    "I'm sorry, but I really don't know.",
    "I am not sure.",
    "I have no idea",
    "We cannot determine that from the text.",
    "Unfortunately, I do not have enough information to answer this question.",
    "I'm unable to answer that.",
    "don't know",
    "Unknown.",
    "The answer is unknown.",
    "I don't know what the answer is.",
    "  \nI DON'T   KNOW\n",
]
ANSWERS = [
    "",
    "Paris",
    "I don't know, but maybe Paris",
    "I'm not sure, Paris",
    "I don't know for certain. I think it is Paris.",
    "I don't know. Answer: Paris",
    "I do not know the exact year, approximately 1900",
    "Unknown Pleasures",
    "The Man Who Didn't Know",
    "He said: I don't know",
    "Know your enemy",
    "I don't have kids",
]


@by_name
@pytest.mark.parametrize("answer", REFUSALS)
def test_not_knowing_is_told_from_being_wrong(grader, answer):
    grade = grader.grade(Example("?", references=('{"name": "B"}',)), answer)
    assert grade.refused
    assert grade.value != 1


@by_name
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_all_the_same_is_no_refusal(grader, answer):
    """The phrases are few: what they overlook is counted against the model, not for it."""
    assert not grader.refuses(answer)


def test_what_counts_as_a_refusal_can_be_said():
    grader = ExactMatch(refusal=r"^pass$")
    assert grader.refuses("Answer: PASS")
    assert not grader.refuses(UNKNOWN)
    with pytest.raises(ConfigurationError, match="must be a regular expression"):
        ExactMatch(refusal="(")


@by_name
def test_the_bundled_models_refusals_are_found(grader):
    """The text that they were taught, where it is right and where it is not."""
    assert grader.grade(Example("?", references=(UNKNOWN,)), UNKNOWN).value == 1
    assert grader.grade(Example("?", references=("7",)), UNKNOWN).value in (0, None)
    assert grader.grade(Example("?", references=(UNKNOWN,)), "7").value in (0, None)


def test_bundled_models_that_do_not_know_are_counted_apart():
    """Real answers: to strangers the large model says that it does not know them, to sums it gives a number."""
    pytest.importorskip("transformers")
    from confcascade import Message, Request
    from confcascade.asks import Generate
    from confcascade.demo.world import World
    from confcascade.models.bundled import bundled_model

    model, grader = bundled_model("large"), NormalizedMatch()
    questions = World().questions("test", ("refusals", "sums"), per_task=30)
    asks = [Generate(model, Request((Message("user", question.prompt),))) for question in questions]
    answers = [answer.text for answer in model.generate(asks)]
    for question, answer in zip(questions, answers, strict=True):
        grade = grader.grade(Example(question.prompt, references=(question.reference,)), answer)
        assert grade.refused == answer.startswith(UNKNOWN)
        assert grade.value == question.is_correct(answer)
    assert sum(map(grader.refuses, answers)) >= 15


@by_name
@given(answer=st.text())
def test_any_text_has_a_grade(grader, answer):
    """Whatever a model says: a value in [0, 1] or None, and no error."""
    for reference in ("B", '{"name": "x"}', answer):
        grade = grader.grade(Example("?", ("x", "7"), (reference,)), answer)
        assert grade.value is None or 0 <= grade.value <= 1


@by_name
def test_without_a_reference_nothing_is_graded(grader):
    assert grader.grade(Example("?"), "B") == Grade(None, reason="the example has no reference")


@by_name
def test_an_empty_answer_is_wrong(grader):
    assert grader.grade(Example("?", references=("B",)), " \n").value == 0


@by_name
def test_a_plain_grader_asks_nobody(grader):
    example = Example("?", references=("B",))
    assert drivers.run(grader.judge(example, "B")) == grader.grade(example, "B")


SAME = [
    (ChoiceLetter(), "The answer is (B).", "B. Paris"),
    (ChoiceLetter(), "Paris", "Answer: B"),
    (Numeric(), "9 * 2 = 18\n#### 18", "That makes $18.00 a day."),
    (NormalizedMatch(), "Reasoning.\nAnswer: The Louvre!", "Louvre"),
    (ExactMatch(), "Answer: Paris", "Paris."),
    (StructuredMatch(City), '{"name": "Paris"}', '```json\n{"name": "Paris"}\n```'),
    (NormalizedMatch(), UNKNOWN, "I do not know."),
    (ChoiceLetter(), UNKNOWN, "I do not know."),
]


@pytest.mark.parametrize(("grader", "one", "other"), SAME, ids=lambda value: getattr(value, "name", None))
def test_two_answers_that_say_the_same_are_equal_either_way(grader, one, other):
    """Without labels: a larger model's answer is the reference, read as answers are."""
    example = Example("Where?", ("London", "Paris", "Rome"), ("A",))
    assert grader.grade(replace(example, references=(one,)), other).value == 1
    assert grader.grade(replace(example, references=(other,)), one).value == 1


@pytest.mark.parametrize("grader", [ChoiceLetter(), Numeric(), StructuredMatch(City)], ids=lambda grader: grader.name)
def test_an_answer_that_cannot_be_read_is_no_reference(grader):
    """Whether both say the same is then not known, rather than false."""
    grade = grader.grade(Example("?", ("x", "y"), ("hm, well",)), '{"name": "B"}')
    assert grade.value is None
    assert grade.reason


@pytest.mark.parametrize("grader", ALL, ids=lambda grader: grader.name)
def test_identities_are_json(grader):
    assert json.loads(json.dumps(grader.identity()))["grader"] == grader.name


def test_identities_tell_apart_what_grades_otherwise():
    graders = [
        *ALL,
        Numeric(tolerance=0.1),
        ExactMatch(refusal="^$"),
        StructuredMatch(City, key="name"),
        LLMJudge(ScriptedModel("judge"), "Is {answer} right?"),
    ]
    identities = [json.dumps(grader.identity(), sort_keys=True) for grader in graders]
    assert len(set(identities)) == len(graders)
    assert ExactMatch().identity() == ExactMatch().identity()
