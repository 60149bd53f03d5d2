"""Tools through the cascade: bound to each model in its own form, judged, and used by agents."""

from __future__ import annotations

import json
import typing
import uuid
from datetime import date
from typing import Annotated, Any, TypedDict

import pytest
from confcascade import (
    CascadeExhaustedError,
    ConfigurationError,
    OpenAICompatibleModel,
    Stage,
    TokenProbability,
    ToolCall,
    trace,
)
from confcascade.testing import Reply, ScriptedModel, same_record
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBinding
from langchain_core.tools import InjectedToolArg, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, field_validator
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.tools import plain_tool

ADD = '{"a": 2, "b": 3}'
SUM = [{"name": "add", "args": {"a": 2, "b": 3}, "id": "call_0", "type": "tool_call"}]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Multiply(BaseModel):
    """Multiply two numbers."""

    a: int
    b: int


def cascade(*models: Any, threshold: float = 0.9, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), threshold=threshold, **parameters)


def attempts(message: AIMessage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = message.response_metadata["confcascade"]["attempts"]
    return found


async def four_ways(llm: Runnable[Any, AIMessage], query: str) -> list[AIMessage]:
    chunks = list(llm.stream(query))
    achunks = [chunk async for chunk in llm.astream(query)]
    return [
        llm.invoke(query),
        await llm.ainvoke(query),
        chunks[0] + chunks[1:],
        achunks[0] + achunks[1:],
    ]


# ---------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("draft", "answered_by", "reason"),
    [
        ({"calls": [("add", ADD)]}, "small", "p_t 0.99 >= 0.9"),
        ({"calls": [("add", ADD)], "p": 0.5}, "large", "p_t 0.5 < 0.9"),
        ({"calls": [("subtract", ADD)]}, "large", "unknown tool 'subtract'"),
        (
            {"calls": [("add", '{"a": 2, "b": "three"}')]},
            "large",
            "the arguments of its call to 'add' do not fit: 'b' must be of type integer",
        ),
        (
            {"calls": [("add", '{"a": 2}')]},
            "large",
            "the arguments of its call to 'add' do not fit: 'b' is missing",
        ),
        ({"calls": [("add", '{"a": 2, "b"')]}, "large", "the arguments of a tool call are not a JSON object"),
        ({"calls": [("add", ADD), ("divide", ADD)]}, "large", "unknown tool 'divide'"),
        ({"error": ConnectionError("no route")}, "large", "ConnectionError"),
        ({"text": ""}, "large", "empty answer"),
        ({"text": "Five."}, "small", "p_t 0.99 >= 0.9"),
    ],
)
async def test_a_draft_is_kept_only_if_it_can_be_used(calling, said, draft, answered_by, reason):
    small, large = calling("small", said(**draft)), calling("large", said(calls=[("add", ADD)]))
    llm = cascade(small, large).bind_tools([add])

    first, *others = await four_ways(llm, "2 + 3?")

    assert first.response_metadata["confcascade"]["answered_by"] == answered_by
    assert attempts(first)[0]["reason"] == reason
    assert first.tool_calls == ([] if draft.get("text") else SUM)
    for other in others:
        assert same_record(other.response_metadata["confcascade"], first.response_metadata["confcascade"])
        assert (other.tool_calls, other.content) == (first.tool_calls, first.content)


class Booking(BaseModel):
    """Book a table."""

    when: date
    seats: list[int] = []
    name: str = "-"

    @field_validator("name")
    @classmethod
    def short(cls, name: str) -> str:
        if len(name) > 9:
            raise ValueError(f"{name} is too long")
        return name


@tool(args_schema=Booking)
def book(when: date, seats: list[int], name: str) -> str:
    """Book a table."""
    return f"{when} {seats}"


@tool
def book_for(when: date, seats: list[int], user: Annotated[str, InjectedToolArg]) -> str:
    """Book a table."""
    return f"{when} {seats}"


