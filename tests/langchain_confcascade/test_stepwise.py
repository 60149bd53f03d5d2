"""Answers that two models write in turn: as a chat model, what every chat model is, with each step on the record."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import ConfigurationError, Glimpse, Request, Steps, TokenProbability, ToolCall, trace
from confcascade.demo import bundled_model
from confcascade.demo.world import World
from confcascade.testing import Reply, ScriptedModel
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from langchain_confcascade import ConfidenceCascadeLLM

MIXED = "Vodis has 57 shells, finds 88, loses 39. How many shells?"  # the second step is hard for the small model
RIGHT = "57+88=145\n145-39=106\nAnswer: 106"


@pytest.fixture(scope="module")
def models():
    return [bundled_model("small"), bundled_model("large")]


@pytest.fixture
def stepwise(models):
    """A cascade whose small model's steps are judged as they are written; parameters replace its own."""

    def build(**parameters: Any) -> ConfidenceCascadeLLM:
        judged = {"signals": [TokenProbability(aggregate="min")], "threshold": 0.75}
        given = {"mode": "stepwise", "models": models, **judged, "steps": Steps(delimiter="\n")}
        return ConfidenceCascadeLLM(**{**given, **parameters})

    return build


class Continuing(ScriptedModel):
    """One that says it goes on with begun answers."""

    @property
    def capability(self):
        return replace(super().capability, continues=True)


def record_of(message):
    return message.response_metadata["confcascade"]


def steps_of(record):
    """(place, author, kept) of each step."""
    steps = [step for attempt in record["attempts"] for step in attempt["steps"]]
    return sorted((step["index"], step["author"], step["kept"]) for step in steps)


def test_who_wrote_which_step_is_on_the_message(stepwise):
    """The record lists each model's steps, those thrown away too, with the score that decided; all are counted."""
    answer = stepwise().invoke(MIXED)

    assert answer.content == RIGHT
    record = record_of(answer)
    assert steps_of(record) == [(0, "small", True), (1, "large", True), (1, "small", False), (2, "small", True)]
    small, large = record["attempts"]
    assert (small["decision"], large["decision"]) == ("accept", "escalate")
    (redone,) = [step for step in small["steps"] if not step["kept"]]
    assert redone["scores"]["p_t"]["passed"] is False
    assert redone["reason"].startswith("p_t 0.7")
    total = sum(attempt["usage"]["output_tokens"] for attempt in record["attempts"])
    assert answer.usage_metadata["output_tokens"] == total == record["usage"]["output_tokens"]
    assert record["cost"]["flops"] > record["cost_answering_stage"]["flops"] > 0


async def test_every_way_gives_the_same_answer_and_steps(stepwise):
    """Invoked, streamed, in batches, and their asynchronous halves."""
    llm = stepwise(signals=[Glimpse()], threshold=0.999)
    questions = [MIXED, *(each.prompt for each in World().questions("test", ("sums",), per_task=7))]
    invoked = [llm.invoke(question) for question in questions]
    streamed = []
    for question in questions:
        first, *rest = llm.stream(question)
        for chunk in rest:
            first += chunk
        streamed.append(first)
    astreamed = []
    for question in questions:
        pieces = [chunk async for chunk in llm.astream(question)]
        assert len(pieces) > 3
        astreamed.append(sum(pieces[1:], pieces[0]))
    others = [streamed, astreamed, llm.batch(questions), await llm.abatch(questions)]
    others.append([await llm.ainvoke(question) for question in questions])
    for messages in others:
        assert [message.content for message in messages] == [message.content for message in invoked]
        assert [steps_of(record_of(m)) for m in messages] == [steps_of(record_of(m)) for m in invoked]
    assert {author for message in invoked for _, author, _ in steps_of(record_of(message))} == {"small", "large"}


def test_a_stream_shows_no_step_that_is_thrown_away(stepwise):
    """What was shown adds up to the answer, in several pieces."""
    shown = [chunk.content for chunk in stepwise().stream(MIXED)]
    assert "".join(shown) == RIGHT
    assert len(shown) > 3


