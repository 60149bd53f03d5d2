"""Tools through the cascade: given to each LLM in its own form, judged, and used by agents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confcascade import (
    CascadeExhaustedError,
    ConfigurationError,
    OpenAICompatibleModel,
    Request,
    Stage,
    TokenProbability,
    ToolCall,
    trace,
)
from confcascade.asks import Generate
from confcascade.testing import Reply, ScriptedModel, same_record
from confcascade.types import Message
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel, field_validator
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms.mock import MockLLM
from llama_index.core.program.function_program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.model import LlamaIndexModel
from llamaindex_confcascade.tools import bound_tool, keep_first_call, plain_tool, read_calls, selections

ADD = '{"a": 2, "b": 3}'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


add_tool, multiply_tool = FunctionTool.from_defaults(add), FunctionTool.from_defaults(multiply)


def cascade(*models: Any, threshold: Any = 0.9, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), threshold=threshold, **parameters)


def record_of(response: ChatResponse) -> dict[str, Any]:
    found: dict[str, Any] = response.additional_kwargs["confcascade"]
    return found


async def four_ways(llm: ConfidenceCascadeLLM, tools: Any = (add_tool,), **parameters: Any) -> list[ChatResponse]:
    """The last response of each way to chat with tools."""
    given = {"user_msg": "2 + 3?", "allow_parallel_tool_calls": True, **parameters}
    return [
        llm.chat_with_tools(list(tools), **given),
        await llm.achat_with_tools(list(tools), **given),
        list(llm.stream_chat_with_tools(list(tools), **given))[-1],
        [item async for item in await llm.astream_chat_with_tools(list(tools), **given)][-1],
    ]


def calls_in(llm: ConfidenceCascadeLLM, response: ChatResponse) -> list[tuple[str, dict[str, Any]]]:
    found = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [(call.tool_name, call.tool_kwargs) for call in found]


SUM = [("add", {"a": 2, "b": 3})]


# ---------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("draft", "answered_by", "reason"),
    [
        ({"calls": [("add", ADD)]}, "gpt-4o-mini", "p_t 0.99 >= 0.9"),
        ({"calls": [("add", ADD)], "p": 0.5}, "gpt-4o", "p_t 0.5 < 0.9"),
        ({"calls": [("subtract", ADD)]}, "gpt-4o", "unknown tool 'subtract'"),
        (
            {"calls": [("add", '{"a": 2, "b": "three"}')]},
            "gpt-4o",
            "the arguments of its call to 'add' do not fit: 'b' must be of type integer",
        ),
        ({"calls": [("add", '{"a": 2}')]}, "gpt-4o", "the arguments of its call to 'add' do not fit: 'b' is missing"),
        ({"calls": [("add", '{"a": 2, "b"')]}, "gpt-4o", "the arguments of a tool call are not a JSON object"),
        ({"calls": [("add", ADD)], "cut": True}, "gpt-4o", "it was cut off at its most tokens"),
        ({"calls": [("add", ADD), ("divide", ADD)]}, "gpt-4o", "unknown tool 'divide'"),
        ({"text": "Five."}, "gpt-4o-mini", "p_t 0.99 >= 0.9"),
    ],
)
async def test_a_draft_is_kept_only_if_it_can_be_used(pair, said, draft, answered_by, reason):
    llm = cascade(*pair(said(**draft), said(calls=[("add", ADD)])))

    first, *others = await four_ways(llm)

    assert record_of(first)["answered_by"] == answered_by
    assert record_of(first)["attempts"][0]["reason"] == reason
    assert calls_in(llm, first) == ([] if draft.get("text") else SUM)
    for other in others:
        assert same_record(record_of(other), record_of(first))
        assert calls_in(llm, other) == calls_in(llm, first)
        assert (other.message.content or "") == (first.message.content or "")


class Even(BaseModel):
    """Arguments that only a validator can judge."""

    n: int

    @field_validator("n")
    @classmethod
    def check(cls, n: int) -> int:
        if n % 2:
            raise ValueError(f"{n} is odd")
        return n


async def test_arguments_that_the_tools_own_class_refuses_escalate(pair, said):
    """Their values stay out of the record. The last stage's are the caller's to handle, as alone."""
    tool = FunctionTool.from_defaults(lambda n: n // 2, name="halve", fn_schema=Even)
    llm = cascade(*pair(said(calls=[("halve", '{"n": 777}')]), said(calls=[("halve", '{"n": 4}')])))

    record = record_of(llm.chat_with_tools([tool], user_msg="Halve."))

    assert record["answered_by"] == "gpt-4o"
    reason = record["attempts"][0]["reason"]
    assert reason == "the arguments of its call to 'halve' do not validate ('n': value_error)"


async def test_a_model_that_fails_is_passed_over(pair, said):
    llm = cascade(*pair(said(error=ConnectionError("no route")), said(calls=[("add", ADD)])))

    for answer in await four_ways(llm):
        assert record_of(answer)["answered_by"] == "gpt-4o"
        assert record_of(answer)["attempts"][0]["decision"] == "fail"
        assert "no route" not in repr(record_of(answer))


async def test_a_forced_call_must_be_made(pair, said):
    llm = cascade(*pair("Five.", said(calls=[("add", ADD)])))

    for how in ({"tool_required": True}, {"tool_choice": "required"}, {"tool_choice": "add"}):
        for answer in await four_ways(llm, **how):
            assert "wanted" in record_of(answer)["attempts"][0]["reason"]
            assert calls_in(llm, answer) == SUM
    for how in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        for answer in await four_ways(llm, **how):
            assert record_of(answer)["answered_by"] == "gpt-4o-mini"


async def test_no_draft_is_shown_before_it_is_accepted(pair, said):
    """Whatever the signal and its threshold say early: the call at the end may still be unusable."""
    models = pair(said("Let me see.", calls=[("nothing", "{}")]), said("Adding.", calls=[("add", ADD)]))
    for signal, threshold in ((TokenProbability(aggregate="first"), 0.5), (TokenProbability(), "always")):
        llm = ConfidenceCascadeLLM(models=models, threshold=threshold, signals=[signal])
        items = list(llm.stream_chat_with_tools([add_tool], "2 + 3?"))

        assert not any("see" in (item.message.content or "") for item in items)
        assert {name for item in items for name, _ in calls_in(llm, item)} == {"add"}
        assert "".join(item.delta for item in items) == "Adding."
        assert calls_in(llm, items[-1]) == SUM


def test_the_last_stages_call_streams_as_it_is_written(openai_server, said):
    """As FunctionAgent shows it: pieces of the arguments, read as far as they go."""
    llm = cascade(openai_server.llm("gpt-4o", said(calls=[("add", ADD)])), threshold=None)

    seen = [calls_in(llm, item) for item in llm.stream_chat_with_tools([add_tool], "2 + 3?")]

    assert seen[0] == [("add", {})]
    assert seen[1:] == [SUM] * len(seen[1:])


def test_a_stream_that_breaks_within_a_call_cannot_escalate(calling, said):
    """A piece of it was shown, and cannot be taken back."""

    class Breaking(type(calling("x", ""))):
        def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
            def pieces() -> Any:
                yield from self._pieces(messages, kwargs)
                raise ConnectionError("down")

            return pieces()

    llm = cascade(Breaking(name="large", script=said(calls=[("add", ADD)])), threshold=None)

    with pytest.raises(ConnectionError, match="down"):  # the stage's own error, as alone
        list(llm.stream_chat_with_tools([add_tool], "2 + 3?"))


async def test_the_last_stage_answers_as_it_would_alone(pair, said):
    """Its unusable call is the caller's to handle, as agents do; the record names it."""
    llm = cascade(*pair(said(calls=[("nothing", "{}")]), said(calls=[("subtract", ADD)])))

    for answer in await four_ways(llm):
        assert [name for name, _ in calls_in(llm, answer)] == ["subtract"]
        assert record_of(answer)["attempts"][-1]["reason"] == "last stage (unknown tool 'subtract')"


