"""Replay is the live cascade: the same decisions, attempt by attempt, and the same costs, in both accountings."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from confcascade import (
    Cascade,
    CascadeExhaustedError,
    ConfigurationError,
    Cost,
    ModelError,
    Record,
    Stage,
    Usage,
    trace,
)
from confcascade.bench.recording import Columns, PlaybackModel, RecordedScore, Row
from confcascade.bench.replay import PolicyStage, Replay, replay, sweep
from confcascade.bench.replay.replay import DECISIONS, NOT_ASKED, outcomes
from confcascade.extending import Token
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import LABELLED, LIVE, Case, cases


def live_signal(case: Case, model: PlaybackModel, name: str, computed: bool) -> Any:
    """The recorded signal; with `computed`, where it can be, one that judges the tokens anew."""
    recorded = model.signal(name)
    kept = all(
        row.tokens is not None or row.scores[name].value is None
        for row in case.rows
        if row.model == model.name and name in row.scores
    )
    known = name in LIVE and (recorded.early or name == "mean") and model.capability.logprobs
    anew = computed and known and (kept or name in LABELLED)
    return LIVE[name] if anew else recorded


def live_stages(case: Case, policy: list[PolicyStage], computed: bool) -> list[Stage]:
    """The policy's stages, live."""
    stages = []
    for stage in policy:
        model = PlaybackModel(stage.model, case.rows, architecture=case.architectures[stage.model])
        names = [] if stage is policy[-1] else list(stage.thresholds)
        signals = [live_signal(case, model, name, computed) for name in names]
        thresholds = {name: stage.thresholds[name] for name in names}
        stages.append(Stage(model, signals, thresholds, case.prices[stage.model], stage.skip if names else {}))
    return stages


def live_record(cascade: Cascade, question: str) -> Record:
    """Of a query that may find no answer."""
    with trace() as t, contextlib.suppress(ModelError, CascadeExhaustedError):
        cascade.run(question)
    return t.records[0]


def corrected(record: Record) -> bool:
    """Whether the answer has another label than its model gave."""
    assert record.stage is not None
    (kept,) = [attempt for attempt in record.attempts if attempt.stage == record.stage]
    return any("corrected" in score.details for score in kept.scores.values())


def check_question(played: Replay, i: int, record: Record) -> None:
    """Hold question `i` of a replay against the record of a live run."""
    k = played.decision.shape[1]
    found = {attempt.stage: DECISIONS[attempt.decision] for attempt in record.attempts}
    assert played.decision[i].tolist() == [found.get(j, NOT_ASKED) for j in range(k)]
    for attempt in record.attempts:
        j = attempt.stage
        assert bool(played.aborted[i, j]) == attempt.aborted
        usage = attempt.usage
        assert (played.input_tokens[i, j], played.output_tokens[i, j]) == (usage.input_tokens, usage.output_tokens)
    check_cost(played.cost, i, record.cost)
    if record.ended != "answered":
        assert played.stage[i] == -1
        assert played.grade[i] == 0
    else:
        assert played.stage[i] == record.stage
        check_cost(played.cost_answering_stage, i, record.cost_answering_stage)


def check_cost(costs: Any, i: int, cost: Cost) -> None:
    assert costs.flops[i] == pytest.approx(cost.flops, rel=1e-12)
    assert costs.usd[i] == pytest.approx(cost.usd)
    assert costs.tokens[i] == cost.tokens


@given(case=cases(), computed=st.booleans())
@settings(max_examples=400, deadline=None)
def test_replay_is_the_live_cascade(case: Case, computed: bool):
    """Whatever the recording and the policy: decision, abortion, tokens and cost of every attempt are the live ones.

    A draft that was shown before its end stands although it was cut off, and is counted as wrong.
    """
    columns = Columns.of(case.rows)
    grades = {row.key: row.grade for row in case.rows}
    cut = {row.key for row in case.rows if row.problem is not None}
    for policy in case.policies:
        played = replay(columns, policy, architectures=case.architectures, prices=case.prices)
        cascade = Cascade(live_stages(case, policy, computed))
        for i, question in enumerate(columns.questions):
            record = live_record(cascade, question)
            check_question(played, i, record)
            if record.ended == "answered":
                kept, draft = (question, record.answered_by), record.stage < len(policy) - 1
                wrong = draft and kept in cut
                assert played.grade[i] == (0.0 if wrong else 0.25 if corrected(record) else grades[kept])


@given(case=cases())
@settings(max_examples=200, deadline=None)
def test_a_sweep_sums_replays_up(case: Case):
    """Each policy of a sweep, among others of other models and signals, has the means of its own replay."""
    columns = Columns.of(case.rows)
    swept = sweep(columns, case.policies, architectures=case.architectures, prices=case.prices)
    for p, policy in enumerate(case.policies):
        played = replay(columns, policy, architectures=case.architectures, prices=case.prices)
        assert swept.accuracy[p] == pytest.approx(played.grade.mean())
        assert swept.unanswered[p] == pytest.approx((played.stage == -1).mean())
        for j in range(swept.answered.shape[1]):
            assert swept.answered[p, j] == pytest.approx((played.stage == j).mean())
        for name in ("flops", "tokens", "usd", "seconds"):
            for accounting in ("cost", "cost_answering_stage"):
                mean = getattr(getattr(played, accounting), name).mean()
                assert getattr(getattr(swept, accounting), name)[p] == pytest.approx(mean)


def sure(question: str, model: str, value: float | None, **changes: Any) -> Row:
    scores = {"sure": RecordedScore(value=value)}
    return Row.model_validate(
        {"question": question, "model": model, "answer": "x", "scores": scores, "grade": 1.0} | changes
    )


