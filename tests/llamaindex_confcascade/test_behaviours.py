"""What an application relies on: streams, stop, models that fail, tasks, threads, and streams that are left."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confcascade import Request, TokenProbability, trace
from confcascade.asks import Generate
from confcascade.models.base import InThreads
from confcascade.testing import Reply, ScriptedModel
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.llms.openai import OpenAI
from werkzeug import Response as HTTPResponse

from llamaindex_confcascade import ConfidenceCascadeLLM


class Chat(LLM):
    """Says `says`, word by word in a stream, and tells log-probabilities where asked; keeps what it was sent."""

    says: str = "It is Paris"
    p: float = 0.99
    delay_s: float = 0.0
    logprobs: bool | None = None
    sent: list[Any] = Field(default_factory=list)
    log: list[str] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="chat", is_chat_model=True)

    def _pieces(self, messages: Any, options: dict[str, Any]) -> Iterator[ChatResponse]:
        self.sent.append((list(messages), options))
        whole = self.says
        for word in options.get("stop") or ():
            whole = whole.partition(word)[0]
        words = re.findall(r"\s*\S+", whole)
        for i, word in enumerate(words):
            self.log.append("said")
            entry = {"token": word, "logprob": math.log(self.p), "top_logprobs": []}
            raw = {"choices": [{"logprobs": {"content": [entry]} if options.get("logprobs") else None}]}
            message = ChatMessage(role=MessageRole.ASSISTANT, content="".join(words[: i + 1]))
            yield ChatResponse(message=message, delta=word, raw=raw)

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        *others, last = self._pieces(messages, kwargs)
        told = [piece.raw["choices"][0]["logprobs"] for piece in (*others, last)]
        content = [entry for each in told if each for entry in each["content"]]
        last.raw = {"choices": [{"logprobs": {"content": content} if content else None}]}
        return last

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        await self._wait()
        return self.chat(messages, **kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
        def pieces() -> ChatResponseGen:
            try:
                yield from self._pieces(messages, kwargs)
            finally:
                self.log.append("closed")

        return pieces()

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        async def pieces() -> ChatResponseAsyncGen:
            try:
                for piece in self._pieces(messages, kwargs):
                    await self._wait()
                    yield piece
            finally:
                self.log.append("closed")

        return pieces()

    async def _wait(self) -> None:
        self.log.append("waits")
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    stream_complete = acomplete = astream_complete = complete


METHODS = [f"{a}{stream}{what}" for a in ("", "a") for stream in ("", "stream_") for what in ("chat", "complete")]
ASYNCHRONOUS = METHODS[4:]


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


def cascade(*models: Any, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), **{"threshold": 0.9} | parameters)


def text_of(response: ChatResponse | CompletionResponse) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


def record(response: Any) -> dict[str, Any]:
    found: dict[str, Any] = response.additional_kwargs["confcascade"]
    return found


async def answered(llm: LLM, method: str, query: str, **options: Any) -> Any:
    """The answer of a method: a stream's last item."""
    given = getattr(llm, method)(user(query) if "chat" in method else query, **options)
    if method.startswith("a"):
        given = await given
        return [item async for item in given][-1] if "stream" in method else given
    return list(given)[-1] if "stream" in method else given


async def eight_ways(llm: LLM, query: str, **options: Any) -> list[Any]:
    return [await answered(llm, method, query, **options) for method in METHODS]


# ---------------------------------------------------------------------- streams


async def test_the_last_stage_streams_live_and_a_first_token_decides_at_once():
    small, large = Chat(says="a b c", p=0.99), Chat(says="d e f")
    llm = cascade(small, large, signals=[TokenProbability(aggregate="first")])

    async def said(model: Chat) -> list[list[int]]:
        """How many words the model had said when each item of a stream was shown."""
        counts = []
        for method in ("stream_chat", "stream_complete"):
            counts.append([model.log.count("said") for _ in getattr(llm, method)(asked(method))])
            model.log.clear()
        for method in ("astream_chat", "astream_complete"):
            items = await getattr(llm, method)(asked(method))
            counts.append([model.log.count("said") async for _ in items])
            model.log.clear()
        return counts

    def asked(method: str) -> Any:
        return user("q") if "chat" in method else "q"

    assert await said(small) == [[1, 2, 3, 3]] * 4
    small.p = 0.1
    assert await said(large) == [[1, 2, 3, 3]] * 4


@pytest.mark.parametrize("p", [0.95, 0.1])
async def test_stop_is_honoured_in_every_way_by_chat_models(p):
    for stop in ([" is"], " is"):
        for answer in await eight_ways(cascade(Chat(p=p), Chat(says="It is 42")), "q", stop=stop):
            assert text_of(answer) == "It"


