"""Against a server on this machine that speaks OpenAI's protocol; no network, no key."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import pickle
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest
from confcascade import (
    Architecture,
    Cascade,
    ConfigurationError,
    Message,
    MissingExtraError,
    ModelError,
    OpenAICompatibleModel,
    OutputSchema,
    Prices,
    Request,
    Stage,
    TokenProbability,
    Tool,
    ToolCall,
    Usage,
)
from confcascade.answers import parted
from confcascade.asks import Generate, Prefill
from confcascade.errors import SignalUnavailableError
from confcascade.extending import Chunk, Evidence, Response, Token
from confcascade.testing import ScriptedModel, check_model, same_record
from pytest_httpserver import HTTPServer
from werkzeug import Request as Received
from werkzeug import Response as Sent

PATH = "/v1/chat/completions"
REQUEST = Request((Message("system", "Be brief."), Message("user", "2+2?")))
EOS = {"token": "", "bytes": [], "logprob": -0.002, "top_logprobs": []}


def entry(token: str, p: float = 0.9, **top: float) -> dict[str, Any]:
    def listed(text: str, probability: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(text.encode()), "logprob": math.log(probability)}

    return {**listed(token, p), "top_logprobs": [listed(text, probability) for text, probability in top.items()]}


class Server:
    """Answers every request alike, whole or streamed, as OpenAI's and llama.cpp's servers do."""

    def __init__(self, httpserver: HTTPServer) -> None:
        self.url = httpserver.url_for("/v1")
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.entries = [entry("4"), entry(" of"), entry(" course")]
        self.text: str | None = None
        self.tool_calls: list[tuple[str, str]] = []  # whose tokens are the entries, as llama.cpp lists them
        self.eos: list[dict[str, Any]] = [EOS]
        self.finish: str | None = "stop"
        self.usage: dict[str, int] | None = {"prompt_tokens": 14, "completion_tokens": 4, "total_tokens": 18}
        self.refuse: Callable[[dict[str, Any]], Sent | None] = lambda body: None
        self.pause_s = 0.0
        self.sent = 0
        httpserver.expect_request(PATH, method="POST").respond_with_handler(self.answer)

    def answer(self, received: Received) -> Sent:
        body = received.get_json()
        self.bodies.append(body)
        self.keys.append(received.headers.get("Authorization"))
        if (refused := self.refuse(body)) is not None:
            return refused
        if body.get("stream"):
            return Sent(self.events(body), content_type="text/event-stream")
        text = "".join(each["token"] for each in self.entries) if self.text is None else self.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text} | self.calls(),
            "finish_reason": self.finish,
            "logprobs": {"content": self.entries + self.eos} if body.get("logprobs") else None,
        }
        return self.json(self.envelope("chat.completion", choices=[choice], usage=self.usage))

    def events(self, body: dict[str, Any]) -> Iterator[str]:
        def event(delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
            return f"data: {json.dumps(self.envelope('chat.completion.chunk', choices=[choice], usage=None))}\n\n"

        self.sent = 0
        yield event({"role": "assistant", "content": ""})
        for each in self.entries:
            time.sleep(self.pause_s)
            self.sent += 1
            delta = {} if self.tool_calls else {"content": each["token"]}
            yield event(delta, {"content": [each]} if body.get("logprobs") else None)
        for i, (name, arguments) in enumerate(self.tool_calls):
            for j, piece in enumerate((arguments[:3], arguments[3:])):
                head = {"id": f"call_{i}", "type": "function"} if j == 0 else {}
                function = {"arguments": piece} | ({"name": name} if j == 0 else {})
                yield event({"tool_calls": [{"index": i, **head, "function": function}]})
        if self.finish is not None:
            yield event({}, finish=self.finish)
            if self.usage is not None and body.get("stream_options", {}).get("include_usage"):
                yield f"data: {json.dumps(self.envelope('chat.completion.chunk', choices=[], usage=self.usage))}\n\n"
        yield "data: [DONE]\n\n"

    def calls(self) -> dict[str, Any]:
        if not self.tool_calls:
            return {}
        listed = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(self.tool_calls)
        ]
        return {"content": None, "tool_calls": listed}

    @staticmethod
    def envelope(kind: str, **fields: Any) -> dict[str, Any]:
        return {"id": "1", "object": kind, "created": 0, "model": "m", **fields}

    @staticmethod
    def json(body: Any, status: int = 200) -> Sent:
        return Sent(json.dumps(body), status, content_type="application/json")

    def error(self, message: str, status: int = 400) -> Sent:
        return self.json({"error": {"message": message, "type": "invalid_request_error"}}, status)


@pytest.fixture(scope="module")
def threaded() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def server(threaded: HTTPServer, monkeypatch) -> Server:
    threaded.clear()
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    return Server(threaded)


@pytest.fixture
def model(server: Server) -> OpenAICompatibleModel:
    return OpenAICompatibleModel("m", base_url=server.url, api_key="sk-secret", max_retries=0, timeout_s=10)


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


ASKS: dict[str, Callable[[OpenAICompatibleModel, Generate], Response]] = {
    "generate": lambda model, ask: model.generate([ask])[0],  # type: ignore[dict-item, return-value]
    "stream": lambda model, ask: list(model.stream(ask))[-1],  # type: ignore[dict-item, return-value]
    "agenerate": lambda model, ask: asyncio.run(model.agenerate([ask]))[0],  # type: ignore[dict-item, return-value]
    "astream": lambda model, ask: asyncio.run(collected(model.astream(ask)))[-1],
}
every_way = pytest.mark.parametrize("way", ASKS)


# ---------------------------------------------------------------------- the contract


def test_it_keeps_the_contract(model: OpenAICompatibleModel):
    """Whole and streamed, synchronously and not, it gives one answer, and obeys its watches."""
    check_model(model, REQUEST)


@every_way
def test_an_answer_is_read(model: OpenAICompatibleModel, way: str):
    """Text, log-probabilities, usage and the reason for ending are the server's; the end token is left out."""
    response = ASKS[way](model, Generate(model, REQUEST))

    assert response.text == "4 of course"
    assert [token.text for token in response.tokens or ()] == ["4", " of", " course"]
    assert [token.logprob for token in response.tokens or ()] == pytest.approx([math.log(0.9)] * 3)
    assert response.usage == Usage(14, 4)
    assert response.finish_reason == "stop"