def test_attempts_in_traces_have_their_steps(stepwise):
    """A run for each model, with its steps in the outputs, and how many in the metadata; usage is counted once."""
    with collect_runs() as collected, get_usage_metadata_callback() as counted:
        answer = stepwise().invoke(MIXED)
    (root,) = collected.traced_runs
    small, large = root.child_runs
    assert [run.name for run in (small, large)] == ["attempt:small", "attempt:large"]
    assert small.outputs["output"].content == RIGHT
    assert [step["kept"] for step in small.outputs["steps"]] == [True, False, True]
    assert small.outputs["steps"][1]["scores"]["p_t"]["threshold"] == 0.75
    assert large.outputs["steps"][0]["author"] == "large"
    assert (small.metadata["confcascade_steps_kept"], small.metadata["confcascade_steps_redone"]) == (2, 1)
    assert (large.metadata["confcascade_steps_kept"], large.metadata["confcascade_steps_redone"]) == (1, 0)
    assert list(counted.usage_metadata.values()) == [answer.usage_metadata]


def test_one_stage_or_another_threshold_for_a_call(stepwise):
    """`stage=` asks one model for the whole answer; `threshold=` decides about the steps of this call."""
    llm = stepwise()
    assert steps_of(record_of(llm.invoke(MIXED, stage="large"))) == []
    assert llm.invoke(MIXED, stage="large").content == RIGHT
    kept = llm.invoke(MIXED, threshold=0.2)
    assert {author for _, author, _ in steps_of(record_of(kept))} == {"small"}
    assert llm.with_config().invoke(MIXED).content == RIGHT
    with pytest.raises(ConfigurationError, match="names"):
        llm.invoke(MIXED, threshold={"p_ik": 0.5})


def test_a_copy_a_pickle_and_a_cache(stepwise):
    """Each decides as its own settings say; LangChain's cache tells cascades with other steps apart."""
    llm = stepwise(cache=InMemoryCache())
    assert pickle.loads(pickle.dumps(llm)).cascade.policy_id == llm.cascade.policy_id
    other = llm.model_copy(update={"steps": Steps(delimiter="\n", final="large")})
    assert other.cascade.policy_id != llm.cascade.policy_id
    llm.invoke(MIXED)
    assert record_of(llm.invoke(MIXED))["cached"]
    assert "cached" not in record_of(other.invoke(MIXED))
    assert llm.model_copy(update={"mode": "query", "steps": None}).cascade.policy_id != llm.cascade.policy_id