@pytest.mark.parametrize("given", [book, book_for, Booking])
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"when": "2026-03-01", "seats": ["1", "2"]}, None),  # which the tool converts
        ({"when": "2026-03-01", "seats": [1]}, None),
        ({"when": "tomorrow", "seats": [1]}, "'when': date_from_datetime_parsing"),  # of which JSON Schema says nothing
        ({"when": "2026-03-01", "seats": ["one"]}, "'seats[0]' must be of type integer"),
        ({"seats": []}, "'when' is missing"),
        ({"when": "2026-03-01", "seats": [], "name": "SECRETSECRET"}, "'name': value_error"),
    ],
)
def test_arguments_are_usable_if_the_tool_itself_takes_them(calling, said, given, arguments, why):
    """What it converts is kept, what it refuses escalates; what is injected is not the model's to give."""
    if given is book_for:
        arguments = {key: value for key, value in arguments.items() if key != "name"}
        why = None if why == "'name': value_error" else why
    name = plain_tool(given).name
    small = calling("small", said(calls=[(name, json.dumps(arguments))]))
    answer = cascade(small, calling("large", "no")).bind_tools([given]).invoke("q")

    reason = attempts(answer)[0]["reason"]
    expected = "p_t 0.99 >= 0.9" if why is None else f"the arguments of its call to '{name}' do not fit: {why}"
    assert reason == expected
    if why is None and given is not Booking:
        (call,) = answer.tool_calls
        assert given.invoke(call["args"] | ({"user": "ann"} if given is book_for else {})).startswith("2026-03-01")


async def test_a_forced_call_must_be_made(calling, said):
    small, large = calling("small", "Five."), calling("large", said(calls=[("add", ADD)]))
    llm = cascade(small, large)

    for choice in ("any", "required", True, "add", {"type": "function", "function": {"name": "add"}}, {"type": "any"}):
        first, *others = await four_ways(llm.bind_tools([add], tool_choice=choice), "2 + 3?")
        assert attempts(first)[0]["decision"] == "escalate"
        assert "wanted" in attempts(first)[0]["reason"]
        assert all(other.tool_calls == SUM for other in (first, *others))
    for choice in ("auto", "none", None, False, {"type": "auto"}):
        answer = llm.bind_tools([add], tool_choice=choice).invoke("2 + 3?")
        assert answer.response_metadata["confcascade"]["answered_by"] == "small"


async def test_a_call_to_another_tool_than_the_forced_one_escalates(calling, said):
    small, large = calling("small", said(calls=[("Multiply", ADD)])), calling("large", said(calls=[("add", ADD)]))

    answer = cascade(small, large).bind_tools([add, Multiply], tool_choice="add").invoke("2 + 3?")

    assert attempts(answer)[0]["reason"] == "no call to 'add', which was wanted"


async def test_no_draft_is_shown_before_it_is_accepted(calling, said):
    """Whatever the signal and its threshold say early: the call at the end may still be unusable."""
    small = calling("small", said("Let me see.", calls=[("nothing", "{}")]))
    large = calling("large", said("Adding.", calls=[("add", ADD)]))
    for signal, threshold in ((TokenProbability(aggregate="first"), 0.5), (TokenProbability(), "always")):
        llm = ConfidenceCascadeLLM(models=[small, large], threshold=threshold, signals=[signal]).bind_tools([add])
        chunks = list(llm.stream("2 + 3?"))

        assert "see" not in "".join(str(chunk.content) for chunk in chunks)
        assert not any(part["name"] == "nothing" for chunk in chunks for part in chunk.tool_call_chunks)
        assert (chunks[0] + chunks[1:]).tool_calls == SUM


def test_the_last_stage_answers_as_it_would_alone(calling, said):
    """Its unusable call is the caller's to handle, as ToolNode does; the record names it."""
    large = calling("large", said(calls=[("subtract", ADD)]))

    answer = cascade(calling("small", said(calls=[("nothing", "{}")])), large).bind_tools([add]).invoke("2 - 3?")

    assert [call["name"] for call in answer.tool_calls] == ["subtract"]
    assert attempts(answer)[-1]["reason"] == "last stage (unknown tool 'subtract')"


def test_an_unusable_draft_never_comes_back(calling, said):
    """Also where the last stage fails and an earlier answer would do."""
    models = [calling("small", said(calls=[("nothing", "{}")])), calling("large", said(error=ConnectionError("down")))]

    with pytest.raises(CascadeExhaustedError, match="no earlier stage"):
        cascade(*models, on_exhausted="best").bind_tools([add]).invoke("2 + 3?")


