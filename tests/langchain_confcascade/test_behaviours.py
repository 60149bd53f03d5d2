"""Everything else that a chat model has: streams, stop sequences, configuration, caches, batches, tasks and threads."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx
import pytest
from confcascade import ConfigurationError, OpenAICompatibleModel, Request, Stage, TokenProbability, trace
from confcascade.asks import Generate
from confcascade.models.base import InThreads
from confcascade.testing import Reply, ScriptedModel, same_record
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_openai import ChatOpenAI
from pydantic import Field
from werkzeug import Response as HTTPResponse

from langchain_confcascade import ConfidenceCascadeLLM


class Chat(BaseChatModel):
    """Says `says`, word by word in a stream, and tells log-probabilities where asked; keeps what it was sent."""

    says: Any = "It is Paris"
    p: float = 0.99
    delay_s: float = 0.0
    logprobs: bool | None = None
    sent: list[Any] = Field(default_factory=list)
    log: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _chunks(self, messages: list[BaseMessage], stop: Sequence[str] | None, options: Any) -> list[AIMessageChunk]:
        self.sent.append(messages)
        if isinstance(self.says, list):
            return self.says
        text = self.says
        for word in stop or ():
            text = text.partition(word)[0]
        chunks = [AIMessageChunk(word) for word in re.findall(r"\s*\S+", text)] or [AIMessageChunk("")]
        for chunk in chunks if options.get("logprobs") else ():
            entry = {"token": chunk.content, "logprob": math.log(self.p), "top_logprobs": []}
            chunk.response_metadata = {"logprobs": {"content": [entry]}}
        return chunks

    def _generate(self, messages: Any, stop: Any = None, **options: Any) -> ChatResult:
        first, *rest = self._chunks(messages, stop, options)
        whole = first + rest
        fields = ("content", "additional_kwargs", "response_metadata", "tool_calls")
        message = AIMessage(**{field: getattr(whole, field) for field in fields})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: Any, stop: Any = None, **options: Any) -> ChatResult:
        await self._wait()
        return self._generate(messages, stop, **options)

    def _stream(self, messages: Any, stop: Any = None, **options: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop, options):
            self.log.append("said")
            yield ChatGenerationChunk(message=chunk)

    async def _astream(self, messages: Any, stop: Any = None, **options: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, **options):
            await self._wait()
            yield chunk

    async def _wait(self) -> None:
        self.log.append("waits")
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise


def record(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = message.response_metadata["confcascade"]
    return found


def cascade(*models: Any, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), **{"threshold": 0.9} | parameters)


def merged(chunks: Sequence[Any]) -> Any:
    return chunks[0] + list(chunks[1:])


async def four_ways(llm: Any, query: Any, **options: Any) -> list[Any]:
    return [
        llm.invoke(query, **options),
        await llm.ainvoke(query, **options),
        merged(list(llm.stream(query, **options))),
        merged([chunk async for chunk in llm.astream(query, **options)]),
    ]


# ---------------------------------------------------------------------- streams


def call_of_a_tool() -> list[AIMessageChunk]:
    pieces = [("add", "", "1"), (None, '{"a"', None), (None, ": 1}", None)]
    return [
        AIMessageChunk("", tool_call_chunks=[{"name": name, "args": args, "id": id_, "index": 0}])
        for name, args, id_ in pieces
    ]


async def test_a_call_of_a_tool_is_shown_as_it_comes():
    """There is no text to wait for: after the n-th piece was shown, the model has said no more than n."""
    model = Chat(says=call_of_a_tool())
    llm = cascade(Chat(p=0.1), model)
    said = []
    for chunk in llm.stream("q"):
        said.append((model.log.count("said"), bool(chunk.tool_call_chunks)))
    model.log.clear()
    async for chunk in llm.astream("q"):
        said.append((model.log.count("said"), bool(chunk.tool_call_chunks)))

    assert said == [(1, True), (2, True), (3, True), (3, False)] * 2


async def test_a_call_of_a_tool_is_whole_in_every_way():
    for answer in await four_ways(cascade(Chat(p=0.1), Chat(says=call_of_a_tool())), "q"):
        assert answer.tool_calls == [{"name": "add", "args": {"a": 1}, "id": "1", "type": "tool_call"}]


def test_a_call_that_cannot_be_read_is_the_last_stages_answer_all_the_same():
    """It has been shown: no earlier answer may follow it."""
    broken = AIMessageChunk("", tool_call_chunks=[{"name": "add", "args": '{"a": ', "id": "1", "index": 0}])
    answer = merged(list(cascade(Chat(says="seven", p=0.1), Chat(says=[broken])).stream("q")))

    assert answer.content == ""
    assert not record(answer)["degraded"]


def test_the_last_stage_streams_live_and_a_first_token_decides_at_once():
    small, large = Chat(says="a b c", p=0.99), Chat(says="d e f")
    llm = cascade(small, large, signals=[TokenProbability(aggregate="first")])

    assert [len(small.log) for _ in llm.stream("q")] == [1, 2, 3, 3]
    small.p = 0.1
    assert [len(large.log) for _ in llm.stream("q")] == [1, 2, 3, 3]


THOUGHTS = {
    "apart": [AIMessageChunk("", additional_kwargs={"reasoning_content": word}) for word in ("so", " it", " is")],
    "blocks": [AIMessageChunk([{"type": "thinking", "thinking": word, "index": 0}]) for word in ("so", " it", " is")],
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("thoughts", THOUGHTS)
async def test_the_last_stages_thoughts_stream_live(thoughts, alone):
    """After the n-th piece was shown, the model has said no more than n: who waits sees it think."""
    content = "42" if thoughts == "apart" else [{"type": "text", "text": "42", "index": 1}]
    model = Chat(says=[*THOUGHTS[thoughts], AIMessageChunk(content)])
    llm = cascade(model) if alone else cascade(Chat(p=0.1), model)
    said = []
    for _ in llm.stream("q"):
        said.append(model.log.count("said"))
    model.log.clear()
    async for _ in llm.astream("q"):
        said.append(model.log.count("said"))

    assert said == [1, 2, 3, 4, 4] * 2


def test_a_trace_holds_around_a_stream_that_is_read_in_other_contexts():
    """Each step in a fresh copy of the context, as Starlette reads a synchronous generator."""
    llm = cascade(Chat(p=0.1), Chat(says="It is 42"))
    traces = []

    def response() -> Iterator[str]:
        with trace() as t:
            traces.append(t)
            for chunk in llm.stream("q"):
                yield str(chunk.text)

    steps, told = response(), []
    while (piece := copy_context().run(next, steps, None)) is not None:
        told.append(piece)

    assert "".join(told) == "It is 42"
    assert [each.stage for each in traces[0].records] == [1]


@pytest.mark.parametrize("p", [0.95, 0.1])
async def test_stop_is_honoured_in_every_way_by_chat_models(p):
    for answer in await four_ways(cascade(Chat(p=p), Chat(says="It is 42")), "q", stop=[" is"]):
        assert answer.content == "It"
    for answer in await four_ways(cascade(Chat(p=p), Chat(says="It is 42")).bind(stop=[" is"]), "q"):
        assert answer.content == "It"


async def test_stop_is_honoured_in_every_way_by_local_models():
    pytest.importorskip("torch")
    from confcascade.models.bundled import bundled_model

    llm = ConfidenceCascadeLLM(models=[bundled_model("small")])
    whole = llm.invoke("Who is the mayor of Festen?", max_tokens=8).content
    end = whole[len(whole) // 2 :][:2]
    for answer in await four_ways(llm, "Who is the mayor of Festen?", max_tokens=8, stop=[end]):
        assert answer.content == whole.partition(end)[0] != ""


async def test_where_streams_are_switched_off_there_is_one_message():
    llm = cascade(Chat(p=0.1), Chat(says="It is 42"), disable_streaming=True)
    (whole,), awhole = list(llm.stream("q")), [chunk async for chunk in llm.astream("q")]

    assert (whole.content, record(whole)["answered_by"]) == ("It is 42", "Chat (2)")
    assert [chunk.content for chunk in awhole] == ["It is 42"]


# ---------------------------------------------------------------------- what passes through


async def test_multimodal_messages_and_provider_fields_pass_untouched():
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    message = HumanMessage(content, name="ann", additional_kwargs={"cache_control": "on"})
    said = [AIMessageChunk([{"type": "text", "text": "a cat", "index": 0}], additional_kwargs={"reasoning": "fur"})]
    models = Chat(p=0.1), Chat(says=said)

    for answer in await four_ways(cascade(*models), [message]):
        assert answer.content == [{"type": "text", "text": "a cat", "index": 0}]
        assert answer.additional_kwargs == {"reasoning": "fur"}
    for model in models:
        assert all(sent == [message] for sent in model.sent)


# ---------------------------------------------------------------------- configuration


class Starts(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs)


async def test_config_reaches_the_cascades_run_and_no_stage():
    starts = Starts()
    own = {"tags": ["t"], "metadata": {"user": "u"}, "run_name": "asked", "callbacks": [starts]}
    await four_ways(cascade(Chat(p=0.1), Chat()).with_config(own), "q")

    assert len(starts.seen) == 4
    for seen in starts.seen:
        assert (seen["tags"], seen["metadata"]["user"], seen["name"]) == (["t"], "u", "asked")


async def test_a_failed_cascade_can_be_tried_again():
    tries: list[int] = []

    def script(request: Request) -> Reply:
        tries.append(1)
        return Reply("yes", error=ConnectionError("busy") if len(tries) % 2 else None)

    llm = ConfidenceCascadeLLM(models=[ScriptedModel("m", script)]).with_retry(wait_exponential_jitter=False)

    assert llm.invoke("q").content == (await llm.ainvoke("q")).content == "yes"


async def test_fields_can_be_configured_per_call():
    llm = cascade(Chat(says="draft", p=0.5), Chat(says="final")).configurable_fields(
        threshold=ConfigurableField(id="strictness"), on_error=ConfigurableField(id="on_error")
    )
    lax: Any = {"configurable": {"strictness": 0.4}}

    assert [answer.content for answer in await four_ways(llm, "q", config=lax)] == ["draft"] * 4
    assert [answer.content for answer in await four_ways(llm, "q")] == ["final"] * 4
    assert [answer.content for answer in llm.batch(["q", "q"], [lax, {}])] == ["draft", "final"]


# ---------------------------------------------------------------------- drafts that are no answer


async def test_a_small_model_that_gives_no_answer_escalates_in_every_way():
    failures = {
        "raises": (Reply("", error=ConnectionError("no route")), "ConnectionError"),
        "breaks off": (Reply("It is", error=ConnectionError("reset"), after=1), "ConnectionError"),
        "times out": (Reply("", error=TimeoutError("60 s")), "TimeoutError"),
        "is empty": (Reply(""), "empty answer"),
        "is white space": (Reply(" \n "), "empty answer"),
    }
    small = ScriptedModel("small", {query: reply for query, (reply, _) in failures.items()})
    llm = cascade(small, ScriptedModel("large"))

    for query, (_, reason) in failures.items():
        for answer in await four_ways(llm, query):
            assert answer.content == f"large: {query}"
            assert [attempt["reason"] for attempt in record(answer)["attempts"]] == [reason, "last stage"]


async def test_a_timeout_of_the_models_own_client_escalates(httpserver):
    def late(_: Any) -> Any:
        time.sleep(0.2)
        return HTTPResponse("too late")

    httpserver.expect_request("/late/v1/chat/completions").respond_with_handler(late)
    url = httpserver.url_for("/late/v1")
    http = httpx.AsyncClient()  # of its own: langchain-openai shares one over event loops
    chat = ChatOpenAI(model="slow", base_url=url, api_key="none", timeout=0.05, max_retries=0, http_async_client=http)

    for answer in await four_ways(cascade(chat, ScriptedModel("large")), "q"):
        assert answer.content == "large: q"
        assert "TimeoutError" in record(answer)["attempts"][0]["error"]


@pytest.mark.parametrize(
    ("on_cut", "p", "by"), [("escalate", 0.95, "large"), ("keep", 0.95, "small"), ("keep", 0.1, "large")]
)
async def test_a_text_that_was_cut_off_escalates_or_is_judged_as_it_stands(on_cut, p, by):
    """The limit is the caller's and holds for every stage; the answer says that it was reached."""
    models = [ScriptedModel(name, {"q": (f"{name} says much", p)}) for name in ("small", "large")]

    for answer in await four_ways(cascade(*models, on_cut=on_cut), "q", max_tokens=2):
        assert (answer.content, record(answer)["answered_by"]) == (f"{by} says", by)
        assert answer.response_metadata["finish_reason"] == "length"