def test_an_unusable_draft_never_comes_back(pair, said):
    """Also where the last stage fails and an earlier answer would do."""
    llm = cascade(*pair(said(calls=[("nothing", "{}")]), said(error=ConnectionError("down"))), on_exhausted="best")

    with pytest.raises(CascadeExhaustedError, match="no earlier stage"):
        llm.chat_with_tools([add_tool], "2 + 3?")


def test_only_the_name_and_the_values_of_a_call_are_scored(pair, said):
    """Unsure punctuation and keys change nothing; an unsure value does."""
    sure = said(calls=[("add", ADD)], p=lambda token: 0.99 if token.strip() in "add23" else 0.01)
    unsure = said(calls=[("add", ADD)], p=lambda token: 0.1 if token.strip() == "3" else 0.99)

    for small, by in ((sure, "gpt-4o-mini"), (unsure, "gpt-4o")):
        answer = cascade(*pair(small, said(calls=[("add", ADD)]))).chat_with_tools([add_tool], "2 + 3?")
        assert record_of(answer)["answered_by"] == by


def test_providers_that_do_not_tell_the_tokens_of_calls_escalate(calling, said):
    small = calling("small", said(calls=[("add", ADD)]), tells_call_tokens=False)

    answer = cascade(small, calling("large", "Five.")).chat_with_tools([add_tool], "2 + 3?")

    (score,) = record_of(answer)["attempts"][0]["scores"].values()
    assert score["value"] is None