def test_text_of_a_call_stays_out_of_records(calling, said):
    secret = '{"a": "my-secret", "my-secret": 1, "b": 2}'
    models = [calling("small", said(calls=[("add", secret)])), calling("large", "Fine.")]

    answer = cascade(*models, on_exhausted="best").bind_tools([add]).invoke("2 + 3?")

    assert "my-secret" not in str(answer.response_metadata["confcascade"])


def test_providers_that_do_not_tell_the_tokens_of_calls_escalate(calling, said):
    small = calling("small", said(calls=[("add", ADD)]), tells_call_tokens=False)

    answer = cascade(small, calling("large", "Five.")).bind_tools([add]).invoke("2 + 3?")

    assert attempts(answer)[0]["scores"]["p_t"]["value"] is None
    assert "returned no log-probabilities of its tool calls" in attempts(answer)[0]["reason"]


def test_only_the_name_and_the_values_of_a_call_are_scored(calling, said):
    """Unsure punctuation and keys change nothing; an unsure value does."""
    sure = calling("small", said(calls=[("add", ADD)], p=lambda token: 0.99 if token.strip() in "add23" else 0.01))
    unsure = calling("small", said(calls=[("add", ADD)], p=lambda token: 0.1 if token.strip() == "3" else 0.99))

    for small, by in ((sure, "small"), (unsure, "large")):
        answer = cascade(small, calling("large", said(calls=[("add", ADD)]))).bind_tools([add]).invoke("2 + 3?")
        assert answer.response_metadata["confcascade"]["answered_by"] == by


# ---------------------------------------------------------------------- binding


def test_each_stage_binds_in_its_own_form(calling, said):
    """The scripted models refuse another provider's."""
    small = calling("small", said(calls=[("add", "{}")]), named_inputs=True)
    large = calling("large", said(calls=[("add", ADD)]))

    answer = cascade(small, large).bind_tools([add, Multiply], tool_choice="any", seed=3).invoke("2 + 3?")

    assert answer.tool_calls == SUM
    assert [tool["name"] for tool in small.seen[0]["tools"]] == ["add", "Multiply"]
    assert [tool["function"]["name"] for tool in large.seen[0]["tools"]] == ["add", "Multiply"]
    assert (small.seen[0]["tool_choice"], large.seen[0]["tool_choice"]) == ({"force": "any"}, "any")
    assert small.seen[0]["seed"] == large.seen[0]["seed"] == 3


def test_a_binding_looks_like_openais_and_keeps_the_tools_themselves(calling):
    """Traces, caches and LangGraph read the first, stages are given the second; a provider's own passes untouched."""
    own = {"type": "web_search", "max_uses": 2}
    model = calling("small", "Fine.")

    llm = cascade(model).bind_tools([add, own])
    llm.invoke("2 + 3?")

    assert isinstance(llm, RunnableBinding)
    first, second = llm.kwargs["tools"]
    assert first["function"]["name"] == "add"
    assert (first.native, second, second.native) == (add, own, own)
    assert model.seen[0]["tools"][1] == own
    own["max_uses"] = 3
    llm.invoke("2 + 3?")
    assert model.seen[1]["tools"][1]["max_uses"] == 2


def test_what_was_bound_to_a_stage_stays_bound(calling):
    model = calling("small", "Fine.")

    cascade(model.bind(seed=7).with_retry()).bind_tools([add]).invoke("q")

    assert (model.seen[0]["seed"], len(model.seen[0]["tools"])) == (7, 1)


def test_tools_may_be_given_with_the_call(calling):
    model = calling("small", "Fine.", named_inputs=True)

    cascade(model).invoke("q", tools=[add], tool_choice="any")

    assert model.seen[0]["tools"][0]["name"] == "add"


def test_a_stage_binds_once_for_the_same_tools(calling, monkeypatch):
    model = calling("small", "Fine.")
    binds: list[Any] = []
    bind_tools = type(model).bind_tools
    monkeypatch.setattr(
        type(model), "bind_tools", lambda self, tools, **kw: binds.append(tools) or bind_tools(self, tools, **kw)
    )
    llm = cascade(model)

    for _ in range(3):
        llm.bind_tools([add]).invoke("q")  # as an agent does in every turn
    assert len(binds) == 1
    llm.bind_tools([add], tool_choice="any").invoke("q")
    llm.bind_tools([add, Multiply]).invoke("q")
    assert len(binds) == 3