# ---------------------------------------------------------------------- cache and rate limiter


async def test_a_cached_answer_keeps_its_record_and_calls_no_stage():
    small, cache = Chat(p=0.95), InMemoryCache()
    llm = cascade(small, Chat(), cache=cache)
    first, again, later = llm.invoke("q"), llm.invoke("q"), await llm.ainvoke("q")

    assert len(small.sent) == 1
    assert record(again) == record(later)
    free = {"flops": 0.0, "tokens": 0, "usd": 0.0, "seconds": 0.0}
    assert "cached" not in record(first)
    for cached in (again, later):  # whoever adds up the costs of answers counts each once
        assert (record(cached)["cached"], record(cached)["cost"]) == (True, free)
        assert (record(cached)["usage"]["input_tokens"], record(cached)["cost_answering_stage"]) == (0, free)
        assert record(cached)["attempts"] == record(first)["attempts"]
    assert llm.batch(["q", "q"])[1].content == first.content
    assert len(small.sent) == 1


def test_cascades_that_may_answer_differently_share_no_entry():
    cache, small = InMemoryCache(), Chat(says="draft", p=0.5)
    changes: list[dict[str, Any]] = [
        {"threshold": 0.4},
        {"threshold": 0.6},
        {"threshold": 0.4, "signals": [TokenProbability(aggregate="min")]},
        {"threshold": 0.4, "on_exhausted": "best"},
        {"threshold": 0.4, "on_error": "raise"},
    ]
    for change in changes:
        cascade(small, Chat(says="final"), cache=cache, **change).invoke("q")
    assert len(small.sent) == len(changes)

    answers = [cascade(small, Chat(says="final"), cache=cache, **change).invoke("q") for change in changes]
    assert [answer.content for answer in answers] == ["draft", "final", "draft", "draft", "draft"]
    assert len(small.sent) == len(changes)