def test_it_says_what_it_is(stepwise):
    """Steps are in the repr and among the parameters that tracers keep; those of a cascade of whole answers are not."""
    llm = stepwise()
    assert "steps=Steps(delimiter='\\n'" in repr(llm)
    assert llm._identifying_params["steps"] == {"delimiter": "\n", "max_steps": 64, "final": "author"}
    whole = ConfidenceCascadeLLM(models=llm.models, threshold=0.9)
    assert "steps" not in repr(whole)
    assert "steps" not in whole._identifying_params
    assert llm._get_ls_params()["ls_model_name"] == f"confcascade-{llm.cascade.policy_id}"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"steps": "\n"}, "`steps` must be a Steps"),
        ({"mode": "steps"}, '`mode` must be "query" or "stepwise"'),
        ({"mode": "query"}, "`steps` goes with mode="),
        ({"on_cut": "keep"}, "`on_cut` is not for answers"),
        ({"audit": 0.1}, "`audit` is not for answers"),
        ({"threshold": None}, "`threshold` is missing"),
        ({"signals": [Glimpse(), TokenProbability()]}, "must be a mapping"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(models, parameters, told):
    """In one line that says what to give instead."""
    given = {"mode": "stepwise", "models": models, "threshold": 0.75, "steps": Steps(delimiter="\n"), **parameters}
    with pytest.raises(ConfigurationError, match=told) as raised:
        ConfidenceCascadeLLM(**given)
    assert "\n" not in str(raised.value)


def test_a_model_that_cannot_go_on_with_a_begun_answer_is_refused(models):
    """The error names it, and the way out."""
    chat = ChatOpenAI(model="gpt-4o", api_key="none")
    with pytest.raises(ConfigurationError, match=r"'gpt-4o' cannot go on .*`OpenAICompatibleModel` by .*`continues`"):
        ConfidenceCascadeLLM(mode="stepwise", models=[models[0], chat], threshold=0.75)


async def test_a_call_that_is_cancelled_in_the_middle_of_a_step(stepwise):
    """Its record says what was written until then; the next call is answered as ever."""
    llm = stepwise()
    await llm.ainvoke(MIXED)
    with trace() as seen:
        stream = llm.astream(MIXED)
        shown = [await anext(stream), await anext(stream)]
        await stream.aclose()
    (record,) = seen.records
    assert record.ended == "left"
    assert record.usage.output_tokens > 0
    assert "".join(chunk.content for chunk in shown)

    with trace() as seen:
        task = asyncio.create_task(llm.ainvoke(MIXED))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [record.ended for record in seen.records] == ["left"]
    assert (await llm.ainvoke(MIXED)).content == RIGHT


async def test_in_a_chain_every_step_is_traced(stepwise):
    """`trace` finds the steps behind a parser; `astream_events` shows the pieces of one model."""
    chain = ChatPromptTemplate.from_template("{question}") | stepwise() | StrOutputParser()
    with trace() as seen:
        assert chain.invoke({"question": MIXED}) == RIGHT
        events = [event async for event in chain.astream_events({"question": MIXED})]
    pieces = [each["data"]["chunk"].content for each in events if each["event"] == "on_chat_model_stream"]
    assert "".join(pieces) == RIGHT
    assert [len(record.steps) for record in seen.records] == [4, 4]


# ---------------------------------------------------------------------- requests for which nobody writes in turn


@tool
def shells(name: str) -> int:
    """How many shells someone has."""
    del name
    return 57


class Count(BaseModel):
    """A count."""

    count: int


def large_with_tools():
    def answer(request: Request) -> Any:
        if request.messages[-1].role == "tool":
            return f"It is {request.messages[-1].content}"
        if request.tools:
            return Reply("", tool_calls=(ToolCall("shells", {"name": "Vodis"}, "call_1"),))
        return '{"count": 57}' if request.output is not None else "57"

    return Continuing("able", answer, tools=True, structured=True)


def test_tools_and_objects_are_the_large_models(stepwise, models):
    """The small model is not asked, and needs to be able to do neither."""
    llm = stepwise(models=[models[0], large_with_tools()])
    called = llm.bind_tools([shells]).invoke("How many shells has Vodis?")
    assert called.tool_calls[0]["name"] == "shells"
    assert [attempt["model"] for attempt in record_of(called)["attempts"]] == ["able"]
    history = [HumanMessage("How many?"), called, ToolMessage("57", tool_call_id="call_1")]
    assert llm.bind_tools([shells]).invoke(history).content == "It is 57"
    with trace() as seen:
        assert llm.with_structured_output(Count).invoke("How many?") == Count(count=57)
    assert [attempt.model for attempt in seen.records[0].attempts] == ["able"]
    assert llm.profile["structured_output"] is True
    assert llm.profile["tool_calling"] is True


def test_an_agent(stepwise, models):
    """`create_agent` calls the tool, reads its result, and answers."""
    agents = pytest.importorskip("langchain.agents")
    agent = agents.create_agent(stepwise(models=[models[0], large_with_tools()]), [shells])
    *_, last = agent.invoke({"messages": [HumanMessage("How many shells has Vodis?")]})["messages"]
    assert isinstance(last, AIMessage)
    assert last.content == "It is 57"


def test_a_large_model_without_tools_says_so(stepwise):
    """When they are bound."""
    with pytest.raises(ConfigurationError, match="cannot call tools"):
        stepwise().bind_tools([shells])
