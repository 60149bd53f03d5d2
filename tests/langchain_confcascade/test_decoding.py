"""A stage's decoding settings reach the model's server, or are refused when the cascade is built."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import ConfigurationError, Decoding, Stage
from langchain_openai import AzureChatOpenAI, ChatOpenAI

from langchain_confcascade import ConfidenceCascadeLLM

from .test_model import Server


@pytest.fixture
def server(httpserver: Any) -> Server:
    return Server(httpserver)


ALL = Decoding(temperature=0.5, max_tokens=9, top_p=0.9, top_k=3, seed=1)


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (lambda server: server.model(), {}),
        (lambda server: server.model(extra_body={"min_p": 0.1}), {"min_p": 0.1}),
        (lambda server: server.model(extra_body={"min_p": 0.1}).bind(extra_body={"min_p": 0.2}), {"min_p": 0.2}),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_every_setting_reaches_the_server(server: Server, make: Any, body: Any, streamed: bool):
    """top_k, which OpenAI's client does not know, in the body, beside what its user has put there."""
    llm = ConfidenceCascadeLLM(stages=[Stage(make(server), decoding=ALL)])
    said = "".join(chunk.content for chunk in llm.stream("plain")) if streamed else llm.invoke("plain").content
    assert said
    (asked,) = server.asked
    limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
    assert (asked["temperature"], limit, asked["top_p"], asked["top_k"], asked["seed"]) == (0.5, 9, 0.9, 3, 1)
    assert {name: asked.get(name) for name in body} == body


@pytest.mark.parametrize(
    ("model", "wrong", "named"),
    [
        (ChatOpenAI(model="gpt-4o", api_key="k"), Decoding(top_k=3), "top_k=3"),
        (ChatOpenAI(model="gpt-4o", api_key="k").bind(stop=["x"]), Decoding(top_k=3), "top_k=3"),
        (ChatOpenAI(model="gpt-4o", api_key="k", use_responses_api=True), Decoding(seed=1), "seed=1"),
        (
            AzureChatOpenAI(azure_endpoint="https://mine.example", api_version="1", azure_deployment="d", api_key="k"),
            *(Decoding(top_k=3), "top_k=3"),
        ),
    ],
)
def test_what_openai_does_not_have_is_refused_when_it_is_built(model: Any, wrong: Decoding, named: str):
    """It would fail each call, and every query would escalate."""
    with pytest.raises(ConfigurationError, match=f"{named}, which the API of OpenAI"):
        ConfidenceCascadeLLM(stages=[Stage(model, decoding=wrong)])
    ConfidenceCascadeLLM(stages=[Stage(model, decoding=Decoding(temperature=0, top_p=0.5))])