async def test_the_rate_limiter_counts_calls_of_the_cascade():
    class Counter(BaseRateLimiter):
        taken: int = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.taken += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire()

    limiter = Counter()
    await four_ways(cascade(Chat(p=0.1), Chat(), rate_limiter=limiter), "q")

    assert limiter.taken == 4


# ---------------------------------------------------------------------- batches


def local(size: int = 8, **parameters: Any) -> tuple[ConfidenceCascadeLLM, ScriptedModel, ScriptedModel]:
    """A local model that is sure of even numbers, and an API."""

    def script(request: Request) -> Reply:
        query = request.messages[-1].content
        if query == "bad":
            return Reply("", error=ValueError("a query that breaks the model"))
        return Reply(f"small {query}", 0.95 if int(query) % 2 == 0 else 0.1, delay_s=0.002)

    small = ScriptedModel("small", script, batch_size=size)
    api = ScriptedModel("api", lambda request: Reply(f"api {request.messages[-1].content}", delay_s=0.002))
    return cascade(small, api, **parameters), small, api


NUMBERS = [str(i) for i in range(64)]
EXPECTED = [f"{'api' if i % 2 else 'small'} {i}" for i in range(64)]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_batch_groups_the_calls_of_local_models(asynchronous):
    llm, small, api = local()
    chain = ChatPromptTemplate.from_template("{q}") | llm | StrOutputParser()
    queries = [{"q": number} for number in NUMBERS]
    with trace() as t:
        answers = await chain.abatch(queries) if asynchronous else chain.batch(queries)

    assert answers == EXPECTED
    sizes = [len(call) for call in small.calls]
    assert sum(sizes) == 64
    assert 4 < max(sizes) <= 8
    assert sum(sizes) / len(sizes) >= (8 if asynchronous else 2)
    assert [len(call) for call in api.calls] == [1] * 32
    assert len(t.records) == 64


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_batch_is_what_as_many_calls_are(asynchronous):
    """Callbacks, configuration, cache and errors are those of each input by itself."""
    starts = Starts()
    llm, *_ = local(cache=InMemoryCache())
    before = llm.invoke("4")
    inputs: list[Any] = ["2", "3", "4", "bad", []]
    configs = [{"callbacks": [starts], "tags": [f"t{i}"]} for i in range(len(inputs))]
    answers = (
        await llm.abatch(inputs, configs, return_exceptions=True)  # type: ignore[arg-type]
        if asynchronous
        else llm.batch(inputs, configs, return_exceptions=True)  # type: ignore[arg-type]
    )

    assert [getattr(answer, "content", type(answer)) for answer in answers[:4]] == [
        "small 2",
        "api 3",
        "small 4",
        "api bad",
    ]
    assert isinstance(answers[4], ConfigurationError)
    assert record(answers[3])["attempts"][0]["error"] == "ValueError"
    assert (record(answers[2])["cached"], record(answers[2])["attempts"]) == (True, record(before)["attempts"])
    assert sorted(seen["tags"][0] for seen in starts.seen) == ["t0", "t1", "t2", "t3", "t4"]
    assert same_record(record(answers[1]), record(local()[0].invoke("3")))
    with pytest.raises(ConfigurationError):
        await llm.abatch(["2", []]) if asynchronous else llm.batch(["2", []])


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("stages", ["local and API", "API"])
async def test_calls_to_apis_keep_to_the_concurrency(asynchronous, stages):
    running, most, lock = 0, 0, threading.Lock()

    class Counted(ScriptedModel):
        def generate(self, asks: Sequence[Generate]) -> Any:
            self.note(1)
            time.sleep(0.002)
            self.note(-1)
            return super().generate(asks)

        async def agenerate(self, asks: Sequence[Generate]) -> Any:
            self.note(1)
            await asyncio.sleep(0.002)
            self.note(-1)
            return ScriptedModel.generate(self, asks)

        def note(self, change: int) -> None:
            nonlocal running, most
            with lock:
                running += change
                most = max(most, running)

    api = Counted("api")
    small = ScriptedModel("small", lambda _: ("no", 0.1), batch_size=8)
    llm = cascade(small, api) if stages == "local and API" else ConfidenceCascadeLLM(models=[api])
    config: Any = {"max_concurrency": 3}
    answers = await llm.abatch(NUMBERS, config) if asynchronous else llm.batch(NUMBERS, config)

    assert [answer.content for answer in answers] == [f"api: {number}" for number in NUMBERS]
    assert most == 3