def test_annotations_can_be_resolved():
    """`with_fallbacks` maps these methods over its members only if it can read that they return runnables."""
    for method in (ConfidenceCascadeLLM.bind_tools, ConfidenceCascadeLLM.with_structured_output):
        assert issubclass(typing.get_origin(typing.get_type_hints(method)["return"]), Runnable)


def test_fallbacks_bind_tools_too(calling, said):
    broken = cascade(calling("small", said(error=ConnectionError("down"))))
    llm = broken.with_fallbacks([calling("other", said(calls=[("add", ADD)]))]).bind_tools([add])

    assert llm.invoke("2 + 3?").tool_calls == SUM


def test_a_cache_knows_tools_by_what_they_are(calling, said):
    model = calling("small", said(calls=[("add", ADD)]))
    llm = cascade(model, cache=InMemoryCache())

    for _ in range(2):
        assert llm.bind_tools([add]).invoke("q").tool_calls == SUM
    assert len(model.seen) == 1
    llm.bind_tools([add, Multiply]).invoke("q")
    assert len(model.seen) == 2


@pytest.mark.parametrize(
    ("given", "name", "parameters"),
    [
        (add, "add", ["a", "b"]),
        (Multiply, "Multiply", ["a", "b"]),
        (Multiply.model_json_schema(), "Multiply", ["a", "b"]),
        ({"name": "f", "description": "", "input_schema": {"properties": {"x": {}}}}, "f", ["x"]),
        ({"type": "function", "function": {"name": "g"}}, "g", None),
        ({"type": "web_search"}, "web_search", None),
        ({"type": "computer_2025", "name": "computer"}, "computer", None),
    ],
)
def test_the_core_sees_tools_plainly(given, name, parameters):
    plain = plain_tool(given)

    assert plain.name == name
    assert (list(plain.parameters["properties"]) if plain.parameters else None) == parameters


# ---------------------------------------------------------------------- stages without tools


def test_a_stage_that_cannot_call_tools_is_skipped(calling, said):
    """Never asked without them: it would answer as if there were none."""
    silent, scripted = FakeListChatModel(responses=["no tools here"]), ScriptedModel("core")
    llm = cascade(silent, scripted, calling("large", said(calls=[("add", ADD)]))).bind_tools([add])

    answer = llm.invoke("2 + 3?")

    assert [attempt["reason"] for attempt in attempts(answer)[:2]] == ["the model cannot call tools"] * 2
    assert [attempt["decision"] for attempt in attempts(answer)] == ["escalate", "escalate", "accept"]
    assert attempts(answer)[0]["usage"]["output_tokens"] == 0
    assert scripted.calls == []
    assert llm.bound.invoke("hi").content == "core: hi"  # without tools, they are asked as ever


def test_a_last_stage_that_cannot_call_tools_is_an_error(calling):
    llm = cascade(calling("small", "Fine."), FakeListChatModel(responses=["no"]))

    with pytest.raises(ConfigurationError, match="always answers, and cannot call tools") as caught:
        llm.bind_tools([add])
    assert "\n" not in str(caught.value)
    with pytest.raises(CascadeExhaustedError, match="the model cannot call tools"):
        cascade(FakeListChatModel(responses=["no"])).invoke("q", tools=[add])


def test_a_pipeline_that_ignores_tools_counts_as_one_without(calling):
    class HuggingFacePipeline:
        pass

    class ChatHuggingFace(type(calling("x", "y"))):
        llm: Any = None

    local, served = (ChatHuggingFace(model="m", script=str, llm=llm) for llm in (HuggingFacePipeline(), object()))

    with pytest.raises(ConfigurationError, match="cannot call tools"):
        cascade(local).bind_tools([add])
    cascade(served).bind_tools([add])


# ---------------------------------------------------------------------- core models and a real client


async def test_tool_calls_of_core_models_come_back_as_langchains():
    call = ToolCall("add", {"a": 2, "b": 3}, "call_0")
    small = ScriptedModel(
        "small", lambda _: Reply('{"name": "add", "arguments": ' + ADD + "}", tool_calls=[call]), tools=True
    )
    llm = cascade(small, ScriptedModel("large", tools=True)).bind_tools([add])

    for answer in await four_ways(llm, "2 + 3?"):
        assert (answer.content, answer.tool_calls) == ("", SUM)
        assert attempts(answer)[0]["reason"] == "p_t 0.99 >= 0.9"