def test_text_of_a_call_stays_out_of_records(pair, said):
    llm = cascade(*pair(said(calls=[("add", '{"a": "my-secret", "my-secret": 1, "b": 2}')]), "Fine."))

    assert "my-secret" not in str(record_of(llm.chat_with_tools([add_tool], "2 + 3?")))


def test_parallel_calls_are_cut_to_one_where_they_are_not_allowed(pair, said):
    llm = cascade(*pair(said(calls=[("add", ADD), ("multiply", ADD)]), "no"))
    tools = [add_tool, multiply_tool]

    both = llm.chat_with_tools(tools, "2 + 3?", allow_parallel_tool_calls=True)
    one = llm.chat_with_tools(tools, "2 + 3?")

    assert [name for name, _ in calls_in(llm, both)] == ["add", "multiply"]
    assert [name for name, _ in calls_in(llm, one)] == ["add"]


# ---------------------------------------------------------------------- what a stage is given


def test_each_stage_gets_the_tools_in_its_own_form(openai_server, calling, said):
    """With the messages in a list of its own, for some LLMs append to theirs."""
    small = calling("small", said(calls=[("add", "{}")]))
    large = openai_server.llm("gpt-4o", said(calls=[("add", ADD)]))
    history = [ChatMessage(content="hello"), ChatMessage(content="hi", role=MessageRole.ASSISTANT)]

    answer = cascade(small, large).chat_with_tools(
        [add_tool, multiply_tool], "2 + 3?", history, tool_required=True, allow_parallel_tool_calls=True, seed=3
    )

    assert record_of(answer)["answered_by"] == "gpt-4o"
    (asked,), (sent,) = small.seen, openai_server.bodies
    assert [tool["name"] for tool in asked["functions"]] == ["add", "multiply"]
    assert (asked["force"], asked["parallel"], asked["seed"], asked["logprobs"]) == (True, True, 3, True)
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["add", "multiply"]
    assert (sent["tool_choice"], sent["parallel_tool_calls"], sent["seed"]) == ("required", True, 3)
    assert [message.content for message in asked["messages"]] == ["hello", "hi", "2 + 3?"]
    assert [message["content"] for message in sent["messages"]] == ["hello", "hi", "2 + 3?"]
    assert len(history) == 2


def test_a_core_model_gets_them_through_its_request(openai_server, said):
    openai_server.scripts["served"] = said(calls=[("add", ADD)])
    model = OpenAICompatibleModel("served", base_url=openai_server.url, api_key="none")
    llm = cascade(model, ScriptedModel("large", tools=True))

    answer = llm.chat_with_tools([add_tool], "2 + 3?", tool_choice="add")

    assert record_of(answer)["answered_by"] == "served"
    assert calls_in(llm, answer) == SUM
    (sent,) = openai_server.bodies
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["add"]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert sent["parallel_tool_calls"] is False