# ---------------------------------------------------------------------- tasks and threads


async def test_nothing_blocks_the_event_loop():
    class Busy(InThreads, ScriptedModel):
        """Computes for a while, as a local model does."""

        def generate(self, asks: Sequence[Generate]) -> Any:
            time.sleep(0.15)
            return super().generate(asks)

        def stream(self, ask: Generate) -> Iterator[Any]:
            time.sleep(0.15)
            yield from super().stream(ask)

    llm = cascade(Busy("small", {"q": ("draft", 0.1)}), Busy("large"))
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - started)

    beating = asyncio.create_task(beat())
    await llm.ainvoke("q")
    [chunk async for chunk in llm.astream("q")]
    await llm.abatch(["q", "q"])
    beating.cancel()

    assert len(gaps) > 60  # of 0.9 seconds; blocked, there would be a handful


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_cancelling_reaches_the_running_stage(way):
    slow, large = Chat(delay_s=60), Chat()
    llm = cascade(slow, large)

    async def ask() -> None:
        if way == "astream":
            [chunk async for chunk in llm.astream("q")]
        elif way == "abatch":
            await llm.abatch(["q", "r"])
        else:
            await llm.ainvoke("q")

    calls = 2 if way == "abatch" else 1
    task = asyncio.create_task(ask())
    while slow.log.count("waits") < calls:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert slow.log.count("cancelled") == calls
    assert large.sent == []


