"""LangChain's and LlamaIndex's own models write in turn, over servers that are played here in each documented form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("llama_index.llms.openai_like")

from confcascade import (
    ConfigurationError,
    Message,
    ModelError,
    OpenAICompatibleModel,
    Prices,
    Request,
    Stage,
    Steps,
    StepwiseCascade,
    TokenProbability,
)
from confcascade.asks import Generate, Session
from confcascade.extending import Response
from confcascade.testing import ScriptedModel, check_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.mock import MockLLM
from llama_index.llms.openai_like import OpenAILike
from pytest_httpserver import HTTPServer
from werkzeug import Request as Received
from werkzeug import Response as Sent

import langchain_confcascade
import llamaindex_confcascade
from langchain_confcascade import LangChainModel
from llamaindex_confcascade import LlamaIndexModel

ANSWER = ["Two", " plus", " two", ".\n\n", "It", " is", " 4", ".", "\n", "\nSo", " 4", "."]
TEXT = "".join(ANSWER)
UNSURE = (" is", " 4")  # of these tokens the server is not sure
REQUEST = Request((Message("user", "2+2?"),))
FORMS = ("continue_final_message", "trailing")
ENVELOPE = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}


class Server:
    """Writes one answer, and continues it in one of the forms; what is continued otherwise begins anew."""

    def __init__(self, httpserver: HTTPServer, form: str) -> None:
        self.url = httpserver.url_for("/v1")
        self.form = form
        self.trims = self.thinks_apart = False
        self.finishes = True
        self.bodies: list[dict[str, Any]] = []
        httpserver.expect_request("/v1/chat/completions").respond_with_handler(self.chat)

    def chat(self, received: Received) -> Sent:
        body = received.get_json()
        self.bodies.append(body)
        last = body["messages"][-1]
        continues = body.get("continue_final_message") and body["add_generation_prompt"] is False
        begun = last["role"] == "assistant" and (self.form == "trailing" or continues)
        written = last["content"] if begun else ""
        skipped, at, pieces = len(written.rstrip() if self.trims else written), 0, []
        for piece in ANSWER:
            at += len(piece)
            if at > skipped:
                pieces.append(piece[max(0, skipped - at + len(piece)) :])
        usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
        if body.get("stream"):
            return Sent(self.events(body, pieces, usage), content_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(pieces)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        whole = {**ENVELOPE, "object": "chat.completion", "choices": [choice], "usage": usage}
        return Sent(json.dumps(whole), content_type="application/json")

    def events(self, body: dict[str, Any], pieces: list[str], usage: Any) -> Iterator[str]:
        each = (body.get("stream_options") or {}).get("continuous_usage_stats")
        for i, piece in enumerate(pieces):
            so_far = {"prompt_tokens": 9, "completion_tokens": i + 1, "total_tokens": 10 + i} if each else None
            entry = {"token": piece, "logprob": -2.0 if piece in UNSURE else -0.01, "bytes": list(piece.encode())}
            logprobs = {"content": [entry | {"top_logprobs": [entry]}]} if body.get("logprobs") else None
            delta = {"content": piece} | ({"reasoning_content": "Hm."} if self.thinks_apart else {})
            yield self.event([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}], so_far)
        if self.finishes:
            yield self.event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}], None)
            yield self.event([], usage)
        yield "data: [DONE]\n\n"

    @staticmethod
    def event(choices: list[Any], usage: Any) -> str:
        return f"data: {json.dumps({**ENVELOPE, 'choices': choices, 'usage': usage})}\n\n"


def chat_openai(server: Server, continues: str, **settings: Any) -> LangChainModel:
    chat = ChatOpenAI(model="m", base_url=server.url, api_key="none", max_retries=0, stream_usage=True, **settings)
    return LangChainModel(chat, continues=continues)  # type: ignore[arg-type]


def openai_like(server: Server, continues: str, **settings: Any) -> LlamaIndexModel:
    given = {"is_chat_model": True, "api_key": "none", "max_retries": 0, **settings}
    body = given.pop("extra_body", None)
    if body is not None:
        given["additional_kwargs"] = {"extra_body": body}
    return LlamaIndexModel(OpenAILike(model="m", api_base=server.url, **given), continues=continues)  # type: ignore[arg-type]


MAKERS: dict[str, Callable[..., Any]] = {"langchain": chat_openai, "llamaindex": openai_like}
both = pytest.mark.parametrize("framework", MAKERS)
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def served(httpserver: HTTPServer) -> Callable[..., tuple[Any, Server]]:
    def serve(framework: str, form: str, **settings: Any) -> tuple[Any, Server]:
        httpserver.clear()
        server = Server(httpserver, form)
        return MAKERS[framework](server, form, **settings), server

    return serve


def streamed(model: Any, ask: Generate) -> Response:
    *chunks, response = model.stream(ask)
    assert "".join(chunk.text for chunk in chunks) == response.text
    return response


async def astreamed(model: Any, ask: Generate) -> Response:
    *chunks, response = [item async for item in model.astream(ask)]
    assert "".join(chunk.text for chunk in chunks) == response.text
    return response


WAYS: dict[str, Callable[[Any, Generate], Response]] = {
    "generate": lambda model, ask: model.generate([ask])[0],
    "stream": streamed,
    "agenerate": lambda model, ask: asyncio.run(model.agenerate([ask]))[0],
    "astream": lambda model, ask: asyncio.run(astreamed(model, ask)),
}
every_way = pytest.mark.parametrize("way", WAYS)


def in_steps(model: Any, way: str = "generate") -> list[Response]:
    written, steps, session = "", [], Session()
    while not steps or (steps[-1].finish_reason == "step" and len(steps) < 6):
        asked = replace(REQUEST, written=written)
        steps.append(WAYS[way](model, Generate(model, asked, logprobs=False, until="\n\n", session=session)))
        written += steps[-1].text
    return steps


@both
@every_form
@every_way
def test_steps_add_up_to_the_answer(served: Any, framework: str, form: str, way: str):
    """Each ends behind the delimiter, wherever pieces of the stream divide it, and the last by itself."""
    model, _ = served(framework, form)

    steps = in_steps(model, way)

    assert [step.finish_reason for step in steps] == ["step", "step", "stop"]
    assert steps[0].text == "Two plus two.\n\n"
    assert "".join(step.text for step in steps) == TEXT


@both
@every_form
def test_it_keeps_the_contract(served: Any, framework: str, form: str):
    model, _ = served(framework, form)

    assert model.capability.continues
    check_model(model, REQUEST)


@both
def test_each_form_is_sent_as_its_servers_take_it(served: Any, framework: str):
    """What the model itself sends further stays, and what was written comes as it is."""
    request = replace(REQUEST, written="Two plus two.\n\n")
    sent = {}
    for form in FORMS:
        model, server = served(framework, form, extra_body={"top_k": 3})
        model.generate([Generate(model, request, until="\n\n", logprobs=False)])
        (sent[form],) = server.bodies

    for form in FORMS:
        assert sent[form]["messages"][1:] == [{"role": "assistant", "content": "Two plus two.\n\n"}]
        assert sent[form]["top_k"] == 3
    vllm = sent["continue_final_message"]
    assert (vllm["continue_final_message"], vllm["add_generation_prompt"]) == (True, False)
    assert vllm["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert not {"continue_final_message", "add_generation_prompt"} & sent["trailing"].keys()


def test_what_is_bound_to_a_model_stays(served: Any):
    """A body that is given for one call would replace it."""
    model, server = served("langchain", "continue_final_message", extra_body={"top_k": 3})
    bound = LangChainModel(model.native.bind(extra_body={"min_p": 0.1}), continues="continue_final_message")

    bound.generate([Generate(bound, replace(REQUEST, written="Two"), until="\n\n", logprobs=False)])

    assert (server.bodies[0]["min_p"], server.bodies[0]["continue_final_message"]) == (0.1, True)
    assert "top_k" not in server.bodies[0]  # as without us: what is bound comes in its place


@both
def test_nothing_is_sent_otherwise_where_nothing_is_continued(served: Any, framework: str):
    """A plain question to a model that can continue is asked as one to a model that cannot."""
    model, server = served(framework, "continue_final_message")

    model.generate([Generate(model, REQUEST, logprobs=False)])

    assert server.bodies[0]["messages"] == [{"role": "user", "content": "2+2?"}]
    assert not {"continue_final_message", "add_generation_prompt", "stop"} & server.bodies[0].keys()


@both
@every_way
def test_blanks_that_a_server_trims_are_not_written_twice(served: Any, framework: str, way: str):
    model, server = served(framework, "continue_final_message")
    server.trims = True

    assert [step.text for step in in_steps(model, way)] == ["Two plus two.\n\n", "It is 4.\n\n", "So 4."]


@both
@every_way
def test_the_usage_is_what_the_server_reports(served: Any, framework: str, way: str):
    """Of a stream that is left, only some report it as they go; else it is estimated, and marked."""
    vllm, other = ([step.usage for step in in_steps(served(framework, form)[0], way)] for form in FORMS)

    assert [(usage.input_tokens, usage.output_tokens, usage.estimated) for usage in vllm] == [
        (9, 4, False),
        (9, 6, False),
        (9, 3, False),
    ]
    assert [usage.estimated for usage in other] == [True, True, False]


@every_way
def test_thoughts_apart_cannot_be_continued(served: Any, way: str):
    """With them, the text so far would lack its beginning. (ChatOpenAI drops them without a word.)"""
    model, server = served("llamaindex", "trailing")
    server.thinks_apart = True

    with pytest.raises(ModelError, match=r"thoughts apart.*reasoning parser"):
        WAYS[way](model, Generate(model, REQUEST, logprobs=False, until="\n\n", session=Session()))


@both
@every_way
def test_a_stream_that_breaks_is_no_answer(served: Any, framework: str, way: str):
    """Not even one that nothing can withdraw: the other model would go on with half a step as if it were whole."""
    model, server = served(framework, "trailing")
    server.finishes = False
    ask = Generate(model, replace(REQUEST, written=TEXT[:17]), logprobs=False, session=Session(), live=True)

    with pytest.raises(ModelError, match="ended before the answer did"):
        WAYS[way](model, ask)


# ---------------------------------------------------------------------- in a cascade


def cascades(framework: str, small: Any, large: Any) -> Any:
    package = langchain_confcascade if framework == "langchain" else llamaindex_confcascade
    prices = Prices(input_usd=1.0, output_usd=10.0)
    stages = [
        Stage(small, [TokenProbability(aggregate="min")], {"p_t": 0.5}, prices=prices),
        Stage(large, prices=prices),
    ]
    return package.ConfidenceCascadeLLM(mode="stepwise", stages=stages, steps=Steps("\n\n"))


def record_of(framework: str, llm: Any) -> tuple[str, dict[str, Any]]:
    if framework == "langchain":
        message = llm.invoke("2+2?")
        return message.content, message.response_metadata["confcascade"]
    response = llm.complete("2+2?")
    return response.text, response.additional_kwargs["confcascade"]


@both
@every_form
def test_a_cascade_is_that_of_the_cores_own_model(served: Any, framework: str, form: str):
    """The same steps by the same authors, with the same scores and costs, however the server is asked."""
    model, server = served(framework, form)
    own = OpenAICompatibleModel("m", base_url=server.url, api_key="none", continues=form)  # type: ignore[arg-type]
    records = []
    for small in (model, own):
        large = ScriptedModel("l", {"2+2?": TEXT}, continues=True)
        text, record = record_of(framework, cascades(framework, small, large))
        assert text == TEXT
        for attempt in record["attempts"]:
            del attempt["latency_s"], attempt["cost"]["seconds"], attempt["kept_cost"]["seconds"]
        records.append(record["attempts"])

    assert records[0] == records[1]
    steps = [(step["index"], step["author"], step["kept"]) for attempt in records[0] for step in attempt["steps"]]
    assert steps == [(0, "m", True), (1, "m", False), (2, "m", False), (1, "l", True), (2, "l", True)]
    assert records[0][0]["cost"]["usd"] > 0


@both
def test_it_streams_by_step(served: Any, framework: str):
    """What the large model writes comes piece by piece, and nothing that is thrown away is shown."""
    model, _ = served(framework, "continue_final_message")
    small = ScriptedModel("s", {"2+2?": TEXT}, continues=True)
    package = langchain_confcascade if framework == "langchain" else llamaindex_confcascade
    stages = [Stage(small, [TokenProbability(aggregate="min")], {"p_t": "never"}), Stage(model)]
    llm = package.ConfidenceCascadeLLM(mode="stepwise", stages=stages, steps=Steps("\n\n"))

    if framework == "langchain":
        shown = [chunk.content for chunk in llm.stream("2+2?") if chunk.content]
    else:
        shown = [piece.delta for piece in llm.stream_complete("2+2?") if piece.delta]

    assert "".join(shown) == TEXT
    assert len(shown) > 5


# ---------------------------------------------------------------------- what a class can say


class Chat(BaseChatModel):
    """Keeps what it is asked, and says what follows in the pieces that it is given."""

    pieces: list[str]
    asked: list[list[BaseMessage]]

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.asked.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self.pieces)))])

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self.asked.append(messages)
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=usage(9, 1)))
        for piece in self.pieces:
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=usage(0, 30)))


def usage(read: int, written: int) -> Any:
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


class ChatAnthropic(Chat):
    """By its name, LangChain's."""


