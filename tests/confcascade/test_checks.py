"""Texts that somebody parses afterwards are kept only if they can be."""

import json

import pytest
from confcascade import Cascade, ConfigurationError, Stage, TextRouter, TokenProbability, checking
from confcascade.testing import ScriptedModel

SURE = ("not an object", 0.99)


def cascade(check=None, **signal):
    small = ScriptedModel("small", {"q": SURE, "fine": ('{"a": 1}', 0.99)})
    stage = Stage(small, [TokenProbability(**signal)], {"p_t": 0.9}, check=check)
    return Cascade([stage, Stage(ScriptedModel("large", {"q": "large says"}))])


def reason(outcome):
    return outcome.record.attempts[0].reason


@pytest.mark.parametrize("aggregate", ["mean", "first"])
async def test_what_does_not_parse_goes_to_the_next_model_in_every_way(aggregate):
    """A signal that would show a draft from its first token on shows nothing before the check."""
    checked = cascade(json.loads, aggregate=aggregate)
    *chunks, streamed = checked.stream("q")
    *achunks, astreamed = [item async for item in checked.astream("q")]
    outcomes = [checked.run("q"), await checked.arun("q"), *checked.run_batch(["q"]), streamed, astreamed]

    assert {outcome.text for outcome in outcomes} == {"large says"}
    assert {reason(outcome) for outcome in outcomes} == {"it does not pass the check (JSONDecodeError)"}
    assert "".join(c.text for c in chunks) == "".join(c.text for c in achunks) == "large says"
    assert checked.run("fine").record.stage == 0


async def test_checking_holds_only_for_the_calls_in_its_block():
    """Around whatever asks the cascade; blocks in blocks add up, and the last stage answers whatever it says."""
    plain = cascade()
    with checking(json.loads), checking(lambda text: text != "large says"):
        assert plain.run("q").text == (await plain.arun("q")).text == plain.run_batch(["q"])[0].text == "large says"

    assert plain.run("q").text == "not an object"


def test_a_check_that_says_no_without_an_error():
    """False does not pass; what a parser returns does."""
    assert reason(cascade(lambda text: False).run("q")) == "it does not pass the check"
    assert cascade(lambda text: []).run("q").record.stage == 0


def test_a_check_must_be_callable():
    with pytest.raises(ConfigurationError, match="must be a function of the text"):
        cascade(check="json")


def test_what_a_check_says_of_the_text_stays_out_of_records():
    """Errors of parsers quote what they could not read."""

    def check(text):
        raise ValueError(f"cannot read {text}")

    assert "not an object" not in str(cascade(check).run("q").record.as_dict())


async def test_a_stage_that_judges_only_the_question_shows_nothing_that_may_not_fit():
    """With a response format or a check, its draft is not streamed before it is whole."""
    small, large = ScriptedModel("small", {"q": "no object"}), ScriptedModel("large", {"q": "{}"})
    router = TextRouter.fit(["easy q", "hard r"] * 20, [True, False] * 20, model="small")
    cascade = Cascade([Stage(small, [router], {"router": 0.0}), Stage(large)])
    options = {"response_format": {"type": "json_object"}}
    *chunks, outcome = cascade.stream("q", options=options)

    assert outcome.text == cascade.run("q", options=options).text == "{}"
    assert "".join(chunk.text for chunk in chunks) == "{}"
    assert cascade.run("q").text == "no object"
