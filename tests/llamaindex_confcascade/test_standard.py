"""A cascade of one stage answers as the stage's LLM alone, by every method that LlamaIndex's LLMs have.

LlamaIndex's packages ship no tests for LLMs, as LangChain's do; the LLM itself is the standard here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.mock import MockFunctionCallingLLM, MockLLM
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

from llamaindex_confcascade import ConfidenceCascadeLLM


class Joke(BaseModel):
    """A joke."""

    setup: str
    stars: int = 3


def rate(stars: int) -> str:
    """Rate a joke."""
    return f"rated {stars}"


TOOL = FunctionTool.from_defaults(rate)
MESSAGES = [
    ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
    ChatMessage(role=MessageRole.USER, content="Tell me a joke."),
]
WAYS: dict[str, Callable[[Any], Any]] = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: llm.achat(MESSAGES),
    "stream_chat": lambda llm: llm.stream_chat(MESSAGES),
    "astream_chat": lambda llm: llm.astream_chat(MESSAGES),
    "predict": lambda llm: llm.predict(PromptTemplate("Tell me a {what}."), what="joke"),
    "apredict": lambda llm: llm.apredict(PromptTemplate("Tell me a {what}."), what="joke"),
    "stream": lambda llm: llm.stream(PromptTemplate("Tell me a {what}."), what="joke"),
    "astream": lambda llm: llm.astream(PromptTemplate("Tell me a {what}."), what="joke"),
}
COMPLETIONS: dict[str, Callable[[Any], Any]] = {
    "complete": lambda llm: llm.complete("Tell me a joke."),
    "acomplete": lambda llm: llm.acomplete("Tell me a joke."),
    "stream_complete": lambda llm: llm.stream_complete("Tell me a joke."),
    "astream_complete": lambda llm: llm.astream_complete("Tell me a joke."),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "chat_with_tools": lambda llm: llm.chat_with_tools([TOOL], "Rate it."),
    "achat_with_tools": lambda llm: llm.achat_with_tools([TOOL], "Rate it.", tool_required=True),
    "stream_chat_with_tools": lambda llm: llm.stream_chat_with_tools([TOOL], "Rate it."),
    "astream_chat_with_tools": lambda llm: llm.astream_chat_with_tools([TOOL], "Rate it."),
    "predict_and_call": lambda llm: llm.predict_and_call([TOOL], "Rate it."),
    "apredict_and_call": lambda llm: llm.apredict_and_call([TOOL], "Rate it."),
}
OBJECTS: dict[str, Callable[[Any], Any]] = {
    "structured_predict": lambda llm: llm.structured_predict(Joke, PromptTemplate("Tell me a joke.")),
    "astructured_predict": lambda llm: llm.astructured_predict(Joke, PromptTemplate("Tell me a joke.")),
    "stream_structured_predict": lambda llm: llm.stream_structured_predict(Joke, PromptTemplate("Tell me a joke.")),
    "astream_structured_predict": lambda llm: llm.astream_structured_predict(Joke, PromptTemplate("Tell me a joke.")),
    "as_structured_llm": lambda llm: llm.as_structured_llm(Joke).chat(MESSAGES),
    "a program": lambda llm: get_program_for_llm(Joke, PromptTemplate("Tell me a joke."), llm)(),
}


async def told(llm: LLM, way: Callable[[Any], Any]) -> Any:
    """What one of the methods gives, as far as it must be alike: of a stream, all text and the last object."""
    given = way(llm)
    if inspect.isawaitable(given):
        given = await given
    if inspect.isasyncgen(given):
        items = [item async for item in given]
    elif inspect.isgenerator(given):
        items = list(given)
    else:
        return plain(llm, given)
    if isinstance(items[0], str):
        return "".join(items)
    last = plain(llm, items[-1])
    if isinstance(items[0], ChatResponse | CompletionResponse):
        return "".join(item.delta or "" for item in items), last
    return last


def plain(llm: Any, given: Any) -> Any:
    if isinstance(given, CompletionResponse):
        return given.text
    if isinstance(given, AgentChatResponse):
        return given.response, [source.raw_output for source in given.sources]
    if not isinstance(given, ChatResponse):
        return given
    calls: list[Any] = []
    if llm.metadata.is_function_calling_model:
        found = llm.get_tool_calls_from_response(given, error_on_no_tool_call=False)
        calls = [(bool(call.tool_id), call.tool_name, call.tool_kwargs) for call in found]
    return given.message.role, given.message.content or "", calls


def alone_and_in_a_cascade(llm: LLM) -> tuple[LLM, LLM]:
    return llm, ConfidenceCascadeLLM(models=[llm])


@pytest.fixture
def openai(openai_server, said):
    """OpenAI's class by a model that takes JSON Schemas, or one that is asked by tools; what it says to each."""

    def make(model: str = "gpt-4o") -> LLM:
        def script(messages: Any) -> Any:
            body = openai_server.bodies[-1]
            if body.get("response_format"):
                return '{"setup": "Why?", "stars": 4}'
            if not body.get("tools"):
                return "Why did the chicken?"
            name = body["tools"][0]["function"]["name"]
            return said(calls=[(name, '{"stars": 5}' if name == "rate" else '{"setup": "Who?", "stars": 2}')])

        return openai_server.llm(model, script)

    return make


@pytest.mark.parametrize("way", [*WAYS, *COMPLETIONS, *CALLS, *OBJECTS])
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4-turbo"])
async def test_openai(openai, model, way):
    alone, cascade = alone_and_in_a_cascade(openai(model))
    ask = {**WAYS, **COMPLETIONS, **CALLS, **OBJECTS}[way]

    assert await told(cascade, ask) == await told(alone, ask)


@pytest.mark.parametrize("way", [*WAYS, *CALLS])
async def test_llama_indexs_own_function_calling_model(way):
    alone, cascade = alone_and_in_a_cascade(MockFunctionCallingLLM())
    ask = {**WAYS, **CALLS}[way]

    assert await told(cascade, ask) == await told(alone, ask)


@pytest.mark.parametrize("way", [*WAYS, *COMPLETIONS])
async def test_llama_indexs_own_completion_model(way):
    """Its prompts are completed: a cascade, which chats, hands it messages all the same."""
    alone, cascade = alone_and_in_a_cascade(MockLLM(max_tokens=5))
    ask = {**WAYS, **COMPLETIONS}[way]

    here, there = await told(cascade, ask), await told(alone, ask)

    if "stream_" in way:  # where `MockLLM` leaves the last word out of the whole
        here, there = here[0], there[0]
    assert here == there


def test_metadata_are_those_of_the_llm(openai):
    alone, cascade = alone_and_in_a_cascade(openai())

    changed = {"model_name", "num_output"}  # the cascade's own name, and LlamaIndex's default for "not set"
    assert cascade.metadata.model_dump(exclude=changed) == alone.metadata.model_dump(exclude=changed)
