"""A policy whose answers may be shown before their end: its rule, its promise, and the live cascade."""

import dataclasses
import math

import numpy as np
import pytest
from confcascade import Cascade, ConfigurationError, TokenProbability, Usage
from confcascade.bench.fitting import Described, Fitted, describe_fit, fit, material_of, realised, replayable
from confcascade.bench.recording import PlaybackModel, RecordedScore, Row, score_of
from confcascade.bench.replay import replay
from confcascade.calibration import EarlyAccept
from confcascade.guarantee import Promise
from confcascade.policy import Policy
from confcascade.schema.signals import TokenProbabilityEntry
from confcascade.signals import Evidence
from confcascade.types import Message, Request, Response, Token

from .conftest import SIZES

OPENING, WHOLE = TokenProbability(first=2, name="opening"), TokenProbability()
FIVE = Promise(0.05)
CUT = "it was cut off at the token limit"


def written(n=1200, seed=0, cut=0.0):
    """Answers of six words: the surer each, the likelier it is right. A share of the small model's is cut off."""
    rng, rows = np.random.default_rng(seed), []
    ease = 1.6 * rng.normal(size=n)
    for model, shift in (("small", 0.6), ("large", 2.0)):
        seen = ease + shift
        right = rng.random(n) < 1 / (1 + np.exp(-2.5 * seen))
        odds = seen[:, None] + 0.9 * rng.normal(size=(n, 6))
        stopped = rng.random(n) < (cut if model == "small" else 0.0)
        for i in range(n):
            tokens = tuple(Token(f" w{k}", -math.log1p(math.exp(-odds[i, k]))) for k in range(6))
            response = Response("".join(token.text for token in tokens).strip(), tokens)
            evidence = Evidence(Request((Message("user", f"q{i}"),)), None, tokens, response)
            rows.append(
                Row(
                    question=f"q{seed}-{i}",
                    model=model,
                    answer=response.text,
                    grade=float(right[i]),
                    problem=CUT if stopped[i] else None,
                    finish_reason="length" if stopped[i] else "stop",
                    tokens=tokens,
                    scores={each.name: score_of(each, evidence) for each in (OPENING, WHOLE)},
                    usage=Usage(20, 6),
                )
            )
    return rows


def fitted(rows, **options):
    entries = [
        TokenProbabilityEntry(type="p_t", name="opening", first=2),
        TokenProbabilityEntry(type="p_t", name="p_t"),
    ]
    material = material_of(rows, models=("small", "large"))
    described = {"small": Described(entries, ".")}
    result = fit(material, FIVE, architectures=SIZES, described=described, **options)
    assert isinstance(result, Fitted), describe_fit(result)
    return result


@pytest.fixture(scope="module")
def rows():
    return written()


@pytest.fixture(scope="module")
def early(rows):
    return fitted(rows, early="opening")


def test_the_rule_has_two_looks(early):
    """The confidence is an `EarlyAccept`, the only rule that is tried, and the words say how much is shown early."""
    (calibrator,) = early.policy.stages[0].derived[0].calibrators
    assert isinstance(calibrator, EarlyAccept)
    assert calibrator.early.signals == ("opening",)
    assert early.rule == "opening early, else confidence"
    assert early.policy.shows_early
    assert "of the questions are answered by a draft that is shown before its end" in describe_fit(early)


def test_the_promise_holds_on_other_questions(early):
    """Of thousands, and something is saved."""
    came = realised(early.policy, material_of(written(6000, seed=7), models=("small", "large")), architectures=SIZES)
    assert came.loss <= 0.05
    assert came.saved > 0.1