@every_way
def test_a_request_is_sent_as_it_is(model: OpenAICompatibleModel, server: Server, way: str):
    """Messages, limits and options go out under OpenAI's names; what was not asked for is not sent."""
    request = Request(
        REQUEST.messages, max_tokens=7, stop=("\n", "END"), temperature=0.0, options={"seed": 3, "top_p": 0.5}
    )
    ASKS[way](model, Generate(model, request, top_logprobs=5))
    ASKS[way](model, Generate(model, REQUEST, logprobs=False))
    full, bare = server.bodies
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if way.endswith("stream") else {}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]

    assert {key: value for key, value in bare.items() if key != "stream" or value} == {
        "model": "m",
        "messages": messages,
        **streaming,
    }
    assert {key: value for key, value in full.items() if key != "stream" or value} == {
        "model": "m",
        "messages": messages,
        "max_tokens": 7,
        "stop": ["\n", "END"],
        "temperature": 0.0,
        "seed": 3,
        "top_p": 0.5,
        "logprobs": True,
        "top_logprobs": 5,
        **streaming,
    }
    assert request.options == {"seed": 3, "top_p": 0.5}


def test_log_probabilities_without_alternatives(model: OpenAICompatibleModel, server: Server):
    """Two are asked for: some servers take 0 to mean no log-probabilities, and one is the token itself."""
    model.generate([Generate(model, REQUEST, top_logprobs=0)])

    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 2)


@every_way
def test_alternatives_are_read(model: OpenAICompatibleModel, server: Server, way: str):
    """The listed alternatives of a position are there for answer labels."""
    server.entries = [entry("A", 0.5, A=0.5, B=0.3)]
    response = ASKS[way](model, Generate(model, REQUEST, top_logprobs=20))

    assert response.tokens == (Token("A", math.log(0.5), (("A", math.log(0.5)), ("B", math.log(0.3)))),)


@every_way
def test_log_probabilities_are_never_positive(model: OpenAICompatibleModel, server: Server, way: str):
    """A server that rounds a certain token to a little more than 1 does not make a score above 1."""
    server.entries = [entry("4", 1.0000001, A=1.0000001)]
    (token,) = ASKS[way](model, Generate(model, REQUEST, top_logprobs=1)).tokens or ()

    assert (token.logprob, token.top[0][1]) == (0.0, 0.0)


