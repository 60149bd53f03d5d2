"""Calibrators: what they fit, that one answer and a thousand get the same confidence, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.bench.metrics.ranking import auroc, brier, calibration_error
from confcascade.calibration import (
    Calibrator,
    EarlyAccept,
    Feature,
    Fusion,
    Input,
    Isotonic,
    Platt,
    Temperature,
    calibrator_from_dict,
    fit_calibrator,
)
from hypothesis import given, settings
from hypothesis import strategies as st

UNIT, ANY = (0.0, 1.0), (-math.inf, math.inf)


def overconfident(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Scores in [0, 1], and answers that are right with σ(0.5 log-odds - 0.4)."""
    rng = np.random.default_rng(seed)
    score = rng.beta(4, 0.7, n)
    odds = np.log(np.clip(score, 1e-6, 1 - 1e-6)) - np.log(np.clip(1 - score, 1e-6, 1))
    return score, rng.random(n) < 1 / (1 + np.exp(-(0.5 * odds - 0.4)))


def every_kind(n: int = 400) -> list[Calibrator]:
    score, right = overconfident(n)
    other = np.where(np.arange(n) % 7 == 0, np.nan, right + np.random.default_rng(1).normal(size=n))
    return [
        Platt.fit(score, right, signal="p"),
        Isotonic.fit(score, right, signal="p"),
        Temperature.fit(score, right, signal="p"),
        both := Fusion.fit({"p": score, "q": other}, right, {"p": UNIT, "q": ANY}),
        EarlyAccept.fit(Platt.fit(score, right, signal="p"), both, {"p": score, "q": other}, right),
    ]


# ---------------------------------------------------------------------- what is fitted


def test_platt_finds_the_truth():
    """Of twenty thousand answers, slope and intercept are those that made them, to five standard errors (0.07)."""
    fitted = Platt.fit(*overconfident(20_000), signal="p")
    assert fitted.slope == pytest.approx(0.5, abs=0.07)
    assert fitted.intercept == pytest.approx(-0.4, abs=0.07)


def test_platt_is_scikit_learns():
    """The same sigmoid, with the same targets, as scikit-learn's own Platt scaling on the log-odds."""
    from sklearn.calibration import _sigmoid_calibration

    score, right = overconfident(500)
    odds = np.array([Input("p", UNIT).transformed(s) for s in score.tolist()])
    a, b = _sigmoid_calibration(odds, right)
    fitted = Platt.fit(score, right, signal="p")
    assert (fitted.slope, fitted.intercept) == pytest.approx((-a, -b), rel=1e-3)


def test_the_temperature_is_the_likeliest():
    """No other temperature makes what happened more likely."""
    score, right = overconfident(2_000)
    fitted = Temperature.fit(score, right, signal="p")

    def loss(temperature: float) -> float:
        p = Temperature(Input("p", UNIT), temperature).predict(score)
        return float(-np.log(np.where(right, p, 1 - p)).mean())

    assert fitted.temperature > 1
    assert all(loss(fitted.temperature) <= loss(fitted.temperature * by) for by in (0.9, 1.1))


def test_isotonic_is_scikit_learns():
    """Between and beyond what it was fitted on, the line is scikit-learn's."""
    from sklearn.isotonic import IsotonicRegression

    score, right = overconfident(1_500)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, right)
    asked = np.linspace(0, 1, 1001)
    ours = Isotonic.fit(score, right, signal="p").predict(asked)
    np.testing.assert_allclose(ours, theirs.predict(asked), atol=1e-12)


def test_a_fusion_beats_its_parts():
    """Two scores that know different things rank better together, also where one is sometimes missing."""
    rng = np.random.default_rng(0)
    ability, luck = rng.normal(size=(2, 4_000))
    right = ability + luck + rng.normal(size=4_000) > 0
    scores = {"a": ability, "l": np.where(rng.random(4_000) < 0.2, np.nan, luck)}
    seen, held = np.arange(4_000) % 2 == 0, np.arange(4_000) % 2 == 1
    fitted = Fusion.fit({k: v[seen] for k, v in scores.items()}, right[seen], {"a": ANY, "l": ANY})
    confidence = fitted.predict({k: v[held] for k, v in scores.items()})
    assert fitted.monotone
    assert auroc(right[held], confidence) > auroc(right[held], ability[held]) + 0.04
    assert calibration_error(right[held], confidence) < 0.05