async def test_stop_is_honoured_in_every_way_by_local_models():
    pytest.importorskip("torch")
    from confcascade.models.bundled import bundled_model

    llm = ConfidenceCascadeLLM(models=[bundled_model("small")])
    query = "Who is the mayor of Festen?"
    whole = llm.complete(query, max_tokens=8).text
    end = whole[len(whole) // 2 :][:2]
    for answer in await eight_ways(llm, query, max_tokens=8, stop=[end]):
        assert text_of(answer) == whole.partition(end)[0] != ""


@pytest.mark.parametrize("method", ["stream_chat", "stream_complete", "astream_chat", "astream_complete"])
async def test_a_stream_that_is_left_closes_the_stages(method):
    """And not only when somebody collects garbage; the next stage is not asked."""
    small, large = Chat(says="a b c"), Chat()
    llm = cascade(small, large, signals=[TokenProbability(aggregate="first")])
    with trace() as t:
        stream = getattr(llm, method)(user("q") if "chat" in method else "q")
        if method.startswith("a"):
            stream = await stream
            assert (await anext(stream)).delta == "a"
            await stream.aclose()
            for _ in range(10):  # LlamaIndex's own generator around ours leaves it to the event loop to close it
                await asyncio.sleep(0)
        else:
            assert next(stream).delta == "a"
            stream.close()

    assert [entry for entry in small.log if entry != "waits"] == ["said", "closed"]
    assert large.sent == []
    assert [record.ended for record in t.records] == ["left"]


# ---------------------------------------------------------------------- what passes through


async def test_multimodal_messages_and_provider_fields_pass_untouched():
    blocks = [TextBlock(text="what is this?"), ImageBlock(url="http://x/y.png")]
    message = ChatMessage(role=MessageRole.USER, blocks=blocks, additional_kwargs={"cache_control": "on"})
    models = Chat(p=0.1), Chat()
    llm = cascade(*models)
    llm.chat([message], user="ann")
    await llm.achat([message], user="ann")
    list(llm.stream_chat([message], user="ann"))
    [item async for item in await llm.astream_chat([message], user="ann")]

    for model in models:
        assert [messages for messages, _ in model.sent] == [[message]] * 4
        assert all(options["user"] == "ann" for _, options in model.sent)


async def test_the_rate_limiter_counts_calls_of_the_cascade():
    class Counter(BaseRateLimiter):
        taken: int = 0

        def acquire(self, num_tokens: int = 0) -> None:
            self.taken += 1

        async def async_acquire(self, num_tokens: int = 0) -> None:
            self.taken += 1

    limiter = Counter()
    await eight_ways(cascade(Chat(p=0.1), Chat(), rate_limiter=limiter), "q")

    assert limiter.taken == 8


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
        for answer in await eight_ways(llm, query):
            assert text_of(answer) == f"large: {query}"
            assert [attempt["reason"] for attempt in record(answer)["attempts"]] == [reason, "last stage"]


async def test_a_timeout_of_the_models_own_client_escalates(httpserver):
    def late(_: Any) -> Any:
        time.sleep(0.2)
        return HTTPResponse("too late")

    httpserver.expect_request("/late/v1/chat/completions").respond_with_handler(late)
    url = httpserver.url_for("/late/v1")
    small = OpenAI(model="gpt-4o-mini", api_base=url, api_key="none", timeout=0.05, max_retries=0)

    for answer in await eight_ways(cascade(small, ScriptedModel("large")), "q"):
        assert text_of(answer) == "large: q"
        assert record(answer)["attempts"][0]["error"] == "APITimeoutError (from ReadTimeout)"


@pytest.mark.parametrize(
    ("on_cut", "p", "by"), [("escalate", 0.95, "large"), ("keep", 0.95, "small"), ("keep", 0.1, "large")]
)
async def test_a_text_that_was_cut_off_escalates_or_is_judged_as_it_stands(on_cut, p, by):
    """The limit is the caller's and holds for every stage."""
    models = [ScriptedModel(name, {"q": (f"{name} says much", p)}) for name in ("small", "large")]

    for answer in await eight_ways(cascade(*models, on_cut=on_cut), "q", max_tokens=2):
        assert (text_of(answer), record(answer)["answered_by"]) == (f"{by} says", by)


# ---------------------------------------------------------------------- usage


async def test_usage_sums_every_attempt_in_every_way():
    """Also of drafts that were ended early, and of attempts that gave no answer."""
    small = ScriptedModel("small", {"q": ("one two three", 0.1), "empty": ""})
    llm = cascade(small, ScriptedModel("large"), signals=[TokenProbability(aggregate="first")])

    for query in ("q", "empty"):
        for answer in await eight_ways(llm, query):
            attempts = record(answer)["attempts"]
            assert len(attempts) == 2
            sums = [sum(attempt["usage"][key] for attempt in attempts) for key in ("input_tokens", "output_tokens")]
            usage = {"prompt_tokens": sums[0], "completion_tokens": sums[1], "total_tokens": sum(sums)}
            assert answer.raw["usage"] == usage
            assert {key: answer.additional_kwargs[key] for key in usage} == usage
            assert attempts[0]["aborted"] is (query == "q")


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
    for method in ASYNCHRONOUS:
        await answered(llm, method, "q")
    beating.cancel()

    assert len(gaps) > 80  # of 1.2 seconds; blocked, there would be a handful


@pytest.mark.parametrize("method", ASYNCHRONOUS)
async def test_cancelling_reaches_the_running_stage(method):
    slow, large = Chat(delay_s=60), Chat()
    task = asyncio.create_task(answered(cascade(slow, large), method, "q"))
    while "waits" not in slow.log:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert slow.log.count("cancelled") == 1
    assert large.sent == []


def numbered() -> ConfidenceCascadeLLM:
    def script(request: Request) -> Reply:
        query = request.messages[-1].content
        return Reply(f"small {query}", 0.95 if int(query) % 2 == 0 else 0.1, delay_s=0.001)

    return cascade(ScriptedModel("small", script), ScriptedModel("large", lambda r: f"large {r.messages[-1].content}"))


def check(answer: Any, i: int) -> None:
    by = "large" if i % 2 else "small"
    assert (text_of(answer), record(answer)["answered_by"]) == (f"{by} {i}", by)
    assert len(record(answer)["attempts"]) == 1 + i % 2


def test_64_threads_share_a_cascade_and_mix_up_nothing():
    llm = numbered()

    def one(i: int) -> tuple[Any, Any]:
        with trace() as t:
            return [
                lambda: llm.chat(user(str(i))),
                lambda: llm.complete(str(i)),
                lambda: list(llm.stream_chat(user(str(i))))[-1],
                lambda: list(llm.stream_complete(str(i)))[-1],
            ][i % 4](), t

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(256)))

    for i, (answer, t) in enumerate(answers):
        check(answer, i)
        assert [collected.as_dict() for collected in t.records] == [record(answer)]


