"""`LlamaIndexModel`: what an LLM is asked, and what is read from its answer."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from confcascade import ConfigurationError, ModelError, Request, Usage
from confcascade.answers import parted
from confcascade.asks import Generate
from confcascade.extending import Chunk, Response
from confcascade.testing import check_model
from confcascade.types import Message
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.mock import MockLLM
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.model import LlamaIndexModel


def request(text: str = "Capital of France?", **parameters: Any) -> Request:
    return Request((Message("user", text),), **parameters)


# ---------------------------------------------------------------------- a server like OpenAI's


class Server:
    """Answers with `tokens`, each (text, probability, bytes), and remembers what it was sent."""

    def __init__(self, httpserver: HTTPServer) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.tokens = [("Par", 0.9, [*b"Par"]), ("is", 0.8, [*b"is"]), ("<|end|>", 0.5, [])]
        self.refuses: str | None = None  # a parameter
        self.finishes = True
        self.usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        self.url = httpserver.url_for("/v1")
        httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self.chat)
        httpserver.expect_request("/v1/completions", method="POST").respond_with_handler(self.complete)

    def llm(self, **parameters: Any) -> OpenAI:
        parameters = {"model": "gpt-4o-mini", "api_key": "sk-secret", "max_retries": 0, **parameters}
        return OpenAI(api_base=self.url, **parameters)

    def chat(self, http: HTTPRequest) -> HTTPResponse:
        body = json.loads(http.get_data())
        self.bodies.append(body)
        if self.refuses and self.refuses in body:
            message = f"{self.refuses} is not supported with this model"
            return HTTPResponse(json.dumps({"error": {"message": message}}), 400, content_type="application/json")
        visible = [text for text, _, encoded in self.tokens if encoded]
        if not body.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(visible)},
                "finish_reason": "stop",
                "logprobs": self.logprobs(body, self.tokens),
            }
            return self.answer({"object": "chat.completion", "choices": [choice], "usage": self.usage})
        events = [self.event({"role": "assistant", "content": ""}, None)]
        for token in self.tokens:
            events.append(self.event({"content": token[0] if token[2] else ""}, self.logprobs(body, [token])))
        if self.finishes:
            events.append(self.event({}, None, "stop"))
        if body.get("stream_options", {}).get("include_usage"):
            events.append({"object": "chat.completion.chunk", "choices": [], "usage": self.usage})
        lines = [f"data: {json.dumps({'id': 'x', 'created': 0, 'model': 'm', **event})}\n\n" for event in events]
        return HTTPResponse("".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")

    def complete(self, http: HTTPRequest) -> HTTPResponse:
        body = json.loads(http.get_data())
        self.bodies.append(body)
        logprobs = {
            "tokens": ["Par", "is"],
            "token_logprobs": [math.log(0.9), math.log(0.8)],
            "top_logprobs": [{"Par": math.log(0.9), "Lyon": math.log(0.1)}, {}],
            "text_offset": [0, 3],
        }
        choice = {
            "index": 0,
            "text": "Paris",
            "finish_reason": "stop",
            "logprobs": logprobs if body.get("logprobs") else None,
        }
        return self.answer({"object": "text_completion", "choices": [choice], "usage": self.usage})

    def raw(self) -> dict[str, Any]:
        return {"choices": [{"logprobs": self.logprobs({"logprobs": True, "top_logprobs": 1}, self.tokens)}]}

    @staticmethod
    def answer(data: dict[str, Any]) -> HTTPResponse:
        return HTTPResponse(
            json.dumps({"id": "x", "created": 0, "model": "m", **data}), content_type="application/json"
        )

    @staticmethod
    def event(delta: dict[str, Any], logprobs: Any, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {"object": "chat.completion.chunk", "choices": [choice], "usage": None}

    @staticmethod
    def logprobs(body: dict[str, Any], tokens: list[tuple[str, float, list[int]]]) -> Any:
        if not body.get("logprobs"):
            return None
        others = [{"token": f"other{i}", "logprob": math.log(0.01), "bytes": [1]} for i in range(body["top_logprobs"])]
        return {
            "content": [
                {"token": text, "logprob": math.log(p), "bytes": encoded, "top_logprobs": others}
                for text, p, encoded in tokens
            ]
        }


@pytest.fixture
def server(httpserver: HTTPServer) -> Server:
    return Server(httpserver)


async def asked_in_every_way(model: LlamaIndexModel, ask: Generate) -> list[Response]:
    """By generate, agenerate, stream and astream."""
    (generated,) = model.generate([ask])
    (agenerated,) = await model.agenerate([ask])
    *_, streamed = model.stream(ask)
    astreamed = [item async for item in model.astream(ask)][-1]
    responses = [generated, agenerated, streamed, astreamed]
    assert all(isinstance(response, Response) for response in responses), responses
    return responses  # type: ignore[return-value]


async def test_every_way_of_asking_reads_the_same_answer(server: Server) -> None:
    """The tokens are the chosen ones, without the end-of-text token, and the usage is the server's."""
    model = LlamaIndexModel(server.llm())

    for response in await asked_in_every_way(model, Generate(model, request())):
        assert response.text == "Paris"
        assert response.tokens is not None
        assert [(t.text, round(math.exp(t.logprob), 6)) for t in response.tokens] == [("Par", 0.9), ("is", 0.8)]
        assert response.usage == Usage(7, 3)
        assert response.finish_reason == "stop"
        assert isinstance(response.native, ChatResponse)


