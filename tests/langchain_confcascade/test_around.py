"""What LangChain puts around a chat model acts on a cascade's errors as on the model's own."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain_core.output_parsers import StrOutputParser
from langchain_openai import ChatOpenAI

from langchain_confcascade import ConfidenceCascadeLLM

STATUSES = {429: openai.RateLimitError, 503: openai.InternalServerError, 401: openai.AuthenticationError}


async def both(llm: Any, query: str) -> set[str]:
    """Called and streamed, with and without async."""
    chain = llm | StrOutputParser()
    return {
        chain.invoke(query),
        await chain.ainvoke(query),
        "".join(chain.stream(query)),
        "".join([piece async for piece in chain.astream(query)]),
    }


@pytest.fixture
def down(provider):
    """A cascade whose small model guesses and whose large one fails; a backup; and the large one's server."""

    def make(status: int, **parameters: Any) -> tuple[ConfidenceCascadeLLM, ChatOpenAI, Any]:
        small, large = provider(text="a wild guess", p=0.2), provider(status=status)
        models = [ChatOpenAI(**small.settings()), ChatOpenAI(**large.settings())]
        backup = ChatOpenAI(**provider(text="BACKUP").settings())
        return ConfidenceCascadeLLM(models=models, threshold=0.9, **parameters), backup, large

    return make


@pytest.mark.parametrize("status", STATUSES)
async def test_fallbacks_answer_where_the_last_model_fails(down, status):
    llm, backup, _ = down(status)

    assert await both(llm.with_fallbacks([backup], exceptions_to_handle=(STATUSES[status],)), "q") == {"BACKUP"}
    assert await both(llm.with_fallbacks([backup]), "q") == {"BACKUP"}
    others = tuple(error for other, error in STATUSES.items() if other != status)
    with pytest.raises(STATUSES[status]):
        await both(llm.with_fallbacks([backup], exceptions_to_handle=others), "q")


async def test_a_retry_tries_again_and_may_succeed(down):
    llm, _, large = down(429)
    retrying = llm.with_retry(
        retry_if_exception_type=(openai.RateLimitError,), wait_exponential_jitter=False, stop_after_attempt=3
    )
    with pytest.raises(openai.RateLimitError):
        retrying.invoke("q")
    assert len(large.asked) == 3
    with pytest.raises(openai.RateLimitError):
        await retrying.ainvoke("q")
    assert len(large.asked) == 6

    large.status = 200
    assert (await both(retrying, "q")) == {"It is Paris"}


async def test_an_agents_fallback_answers_where_the_last_model_fails(down):
    llm, backup, _ = down(503)
    agent = create_agent(llm, middleware=[ModelFallbackMiddleware(backup)])
    asked: Any = {"messages": [("user", "q")]}

    assert agent.invoke(asked)["messages"][-1].text == "BACKUP"
    assert (await agent.ainvoke(asked))["messages"][-1].text == "BACKUP"
    told = [message.text for message, _ in agent.stream(asked, stream_mode="messages")]
    assert "".join(told) == "BACKUP"


async def test_the_best_earlier_answer_leaves_them_nothing_to_act_on(down):
    """As the page says that recommends them."""
    llm, backup, _ = down(503, on_exhausted="best")

    assert await both(llm.with_fallbacks([backup]), "q") == {"a wild guess"}