async def test_1000_tasks_share_a_cascade_and_mix_up_nothing():
    llm = numbered()

    async def one(i: int) -> tuple[Any, Any]:
        with trace() as t:
            return await answered(llm, ASYNCHRONOUS[i % 4], str(i)), t

    for i, (answer, t) in enumerate(await asyncio.gather(*map(one, range(1000)))):
        check(answer, i)
        assert [collected.as_dict() for collected in t.records] == [record(answer)]


async def test_traces_reach_the_loops_that_llama_index_starts_in_threads():
    """Its synchronous engines run coroutines with `asyncio_run`, from a running loop in a thread of their own."""
    llm = cascade(Chat(p=0.1), Chat(says="It is 42"))
    with trace() as t:
        for method in ASYNCHRONOUS:
            asyncio_run(answered(llm, method, "q"))

    assert [len(each.attempts) for each in t.records] == [2] * 4


@pytest.mark.parametrize("method", ["astream_chat", "astream_complete"])
async def test_an_asynchronous_stream_belongs_to_the_trace_in_which_it_was_asked_for(method):
    """Wherever it is consumed; and whoever consumes it keeps a context of their own."""
    llm = cascade(Chat(p=0.1), Chat(says="It is 42"))
    with trace() as t:
        stream = await getattr(llm, method)(user("q") if "chat" in method else "q")

    async def consume() -> None:
        with trace() as own:
            async for _ in stream:
                llm.complete("q")
        assert len(own.records) == 4  # after each item

    await asyncio.create_task(consume())
    assert len(t.records) == 1


async def test_one_cascade_serves_event_loops_one_after_another():
    """No client, lock or queue of a loop that is gone stays behind."""
    llm = cascade(Chat(p=0.1), Chat(says="It is 42"))

    def loop() -> list[str]:
        return [text_of(answer) for answer in asyncio.run(eight_ways(llm, "q"))]

    for _ in range(3):
        assert await asyncio.to_thread(loop) == ["It is 42"] * 8
