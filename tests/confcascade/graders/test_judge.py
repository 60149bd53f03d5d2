"""A model as a judge: what it is asked, how its verdict is read, and what happens when there is none."""

from __future__ import annotations

import pytest
from confcascade import drivers
from confcascade.asks import Answer, Generate
from confcascade.demo.world import UNKNOWN
from confcascade.errors import ConfigurationError, ModelError
from confcascade.graders import LLMJudge
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.graders.judge import read_verdict
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Response

EXAMPLE = Example("Where is the {Louvre}?", ("London", "Paris"), ("Paris", "Lutetia"), "A context.")


def judged(reply, **options):
    return LLMJudge(ScriptedModel("judge", lambda request: reply), **options)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("yes", 1),
        ("No.", 0),
        ("Verdict: yes", 1),
        ("**Verdict:** No", 0),
        ("It says the same, in French. Verdict: yes.", 1),
        ("Verdict: no\nOn second thoughts.\nVerdict: yes", 1),
        ("Yes, both name the city.", 1),
        ("0.75", 0.75),
        ("Verdict: 0.5", 0.5),
        ("1", 1),
        ("1.0", 1),
        ("0", 0),
        (".5", 0.5),
        ("", None),
        ("maybe", None),
        ("Yes and no.", None),
        ("yes/no", None),
        ("7/10", None),
        ("1/10", None),
        ("1 out of 5", None),
        ("1.5", None),
        ("-0.5", None),
        ("85%", None),
        ("10", None),
        ("Not really", None),
        ("The answer is right", None),
    ],
)
def test_a_verdict_is_read_or_the_answer_stays_without_a_grade(reply, value):
    assert read_verdict(reply) == value
    grade = judged(reply).grade(EXAMPLE, "the French capital")
    assert grade.value == value
    assert " ".join(reply.split()) in grade.reason


def test_it_is_asked_through_a_flow():
    """One ask of one model, greedily and without log-probabilities; whoever drives it may batch it."""
    model = ScriptedModel("judge")
    flow = LLMJudge(model).judge(EXAMPLE, "in {Paris}")
    (asked,) = next(flow)
    assert isinstance(asked, Generate)
    assert asked.model is model
    assert (asked.request.temperature, asked.logprobs) == (0, False)
    (message,) = asked.request.messages
    for part in (EXAMPLE.question, "Paris / Lutetia", "in {Paris}"):  # braces of the texts are left alone
        assert part in message.content
    with pytest.raises(StopIteration) as ended:
        flow.send((Answer(Response("Verdict: yes")),))
    assert ended.value.value == Grade(1.0, reason="the judge said: Verdict: yes")


def test_a_template_has_places_for_all_that_is_known():
    judge = judged("no", template="{{json}} {question} {choices} {context} {references} {answer}")
    assert judge.prompt(EXAMPLE, "x") == (
        "{json} Where is the {Louvre}? A. London\nB. Paris A context. Paris / Lutetia x"
    )


@pytest.mark.parametrize("template", ["Is it right?", "{answer} {colour}", "{answer} {", "{answer} {}"])
def test_a_template_without_the_answer_or_with_other_places_is_an_error(template):
    with pytest.raises(ConfigurationError, match="template"):
        judged("yes", template=template)


def test_a_judge_that_fails_leaves_the_answer_without_a_grade():
    grade = judged(Reply("", error=ModelError("overloaded"))).grade(EXAMPLE, "Paris")
    assert grade.value is None
    assert grade.reason == "the judge failed: ModelError: overloaded"


def test_nothing_is_asked_where_there_is_nothing_to_judge():
    judge = judged("yes")
    assert judge.grade(EXAMPLE, " ").value == 0
    assert judge.grade(Example("?"), "Paris").value is None
    assert not judge._model.calls
    assert judged("yes", template="Good? {answer}").grade(Example("?"), "Paris").value == 1


def test_refusals_are_found_beside_the_verdict():
    assert judged("no").grade(EXAMPLE, UNKNOWN).refused


def test_many_answers_are_judged_in_one_call():
    """As `run_batch` asks them: the flows of one model go out together."""
    model = ScriptedModel("judge", lambda request: "Verdict: yes", batch_size=8)
    judge = LLMJudge(model)
    graded = dict(drivers.run_many((judge.judge(EXAMPLE, f"answer {i}") for i in range(8)), 16))
    assert [graded[i].value for i in range(8)] == [1.0] * 8
    assert [len(call) for call in model.calls] == [8]


def test_a_real_model_may_judge_and_may_fail_to():
    """A bundled model knows a made-up world and no verdicts: what it says is told, and is no grade."""
    pytest.importorskip("transformers")
    from confcascade.models.bundled import bundled_model

    grade = LLMJudge(bundled_model("small")).grade(Example("Where?", references=("Paris",)), "Paris")
    assert grade.value is None
    assert grade.reason.startswith("no verdict in: ")


def test_a_judge_is_a_model():
    with pytest.raises(ConfigurationError, match="must be a LanguageModel or a string"):
        LLMJudge(42)
