"""However an answer is read, it is the `ChatResponse` that was always meant."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LogProb
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent

from llamaindex_confcascade.late import late_response

MESSAGE = ChatMessage(role="assistant", content="4")
LOGPROBS = [[LogProb(token="4", logprob=-0.1, bytes=[52])]]
BESIDE = {"total_tokens": 3, "confcascade": {"answered_by": "small"}}
WHOLE = ChatResponse(message=MESSAGE, raw={"usage": {}}, delta=None, logprobs=LOGPROBS, additional_kwargs=BESIDE)


@pytest.fixture
def made() -> list[None]:
    """One entry for each time that the late fields were made."""
    return []


@pytest.fixture
def response(made) -> ChatResponse:
    def make() -> Any:
        made.append(None)
        return LOGPROBS, BESIDE

    return late_response(MESSAGE, {"usage": {}}, None, make)


def test_who_reads_the_text_makes_nothing(response, made):
    assert str(response) == "assistant: 4"
    assert (response.message, response.raw, response.delta) == (MESSAGE, {"usage": {}}, None)
    assert isinstance(response, ChatResponse)
    LLMChatEndEvent(messages=[], response=response)
    assert made == []


READ: dict[str, Callable[[ChatResponse], Any]] = {
    "an attribute": lambda response: response.additional_kwargs,
    "its log-probabilities": lambda response: response.logprobs,
    "vars": vars,
    "fields in their order": lambda response: [name for name, _ in response],
    "repr": repr,
    "a dump": lambda response: response.model_dump(),
    "a dump of what was set": lambda response: response.model_dump(exclude_unset=True),
    "JSON": lambda response: response.model_dump_json(),
    "an event's dump": lambda response: LLMChatEndEvent(messages=[], response=response).model_dump()["response"],
    "a pickle": lambda response: pickle.loads(pickle.dumps(response)),
    "a copy": copy.copy,
    "a deep copy": copy.deepcopy,
    "pydantic's copy": lambda response: response.model_copy(update={"delta": "4"}),
    "the fields that were set": lambda response: response.model_fields_set,
    "the state": lambda response: response.__getstate__(),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_it_reads_as_one_that_was_made_at_once(response, read):
    assert read(response) == read(WHOLE)
    assert read(response) == read(WHOLE)  # and again


@pytest.mark.parametrize("read", [READ["an attribute"], READ["a dump"], READ["a pickle"]])
def test_once_read_it_is_as_any_other(response, made, read):
    read(response)
    read(response)
    assert len(made) == 1
    assert type(response) is ChatResponse
    response.additional_kwargs = {}
    assert response.additional_kwargs == {}


def test_it_is_equal_both_ways_and_differs_both_ways(response, made):
    twin = late_response(MESSAGE, {"usage": {}}, None, lambda: (LOGPROBS, BESIDE))
    assert response == twin
    for other in (late_response(MESSAGE, None, None, lambda: (None, {})), ChatResponse(message=MESSAGE)):
        assert late_response(MESSAGE, {"usage": {}}, None, lambda: (LOGPROBS, BESIDE)) != other
    assert late_response(MESSAGE, {"usage": {}}, None, lambda: (LOGPROBS, BESIDE)) == WHOLE
    assert late_response(MESSAGE, {"usage": {}}, None, lambda: (LOGPROBS, BESIDE)) in [WHOLE]
    assert WHOLE == late_response(MESSAGE, {"usage": {}}, None, lambda: (LOGPROBS, BESIDE))  # noqa: SIM300


def test_what_is_set_before_it_was_read_stays(response):
    response.delta, response.logprobs = "4", None
    assert (response.delta, response.logprobs, response.additional_kwargs) == ("4", None, BESIDE)


def test_what_it_lacks_is_missing_as_ever(response):
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = response.nothing
