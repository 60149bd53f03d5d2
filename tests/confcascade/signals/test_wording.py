"""Answers that say that they are none are told from others, if the user wants that."""

import pytest
from confcascade import Cascade, ConfigurationError, Message, Request, Stage, TokenProbability, Wording
from confcascade.errors import SignalUnavailableError
from confcascade.extending import Evidence, Response
from confcascade.testing import ScriptedModel

REQUEST = Request((Message("user", "q"),))


def score(text, *patterns):
    signal = Wording(*patterns)
    return signal.score(Evidence(REQUEST, None, None, Response(text))).value


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "I cannot assist with this request.",
        "I don't know.",
        "I do not have enough information to answer.",
        "As an AI language model, I have no opinion.",
        "<think>easy</think>I don't know.",
    ],
)
def test_a_refusal_scores_0(text):
    assert score(text) == 0


@pytest.mark.parametrize(
    "text", ["Lyon", "She said she was sorry.", "<think>I don't know.</think>Lyon", "Knowing is half."]
)
def test_another_answer_scores_1(text):
    """Thoughts do not count."""
    assert score(text) == 1


def test_patterns_of_ones_own():
    assert (score("N/A", [r"^N/A$"]), score("I don't know", [r"^N/A$"]), score("n/a", r"^N/A$")) == (0, 1, 0)
    with pytest.raises(ConfigurationError, match="not a regular expression"):
        Wording(["("])
    with pytest.raises(ConfigurationError, match="empty"):
        Wording([])
    with pytest.raises(SignalUnavailableError):
        Wording().score(Evidence(REQUEST))


def test_a_sure_refusal_escalates_where_it_is_asked_for():
    """P(T) alone keeps it."""
    small = ScriptedModel("small", {"q": ("I cannot help with that.", 0.99)})
    with_rule = Stage(small, [TokenProbability(), Wording()], {"p_t": 0.9, "wording": 1})
    without = Stage(small, [TokenProbability()], {"p_t": 0.9})

    assert Cascade([with_rule, Stage(ScriptedModel("large"))]).run("q").record.stage == 1
    assert Cascade([without, Stage(ScriptedModel("large"))]).run("q").record.stage == 0