@every_way
def test_a_character_of_several_tokens(model: OpenAICompatibleModel, server: Server, way: str):
    """Where a character takes several tokens, their texts add up to it: bytes are read, not escapes."""
    first, second = "é".encode()
    server.entries = [
        {**entry("caf"), "token": "caf"},
        {"token": "\\xc3", "bytes": [first], "logprob": -0.1, "top_logprobs": []},
        {"token": "\\xa9", "bytes": [second], "logprob": -0.2, "top_logprobs": []},
        entry("."),
    ]
    server.text = "café."
    if way.endswith("stream"):  # a server sends the character once it is whole
        plain = server.events

        def events(body: dict[str, Any]) -> Iterator[str]:
            for event in plain(body):
                yield event.replace('"delta": {"content": "\\\\xc3"}', '"delta": {"content": ""}').replace(
                    '"delta": {"content": "\\\\xa9"}', '"delta": {"content": "\\u00e9"}'
                )

        server.events = events  # type: ignore[method-assign]
    response = ASKS[way](model, Generate(model, REQUEST))

    assert response.text == "café."
    assert [token.text for token in response.tokens or ()] == ["caf", "", "é", "."]


@every_way
def test_a_listed_stop_string_is_no_part_of_the_answer(model: OpenAICompatibleModel, server: Server, way: str):
    """Tokens that follow the visible text, as some servers list them, are not judged."""
    server.entries = [entry("4")]
    server.text = "4"
    server.eos = [entry("\n", 0.01), EOS]
    response = parted(REQUEST, ASKS[way](model, Generate(model, REQUEST)))

    assert [token.text for token in response.tokens or ()] == ["4"]


def test_an_end_token_is_left_out_of_a_stripped_answer(model: OpenAICompatibleModel, server: Server):
    """Where the server strips the text, its tokens no longer spell it; the end token is known by having no bytes."""
    server.entries, server.text = [entry(" 4"), entry(".")], "4."
    response = ASKS["generate"](model, Generate(model, REQUEST))

    assert [token.text for token in response.tokens or ()] == [" 4", "."]


@every_way
def test_an_answer_with_a_number_that_is_not_finite_has_no_tokens(
    model: OpenAICompatibleModel, server: Server, way: str
):
    """Servers send NaN and Infinity where a model overflowed; the rest must not be judged without them."""
    for number in (math.nan, math.inf):
        server.entries = [entry("4"), entry(" of") | {"logprob": number}, entry(" course")]

        response = ASKS[way](model, Generate(model, REQUEST))

        assert (response.text, response.tokens) == ("4 of course", None)


def test_the_end_of_a_stream_is_no_part_of_the_answer(model: OpenAICompatibleModel, server: Server):
    """Nor are tokens that come with the event that ends a stream, without text."""
    plain = server.events

    def events(body: dict[str, Any]) -> Iterator[str]:
        ending = {"content": [{"token": "<|im_end|>", "bytes": [60], "logprob": -5.0, "top_logprobs": []}]}
        for event in plain(body):
            if '"finish_reason": "stop"' in event:
                event = event.replace('"logprobs": null', f'"logprobs": {json.dumps(ending)}')
            yield event

    server.events = events  # type: ignore[method-assign]
    seen: list[int] = []

    def watch(tokens: Sequence[Token]) -> Any:
        seen.append(len(tokens))
        return "hold"

    response = parted(REQUEST, ASKS["stream"](model, Generate(model, REQUEST, watch=watch)))

    assert [token.text for token in response.tokens or ()] == ["4", " of", " course"]
    assert set(seen) == {1, 2, 3}


# ---------------------------------------------------------------------- without log-probabilities


@every_way
def test_log_probabilities_that_are_ignored(model: OpenAICompatibleModel, server: Server, way: str):
    """A server that does not mention them gives an answer without tokens, not one with invented ones."""

    def ignore(body: dict[str, Any]) -> None:
        body.pop("logprobs", None)

    server.refuse = ignore
    response = ASKS[way](model, Generate(model, REQUEST))

    assert (response.text, response.tokens) == ("4 of course", None)


