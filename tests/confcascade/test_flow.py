"""Whole cascades, played by hand: no driver, and no model is ever called."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from confcascade import (
    Architecture,
    Cascade,
    CascadeExhaustedError,
    ConfigurationError,
    Cost,
    Message,
    ModelError,
    Outcome,
    OutputSchema,
    Prices,
    Request,
    SignalUnavailableError,
    Stage,
    StreamBrokenError,
    TokenProbability,
    Tool,
    ToolCall,
    Usage,
)
from confcascade.answers import parted
from confcascade.asks import Answer, Generate, Prefill, ask
from confcascade.cost import forward_flops
from confcascade.errors import kept_of
from confcascade.extending import Capability, Evidence, Measurement, Prefilled, Response, Signal, Token
from confcascade.flow import cascade_flow
from confcascade.stage import policy_id
from confcascade.testing import Reply, ScriptedModel
from hypothesis import given, settings
from hypothesis import strategies as st

REQUEST = Request((Message("user", "2+2?"),), max_tokens=5, stop=("\n",))


class Known(Signal):
    """A stand-in for P(IK): the score is the hidden state itself."""

    phase: ClassVar[Literal["pre", "post"]] = "pre"
    name = "p_ik"

    def layers(self, model: Any) -> tuple[int, ...]:
        del model
        return (2,)

    def check(self, model: Any) -> None:
        assert model.capability.layers

    def score(self, evidence: Evidence) -> Measurement:
        assert evidence.prefilled is not None
        assert evidence.response is None, "a signal of the phase `pre` judges before anything is generated"
        return Measurement(evidence.prefilled.hidden_states[2])

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "Known"}


SMALL = ScriptedModel("small", hidden_size=1, architecture=Architecture(1000, 2, 10))
MIDDLE = ScriptedModel("middle", architecture=Architecture(10_000, 4, 20))
LARGE = ScriptedModel("large", architecture=Architecture(100_000, 8, 40))


def sure(threshold: Any = 0.9, model: Any = MIDDLE) -> Stage:
    return Stage(model, [TokenProbability()], {"p_t": threshold})


def knowing(threshold: Any = 0.5) -> Stage:
    return Stage(SMALL, [Known(), TokenProbability()], {"p_ik": threshold, "p_t": 0.9})


def prefilled(p_ik: float = 0.0, **labels: float) -> Answer[Any]:
    found = Prefilled(Usage(7), {2: p_ik}, {label: math.log(p) for label, p in labels.items()})
    return Answer(found, elapsed_s=0.25, busy_s=0.125)


def said(text: str, p: float | None = 0.99, output: int = 1, **more: Any) -> Answer[Any]:
    tokens = None if p is None else tuple(Token(word, math.log(p)) for word in text.split())
    return Answer(Response(text, tokens, Usage(7, output), **more), elapsed_s=2.0, busy_s=1.0)


def failed(error: Exception) -> Answer[Any]:
    return Answer(error=error, elapsed_s=0.5, busy_s=0.5)


def outcome_of(flow: Any, answer: Answer[Any]) -> Outcome:
    """The result of a flow that ends with this answer."""
    with pytest.raises(StopIteration) as stopped:
        flow.send((answer,))
    assert not SMALL.calls + MIDDLE.calls + LARGE.calls, "a flow never touches a model"
    assert isinstance(stopped.value.value, Outcome)
    return stopped.value.value


def decisions(outcome: Outcome) -> list[tuple[str, str]]:
    return [(attempt.model, attempt.decision) for attempt in outcome.record.attempts]


# ---------------------------------------------------------------------- before generating


class Stopping(ScriptedModel):
    """A model whose passes end where a gate says so."""

    @property
    def capability(self) -> Capability:
        return dataclasses.replace(super().capability, stops=True)


SIZE = Architecture(1000, 2, 10, 200)
STOPPING = Stopping("small", hidden_size=1, architecture=SIZE)


class Counted(Known):
    """Notes what it judges."""

    def __init__(self, layer: int = 2, name: str = "p_ik") -> None:
        self.name = name
        self.layer = layer
        self.judged: list[float] = []

    def layers(self, model: Any) -> tuple[int, ...]:
        del model
        return (self.layer,)

    def score(self, evidence: Evidence) -> Measurement:
        assert evidence.prefilled is not None
        self.judged.append(evidence.prefilled.hidden_states[self.layer])
        return Measurement(self.judged[-1])


class Worded(Counted):
    """Judges by the question alone."""

    def layers(self, model: Any) -> tuple[int, ...]:
        return ()

    def score(self, evidence: Evidence) -> Measurement:
        self.judged.append(0.25)
        return Measurement(0.25)


def gated(signals: list[Signal], threshold: Any = 0.5, model: Any = STOPPING, **more: Any) -> tuple[Any, Any]:
    """A flow, and the pass that it asks for."""
    thresholds = {signal.name: threshold for signal in signals}
    flow = cascade_flow([Stage(model, signals, thresholds, **more), Stage(LARGE)], REQUEST)
    (first,) = next(flow)
    assert isinstance(first, Prefill)
    return flow, first


@pytest.mark.parametrize(
    ("score", "threshold", "goes_on"),
    [(0.5, 0.5, True), (0.49, 0.5, False), (1.0, "never", False), (0.0, "always", True)],
)
def test_a_gate_ends_the_pass_where_the_score_does_not_pass(score: float, threshold: Any, goes_on: bool):
    """By the very rule of the flow, whatever the threshold; nothing is judged a second time."""
    signal = Counted()
    flow, first = gated([signal], threshold)

    assert first.gate is not None
    assert first.gate({2: score}) is goes_on
    depth = None if goes_on else 0.5
    read = Prefilled(Usage(7), {2: score}, depth=depth, state=None)
    (asked,) = flow.send((Answer(read, elapsed_s=0.25, busy_s=0.125),))

    assert signal.judged == [score]
    assert asked.model is (STOPPING if goes_on else LARGE)
    if not goes_on:
        attempt = outcome_of(flow, said("4")).record.attempts[0]
        assert attempt.usage == Usage(7, 0)
        assert (attempt.cost.tokens, attempt.cost.seconds) == (7, 0.125)
        assert attempt.cost.flops == 0.5 * forward_flops(Architecture(800, 2, 10), Usage(7))


def test_a_gate_waits_for_the_last_layer_and_judges_all():
    """What is on record, and what `skip` reads, does not depend on which signal fails first."""
    signals: list[Any] = [Counted(3, "late"), Worded(name="words"), Counted(1, "early")]
    flow, first = gated(signals, 0.5, skip={"late": 0.1})

    assert first.gate({1: 0.0})
    assert not any(signal.judged for signal in signals)
    assert not first.gate({1: 0.75, 3: 0.9})  # the words do not pass
    read = Prefilled(Usage(7), {1: 0.75, 3: 0.9}, depth=0.75)
    flow.send((Answer(read),))
    attempt = outcome_of(flow, said("4")).record.attempts[0]

    assert [signal.judged for signal in signals] == [[0.9], [0.25], [0.75]]
    assert list(attempt.scores) == ["late", "words", "early"]
    assert attempt.reason == "late 0.9 >= 0.5, words 0.25 < 0.5, early 0.75 >= 0.5"


def test_deeper_layers_of_an_answers_signals_end_nothing():
    """A signal that judges by the answer may want a layer behind; that the pass came there is no news."""

    class Answered(Counted):
        phase: ClassVar[Literal["pre", "post"]] = "post"

    known = Counted(2)
    _, first = gated([known, Answered(4, "later")])

    assert first.layers == (2, 4)
    assert first.gate({2: 0.9})
    assert first.gate({2: 0.9, 4: 0.0})
    assert known.judged == [0.9]


def test_a_missing_score_ends_nothing():
    """The model's own error may be why, which only a whole pass shows; the flow judges again what it then gets."""

    class Missing(Counted):
        def score(self, evidence: Evidence) -> Measurement:
            if math.isnan(super().score(evidence).value if self.judged else math.nan):
                self.judged.append(0.0)
                raise SignalUnavailableError("not finite")
            return Measurement(self.judged[-1])

    signal = Missing()
    flow, first = gated([signal])

    assert first.gate({2: math.nan})
    (asked,) = flow.send((Answer(error=ModelError("overflow")),))
    assert asked.model is LARGE