class ChatMistralAI(Chat):
    """By its name, LangChain's, whose messages keep `prefix`."""


@every_way
def test_claude_is_given_no_blank_at_the_end(way: str):
    """It refuses one; the model may write it again or not. What a stream that is left has told is not all."""
    request = replace(REQUEST, written="One.\n\n")
    for pieces in (["\n\n", "Two", ".\n", "\nThr", "ee"], ["Two.\n\nThr", "ee"]):
        chat = ChatAnthropic(pieces=pieces, asked=[])
        model = LangChainModel(chat, continues="trailing")
        step = WAYS[way](model, Generate(model, request, logprobs=False, until="\n\n"))
        assert (step.text.strip(), step.finish_reason) == ("Two.", "step")
        assert [message.content for message in chat.asked[0]] == ["2+2?", "One."]
        assert (step.usage.input_tokens, step.usage.estimated) == (9, True)


class Anthropic(MockLLM):
    """By its name, LlamaIndex's; tells what it has read at once, and what it wrote at the end."""

    asked: ClassVar[list[Any]] = []

    def stream_chat(self, messages: Any, **parameters: Any) -> Iterator[ChatResponse]:
        self.asked[:], text = messages, ""
        for delta, usage in (
            ("", {"input_tokens": 9, "output_tokens": 1}),
            ("\n\nTwo", None),
            (".\n\nThree", None),
            (" 4", None),
        ):
            text += delta
            yield ChatResponse(message=ChatMessage(role="assistant", content=text), raw={"usage": usage})