@pytest.mark.parametrize("status", [400, 403, 422])
@every_way
def test_log_probabilities_that_are_refused(model: OpenAICompatibleModel, server: Server, way: str, status: int):
    """A refusal is answered by asking again without, once; the next call of the kind does not ask for them any more.

    A draft whose stream is refused them is asked for whole, for servers may list them there.
    """
    server.refuse = lambda body: (
        server.error("This model does not support 'logprobs'.", status) if "logprobs" in body else None
    )

    assert model.capability.logprobs is None
    first = ASKS[way](model, Generate(model, REQUEST))
    second = ASKS[way](model, Generate(model, REQUEST))

    tries = [True, True, False, False] if way.endswith("stream") else [True, False, False]
    assert ["logprobs" in body for body in server.bodies] == ["top_logprobs" in body for body in server.bodies] == tries
    assert first.text == second.text == "4 of course"
    assert first.tokens is second.tokens is None
    assert model.capability.logprobs is None  # of other kinds of calls nothing is known


async def test_calls_that_are_refused_together(model: OpenAICompatibleModel, server: Server):
    """Of many calls under way at once, each is refused, and each is asked again."""
    refused, lock = [], Lock()

    def refuse(body: dict[str, Any]) -> Sent | None:
        if "logprobs" not in body:
            return None
        with lock:
            refused.append(body)
        for _ in range(1000):
            if len(refused) == 5:
                break
            time.sleep(0.005)
        return server.error("logprobs are not supported")

    server.refuse = refuse
    answers = await asyncio.gather(*(model.agenerate([Generate(model, REQUEST)]) for _ in range(5)))

    assert [answer[0].text for answer in answers] == ["4 of course"] * 5  # type: ignore[union-attr]
    assert len(server.bodies) == 10


@pytest.mark.parametrize(
    ("message", "status", "logprobs"),
    [
        ("The context is too long.", 400, True),
        ("logprobs are not supported", 400, False),  # none were asked for
        ("Incorrect key, and by the way logprobs", 401, True),
    ],
)
@every_way
def test_other_errors_are_raised(
    model: OpenAICompatibleModel, server: Server, way: str, message: str, status: int, logprobs: bool
):
    """Any other refusal is an error of the call, and is not asked again."""
    import openai

    server.refuse = lambda body: server.error(message, status)

    with pytest.raises(openai.APIStatusError, match=message):
        ASKS[way](model, Generate(model, REQUEST, logprobs=logprobs))

    assert len(server.bodies) == 1
    assert model.capability.logprobs is None


@every_way
def test_a_key_that_the_server_repeats_is_masked(model: OpenAICompatibleModel, server: Server, way: str):
    """An error of a proxy that shows what it was sent goes into records: without the key."""
    import openai

    server.refuse = lambda body: server.json(
        {"error": {"message": f"Not allowed: {server.keys[-1]}", "sent": [server.keys[-1]]}}, 403
    )

    with pytest.raises(openai.PermissionDeniedError, match=r"Not allowed: Bearer \*\*\*") as caught:
        ASKS[way](model, Generate(model, REQUEST))

    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in f"{caught.value!r} {caught.value.message} {caught.value.body}"


@every_way
@pytest.mark.parametrize(
    ("sent", "of_type", "told"),
    [
        ("<html>sk-secret", "text/html", "sent a web page instead of a chat completion. Is its `base_url` right?"),
        ("sk-secret", "text/plain", "sent plain text instead of a chat completion"),
        ('["sk-secret"]', "application/json", "sent JSON of another form instead of a chat completion"),
        ('{"error": {"message": "sk-secret", "code": 529}}', "application/json", "answered with an error (529)."),
        (
            '{"error": {"message": "sk-secret", "code": "overloaded", "type": "server_error", "param": "model"}}',
            "application/json",
            "answered with an error (overloaded, parameter model).",
        ),
        ('{"error": "sk-secret"}', "application/json", "answered with an error."),
        ('{"id": "sk-secret", "choices": null}', "application/json", "answered without a choice."),
    ],
)
def test_what_is_no_completion_is_named_and_not_quoted(
    model: OpenAICompatibleModel, server: Server, way: str, sent: str, of_type: str, told: str
):
    """It may hold the key, or what was asked; and it is the same whether the answer was to come in pieces."""
    server.refuse = lambda body: Sent(sent, content_type=of_type)

    with pytest.raises(ModelError, match=re.escape(told)) as caught:
        ASKS[way](model, Generate(model, REQUEST))

    assert "sk-" not in str(caught.value)