def test_a_signal_that_breaks_in_a_gate_breaks_in_the_flow():
    class Broken(Counted):
        def score(self, evidence: Evidence) -> Measurement:
            raise ZeroDivisionError("by zero")

    flow, first = gated([Broken()])

    assert first.gate({2: 0.1})
    flow.send((Answer(Prefilled(Usage(7), {2: 0.1})),))
    attempt = outcome_of(flow, said("4")).record.attempts[0]
    assert (attempt.decision, attempt.error is not None) == ("fail", True)


def test_scores_are_of_the_pass_that_is_answered():
    """A call that failed and was made again has other hidden states: what was made of the first is not taken."""
    signal = Counted()
    flow, first = gated([signal])

    assert first.gate({2: 0.75})  # of a batch that failed then
    flow.send((Answer(Prefilled(Usage(7), {2: 0.25})),))
    attempt = outcome_of(flow, said("4")).record.attempts[0]

    assert signal.judged == [0.75, 0.25]
    assert attempt.reason == "p_ik 0.25 < 0.5"


class Asking(Counted):
    """Asks the model further before it judges."""

    def judge(self, evidence: Evidence) -> Any:
        yield (Generate(STOPPING, REQUEST),)
        return self.score(evidence)


class Expecting(Counted):
    following = True


@pytest.mark.parametrize(
    ("signals", "model"),
    [
        ([Counted()], SMALL),
        ([Counted(), Asking(name="asks")], STOPPING),
        ([Counted(), Expecting(name="expects")], STOPPING),
    ],
)
def test_what_needs_the_whole_pass_gets_it(signals: list[Signal], model: Any):
    """A model that obeys no gate is given none, nor one whose signals want more than hidden states."""
    assert gated(signals, model=model)[1].gate is None


def test_a_query_the_model_does_not_know_is_never_generated():
    """Where P(IK) fails, the prompt was read and nothing else: the next thing asked is the next model."""
    flow = cascade_flow([knowing(0.5), Stage(LARGE)], REQUEST)

    assert next(flow) == (Prefill(SMALL, REQUEST, layers=(2,), labels=()),)
    (asked,) = flow.send((prefilled(p_ik=0.49),))
    outcome = outcome_of(flow, said("4"))

    assert asked.model is LARGE
    assert decisions(outcome) == [("small", "escalate"), ("large", "accept")]
    assert outcome.record.attempts[0].reason == "p_ik 0.49 < 0.5"
    assert list(outcome.record.attempts[0].scores) == ["p_ik"]
    assert outcome.record.attempts[0].usage == Usage(7, 0)


def test_a_query_the_model_knows_continues_from_its_prefill():
    """Where P(IK) passes, generation continues from what was read; the prompt is not read again."""
    flow = cascade_flow([knowing(0.5), Stage(LARGE)], REQUEST)

    next(flow)
    answer = prefilled(p_ik=0.5)  # a score that equals its threshold passes
    (asked,) = flow.send((answer,))
    outcome = outcome_of(flow, said("4", 0.95))

    assert isinstance(asked, Generate)
    assert asked.model is SMALL
    assert asked.prefilled is answer.value
    assert (outcome.text, decisions(outcome)) == ("4", [("small", "accept")])
    assert outcome.record.attempts[0].reason == "p_ik 0.5 >= 0.5, p_t 0.95 >= 0.9"


