"""Attempts in the user's tracers: a run each, under the cascade's; and nothing of them in streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from confcascade import CascadeExhaustedError, ModelError
from confcascade.testing import Reply, ScriptedModel
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.context import collect_runs
from langchain_core.tracers.schemas import Run
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

from langchain_confcascade import ConfidenceCascadeLLM

EASY, HARD = "capital of France", "meaning of life"


class Tracer(BaseTracer):
    """Keeps the root of every tree of runs, as LangSmith's does."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


def cascade(**parameters: Any) -> ConfidenceCascadeLLM:
    small = ScriptedModel("small", {EASY: ("It is Paris", 0.95), HARD: ("Maybe seven", 0.4)})
    large = ScriptedModel("large", {HARD: "It is 42"})
    return ConfidenceCascadeLLM(**{"models": [small, large], "threshold": 0.9} | parameters)


async def read(chunks: Any) -> Any:
    total = None
    async for chunk in chunks:
        total = chunk if total is None else total + chunk
    return total


def merged(chunks: Any) -> Any:
    first, *rest = chunks
    return first + rest


async def streamed_by_a_handler(llm: ConfidenceCascadeLLM, query: str, config: Any) -> Any:
    ends = [e for e in [e async for e in llm.astream_events(query, config)] if e["event"] == "on_chat_model_end"]
    return ends[-1]["data"]["output"]


async def invoked(llm: ConfidenceCascadeLLM, query: str, config: Any) -> Any:
    return llm.invoke(query, config)


async def streamed(llm: ConfidenceCascadeLLM, query: str, config: Any) -> Any:
    return merged(llm.stream(query, config))


async def streamed_v3(llm: ConfidenceCascadeLLM, query: str, config: Any) -> Any:
    return llm.stream_events(query, config, version="v3").output


async def batched(llm: ConfidenceCascadeLLM, query: str, config: Any) -> Any:
    return llm.batch([query], config)[0]


async def abatched(llm: ConfidenceCascadeLLM, query: str, config: Any) -> Any:
    return (await llm.abatch([query], config))[0]


Way = Callable[[ConfidenceCascadeLLM, str, Any], Awaitable[Any]]
WAYS: list[Way] = [
    invoked,
    lambda llm, query, config: llm.ainvoke(query, config),
    streamed,
    lambda llm, query, config: read(llm.astream(query, config)),
    streamed_by_a_handler,
    streamed_v3,
    batched,
    abatched,
]
NAMES = "invoke ainvoke stream astream astream_events stream_events_v3 batch abatch".split()


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
async def test_each_attempt_is_a_run_under_the_cascades(way):
    """The same tree in every way: what was asked and said, and all that the record tells of the attempt."""
    tracer = Tracer()
    answer = await way(cascade(), HARD, {"callbacks": [tracer], "tags": ["mine"], "metadata": {"user": "u1"}})

    (root,) = tracer.roots
    assert (root.run_type, str(answer.text)) == ("llm", "It is 42")
    draft, final = root.child_runs
    assert [(run.name, run.run_type) for run in (draft, final)] == [
        ("attempt:small", "chain"),
        ("attempt:large", "chain"),
    ]
    assert [run.outputs["output"].content for run in (draft, final)] == ["Maybe seven", "It is 42"]
    assert draft.inputs == {"messages": [HumanMessage(HARD)]}
    assert "mine" in draft.tags
    metadata = draft.extra["metadata"]
    assert metadata["user"] == "u1"
    assert (metadata["confcascade_stage"], metadata["confcascade_decision"]) == (0, "escalate")
    assert (metadata["confcascade_threshold_p_t"], metadata["confcascade_passed_p_t"]) == (0.9, False)
    assert metadata["confcascade_output_tokens"] == 2
    assert not any(key.startswith("ls_") for key in metadata)
    # plain values, which tracers filter by, equal to those of the record
    for run, attempt in zip((draft, final), answer.response_metadata["confcascade"]["attempts"], strict=True):
        told = {k.removeprefix("confcascade_"): v for k, v in run.extra["metadata"].items() if "confcascade_" in k}
        assert all(isinstance(value, str | int | float) for value in told.values())
        for key in ("stage", "model", "decision", "reason", "aborted", "latency_s"):
            assert told[key] == attempt[key]
        assert (told["input_tokens"], told["output_tokens"]) == tuple(
            attempt["usage"][f"{kind}_tokens"] for kind in ("input", "output")
        )
        for name, score in attempt["scores"].items():
            assert told[f"score_{name}"] == score["value"]


