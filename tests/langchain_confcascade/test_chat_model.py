"""`ConfidenceCascadeLLM` where LangChain's users meet it: calls, streams, chains, callbacks, copies."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from confcascade import (
    CascadeExhaustedError,
    ConfigurationError,
    Request,
    Stage,
    StreamBrokenError,
    TextRouter,
    TokenProbability,
    trace,
)
from confcascade.testing import Reply, ScriptedModel, same_record
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import (
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import (
    BaseChatModel,
    FakeListChatModel,
    FakeMessagesListChatModel,
    GenericFakeChatModel,
)
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.tracers.context import collect_runs
from pydantic import Field

from langchain_confcascade import ConfidenceCascadeLLM


class RuleModel(BaseChatModel):
    """Answers by rule, word by word, as an API would: log-probabilities only where asked for, usage, stop sequences."""

    model: str
    rules: dict[str, Any] = Field(default_factory=dict)
    logprobs: bool | None = None
    broken: bool = False
    seen: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "rule"

    def _chunks(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> Iterator[AIMessageChunk]:
        self.seen.append({"messages": list(messages), "stop": stop, **options})
        if self.broken:
            raise ConnectionError("no route to host")
        query = str(messages[-1].text)
        said = self.rules.get(query, f"{self.model} says {query}")
        text, p = said if isinstance(said, tuple) else (said, 0.99)
        if isinstance(text, AIMessageChunk):
            yield text
            text = ""
        for word in stop or ():
            text = text.partition(word)[0]
        words = re.findall(r"\s*\S+", text) or [""]
        for i, word in enumerate(words):
            entry = {"token": word, "logprob": math.log(p), "bytes": list(word.encode()), "top_logprobs": []}
            chunk = AIMessageChunk(content=word, response_metadata={"model_provider": "rule"})
            if options.get("logprobs"):
                chunk.response_metadata["logprobs"] = {"content": [entry]}
            if i == len(words) - 1:
                accounts = {"finish_reason": "stop", "model_name": self.model, "provider_field": "kept"}
                chunk.response_metadata |= accounts
                usage = {"input_tokens": len(query.split()), "output_tokens": len(words)}
                chunk.usage_metadata = UsageMetadata(**usage, total_tokens=sum(usage.values()))
                chunk.chunk_position = "last"
            yield chunk

    def _generate(self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any) -> ChatResult:
        first, *rest = self._chunks(messages, stop, kwargs)
        whole = first + rest
        message = AIMessage(
            content=whole.content,
            tool_calls=whole.tool_calls,
            usage_metadata=whole.usage_metadata,
            response_metadata=whole.response_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop, kwargs):
            yield ChatGenerationChunk(message=chunk)

    async def _agenerate(self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages, stop, **kwargs)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop, kwargs):
            await asyncio.sleep(0)
            yield ChatGenerationChunk(message=chunk)


EASY, HARD = "capital of France", "meaning of life"


def small(**parameters: Any) -> RuleModel:
    return RuleModel(model="small", rules={EASY: ("It is Paris", 0.95), HARD: ("Maybe seven", 0.4)}, **parameters)


def large(**parameters: Any) -> RuleModel:
    return RuleModel(model="large", rules={HARD: "It is 42"}, **parameters)


def cascade(**parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(**{"models": [small(), large()], "threshold": 0.9} | parameters)


def record(message: BaseMessage) -> dict[str, Any]:
    found = message.response_metadata["confcascade"]
    assert isinstance(found, dict)
    return found


async def six_ways(llm: ConfidenceCascadeLLM, query: Any) -> list[Any]:
    """The answers to one query of every method that asks it."""
    chunks = list(llm.stream(query))
    achunks = [chunk async for chunk in llm.astream(query)]
    return [
        llm.invoke(query),
        await llm.ainvoke(query),
        chunks[0] + chunks[1:],
        achunks[0] + achunks[1:],
        llm.batch([query])[0],
        (await llm.abatch([query]))[0],
    ]


class Counting(BaseCallbackHandler):
    """Counts what a user's callbacks see."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.ends: list[Any] = []

    def on_chat_model_start(self, serialized: dict[str, Any], messages: Any, **kwargs: Any) -> None:
        self.starts.append({"serialized": serialized, "messages": messages, **kwargs})

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.ends.append(response)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(("query", "text", "by"), [(EASY, "It is Paris", "small"), (HARD, "It is 42", "large")])
async def test_all_six_ways_give_the_same_answer_and_record(query, text, by):
    """invoke, ainvoke, stream, astream, batch and abatch agree; sync ones work inside a running event loop, too."""
    first, *others = await six_ways(cascade(), query)

    assert (first.content, record(first)["answered_by"]) == (text, by)
    for other in others:
        assert other.content == text
        assert same_record(record(other), record(first))
        assert other.usage_metadata == first.usage_metadata
        assert {**other.response_metadata, "confcascade": None}.keys() == first.response_metadata.keys()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5),
    st.floats(0.1, 1.0),
    st.sampled_from(["mean", "min", "product", "first"]),
)
def test_ways_agree_whatever_the_probabilities(p, threshold, aggregate):
    """Signals that decide early abort or release in streams; the record is still that of invoke."""
    words = " ".join("word" for _ in p)
    models = [ScriptedModel("small", {"q": Reply(words, p)}), ScriptedModel("large")]
    llm = ConfidenceCascadeLLM(models=models, threshold=threshold, signals=[TokenProbability(aggregate=aggregate)])

    first, *others = asyncio.run(six_ways(llm, "q"))

    assert all(same_record(record(other), record(first)) for other in others)
    assert all(other.content == first.content for other in others)