async def test_calls_and_results_of_the_history_reach_every_stage(openai_server, calling):
    """In LlamaIndex's blocks for its own LLMs, in OpenAI's form on the wire, plainly for core models."""
    blocks = [ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs=ADD)]
    history = [
        ChatMessage(role=MessageRole.USER, content="2 + 3?"),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks),
        ChatMessage(role=MessageRole.TOOL, content="5", additional_kwargs={"tool_call_id": "c1"}),
    ]
    openai_server.scripts["served"] = "Five."
    core = OpenAICompatibleModel("served", base_url=openai_server.url, api_key="none")
    scripted = ScriptedModel("scripted", tools=True)
    native = calling("native", "Five.")
    llm = cascade(core, scripted, native, openai_server.llm("gpt-4o", "Five."), threshold="never")

    await llm.achat_with_tools([add_tool], chat_history=history)

    assert native.seen[0]["messages"] == history
    for body in openai_server.bodies:
        _, called, result = body["messages"]
        (call,) = called["tool_calls"]
        assert (call["id"], call["function"]["name"]) == ("c1", "add")
        assert json.loads(call["function"]["arguments"]) == {"a": 2, "b": 3}
        assert (result["role"], result["content"], result["tool_call_id"]) == ("tool", "5", "c1")
    _, called, result = scripted.calls[0][0].request.messages
    assert called == Message("assistant", "", (ToolCall("add", {"a": 2, "b": 3}, "c1"),))
    assert result == Message("tool", "5", (), "c1")


def test_core_messages_reach_a_llama_index_model_with_their_calls(openai_server):
    """As where a cascade of the core has such a stage."""
    model = LlamaIndexModel(openai_server.llm("gpt-4o", "Five."))
    messages = (
        Message("user", "2 + 3?"),
        Message("assistant", "", (ToolCall("add", {"a": 2, "b": 3}, "c1"),)),
        Message("tool", "5", (), "c1"),
    )

    model.generate([Generate(model, Request(messages))])

    _, called, result = openai_server.bodies[0]["messages"]
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": ADD}
    assert result == {"role": "tool", "content": "5", "tool_call_id": "c1"}


def test_tools_may_be_given_in_a_providers_form(openai_server, said):
    """As to `OpenAI.chat`: they go to the stages as they are, and calls are judged all the same."""
    models = [
        openai_server.llm("gpt-4o-mini", said(calls=[("add", "{}")])),
        openai_server.llm("gpt-4o", said(calls=[("add", ADD)])),
    ]
    spec = dict(bound_tool(add_tool))
    message = ChatMessage(role=MessageRole.USER, content="2 + 3?")

    answer = cascade(*models).chat([message], tools=[spec], tool_choice="required")

    assert "'a' is missing" in record_of(answer)["attempts"][0]["reason"]
    assert [(body["tools"], body["tool_choice"]) for body in openai_server.bodies] == [([spec], "required")] * 2


def test_the_core_sees_tools_plainly():
    for tool in (add_tool, bound_tool(add_tool)):
        plain = plain_tool(tool)
        assert (plain.name, list(plain.parameters["properties"]), plain.native) == ("add", ["a", "b"], add_tool)
    assert plain_tool({"type": "web_search"}).parameters is None


def test_a_parameter_named_tools_shows_openais_form_and_no_object():
    """Events and handlers see a call's parameters."""
    llm = cascade(ScriptedModel("large", tools=True), threshold=None)

    prepared = llm._prepare_chat_with_tools([add_tool], "2 + 3?")

    assert json.loads(json.dumps(prepared["tools"]))[0]["function"]["name"] == "add"
    assert llm._prepare_chat_with_tools([], "2 + 3?").keys() == {"messages"}


# ---------------------------------------------------------------------- stages without tools


def test_a_stage_that_cannot_call_tools_is_skipped(calling, said):
    """Never asked without them: it would answer as if there were none."""
    mock, scripted, unable = MockLLM(), ScriptedModel("core"), calling("unable", "no", calls_tools=False)
    llm = cascade(mock, scripted, unable, calling("large", said(calls=[("add", ADD)])))

    answer = llm.chat_with_tools([add_tool], "2 + 3?")

    reasons = [attempt["reason"] for attempt in record_of(answer)["attempts"]]
    assert reasons == ["the model cannot call tools"] * 3 + ["last stage"]
    assert scripted.calls == unable.seen == []
    assert llm.metadata.is_function_calling_model


def test_function_calling_is_that_of_the_last_stage(calling):
    """Others are skipped; where the last cannot, agents that ask for tools are refused before they begin."""
    able, unable = calling("able", ""), calling("unable", "", calls_tools=False)

    assert cascade(able, able).metadata.is_function_calling_model
    assert cascade(unable, able).metadata.is_function_calling_model
    assert not cascade(able, unable).metadata.is_function_calling_model
    with pytest.raises(ConfigurationError, match="'unable', always answers, and cannot call tools"):
        cascade(able, unable).chat_with_tools([add_tool], "2 + 3?")