def test_a_label_too_unlikely_is_never_generated():
    """P(T) of labels is known from the prompt: one below its threshold escalates before anything is generated."""
    stage = Stage(SMALL, [TokenProbability("AB")], {"p_t": 0.7})
    flow = cascade_flow([stage, Stage(LARGE)], REQUEST)

    assert next(flow) == (Prefill(SMALL, REQUEST, layers=(), labels=("A", "B")),)
    (asked,) = flow.send((prefilled(A=0.6, B=0.3),))
    outcome = outcome_of(flow, said("A"))

    assert asked.model is LARGE
    assert outcome.record.attempts[0].reason == "p_t 0.6 < 0.7 (before generating)"
    assert outcome.record.attempts[0].scores["p_t"].details["label"] == "A"


def test_labels_are_read_from_the_answer_where_nothing_can_be_prefilled():
    """A model behind an API is asked for the alternatives of its first token instead."""
    stage = Stage(MIDDLE, [TokenProbability("AB")], {"p_t": 0.7})
    flow = cascade_flow([stage, Stage(LARGE)], REQUEST)

    (asked,) = next(flow)
    assert isinstance(asked, Generate)
    assert (asked.logprobs, asked.top_logprobs) == (True, 20)
    token = Token("A", math.log(0.5), ((" A", math.log(0.3)), ("A", math.log(0.5)), ("B", math.log(0.1))))
    outcome = outcome_of(flow, Answer(Response("A", (token,), Usage(7, 1))))

    assert outcome.record.attempts[0].scores["p_t"].value == pytest.approx(0.8)


def test_layers_and_labels_of_all_signals_are_asked_for_at_once():
    """One pass over the prompt serves every signal of a stage."""
    stage = Stage(SMALL, [Known(), TokenProbability("BA")], {"p_ik": 0.5, "p_t": 0.5})

    assert next(cascade_flow([stage, Stage(LARGE)], REQUEST)) == (Prefill(SMALL, REQUEST, (2,), ("B", "A")),)


# ---------------------------------------------------------------------- after generating


def test_a_sure_answer_is_kept():
    """The first stage whose scores reach their thresholds answers, and nobody else is asked."""
    flow = cascade_flow([sure(0.9), Stage(LARGE)], REQUEST, policy_id="abc")

    assert next(flow) == (Generate(MIDDLE, REQUEST, logprobs=True),)
    outcome = outcome_of(flow, said("4", 0.9 + 1e-9))

    assert outcome.text == "4"
    assert (outcome.record.policy_id, outcome.record.stage, outcome.record.answered_by) == ("abc", 0, "middle")
    assert outcome.record.degraded is False


def test_an_unsure_answer_is_passed_on():
    """Each next stage gets the same request; none sees the rejected answer."""
    flow = cascade_flow([sure(0.9, SMALL), sure(0.8), Stage(LARGE)], REQUEST)

    (first,) = next(flow)
    (second,) = flow.send((said("3", 0.7),))
    (third,) = flow.send((said("5", 0.7),))
    outcome = outcome_of(flow, said("4", 0.1))

    assert [each.model for each in (first, second, third)] == [SMALL, MIDDLE, LARGE]
    assert all(each.request is REQUEST for each in (first, second, third))
    assert outcome.text == "4"
    assert decisions(outcome) == [("small", "escalate"), ("middle", "escalate"), ("large", "accept")]
    assert [attempt.reason for attempt in outcome.record.attempts] == ["p_t 0.7 < 0.9", "p_t 0.7 < 0.8", "last stage"]


def test_the_last_stage_is_asked_live_and_not_judged():
    """Nothing can withdraw the last answer: it may be shown as it comes, and needs no signal, even if it has some."""
    last = Stage(SMALL, [Known(), TokenProbability()], {"p_ik": "never", "p_t": "never"})
    flow = cascade_flow([last], REQUEST)

    assert next(flow) == (Generate(SMALL, REQUEST, logprobs=False, live=True, final=True),)
    outcome = outcome_of(flow, said("4", None))

    assert outcome.record.attempts[0].scores == {}


def test_an_answer_nobody_judges_is_asked_live():
    """Once P(IK) has passed and there is no other signal, nothing can withdraw the answer."""
    flow = cascade_flow([Stage(SMALL, [Known()], {"p_ik": 0.5}), Stage(LARGE)], REQUEST)

    next(flow)
    (asked,) = flow.send((prefilled(p_ik=0.6),))

    assert (asked.live, asked.watch, asked.logprobs) == (True, None, False)


@pytest.mark.parametrize(("threshold", "answered_by"), [("always", "middle"), ("never", "large"), (0.0, "middle")])
def test_thresholds_beside_numbers(threshold: Any, answered_by: str):
    """`always` keeps whatever comes, `never` keeps nothing, and both are told in the record."""
    flow = cascade_flow([sure(threshold), Stage(LARGE)], REQUEST)

    next(flow)
    if answered_by == "large":
        flow.send((said("4", 1.0),))
        outcome = outcome_of(flow, said("5", 0.5))
    else:
        outcome = outcome_of(flow, said("4", 0.01))

    assert outcome.record.answered_by == answered_by
    assert outcome.record.attempts[0].scores["p_t"].threshold == threshold


def test_every_signal_must_pass():
    """One signal below its threshold is enough to escalate, wherever it stands; all are in the record."""
    signals = [TokenProbability(), TokenProbability(aggregate="min", name="weakest")]
    stage = Stage(MIDDLE, signals, {"p_t": 0.5, "weakest": 0.5})
    flow = cascade_flow([stage, Stage(LARGE)], REQUEST)

    next(flow)
    tokens = (Token("a", math.log(0.4)), Token(" b", math.log(0.99)))
    flow.send((Answer(Response("a b", tokens, Usage(7, 2))),))
    outcome = outcome_of(flow, said("4"))

    scores = outcome.record.attempts[0].scores
    assert {name: score.passed for name, score in scores.items()} == {"p_t": True, "weakest": False}
    assert outcome.record.attempts[0].reason == "p_t 0.629 >= 0.5, weakest 0.4 < 0.5"