@pytest.mark.parametrize(("query", "by"), [(EASY, "small"), (HARD, "large")])
async def test_a_router_of_texts_decides_before_the_model_is_asked(query, by):
    """Whatever the model is: it needs no log-probabilities, and a question that it rejects costs nothing of the model.

    It reads the last message of the user's, as LangChain's messages come to it.
    """
    questions = [f"{question} {i}" for i in range(40) for question in (EASY, HARD)]
    router = TextRouter.fit(questions, [question.startswith(EASY) for question in questions], model="small")
    llm = ConfidenceCascadeLLM(stages=[Stage(asked := small(), [router], {"router": 0.5}), Stage(large())])

    for answer in await six_ways(llm, [SystemMessage(HARD), HumanMessage(EASY), AIMessage("?"), HumanMessage(query)]):
        first = record(answer)["attempts"][0]
        assert record(answer)["answered_by"] == by
        assert first["scores"]["router"]["value"] == pytest.approx(float(router.predict([query])[0]))
        assert (first["usage"]["input_tokens"] > 0) == (by == "small")
    assert len(asked.seen) == (6 if by == "small" else 0)
    assert not any("logprobs" in options for options in asked.seen)


async def test_a_rejected_draft_is_never_seen_in_a_stream():
    for chunks in (list(cascade().stream(HARD)), [chunk async for chunk in cascade().astream(HARD)]):
        assert [chunk.content for chunk in chunks[:-1]] == ["It", " is", " 42"]
        assert not any("seven" in str(chunk) for chunk in chunks)


def test_an_accepted_draft_streams_as_soon_as_nothing_can_withdraw_it():
    """The first token decides, so the rest is shown while it is still being written."""
    model = ScriptedModel("small", {"q": Reply("a b c", 0.99, error=ConnectionError("cut"), after=2)})
    llm = ConfidenceCascadeLLM(models=[model, large()], threshold=0.9, signals=[TokenProbability(aggregate="first")])
    shown: list[Any] = []

    with pytest.raises(StreamBrokenError):
        collect(llm.stream("q"), shown)

    assert shown == ["a", " b"]


def collect(chunks: Iterator[AIMessageChunk], shown: list[Any]) -> None:
    for chunk in chunks:
        shown.append(chunk.content)


