"""What a stage asks for goes along with every call, and what is known to differ from a policy's settings is refused."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import Cascade, ConfigurationError, Message, Request, Stage
from confcascade.decoding import Decoding, asked_with, settings_of_model
from confcascade.models.openai import OpenAICompatibleModel
from confcascade.policy import FittedStage
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import policy_id
from confcascade.testing import ScriptedModel

ASKED = Request((Message("user", "q"),))


class Own(ScriptedModel):
    """A model that says how it decodes by itself."""

    def __init__(self, *, per_call: bool = False, **own: Any) -> None:
        super().__init__("m")
        self.own_decoding = own
        self._capability = self._capability.__class__(set_per_call=per_call)


def test_what_a_request_says_comes_first():
    decoding = Decoding(temperature=0, max_tokens=64, top_p=0.9, seed=1)

    asked = decoding.applied(ASKED)
    own = decoding.applied(Request(ASKED.messages, temperature=0.5, options={"seed": 2}))

    assert (asked.temperature, asked.max_tokens, asked.options) == (0, 64, {"top_p": 0.9, "seed": 1})
    assert (own.temperature, own.max_tokens, own.options) == (0.5, 64, {"top_p": 0.9, "seed": 2})
    assert Decoding().applied(ASKED) is ASKED


def test_every_call_of_a_stage_has_its_settings():
    """The last stage's, too, which nothing judges."""
    small, large = ScriptedModel("small", lambda _: "no"), ScriptedModel("large", lambda _: "yes")
    stages = [
        Stage(small, [TokenProbability()], {"p_t": "never"}, decoding=Decoding(temperature=0)),
        Stage(large, decoding=Decoding(max_tokens=8)),
    ]

    Cascade(stages).run("q")

    asked = [call[0].request for model in (small, large) for call in model.calls]
    assert [(each.temperature, each.max_tokens) for each in asked] == [(0, None), (None, 8)]


def test_settings_are_part_of_what_a_cascade_decides_by():
    """And a cascade without any keeps the id that it had."""
    plain = Stage(ScriptedModel("m"))

    assert policy_id([plain]) == policy_id([Stage(plain.model, decoding=Decoding())])
    assert policy_id([plain]) != policy_id([Stage(plain.model, decoding=Decoding(temperature=0))])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "as the model does by itself"),
        ({"temperature": 0}, "greedy"),
        ({"temperature": 0.7, "top_p": 0.9, "seed": 3}, "temperature 0.7, top_p 0.9, seed 3"),
        ({"temperature": 0.0, "max_tokens": 64}, "greedy, at most 64 tokens"),
    ],
)
def test_it_is_told_in_a_few_words(settings, told):
    assert Decoding(**settings).describe() == told


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"max_tokens": 0}, {"max_tokens": 1.5}, {"seed": True}])
def test_what_is_no_setting_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Decoding(**wrong)


def test_what_is_known_of_a_model():
    """Of an API, what its options say; a request and a stage come first."""
    model = OpenAICompatibleModel(
        "m", base_url="http://localhost", options={"temperature": 1, "max_completion_tokens": 9}
    )

    assert settings_of_model(model) == {"temperature": 1.0, "max_tokens": 9}
    assert asked_with(model, Decoding(temperature=0), {"max_tokens": 5}) == {"temperature": 0.0, "max_tokens": 5}
    assert settings_of_model(ScriptedModel("m")) == {}


# ---------------------------------------------------------------------- policies


def fitted(**decoding: Any) -> FittedStage:
    return FittedStage(model="m", decoding=decoding)


def test_a_stage_decodes_as_its_policy_was_fitted():
    """Where nothing is asked and its model takes settings with each call."""
    assert fitted(temperature=0.0).decodes(ScriptedModel("m"), Decoding()) == (Decoding(temperature=0.0), [])
    assert FittedStage(model="m").decodes(ScriptedModel("m"), Decoding(top_k=3)) == (Decoding(top_k=3), [])


@pytest.mark.parametrize(
    ("was", "model", "asked", "said"),
    [
        ({"temperature": 0.0}, Own(temperature=1), {}, "with temperature 0.0; here it is 1.0"),
        ({"temperature": 0.0}, Own(temperature=1, per_call=True), {}, "with temperature 0.0; here it is 1.0"),
        ({"temperature": 0.0}, Own(), {"temperature": 0.7}, "with temperature 0.0; here it is 0.7"),
        ({"max_tokens": 64}, Own(max_tokens=1024), {}, "with max_tokens 64; here it is 1024"),
        ({}, Own(), {"temperature": 0}, "with temperature left to the model; here it is 0.0"),
        ({}, Own(temperature=0.1), {}, "with temperature left to the model; here it is 0.1"),  # LlamaIndex's default
    ],
)
def test_a_known_difference_is_refused_and_named(was, model, asked, said):
    with pytest.raises(ConfigurationError, match=said):
        fitted(**was).decodes(model, Decoding(**asked))


def test_what_is_not_known_is_named():
    """A framework's model that leaves its temperature to its provider."""
    decoding, unknown = fitted(temperature=0.0, max_tokens=64).decodes(Own(max_tokens=64), Decoding())

    assert (decoding, unknown) == (Decoding(), ["temperature"])
