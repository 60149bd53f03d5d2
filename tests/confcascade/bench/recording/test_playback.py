"""A recorded model is a model like any other, through the core and both integrations."""

from __future__ import annotations

import math

import pytest
from confcascade import Cascade, ConfigurationError, Message, Request, Stage, TokenProbability, Usage
from confcascade.asks import Generate
from confcascade.bench.recording import Columns, PlaybackModel, RecordedScore, Row
from confcascade.bench.replay import PolicyStage, replay
from confcascade.errors import ModelError
from confcascade.testing import check_model

from ..conftest import SIZES, made_row


def rows(local: bool) -> list[Row]:
    """Forty questions to two models, surer and less sure."""
    made = []
    for i in range(40):
        for model in ("small", "large"):
            sure = [0.99, 0.6, 0.9, 0.3][i % 4]
            probe = {"probe": RecordedScore(value=(i % 5) / 5, phase="pre", prefill=True)} if local else {}
            made.append(
                made_row(
                    f"q{i}",
                    model,
                    words=["A", f", {model} says", f" {i}"],
                    probabilities=[0.95, sure, 0.9],
                    local=local,
                    letter=sure,
                    error="down" if (i, model) == (7, "small") else None,
                    graded=i % 3 > 0,
                    **probe,
                )
            )
    return made


@pytest.mark.parametrize("local", [False, True])
def test_it_keeps_the_contract_of_models(local: bool):
    """It answers, streams, prefills and can be ended early, with and without an event loop, always alike."""
    check_model(PlaybackModel("small", rows(local)), Request((Message("user", "q3"),)))


def test_it_says_what_was_said():
    """Text, tokens, usage and finish reason are the row's; a recorded error is raised again."""
    model = PlaybackModel("small", rows(local=True))
    asks = [Generate(model, Request((Message("user", q),))) for q in ("q3", "q7", "unknown")]
    said, failed, unknown = model.generate(asks)
    assert (said.text, said.usage) == ("A, small says 3", Usage(8, 3))
    assert [token.logprob for token in said.tokens] == [math.log(p) for p in (0.95, 0.3, 0.9)]
    assert isinstance(failed, ModelError)
    assert "down" in str(failed)
    assert isinstance(unknown, ModelError)
    assert "no question 'unknown'" in str(unknown)


def test_another_key_finds_the_question():
    """A prompt's text need not be the question's id."""
    model = PlaybackModel("small", rows(local=False), key=lambda request: request.messages[0].content.split()[-1])
    (answer,) = model.generate([Generate(model, Request((Message("system", "Answer q4"), Message("user", "?"))))])
    assert answer.text == "A, small says 4"


def test_what_is_not_recorded_is_said_when_it_is_built():
    """A model without rows, a signal without scores, a signal on the wrong model."""
    recorded = rows(local=False)
    small, large = PlaybackModel("small", recorded), PlaybackModel("large", recorded)
    with pytest.raises(ConfigurationError, match="no row of model 'huge'"):
        PlaybackModel("huge", recorded)
    with pytest.raises(ConfigurationError, match=r"'probe' of model 'small'.*'mean'"):
        small.signal("probe")
    with pytest.raises(ConfigurationError, match="judges that recorded model alone"):
        Cascade([Stage(small, [large.signal("mean")], {"mean": 0.5}), Stage(large)])


def test_a_missing_score_is_missing_again():
    """It escalates with the reason that was recorded."""
    silent = Row(
        question="q", model="a", answer="x", scores={"s": RecordedScore(value=None, details={"unavailable": "why"})}
    )
    model = PlaybackModel("a", [silent])
    other = PlaybackModel("b", [Row(question="q", model="b", answer="y")])
    outcome = Cascade([Stage(model, [model.signal("s")], {"s": 0.5}), Stage(other)]).run("q")
    assert outcome.text == "y"
    assert outcome.record.attempts[0].reason == "s: why"


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("names", [("mean",), ("min",), ("min", "router"), ("probe", "letter"), ("first", "mean")])
def test_both_integrations_decide_as_the_replay(local: bool, names: tuple[str, ...]):
    """LangChain's and LlamaIndex's cascades over recorded models: stage, decision and tokens of every attempt."""
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_confcascade import ConfidenceCascadeLLM as LangChainCascade
    from llamaindex_confcascade import ConfidenceCascadeLLM as LlamaIndexCascade

    recorded = [
        row.model_copy(update={"scores": row.scores | {"router": RecordedScore(value=0.5, phase="pre")}})
        for row in rows(local)
    ]
    names = tuple(name for name in names if local or name not in ("probe", "letter")) or ("product",)
    thresholds = dict.fromkeys(names, 0.45)
    played = replay(Columns.of(recorded), [PolicyStage("small", thresholds), PolicyStage("large")])
    assert 0 < (played.stage == 0).mean() < 1

    small, large = PlaybackModel("small", recorded, architecture=SIZES[0]), PlaybackModel("large", recorded)
    stages = [Stage(small, [small.signal(name) for name in names], thresholds), Stage(large)]
    langchain, llamaindex = LangChainCascade(stages=stages), LlamaIndexCascade(stages=stages)
    questions = [f"q{i}" for i in range(40)]
    records = [message.response_metadata["confcascade"] for message in langchain.batch(questions)]
    records += [llamaindex.complete(question).additional_kwargs["confcascade"] for question in questions]
    for n, record in enumerate(records):
        i = n % 40
        assert record["stage"] == played.stage[i]
        assert len(record["attempts"]) == (played.decision[i] >= 0).sum()
        for j, attempt in enumerate(record["attempts"]):
            assert attempt["aborted"] == played.aborted[i, j]
            assert attempt["usage"]["input_tokens"] == played.input_tokens[i, j]
            assert attempt["usage"]["output_tokens"] == played.output_tokens[i, j]


def test_live_signals_judge_recorded_tokens():
    """P(T) of recorded tokens is the recorded P(T): no signal of its own is needed to play them."""
    recorded = rows(local=False)
    small, large = PlaybackModel("small", recorded), PlaybackModel("large", recorded)
    outcomes = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.8}), Stage(large)]).run_batch(["q0", "q3"])
    scores = [outcome.record.attempts[0].scores["p_t"].value for outcome in outcomes]
    assert scores == [row.scores["mean"].value for row in recorded if row.key in (("q0", "small"), ("q3", "small"))]
