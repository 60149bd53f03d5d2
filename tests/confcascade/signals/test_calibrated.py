"""Signals made of other signals: what they need, what they say, and when they decide."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from confcascade import (
    Calibrated,
    Cascade,
    ConfigurationError,
    ExpectedGain,
    FormatProbability,
    KnowledgeProbe,
    RetrievalScore,
    SignalUnavailableError,
    Stage,
    TokenProbability,
    Usage,
)
from confcascade.asks import Generate, ask
from confcascade.calibration import Feature, Fusion, Input, Platt
from confcascade.extending import Evidence, Measurement, Prefilled, Signal
from confcascade.stage import policy_id
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Message, Request

UNIT, ANY = (0.0, 1.0), (-math.inf, math.inf)
P_T = Platt(Input("p_t", UNIT), 1.0, -1.0)
BOTH = Fusion(
    (Feature(Input("p_t", UNIT), 0.0, 1.0, 1.0, None), Feature(Input("retrieval", ANY), 5.0, 2.0, 0.5, -1.0)), -1.0
)


def question(retrieved: tuple[float, ...] | None = None) -> Request:
    return Request((Message("user", "Who?"),), retrieved=retrieved)


def odds(p: float) -> float:
    return math.log(p / (1 - p))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def cascade(signal: Signal, threshold: float, reply: Any = None) -> tuple[Cascade, ScriptedModel]:
    small = ScriptedModel("small", {"Who?": reply or Reply("Ann Smith", probability=[0.9, 0.9])})
    return Cascade([Stage(small, [signal], {signal.name: threshold}), Stage(ScriptedModel("large"))]), small


def test_a_confidence_is_recorded_beside_the_raw_scores():
    """The record says how sure, out of which scores, and the attempt has a confidence; the reason shows them, too."""
    signal = Calibrated([TokenProbability(), RetrievalScore()], BOTH)
    running, _ = cascade(signal, 0.5)
    attempt = running.run(question((7.0, 3.0))).record.attempts[0]
    expected = sigmoid(-1 + odds(0.9) + 0.5 * (7 - 5) / 2)
    assert attempt.confidence == pytest.approx(expected)
    score = json.loads(json.dumps(attempt.as_dict()))["scores"]["confidence"]
    assert score["value"] == attempt.confidence
    assert score["details"] == {
        "scores": {"p_t": pytest.approx(0.9), "retrieval": 7.0},
        "parts": {"retrieval": {"passages": 2}},
    }
    assert attempt.reason == f"confidence {expected:.3g} >= 0.5 (of p_t 0.9, retrieval 7)"


def test_a_part_that_is_missing_is_a_missing_value():
    """A fusion that learnt what it means goes on, and says so."""
    running, _ = cascade(Calibrated([TokenProbability(), RetrievalScore()], BOTH), 0.5)
    attempt = running.run(question()).record.attempts[0]
    assert attempt.confidence == pytest.approx(sigmoid(-1 + odds(0.9) - 1))
    assert attempt.scores["confidence"].details["missing"] == {"retrieval": "nothing was retrieved for this query"}
    assert "retrieval missing" in attempt.reason


def test_a_missing_part_that_nothing_is_known_of_makes_no_confidence():
    """Neither a calibrator of one signal nor a fusion that never saw it missing invents a value."""
    silent = ScriptedModel("small", {"Who?": Reply("Ann", probability=[0.9])}, logprobs=False)
    evidence = Evidence(question((7.0,)), None, None, silent.generate([Generate(silent, question())])[0])  # type: ignore[arg-type]
    for signal in (
        Calibrated([TokenProbability()], P_T),
        Calibrated([TokenProbability(), RetrievalScore()], BOTH),
        ExpectedGain([TokenProbability()], P_T, P_T),
    ):
        with pytest.raises(SignalUnavailableError, match="p_t: the model returned no log-probabilities"):
            signal.score(evidence)


def test_only_a_calibrator_makes_a_confidence():
    """Scores, and a gain, are none."""
    for signal in (TokenProbability(), ExpectedGain([TokenProbability()], P_T, P_T)):
        running, _ = cascade(signal, 0.0)
        assert running.run(question()).record.attempts[0].confidence is None


def test_the_gain_asks_whether_the_larger_model_does_better():
    """Where both will fail the answer is kept, though its confidence is low."""
    larger = Platt(Input("p_t", UNIT), 1.0, -0.9)  # hardly better than P_T
    hard = Reply("Ann Smith", probability=[0.2, 0.2])
    running, _ = cascade(ExpectedGain([TokenProbability()], P_T, larger), -0.05, hard)
    attempt = running.run(question()).record.attempts[0]
    value = sigmoid(odds(0.2) - 1) - sigmoid(odds(0.2) - 0.9)
    assert (attempt.decision, attempt.scores["gain"].value) == ("accept", pytest.approx(value))
    running, _ = cascade(Calibrated([TokenProbability()], P_T), 0.5, hard)
    assert running.run(question()).record.attempts[0].decision == "escalate"
    with pytest.raises(ConfigurationError, match=r"\[-1, 1\]"):
        cascade(ExpectedGain([TokenProbability()], P_T, larger), -1.5)


def test_an_early_part_ends_a_doomed_answer():
    """The minimum can only fall, and the confidence with it: the draft ends where it can no longer reach 0.5."""
    reply = Reply("Ann B. C. Smith", probability=[0.9, 0.3, 0.9, 0.9])
    running, small = cascade(Calibrated([TokenProbability(aggregate="min")], P_T), 0.5, reply)
    attempt = running.run(question()).record.attempts[0]
    assert (attempt.aborted, attempt.usage.output_tokens) == (True, 2)
    assert len(small.calls) == 1
    falling = Platt(Input("p_t", UNIT), -1.0, 0.0)
    running, _ = cascade(Calibrated([TokenProbability(aggregate="min")], falling), 0.5, reply)
    attempt = running.run(question()).record.attempts[0]
    assert (attempt.decision, attempt.usage.output_tokens) == ("accept", 4)  # judged whole


def test_pre_if_all_parts_are():
    """A confidence of what is known before the answer spares the generation; with P(T) in it, it cannot."""
    gate = Platt(Input("retrieval", ANY), 1.0, -5.0)
    signal = Calibrated([RetrievalScore()], gate)
    running, small = cascade(signal, 0.5)
    attempt = running.run(question((4.0,))).record.attempts[0]
    assert (signal.phase, attempt.usage.output_tokens, small.calls) == ("pre", 0, [])
    assert attempt.confidence == pytest.approx(sigmoid(-1))
    assert Calibrated([TokenProbability(), RetrievalScore()], BOTH).phase == "post"


def test_it_needs_what_its_parts_need(monkeypatch: pytest.MonkeyPatch):
    """Log-probabilities, alternatives, labels and layers are those of all parts, and so are checks of the model."""
    calibrator = Fusion(
        (Feature(Input("p_t", UNIT), 0.0, 1.0, 1.0, None), Feature(Input("p_format", UNIT), 0.0, 1.0, 1.0, None)), 0.0
    )
    signal = Calibrated([TokenProbability("AB"), FormatProbability()], calibrator)
    assert (signal.labels, signal.logprobs, signal.top_logprobs, signal.early) == (("A", "B", "Answer"), True, 20, True)
    plain = Calibrated([RetrievalScore()], Platt(Input("retrieval", ANY), 1.0, 0.0))
    assert (plain.labels, plain.logprobs, plain.top_logprobs, plain.early) == ((), False, 0, False)
    monkeypatch.setattr(RetrievalScore, "layers", lambda self, model: (3,))
    assert plain.layers(ScriptedModel("small")) == (3,)
    with pytest.raises(ConfigurationError, match="needs log-probabilities"):
        Stage(ScriptedModel("small", logprobs=False), [signal], {"confidence": 0.5}).validate()


def test_a_probe_inside_reads_the_prompt():
    """A part that reads hidden states costs the pass over the prompt that it costs alone."""
    from confcascade.models.bundled import bundled_folder, bundled_model

    probe = KnowledgeProbe.load(bundled_folder("small") / "probe")
    calibrator = Fusion(
        (Feature(Input("p_ik", UNIT), 0.0, 1.0, 1.0, None), Feature(Input("p_t", UNIT), 0.0, 1.0, 1.0, None)), 0.0
    )
    signal = Calibrated([TokenProbability(), probe], calibrator)
    stages = [Stage(bundled_model("small"), [signal], {"confidence": 0.99}), Stage(bundled_model("large"))]
    attempt = Cascade(stages).run("How does Trosel Fagra earn a living?").record.attempts[0]
    raw = attempt.scores["confidence"].details["scores"]
    assert attempt.confidence == pytest.approx(sigmoid(odds(raw["p_ik"]) + odds(raw["p_t"])))


def test_parts_that_ask_are_asked():
    """A part that needs a further call asks for it as it would alone."""

    class Asked(RetrievalScore):
        phase = "post"

        def judge(self, evidence: Evidence) -> Any:
            answer = yield from ask(Generate(judge, evidence.request))
            return Measurement(float(answer.unwrap().text))

    judge = ScriptedModel("judge", {"Who?": "6"})
    running, _ = cascade(Calibrated([Asked()], Platt(Input("retrieval", ANY), 1.0, -5.0)), 0.5)
    assert running.run(question()).record.attempts[0].confidence == pytest.approx(sigmoid(1))
    assert len(judge.calls) == 1


def test_a_confidence_is_part_of_the_policys_identity():
    """Another calibrator or other parts decide otherwise, and have another id."""
    made = [
        Calibrated([TokenProbability()], P_T),
        Calibrated([TokenProbability()], Platt(Input("p_t", UNIT), 1.0, -1.1)),
        Calibrated([TokenProbability(aggregate="min")], P_T),
        ExpectedGain([TokenProbability()], P_T, P_T, name="confidence"),
    ]
    ids = {policy_id([Stage(ScriptedModel("small"), [signal], {"confidence": 0.5})]) for signal in made}
    assert len(ids) == len(made)


@pytest.mark.parametrize(
    ("signals", "calibrator", "message"),
    [
        ([], P_T, "a list of signals"),
        ([TokenProbability()], "platt", "needs fitted calibrators"),
        ([TokenProbability(), RetrievalScore()], P_T, r"fitted on the signals \['p_t'\]"),
        ([TokenProbability()], BOTH, r"Got \['p_t'\]"),
        ([TokenProbability(), TokenProbability()], P_T, "each once"),
        ([TokenProbability()], Platt(Input("p_t", ANY), 1.0, 0.0), r"in \[-inf, inf\]; those of this signal lie in"),
        ([RetrievalScore(scores=(-1, 1), name="p_t")], P_T, r"in \[0, 1\]; those of this signal lie in \[-1, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(signals: Any, calibrator: Any, message: str):
    """A calibrator reads the signals that it was fitted on, and no others."""
    with pytest.raises(ConfigurationError, match=message):
        Calibrated(signals, calibrator)


def test_bounds_before_there_is_anything_are_the_calibrators_reach():
    """What no score can make of it is ruled out from the first token on; that there will be one is not known yet."""
    signal = Calibrated([TokenProbability(aggregate="min")], Platt(Input("p_t", UNIT), 0.1, 0.0))
    low, high = signal.bounds(Evidence(question(), Prefilled(Usage(3))))
    assert low == 0
    assert 0.5 < high < 0.81