# ---------------------------------------------------------------------- programs and agents


async def test_predict_and_call_runs_the_tool(pair, said):
    llm = cascade(*pair(said(calls=[("add", "{}")]), said(calls=[("add", ADD)])))

    with trace() as t:
        answers = [llm.predict_and_call([add_tool], "2 + 3?"), await llm.apredict_and_call([add_tool], "2 + 3?")]

    assert [str(answer) for answer in answers] == ["5", "5"]
    assert [record.answered_by for record in t.records] == ["gpt-4o"] * 2
    silent = cascade(*pair("Five.", "Five."))
    with pytest.raises(ValueError, match="at least one tool call"):
        silent.predict_and_call([add_tool], "2 + 3?")
    assert str(silent.predict_and_call([add_tool], "2 + 3?", error_on_no_tool_call=False)) == "Five."


class Place(BaseModel):
    """A place."""

    name: str
    people: int


def test_function_calling_programs_take_it(openai_server, said):
    """Arguments are checked inside the cascade, where the next stage can still do better."""
    small, large = (
        said(calls=[("Place", '{"name": "Funafuti"}')]),
        said(calls=[("Place", '{"name": "X", "people": 6320}')]),
    )
    llm = cascade(openai_server.llm("gpt-4o-mini", small), openai_server.llm("gpt-4o", large))

    program = FunctionCallingProgram.from_defaults(Place, llm=llm, prompt=PromptTemplate("Where?"))

    assert program() == Place(name="X", people=6320)
    assert list(program.stream_call())[-1] == Place(name="X", people=6320)


def test_core_models_calls_stream_through_programs(said):
    """LlamaIndex's programs look for calls beside the blocks, too."""
    reply = Reply('{"name": "Place", "arguments": {}}', tool_calls=[ToolCall("Place", {"name": "X", "people": 1}, "c")])
    llm = cascade(ScriptedModel("core", lambda _: reply, tools=True), threshold=None)

    program = FunctionCallingProgram.from_defaults(Place, llm=llm, prompt=PromptTemplate("Where?"))

    assert list(program.stream_call())[-1] == Place(name="X", people=1)


def agents_turn(first: Any) -> Any:
    """Calls a tool, then tells its result."""

    def script(messages: Any) -> Any:
        last = messages[-1]
        role, content = (last["role"], last["content"]) if isinstance(last, dict) else (last.role.value, last.content)
        return f"It is {content}." if role == "tool" else first

    return script


@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent(pair, said, streaming):
    """The small model's call is kept in one turn and passed on in another; usage counts all of them."""
    small = agents_turn(said(calls=[("add", '{"a": 2}')]))
    llm = cascade(*pair(small, agents_turn(said(calls=[("add", ADD)]))))
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])
    agent = FunctionAgent(tools=[add_tool], llm=llm, streaming=streaming)

    with trace() as t:
        answer = await agent.run("2 + 3?")

    assert str(answer) == "It is 5."
    assert [call.tool_kwargs for call in answer.tool_calls] == [{"a": 2, "b": 3}]
    assert [record.answered_by for record in t.records] == ["gpt-4o", "gpt-4o-mini"]
    assert counter.total_llm_token_count == sum(record.usage.total_tokens for record in t.records)


async def test_function_agent_over_core_models():
    def script(request: Request) -> Reply:
        last = request.messages[-1]
        if last.role == "tool":
            return Reply(f"It is {last.content}.")
        written = f'{{"name": "add", "arguments": {ADD}}}'
        return Reply(written, tool_calls=[ToolCall("add", {"a": 2, "b": 3}, "c1")])

    llm = cascade(ScriptedModel("small", script, tools=True), ScriptedModel("large", script, tools=True))

    with trace() as t:
        answer = await FunctionAgent(tools=[add_tool], llm=llm).run("2 + 3?")

    assert str(answer) == "It is 5."
    assert [record.answered_by for record in t.records] == ["small", "small"]