@pytest.mark.parametrize("way", [way for way in WAYS if way is not streamed_v3])  # which a chain does not know
async def test_the_runs_stay_in_their_place_in_a_chain(way):
    tracer = Tracer()
    chain = ChatPromptTemplate.from_template("{q}") | cascade()

    await way(chain, {"q": EASY}, {"callbacks": [tracer]})

    (root,) = tracer.roots
    (run,) = [run for run in root.child_runs if run.run_type == "llm"]
    assert [child.name for child in run.child_runs] == ["attempt:small"]
    assert run.child_runs[0].parent_run_id == run.id


@pytest.mark.parametrize("way", WAYS[:5], ids=NAMES[:5])
async def test_a_failed_attempt_is_a_failed_run_also_where_the_cascade_fails(way):
    tracer = Tracer()
    broken = ScriptedModel("broken", {"q": Reply("", error=ConnectionError("no route to host"))})
    answer = await way(cascade(models=[broken, ScriptedModel("large")]), "q", {"callbacks": [tracer]})
    with pytest.raises(CascadeExhaustedError) as caught:
        await way(cascade(models=[broken, broken]), "q", {"callbacks": [tracer]})

    escalated, exhausted = tracer.roots
    assert str(answer.text) == "large: q"
    assert ["ModelError('ConnectionError')" in str(run.error) for run in escalated.child_runs] == [True, False]
    assert ["ModelError('ConnectionError')" in str(run.error) for run in exhausted.child_runs] == [True, True]
    assert [attempt.decision for attempt in caught.value.attempts] == ["fail", "fail"]


@pytest.mark.parametrize("way", ["stream", "astream", "ainvoke"])
async def test_attempts_of_a_call_that_was_left_are_reported(provider, way):
    """While the cascade's own run is still open: a tracer would take what comes later for a run of its own."""
    small, large = provider(p=0.2), provider(text="It is 42", pause_s=0.2)
    models = [ChatOpenAI(**each.settings(model=name)) for name, each in (("small", small), ("large", large))]
    tracer, names = Tracer(), list[str]()

    class Names(BaseCallbackHandler):
        def on_chain_start(self, *args: Any, name: str, **kwargs: Any) -> None:
            names.append(name)

    llm, config = cascade(models=models), {"callbacks": [tracer, Names()]}
    if way == "stream":
        chunks = llm.stream(HARD, config)
        next(chunks)
        chunks.close()
    elif way == "astream":
        achunks = llm.astream(HARD, config)
        await anext(achunks)
        await achunks.aclose()
    else:
        call = asyncio.create_task(llm.ainvoke(HARD, config))
        while not large.asked:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert names == ["attempt:small", "attempt:large"]
    if way != "ainvoke":  # whose run LangChain itself leaves open
        (root,) = tracer.roots
        assert [run.name for run in root.child_runs] == names


async def test_asynchronous_handlers_are_awaited():
    class Names(AsyncCallbackHandler):
        def __init__(self) -> None:
            self.names: list[str] = []

        async def on_chain_start(self, *args: Any, name: str, **kwargs: Any) -> None:
            self.names.append(name)

    handler = Names()
    await cascade().ainvoke(HARD, {"callbacks": [handler]})
    await read(cascade().astream(HARD, {"callbacks": [handler]}))

    assert handler.names == ["attempt:small", "attempt:large"] * 2


async def test_usage_is_counted_once_for_every_attempt():
    """Whether the handler is given along or attaches itself to every run of its context."""
    llm = cascade()
    expected = {llm.model_name: llm.invoke(HARD).usage_metadata["total_tokens"]}
    for way in WAYS:
        handler = UsageMetadataCallbackHandler()
        with get_usage_metadata_callback() as ambient:
            await way(llm, HARD, {"callbacks": [handler]})

        for usage in (handler.usage_metadata, ambient.usage_metadata):
            assert {name: counted["total_tokens"] for name, counted in usage.items()} == expected


