"""What a server refuses is left out, and remembered for that kind of call; all other errors are the caller's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from confcascade import Message, OutputSchema, Request, Tool
from confcascade.asks import Generate
from confcascade.extending import CallParameters, Refusals, Response, Token
from confcascade.models import calls
from confcascade.testing import ScriptedModel

ADDED = {
    "logprobs": {"logprobs": True, "top_logprobs": 1},
    "stream_options": {"stream_options": {"include_usage": True}},
}
NAMED = "logprobs is not supported with tools + stream; the prompt was SECRET"
UNNAMED = "Bad Request: SECRET"


class RefusalError(Exception):
    """A client's error, as OpenAI's has them."""

    def __init__(self, text: str = NAMED, status: int | None = 400, **more: Any) -> None:
        super().__init__(text)
        self.status_code = status
        self.__dict__.update(more)


@pytest.fixture
def refusals() -> Refusals:
    return Refusals("small", {"logprobs": ("logprobs",), "stream_options": ("stream_options",)})


def call(refusals: Refusals, *, streamed: bool = False, live: bool = False, **request: Any) -> CallParameters:
    ask = Generate(ScriptedModel("small"), Request((Message("user", "q"),), **request), live=live)
    return CallParameters(ask, {"model": "small"}, ADDED, refusals, streamed=streamed)


def asks_for(made: CallParameters) -> set[str]:
    return {name for name, added in ADDED.items() if added.items() <= made.parameters.items()}


def refuse(refusals: Refusals, error: Exception, **kind: Any) -> bool:
    """Make a call whose server refuses log-probabilities with `error`; whether it had to."""
    made = call(refusals, **kind)
    asked = "logprobs" in made.parameters
    if asked:
        made.retry_without(error)
    made.answered()
    return asked


REFUSED = [
    *(RefusalError(NAMED, status) for status in (None, 400, 403, 404, 422, 500, 501, 502)),
    *(RefusalError(UNNAMED, status) for status in (400, 422, 501)),
    RefusalError("not allowed", 403, param="logprobs"),
    RefusalError(UNNAMED, 400, code="400"),
    TypeError("create() got an unexpected keyword argument 'top_logprobs'"),
]
RAISED = [
    *(RefusalError(NAMED, status) for status in (401, 429, 503)),
    *(RefusalError(UNNAMED, status) for status in (None, 401, 403, 404, 429, 500, 502)),
    RefusalError(UNNAMED, 400, param="max_tokens"),
    RefusalError(UNNAMED, 400, code="context_length_exceeded"),
    RefusalError("maximum context length is 9 tokens", 400),
    TimeoutError("too late"),
]


def shown(error: Any) -> str:
    return f"{type(error).__name__} {getattr(error, 'status_code', '')} {error}"[:40]


@pytest.mark.parametrize("error", REFUSED, ids=shown)
def test_a_refused_parameter_is_left_out(refusals, error):
    """By whatever status and words: then the call is made again without, and its answer says why it has none."""
    made = call(refusals)
    made.retry_without(error)
    made.answered()

    assert asks_for(made) == {"stream_options"}
    told = made.explained(Response("a")).unscored
    assert told.startswith("the server refuses log-probabilities in this kind of call (")
    assert "SECRET" not in told
    assert made.explained(Response("a", (Token("a", -0.1),))).unscored is None
    assert made.explained(Response("a", unscored="no number")).unscored == "no number"


@pytest.mark.parametrize("error", RAISED, ids=shown)
def test_other_errors_are_raised(refusals, error):
    """A wrong key, too many requests, a prompt that is too long: nothing of ours is at fault."""
    made = call(refusals)

    with pytest.raises(type(error)) as raised:
        made.retry_without(error)

    assert raised.value is error
    assert asks_for(made) == set(ADDED)


def test_each_parameter_is_left_out_once(refusals):
    """An error that names what is no longer asked for is raised; so is one in the midst of an answer."""
    made = call(refusals)
    made.retry_without(RefusalError())
    made.retry_without(RefusalError("stream_options?"))
    assert asks_for(made) == set()
    for again in (RefusalError(), RefusalError(UNNAMED)):
        with pytest.raises(RefusalError):
            made.retry_without(again)

    begun = call(refusals, tools=(Tool("now", {}),))
    begun.answered()
    with pytest.raises(RefusalError):
        begun.retry_without(RefusalError())


@pytest.mark.parametrize(("error", "tries"), [(RefusalError(), 1), (RefusalError(UNNAMED), 2)], ids=shown)
def test_a_refusal_is_remembered(refusals, error, tries):
    """At once where it names what it refuses, else when it comes again."""
    assert [refuse(refusals, error) for _ in range(4)] == [True] * tries + [False] * (4 - tries)
    assert "RefusalError (400)" in call(refusals).explained(Response("a")).unscored


def test_what_was_taken_since_is_not_remembered(refusals):
    """An error that named nothing may have had another cause."""
    refuse(refusals, RefusalError(UNNAMED))
    call(refusals).answered()
    refuse(refusals, RefusalError(UNNAMED))

    assert asks_for(call(refusals)) == set(ADDED)


def test_without_an_answer_nothing_is_remembered(refusals):
    """Perhaps the call was at fault, and not what was added to it."""
    for _ in range(3):
        call(refusals).retry_without(RefusalError())

    assert asks_for(call(refusals)) == set(ADDED)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "streamed": {"streamed": True, "live": True},
    "tools": {"tools": (Tool("now", {}),)},
    "a provider's tools": {"tools": (Tool("web_search"),)},
    "an object": {"output": OutputSchema("S", {})},
    "options": {"options": {"reasoning_effort": "high"}},
    "other options": {"options": {"reasoning_effort": "none"}},
}


@pytest.mark.parametrize("refused", KINDS)
def test_kinds_of_calls_are_kept_apart(refusals, refused):
    """What one is refused the others still ask for."""
    refuse(refusals, RefusalError(), **KINDS[refused])

    assert {name for name, kind in KINDS.items() if "logprobs" not in call(refusals, **kind).parameters} == {refused}


def test_what_is_said_makes_no_other_kind(refusals):
    """Nor do limits, or the value of an option that is a list."""
    refuse(refusals, RefusalError(), options={"seed_list": [1]})

    assert not refuse(refusals, RefusalError(), options={"seed_list": [2]}, max_tokens=5, temperature=0.5, stop=("x",))


def of_a_caller() -> CallParameters:
    """A call that its caller gives a limit and a temperature, with log-probabilities added."""
    words = {"logprobs": ("logprobs",), "max_tokens": ("max_tokens",), "temperature": ("temperature",)}
    asked = {"max_tokens": {"max_tokens": 5}, "temperature": {"temperature": 0.0}}
    return CallParameters(
        Generate(ScriptedModel("small"), Request((Message("user", "q"),))),
        {},
        {"logprobs": {"logprobs": True}},
        Refusals("small", words),
        streamed=False,
        asked=asked,
        instead={"max_tokens": {"max_completion_tokens": 5}},
    )


@pytest.mark.parametrize("name", ["max_tokens", "temperature"])
@pytest.mark.parametrize(
    "told",
    [
        "Unrecognized request argument supplied: {}",
        'json: unknown field "{}"',
        "[{{'type': 'extra_forbidden', 'loc': ('body', '{}'), 'msg': 'Extra inputs are not permitted'}}]",
        "`{}` may not be set for this model",
        "`{}` and `top_p` cannot both be specified for this model. Please use only one.",
        "Unsupported parameter: '{}'",
    ],
)
def test_a_parameter_that_is_refused_is_understood_however_it_is_said(name: str, told: str) -> None:
    """The limit goes by another name then, and log-probabilities are not suspected."""
    made = of_a_caller()
    made.retry_without(RefusalError(told.format(name)))

    assert name not in made.parameters
    assert made.parameters["logprobs"] is True
    assert ("max_completion_tokens" in made.parameters) == (name == "max_tokens")


@pytest.mark.parametrize("name", ["max_tokens", "temperature"])
@pytest.mark.parametrize(
    "told", ["{} must be at least 1, got 0", "{} is too large: 5. It supports at most 4", "{} cannot be set above 2"]
)
def test_a_value_that_is_refused_is_the_callers(name: str, told: str) -> None:
    """Nothing is asked for again, with or without log-probabilities."""
    made = of_a_caller()
    with pytest.raises(RefusalError):
        made.retry_without(RefusalError(told.format(name)))


def test_a_draft_that_did_not_come_whole_either_says_nothing_of_log_probabilities(refusals, caplog):
    """A question that the server refuses in every way must not cost the next ones their streams."""
    for came in (False, False, True, True):
        assert asks_for(call(refusals, streamed=True)) == set(ADDED)
        draft = call(refusals, streamed=True)
        draft.retry_without(RefusalError(UNNAMED))
        assert draft.whole
        if came:
            assert draft.came_whole(Response("a")) == Response("a")

    assert call(refusals, streamed=True).whole
    assert len(caplog.messages) == 1


def test_it_is_forgotten_after_a_while(refusals, monkeypatch):
    """A server may be started anew, and is asked again; it may also refuse again."""
    now = 1000.0
    monkeypatch.setattr(calls.time, "monotonic", lambda: now)
    assert refuse(refusals, RefusalError())
    now += 599
    assert not refuse(refusals, RefusalError())
    now += 2
    assert refuse(refusals, RefusalError())
    assert not refuse(refusals, RefusalError())


def test_a_held_draft_rather_comes_whole(refusals):
    """Only the streamed call may be refused; a live answer is streamed without."""
    draft, live = call(refusals, streamed=True), call(refusals, streamed=True, live=True)
    assert not any(made.whole for made in (draft, live))

    draft.retry_without(RefusalError())
    live.retry_without(RefusalError())

    draft.came_whole(Response("a"))
    assert draft.whole
    assert not live.whole
    assert call(refusals, streamed=True).whole
    assert not call(refusals, streamed=True, live=True).whole
    assert asks_for(call(refusals)) == set(ADDED)


def test_a_stream_without_usage_need_not_come_whole(refusals):
    """Nothing is lost but the usage."""
    draft = call(refusals, streamed=True)
    draft.retry_without(RefusalError("unknown field stream_options"))
    draft.answered()

    assert not draft.whole
    assert asks_for(call(refusals, streamed=True)) == {"logprobs"}
    assert draft.explained(Response("a")).unscored is None


def test_it_is_logged_once_for_each_kind(refusals, caplog):
    """With the status, and nothing of what was said."""
    with caplog.at_level(logging.WARNING, logger="confcascade"):
        for _ in range(3):
            refuse(refusals, RefusalError(UNNAMED, 422, code=""))
            refuse(refusals, RefusalError(NAMED, 400, code=None, param="logprobs"), streamed=True, live=True)
        refuse(refusals, TypeError("logprobs: SECRET"), tools=(Tool("now", {}),))

    said = "Model 'small' refuses logprobs in one kind of call ({}) and is asked without. Logged once per kind of call."
    assert caplog.messages == [
        said.format("RefusalError (422)"),
        said.format("RefusalError (400, parameter logprobs)"),
        said.format("TypeError"),
    ]


def test_what_the_caller_gives_is_never_changed(refusals):
    """Nor left out, be it refused."""
    given = {"model": "small", "logprobs": False}
    ask = Generate(ScriptedModel("small"), Request((Message("user", "q"),)))
    made = CallParameters(ask, given, ADDED, refusals, streamed=False)
    assert made.parameters["logprobs"] is True

    made.retry_without(RefusalError())

    assert made.parameters == given | ADDED["stream_options"]
    assert given == {"model": "small", "logprobs": False}


@pytest.mark.parametrize(
    "told",
    [
        "top_logprobs must be <= 5",
        "top_logprobs must be between 0 and 5",
        "Requested sample logprobs of 20, which is greater than max allowed: 5",
        "Invalid value for 'top_logprobs': must be less than or equal to 5.",
    ],
)
def test_a_server_that_lists_fewer_alternatives_is_asked_for_fewer(refusals: Refusals, told: str) -> None:
    """That is no refusal of log-probabilities; the number holds for every kind of call from then on."""
    ask = Generate(ScriptedModel("small"), Request((Message("user", "q"),)))
    added = {"logprobs": {"logprobs": True, "top_logprobs": 20}}
    first = CallParameters(ask, {}, added, refusals, streamed=False)
    first.retry_without(RefusalError(told))
    first.answered()
    again = CallParameters(ask, {}, added, refusals, streamed=True)

    assert first.parameters == again.parameters == {"logprobs": True, "top_logprobs": 5}
    assert not again.whole


def test_a_number_in_another_error_limits_nothing(refusals: Refusals) -> None:
    """A wrong key is the caller's, whatever its text holds."""
    made = CallParameters(
        Generate(ScriptedModel("small"), Request((Message("user", "q"),))),
        {},
        {"logprobs": {"logprobs": True, "top_logprobs": 20}},
        refusals,
        streamed=False,
    )
    with pytest.raises(RefusalError):
        made.retry_without(RefusalError("of logprobs there must be 5", 401))

    assert refusals.most_alternatives is None