@every_way
def test_claude_of_llamaindex_is_given_no_blank_at_the_end(way: str):
    model = LlamaIndexModel(Anthropic(is_chat_model=True), continues="trailing")

    step = WAYS[way](model, Generate(model, replace(REQUEST, written="One.\n\n"), logprobs=False, until="\n\n"))

    assert (step.text, step.finish_reason) == ("Two.\n\n", "step")
    assert [message.content for message in model.native.asked] == ["2+2?", "One."]
    assert (step.usage.input_tokens, step.usage.estimated) == (9, True)


@every_way
def test_mistral_repeats_what_it_is_given(way: str):
    """The beginning of its answer is taken away, also if no more comes than it."""
    answers = ((["On", "e.\n\nTw", "o."], "Two."), (["One.", "\n\n"], ""), (["On", "ly"], "Only"), (["On"], "On"))
    for pieces, rest in answers:
        chat = ChatMistralAI(pieces=pieces, asked=[])
        model = LangChainModel(chat, continues="prefix")
        step = WAYS[way](
            model, Generate(model, replace(REQUEST, written="One.\n\n"), logprobs=False, session=Session())
        )
        assert step.text == rest
        assert chat.asked[0][-1].additional_kwargs == {"prefix": True}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: LangChainModel(openai(), continues="prefix"),
            r"is 'prefix', and ChatOpenAI can be told only .*'trailing'",
        ),
        (
            lambda: LangChainModel(openai(), continues="llama.cpp"),
            r"use OpenAICompatibleModel\(continues='llama.cpp'\)",
        ),
        (lambda: LangChainModel(openai(use_responses_api=True), continues="trailing"), "ChatOpenAI cannot be told how"),
        (
            lambda: LangChainModel(Chat(pieces=[], asked=[]), continues="continue_final_message"),
            "Chat can be told only 'trailing'",
        ),
        (lambda: LangChainModel(openai(), continues="vllm"), r"must be one of llama.cpp.*'vllm'"),
        (lambda: LlamaIndexModel(like(), continues="prefix"), "is 'prefix', and OpenAILike can be told only"),
        (lambda: LlamaIndexModel(like(is_chat_model=False), continues="trailing"), "OpenAILike cannot be told how"),
    ],
)
def test_what_a_class_cannot_say_is_refused(make: Any, why: str):
    """When it is made, with the way out."""
    with pytest.raises(ConfigurationError, match=f"`continues` of model '.*' {why}" if why[0] == "i" else why):
        make()


def openai(**settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url="http://127.0.0.1:1/v1", api_key="none", **settings)


def like(**settings: Any) -> OpenAILike:
    return OpenAILike(
        model="m", api_base="http://127.0.0.1:1/v1", api_key="none", **{"is_chat_model": True, **settings}
    )


@both
def test_a_model_that_is_not_said_to_continue_does_not(served: Any, framework: str):
    """Nor is it asked; the error of the cascade names the way."""
    model = LangChainModel(openai()) if framework == "langchain" else LlamaIndexModel(like())

    with pytest.raises(ConfigurationError, match="'m' cannot continue"):
        model.generate([Generate(model, replace(REQUEST, written="Two"))])
    with pytest.raises(
        ConfigurationError,
        match=r"cannot go on.*by its argument `continues`, or to `LangChainModel` or `LlamaIndexModel`",
    ):
        StepwiseCascade([Stage(ScriptedModel("s", continues=True), [TokenProbability()], {"p_t": 0.5}), Stage(model)])
