"""A stage's decoding settings reach the LLM's server, or are refused when the cascade is built."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import ConfigurationError, Decoding, Stage, TokenProbability
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.decoding import ClientSettings

from .test_model import Server


@pytest.fixture
def server(httpserver: Any) -> Server:
    return Server(httpserver)


ALL = Decoding(temperature=0.5, max_tokens=9, top_p=0.9, top_k=3, seed=1)
CALLS = {
    "complete": lambda llm: llm.complete("q"),
    "stream_complete": lambda llm: list(llm.stream_complete("q")),
}


def alone(llm: Any, decoding: Decoding) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(stages=[Stage(llm, decoding=decoding)])


@pytest.mark.parametrize(("call", "chats"), [("complete", False), ("complete", True), ("stream_complete", True)])
def test_every_setting_reaches_the_server(server: Server, call: str, chats: bool) -> None:
    """top_k, which OpenAI's client does not know, in the body."""
    llm = OpenAILike(model="m", api_base=server.url, api_key="k", is_chat_model=chats, max_retries=0)
    CALLS[call](alone(llm, ALL))
    (body,) = server.bodies
    assert {name: body[name] for name in ALL.settings} == ALL.settings


@pytest.mark.parametrize(
    ("own", "wanted", "named"),
    [
        ({"additional_kwargs": {"temperature": 0.9}}, Decoding(temperature=0), "temperature=0.9 in its `additional_"),
        ({"additional_kwargs": {"top_p": 0.9}}, Decoding(top_p=0.5), "top_p=0.9 in its"),
        ({"additional_kwargs": {"max_completion_tokens": 9}}, Decoding(max_tokens=9), "max_completion_tokens=9 in its"),
        ({"additional_kwargs": {"extra_body": {"top_k": 5}}}, Decoding(top_k=3), "an `extra_body` in its"),
        ({"additional_kwargs": {"extra_body": {"min_p": 0.1}}}, Decoding(top_k=3), "an `extra_body` in its"),
        ({"max_tokens": 100}, Decoding(max_tokens=9), "its LLM has max_tokens=100"),
    ],
)
def test_what_the_llm_would_send_instead_is_refused_when_it_is_built(
    server: Server, own: Any, wanted: Decoding, named: str
) -> None:
    """LlamaIndex puts it over what a call asks for, in silence."""
    llm = OpenAILike(model="m", api_base=server.url, api_key="k", is_chat_model=True, **own)
    with pytest.raises(ConfigurationError, match=named):
        alone(llm, wanted)
    alone(llm, Decoding(seed=1)).complete("q")  # others pass
    assert server.bodies[0]["seed"] == 1


@pytest.mark.parametrize(
    "own",
    [
        {"additional_kwargs": {"temperature": 0.0, "top_p": 0.9}, "max_tokens": 9},
        {"additional_kwargs": {"extra_body": {"top_k": 3}}, "temperature": 0.7},
    ],
)
def test_the_same_in_both_places_is_no_contradiction(server: Server, own: Any) -> None:
    """And what is no `additional_kwargs` gives way to the stage."""
    llm = OpenAILike(model="m", api_base=server.url, api_key="k", is_chat_model=True, **own)
    wanted = Decoding(temperature=0, max_tokens=9, top_k=3) if "extra_body" in str(own) else Decoding(0, 9, 0.9)
    alone(llm, wanted).complete("q")
    assert {name: server.bodies[0][name] for name in wanted.settings} == wanted.settings


@pytest.mark.parametrize(
    ("llm", "wrong", "named"),
    [
        (OpenAI(model="gpt-4o", api_key="k"), Decoding(top_k=3), "top_k=3"),
        (OpenAIResponses(model="gpt-4o", api_key="k"), Decoding(seed=1), "seed=1"),
    ],
)
def test_what_openai_does_not_have_is_refused_when_it_is_built(llm: Any, wrong: Decoding, named: str) -> None:
    """It would fail each call, and every query would escalate."""
    with pytest.raises(ConfigurationError, match=f"{named}, which the API of OpenAI"):
        ConfidenceCascadeLLM(
            stages=[Stage(llm, [TokenProbability()], {"p_t": "never"}, decoding=wrong), Stage(OpenAI(api_key="k"))]
        )
    alone(llm, Decoding(temperature=0, max_tokens=9))


def test_the_responses_api_has_words_of_its_own() -> None:
    """A limit has another name there; of other servers' parameters, all are in the body."""
    llm = OpenAIResponses(
        model="m", api_base="http://here/v1", api_key="k", additional_kwargs={"extra_body": {"min_p": 0.1}}
    )
    sent = ClientSettings(llm).for_the_client({"max_tokens": 9, "top_k": 3, "seed": 1, "top_p": 0.5})
    assert sent == {"max_output_tokens": 9, "top_p": 0.5, "extra_body": {"top_k": 3, "seed": 1, "min_p": 0.1}}
    assert llm._get_model_kwargs(**sent)["max_output_tokens"] == 9