async def test_an_answer_with_a_number_that_is_not_finite_has_no_tokens(server: Server) -> None:
    """Neither whole nor streamed are the others judged without it."""
    for p in (math.nan, math.inf):
        server.tokens[1] = ("is", p, [*b"is"])
        model = LlamaIndexModel(server.llm())
        for response in await asked_in_every_way(model, Generate(model, request())):
            assert (response.text, response.tokens) == ("Paris", None)


async def test_log_probabilities_are_parameters_of_the_call(server: Server) -> None:
    """They are asked for where wanted, with at least two alternatives, and the caller's LLM stays as it was."""
    llm = server.llm()
    before = llm.model_dump()
    model = LlamaIndexModel(llm)

    for logprobs, top in [(True, 0), (True, 20), (False, 0)]:
        await asked_in_every_way(model, Generate(model, request(), logprobs=logprobs, top_logprobs=top))

    asked = [(body.get("logprobs"), body.get("top_logprobs")) for body in server.bodies]
    assert asked == [(True, 2)] * 4 + [(True, 20)] * 4 + [(None, None)] * 4
    assert llm.model_dump() == before
    assert llm.logprobs is None


async def test_tokens_add_up_to_the_answer_where_a_character_takes_several(server: Server) -> None:
    server.tokens = [("caf", 0.9, [99, 97, 102]), ("\\xc3", 0.8, [0xC3]), ("\\xa9", 0.7, [0xA9])]
    model = LlamaIndexModel(Answering(response=ChatResponse(message=ChatMessage(content="café"), raw=server.raw())))

    (response,) = model.generate([Generate(model, request())])

    assert isinstance(response, Response)
    assert [token.text for token in response.tokens or ()] == ["caf", "", "é"]


async def test_tokens_of_a_stop_string_are_no_part_of_the_answer(server: Server) -> None:
    server.tokens = [("Par", 0.9, [80, 97, 114]), ("is", 0.8, [105, 115]), ("\n", 0.1, [10])]
    model = LlamaIndexModel(Answering(response=ChatResponse(message=ChatMessage(content="Paris"), raw=server.raw())))

    (response,) = model.generate([Generate(model, request())])

    assert isinstance(response, Response)
    assert [token.text for token in parted(request(), response).tokens or ()] == ["Par", "is"]


async def test_parameters_of_the_request_reach_the_server(server: Server) -> None:
    model = LlamaIndexModel(server.llm())
    ask = Generate(model, request(max_tokens=5, temperature=0.7, stop=("\n",), options={"seed": 3}))

    await asked_in_every_way(model, ask)

    for body in server.bodies:
        assert (body["max_tokens"], body["temperature"], body["stop"], body["seed"]) == (5, 0.7, ["\n"], 3)
        assert body["messages"] == [{"role": "user", "content": "Capital of France?"}]


@pytest.mark.parametrize("way", range(4))
async def test_a_refusal_of_log_probabilities_is_asked_again_once_and_remembered(server: Server, way: int) -> None:
    server.refuses = "logprobs"
    model = LlamaIndexModel(server.llm())
    ask = Generate(model, request())
    ways: list[Callable[[], Any]] = [
        lambda: model.generate([ask]),
        lambda: model.agenerate([ask]),
        lambda: list(model.stream(ask)),
        lambda: drained(model, ask),
    ]

    for _ in range(2):
        answer = ways[way]()
        last = (await answer if asyncio.iscoroutine(answer) else answer)[-1]
        assert (last.text, last.tokens) == ("Paris", None)

    assert ["logprobs" in body for body in server.bodies] == [True] * (1 + (way > 1)) + [False, False]


