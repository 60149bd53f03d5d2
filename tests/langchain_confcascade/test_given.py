"""Models as a user gives them, under names that tell them apart, and the profile of all of them together."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from confcascade import ConfigurationError, OpenAICompatibleModel, Stage, TokenProbability
from confcascade.testing import ScriptedModel
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models import FakeListChatModel, ModelProfile
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.model import LangChainModel
from langchain_confcascade.profile import profile_of


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for provider in ("OPENAI", "DEEPSEEK"):
        monkeypatch.setenv(f"{provider}_API_KEY", "sk-none")


def cascade(*models: Any, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), **{"threshold": 0.9} | parameters)


def names(llm: ConfidenceCascadeLLM) -> list[str]:
    return [stage.model.name for stage in llm.cascade.stages]


# ---------------------------------------------------------------------- strings


def test_strings_are_models_of_the_core_or_of_langchain():
    """The core's prefixes come first; the rest is read as `init_chat_model` reads it, with a provider or without."""
    llm = cascade("openai:gpt-4o-mini", "gpt-4o-mini", "deepseek:deepseek-chat", ScriptedModel("m"))
    ours, inferred, deepseek, _ = (stage.model for stage in llm.cascade.stages)

    assert type(ours) is OpenAICompatibleModel
    assert type(inferred.native) is ChatOpenAI
    assert type(deepseek.native).__name__ == "ChatDeepSeek"


def test_a_stage_takes_such_strings_too():
    stages = [Stage("gpt-4o-mini", [TokenProbability()], {"p_t": 0.9}), Stage("gpt-4o")]
    assert names(ConfidenceCascadeLLM(stages=stages)) == ["gpt-4o-mini", "gpt-4o"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("anthropic:claude-haiku-4-5", "pip install langchain-anthropic"),
        (
            "nobody-knows-it",
            "openai:, local:, llamacpp:, bundled:, or be one that LangChain's `init_chat_model` reads",
        ),
        ("", "A model string must be"),
    ],
)
def test_a_string_that_cannot_be_loaded_says_what_to_do(given, why):
    with pytest.raises(ConfigurationError) as caught:
        cascade(given, ScriptedModel("large"))
    assert why in str(caught.value)


def test_without_langchain_a_string_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(ConfigurationError, match="pip install langchain"):
        cascade("gpt-4o-mini", ScriptedModel("large"))
    assert names(cascade("openai:gpt-4o-mini", ScriptedModel("large"))) == ["gpt-4o-mini", "large"]


# ---------------------------------------------------------------------- per call


@pytest.mark.parametrize(
    ("how", "answered_by", "attempts"),
    [
        ({}, "large", 2),
        ({"threshold": 0.5}, "small", 1),
        ({"threshold": "always"}, "small", 1),
        ({"threshold": {"p_t": "never"}}, "large", 2),
        ({"stage": "small"}, "small", 1),
        ({"stage": 1}, "large", 1),
    ],
)
async def test_stage_and_threshold_can_be_given_per_call(provider, how, answered_by, attempts):
    """Or bound; neither reaches a stage."""
    servers = [provider(p=0.6), provider()]
    small, large = (
        ChatOpenAI(**server.settings(model=name)) for server, name in zip(servers, ("small", "large"), strict=True)
    )
    llm = cascade(small, large)
    bound = llm.bind(**how)
    answers = [llm.invoke("q", **how), bound.invoke("q"), await bound.ainvoke("q")]
    for stream in (llm.stream("q", **how), bound.stream("q")):
        first, *rest = stream
        answers.append(first + rest)
    answers += bound.batch(["q", "q"])

    for answer in answers:
        record = answer.response_metadata["confcascade"]
        assert (record["answered_by"], len(record["attempts"])) == (answered_by, attempts)
    assert not any(how.keys() & asked.keys() for server in servers for asked in server.asked)
    with pytest.raises(ConfigurationError, match="`stage` must name one of"):
        llm.invoke("q", stage="medium")


@pytest.mark.parametrize(
    ("how", "answered_by"), [({"stage": 0}, "small"), ({"threshold": 0.5}, "small"), ({}, "large")]
)
def test_stage_and_threshold_can_be_given_with_a_schema_or_tools(provider, how, answered_by):
    """They are the cascade's there, too, and no provider is sent them."""

    class Answer(BaseModel):
        number: int

    servers = [provider(p=0.6, text='{"number": 7}'), provider(text='{"number": 7}')]
    llm = cascade(*(ChatOpenAI(**s.settings(model=m)) for s, m in zip(servers, ("small", "large"), strict=True)))
    told = llm.with_structured_output(Answer, include_raw=True, **how).invoke("q")
    called = llm.bind_tools([Answer], **how).invoke("q")

    assert told["parsed"] == Answer(number=7)
    for message in (told["raw"], called):
        assert message.response_metadata["confcascade"]["answered_by"] == answered_by
    assert not any(how.keys() & asked.keys() for server in servers for asked in server.asked)


