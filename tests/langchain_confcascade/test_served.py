"""The cascade over `ChatOpenAI` and llama.cpp's own server, held against the same models in process."""

from __future__ import annotations

import functools
import operator

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_confcascade import ConfidenceCascadeLLM


@pytest.fixture
def llm(chat_openai, yardstick):
    models = [chat_openai(size, max_tokens=64) for size in ("small", "large")]
    return ConfidenceCascadeLLM(models=models, threshold=yardstick.threshold)


def check(yardstick, expected, message):
    yardstick.check(expected, message.text, message.response_metadata["confcascade"])
    usage = expected.record.usage
    assert message.usage_metadata["input_tokens"] == usage.input_tokens
    assert message.usage_metadata["output_tokens"] == usage.output_tokens


def merged(chunks):
    return functools.reduce(operator.add, chunks)


def test_invoke_and_stream_decide_as_the_local_cascade(llm, yardstick):
    """Answers, decisions and usage are equal, and scores but for rounding."""
    for prompt, expected in zip(yardstick.prompts, yardstick.outcomes, strict=True):
        check(yardstick, expected, llm.invoke(prompt))
        check(yardstick, expected, merged(llm.stream(prompt)))


async def test_asynchronous_calls_and_batches_decide_so_too(llm, yardstick):
    """Side by side, in the server's slots."""
    for expected, message in zip(yardstick.outcomes, await llm.abatch(yardstick.prompts), strict=True):
        check(yardstick, expected, message)
    for expected, message in zip(yardstick.outcomes, llm.batch(yardstick.prompts), strict=True):
        check(yardstick, expected, message)
    for prompt, expected in list(zip(yardstick.prompts, yardstick.outcomes, strict=True))[::6]:
        check(yardstick, expected, await llm.ainvoke(prompt))
        check(yardstick, expected, merged([chunk async for chunk in llm.astream(prompt)]))


async def test_stop_is_honoured_in_every_call(llm, yardstick):
    prompt = yardstick.prompts[-1]
    assert "=" in yardstick.outcomes[-1].text
    answers = [
        llm.invoke(prompt, stop=["="]),
        merged(llm.stream(prompt, stop=["="])),
        await llm.ainvoke(prompt, stop=["="]),
        merged([chunk async for chunk in llm.astream(prompt, stop=["="])]),
        llm.bind(stop=["="]).invoke(prompt),
    ]
    assert all(answer.text and "=" not in answer.text for answer in answers)
    assert len({answer.text for answer in answers}) == 1
    (scores,) = {str(_rounded(answer)) for answer in answers}
    assert scores != "[]"


def _rounded(message):
    attempts = message.response_metadata["confcascade"]["attempts"]
    return [round(score["value"], 3) for attempt in attempts for score in attempt["scores"].values()]


def test_a_chain_counts_every_paid_token_once(llm, yardstick):
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | llm | StrOutputParser()
    with get_usage_metadata_callback() as counted:
        answers = chain.batch([{"question": prompt} for prompt in yardstick.prompts])
    assert [answer.removeprefix(" ") for answer in answers] == [each.text for each in yardstick.outcomes]
    total = sum(each.record.usage.total_tokens for each in yardstick.outcomes)
    assert sum(usage["total_tokens"] for usage in counted.usage_metadata.values()) == total