async def drained(model: LlamaIndexModel, ask: Generate) -> list[Chunk | Response]:
    return [item async for item in model.astream(ask)]


async def test_concurrent_calls_all_survive_one_refusal(server: Server) -> None:
    """A call under way when another was refused is asked again too, though the refusal is known by then."""
    server.refuses = "logprobs"
    model = LlamaIndexModel(server.llm())

    answers = await model.agenerate([Generate(model, request())] * 8)

    assert {answer.text for answer in answers if isinstance(answer, Response)} == {"Paris"}


def test_a_server_that_does_not_know_stream_options_still_streams(server: Server) -> None:
    server.refuses = "stream_options"
    model = LlamaIndexModel(server.llm())

    *_, last = model.stream(Generate(model, request()))

    assert isinstance(last, Response)
    assert (last.text.strip(), last.usage) == ("Paris", Usage(5, 2, estimated=True))


async def test_other_errors_are_raised_at_once(server: Server) -> None:
    server.refuses = "messages"
    model = LlamaIndexModel(server.llm())

    with pytest.raises(Exception, match="messages is not supported"):
        model.generate([Generate(model, request())])
    with pytest.raises(Exception, match="messages is not supported"):
        list(model.stream(Generate(model, request())))
    with pytest.raises(Exception, match="messages is not supported"):
        await drained(model, Generate(model, request()))

    # a refusal that names nothing of ours is tried once without log-probabilities, and a stream then whole
    assert ["logprobs" in body for body in server.bodies] == [True, False, True, True, False, True, True, False]


async def test_a_stream_without_a_finish_reason_is_held_against_a_draft_only(server: Server) -> None:
    """It may have been cut off, so a draft is not judged; some servers never send a reason, so a live answer is one."""
    server.finishes = False
    llm = server.llm()
    model = LlamaIndexModel(llm)

    with pytest.raises(ModelError, match="ended before the answer did"):
        list(model.stream(Generate(model, request())))
    with pytest.raises(ModelError, match="ended before the answer did"):
        await drained(model, Generate(model, request()))
    live = Generate(model, request(), live=True)
    shown = Generate(model, request(), watch=lambda tokens: "release")
    for *_, response in (list(model.stream(live)), await drained(model, live), list(model.stream(shown))):
        assert (response.text, response.finish_reason) == ("Paris", "stop")

    def streamed(*llms: Any) -> tuple[str, Any]:
        pieces = list(ConfidenceCascadeLLM(models=llms, threshold=0.1).stream_chat([ChatMessage("Capital?")]))
        return "".join(piece.delta or "" for piece in pieces), pieces[-1].additional_kwargs["confcascade"]

    assert streamed(llm)[0] == "".join(piece.delta or "" for piece in llm.stream_chat([ChatMessage("Capital?")]))
    text, record = streamed(llm, server.llm())
    assert (text, record["stage"]) == ("Paris", 1)
    assert "ended before the answer did" in record["attempts"][0]["error"]


async def test_a_watch_ends_the_answer_in_every_way_of_asking(server: Server) -> None:
    model = LlamaIndexModel(server.llm())
    ask = Generate(model, request(), watch=lambda tokens: "abort" if len(tokens) > 1 else "hold")
    server.tokens = [(f"word{i} ", 0.1, [*f"word{i} ".encode()]) for i in range(9)]

    for response in await asked_in_every_way(model, ask):
        assert (response.text, response.finish_reason) == ("word0 word1 ", "aborted")
        assert response.usage == Usage(5, 2, estimated=True)  # four characters a token of the prompt


async def test_chunks_are_released_when_the_watch_says_so(server: Server) -> None:
    model = LlamaIndexModel(server.llm())
    ask = Generate(model, request(), watch=lambda tokens: "release" if len(tokens) > 1 else "hold")

    for items in (list(model.stream(ask)), await drained(model, ask)):
        assert [(item.text, item.released) for item in items if isinstance(item, Chunk)] == [
            ("Par", False),
            ("is", True),
        ]