def test_the_live_cascade_of_its_file_streams_as_was_replayed(early, rows, tmp_path):
    """Read from its file, over models that say what was recorded: the same answers, and early where replay says so."""
    early.policy.save(tmp_path / "policy.json")
    stages = Policy.load(tmp_path / "policy.json").make_stages(
        [PlaybackModel("small", rows), PlaybackModel("large", rows)], prompt_version=None
    )
    cascade = Cascade(stages)
    columns, policy = replayable(material_of(rows, models=("small", "large")).columns, early.policy)
    played = replay(columns, policy)
    assert 0.05 < played.shown_early.mean() < 0.95
    for i in range(300):
        *chunks, outcome = cascade.stream(columns.questions[i])
        assert outcome.record.stage == played.stage[i]
        assert "".join(chunk.text for chunk in chunks).strip() == outcome.text


def test_drafts_that_were_shown_and_cut_off_are_charged(rows):
    """Where a fifth of the small model's answers are cut off, what its opening accepts is wrong then, and costs."""
    cut = written(cut=0.2)
    result = fitted(cut, early="opening")
    material = material_of(cut, models=("small", "large"))
    came = realised(result.policy, material, architectures=SIZES)
    scored, policy = replayable(material.columns, result.policy)
    played = replay(scored, policy)
    stood = (played.stage == 0) & ~scored.usable[:, scored.index("small")]
    assert stood.any()
    assert (played.grade[stood] == 0).all()
    assert played.shown_early[stood].all()
    held = dataclasses.replace(scored, said=scored.usable)  # as if nothing had been shown before its end
    assert replay(held, policy).grade.mean() > played.grade.mean()
    assert came.loss == pytest.approx((scored.grades[:, scored.index("large")] - played.grade).mean())


def test_a_recording_that_does_not_know_what_was_shown_holds_drafts_back(rows):
    """Of one that was made before, or by signals that only judge the whole, the policy shows nothing early."""
    before = [
        row.model_copy(update={"scores": {"opening": row.scores["opening"].model_copy(update={"lower": None})}})
        for row in rows
    ]
    result = fit(material_of(before, models=("small", "large")), FIVE, architectures=SIZES)
    assert isinstance(result, Fitted)
    assert not result.policy.shows_early
    now = fit(material_of(rows, models=("small", "large")), FIVE, architectures=SIZES, signals=["opening"])
    assert isinstance(now, Fitted)
    assert now.policy.shows_early
    whole = fit(material_of(rows, models=("small", "large")), FIVE, architectures=SIZES, signals=["p_t"])
    assert isinstance(whole, Fitted)
    assert not whole.policy.shows_early


def test_a_policy_that_only_judges_the_prompt_streams_at_once(rows):
    """Behind a gate nothing can withdraw a draft; one that is cut off is charged."""
    cut = [
        row.model_copy(update={"scores": {"router": RecordedScore(value=row.scores["p_t"].value, phase="pre")}})
        for row in written(cut=0.02)
    ]
    result = fit(material_of(cut, models=("small", "large")), FIVE, architectures=SIZES)
    assert isinstance(result, Fitted)
    assert result.policy.shows_early
    columns = material_of(cut, models=("small", "large")).columns
    played = replay(columns, result.stages)
    np.testing.assert_array_equal(played.shown_early, played.stage == 0)
    assert ((played.stage == 0) & ~columns.usable[:, 0]).any()


@pytest.mark.parametrize("options", [{"early": "p_t"}, {"early": "other"}, {"early": "opening", "signals": ["p_t"]}])
def test_what_is_known_only_at_the_end_accepts_nothing_early(rows, options):
    """A mean of the whole, no signal at all, or one that is not to be used."""
    with pytest.raises(ConfigurationError, match="known before its answers end"):
        fit(material_of(rows, models=("small", "large")), FIVE, architectures=SIZES, **options)
    with pytest.raises(ConfigurationError, match="goes with the rule 'quantiles'"):
        fit(
            material_of(rows, models=("small", "large")),
            FIVE,
            architectures=SIZES,
            early="opening",
            rule="pass-rate",
        )


def test_the_opening_of_many_rows_is_recorded_once_known(rows):
    """`lower` is the score itself once the two tokens have come, and absent of a mean of all."""
    assert all(row.scores["opening"].lower == row.scores["opening"].value for row in rows)
    assert all(row.scores["p_t"].lower is None for row in rows)