@pytest.mark.parametrize("query", [EASY, HARD])
def test_exactly_one_chunk_of_a_stream_carries_the_accounts(query):
    """What the stage's own chunks carried is taken off them, but for how their content is to be read."""
    chunks = list(cascade().stream(query))

    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.response_metadata == {"model_provider": "rule"} for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_counts_every_attempt():
    """Three prompt tokens each; two words of the draft, three of the answer."""
    answer = cascade().invoke(HARD)

    assert answer.usage_metadata == {"input_tokens": 6, "output_tokens": 5, "total_tokens": 11}
    assert record(answer)["usage"]["output_tokens"] == 5


def test_usage_is_none_where_no_model_tells_any():
    llm = ConfidenceCascadeLLM(models=[GenericFakeChatModel(messages=iter(["hello there"]))])

    assert llm.invoke("hi").usage_metadata is None


def test_the_answer_keeps_provider_fields_under_a_name_of_its_own():
    llm = cascade()
    answer = llm.invoke(EASY)

    assert answer.response_metadata["provider_field"] == "kept"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert "logprobs" not in answer.response_metadata  # which nobody asked for
    assert answer.response_metadata["model_name"] == llm.model_name == f"confcascade-{llm.cascade.policy_id}"
    assert not re.search(r"gpt|claude|grok|gemini|o\d", llm.model_name)


def test_tool_calls_survive_in_whole_and_streamed_answers():
    call = {"name": "add", "args": '{"a": 1}', "id": "call_1", "index": 0}
    model = RuleModel(model="m", rules={"q": AIMessageChunk(content="", tool_call_chunks=[call])})
    llm = ConfidenceCascadeLLM(models=[model])
    chunks = list(llm.stream("q"))

    for answer in (llm.invoke("q"), chunks[0] + chunks[1:]):
        assert answer.tool_calls == [{"name": "add", "args": {"a": 1}, "id": "call_1", "type": "tool_call"}]
        assert record(answer)["attempts"][0]["decision"] == "accept"


def test_answers_are_copies_with_ids_of_their_own():
    """A fake or a cache may give one message object twice; nothing of a call may stay on it."""
    shared = AIMessage(content="hello", id="shared")
    llm = ConfidenceCascadeLLM(models=[GenericFakeChatModel(messages=iter([shared, shared]))])

    first, second = llm.invoke("a"), llm.invoke("b")

    assert first.id != second.id
    assert first.id.startswith("lc_run--")
    assert (shared.id, shared.response_metadata) == ("shared", {})


def test_core_models_see_a_plain_view_of_the_messages():
    requests: list[Request] = []

    def script(request: Request) -> str:
        requests.append(request)
        return "fine"

    llm = ConfidenceCascadeLLM(models=[ScriptedModel("m", script)])
    call = {"name": "f", "args": {}, "id": "1"}
    llm.invoke(
        [
            SystemMessage("be kind"),
            HumanMessage([{"type": "text", "text": "hi"}]),
            AIMessage("", tool_calls=[call]),
            ToolMessage("7", tool_call_id="1"),
        ],
        max_tokens=5,
        temperature=0.5,
        stop=["END"],
        seed=3,
    )

    request = requests[0]
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", ""),
        ("tool", "7"),
    ]
    assert (request.max_tokens, request.temperature, request.stop, request.options) == (5, 0.5, ("END",), {"seed": 3})


@pytest.mark.parametrize("query", [EASY, HARD])
def test_stop_and_parameters_reach_every_stage(query):
    models = [small(), large()]
    answer = cascade(models=models).invoke(query, stop=[" is"], seed=3)

    assert "is" not in answer.content
    for model in models[: len(record(answer)["attempts"])]:
        assert (model.seen[0]["stop"], model.seen[0]["seed"]) == ([" is"], 3)