def test_a_signal_may_ask_further_questions():
    """A signal that needs more calls asks for them through the flow; their answers come back to it."""

    class Asked(Known):
        phase: ClassVar[Literal["pre", "post"]] = "post"
        name = "asked"

        def layers(self, model: Any) -> tuple[int, ...]:
            del model
            return ()

        def judge(self, evidence: Evidence) -> Any:
            assert evidence.response is not None
            question = Request((Message("user", f"Is it {evidence.response.text}?"),))
            answer = yield from ask(Generate(LARGE, question))
            return Measurement(1.0 if answer.unwrap().text == "yes" else 0.0)

    flow = cascade_flow([Stage(MIDDLE, [Asked()], {"asked": 0.5}), Stage(LARGE)], REQUEST)

    next(flow)
    (asked,) = flow.send((said("4"),))
    outcome = outcome_of(flow, said("yes"))

    assert asked == Generate(LARGE, Request((Message("user", "Is it 4?"),)))
    assert (outcome.text, outcome.record.answered_by) == ("4", "middle")


# ---------------------------------------------------------------------- ending early


def watch_of(*signals: Signal, **thresholds: Any) -> Any:
    stage = Stage(MIDDLE, signals, thresholds)
    (asked,) = next(cascade_flow([stage, Stage(LARGE)], REQUEST))
    return asked.watch


def tokens(*probabilities: float) -> list[Token]:
    return [Token("x", math.log(p)) for p in probabilities]


def test_only_signals_that_can_decide_early_watch():
    """A mean can still rise and fall, and so can what follows a marker: nothing is gained by watching them."""
    assert watch_of(TokenProbability(), p_t=0.5) is None
    assert watch_of(TokenProbability(aggregate="min", after=":"), p_t=0.5) is None
    assert watch_of(TokenProbability(aggregate="min"), p_t=0.5) is not None


def test_a_watch_ends_what_can_only_fail():
    """The least probable token only gets less probable: below the threshold, the answer is lost."""
    watch = watch_of(TokenProbability(aggregate="min"), p_t=0.5)

    assert [watch(tokens(*p)) for p in ([], [0.9], [0.9, 0.5], [0.9, 0.49])] == ["hold", "hold", "hold", "abort"]


def test_a_watch_releases_what_can_only_pass():
    """The first token is final as soon as it is there. At a threshold of 0 a score may still be missing: it waits."""
    first = watch_of(TokenProbability(aggregate="first"), p_t=0.5)

    assert [first(tokens(*p)) for p in ([], [0.9], [0.4])] == ["hold", "release", "abort"]
    assert watch_of(TokenProbability(aggregate="min"), p_t=0.0)(tokens(0.1)) == "hold"
    assert watch_of(TokenProbability(aggregate="min"), p_t="always")([]) == "release"


def test_all_signals_must_release_and_one_can_abort():
    """With two signals, the answer is shown once neither can fail, and ended once either must."""
    watch = watch_of(
        TokenProbability(aggregate="first"), TokenProbability(aggregate="min", name="least"), p_t=0.5, least=0.3
    )

    assert [watch(tokens(*p)) for p in ([0.9], [0.4], [0.9, 0.2])] == ["hold", "abort", "abort"]


def test_an_aborted_draft_escalates_and_is_never_kept():
    """What a watch ended is no answer: it is not returned even if every later stage fails."""
    stage = Stage(MIDDLE, [TokenProbability(aggregate="min")], {"p_t": 0.5})
    flow = cascade_flow([stage, Stage(LARGE)], REQUEST, on_exhausted="best")

    next(flow)
    (asked,) = flow.send((said("maybe", 0.2, output=3, finish_reason="aborted"),))
    assert asked.model is LARGE
    with pytest.raises(CascadeExhaustedError, match="no earlier stage has a complete one"):
        flow.send((failed(ModelError("down")),))


def test_an_aborted_attempt_says_so():
    """The record tells that the draft was ended, after how many tokens, and with which score."""
    stage = Stage(MIDDLE, [TokenProbability(aggregate="min")], {"p_t": 0.5})
    flow = cascade_flow([stage, Stage(LARGE)], REQUEST)

    next(flow)
    flow.send((said("maybe", 0.2, output=3, finish_reason="aborted"),))
    attempt = outcome_of(flow, said("4")).record.attempts[0]

    assert (attempt.decision, attempt.aborted) == ("escalate", True)
    assert attempt.reason == "p_t 0.2 < 0.5 (ended after 3 tokens)"


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("error", [ModelError("down"), TimeoutError("60 s"), ValueError("odd")], ids=repr)
def test_a_failing_model_is_passed_over(error: Exception):
    """With on_error="escalate", whatever a model raises escalates the query; the record keeps its kind."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST, on_error="escalate")

    next(flow)
    (asked,) = flow.send((failed(error),))
    outcome = outcome_of(flow, said("4"))

    assert asked.model is LARGE
    assert decisions(outcome) == [("middle", "fail"), ("large", "accept")]
    assert outcome.record.attempts[0].error == outcome.record.attempts[0].reason == kept_of(error)
    assert outcome.record.attempts[0].latency_s == 0.5


def test_a_failing_prefill_is_passed_over():
    """A model that cannot even read the prompt is passed over like one that cannot answer."""
    flow = cascade_flow([knowing(), Stage(LARGE)], REQUEST)

    next(flow)
    (asked,) = flow.send((failed(ModelError("too long")),))

    assert asked.model is LARGE


@pytest.mark.parametrize("stage", [0, 1])
def test_a_failing_model_can_be_an_error(stage: int):
    """With on_error="raise", the model's own error ends the flow, at any stage."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST, on_error="raise")
    error = ModelError("down")

    next(flow)
    if stage == 1:
        flow.send((said("3", 0.1),))
    with pytest.raises(ModelError) as raised:
        flow.send((failed(error),))

    assert raised.value is error