def test_a_completion_model_is_asked_its_own_way(server: Server) -> None:
    """`LLM.chat` makes the prompt; log-probabilities have another form, asked and answered."""
    llm = server.llm(model="gpt-3.5-turbo-instruct", max_tokens=9)
    model = LlamaIndexModel(llm)

    (response,) = model.generate([Generate(model, request(), top_logprobs=5)])

    assert isinstance(response, Response)
    assert server.bodies[0]["logprobs"] == 5
    assert "top_logprobs" not in server.bodies[0]
    assert response.tokens is not None
    assert [t.text for t in response.tokens] == ["Par", "is"]
    assert [text for text, _ in response.tokens[0].top] == ["Par", "Lyon"]


# ---------------------------------------------------------------------- what other LLMs answer


asked_by: ContextVar[str] = ContextVar("asked_by", default="nobody")


class Saying(CustomLLM):
    """Answers everything with the same words, a stream in increments of one word; blocks while it does."""

    words: list[str] = Field(default_factory=list)
    delay_s: float = 0.0
    counts: dict[str, int] = Field(default_factory=dict)
    calls: list[tuple[int, str]] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="saying")

    @llm_completion_callback()
    def complete(self, *_: Any, **__: Any) -> CompletionResponse:
        self.calls.append((threading.get_ident(), asked_by.get()))
        time.sleep(self.delay_s)
        return CompletionResponse(text="".join(self.words), raw=self.raw(self.words))

    @llm_completion_callback()
    def stream_complete(self, *_: Any, **__: Any) -> CompletionResponseGen:
        def words() -> Iterator[CompletionResponse]:
            for i, word in enumerate(self.words):
                self.calls.append((threading.get_ident(), asked_by.get()))
                time.sleep(self.delay_s)
                yield CompletionResponse(text="".join(self.words[: i + 1]), delta=word, raw=self.raw([word]))

        return words()  # type: ignore[return-value]

    def raw(self, words: list[str]) -> dict[str, Any]:
        content = [{"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []} for word in words]
        return {"choices": [{"logprobs": {"content": content}}], "usage": self.counts or None}


def test_it_is_a_language_model() -> None:
    check_model(
        LlamaIndexModel(Saying(words=["It", " is", " Paris"], counts={"input_tokens": 3, "output_tokens": 2})),
        request(),
    )
    check_model(LlamaIndexModel(Saying(words=["It", " is", " Paris"])), request())


def test_increments_of_a_stream_count_not_its_whole_texts() -> None:
    """`MockLLM` leaves the last word out of the whole."""
    model = LlamaIndexModel(MockLLM(max_tokens=3))

    *_, last = model.stream(Generate(model, request()))

    assert isinstance(last, Response)
    assert (last.text.strip(), last.usage) == ("text text text", Usage(5, 4, estimated=True))


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(5, 2)),
        ({"input_tokens": 5, "output_tokens": 2}, Usage(5, 2)),
        ({"completion_tokens": 2}, Usage(0, 2, estimated=True)),
        ({}, Usage(5, 3, estimated=True)),
    ],
)
def test_usage_is_read_or_marked_as_estimated(counts: dict[str, int], usage: Usage) -> None:
    model = LlamaIndexModel(Saying(words=["It", " is", " Paris"], counts=counts))

    (response,) = model.generate([Generate(model, request())])
    *_, streamed = model.stream(Generate(model, request()))

    assert isinstance(response, Response)
    assert isinstance(streamed, Response)
    assert response.usage == streamed.usage == usage


class Answering(Saying):
    """Answers with a given response."""

    response: Any

    def chat(self, *_: Any, **__: Any) -> ChatResponse:
        return self.response  # type: ignore[no-any-return]


def answered(**fields: Any) -> Response:
    model = LlamaIndexModel(Answering(response=ChatResponse(**{"message": ChatMessage(content="hi"), **fields})))
    (response,) = model.generate([Generate(model, request(), top_logprobs=2)])
    assert isinstance(response, Response)
    return response


def test_llama_index_log_probabilities_are_second_best() -> None:
    """Where the raw answer tells none, the first of each position is the chosen token."""
    tops = [[LogProb(token="hi", logprob=-0.1), LogProb(token="ho", logprob=-2.0)], [LogProb(token="", logprob=0.0)]]

    (token,) = answered(logprobs=tops).tokens or ()

    assert (token.text, token.logprob, token.top) == ("hi", -0.1, (("hi", -0.1), ("ho", -2.0)))
    assert answered().tokens is None
    assert answered(raw={"choices": []}).tokens is None
    assert answered(raw={"choices": [{"logprobs": None}]}).tokens is None