def test_log_probabilities_are_asked_for_per_call_and_only_where_a_signal_reads_them():
    models = [small(), large()]
    before = [model.model_dump(exclude={"seen"}) for model in models]
    cascade(models=models).invoke(HARD)

    assert [model.seen[0].get("logprobs") for model in models] == [True, None]
    assert [model.model_dump(exclude={"seen"}) for model in models] == before


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize("on_error", ["escalate", "raise"])
async def test_a_failed_model_escalates_or_raises(on_error):
    llm = cascade(models=[small(broken=True), large()], on_error=on_error)

    if on_error == "raise":
        with pytest.raises(ConnectionError):
            llm.invoke(EASY)
        with pytest.raises(ConnectionError):
            list(llm.stream(EASY))
        return
    first, *others = await six_ways(llm, EASY)
    assert first.content == "large says capital of France"
    assert record(first)["attempts"][0]["error"] == "ConnectionError"
    assert all(same_record(record(other), record(first)) for other in others)


async def test_a_failed_last_model_leaves_the_best_earlier_answer_or_raises():
    models = [small(), large(broken=True)]
    first, *others = await six_ways(cascade(models=models, on_exhausted="best"), HARD)

    assert (first.content, record(first)["degraded"]) == ("Maybe seven", True)
    assert all(other.content == "Maybe seven" for other in others)
    assert all(same_record(record(other), record(first)) for other in others)
    for caught in (CascadeExhaustedError, ConnectionError):  # both: of the model's own class, too
        with pytest.raises(caught, match=r"The last stage, 'large', gave no answer \(ConnectionError\)"):
            cascade(models=models).invoke(HARD)


def test_a_rejected_tool_call_never_comes_back():
    """An agent would act on it, without a look at the record."""
    call = {"name": "add", "args": '{"a": 1}', "id": "call_1", "index": 0}
    drafting = RuleModel(model="small", rules={"q": AIMessageChunk(content="", tool_call_chunks=[call])})
    llm = cascade(models=[drafting, large(broken=True)], on_exhausted="best")

    for ask in (llm.invoke, lambda query: list(llm.stream(query))):
        with pytest.raises(CascadeExhaustedError, match="no earlier stage has a complete one"):
            ask("q")


@pytest.mark.parametrize(
    "content", ["", [{"type": "image", "url": "https://example.org/a.png"}]], ids=["empty", "image"]
)
def test_the_last_model_answers_as_it_would_alone_also_without_a_word(content):
    llm = cascade(models=[small(), FakeMessagesListChatModel(responses=[AIMessage(content)])])

    answer = llm.invoke(HARD)

    assert (answer.content, record(answer)["degraded"]) == (content, False)
    assert record(answer)["attempts"][-1]["reason"] == "last stage (empty answer)"


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio"])
def test_a_model_that_takes_text_alone_is_not_asked_about_more(kind):
    """It would answer, and not know what it had not seen."""
    blind, seeing = ScriptedModel("blind", lambda _: ("a cat", 1.0)), FakeListChatModel(responses=["a dog"])
    message = HumanMessage([{"type": "text", "text": "What is this?"}, {"type": kind, kind: {}}])

    answer = ConfidenceCascadeLLM(models=[blind, seeing], threshold=0.5).invoke([message])

    assert (answer.content, record(answer)["attempts"][0]["reason"]) == ("a dog", "the model takes only text")
    assert not blind.calls


def test_numpys_thresholds_are_numbers():
    """Quantiles of one's own scores, say: records stay JSON."""
    for threshold in (np.quantile([0.8, 0.9, 0.95], 0.5), np.float32(0.9)):
        answer = cascade(threshold=threshold).invoke(HARD)

        json.dumps(answer.response_metadata)
    with pytest.raises(ConfigurationError, match="must be a number"):
        cascade(threshold=np.array([0.9, 0.8]))


