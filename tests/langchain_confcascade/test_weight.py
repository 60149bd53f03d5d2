"""What an answer weighs, in checkpoints, caches and histories; and what it says of usage."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import Prices, Stage, TokenProbability, Usage
from confcascade.testing import ScriptedModel
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_openai import ChatOpenAI

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.convert import response_from

WORDS = " ".join(f"word{i % 50}" for i in range(1000))


def merged(chunks: Any) -> Any:
    first, *rest = list(chunks)
    return first + rest


def cascade(small: Any, large: Any, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=[small, large], **{"threshold": 0.5} | parameters)


# ---------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize(("p", "by"), [(0.9, 0), (0.1, 1)])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_checkpoint_weighs_little_more_than_the_models_own(provider, way, p, by):
    """Of 1,000 words, as LangGraph writes it, whoever answered: it was 14 times as large."""
    serde = pytest.importorskip("langgraph.checkpoint.serde.jsonplus").JsonPlusSerializer()
    small, large = provider(text=WORDS, p=p), provider(text=WORDS)
    alone = ChatOpenAI(**large.settings())
    signal = TokenProbability(labels="AB") if by else TokenProbability()  # with alternatives
    llm = cascade(ChatOpenAI(**small.settings()), alone, signals=[signal])

    def weight(llm: Any) -> int:
        answer = llm.invoke("q") if way == "invoke" else merged(llm.stream("q"))
        assert answer.content == WORDS
        return len(serde.dumps_typed({"messages": [HumanMessage("q"), answer]})[1])

    assert weight(llm) <= 1.3 * weight(alone)
    assert small.asked[0]["logprobs"] is True


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (lambda make: make(), False),
        (lambda make: make(logprobs=True), True),
        (lambda make: make(model_kwargs={"logprobs": True}), True),
        (lambda make: make().bind(logprobs=True), True),
        (lambda make: make().bind(logprobs=True).with_retry(), True),
        (lambda make: make(logprobs=False), False),
    ],
)
async def test_they_stay_where_the_stages_own_object_asks_for_them(provider, how, kept):
    server = provider()
    llm = cascade(how(lambda **more: ChatOpenAI(**server.settings(**more))), ScriptedModel("large"))

    answers = [llm.invoke("q"), await llm.ainvoke("q"), merged(llm.stream("q"))]
    assert [bool(answer.response_metadata.get("logprobs")) for answer in answers] == [kept] * 3
    assert all(answer.response_metadata["confcascade"]["stage"] == 0 for answer in answers)


async def test_they_stay_where_the_caller_asks_for_them(provider):
    server = provider()
    llm = cascade(ChatOpenAI(**server.settings()), ChatOpenAI(**server.settings()))
    for asking in (llm.bind(logprobs=True), llm.bind(logprobs=True, top_logprobs=2)):
        for answer in (asking.invoke("q"), await asking.ainvoke("q"), merged(asking.stream("q"))):
            assert len(answer.response_metadata["logprobs"]["content"]) == 3


@pytest.mark.parametrize("place", ["logprobs", "logprobs_result"])
def test_they_leave_every_place_where_integrations_put_them(place):
    told = {"content": [{"token": "yes", "logprob": -0.1}]}
    block = {"type": "text", "text": "yes", "logprobs": told["content"]}
    message = AIMessage([block], response_metadata={place: told, "id": "x"})

    response = response_from(message.model_copy(update={"usage_metadata": None}), asking(), keeps_logprobs=False)
    assert [token.text for token in response.tokens] == ["yes"]
    assert response.native.response_metadata == {"id": "x"}
    assert response.native.content == [{"type": "text", "text": "yes"}]
    assert message.response_metadata[place] == told  # the model's own message is not changed
    assert message.content == [block]


def asking() -> Any:
    from confcascade import Message, Request
    from confcascade.extending import Generate

    return Generate(ScriptedModel("m"), Request((Message("user", "four"),)))


def test_a_cascade_within_a_cascade_is_judged_all_the_same(provider):
    """It hands its tokens on if the outer one asks, of core models, too; its own caller sees none of them."""
    core = ScriptedModel("core", {"q": ("yes", 0.8)})
    for stage in (ChatOpenAI(**provider(p=0.8).settings()), core):
        inner = cascade(stage, ScriptedModel("other"))
        outer = cascade(inner, ScriptedModel("large"), threshold=0.75)
        for answer in (outer.invoke("q"), merged(outer.stream("q"))):
            (attempt,) = answer.response_metadata["confcascade"]["attempts"]
            assert attempt["scores"]["p_t"]["value"] == pytest.approx(0.8)
            assert "logprobs" not in answer.response_metadata
        assert "logprobs" not in inner.invoke("q").response_metadata


# ---------------------------------------------------------------------- usage


async def test_cached_and_reasoning_tokens_are_summed_and_priced(provider):
    """As ChatOpenAI alone reports them, over all attempts; the cached are billed at their own price."""
    small, large = provider(p=0.1), provider()
    alone = ChatOpenAI(**large.settings())
    prices = Prices(input_usd=1.0, output_usd=0.0, cached_input_usd=0.1)
    stages = [
        Stage(ChatOpenAI(**small.settings()), [TokenProbability()], {"p_t": 0.5}, prices=prices),
        Stage(alone, prices=prices),
    ]
    llm = ConfidenceCascadeLLM(stages=stages)
    told = alone.invoke("q").usage_metadata
    assert told["input_token_details"] == {"cache_read": 90}
    for answer in (llm.invoke("q"), await llm.ainvoke("q"), merged(llm.stream("q"))):
        usage = answer.usage_metadata
        for key in ("input_tokens", "output_tokens", "total_tokens"):
            assert usage[key] == 2 * told[key]
        assert usage["input_token_details"] == {"cache_read": 180}
        assert usage["output_token_details"] == {"reasoning": 90}
        record = answer.response_metadata["confcascade"]
        assert record["usage"]["input_details"] == {"cache_read": 180}
        assert record["cost"]["usd"] == pytest.approx(2 * (10 * 1.0 + 90 * 0.1) / 1e6)

    with get_usage_metadata_callback() as counted:
        llm.invoke("q")
    assert counted.usage_metadata[llm.model_name]["input_token_details"]["cache_read"] == 180


async def test_usage_that_no_server_reports_is_estimated_and_not_told_as_known(provider):
    """In the record, where it is marked; `usage_metadata` has no word for that, and stays empty as it does alone."""
    server = provider(usage=None, thoughts="let me think about it")
    llm = ConfidenceCascadeLLM(models=[ChatOpenAI(**server.settings())])
    for answer in (llm.invoke("capital of France?"), await llm.ainvoke("capital of France?")):
        assert answer.usage_metadata is None
        (attempt,) = answer.response_metadata["confcascade"]["attempts"]
        assert attempt["usage"] == {"input_tokens": 5, "output_tokens": 3, "estimated": True}
    assert ChatOpenAI(**server.settings()).invoke("q").usage_metadata is None


def test_a_zero_is_no_report():
    empty = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
    told = response_from(AIMessage("yes it is", usage_metadata=empty), asking())
    assert told.usage == Usage(1, 3, estimated=True)


def test_the_costs_of_cached_answers_count_once(provider):
    llm = cascade(ChatOpenAI(**provider().settings()), ScriptedModel("large"), cache=InMemoryCache())
    records = [llm.invoke("q").response_metadata["confcascade"] for _ in range(3)]

    assert [record.get("cached", False) for record in records] == [False, True, True]
    assert [record["cost"]["tokens"] for record in records] == [150, 0, 0]
    assert [record["usage"]["input_tokens"] for record in records] == [100, 0, 0]