def test_a_broken_stream_is_never_passed_over():
    """What was shown cannot be taken back: no other stage may answer, whatever else is configured."""
    error = StreamBrokenError("cut")
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST, on_error="escalate", on_exhausted="best")

    next(flow)
    flow.send((said("3", 0.1),))  # an earlier answer is there, and still must not follow the broken one
    with pytest.raises(StreamBrokenError) as raised:
        flow.send((failed(error),))

    assert raised.value is error


def test_a_broken_stream_of_an_early_stage_ends_the_query():
    """The same holds for a stage that others would follow."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST)

    next(flow)
    with pytest.raises(StreamBrokenError):
        flow.send((failed(StreamBrokenError("cut")),))


def test_the_best_earlier_answer_is_flagged():
    """If the last stage fails, the last complete answer is returned, and the record says that it was a rejected one."""
    flow = cascade_flow([sure(0.9, SMALL), sure(), Stage(LARGE)], REQUEST, on_exhausted="best")

    next(flow)
    flow.send((said("3", 0.1),))
    flow.send((said("5", 0.2),))
    outcome = outcome_of(flow, failed(ModelError("down")))

    assert (outcome.text, outcome.record.answered_by, outcome.record.stage) == ("5", "middle", 1)
    assert outcome.record.degraded is True
    assert decisions(outcome) == [("small", "escalate"), ("middle", "escalate"), ("large", "fail")]


def test_a_failing_last_stage_can_be_an_error():
    """With on_exhausted="raise", an earlier answer does not count; the cause is the last model's error."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST, on_exhausted="raise")
    error = ModelError("down")

    next(flow)
    flow.send((said("3", 0.1),))
    with pytest.raises(CascadeExhaustedError, match="'large', gave no answer \\(ModelError: down\\)") as raised:
        flow.send((failed(error),))

    assert raised.value.__cause__ is error


def test_without_any_answer_the_cascade_is_exhausted():
    """Where every stage fails, there is nothing to return."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST, on_exhausted="best")

    next(flow)
    flow.send((failed(ModelError("down")),))
    with pytest.raises(CascadeExhaustedError, match="no earlier stage has a complete one"):
        flow.send((failed(ModelError("down, too")),))


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_is_passed_over(text: str):
    """An answer that shows nothing is not judged, and is not kept for later."""
    flow = cascade_flow([sure("always"), Stage(LARGE)], REQUEST, on_exhausted="best")

    next(flow)
    (asked,) = flow.send((said(text, 1.0),))
    assert asked.model is LARGE
    with pytest.raises(CascadeExhaustedError, match="no earlier stage has a complete one"):
        flow.send((failed(ModelError("down")),))


def test_an_empty_last_answer_is_the_answer():
    """The last stage answers as it would alone: in an agent, nothing more to say is no failure."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST)

    next(flow)
    flow.send((said("3", 0.1),))
    outcome = outcome_of(flow, said(""))

    assert (outcome.text, outcome.record.degraded) == ("", False)
    assert outcome.record.attempts[1].reason == "last stage (empty answer)"


def test_a_tool_call_is_an_answer():
    """A call without text is not empty: the last stage's is accepted."""
    flow = cascade_flow([Stage(LARGE)], REQUEST)

    next(flow)

    assert decisions(outcome_of(flow, said("", None, finish_reason="tool_calls"))) == [("large", "accept")]


def test_a_score_that_cannot_be_computed_escalates_with_its_reason():
    """No value is invented: the attempt does not pass, and the record says why."""
    flow = cascade_flow([sure(0.0), Stage(LARGE)], REQUEST)

    next(flow)
    flow.send((said("3", None),))
    outcome = outcome_of(flow, said("4"))

    attempt = outcome.record.attempts[0]
    assert (attempt.decision, attempt.error) == ("escalate", None)
    assert attempt.reason == "p_t: the model returned no log-probabilities"
    assert (attempt.scores["p_t"].value, attempt.scores["p_t"].passed) == (None, False)


def test_always_asks_for_no_score():
    """Of a usable answer without one, too, such as tool calls of which a provider tells no log-probabilities."""
    flow = cascade_flow([sure("always"), Stage(LARGE)], REQUEST)

    next(flow)
    (attempt,) = outcome_of(flow, said("3", None)).record.attempts

    assert (attempt.decision, attempt.reason) == ("accept", "p_t: the model returned no log-probabilities")
    assert (attempt.scores["p_t"].value, attempt.scores["p_t"].passed) == (None, True)


def test_an_unjudged_answer_is_kept_for_later():
    """An answer whose score could not be computed is complete all the same, and better than none."""
    flow = cascade_flow([sure(), Stage(LARGE)], REQUEST, on_exhausted="best")

    next(flow)
    flow.send((said("3", None),))

    assert outcome_of(flow, failed(ModelError("down"))).text == "3"


def test_a_pre_generation_score_that_cannot_be_computed_escalates():
    """The same holds before anything is generated."""

    class Unknown(Known):
        def score(self, evidence: Evidence) -> Measurement:
            raise SignalUnavailableError("the hidden state is not finite")

    flow = cascade_flow([Stage(SMALL, [Unknown()], {"p_ik": 0.0}), Stage(LARGE)], REQUEST)

    next(flow)
    (asked,) = flow.send((prefilled(),))

    assert asked.model is LARGE
    assert outcome_of(flow, said("4")).record.attempts[0].reason == "p_ik: the hidden state is not finite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_no_score(value: float):
    """Whoever's signal it is: no comparison is made, and the record stays JSON."""

    class Broken(Known):
        def score(self, evidence: Evidence) -> Measurement:
            return Measurement(value)

    flow = cascade_flow([Stage(SMALL, [Broken()], {"p_ik": 0.0}), Stage(LARGE)], REQUEST)

    next(flow)
    (asked,) = flow.send((prefilled(),))

    assert asked.model is LARGE
    record = outcome_of(flow, said("4")).record
    assert record.attempts[0].reason == f"p_ik: the score is not finite ({value})"
    json.dumps(record.as_dict(), allow_nan=False)


