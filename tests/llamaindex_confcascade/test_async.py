"""An LLM without async, or without streams, of its own answers by every method, and not only by those that it has."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import trace
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, ValidationError
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

from llamaindex_confcascade import ConfidenceCascadeLLM

from .conftest import CallingLLM, Said

METHODS = [f"{a}{stream}{what}" for what in ("chat", "complete") for stream in ("", "stream_") for a in ("", "a")]


class Synchronous(CallingLLM):
    """Has no async, as many LLMs of LlamaIndex's integrations."""

    async def achat(self, messages: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("Async chat is not supported yet.")

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("Async chat is not supported yet.")


class Whole(Synchronous):
    """Has no streams, either."""

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Unstreamed(CallingLLM):
    """Has async, and no streams."""

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


LACKING = [Synchronous, Whole, Unstreamed]


async def asked(llm: ConfidenceCascadeLLM, method: str) -> Any:
    """The last response, and the text of the stream, if it is one."""
    given = getattr(llm, method)([ChatMessage(content="q")] if "chat" in method else "q")
    given = await given if method.startswith("a") else given
    if "stream" not in method:
        return given
    items = [item async for item in given] if method.startswith("a") else list(given)
    assert "".join(item.delta or "" for item in items) == text_of(items[-1])
    return items[-1]


def text_of(given: Any) -> str:
    return str(given.message.content if isinstance(given, ChatResponse) else given.text)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", LACKING)
@pytest.mark.parametrize("last", [True, False], ids=["as the last stage", "as the first"])
async def test_an_llm_answers_by_methods_that_it_lacks(cls, method, last):
    """Or they would give the draft that `chat` rejects."""
    lacking, other = cls(name="lacking", script=Said("the answer", p=0.99)), CallingLLM(name="other", script="")
    other.script = Said("a guess", p=0.1)
    lacking.logprobs = other.logprobs = True
    llm = ConfidenceCascadeLLM(models=[other, lacking] if last else [lacking, other], threshold=0.5)
    for _ in range(2):  # the second time it is known
        given = await asked(llm, method)
        record = given.additional_kwargs["confcascade"]
        assert (text_of(given), record["answered_by"], record["degraded"]) == ("the answer", "lacking", False)


async def test_what_it_lacks_is_found_out_once():
    tried = []

    class Counting(Synchronous):
        async def achat(self, messages: Any, **kwargs: Any) -> Any:
            tried.append(1)
            raise NotImplementedError

    llm = ConfidenceCascadeLLM(models=[Counting(name="m", script="x")])
    for _ in range(3):
        await llm.acomplete("q")
    assert tried == [1]

    down = Synchronous(name="down", script=Said(error=ConnectionError("down")))
    with pytest.raises(ConnectionError):
        await ConfidenceCascadeLLM(models=[down]).acomplete("q")
    assert len(down.seen) == 1


class Place(BaseModel):
    """A place."""

    model_config = ConfigDict(title="My place")

    name: str
    people: int


def found(name: str, people: int) -> str:
    """Find a place."""
    return name


async def test_objects_and_tools_of_an_llm_without_async():
    script = Said("", [("My place", '{"name": "Funafuti", "people": 6000}')])
    llm = ConfidenceCascadeLLM(models=[Synchronous(name="m", script=script)])
    place = await llm.astructured_predict(Place, PromptTemplate("Where?"))
    assert place == Place(name="Funafuti", people=6000)

    script = Said("", [("found", '{"name": "Funafuti", "people": 6000}')])
    llm = ConfidenceCascadeLLM(models=[Synchronous(name="m", script=script)])
    response = await llm.achat_with_tools([FunctionTool.from_defaults(found)], "Where?")
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs["name"] == "Funafuti"


class Direct(CallingLLM):
    """Asks its client for objects without `chat`, as GoogleGenAI does; pydantic's error quotes what the model said."""

    def structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **args: Any) -> Any:
        return output_cls.model_validate_json(self.script)

    async def astructured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **args: Any) -> Any:
        return output_cls.model_validate_json(self.script)


async def test_values_of_an_object_that_a_client_refused_stay_out_of_records():
    """It escalates; in the last stage it fails as it would by itself, also of a class with a title of its own."""
    bad = Direct(name="direct", script='{"name": "x", "people": "SECRETVALUE"}')
    llm = ConfidenceCascadeLLM(models=[bad, bad], threshold="always")
    prompt = PromptTemplate("Where?")
    with trace() as t:
        with pytest.raises(ValidationError, match="My place"):
            llm.structured_predict(Place, prompt)
        with pytest.raises(ValidationError, match="My place"):
            await llm.astructured_predict(Place, prompt)
    assert [[attempt.decision for attempt in record.attempts] for record in t.records] == [["escalate", "accept"]] * 2
    assert "SECRETVALUE" not in str([record.as_dict() for record in t.records])