class Server:
    """An OpenAI-compatible server that answers a question with a call and a call's result with text."""

    def __init__(self, server: HTTPServer) -> None:
        self.asked: list[dict[str, Any]] = []
        path = f"/{uuid.uuid4().hex}/v1"
        self.url = server.url_for(path)
        server.expect_request(f"{path}/chat/completions").respond_with_handler(self.answer)

    def answer(self, request: HTTPRequest) -> HTTPResponse:
        asked = json.loads(request.data)
        self.asked.append(asked)
        call = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": ADD}}
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        if asked["messages"][-1]["role"] == "tool" or "tools" not in asked:
            message = {"role": "assistant", "content": "It is " + str(asked["messages"][-1]["content"])}
        reason = "tool_calls" if "tool_calls" in message else "stop"
        envelope = {"id": "x", "created": 0, "model": "tiny"}
        if not asked.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
            whole = {**envelope, "object": "chat.completion", "choices": [choice], "usage": usage}
            return HTTPResponse(json.dumps(whole), content_type="application/json")
        deltas: list[dict[str, Any]] = [message]
        if "tool_calls" in message:
            head = {**call, "index": 0, "function": {"name": "add", "arguments": ADD[:5]}}
            deltas = [{"tool_calls": [head]}, {"tool_calls": [{"index": 0, "function": {"arguments": ADD[5:]}}]}]
        events = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        events.append({"index": 0, "delta": {}, "finish_reason": reason})
        lines = [json.dumps({**envelope, "object": "chat.completion.chunk", "choices": [choice]}) for choice in events]
        return HTTPResponse(
            "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]), content_type="text/event-stream"
        )


@pytest.mark.parametrize("kind", ["core", "langchain"])
async def test_tools_reach_a_real_server_and_calls_come_back(httpserver, kind):
    """The same over our own client and over ChatOpenAI."""
    server = Server(httpserver)
    if kind == "core":
        model: Any = OpenAICompatibleModel("tiny", base_url=server.url, api_key="none")
    else:
        model = ChatOpenAI(model="tiny", base_url=server.url, api_key="none", max_retries=0)
    llm = cascade(model).bind_tools([add], tool_choice="add")

    for answer in await four_ways(llm, "2 + 3?"):
        assert answer.tool_calls == SUM
    told = server.asked[0]
    assert told["tools"][0]["function"]["name"] == "add"
    assert set(told["tools"][0]["function"]["parameters"]["properties"]) == {"a", "b"}
    assert told["tool_choice"] == {"type": "function", "function": {"name": "add"}}

    history = [HumanMessage("2 + 3?"), answer_to(SUM), ToolMessage("5", tool_call_id="call_0")]
    assert llm.invoke(history).content == "It is 5"
    *_, called, result = server.asked[-1]["messages"]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
    assert (called["tool_calls"][0]["id"], result["tool_call_id"]) == ("call_0", "call_0")


def answer_to(calls: list[dict[str, Any]]) -> AIMessage:
    return AIMessage("", tool_calls=calls)


# ---------------------------------------------------------------------- agents


def adds(said: Any, *, name: str = "add", args: str = ADD, error: Exception | None = None) -> Any:
    """Calls a tool first, and tells its result then."""

    def script(messages: list[Any]) -> Any:
        if isinstance(messages[-1], ToolMessage):
            return said(f"The sum is {messages[-1].content}")
        return said(calls=[(name, args)], error=error)

    return script


AGENT_DRAFTS = [
    ({}, "small"),
    ({"name": "sum_up"}, "large"),
    ({"args": '{"a": 2, "b": [3]}'}, "large"),
    ({"error": TimeoutError("late")}, "large"),
]


@pytest.mark.parametrize(("draft", "called_by"), AGENT_DRAFTS)
async def test_create_agent_runs_through_the_cascade(calling, said, draft, called_by):
    llm = cascade(calling("small", adds(said, **draft)), calling("large", adds(said), named_inputs=True))
    agent = create_agent(llm, [add])
    asked = {"messages": [HumanMessage("2 + 3?")]}

    with trace() as t:
        finished = [agent.invoke(asked), await agent.ainvoke(asked)]

    for state in finished:
        kinds = [type(message) for message in state["messages"]]
        assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
        assert state["messages"][2].content == "5"
        assert state["messages"][-1].content == "The sum is 5"
    assert [record.answered_by for record in t.records] == [called_by, "small"] * 2