def test_a_flow_can_be_left():
    """A flow that is closed in the middle asks for nothing more."""
    flow = cascade_flow([knowing(), Stage(LARGE)], REQUEST)

    next(flow)
    flow.close()

    with pytest.raises(StopIteration):
        next(flow)


# ---------------------------------------------------------------------- what it costs


def test_costs_of_both_accountings():
    """The default charges every model that ran, the papers' only the one that answered; both with its own prices."""
    stages = [
        Stage(SMALL, [Known()], {"p_ik": 0.5}, prices=Prices(1, 10)),
        Stage(MIDDLE, [TokenProbability()], {"p_t": 0.9}, prices=Prices(2, 20)),
        Stage(LARGE, prices=Prices(3, 30)),
    ]
    flow = cascade_flow(stages, REQUEST)

    next(flow)
    flow.send((prefilled(p_ik=0.1),))
    flow.send((said("3", 0.1, output=5),))
    record = outcome_of(flow, said("4", output=2)).record

    assert [attempt.usage for attempt in record.attempts] == [Usage(7, 0), Usage(7, 5), Usage(7, 2)]
    assert record.usage == Usage(21, 7)
    assert record.cost_answering_stage == Cost(
        flops=forward_flops(LARGE.architecture, Usage(7, 2)), tokens=9, usd=(3 * 7 + 30 * 2) / 1e6, seconds=1.0
    )
    assert record.cost.usd == pytest.approx((1 * 7 + 2 * 7 + 20 * 5 + 3 * 7 + 30 * 2) / 1e6)
    assert record.cost.flops == pytest.approx(
        forward_flops(SMALL.architecture, Usage(7, 0))
        + forward_flops(MIDDLE.architecture, Usage(7, 5))
        + forward_flops(LARGE.architecture, Usage(7, 2))
    )
    assert record.cost.seconds == 0.125 + 1.0 + 1.0


def test_the_prompt_is_paid_for_once():
    """Generation from a prefill tells the usage of both; its time is the sum of the two calls."""
    flow = cascade_flow([knowing(0.5), Stage(LARGE)], REQUEST)

    next(flow)
    flow.send((prefilled(p_ik=0.9),))
    (attempt,) = outcome_of(flow, said("4", output=3)).record.attempts

    assert attempt.usage == Usage(7, 3)
    assert (attempt.latency_s, attempt.cost.seconds) == (2.25, 1.125)


def test_a_failure_costs_what_it_had_used():
    """A model that fails after its prefill has still read the prompt."""
    flow = cascade_flow([knowing(0.5), Stage(LARGE)], REQUEST)

    next(flow)
    flow.send((prefilled(p_ik=0.9),))
    flow.send((failed(ModelError("out of memory")),))
    record = outcome_of(flow, said("4")).record

    assert record.attempts[0].usage == Usage(7, 0)
    assert record.attempts[0].cost.flops == forward_flops(SMALL.architecture, Usage(7, 0))
    assert record.attempts[0].latency_s == 0.75


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 500)), min_size=1, max_size=6))
@settings(deadline=None)
def test_usage_adds_up_over_any_number_of_stages(script: list[tuple[float, int]]):
    """The record's total is the sum over the stages that were asked, up to the first that passed."""
    stages = [sure(0.5) for _ in script[:-1]] + [Stage(LARGE)]
    flow = cascade_flow(stages, REQUEST)

    next(flow)
    outcome, asked = None, []
    for p, output in script:
        asked.append((p, output))
        try:
            flow.send((said("4", p, output=output),))
        except StopIteration as stopped:
            outcome = stopped.value
            break

    assert outcome is not None
    assert outcome.record.usage == Usage(7 * len(asked), sum(output for _, output in asked))
    assert all(math.exp(math.log(p)) < 0.5 for p, _ in asked[:-1])
    assert asked[-1][0] >= 0.5 or len(asked) == len(script)
    assert outcome.record.stage == len(asked) - 1


# ---------------------------------------------------------------------- identity


def test_equal_policies_have_equal_ids():
    """Twelve hexadecimal digits, the same for stages that decide alike, whatever their prices and number types."""
    one = policy_id([sure(1.0), Stage(LARGE)])
    other = policy_id([Stage(ScriptedModel("middle"), (TokenProbability(),), {"p_t": 1}, Prices(1, 1)), Stage(LARGE)])

    assert one == other
    assert len(one) == 12
    assert int(one, 16) >= 0


@pytest.mark.parametrize(
    "changed",
    [
        [sure(0.91), Stage(LARGE)],
        [sure("always"), Stage(LARGE)],
        [sure(0.9, SMALL), Stage(LARGE)],
        [Stage(MIDDLE, [TokenProbability(aggregate="min")], {"p_t": 0.9}), Stage(LARGE)],
        [Stage(MIDDLE, [TokenProbability(after=":")], {"p_t": 0.9}), Stage(LARGE)],
        [Stage(MIDDLE, [TokenProbability("AB")], {"p_t": 0.9}), Stage(LARGE)],
        [Stage(MIDDLE, [TokenProbability(name="p")], {"p": 0.9}), Stage(LARGE)],
        [sure(0.9), Stage(MIDDLE)],
        [Stage(LARGE), sure(0.9)],
        [sure(0.9), sure(0.9), Stage(LARGE)],
    ],
    ids=range(10),
)
def test_policies_that_decide_differently_have_different_ids(changed: list[Stage]):
    """A threshold, a signal, one of its options, a model, or the order: each makes another policy."""
    assert policy_id(changed) != policy_id([sure(0.9), Stage(LARGE)])