def test_usage_may_stand_beside_the_raw_answer() -> None:
    assert answered(additional_kwargs={"prompt_tokens": 4, "completion_tokens": 1}).usage == Usage(4, 1)
    assert answered(raw={"usage_metadata": {"prompt_token_count": 4, "candidates_token_count": 1}}).usage == Usage(4, 1)


def test_a_tool_call_without_text_is_no_empty_answer() -> None:
    message = ChatMessage(content="", additional_kwargs={"tool_calls": [{"id": "1"}]})

    assert not answered(message=message).is_empty
    assert answered(message=ChatMessage(content="")).is_empty


# ---------------------------------------------------------------------- without blocking the event loop


async def test_blocking_llms_run_in_threads_with_the_callers_context() -> None:
    llm = Saying(words=["a", "b", "c"])
    model = LlamaIndexModel(llm)
    asked_by.set("me")

    await model.agenerate([Generate(model, request())])
    await drained(model, Generate(model, request()))

    assert len(llm.calls) == 4
    assert {(thread == threading.get_ident(), asker) for thread, asker in llm.calls} == {(False, "me")}


async def test_cancelling_a_blocking_stream_ends_it() -> None:
    llm = Saying(words=["word"] * 100, delay_s=0.01)
    model = LlamaIndexModel(llm)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(drained(model, Generate(model, request())), timeout=0.1)
    await asyncio.sleep(0.2)  # the word under way when it was cancelled
    said = len(llm.calls)
    await asyncio.sleep(0.2)

    assert len(llm.calls) == said < 100


def test_closing_a_stream_closes_the_llms() -> None:
    closed = []

    class Closing(Saying):
        def stream_chat(self, *_: Any, **__: Any) -> ChatResponseGen:
            def words() -> ChatResponseGen:
                try:
                    yield ChatResponse(message=ChatMessage(content="a"), delta="a")
                    yield ChatResponse(message=ChatMessage(content="ab"), delta="b")
                finally:
                    closed.append(True)

            return words()

    model = LlamaIndexModel(Closing())
    stream = model.stream(Generate(model, request()))
    next(stream)

    stream.close()  # type: ignore[attr-defined]

    assert closed == [True]


# ---------------------------------------------------------------------- what is known before asking


class Anthropic(MockLLM):
    """As far as its name goes."""


class Claude(Anthropic):
    """What derives from it cannot do more."""


def test_classes_that_never_tell_log_probabilities_are_known() -> None:
    assert LlamaIndexModel(Claude()).capability.logprobs is False
    assert LlamaIndexModel(MockLLM()).capability.logprobs is None
    assert LlamaIndexModel(OpenAI(model="gpt-4o", api_key="x")).capability.logprobs is None


def test_the_name_is_the_models_or_the_class() -> None:
    assert LlamaIndexModel(OpenAI(model="gpt-4o", api_key="x")).name == "gpt-4o"
    assert LlamaIndexModel(MockLLM()).name == "MockLLM"


def test_an_unknown_model_is_refused_when_the_cascade_is_built() -> None:
    with pytest.raises(ConfigurationError, match=r"^The LLM OpenAI cannot be used\. Unknown model 'gpt-0'.*$"):
        LlamaIndexModel(OpenAI(model="gpt-0", api_key="x"))


def test_hidden_states_cannot_be_seen() -> None:
    with pytest.raises(ModelError, match="hidden states cannot be seen"):
        LlamaIndexModel(MockLLM()).prefill([])


# ---------------------------------------------------------------------- where integrations keep log-probabilities


