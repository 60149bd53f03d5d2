"""A model without async of its own answers in every way, and not only in those that are synchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import var_child_runnable_config

from langchain_confcascade import ConfidenceCascadeLLM

from .conftest import CallingModel, Said


class Synchronous(CallingModel):
    """Has no async of its own, as langchain-huggingface's pipelines: it raises what they raise."""

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("async generation is not supported")

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        yield self.async_client  # which pydantic says that it has not


def unsure(messages: list[BaseMessage]) -> Said:
    return Said("a guess", p=0.1)


def sure(messages: list[BaseMessage]) -> Said:
    assert var_child_runnable_config.get() is None  # also in the thread, nothing around the call reaches it
    return Said("the answer", p=0.99)


async def in_every_way(llm: ConfidenceCascadeLLM) -> list[Any]:
    """The metadata of one question, asked in six ways."""
    answers = [llm.invoke("q"), await llm.ainvoke("q"), *llm.batch(["q"]), *await llm.abatch(["q"])]
    answers.append(add_chunks(list(llm.stream("q"))))
    answers.append(add_chunks([chunk async for chunk in llm.astream("q")]))
    return [(answer.content, answer.response_metadata["confcascade"]["answered_by"]) for answer in answers]


def add_chunks(chunks: list[Any]) -> Any:
    return sum(chunks[1:], chunks[0])


@pytest.mark.parametrize("last", [True, False], ids=["as the last stage", "as the first"])
async def test_a_model_without_async_answers_in_every_way(last):
    """Or `ainvoke` would give the draft that `invoke` rejects."""
    blocking = Synchronous(model="blocking", script=sure, logprobs=True)
    other = CallingModel(model="other", script=unsure, logprobs=True)
    llm = ConfidenceCascadeLLM(models=[other, blocking] if last else [blocking, other], threshold=0.5)
    assert await in_every_way(llm) == [("the answer", "blocking")] * 6


async def test_that_it_has_no_async_is_found_out_once():
    """Then it is called in a thread at once; an error of the model's own stays that error, and is not asked twice."""
    tried = []

    class Counting(Synchronous):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            tried.append(1)
            return await super()._agenerate(*args, **kwargs)

    llm = ConfidenceCascadeLLM(models=[Counting(model="m", script=sure)])
    for _ in range(3):
        await llm.ainvoke("q")
    assert tried == [1]

    down = Synchronous(model="down", script=lambda _: Said(error=ConnectionError("down")))
    with pytest.raises(ConnectionError, match="down"):
        await ConfidenceCascadeLLM(models=[down]).ainvoke("q")
    assert len(down.seen) == 1


async def test_an_error_of_an_answer_does_not_say_that_there_is_no_async():
    """Gateways that answer null make clients raise AttributeError: that call fails, and the next is asynchronous."""
    asynchronous = []

    class Stumbling(CallingModel):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            asynchronous.append(1)
            if len(asynchronous) == 1:
                None.model_dump()
            return await super()._agenerate(*args, **kwargs)

    llm = ConfidenceCascadeLLM(models=[Stumbling(model="m", script=lambda _: Said("the answer"))])
    with pytest.raises(AttributeError, match="model_dump"):
        await llm.ainvoke("q")
    assert (await llm.ainvoke("q")).content == "the answer"
    assert len(asynchronous) == 2


async def test_a_stream_without_async_can_be_left():
    """The rest of it is not read, and the model's own stream is closed."""
    closed = threading.Event()

    class Closing(Synchronous):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            try:
                yield from super()._stream(*args, **kwargs)
            finally:
                closed.set()

    llm = ConfidenceCascadeLLM(models=[Closing(model="m", script=sure)])
    async with aclosing(llm.astream("q")) as chunks:
        assert (await anext(chunks)).content
        assert not closed.is_set()
    assert await asyncio.to_thread(closed.wait, 20)


async def test_tools_and_structured_output_without_async():
    """They are bound to a model, and go the same way."""
    schema = {"title": "Place", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

    def call(messages: list[BaseMessage]) -> Said:
        return Said("", [("Place", '{"name": "Funafuti"}')])

    other = CallingModel(model="other", script=unsure, logprobs=True)
    llm = ConfidenceCascadeLLM(models=[other, Synchronous(model="blocking", script=call)], threshold=0.5)
    assert await llm.with_structured_output(schema).ainvoke("q") == {"name": "Funafuti"}
    answer = await llm.bind_tools([schema]).ainvoke("q")
    assert [made["args"] for made in answer.tool_calls] == [{"name": "Funafuti"}]


async def test_a_cancelled_call_does_not_wait_for_the_thread():
    """And what the thread was reading is closed when it comes back."""
    asked, go, closed = threading.Event(), threading.Event(), threading.Event()

    class Waiting(Synchronous):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            try:
                asked.set()
                assert go.wait(20)
                yield from super()._stream(*args, **kwargs)
            finally:
                closed.set()

    llm = ConfidenceCascadeLLM(models=[Waiting(model="m", script=sure)])
    task = asyncio.ensure_future(anext(llm.astream("q")))
    assert await asyncio.to_thread(asked.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not closed.is_set()
    go.set()
    assert await asyncio.to_thread(closed.wait, 20)