async def test_no_draft_is_visible_to_whoever_reads_a_stream():
    """Not even as the output of a run: handlers that feed streams are not told of attempts."""
    chain = ChatPromptTemplate.from_template("{q}") | cascade() | StrOutputParser()
    events = [event async for event in chain.astream_events({"q": HARD}, {"callbacks": [Tracer()]})]

    assert "seven" not in str(events)
    assert sum(event["event"] == "on_chat_model_start" for event in events) == 1
    tokens = [e["data"]["chunk"].content for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(tokens) == "It is 42"


async def test_langgraph_streams_the_answer_alone():
    llm = cascade()
    graph = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [llm.invoke(state["messages"])]})
    graph.add_edge(START, "answer")
    app = graph.compile()
    asked = {"messages": [HumanMessage(HARD)]}

    for parts in (
        list(app.stream(asked, stream_mode="messages")),
        [part async for part in app.astream(asked, stream_mode="messages")],
    ):
        assert "".join(message.content for message, _ in parts) == "It is 42"


async def test_handlers_that_no_run_below_inherits_are_not_told():
    """As for any runnable: a cascade's own callbacks see its own run."""
    own = Tracer()
    merged(cascade(callbacks=[own]).stream(HARD))
    cascade(callbacks=[own]).invoke(HARD)

    assert [(root.run_type, root.child_runs) for root in own.roots] == [("llm", [])] * 2


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
async def test_handlers_of_the_context_are_told(way):
    """As of any run below: `collect_runs` attaches itself to each."""
    tracer = Tracer()
    for config in ({}, {"callbacks": [tracer]}):
        with collect_runs() as collected:
            await way(cascade(), HARD, config)

        (root,) = collected.traced_runs
        assert [run.name for run in root.child_runs] == ["attempt:small", "attempt:large"]
    assert [run.name for run in tracer.roots[0].child_runs] == ["attempt:small", "attempt:large"]


def test_an_id_that_the_caller_chose_is_kept():
    from uuid import uuid4

    tracer, chosen = Tracer(), uuid4()
    merged(cascade().stream(HARD, {"callbacks": [tracer], "run_id": chosen}))

    assert tracer.roots[0].id == chosen


def test_a_cascade_within_a_cascade_stays_out_of_the_outer_ones_runs():
    """The stage's callbacks are its own, also on the way through LangChain's `stream`."""
    tracer = Tracer()
    outer = ConfidenceCascadeLLM(models=[cascade()])

    merged(outer.stream(HARD, {"callbacks": [tracer]}))

    (root,) = tracer.roots
    assert [run.name for run in root.child_runs] == [f"attempt:{outer.cascade.stages[0].model.name}"]
    assert root.child_runs[0].child_runs == []


def test_a_stages_message_is_shown_without_its_accounts():
    said = AIMessage("hello", response_metadata={"logprobs": None, "model_name": "m"}, id="1")
    tracer = Tracer()
    ConfidenceCascadeLLM(models=[GenericFakeChatModel(messages=iter([said]))]).invoke("q", {"callbacks": [tracer]})

    output = tracer.roots[0].child_runs[0].outputs["output"]
    assert (output.content, output.response_metadata, output.usage_metadata) == ("hello", {}, None)


def test_an_exhausted_cascade_shows_no_answer_in_its_message():
    """What was said is in attributes, out of logs."""
    models = [
        ScriptedModel("small", {"q": ("secret draft", 0.1)}),
        ScriptedModel("large", lambda _: Reply("", error=ModelError("down"))),
    ]
    with pytest.raises(CascadeExhaustedError) as caught:
        cascade(models=models, on_exhausted="raise").invoke("q")

    assert "secret" not in f"{caught.value}{caught.value!r}"
    draft, none = caught.value.responses
    assert (draft.text, none) == ("secret draft", None)
    assert not isinstance(caught.value, ModelError)
