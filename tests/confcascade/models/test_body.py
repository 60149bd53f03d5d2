"""What is sent to a server: limits and temperatures that newer models refuse, and options of a model's own."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("openai")

import openai
from confcascade import Cascade, ConfigurationError, Message, OpenAICompatibleModel, Request, Stage, TokenProbability
from confcascade.asks import Generate
from confcascade.extending import Response, settings_digest
from confcascade.stage import policy_id
from confcascade.testing import ScriptedModel
from pytest_httpserver import HTTPServer
from werkzeug import Request as Received
from werkzeug import Response as Sent

LIMITED = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
ONLY_ONE = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
# of vLLM: the number is at fault, though the error names both parameters
TOO_LARGE = "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum length is 8 tokens."


class Reasoning:
    """A server of a model that refuses as OpenAI's reasoning models do, whole and streamed.

    Attributes:
        bodies: What it was sent.
        refuse: Made of a body: why it is refused, if it is; by default ``max_tokens`` and any temperature but 1.
    """

    def __init__(self, httpserver: HTTPServer) -> None:
        self.url = httpserver.url_for("/v1")
        self.bodies: list[dict[str, Any]] = []
        self.refuse: Callable[[dict[str, Any]], tuple[str, str | None, str | None] | None] = self._as_openai
        httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self.answer)

    @staticmethod
    def _as_openai(body: dict[str, Any]) -> tuple[str, str | None, str | None] | None:
        if "max_tokens" in body:
            return LIMITED, "max_tokens", "unsupported_parameter"
        if body.get("temperature", 1) != 1:
            return ONLY_ONE, "temperature", "unsupported_value"
        return None

    def answer(self, received: Received) -> Sent:
        body = received.get_json()
        self.bodies.append(body)
        if (refused := self.refuse(body)) is not None:
            message, param, code = refused
            error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
            return Sent(json.dumps({"error": error}), 400, content_type="application/json")
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        envelope: dict[str, Any] = {"id": "1", "created": 0, "model": "m"}
        choice = {"index": 0, "finish_reason": "stop"}
        if not body.get("stream"):
            choice["message"] = {"role": "assistant", "content": "Lyon"}
            whole = {**envelope, "object": "chat.completion", "choices": [choice], "usage": usage}
            return Sent(json.dumps(whole), content_type="application/json")
        choice["delta"] = {"role": "assistant", "content": "Lyon"}
        piece = {**envelope, "object": "chat.completion.chunk", "choices": [choice]}
        return Sent(f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    def sent(self, *names: str) -> list[dict[str, Any]]:
        """Some parameters of each call."""
        return [{name: body[name] for name in names if name in body} for body in self.bodies]


@pytest.fixture(scope="module")
def threaded() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def server(threaded: HTTPServer) -> Reasoning:
    threaded.clear()
    return Reasoning(threaded)


@pytest.fixture
def made(server: Reasoning) -> Callable[..., OpenAICompatibleModel]:
    def make(**arguments: Any) -> OpenAICompatibleModel:
        return OpenAICompatibleModel("m", base_url=server.url, api_key="none", max_retries=0, timeout_s=10, **arguments)

    return make


def asked(model: OpenAICompatibleModel, way: str = "whole", **request: Any) -> Response:
    ask = Generate(model, Request((Message("user", "Which?"),), **request), logprobs=False, live=True)

    async def last() -> Any:
        return [item async for item in model.astream(ask)][-1]

    ways: dict[str, Callable[[], Any]] = {
        "whole": lambda: model.answer(ask),
        "stream": lambda: list(model.stream(ask))[-1],
        "awhole": lambda: asyncio.run(model.aanswer(ask)),
        "astream": lambda: asyncio.run(last()),
    }
    answer: Response = ways[way]()
    return answer


every_way = pytest.mark.parametrize("way", ["whole", "stream", "awhole", "astream"])


# ---------------------------------------------------------------------- limits and temperatures


@every_way
def test_a_refused_limit_goes_out_under_its_new_name(server: Reasoning, made, caplog, way: str):
    """The first call of a kind is refused once; the next knows. Nothing is lost, so nothing warns."""
    model = made()
    caplog.set_level(logging.INFO, "confcascade")

    assert [asked(model, way, max_tokens=limit).text for limit in (20, 30)] == ["Lyon"] * 2

    assert server.sent("max_tokens", "max_completion_tokens") == [
        {"max_tokens": 20},
        {"max_completion_tokens": 20},
        {"max_completion_tokens": 30},
    ]
    ours = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "confcascade"]
    assert ours == [
        (
            "INFO",
            "Model 'm' refuses max_tokens in one kind of call (BadRequestError (400, unsupported_parameter, "
            "parameter max_tokens)) and is asked with max_completion_tokens instead. Logged once per kind of call.",
        )
    ]


@every_way
def test_a_refused_temperature_is_left_out_with_a_warning(server: Reasoning, made, caplog, way: str):
    """Once for each kind of call; a temperature that the server has not refused is still sent."""
    model = made()

    for temperature in (0, 0, 1):
        assert asked(model, way, temperature=temperature).text == "Lyon"

    assert server.sent("temperature") == [{"temperature": 0}, {}, {}, {"temperature": 1}]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [
        "Model 'm' refuses temperature=0 in one kind of call (BadRequestError (400, unsupported_value, "
        "parameter temperature)) and is asked without. Logged once per kind of call."
    ]


def test_both_are_learned_in_one_call(server: Reasoning, made):
    """A server names one at a time."""
    model = made()
    asked(model, max_tokens=20, temperature=0)
    asked(model, max_tokens=20, temperature=0)

    assert len(server.bodies) == 4
    assert server.sent("max_tokens", "max_completion_tokens", "temperature")[2:] == [{"max_completion_tokens": 20}] * 2


@pytest.mark.parametrize(
    ("refused", "request_"),
    [
        ((TOO_LARGE, None, None), {"max_tokens": 9}),
        ((TOO_LARGE, "max_tokens", "invalid_value"), {"max_tokens": 9}),
        (("temperature must be at most 2", "temperature", "decimal_above_max_value"), {"temperature": 3}),
        (("temperature: must be a number", None, None), {"temperature": 3}),
        (("Unsupported parameter: 'top_p'; temperature is fine", "top_p", "unsupported_parameter"), {"temperature": 0}),
        (("Unsupported parameter: 'stop'", "stop", "unsupported_parameter"), {"stop": ("\n",), "temperature": 0}),
    ],
)
def test_a_value_at_fault_is_the_callers(server: Reasoning, made, refused, request_: dict[str, Any]):
    """Nothing is dropped but what the model does not take at all, or takes one value of."""
    server.refuse = lambda body: refused
    with pytest.raises(openai.BadRequestError):
        asked(made(), **request_)

    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'temperature' is not supported with this model.",
        "invalid temperature: only 1 is allowed for this model",  # Moonshot's
        "`temperature` is deprecated for this model.",  # Anthropic's
    ],
)
def test_words_by_which_servers_refuse_a_temperature(server: Reasoning, made, message: str):
    """Without a code or a parameter in the error."""
    server.refuse = lambda body: (message, None, None) if "temperature" in body else None

    assert asked(made(), temperature=0).text == "Lyon"
    assert server.sent("temperature") == [{"temperature": 0}, {}]


def test_what_is_known_need_not_be_learned(server: Reasoning, made, caplog):
    """`unsupported` saves the refused calls; a temperature that is left out so is warned about all the same."""
    model = made(unsupported=["max_tokens", "temperature", "stream_options"])
    for way in ("whole", "whole", "stream"):
        asked(model, way, max_tokens=20, temperature=0)

    assert server.sent("max_completion_tokens", "temperature", "stream_options") == [{"max_completion_tokens": 20}] * 3
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2  # whole and streamed are two kinds
    assert all("refuses temperature=0 in one kind of call (it is configured as unsupported)" in each for each in warned)


def test_a_model_without_log_probabilities_cannot_be_judged_by_them(made):
    """Known at the start, it is an error when the cascade is built."""
    model = made(unsupported=["logprobs"])
    with pytest.raises(ConfigurationError, match="log-probabilities"):
        Cascade([Stage(model, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large"))])


def test_only_what_can_be_left_out_can_be_unsupported(made):
    with pytest.raises(ConfigurationError, match=r"logprobs, stream_options, max_tokens, temperature\. Got stop"):
        made(unsupported=["stop"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"unsupported": None},
            r"`unsupported` of model 'm' must be a list.* Got None: leave it out if there is none\.",
        ),
        ({"unsupported": "logprobs"}, r"""must be a list, such as \["logprobs"\]\. Got 'logprobs'\."""),
        ({"unsupported": 3}, r"must be a list.* Got 3\."),
        ({"unsupported": [["a"]]}, r"may name logprobs, .*\. Got \['a'\]\."),
        ({"options": None}, r"`options` of model 'm' must be a mapping.* Got None: leave it out if there are none\."),
        ({"options": ["a"]}, r"""such as \{"reasoning_effort": "low"\}\. Got list\."""),
        ({"options": "abc"}, r"must be a mapping.* Got str\."),
        ({"options": {1: 2}}, r"must have the names of parameters as keys\."),
    ],
)
def test_what_is_of_another_kind_is_refused_with_its_remedy(made, given: dict[str, Any], told: str):
    with pytest.raises(ConfigurationError, match=told):
        made(**given)


def test_it_works_as_the_last_stage(server: Reasoning, made):
    """With a limit and a temperature, as commands send them: the draft that was rejected is not the answer."""
    small = ScriptedModel("small", {"Which?": "Paris"})
    outcome = Cascade([Stage(small, [TokenProbability()], {"p_t": "never"}), Stage(made())]).run(
        "Which?", max_tokens=20, temperature=0
    )

    assert (outcome.text, outcome.record.answered_by) == ("Lyon", "m")


# ---------------------------------------------------------------------- options


@every_way
def test_options_are_parameters_of_every_call(server: Reasoning, made, way: str):
    """What the client does not know reaches the server, too; what a request says itself comes first."""
    given = {
        "reasoning_effort": "low",
        "top_p": 0.5,
        "chat_template_kwargs": {"enable_thinking": False},
        "extra_body": {"top_k": 5, "min_p": 0.1},
        "max_tokens": 100,
        "temperature": 1,
    }
    model = made(options=given)
    server.refuse = lambda body: None
    asked(model, way)
    asked(model, way, max_tokens=7, temperature=0.5, options={"top_p": 0.9, "extra_body": {"top_k": 1}, "mine": 3})
    names = ("reasoning_effort", "top_p", "chat_template_kwargs", "top_k", "min_p", "max_tokens", "temperature", "mine")

    body = {name: value for name, value in given.items() if name != "extra_body"} | given["extra_body"]
    own = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 1, "mine": 3}
    assert server.sent(*names) == [body, body | own]
    assert all("extra_body" not in each for each in server.bodies)


def test_an_option_can_name_the_limit(server: Reasoning, made):
    """A model whose options say `max_completion_tokens` is asked under that name, whatever the request says."""
    model = made(options={"max_completion_tokens": 500})
    asked(model)
    asked(model, max_tokens=7)

    assert server.sent("max_tokens", "max_completion_tokens") == [
        {"max_completion_tokens": 500},
        {"max_completion_tokens": 7},
    ]


def test_an_option_that_is_refused_is_an_error_of_the_call(server: Reasoning, made):
    """It was asked for, and nothing stands in for it."""
    server.refuse = lambda body: ("Unsupported value: 'reasoning_effort'", "reasoning_effort", "unsupported_value")
    with pytest.raises(openai.BadRequestError):
        asked(made(options={"reasoning_effort": "none"}), temperature=0)

    assert len(server.bodies) == 1


@pytest.mark.parametrize("name", ["model", "messages", "stream", "logprobs", "tools", "response_format", "n"])
def test_what_each_call_sets_is_no_option(made, name: str):
    with pytest.raises(ConfigurationError, match=f"`options` of model 'm' cannot set `{name}`, which each call sets"):
        made(options={name: 1})


def test_options_are_part_of_what_a_model_is(made):
    """Policies and caches know a model with other options for another; headers, keys and who asks do not matter."""
    plain, low = made(), made(options={"reasoning_effort": "low"})
    headers = {"extra_headers": {"X-Key": "sk-secret-of-a-gateway"}, "user": "me", "timeout": 3}
    same = made(options={"reasoning_effort": "low", **headers})

    assert plain.fingerprint == made().fingerprint != low.fingerprint == same.fingerprint
    assert settings_digest(plain) != settings_digest(low)
    ids = {policy_id([Stage(model)]) for model in (plain, low, same)}
    assert len(ids) == 2
    assert "sk-secret" not in repr(same)
    assert pickle.loads(pickle.dumps(low)).fingerprint == low.fingerprint


def test_headers_are_sent_and_never_recorded(server: Reasoning, made):
    """A gateway's key in a header is in no record."""
    model = made(options={"extra_headers": {"X-Key": "sk-secret-of-a-gateway"}})
    outcome = Cascade([Stage(model)]).run("Which?")

    assert "sk-secret" not in json.dumps(outcome.record.as_dict()) + repr(outcome.record)
