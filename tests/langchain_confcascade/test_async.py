"""A model without async of its own answers in every way, and not only in those that are synchronous."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from confcascade import CascadeExhaustedError
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
        raise AttributeError("'Pipeline' object has no attribute 'async_client'")
        yield  # a generator


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
    with pytest.raises(CascadeExhaustedError, match="ConnectionError"):
        await ConfidenceCascadeLLM(models=[down]).ainvoke("q")
    assert len(down.seen) == 1


async def test_a_stream_without_async_can_be_left():
    """The rest of it is not read."""
    llm = ConfidenceCascadeLLM(models=[Synchronous(model="m", script=sure)])
    async for chunk in llm.astream("q"):
        assert chunk.content
        break
    assert [chunk async for chunk in llm.astream("q")][-1].response_metadata["confcascade"]["answered_by"] == "m"