def test_calibration_lowers_the_error_on_other_questions():
    """Every kind is closer to the truth on answers that it was not fitted on than the score itself."""
    score, right = overconfident(3_000, seed=2)
    for calibrator in every_kind(3_000)[:3]:
        confidence = calibrator.predict(score)
        assert calibration_error(right, confidence) < calibration_error(right, score) / 2
        assert brier(right, confidence) < brier(right, score)


def test_what_is_chosen():
    """Several signals are fused; one gets Platt's sigmoid, from a thousand answers on the better of two."""
    score, right = overconfident(999)
    assert isinstance(fit_calibrator({"p": score}, right, {"p": UNIT}), Platt)
    assert isinstance(fit_calibrator({"p": score, "q": -score}, right, {"p": UNIT, "q": ANY}), Fusion)
    score = np.random.default_rng(0).random(4_000)
    stepped = np.random.default_rng(1).random(4_000) < np.where(score < 0.9, 0.5, 0.95)  # no sigmoid
    assert isinstance(fit_calibrator({"p": score}, stepped, {"p": UNIT}), Isotonic)
    assert isinstance(fit_calibrator({"p": score[:900]}, stepped[:900], {"p": UNIT}), Platt)
    # a staircase that is learnt by heart does no good to answers of other groups
    texts = np.repeat(np.arange(250), 8)
    often, lots = np.repeat(score[:250], 8), np.repeat(np.random.default_rng(3).random(250) < 0.5, 8)
    assert isinstance(fit_calibrator({"p": often}, lots, {"p": UNIT}), Isotonic)
    assert isinstance(fit_calibrator({"p": often}, lots, {"p": UNIT}, groups=texts), Platt)


def test_answers_without_the_single_score_are_left_out():
    """They have no confidence, and teach nothing."""
    score, right = overconfident(200)
    gone = np.append(score, [np.nan] * 50), np.append(right, [True] * 50)
    fitted = fit_calibrator({"p": gone[0]}, gone[1], {"p": UNIT})
    assert fitted == fit_calibrator({"p": score}, right, {"p": UNIT})
    assert np.isnan(fitted.predict(gone[0])[200:]).all()


def test_a_perfect_signal_is_not_certain():
    """Where scores separate right from wrong, Platt's targets keep the confidence off 0 and 1."""
    score = np.linspace(0.05, 0.95, 40)
    confidence = Platt.fit(score, score > 0.5, signal="p").predict(score)
    assert 0 < confidence.min() < 0.15
    assert 0.85 < confidence.max() < 1


# ---------------------------------------------------------------------- one answer, and many