def numbered() -> ConfidenceCascadeLLM:
    def script(request: Request) -> Reply:
        query = request.messages[-1].content
        return Reply(f"small {query}", 0.95 if int(query) % 2 == 0 else 0.1, delay_s=0.001)

    return cascade(ScriptedModel("small", script), ScriptedModel("large", lambda r: f"large {r.messages[-1].content}"))


def check(answer: Any, i: int) -> None:
    by = "large" if i % 2 else "small"
    assert (answer.content, record(answer)["answered_by"]) == (f"{by} {i}", by)
    assert len(record(answer)["attempts"]) == 1 + i % 2


def test_64_threads_share_a_cascade_and_mix_up_nothing():
    llm = numbered()
    with ThreadPoolExecutor(64) as pool:
        answers = list(
            pool.map(lambda i: llm.invoke(str(i)) if i % 3 else merged(list(llm.stream(str(i)))), range(256))
        )

    for i, answer in enumerate(answers):
        check(answer, i)


async def test_1000_tasks_share_a_cascade_and_mix_up_nothing():
    llm = numbered()

    async def one(i: int) -> tuple[Any, Any]:
        with trace() as t:
            if i % 3:
                return await llm.ainvoke(str(i)), t
            return merged([chunk async for chunk in llm.astream(str(i))]), t

    for i, (answer, t) in enumerate(await asyncio.gather(*map(one, range(1000)))):
        check(answer, i)
        assert [collected.as_dict() for collected in t.records] == [record(answer)]