async def test_any_model_can_be_a_stage_whose_answers_are_always_kept():
    """As a chain of fallbacks is migrated: classes whose providers report no log-probabilities, too."""

    class ChatAnthropic(FakeListChatModel):
        """Stands for langchain_anthropic's."""

    small, large = ChatAnthropic(responses=["fine"]), ScriptedModel("large")
    with pytest.raises(ConfigurationError, match="needs log-probabilities"):
        cascade(small, large)
    for answer in ((llm := cascade(small, large, threshold="always")).invoke("q"), await llm.ainvoke("q")):
        assert answer.content == "fine"
    broken = cascade(
        ChatOpenAI(model="gpt-5", use_responses_api=True, base_url="http://127.0.0.1:1"), large, threshold="always"
    )
    assert broken.invoke("q").content == "large: q"


# ---------------------------------------------------------------------- names


class ChatHuggingFace(FakeListChatModel):
    """Stands for langchain_huggingface's, which has its model's name in `model_id` and tells none in traces."""

    model_id: str

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {"ls_provider": "huggingface"}


def test_stages_are_named_after_their_models():
    small, large = (ChatHuggingFace(responses=["a"], model_id=f"org/{size}") for size in ("small", "large"))
    assert names(cascade(small, large)) == ["org/small", "org/large"]


def test_equal_names_are_told_apart():
    """Two settings of one model, or one model twice; a name that the user chose stays."""
    model = ChatOpenAI(model="gpt-5", reasoning_effort="low", use_responses_api=False)
    llm = cascade(model, ChatOpenAI(model="gpt-5", use_responses_api=False), model.bind(temperature=1))
    assert names(llm) == ["gpt-5", "gpt-5 (2)", "gpt-5 (3)"]
    assert names(cascade(LangChainModel(model, name="low"), LangChainModel(model, name="low"))) == ["low", "low"]

    answers = [FakeListChatModel(responses=["a"]), FakeListChatModel(responses=["b"])]
    answer = cascade(*answers).invoke("q")
    assert answer.response_metadata["confcascade"]["answered_by"] == "FakeListChatModel (2)"


# ---------------------------------------------------------------------- the profile


class Answer(BaseModel):
    """An answer."""

    n: int


def profiled(model: str, **profile: Any) -> FakeListChatModel:
    return ChatHuggingFace(responses=["a"], model_id=model, profile=ModelProfile(**profile))


def test_a_profile_holds_for_every_stage():
    """Limits are the smallest; what is sent to all must be taken by all; what the last can, the cascade can."""
    small = profiled("s", max_input_tokens=8000, structured_output=False, image_inputs=False, tool_calling=False)
    middle = profiled("m", structured_output=True, max_output_tokens=100)
    large = profiled(
        "l", name="Large", max_input_tokens=9000, structured_output=True, image_inputs=True, tool_calling=True
    )
    expected = {"max_input_tokens": 8000, "max_output_tokens": 100, "image_inputs": True, "tool_calling": True}

    assert cascade(small, middle, large).profile == expected | {"structured_output": False}
    assert cascade(small, large).profile["structured_output"] is False
    assert cascade(large, large).profile["structured_output"] is True
    assert ConfidenceCascadeLLM(models=[large]).profile == large.profile  # one stage alone is that stage
    assert cascade(small, large, profile={"max_input_tokens": 5}).profile == {"max_input_tokens": 5}
    assert profile_of([LangChainModel(FakeListChatModel(responses=["a"]))] * 2) is None


def test_fractions_of_the_context_can_be_summarized():
    llm = cascade(ChatOpenAI(model="gpt-3.5-turbo"), ChatOpenAI(model="gpt-4o"))
    middleware = SummarizationMiddleware(llm, trigger=("fraction", 0.5), keep=("fraction", 0.1))

    assert llm.profile["max_input_tokens"] == ChatOpenAI(model="gpt-3.5-turbo").profile["max_input_tokens"]
    assert middleware._get_profile_limits() == llm.profile["max_input_tokens"]


@pytest.mark.parametrize(("small", "native"), [("gpt-4o-mini", True), ("gpt-3.5-turbo", False)])
def test_an_agent_chooses_the_way_that_every_stage_knows(provider, small, native):
    """`create_agent` asks for a schema natively only if all stages can be asked so, else by a tool."""
    server = provider(text='{"n": 3}', **({} if native else {"call": ("Answer", '{"n": 3}')}))
    models = [ChatOpenAI(**server.settings(model=name)) for name in (small, "gpt-4o")]
    agent = create_agent(cascade(*models), response_format=Answer)

    assert agent.invoke({"messages": [("user", "q")]})["structured_response"] == Answer(n=3)
    assert ("response_format" in server.asked[0]) == native
    assert bool(server.asked[0].get("tools")) == (not native)


# ---------------------------------------------------------------------- messages


async def test_a_stage_that_edits_its_messages_edits_its_own(provider):
    class Vandal(FakeListChatModel):
        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            for message in messages:
                if isinstance(message.content, list):
                    message.content[0]["text"] = "VANDALISED"
                else:
                    message.content = "VANDALISED"
                message.additional_kwargs["seen"] = True
            return super()._call(messages, *args, **kwargs)

    asked = [AIMessage("one", additional_kwargs={"kept": 1}), AIMessage([{"type": "text", "text": "two"}])]
    before = [message.model_copy(deep=True) for message in asked]
    server = provider()
    llm = cascade(Vandal(responses=["a"]), ChatOpenAI(**server.settings()))
    llm.invoke(asked)
    list(llm.stream(asked))
    await llm.ainvoke(asked)

    assert asked == before
    assert "VANDALISED" not in str(server.asked)