@pytest.mark.parametrize("calibrator", every_kind(), ids=lambda each: each.kind)
@given(scores=st.lists(st.tuples(st.floats(0, 1) | st.none(), st.floats(-9, 9) | st.none()), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_one_answer_and_many_have_the_same_confidence(calibrator: Calibrator, scores: list[tuple[Any, Any]]):
    """To the last bit, in [0, 1], and after JSON; what cannot be told is None, or NaN."""
    restored = calibrator_from_dict(json.loads(json.dumps(calibrator.as_dict(), allow_nan=False)))
    assert restored == calibrator
    p, q = zip(*scores, strict=True)
    arrays = {"p": np.array(p, dtype=float), "q": np.array(q, dtype=float)}
    one = [restored.confidence({"p": a, "q": b}) for a, b in scores]
    assert all(c is None or 0 <= c <= 1 for c in one)
    np.testing.assert_array_equal(calibrator.predict(arrays), [math.nan if c is None else c for c in one])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_bounds_hold(data: Any):
    """Wherever each score still falls between its bounds, or is missing in the end, so does the confidence."""
    weights, offsets = st.floats(0, 3), st.floats(-3, 3)
    features = tuple(
        Feature(Input(name, space), data.draw(offsets), 0.7, data.draw(weights), data.draw(st.none() | offsets))
        for name, space in (("p", UNIT), ("q", ANY))
    )
    falling = Fusion((features[0], Feature(Input("q", ANY), 0.0, 1.0, -1.0, None)), 0.0)
    made = [*every_made(), whole := Fusion(features, data.draw(offsets))]
    made += [EarlyAccept(each, other, 0.8, -0.1) for each in every_made() for other in (whole, falling)]
    calibrator = data.draw(st.sampled_from(made))
    low = {"p": data.draw(st.floats(0, 1)), "q": data.draw(st.floats(-5, 5) | st.just(-math.inf))}
    high = {"p": data.draw(st.floats(low["p"], 1)), "q": data.draw(st.floats(max(-5, low["q"]), 9) | st.just(math.inf))}
    early = isinstance(calibrator, EarlyAccept)  # whose early score, once it has a bound, is there
    score = {
        "p": data.draw(st.floats(low["p"], high["p"]) | (st.none() if not early or not low["p"] else st.nothing())),
        "q": data.draw(st.none() | st.floats(max(-9, low["q"]), min(9, high["q"]))),
    }
    least, most = calibrator.bounds(low, high)
    confidence = calibrator.confidence(score)
    assert 0 <= least <= most <= 1
    assert confidence is None or least <= confidence <= most


def test_an_answer_that_is_accepted_early_stays_accepted():
    """The confidence is that of the surer look; sure of one's opening, the rest lifts it, and cannot lower it."""
    look = EarlyAccept(Platt(Input("p", UNIT), 1.0, 0.0), Fusion((part("p", 0.0), part("q", 1.0)), 0.0), 1.0, 0.0)
    assert look.confidence({"p": 0.9, "q": 0.2}) == pytest.approx(0.9)
    assert look.confidence({"p": 0.2, "q": 0.9}) == pytest.approx(0.9)
    assert look.confidence({"p": 0.9, "q": None}) == pytest.approx(0.9)
    assert look.confidence({"p": None, "q": None}) is None
    assert look.bounds({"p": 0.9, "q": 0.0}, {"p": 0.9, "q": 1.0}) == pytest.approx((0.9, 1.0), abs=1e-5)
    assert look.bounds({"p": 0.0, "q": 0.0}, {"p": 1.0, "q": 1.0})[0] == pytest.approx(0.0, abs=1e-5)


def test_two_looks_are_calibrated_together():
    """The greater of two noisy looks is too sure of itself; put right, its mean confidence is the share of right."""
    rng = np.random.default_rng(0)
    ease = rng.normal(size=4000)
    right = rng.random(4000) < 1 / (1 + np.exp(-2 * ease))
    scores = {name: 1 / (1 + np.exp(-(ease + rng.normal(size=4000)))) for name in ("p", "q")}
    early, whole = Platt.fit(scores["p"], right, signal="p"), Fusion.fit(scores, right, {"p": UNIT, "q": UNIT})
    greater = np.maximum(early.predict(scores["p"]), whole.predict(scores))
    made = EarlyAccept.fit(early, whole, scores, right)
    assert abs(made.predict(scores).mean() - right.mean()) < 0.01 < greater.mean() - right.mean()
    np.testing.assert_array_equal(np.argsort(made.predict(scores), kind="stable"), np.argsort(greater, kind="stable"))


def test_what_falls_accepts_nothing_early():
    """A score that is higher where answers are wrong cannot accept any."""
    score, right = overconfident(400)
    falling = Platt.fit(1 - score, right, signal="p")
    with pytest.raises(ConfigurationError, match="more often wrong"):
        EarlyAccept.fit(falling, falling, {"p": 1 - score}, right)


def part(name: str, weight: float) -> Feature:
    return Feature(Input(name, UNIT), 0.0, 1.0, weight, None)


def every_made() -> list[Calibrator]:
    p = Input("p", UNIT)
    return [Platt(p, 0.7, -1.0), Temperature(p, 1.7), Isotonic(p, (0.2, 0.5, 0.9), (0.1, 0.1, 0.8))]


def test_a_confidence_needs_no_numpy():
    """A stored calibrator judges one answer with the standard library alone."""
    stored = [calibrator.as_dict() for calibrator in every_kind(60)]
    code = (
        "import sys; from confcascade.calibration import calibrator_from_dict as read\n"
        f"for stored in {stored!r}: assert 0 < read(stored).confidence({{'p': 0.8, 'q': None}}) < 1\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------- what is refused

SCORE, RIGHT = overconfident(50)


@pytest.mark.parametrize(
    ("score", "right", "message"),
    [
        (SCORE[:29], RIGHT[:29], "at least 30 answers. Got 29"),
        (SCORE, np.ones(50), "All 50 answers are right"),
        (SCORE, np.zeros(50), "All 50 answers are wrong"),
        (SCORE, np.linspace(0, 1, 50), "right .1. or wrong .0."),
        (SCORE, np.where(np.arange(50) < 3, np.nan, RIGHT), "nobody graded"),
        (np.where(np.arange(50) < 3, np.nan, SCORE), RIGHT, "3 of the 50 scores of 'p' are missing"),
        (np.full(50, 0.7), RIGHT, "one value throughout .0.7."),
        (np.where(np.arange(50) < 25, 1.0, 1 - 1e-9), RIGHT, "differ only beyond"),
        (SCORE * 2, RIGHT, r"'p' must lie in \[0, 1\]"),
        (SCORE[:40], RIGHT, "one label to each score"),
        (SCORE[:, None], RIGHT, "one label to each score"),
    ],
)
def test_what_teaches_nothing_is_refused(score: Any, right: Any, message: str):
    """Each with what is wrong, for every kind."""
    kinds: list[Any] = [Platt, Isotonic, Temperature]
    for kind in kinds:
        with pytest.raises(ConfigurationError, match=message):
            kind.fit(score, right, signal="p")
    if "missing" not in message:
        with pytest.raises(ConfigurationError, match=message):
            Fusion.fit({"p": score}, right, {"p": UNIT})


def test_an_infinite_score_and_a_backward_temperature_are_refused():
    """An unbounded score may still not be infinite; no temperature turns a score round."""
    with pytest.raises(ConfigurationError, match="infinite"):
        Platt.fit(np.append(SCORE[:-1], math.inf), RIGHT, signal="p", space=ANY)
    with pytest.raises(ConfigurationError, match="No temperature"):
        Temperature.fit(SCORE, ~RIGHT, signal="p")
    with pytest.raises(ConfigurationError, match="has no score at all"):
        Fusion.fit({"p": np.full(50, np.nan)}, RIGHT, {"p": UNIT})
    with pytest.raises(ConfigurationError, match="at least one signal"):
        fit_calibrator({}, RIGHT, {})
    with pytest.raises(ConfigurationError, match=r"Missing: \['p'\]"):
        fit_calibrator({"p": SCORE}, RIGHT, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrator": "oracle"}, "no calibrator of kind 'oracle'"),
        ({"version": 2}, "stored in version 2"),
        ({"slope": None}, "damaged"),
        ({"slope": math.nan}, "damaged"),
        ({"slope": "1"}, "damaged"),
        ({"inputs": []}, "damaged"),
        ({"inputs": [{"signal": "p", "space": [1, 0]}]}, "damaged"),
    ],
)
def test_a_damaged_calibrator_is_refused(change: dict[str, Any], message: str):
    """What cannot be read is not guessed."""
    with pytest.raises(ConfigurationError, match=message):
        calibrator_from_dict({**Platt.fit(SCORE, RIGHT, signal="p").as_dict(), **change})


def test_steps_that_fall_are_refused():
    """An isotonic calibrator's lists are checked when they are read."""
    stored = Isotonic(Input("p", UNIT), (0.1, 0.5), (0.2, 0.8)).as_dict()
    for change in ({"confidences": [0.8, 0.2]}, {"scores": [0.5, 0.1]}, {"scores": [0.5]}, {"confidences": [0.2, 1.1]}):
        with pytest.raises(ConfigurationError, match="damaged"):
            calibrator_from_dict({**stored, **change})


def test_scores_of_the_wrong_form_are_refused():
    """A table without a column, or a score outside its space, is no confidence."""
    fusion = every_kind()[3]
    with pytest.raises(ConfigurationError, match=r"Missing: \['q'\]"):
        fusion.predict({"p": SCORE})
    with pytest.raises(ConfigurationError, match="shape"):
        fusion.predict(SCORE)
    with pytest.raises(ConfigurationError, match="must lie in"):
        fusion.confidence({"p": 1.2, "q": None})