# ---------------------------------------------------------------------- tools and structured output

CALLING = ScriptedModel("calling", tools=True)
POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
WITH_TOOLS = Request((Message("user", "q"),), tools=(Tool("plot", POINT),))
WORDS = Response("I would plot it", (Token("I would plot it", -0.01),))
ANSWER = Response(
    "", (Token('{"name": "plot", "arguments": {"x": 1}}', -0.01),), tool_calls=(ToolCall("plot", {"x": 1}),)
)


class Peek(Signal):
    """Reads the prompt before anything is generated."""

    name = "peek"
    phase: ClassVar[Literal["pre", "post"]] = "pre"

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "Peek"}

    def check(self, model: Any) -> None: ...

    def layers(self, model: Any) -> tuple[int, ...]:
        del model
        return (1,)

    def score(self, evidence: Evidence) -> Measurement:
        del evidence
        return Measurement(1.0)


def step(flow: Any, response: Response | None = None) -> Any:
    """The next ask of a flow, or its outcome."""
    try:
        return flow.send(None if response is None else (Answer(response),))[0]
    except StopIteration as ended:
        return ended.value


def test_a_usable_call_is_scored_and_kept():
    flow = cascade_flow([sure(model=CALLING), Stage(CALLING)], WITH_TOOLS)

    step(flow)
    outcome = step(flow, ANSWER)

    assert outcome.response == parted(WITH_TOOLS, ANSWER)
    assert outcome.record.attempts[0].reason == "p_t 0.99 >= 0.9"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (ANSWER.replace(tool_calls=(ToolCall("draw", {}),)), "unknown tool 'draw'"),
        (
            ANSWER.replace(tool_calls=(ToolCall("plot", {}),)),
            "the arguments of its call to 'plot' do not fit: 'x' is missing",
        ),
        (ANSWER.replace(problem="it is unreadable"), "it is unreadable"),
        (Response("", finish_reason="tool_calls", problem="it is unreadable"), "it is unreadable"),
    ],
)
def test_an_answer_that_cannot_be_used_is_passed_on_without_a_score(response, reason):
    flow = cascade_flow([sure("always", CALLING), Stage(CALLING)], WITH_TOOLS)

    step(flow)
    step(flow, response)
    outcome = step(flow, ANSWER)

    attempt = outcome.record.attempts[0]
    assert (attempt.decision, attempt.reason, attempt.scores) == ("escalate", reason, {})


def test_the_last_stage_answers_whatever_can_be_said_of_it():
    unusable = ANSWER.replace(tool_calls=(ToolCall("draw", {}),))
    flow = cascade_flow([Stage(CALLING)], WITH_TOOLS)

    step(flow)
    outcome = step(flow, unusable)

    assert outcome.response == parted(WITH_TOOLS, unusable)
    assert outcome.record.attempts[0].reason == "last stage (unknown tool 'draw')"


@pytest.mark.parametrize(
    "request_", [WITH_TOOLS, Request((Message("user", "q"),), output=OutputSchema("Point", POINT))]
)
def test_answers_that_must_be_whole_are_held(request_):
    """No watch may end or release them, and none is streamed live but the last stage's."""
    able = ScriptedModel("able", tools=True)
    able._capability = dataclasses.replace(able.capability, structured=True)
    early = Stage(able, [TokenProbability(aggregate="product")], {"p_t": "always"})
    gated = Stage(able)  # nothing would judge it after it is generated
    flow = cascade_flow([early, gated, Stage(able)], request_)

    first = step(flow)
    second = step(flow, Response("", problem="no"))
    last = step(flow, Response("", problem="no"))

    assert [(ask.watch, ask.live) for ask in (first, second, last)] == [(None, False), (None, False), (None, True)]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (WITH_TOOLS, "the model cannot call tools"),
        (
            Request((Message("user", "q"),), output=OutputSchema("Point", POINT)),
            "the model cannot give structured output",
        ),
    ],
)
def test_a_model_is_not_asked_for_what_it_cannot_give(request_, reason):
    flow = cascade_flow([sure(), Stage(LARGE)], request_, on_exhausted="best")

    with pytest.raises(CascadeExhaustedError, match=f"gave no answer .{reason}. and no earlier stage"):
        next(flow)


def test_a_model_that_knows_no_schema_is_asked_in_words_where_there_are_any():
    """The added words are the prompt of its prefill, too; the schema's own check judges what it says."""
    wanted = OutputSchema("Point", POINT, check=lambda text: None if text == "x: 1" else "no", instructions="Say x.")
    asked = Request((Message("system", "Be brief."), Message("user", "q")), output=wanted)
    peeking = ScriptedModel("peeking", hidden_size=2)
    flow = cascade_flow([Stage(peeking, [Peek()], {"peek": "always"}), Stage(LARGE)], asked)

    prefill = step(flow)
    (generate,) = flow.send((Answer(Prefilled(Usage())),))
    last = step(flow, Response("y: 1"))
    outcome = step(flow, Response("z: 1"))

    for ask_ in (prefill, generate, last):
        assert [message.content for message in ask_.request.messages] == ["Be brief.", "q\n\nSay x."]
        assert ask_.request.output is None
    assert (generate.watch, generate.live, last.live) == (None, False, True)
    assert [attempt.reason for attempt in outcome.record.attempts] == ["no", "last stage (no)"]


def test_a_model_that_knows_schemas_is_not_asked_in_words():
    able = ScriptedModel("able", structured=True)
    asked = Request((Message("user", "q"),), output=OutputSchema("Point", POINT, instructions="Say x."))

    assert next(cascade_flow([Stage(able)], asked))[0].request is asked


