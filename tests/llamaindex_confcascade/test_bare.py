"""A stage's methods beneath LlamaIndex's own decorators, and responses that are made without being validated."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import pytest
from confcascade import Stage
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    LogProb,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from pydantic import PrivateAttr

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.bare import bare
from llamaindex_confcascade.made import copied, made

MESSAGES = [ChatMessage(role=MessageRole.USER, content="2+2?")]


class Small(LLM):
    """Notes what of it is called."""

    _called: list[str] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="small", is_chat_model=True)

    def to_payload(self) -> dict[str, Any]:
        self._called.append("to_payload")
        return super().to_payload()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        self._called.append("chat")
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content="4"))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        self._called.append("achat")
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content="4"))

    def complete(self, *_: Any, **__: Any) -> CompletionResponse:
        raise NotImplementedError

    stream_chat = astream_chat = stream_complete = acomplete = astream_complete = complete  # type: ignore[assignment]


def _ask(llm: LLM, asynchronous: bool) -> ChatResponse:
    cascade = ConfidenceCascadeLLM(stages=[Stage(llm)])
    return asyncio.run(cascade.achat(MESSAGES)) if asynchronous else cascade.chat(MESSAGES)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_nobody_hears_is_not_prepared(asynchronous: bool) -> None:
    llm = Small()
    assert _ask(llm, asynchronous).message.content == "4"
    assert llm._called == ["achat" if asynchronous else "chat"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_decorator_of_ones_own_is_called(asynchronous: bool) -> None:
    called = []

    def own(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(method.__name__)
            return method(*args, **kwargs)

        return call

    class Around(Small):
        chat = own(Small.chat)
        achat = own(Small.achat)

    _ask(Around(), asynchronous)
    assert called == ["achat" if asynchronous else "chat"]


def test_a_method_that_is_patched_is_called() -> None:
    llm = Small()

    def patched(messages: Any, **_: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content="patched"))

    cascade = ConfidenceCascadeLLM(stages=[Stage(llm)])
    assert cascade.chat(MESSAGES).message.content == "4"
    object.__setattr__(llm, "chat", patched)
    assert cascade.chat(MESSAGES).message.content == "patched"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rate_limiter_is_waited_for(monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    acquired = []

    async def acquire() -> None:
        acquired.append("async")

    limiter = TokenBucketRateLimiter(requests_per_minute=1000)
    monkeypatch.setattr(type(limiter), "acquire", lambda _: acquired.append("sync"))
    monkeypatch.setattr(type(limiter), "async_acquire", lambda _: acquire())
    _ask(Small(rate_limiter=limiter), asynchronous)
    assert acquired == ["async" if asynchronous else "sync"]


def test_a_class_that_looks_its_attributes_up_itself_is_asked_through_that() -> None:
    class Looking(Small):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            return (lambda *_, **__: "looked up") if name == "chat" else found

    assert bare(Looking(), "chat")(MESSAGES) == "looked up"


LOGPROBS = [[{"token": "4", "logprob": -0.5, "bytes": [52]}]]
FIELDS: dict[str, Any] = {"message": MESSAGES[0], "raw": {"a": 1}, "delta": "4", "additional_kwargs": {"b": 2}}


def test_what_is_made_is_what_validation_makes() -> None:
    validated = ChatResponse(**FIELDS, logprobs=LOGPROBS)
    ours = made(
        ChatResponse,
        message=FIELDS["message"],
        raw=FIELDS["raw"],
        delta="4",
        logprobs=[[made(LogProb, **told) for told in position] for position in LOGPROBS],
        additional_kwargs=FIELDS["additional_kwargs"],
    )
    assert ours == validated
    assert list(vars(ours)) == list(vars(validated)) == list(ChatResponse.model_fields)
    assert ours.model_dump_json() == validated.model_dump_json()
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == ours.model_copy() == validated
    assert ChatResponse.model_validate(ours) is ours


def test_a_copied_message_can_be_changed_without_the_other() -> None:
    message = ChatMessage(role=MessageRole.USER, content="2+2?", additional_kwargs={"a": 1})
    fresh = copied(message)
    assert fresh == message
    fresh.blocks.append(fresh.blocks[0])
    fresh.additional_kwargs["b"] = 2
    assert (len(message.blocks), message.additional_kwargs) == (1, {"a": 1})
