"""A column computed from recorded ones is the live signal made of these: the same values, decisions and costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from confcascade import Calibrated, Cascade, ConfigurationError, ExpectedGain, Stage
from confcascade.bench.recording import Columns, PlaybackModel, RecordedScore, Row
from confcascade.bench.replay import PolicyStage, replay, sweep
from confcascade.bench.replay.derived import with_confidence, with_gain
from confcascade.calibration import Calibrator, EarlyAccept, Feature, Fusion, Input, Isotonic, Platt, Temperature
from confcascade.extending import Token
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import Case, cases
from .test_replay import check_question, live_record, live_signal

SLOPES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
OFFSETS = st.sampled_from([-2.0, -0.5, 0.0, 1.0])


@st.composite
def calibrators(draw: Any, names: list[str], computed: bool) -> Calibrator:
    """Any calibrator, now and then of two looks, the first by one signal of the whole's."""
    whole = draw(plain(names, computed))
    if not draw(st.booleans()):
        return whole
    early = Platt(draw(st.sampled_from(whole.inputs)), draw(SLOPES.filter(lambda slope: slope >= 0)), draw(OFFSETS))
    return EarlyAccept(early, whole, 0.8, draw(OFFSETS))


@st.composite
def plain(draw: Any, names: list[str], computed: bool) -> Calibrator:
    """One that looks once, of rising and of falling weights, of some of the signals; a live one's space is [0, 1]."""
    spaces = st.just((0.0, 1.0)) if computed else st.sampled_from([(0.0, 1.0), (-math.inf, math.inf)])
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    inputs = [Input(name, draw(spaces)) for name in chosen]
    if len(inputs) > 1 or draw(st.booleans()):
        features = [
            Feature(each, draw(OFFSETS), 0.5, draw(SLOPES), draw(st.none() | OFFSETS | st.just(5.0))) for each in inputs
        ]
        return Fusion(tuple(features), draw(OFFSETS))
    (only,) = inputs
    steps = Isotonic(only, (0.2, 0.5, 0.7, 0.95), (0.1, 0.4, 0.4, 0.9))
    single = [steps, Platt(only, draw(SLOPES), draw(OFFSETS)), Temperature(Input(only.name, (0.0, 1.0)), 2.0)]
    return draw(st.sampled_from(single))


@given(data=st.data(), case=cases(), computed=st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_derived_column_decides_as_the_live_signal(data: Any, case: Case, computed: bool):
    """Whatever the calibrator, and at a threshold that a value only just reaches, each attempt is the live one's."""
    columns = Columns.of(case.rows)
    stages, policy = [], []
    for stage in case.policies[0]:
        model = PlaybackModel(stage.model, case.rows, architecture=case.architectures[stage.model])
        if stage is case.policies[0][-1]:
            stages.append(Stage(model, prices=case.prices[stage.model]))
            policy.append(stage)
            continue
        known = sorted(name for owner, name in columns.signals if owner == stage.model)
        own = data.draw(calibrators(known, computed))
        larger = data.draw(st.none() | calibrators(known, computed))
        names = dict.fromkeys((*own.signals, *(larger.signals if larger else ())))
        parts = [live_signal(case, model, name, computed) for name in names]
        if larger is None:
            signal, columns = Calibrated(parts, own), with_confidence(columns, stage.model, own)
        else:
            signal, columns = ExpectedGain(parts, own, larger), with_gain(columns, stage.model, own, larger)
        value = columns.signal(stage.model, signal.name).values
        at = st.sampled_from([0.3, 0.97, "always", "never", *value[~np.isnan(value)].tolist()])
        beside = data.draw(st.sampled_from([{}, stage.thresholds]))  # other signals of the same stage
        thresholds = {**beside, signal.name: data.draw(at)}
        others = [live_signal(case, model, name, computed) for name in beside]
        stages.append(Stage(model, [*others, signal], thresholds, case.prices[stage.model]))
        policy.append(PolicyStage(stage.model, thresholds))
    played = replay(columns, policy, architectures=case.architectures, prices=case.prices)
    swept = sweep(columns, [policy], architectures=case.architectures, prices=case.prices)
    assert swept.accuracy[0] == pytest.approx(played.grade.mean())
    cascade = Cascade(stages)
    for i, question in enumerate(columns.questions):
        record = live_record(cascade, question)
        check_question(played, i, record)
        for attempt in record.attempts[:-1]:
            for name in set(attempt.scores) & {"confidence", "gain"}:
                recorded = columns.signal(attempt.model, name).values[i]
                told = attempt.scores[name].value
                if not attempt.aborted and attempt.usage.output_tokens:  # scored by the whole answer
                    assert told == (None if math.isnan(recorded) else recorded)
                assert attempt.confidence == (told if name == "confidence" else None)


def row(question: str, value: float | None, **changes: Any) -> Row:
    return Row(question=question, model="small", answer="yes no", scores={"p": RecordedScore(value=value, **changes)})


def test_what_a_confidence_can_never_reach_is_not_generated():
    """The calibrator's own ceiling is a bound: above it, a draft ends at its first token."""
    told = (Token("yes", math.log(0.9)), Token(" no", math.log(0.5)))
    rows = [row("q", 0.5, upper=((1, 0.9), (2, 0.5))).model_copy(update={"tokens": told})]
    ceiling = Isotonic(Input("p", (0.0, 1.0)), (0.1, 0.9), (0.2, 0.8))
    upper = with_confidence(Columns.of(rows), "small", ceiling).signal("small", "confidence").upper
    assert upper is not None
    np.testing.assert_array_equal(upper.tokens, [0, 2])  # at 1 token nothing falls
    np.testing.assert_allclose(upper.bounds, [0.8, 0.5])


def test_a_falling_calibrator_decides_nothing_early():
    """Where a higher score means a lower confidence, the score's upper bound says nothing."""
    columns = Columns.of([row("q", 0.5, upper=((1, 0.9), (2, 0.5)))])
    falling = Platt(Input("p", (0.0, 1.0)), -1.0, 0.0)
    assert with_confidence(columns, "small", falling).signal("small", "confidence").upper is None


def test_a_column_that_is_there_is_not_replaced():
    """A name that is taken, and a signal that was not recorded, are refused."""
    columns = Columns.of([row("q", 0.5)])
    with pytest.raises(ConfigurationError, match="choose another name"):
        with_confidence(columns, "small", Platt(Input("p", (0.0, 1.0)), 1.0, 0.0), name="p")
    with pytest.raises(ConfigurationError, match="'q' of model 'small' is not in the recording"):
        with_confidence(columns, "small", Platt(Input("q", (0.0, 1.0)), 1.0, 0.0))