def test_a_server_that_does_not_stream_says_so(model: OpenAICompatibleModel, server: Server):
    """A whole answer holds no event."""
    whole = server.envelope("chat.completion", choices=[{"index": 0, "message": {"content": "4"}}])
    server.refuse = lambda body: server.json(whole)

    with pytest.raises(ModelError, match="sent a whole answer instead of a stream"):
        list(model.stream(Generate(model, REQUEST)))


def test_a_key_that_no_header_can_hold_is_masked(server: Server):
    """The client's error names the header: it stands in tracebacks, as the cause."""
    model = OpenAICompatibleModel("m", base_url=server.url, api_key="sk-secret\n", max_retries=0)

    with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever the client has for it
        model.generate([Generate(model, REQUEST)])

    assert "sk-secret" not in "".join(traceback.format_exception(caught.value))


def test_a_refusal_escalates_with_its_reason(model: OpenAICompatibleModel, server: Server):
    """In a cascade, an answer without log-probabilities cannot be judged, and says so."""
    server.refuse = lambda body: server.error("no logprobs here") if "logprobs" in body else None
    cascade = Cascade([Stage(model, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large", {"2+2?": "4"}))])

    outcome = cascade.run("2+2?")

    assert outcome.text == "4"
    assert outcome.record.attempts[0].reason == (
        "p_t: the server refuses log-probabilities in this kind of call (BadRequestError (400))"
    )


# ---------------------------------------------------------------------- streams


def test_a_stream_shows_every_piece(model: OpenAICompatibleModel):
    """Chunks carry text and tokens as they come, and the server's own event; a draft is not released."""
    *chunks, response = model.stream(Generate(model, REQUEST))

    assert [(chunk.text, [token.text for token in chunk.tokens], chunk.released) for chunk in chunks] == [  # type: ignore[union-attr]
        ("4", ["4"], False),
        (" of", [" of"], False),
        (" course", [" course"], False),
    ]
    assert all(chunk.native.object == "chat.completion.chunk" for chunk in chunks)  # type: ignore[union-attr]
    assert isinstance(response, Response)


def test_a_live_stream_is_released(model: OpenAICompatibleModel):
    """What nothing can withdraw may be shown at once."""
    *chunks, _ = model.stream(Generate(model, REQUEST, live=True, logprobs=False))

    assert [chunk.text for chunk in chunks if isinstance(chunk, Chunk) and chunk.released] == ["4", " of", " course"]


@every_way
def test_a_watch_ends_the_answer(model: OpenAICompatibleModel, server: Server, way: str):
    """An answer that can only fail is ended while the server still writes; its usage is estimated, and says so."""
    server.entries = [entry("4", 0.9), entry(" or", 0.1), *[entry(" so", 0.9)] * 200]
    server.pause_s = 0.005

    def watch(tokens: Sequence[Token]) -> Any:
        return "abort" if tokens[-1].logprob < math.log(0.5) else "hold"

    response = ASKS[way](model, Generate(model, REQUEST, watch=watch))

    assert (response.text, response.finish_reason) == ("4 or", "aborted")
    assert len(response.tokens or ()) == 2
    assert response.usage == Usage(math.ceil(len("Be brief.2+2?") / 4), 2, estimated=True)
    time.sleep(0.05)
    assert server.sent < 150


def test_a_watch_releases_the_answer(model: OpenAICompatibleModel):
    """From the token that settles it, an answer may be shown."""

    def watch(tokens: Sequence[Token]) -> Any:
        return "release" if len(tokens) == 2 else "hold"

    *chunks, _ = model.stream(Generate(model, REQUEST, watch=watch))

    assert [chunk.released for chunk in chunks if isinstance(chunk, Chunk)] == [False, True, True]


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_stream_that_is_cut_is_an_error(model: OpenAICompatibleModel, server: Server, way: str):
    """A stream that ends without a reason has not ended: half an answer is never taken for a whole one."""
    server.finish = None

    with pytest.raises(ModelError, match="ended before the answer did"):
        ASKS[way](model, Generate(model, REQUEST))


@pytest.mark.parametrize("logprobs", [True, False])
@every_way
def test_usage_that_is_not_told_is_estimated(model: OpenAICompatibleModel, server: Server, way: str, logprobs: bool):
    """Four characters are taken for a token where nothing better is known, and the usage is marked."""
    server.usage = None
    response = ASKS[way](model, Generate(model, REQUEST, logprobs=logprobs))

    assert response.usage == Usage(math.ceil(len("Be brief.2+2?") / 4), 3, estimated=True)


@every_way
def test_what_a_server_counts_apart_is_kept(model: OpenAICompatibleModel, server: Server, way: str):
    """Tokens read from its cache, and those of thoughts; nothing is made up where it reports none."""
    server.usage |= {  # type: ignore[operator]
        "prompt_tokens_details": {"cached_tokens": 12, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3, "accepted_prediction_tokens": 9},
    }
    response = ASKS[way](model, Generate(model, REQUEST))

    assert response.usage == Usage(14, 4, input_details={"cache_read": 12, "audio": 0}, output_details={"reasoning": 3})


def test_cached_input_has_its_price(model: OpenAICompatibleModel, server: Server):
    server.usage |= {"prompt_tokens_details": {"cached_tokens": 10}}  # type: ignore[operator]
    outcome = Cascade([Stage(model, prices=Prices(2.0, 8.0, cached_input_usd=0.5))]).run("2+2?")

    assert outcome.record.cost.usd == pytest.approx((4 * 2.0 + 10 * 0.5 + 4 * 8.0) / 1e6)
    assert outcome.record.as_dict()["usage"]["input_details"] == {"cache_read": 10}


def test_an_answer_without_a_choice_is_an_error(model: OpenAICompatibleModel, server: Server):
    """A server that answers nothing has failed."""
    server.refuse = lambda body: server.json(server.envelope("chat.completion", choices=[], usage=None))

    with pytest.raises(ModelError, match="'m' answered without a choice"):
        model.generate([Generate(model, REQUEST)])


@every_way
def test_a_tool_call_without_text_is_an_answer(model: OpenAICompatibleModel, server: Server, way: str):
    """No text and the reason "tool_calls": not empty, and its tokens are those of no text."""
    server.entries, server.text, server.finish, server.eos = [], "", "tool_calls", [entry("{", 0.2)]
    response = ASKS[way](model, Generate(model, REQUEST))

    assert (response.text, response.finish_reason, response.is_empty) == ("", "tool_calls", False)
    with pytest.raises(SignalUnavailableError, match="tool calls"):
        TokenProbability().score(
            Evidence(REQUEST, None, response.tokens, response.replace(tool_calls=(ToolCall("f", {}),)))
        )


# ---------------------------------------------------------------------- in a cascade


def test_all_drivers_agree_over_http(model: OpenAICompatibleModel):
    """A cascade over a server gives one record, however it is asked."""
    stages = [
        Stage(model, [TokenProbability(aggregate="min", name="least")], {"least": 0.95}),
        Stage(model, [TokenProbability()], {"p_t": 0.8}),
        Stage(ScriptedModel("large")),
    ]
    cascade = Cascade(stages)

    async def asynchronously() -> list[Any]:
        streamed = await collected(cascade.astream("2+2?"))
        return [await cascade.arun("2+2?"), *await cascade.arun_batch(["2+2?"] * 3), streamed[-1]]

    outcomes = [cascade.run("2+2?"), *cascade.run_batch(["2+2?"] * 3), list(cascade.stream("2+2?"))[-1]]
    outcomes += asyncio.run(asynchronously())

    first = outcomes[0].record.as_dict()
    assert (outcomes[0].text, outcomes[0].record.stage) == ("4 of course", 1)
    assert outcomes[0].record.attempts[0].aborted
    assert all(same_record(outcome.record.as_dict(), first) for outcome in outcomes)


def test_it_has_no_hidden_states(model: OpenAICompatibleModel):
    """Nothing behind an API can be prefilled: the capability says so, and so does trying."""
    assert not model.capability.prefill
    assert not model.capability.local
    with pytest.raises(ModelError, match="hidden states cannot be seen"):
        model.prefill([Prefill(model, REQUEST)])
    with pytest.raises(ModelError, match="hidden states cannot be seen"):
        asyncio.run(model.aprefill([Prefill(model, REQUEST)]))


# ---------------------------------------------------------------------- keys, pickles, loops


def test_the_key_is_sent_and_never_shown(model: OpenAICompatibleModel, server: Server):
    """The server gets the key; repr, pickle and state do not."""
    model.generate([Generate(model, REQUEST)])

    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in repr(model) + str(vars(model))
    assert b"sk-secret" not in pickle.dumps(model)
    assert repr(model) == f"OpenAICompatibleModel('m', base_url='{server.url}')"


def test_a_pickled_model_reads_its_key_anew(model: OpenAICompatibleModel, server: Server, monkeypatch):
    """A copy in another process has the settings, no sockets, and the key of its own environment."""
    model.generate([Generate(model, REQUEST)])
    asyncio.run(model.agenerate([Generate(model, REQUEST)]))
    copy = pickle.loads(pickle.dumps(model))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-worker")

    (answer,) = copy.generate([Generate(copy, REQUEST)])

    assert answer.text == "4 of course"
    assert server.keys[-1] == "Bearer sk-worker"


def test_a_key_of_another_variable(server: Server, monkeypatch):
    """It is read from the variable named, in another process from its own; never another key in its place."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    with pytest.raises(ConfigurationError, match="`api_key_env` of model 'm' names no variable that is set"):
        OpenAICompatibleModel("m", base_url=server.url, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "sk-mine")
    with pytest.raises(ConfigurationError, match="exclude each other"):
        OpenAICompatibleModel("m", base_url=server.url, api_key="sk-secret", api_key_env="MY_KEY")
    model = OpenAICompatibleModel("m", base_url=server.url, api_key_env="MY_KEY")
    model.generate([Generate(model, REQUEST)])
    monkeypatch.setenv("MY_KEY", "sk-worker")
    copy = pickle.loads(pickle.dumps(model))
    copy.generate([Generate(copy, REQUEST)])
    assert server.keys == ["Bearer sk-mine", "Bearer sk-worker"]
    assert "sk-mine" not in repr(model) + str(vars(model))
    monkeypatch.delenv("MY_KEY")
    unset = pickle.loads(pickle.dumps(model))
    with pytest.raises(ConfigurationError, match="is not set"):
        unset.generate([Generate(unset, REQUEST)])


def test_a_server_of_ones_own_needs_no_key(server: Server):
    """With `base_url`, a key is optional."""
    model = OpenAICompatibleModel("m", base_url=server.url)

    assert ASKS["generate"](model, Generate(model, REQUEST)).text == "4 of course"


def test_openai_itself_needs_a_key(monkeypatch):
    """Without a key, a model of OpenAI's own is refused when it is made, not at the first prompt."""
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigurationError, match="Set OPENAI_API_KEY, or give `api_key`"):
        OpenAICompatibleModel("gpt-4o")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    assert OpenAICompatibleModel("gpt-4o").name == "gpt-4o"


def test_the_package_is_an_extra(monkeypatch):
    """Without the package `openai`, the error names the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r'pip install "confcascade\[openai\]"'):
        OpenAICompatibleModel("m", api_key="sk-secret")


def test_names_and_architectures():
    """A record may call the model by another name; an architecture gives it costs in FLOPs."""
    tiny = Architecture(1000, 2, 10)
    model = OpenAICompatibleModel("org/m-4bit", base_url="http://x/v1", name="m", architecture=tiny)

    assert (model.name, model.architecture) == ("m", tiny)
    assert OpenAICompatibleModel("m", base_url="http://x/v1").architecture is None


class KeepAlive(BaseHTTPRequestHandler):
    """Keeps connections open between requests, as real servers do."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "4"}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        body = json.dumps(Server.envelope("chat.completion", choices=[choice], usage=None)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_one_model_serves_many_event_loops(server: Server):
    """A model outlives `asyncio.run`: the next loop does not get the connections of a loop that is closed."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), KeepAlive)
    httpd.daemon_threads = True
    Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
        model = OpenAICompatibleModel("m", base_url=url, max_retries=0, timeout_s=10)
        for _ in range(3):
            assert ASKS["agenerate"](model, Generate(model, REQUEST, logprobs=False)).text == "4"
    finally:
        httpd.shutdown()
        httpd.server_close()


# ---------------------------------------------------------------------- tools and structured output

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = Tool("add", PARAMETERS, "Add.")


@every_way
def test_tool_calls_are_read_and_their_tokens_kept(server: Server, model: OpenAICompatibleModel, way: str):
    """llama.cpp and vLLM list a call's own tokens, of a text that is empty."""
    server.tool_calls, server.finish = [("add", '{"a": 1}'), ("add", "")], "tool_calls"
    server.entries = [entry(piece) for piece in ('{"name": "', "add", '", "arguments": {"a": ', "1", "}}")]
    ask = Generate(model, dataclasses.replace(REQUEST, tools=(ADD,)))

    answer = ASKS[way](model, ask)

    assert answer.tool_calls == (ToolCall("add", {"a": 1}, "call_0"), ToolCall("add", {}, "call_1"))
    assert (answer.text, answer.problem, answer.finish_reason) == ("", None, "tool_calls")
    assert answer.tokens is not None
    assert "".join(token.text for token in answer.tokens) == '{"name": "add", "arguments": {"a": 1}}'


@every_way
@pytest.mark.parametrize("arguments", ['{"a": 1', "[1]", "one"])
def test_a_call_that_cannot_be_read_is_a_problem(
    server: Server, model: OpenAICompatibleModel, way: str, arguments: str
):
    server.tool_calls, server.finish = [("add", arguments)], "tool_calls"

    answer = ASKS[way](model, Generate(model, dataclasses.replace(REQUEST, tools=(ADD,))))

    assert (answer.tool_calls, answer.problem) == ((), "the arguments of a tool call are not a JSON object")
    assert not answer.is_empty


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        (True, "required"),
        ("add", {"type": "function", "function": {"name": "add"}}),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_tools_are_sent_in_openais_form(server: Server, model: OpenAICompatibleModel, choice: Any, sent: Any):
    own = {"type": "web_search"}
    tools = (ADD, Tool("web_search", native=own), Tool("bare"))
    request = Request(
        (
            Message("user", "1?"),
            Message("assistant", "", (ToolCall("add", {"a": 1}, "c1"),)),
            Message("tool", "1", tool_call_id="c1"),
        ),
        tools=tools,
        tool_choice=choice,
    )

    model.generate([Generate(model, request)])

    (body,) = server.bodies
    assert body["tools"] == [
        {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": PARAMETERS}},
        own,
        {
            "type": "function",
            "function": {"name": "bare", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert body.get("tool_choice") == sent
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert body["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
    ]


@every_way
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1}', None),
        ('{"a": "x"}', "the structured output does not fit: 'a' must be of type integer"),
        ("no", "the structured output is not JSON"),
    ],
)
def test_structured_output_is_asked_for_and_judged(
    server: Server, model: OpenAICompatibleModel, way: str, text: str, problem: str | None
):
    server.entries = [entry(text)]
    request = dataclasses.replace(REQUEST, output=OutputSchema("Answer", PARAMETERS))

    answer = ASKS[way](model, Generate(model, request))

    assert (answer.text, answer.problem) == (text, problem)
    wanted = {"type": "json_schema", "json_schema": {"name": "Answer", "schema": PARAMETERS}}
    assert server.bodies[0]["response_format"] == wanted


@pytest.mark.parametrize("asked", ["run", "stream"])
def test_a_cascade_of_servers_judges_calls_by_their_values(server: Server, model: OpenAICompatibleModel, asked: str):
    """The core alone, without any framework."""
    server.tool_calls, server.finish = [("add", '{"a": 1}')], "tool_calls"
    pieces = {'{"name": "': 0.1, "add": 0.99, '", "arguments": {"a": ': 0.1, "1": 0.97, "}}": 0.1}
    server.entries = [entry(piece, p) for piece, p in pieces.items()]
    cascade = Cascade([Stage(model, [TokenProbability(aggregate="min")], {"p_t": 0.9}), Stage(ScriptedModel("large"))])

    if asked == "run":
        outcome = cascade.run("1?", tools=(ADD,))
    else:
        *_, outcome = cascade.stream("1?", tools=(ADD,))  # type: ignore[assignment]

    assert outcome.record.attempts[0].reason == "p_t 0.97 >= 0.9"
    assert outcome.response.tool_calls[0].arguments == {"a": 1}
