from __future__ import annotations

import logging

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
        "Model 'small' was asked 20 times and never scored",
    ]


def test_one_score_is_enough_not_to_be_never_scored(caplog):
    """A stage that is scored now and then saves now and then."""
    asked, lacks = cascade(("3", 0.1)), cascade(("3", None))
    scored, unscored = asked.run("q").record, lacks.run("q").record
    notices = Notices(last=1)
    for each in (scored, *[unscored] * 40):
        notices.note(each)

    assert not [line for line in logged(caplog) if "never scored" in line]


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
