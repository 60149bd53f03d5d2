"""The cascade over LlamaIndex's `OpenAI` and llama.cpp's own server, held against the same models in process."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

pytest.importorskip("llama_index.llms.openai")

from confcascade import trace
from confcascade.testing import same_record
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai import OpenAI

from llamaindex_confcascade import ConfidenceCascadeLLM


class Served(OpenAI):
    """LlamaIndex looks up the context of OpenAI's models by name; the records show the name that the server knows."""

    served_as: str

    @property
    def metadata(self):
        return super().metadata.model_copy(update={"model_name": self.served_as, "context_window": 1024})


@pytest.fixture(scope="module")
def llm(served, yardstick):
    models = [
        Served(
            model="gpt-4o-mini", served_as=size, api_base=served(size), api_key="none", temperature=0.0, max_tokens=64
        )
        for size in ("small", "large")
    ]
    return ConfidenceCascadeLLM(models=models, threshold=yardstick.threshold)


def check(yardstick, expected, response):
    yardstick.check(expected, response.message.content, response.additional_kwargs["confcascade"])


def test_chat_and_stream_decide_as_the_local_cascade(llm, yardstick):
    """Answers, decisions and usage are equal, and scores but for rounding."""
    for prompt, expected in zip(yardstick.prompts, yardstick.outcomes, strict=True):
        check(yardstick, expected, llm.chat([ChatMessage(content=prompt)]))
        *_, last = llm.stream_chat([ChatMessage(content=prompt)])
        check(yardstick, expected, last)


async def test_asynchronous_calls_decide_so_too(llm, yardstick):
    """Side by side, in the server's slots."""
    together = await asyncio.gather(*(llm.achat([ChatMessage(content=prompt)]) for prompt in yardstick.prompts))
    for expected, response in zip(yardstick.outcomes, together, strict=True):
        check(yardstick, expected, response)
    for prompt, expected in list(zip(yardstick.prompts, yardstick.outcomes, strict=True))[::6]:
        *_, last = [item async for item in await llm.astream_chat([ChatMessage(content=prompt)])]
        check(yardstick, expected, last)


def test_stop_is_honoured_whole_and_streamed(llm, yardstick):
    prompt = [ChatMessage(content=yardstick.prompts[-1])]
    *_, last = llm.stream_chat(prompt, stop=["="])
    whole = llm.chat(prompt, stop=["="])
    assert whole.message.content
    assert "=" not in whole.message.content
    assert last.message.content == whole.message.content


class Answer(BaseModel):
    """What is said."""

    answer: Literal["yes", "no", "I don't know"]


async def test_a_real_server_is_held_to_the_schema(llm, yardstick):
    """llama.cpp's grammar makes models write JSON that fits, or be cut off; the second goes to the next model."""
    prompt = PromptTemplate(yardstick.prompts[0])

    with trace() as t:
        answers = [llm.structured_predict(Answer, prompt), await llm.astructured_predict(Answer, prompt)]

    assert answers[0] == answers[1]
    first, second = (record.as_dict() for record in t.records)
    for usage in (each["usage"] for record in (first, second) for each in (record, *record["attempts"])):
        usage.pop("input_details", None)  # the second finds more in the server's cache
    assert same_record(first, second, yardstick.tolerance)
    for attempt in first["attempts"]:
        assert attempt["usage"]["output_tokens"] > 0
        assert attempt["error"] is None