def test_a_model_without_log_probabilities_escalates_with_that_reason():
    llm = cascade(models=[GenericFakeChatModel(messages=iter(["well"])), large()])

    attempt = record(llm.invoke(HARD))["attempts"][0]

    assert (attempt["decision"], attempt["scores"]["p_t"]["value"]) == ("escalate", None)
    assert "no log-probabilities" in attempt["reason"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"models": [small(), large()]}, "`threshold` is missing"),
        ({"models": [small(), large()], "threshold": 1.5}, r"number in \[0, 1\]"),
        ({"models": [small(), large()], "threshold": {"p_x": 0.9}}, "p_x"),
        ({"models": []}, "at least one stage"),
        ({"models": small()}, "must be lists, smallest first. Got one RuleModel"),
        ({"models": "openai:gpt-4o"}, "must be a list"),
        (
            {"models": ["nobody-knows"]},
            "must begin with openai:, local:, llamacpp:, bundled:, or be one that",
        ),
        ({"models": [3]}, "as `init_chat_model` takes them. Got int"),
        ({"models": [StrOutputParser()]}, "Got StrOutputParser"),
        ({"models": [StrOutputParser().bind()]}, "Got StrOutputParser"),
        ({}, "either `models`"),
        ({"models": [large()], "stages": [Stage(large())]}, "Got both"),
        ({"stages": [Stage(small()), Stage(large())]}, "no signal"),
        ({"models": [large()], "on_error": "ignore"}, "`on_error`"),
        ({"models": [large()], "on_exhausted": "ignore"}, "`on_exhausted`"),
    ],
)
def test_bad_input_is_one_line_when_the_cascade_is_built(parameters, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        ConfidenceCascadeLLM(**parameters)

    assert "\n" not in str(caught.value)


def test_a_model_of_llamaindex_is_sent_to_its_own_class():
    from llama_index.core.llms import MockLLM

    with pytest.raises(ConfigurationError, match=r"llamaindex_confcascade\.ConfidenceCascadeLLM"):
        cascade(models=[MockLLM(), large()])


def test_a_model_per_call_is_refused():
    """It would replace every stage's."""
    with pytest.raises(ConfigurationError, match="`model` cannot be given per call"):
        cascade().invoke(EASY, model="gpt-4o")


def test_no_message_is_an_error():
    with pytest.raises(ConfigurationError, match="at least one message"):
        cascade().invoke([])


async def test_astream_can_be_cancelled():
    """Cancellation is no failure: nothing escalates, nothing is answered."""
    slow = ScriptedModel("slow", {"q": Reply("late", 0.99, delay_s=60)})
    answering = ScriptedModel("large")
    llm = cascade(models=[slow, answering])

    async def read() -> None:
        async for _ in llm.astream("q"):
            pass

    for task in (asyncio.create_task(read()), asyncio.create_task(llm.ainvoke("q"))):
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert answering.calls == []


def test_a_stream_can_be_left():
    chunks = cascade().stream(HARD)
    next(chunks)
    chunks.close()


# ---------------------------------------------------------------------- callbacks


def test_callbacks_see_one_call_and_no_draft():
    counting = Counting()
    llm = cascade(models=[small(), large().bind(seed=1)])
    chain = ChatPromptTemplate.from_template("{q}") | llm | StrOutputParser()

    chain.invoke({"q": HARD}, {"callbacks": [counting]})
    list(chain.stream({"q": HARD}, {"callbacks": [counting]}))

    assert len(counting.starts) == len(counting.ends) == 2
    assert "".join(counting.tokens) == "It is 42"
    assert counting.starts[0]["invocation_params"]["stages"] == ["small", "large"]


async def test_callbacks_see_one_call_when_asynchronous():
    counting = Counting()
    chain = (
        ChatPromptTemplate.from_template("{q}") | cascade(models=[small().bind(seed=1), large()]) | StrOutputParser()
    )

    await chain.ainvoke({"q": HARD}, {"callbacks": [counting]})
    events = [event async for event in chain.astream_events({"q": HARD}, {"callbacks": [counting]}, version="v2")]

    assert len(counting.starts) == 2
    assert "".join(counting.tokens) == "It is 42"
    streamed = [event["data"]["chunk"].content for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(streamed) == "It is 42"


async def test_usage_is_counted_once():
    """Whether the handler is passed along or attaches itself to every run of its context."""
    llm, handler = cascade(), UsageMetadataCallbackHandler()

    llm.invoke(HARD, {"callbacks": [handler]})
    with get_usage_metadata_callback() as ambient:
        await llm.ainvoke(HARD)
        list(llm.stream(HARD))
        [chunk async for chunk in llm.astream(HARD)]

    assert {name: usage["total_tokens"] for name, usage in handler.usage_metadata.items()} == {llm.model_name: 11}
    assert {name: usage["total_tokens"] for name, usage in ambient.usage_metadata.items()} == {llm.model_name: 33}


def test_langsmith_sees_the_cascade_and_its_attempts(monkeypatch):
    """Switched on by the environment; the stages themselves stay out of it."""
    runs: list[Any] = []
    monkeypatch.setattr(
        "langchain_core.tracers.langchain.LangChainTracer._persist_run_single", lambda _, run: runs.append(run)
    )
    monkeypatch.setattr("langchain_core.tracers.langchain.LangChainTracer._update_run_single", lambda *_: None)
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    from langsmith.utils import get_env_var

    get_env_var.cache_clear()
    try:
        with collect_runs() as collected:
            cascade().invoke(HARD)
            list(cascade().stream(HARD))
    finally:
        monkeypatch.undo()
        get_env_var.cache_clear()

    assert [run.name for run in collected.traced_runs] == ["ConfidenceCascadeLLM"] * 2
    assert [run.name for run in runs] == ["ConfidenceCascadeLLM", "attempt:small", "attempt:large"] * 2
    assert [run.parent_run_id for run in runs] == [None, *[runs[0].id] * 2, None, *[runs[3].id] * 2]


def test_callbacks_of_a_stage_still_see_that_stage():
    counting = Counting()
    cascade(models=[small(callbacks=[counting]), large()]).invoke(HARD)

    assert len(counting.starts) == 1


def test_nothing_that_tracers_keep_contains_a_stages_settings():
    secret = "sk-very-secret"
    counting = Counting()
    cascade(models=[small(metadata={"key": secret}), large()]).invoke(EASY, {"callbacks": [counting]})

    assert counting.starts
    assert secret not in str(counting.starts)


def test_traces_name_the_cascade():
    llm = cascade()

    params = llm._get_ls_params(stop=["x"])

    assert params["ls_provider"] == "confcascade"
    assert params["ls_model_name"] == llm.model_name
    assert params["ls_stop"] == ["x"]


# ---------------------------------------------------------------------- traces of records


async def test_trace_collects_records_where_no_message_survives():
    chain = ChatPromptTemplate.from_template("{q}") | cascade() | StrOutputParser()
    queries = [{"q": EASY}, {"q": HARD}, {"q": EASY}]

    with trace() as t:
        assert chain.invoke(queries[1]) == "It is 42"
        chain.batch(queries)
        await chain.ainvoke(queries[0])
        await chain.abatch(queries)
        assert "".join(chain.stream(queries[0])) == "It is Paris"
        assert "".join([part async for part in chain.astream(queries[1])]) == "It is 42"

    assert len(t.records) == 1 + 3 + 1 + 3 + 2
    assert sorted({record.answered_by for record in t.records}) == ["large", "small"]
    chain.invoke(queries[0])
    assert len(t.records) == 10


def test_a_batch_keeps_its_order_and_its_errors():
    llm = cascade(models=[small(), large()])

    assert [answer.content for answer in llm.batch([EASY, HARD] * 20)] == ["It is Paris", "It is 42"] * 20
    failed, answered = llm.batch([[], EASY], return_exceptions=True)
    assert isinstance(failed, ConfigurationError)
    assert answered.content == "It is Paris"


# ---------------------------------------------------------------------- copies


def scripted() -> ConfidenceCascadeLLM:
    models = [ScriptedModel("small", {"q": ("draft", 0.5)}), ScriptedModel("large", {"q": "answer"})]
    return ConfidenceCascadeLLM(models=models, threshold=0.9)


@pytest.mark.parametrize(
    "copied",
    [
        lambda llm: llm.model_copy(),
        lambda llm: llm.model_copy(deep=True),
        lambda llm: pickle.loads(pickle.dumps(llm)),
        lambda llm: pickle.loads(pickle.dumps(llm.bind(stop=["x"]))),
    ],
)
def test_copies_answer_alike(copied: Callable[[Any], Any]):
    llm = scripted()
    llm.invoke("q")

    assert same_record(record(copied(llm).invoke("q")), record(llm.invoke("q")))


def test_changed_fields_change_the_cascade_and_not_the_original():
    llm = scripted()
    lenient = llm.model_copy(update={"threshold": 0.4})
    assigned = scripted()
    assigned.threshold = 0.4
    chosen = llm.configurable_fields(threshold=ConfigurableField(id="threshold"))

    assert [model.invoke("q").content for model in (llm, lenient, assigned)] == ["answer", "draft", "draft"]
    assert chosen.invoke("q").content == "answer"
    assert chosen.invoke("q", {"configurable": {"threshold": 0.4}}).content == "draft"
    with pytest.raises(ConfigurationError, match=r"number in \[0, 1\]"):
        chosen.invoke("q", {"configurable": {"threshold": 4}})
    assert llm.model_name != lenient.model_name == assigned.model_name


def test_a_string_is_made_a_model_once(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    llm = ConfidenceCascadeLLM(models=["openai:gpt-4o-mini", "openai:gpt-4o"], threshold=0.9)

    again = ConfidenceCascadeLLM(**{name: getattr(llm, name) for name in ("models", "threshold")})

    assert [stage.model.name for stage in llm.cascade.stages] == ["gpt-4o-mini", "gpt-4o"]
    assert [a.model is b.model for a, b in zip(llm.cascade.stages, again.cascade.stages, strict=True)] == [True, True]


def test_parameters_of_every_chat_model_are_taken_and_unknown_ones_warned_of():
    with pytest.warns(UserWarning, match="no parameter 'max_retries', 'temperature', and ignores it") as told:
        llm = cascade(tags=["mine"], temperature=0, max_retries=3)

    assert [each.filename for each in told] == [__file__]
    assert llm.tags == ["mine"]
    assert repr(llm) == f"ConfidenceCascadeLLM(stages=['small', 'large'], policy_id='{llm.cascade.policy_id}')"


def test_the_cache_of_one_cascade_is_not_anothers():
    """Stages of the same name and other settings answer otherwise, and have keys of their own."""
    first, second = (ConfidenceCascadeLLM(models=[FakeListChatModel(responses=[text])]) for text in ("one", "two"))
    set_llm_cache(InMemoryCache())
    try:
        answers = [llm.invoke("q").content for llm in (first, second, first)]
    finally:
        set_llm_cache(None)

    assert answers == ["one", "two", "one"]
    assert first.model_name != second.model_name


def test_a_cascade_can_be_a_stage():
    inner = cascade()
    outer = ConfidenceCascadeLLM(models=[inner])

    with trace() as t:
        answer = outer.invoke(HARD)
        list(outer.stream(HARD))

    assert record(answer)["answered_by"] == inner.model_name
    assert [each.answered_by for each in t.records] == [inner.model_name] * 2  # the inner record is part of the outer
    assert t.records[0].usage.total_tokens == answer.usage_metadata["total_tokens"]


def test_tokens_are_counted_as_the_last_stage_counts_them():
    class Counting(FakeListChatModel):
        def get_token_ids(self, text: str) -> list[int]:
            return [1] * 42

    llm = ConfidenceCascadeLLM(models=[ScriptedModel("small"), Counting(responses=["a"])], threshold=0.5)

    assert (llm.get_num_tokens("a"), len(llm.get_token_ids("a"))) == (42, 42)


def test_importing_is_light():
    """Nothing heavy comes in that langchain_core does not load itself."""
    code = (
        "import sys\nfrom langchain_core.language_models import BaseChatModel\n"
        "before = set(sys.modules)\n"
        "import langchain_confcascade\n"
        "heavy = {'numpy', 'torch', 'sklearn', 'scipy', 'transformers', 'openai', 'llama_index', 'langsmith'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
