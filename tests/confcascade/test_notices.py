from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from confcascade import Cascade, CascadeExhaustedError, Stage, TokenProbability
from confcascade.notices import Notices
from confcascade.testing import Reply, ScriptedModel

SECRET = "sk-planted-key"


class RefusedError(Exception):
    status_code = 401


def cascade(small, large="4", threshold=0.9, logprobs=True, **options):
    models = [ScriptedModel("small", lambda _: small, logprobs=logprobs), ScriptedModel("large", lambda _: large)]
    return Cascade([Stage(models[0], [TokenProbability()], {"p_t": threshold}), Stage(models[1])], **options)


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "confcascade"]


def test_a_failing_small_model_is_logged_once(caplog):
    """A wrong key would send every query to the large model without a word."""
    asked = cascade(Reply("", error=RefusedError(SECRET)))
    for _ in range(3):
        asked.run("q")

    assert logged(caplog) == [
        "Model 'small' failed: RefusedError (401). Its queries escalate. Logged once for each kind."
    ]


def test_a_last_stage_that_fails_is_logged(caplog):
    with pytest.raises(CascadeExhaustedError):
        cascade(("3", 0.1), Reply("", error=RefusedError(SECRET))).run("q")

    assert logged(caplog) == [
        "Model 'large' failed: RefusedError (401). It is the last stage. Logged once for each kind."
    ]


def test_every_degraded_answer_is_logged(caplog):
    asked = cascade(("3", 0.1), Reply("", error=RefusedError(SECRET)), on_exhausted="best")
    for _ in range(2):
        assert asked.run("q").record.degraded

    told = [line for line in logged(caplog) if "in its place" in line]
    assert (
        told
        == [
            "The last stage failed (RefusedError (401)), and the rejected answer of model 'small' was returned in its "
            'place (on_exhausted="best").'
        ]
        * 2
    )


def test_a_stage_that_is_never_scored_is_logged_after_twenty_attempts(caplog):
    asked = cascade(("3", None))
    for _ in range(40):
        asked.run("q")

    assert [line.split(":")[0] for line in logged(caplog)] == [
        "An answer of model 'small' has no score p_t",
        "Model 'small' was asked 20 times and none of its answers was scored (the last",
    ]


def test_one_score_is_enough_not_to_be_never_scored(caplog):
    """A stage that is scored now and then saves now and then."""
    asked, lacks = cascade(("3", 0.1)), cascade(("3", None))
    scored, unscored = asked.run("q").record, lacks.run("q").record
    notices = Notices(last=1)
    for each in (scored, *[unscored] * 40):
        notices.note(each)

    assert not [line for line in logged(caplog) if "none of its answers was scored" in line]


def test_a_stage_whose_drafts_cannot_be_kept_is_logged_too(caplog):
    """Not for want of log-probabilities: it may say nothing, or be cut off, each time."""
    asked = cascade("")
    for _ in range(40):
        asked.run("q")

    (line,) = logged(caplog)
    assert line.startswith(
        "Model 'small' was asked 20 times and none of its answers was scored (the last: empty answer)"
    )


def test_after_very_many_kinds_the_next_is_still_logged(caplog):
    notices = Notices(last=1)
    record = cascade(Reply("", error=RefusedError(SECRET))).run("q").record
    for i in range(400):
        notices.note(replace(record, attempts=(replace(record.attempts[0], error=f"RefusedError ({i})"),)))

    assert "RefusedError (399)" in logged(caplog)[-1]
    assert len(notices._said) <= 256


def test_texts_of_errors_are_logged_on_request_only(caplog):
    """Also where the root logger is at DEBUG: only the level of the logger itself asks for them."""
    texts = logging.getLogger("confcascade.texts")
    caplog.set_level(logging.DEBUG)
    asked = cascade(Reply("", error=RefusedError(SECRET)))
    asked.run("q")
    assert SECRET not in caplog.text
    try:
        texts.setLevel(logging.DEBUG)
        asked.run("q")
    finally:
        texts.setLevel(logging.NOTSET)

    assert f"Model 'small': RefusedError (401): {SECRET}" in caplog.text