def test_a_long_recording_is_played_in_slices():
    """Slices change nothing: twenty thousand questions, more than are played at a time, beside a plain comparison."""
    rng = np.random.default_rng(0)
    n = 20_000
    scores, right = rng.random(n), rng.random((n, 2)) < [[0.6, 0.9]]
    rows = [sure(str(i), m, scores[i], grade=right[i, j]) for i in range(n) for j, m in enumerate(("small", "large"))]
    columns = Columns.of(rows)
    thresholds = np.linspace(0, 1, 30)
    policies = [[PolicyStage("small", {"sure": t}), PolicyStage("large")] for t in thresholds.tolist()]
    swept = sweep(columns, [*policies, [PolicyStage("large")]])
    for p, threshold in enumerate(thresholds):
        keep = scores >= threshold
        assert swept.accuracy[p] == pytest.approx(np.where(keep, right[:, 0], right[:, 1]).mean())
        assert swept.answered[p].tolist() == pytest.approx([keep.mean(), 1 - keep.mean()])
    assert swept.accuracy[-1] == pytest.approx(right[:, 1].mean())
    played = replay(columns, policies[10])
    np.testing.assert_array_equal(played.stage, np.where(scores >= thresholds[10], 0, 1))
    assert played.retention.tolist() == pytest.approx([(scores >= thresholds[10]).mean(), 1.0])


def test_what_is_unknown_is_nan():
    """No architecture, no price, no time or no grade: that figure is unknown, and the others are not."""
    rows = [sure("q1", "small", 0.9, grade=None), sure("q1", "large", None)]
    policy = [PolicyStage("small", {"sure": 0.5}), PolicyStage("large")]
    swept = sweep(Columns.of(rows), [policy])
    assert math.isnan(swept.accuracy[0])
    assert math.isnan(swept.cost.flops[0])
    assert math.isnan(swept.cost.usd[0])
    assert math.isnan(swept.cost.seconds[0])
    assert swept.cost.tokens[0] == 0
    assert swept.answered[0].tolist() == [1, 0]
    assert math.isnan(replay(Columns.of(rows), policy).retention[1])  # nothing reached it


def test_a_time_that_nobody_told_is_not_zero():
    """Only the questions that asked a model whose time is unknown took an unknown time."""
    rows = [sure(q, "small", value, latency_s=2.0) for q, value in (("q1", 0.9), ("q2", 0.1))]
    rows += [sure(q, "large", None) for q in ("q1", "q2")]
    seconds = replay(Columns.of(rows), [PolicyStage("small", {"sure": 0.5}), PolicyStage("large")]).cost.seconds
    assert seconds[0] == 2.0
    assert math.isnan(seconds[1])


def test_only_the_time_of_what_was_cut_off_is_unknown():
    """Nobody told when the first token came: a draft that ended early took an unknown time, a whole one its own."""
    score = RecordedScore(value=0.2, upper=((1, 0.9), (2, 0.2)))
    tokens = tuple(Token("x", math.log(p)) for p in (0.9, 0.2))
    rows = [
        sure("q1", "small", None, scores={"least": score}, tokens=tokens, answer="xx", latency_s=2.0),
        sure("q1", "large", None, latency_s=5.0),
    ]
    kept, cut = ([PolicyStage("small", {"least": t}), PolicyStage("large")] for t in (0.1, 0.5))
    assert replay(Columns.of(rows), kept).cost.seconds.tolist() == [2.0]
    assert math.isnan(replay(Columns.of(rows), cut).cost.seconds[0])
    assert replay(Columns.of(rows), cut).cost_answering_stage.seconds.tolist() == [5.0]
    told = [row.model_copy(update={"prefill_s": 1.0, "usage": Usage(3, 4)}) for row in rows]
    assert replay(Columns.of(told), cut).cost.seconds.tolist() == [1.0 + 1.0 * 2 / 4 + 5.0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([], "at least one stage"),
        ([PolicyStage("huge")], "'huge' is not in the recording"),
        ([PolicyStage("small", {"p_t": 0.5}), PolicyStage("large")], "'p_t' of model 'small' is not in"),
        ([PolicyStage("small"), PolicyStage("large")], "no threshold"),
        ([PolicyStage("small", {"sure": math.nan}), PolicyStage("large")], "finite number"),
        ([PolicyStage("small", {"sure": True}), PolicyStage("large")], "finite number"),
        ([PolicyStage("small", {"sure": 0.5}, {"sure": 0.1}), PolicyStage("large")], "`skip` of stage 'small'"),
        ([PolicyStage("late")], "was not asked 1 of the 2 questions"),
    ],
)
def test_a_policy_that_cannot_be_replayed_is_refused(policy: list[PolicyStage], message: str):
    """What is wrong is named: the model, the signal, the threshold, or how much is missing."""
    rows = [sure(q, m, 0.5) for q in ("q1", "q2") for m in ("small", "large")] + [sure("q1", "late", 0.5)]
    with pytest.raises(ConfigurationError, match=message):
        replay(Columns.of(rows), policy)


@given(case=cases())
@settings(max_examples=200, deadline=None)
def test_outcomes_are_those_of_replays(case: Case):
    """Who answers each question and how well, of many policies at once, is what each one's replay says."""
    columns = Columns.of(case.rows)
    played = outcomes(columns, case.policies)
    for p, policy in enumerate(case.policies):
        alone = replay(columns, policy)
        assert played.stage[p].tolist() == alone.stage.tolist()
        assert played.grade[p].tolist() == alone.grade.tolist()