# ---------------------------------------------------------------------- copies


def test_what_is_written_down_of_a_cascade_holds_no_key():
    secret = "sk-very-secret"
    llm = cascade(ChatOpenAI(model="m", api_key=secret), OpenAICompatibleModel("n", api_key=secret))

    for written in (repr(llm), str(llm), dumps(llm), llm._get_llm_string(), str(llm.asdict()), str(llm.model_dump())):
        assert secret not in written


def test_a_dump_holds_no_header_of_a_stage():
    model = ChatOpenAI(model="m", api_key="none", default_headers={"Authorization": "Bearer SECRET"})
    bound = model.bind(extra_headers={"X-Key": "SECRET"})

    assert "SECRET" not in str(cascade(bound, model).model_dump())


def test_pickles_hold_no_key():
    """A key comes from the environment again, where the cascade is unpickled."""
    model = OpenAICompatibleModel("m", base_url="http://127.0.0.1:1/v1", api_key="sk-very-secret", max_retries=0)
    stages = [Stage(model, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large"))]
    llm = ConfidenceCascadeLLM(stages=stages)
    pickled = pickle.dumps(llm)

    assert b"sk-very-secret" not in pickled
    answer = pickle.loads(pickled).invoke("q")
    assert record(answer)["answered_by"] == "large"
    assert isinstance(answer, AIMessage)