class Responses:
    """A server like OpenAI's of the Responses API, whole and streamed."""

    def __init__(self, httpserver: HTTPServer) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.url = httpserver.url_for("/v1")
        httpserver.expect_request("/v1/responses", method="POST").respond_with_handler(self.respond)

    def respond(self, http: HTTPRequest) -> HTTPResponse:
        body = json.loads(http.get_data())
        self.bodies.append(body)
        asked = "message.output_text.logprobs" in (body.get("include") or ())
        entries = [
            {"token": text, "logprob": math.log(p), "bytes": [*text.encode()], "top_logprobs": []}
            for text, p in (("Par", 0.9), ("is", 0.8))
        ]
        part = {"type": "output_text", "text": "Paris", "annotations": [], "logprobs": entries if asked else []}
        message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {
            "input_tokens": 7,
            "output_tokens": 2,
            "total_tokens": 9,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        whole = {
            "id": "r",
            "object": "response",
            "created_at": 0,
            "model": "m",
            "output": [message],
            "usage": usage,
            "status": "completed",
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        }
        if not body.get("stream"):
            return HTTPResponse(json.dumps(whole), content_type="application/json")
        place = {"item_id": "m", "output_index": 0, "content_index": 0}
        events = [
            *(
                {
                    "type": "response.output_text.delta",
                    "delta": entry["token"],
                    "logprobs": [entry] if asked else [],
                    **place,
                }
                for entry in entries
            ),
            {"type": "response.output_text.done", "text": "Paris", "logprobs": entries if asked else [], **place},
            {"type": "response.completed", "response": whole},
        ]
        lines = [
            f"event: {event['type']}\ndata: {json.dumps({'sequence_number': i, **event})}\n\n"
            for i, event in enumerate(events)
        ]
        return HTTPResponse("".join(lines), content_type="text/event-stream")


async def test_the_responses_api_is_asked_its_own_way(httpserver: HTTPServer) -> None:
    """Its log-probabilities are an `include`, and lie in the parts of a message, or in a stream's events."""
    server = Responses(httpserver)
    llm = OpenAIResponses(model="gpt-4o", api_base=server.url, api_key="x", include=["file_search_call.results"])
    model = LlamaIndexModel(llm)

    for response in await asked_in_every_way(model, Generate(model, request(), top_logprobs=3)):
        assert response.text == "Paris"
        assert [(t.text, round(math.exp(t.logprob), 6)) for t in response.tokens or ()] == [("Par", 0.9), ("is", 0.8)]
        assert response.usage == Usage(7, 2)
    await asked_in_every_way(model, Generate(model, request(), logprobs=False))

    asked = [(body.get("include"), body.get("top_logprobs")) for body in server.bodies]
    wanted = ["file_search_call.results", "message.output_text.logprobs"]
    assert asked == [(wanted, 3)] * 4 + [(["file_search_call.results"], None)] * 4
    assert llm.include == ["file_search_call.results"]


class HuggingFaceInferenceAPI(Saying):
    """As far as its name and its raw answers go: no field, but a parameter of the call."""

    seen: list[dict[str, Any]] = Field(default_factory=list)

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        self.seen.append(kwargs)
        return ChatResponse(message=ChatMessage(content="".join(self.words)), raw=self.raw(self.words))


def test_a_class_without_the_field_is_asked_where_its_calls_take_it() -> None:
    llm = HuggingFaceInferenceAPI(words=["Par", "is"])
    model = LlamaIndexModel(llm)

    model.generate([Generate(model, request(), top_logprobs=2)])

    assert llm.seen == [{"logprobs": True, "top_logprobs": 2}]


class LlamaCPP(Saying):
    """As LlamaIndex's, whose log-probabilities are a setting of its own, and lie in the raw completion."""

    def raw(self, words: list[str]) -> dict[str, Any]:
        told = {"tokens": words, "token_logprobs": [-0.5] * len(words), "top_logprobs": [{}] * len(words)}
        return {"choices": [{"text": "".join(words), "logprobs": told, "finish_reason": None}]}


async def test_raw_completions_are_read_whole_and_streamed() -> None:
    model = LlamaIndexModel(LlamaCPP(words=["Par", "is"]))

    for response in await asked_in_every_way(model, Generate(model, request())):
        assert [(token.text, token.logprob) for token in response.tokens or ()] == [("Par", -0.5), ("is", -0.5)]


class Completing(CustomLLM):
    """As LlamaIndex's documentation tells users to write one: it completes prompts, and tells log-probabilities."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="mine")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="yes", logprobs=[[LogProb(token="yes", logprob=-0.1)]])

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        def pieces() -> CompletionResponseGen:
            yield CompletionResponse(text="yes", delta="yes", logprobs=[[LogProb(token="yes", logprob=-0.1)]])

        return pieces()


async def test_an_llm_of_ones_own_that_completes_prompts_is_judged() -> None:
    """`CustomLLM.chat` drops the log-probabilities of its own completion."""
    model = LlamaIndexModel(Completing())

    for response in await asked_in_every_way(model, Generate(model, request())):
        assert [(token.text, token.logprob) for token in response.tokens or ()] == [("yes", -0.1)]