async def test_an_agents_turns_may_be_of_different_frameworks(openai_server):
    """What a core model called, OpenAI's own class sends on, with its result."""

    def script(request: Request) -> Reply:
        if request.messages[-1].role == "tool":
            return Reply("Perhaps 6?", 0.2)
        return Reply(f'{{"name": "add", "arguments": {ADD}}}', tool_calls=[ToolCall("add", {"a": 2, "b": 3}, "c1")])

    llm = cascade(ScriptedModel("core", script, tools=True), openai_server.llm("gpt-4o", "It is 5."))

    answer = await FunctionAgent(tools=[add_tool], llm=llm).run("2 + 3?")

    assert str(answer) == "It is 5."
    (body,) = openai_server.bodies
    _, called, result = body["messages"]
    assert [call["id"] for call in called["tool_calls"]] == ["c1"]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
    assert (result["role"], result["tool_call_id"], result["content"]) == ("tool", "c1", "5")


async def test_an_agent_workflow_chooses_function_calling(pair, said):
    llm = cascade(*pair(agents_turn(said(calls=[("add", ADD)])), "never asked"))

    workflow = AgentWorkflow.from_tools_or_functions([add], llm=llm)

    assert isinstance(workflow.agents["Agent"], FunctionAgent)
    assert str(await workflow.run("2 + 3?")) == "It is 5."


@pytest.mark.parametrize("streaming", [True, False])
async def test_react_agent(streaming):
    """It asks in words, so stages that know nothing of tools answer, too; a doubtful step goes to the next."""

    def stage(name: str, probability: float) -> ScriptedModel:
        def script(request: Request) -> Reply:
            if "Observation: 5" in request.messages[-1].content:
                return Reply(f"Thought: I can answer.\nAnswer: {name} says 5.")
            return Reply(f"Thought: I need a tool.\nAction: add\nAction Input: {ADD}", probability)

        return ScriptedModel(name, script)

    llm = cascade(stage("small", 0.3), stage("large", 0.99))

    with trace() as t:
        answer = await ReActAgent(tools=[add_tool], llm=llm, streaming=streaming).run("2 + 3?")

    assert str(answer) == "small says 5."
    assert [record.answered_by for record in t.records] == ["large", "small"]


# ---------------------------------------------------------------------- reading calls


def test_calls_are_read_from_blocks_or_from_openais_form_beside_them():
    beside = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": ADD}}
    block = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 2, "b": 3})
    text = TextBlock(text="Adding.")

    for message in (
        ChatMessage(blocks=[text, block]),
        ChatMessage(content="Adding.", additional_kwargs={"tool_calls": [beside]}),
        ChatMessage(blocks=[text, block], additional_kwargs={"tool_calls": [beside]}),
    ):
        assert read_calls(message) == ((ToolCall("add", {"a": 2, "b": 3}, "c1"),), None)
        assert [call.tool_kwargs for call in selections(message)] == [{"a": 2, "b": 3}]


def test_only_the_first_call_is_kept_also_of_equal_ones():
    beside = {"function": {"name": "add", "arguments": ADD}}
    block = ToolCallBlock(tool_name="add", tool_kwargs={"a": 2, "b": 3})

    for message in (
        ChatMessage(blocks=[TextBlock(text="Adding."), block, block.model_copy()]),
        ChatMessage(content="Adding.", additional_kwargs={"tool_calls": [beside, beside]}),
    ):
        keep_first_call(message)
        assert read_calls(message) == ((ToolCall("add", {"a": 2, "b": 3}),), None)
        assert message.content == "Adding."


def test_calls_of_a_form_of_their_own_are_read_by_the_llm_itself(calling):
    class Old(type(calling("x", ""))):
        """An integration from before there were blocks."""

        def _whole(self, messages: Any, options: dict[str, Any]) -> ChatResponse:
            beside = {"tool_calls": [{"tool": "add", "input": {"a": 2, "b": 3}}]}
            message = ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs=beside)
            return ChatResponse(message=message)

        def get_tool_calls_from_response(self, response: Any, **_: Any) -> Any:
            told = response.message.additional_kwargs["tool_calls"]
            blocks = [ToolCallBlock(tool_name=call["tool"], tool_kwargs=call["input"]) for call in told]
            return selections(ChatMessage(blocks=blocks))

    llm = ConfidenceCascadeLLM(
        stages=[
            Stage(Old(name="old", script=""), [TokenProbability()], {"p_t": "always"}),
            Stage(ScriptedModel("large", tools=True)),
        ]
    )

    answer = llm.chat_with_tools([add_tool], "2 + 3?")

    assert record_of(answer)["answered_by"] == "old"
    assert calls_in(llm, answer) == SUM