@pytest.mark.parametrize(("draft", "called_by"), AGENT_DRAFTS)
async def test_agents_stream_no_draft(calling, said, draft, called_by):
    llm = cascade(calling("small", adds(said, **draft)), calling("large", adds(said)))
    agent = create_agent(llm, [add])
    asked = {"messages": [HumanMessage("2 + 3?")]}

    parts = [part for part, _ in agent.stream(asked, stream_mode="messages")]
    aparts = [part async for part, _ in agent.astream(asked, stream_mode="messages")]

    for streamed in (parts, aparts):
        chunks = [part for part in streamed if isinstance(part, AIMessageChunk)]
        called = [chunk for chunk in chunks if chunk.tool_call_chunks]
        assert {chunk["name"] for part in called for chunk in part.tool_call_chunks} - {None} == {"add"}
        assert "".join(str(chunk.content) for chunk in chunks) == "The sum is 5"
        by = [chunk.response_metadata["confcascade"]["answered_by"] for chunk in chunks if chunk.usage_metadata]
        assert by == [called_by, "small"]


def test_create_agent_with_a_response_format(calling, said):
    """Structured output by a tool of the agent's own, which must be called."""

    class Total(BaseModel):
        total: int

    def script(messages: list[Any]) -> Any:
        return said(calls=[("Total", '{"total": 5}')] if isinstance(messages[-1], ToolMessage) else [("add", ADD)])

    llm = cascade(calling("small", "Five."), calling("large", script))

    state = create_agent(llm, [add], response_format=Total).invoke({"messages": [HumanMessage("2 + 3?")]})

    assert state["structured_response"] == Total(total=5)


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


@pytest.mark.parametrize(("draft", "called_by"), AGENT_DRAFTS)
async def test_a_graph_with_a_tool_node_runs_through_the_cascade(calling, said, draft, called_by):
    llm = cascade(calling("small", adds(said, **draft)), calling("large", adds(said))).bind_tools([add])

    def model(state: State) -> dict[str, Any]:
        return {"messages": [llm.invoke(state["messages"])]}

    graph = StateGraph(State)
    graph.add_node("model", model)
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "model")
    app = graph.compile()
    asked = {"messages": [HumanMessage("2 + 3?")]}

    state = app.invoke(asked)
    streamed = [part for part, _ in app.stream(asked, stream_mode="messages") if isinstance(part, AIMessageChunk)]

    assert state["messages"][1].response_metadata["confcascade"]["answered_by"] == called_by
    assert state["messages"][-1].content == "The sum is 5"
    assert "".join(str(part.content) for part in streamed) == "The sum is 5"


def test_signals_of_stages_with_tools_can_differ(calling, said):
    stages = [
        Stage(calling("small", said(calls=[("add", ADD)], p=0.95)), [TokenProbability(aggregate="min")], {"p_t": 0.9}),
        Stage(calling("large", "no")),
    ]

    answer = ConfidenceCascadeLLM(stages=stages).bind_tools([add]).invoke("q")

    assert attempts(answer)[0]["reason"] == "p_t 0.95 >= 0.9"


def test_the_last_stage_streams_its_calls_as_they_come(calling, said):
    """Nothing can withdraw them, so the first piece is shown before the last is there."""

    class Breaking(type(calling("x", "y"))):
        def _stream(self, messages: Any, stop: Any = None, **kwargs: Any) -> Any:
            for i, chunk in enumerate(super()._stream(messages, stop, **kwargs)):
                if i == 2:
                    raise ConnectionError("cut")
                yield chunk

    large = Breaking(model="large", script=lambda _: said(calls=[("add", ADD)]))
    shown: list[Any] = []

    def read() -> None:
        for chunk in cascade(large).bind_tools([add]).stream("2 + 3?"):
            shown.extend(part["args"] for part in chunk.tool_call_chunks)

    with pytest.raises(ConnectionError, match="cut"):  # as alone
        read()
    assert shown == ["", ADD[:4]]