def test_a_skipped_last_stage_leaves_the_earlier_answer():
    flow = cascade_flow([sure("never", CALLING), Stage(LARGE)], WITH_TOOLS, on_exhausted="best")

    step(flow)
    outcome = step(flow, WORDS)

    assert (outcome.response, outcome.record.degraded) == (parted(WITH_TOOLS, WORDS), True)
    assert [attempt.reason for attempt in outcome.record.attempts] == [
        "p_t 0.99 (never)",
        "the model cannot call tools",
    ]


def test_an_unusable_answer_is_not_kept_for_want_of_a_better():
    flow = cascade_flow([sure(model=CALLING), Stage(CALLING)], WITH_TOOLS, on_exhausted="best")

    step(flow)
    step(flow, ANSWER.replace(tool_calls=(ToolCall("draw", {}),)))
    with pytest.raises(CascadeExhaustedError, match="no earlier stage has a complete one"):
        flow.send((Answer(error=ModelError("down")),))


# ---------------------------------------------------------------------- straight to the last stage


def skipping(p_ik: float | None, skip: Any = 0.2, threshold: Any = 0.5) -> Cascade:
    """Three models; the small one knows how likely it is to know."""

    class Told(Known):
        def score(self, evidence: Evidence) -> Measurement:
            if p_ik is None:
                raise SignalUnavailableError("nobody knows")
            return Measurement(p_ik)

    first = Stage(SMALL, [Told(), TokenProbability()], {"p_ik": threshold, "p_t": 0.9}, skip={"p_ik": skip})
    return Cascade([first, sure(), Stage(LARGE)])


def test_a_hopeless_question_goes_straight_to_the_last_stage():
    """A score below `skip` spares the middle model, and the record says so; one below the threshold alone does not."""
    record = skipping(0.05).run("2+2?").record
    assert [attempt.model for attempt in record.attempts] == ["small", "large"]
    assert [attempt.stage for attempt in record.attempts] == [0, 2]
    first = record.attempts[0]
    assert (first.decision, first.usage.output_tokens) == ("escalate", 0)
    assert first.reason == "p_ik 0.05 < 0.5; p_ik 0.05 < 0.2: straight to large"
    for score in (0.2, 0.4, None):  # at `skip` itself, between, and where it is missing
        record = skipping(score).run("2+2?").record
        assert [attempt.stage for attempt in record.attempts][:2] == [0, 1]
        assert "straight" not in record.attempts[0].reason


def test_an_earlier_answer_stands_where_the_last_stage_fails_behind_a_skip():
    """The middle stage may skip, too; what the small model said before is then the best that there is."""

    class Gate(Known):
        name = "gate"

        def layers(self, model: Any) -> tuple[int, ...]:
            return ()

        def check(self, model: Any) -> None:
            pass

        def score(self, evidence: Evidence) -> Measurement:
            return Measurement(0.1)

    down = ScriptedModel("large", {"2+2?": Reply("", error=ModelError("down"))})
    small = ScriptedModel("small", {"2+2?": ("five", 0.3)})
    middle = Stage(MIDDLE, [Gate()], {"gate": 0.5}, skip={"gate": 0.3})
    stages = [Stage(small, [TokenProbability()], {"p_t": 0.9}), middle, sure(), Stage(down)]
    record = Cascade(stages, on_exhausted="best").run("2+2?").record
    assert [attempt.stage for attempt in record.attempts] == [0, 1, 3]
    assert (record.stage, record.degraded) == (0, True)


def test_what_skips_is_part_of_the_policys_identity():
    """Another `skip` decides otherwise; none leaves the id as it was."""
    plain, low, high = (Stage(SMALL, [Known()], {"p_ik": 0.5}, skip=skip) for skip in ({}, {"p_ik": 0}, {"p_ik": 0.2}))
    assert policy_id([plain]) == policy_id([Stage(SMALL, [Known()], {"p_ik": 0.5})])
    assert len({policy_id([stage]) for stage in (plain, low, high)}) == 3


@pytest.mark.parametrize(
    ("skip", "threshold", "message"),
    [
        ({"p_t": 0.1}, 0.5, "'p_t', which is not one of its signals that judge before"),
        ({"p_q": 0.1}, 0.5, r"Those are \['p_ik'\]"),
        ({"p_ik": 0.6}, 0.5, "at most the threshold of 'p_ik', 0.5"),
        ({"p_ik": 0.6}, "always", "at most the threshold"),
        ({"p_ik": "never"}, 0.5, "must be a number"),
        ({"p_ik": 1.2}, "never", r"\[0, 1\]"),
        ("p_ik", 0.5, "must be a mapping"),
    ],
)
def test_what_cannot_skip_is_refused(skip: Any, threshold: Any, message: str):
    """What passes cannot be passed on, and only what is known before the answer can skip."""
    stage = Stage(SMALL, [Known(), TokenProbability()], {"p_ik": threshold, "p_t": 0.9}, skip=skip)
    with pytest.raises(ConfigurationError, match=message):
        Cascade([stage, Stage(LARGE)])


def test_an_answer_is_begun_where_the_model_reads_the_prompt_itself():
    """With the prefix of its labels; the next stage, and a model behind an API, are asked as ever."""
    labels = TokenProbability("AB", prefix="Answer:")
    local = Stage(SMALL, [labels], {"p_t": 0.9})
    flow = cascade_flow([local, Stage(LARGE)], REQUEST)
    (first,) = next(flow)
    assert (first.request.begun, first.request.messages) == ("Answer:", REQUEST.messages)
    (last,) = flow.send((prefilled(A=0.5, B=0.45),))
    assert (last.model, last.request.begun) == (LARGE, "")

    flow = cascade_flow([Stage(MIDDLE, [labels], {"p_t": 0.9}), Stage(LARGE)], REQUEST)
    (first,) = next(flow)
    assert (first.model, first.request.begun) == (MIDDLE, "")
