"""Where a stage's chat model is entered: below LangChain's public methods only where they would do nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from confcascade.testing import ScriptedModel
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from pydantic import PrivateAttr

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.entering import ainvoked, astreamed, invoked, streamed

ENTRY = {"token": "4", "logprob": -0.01, "bytes": [52], "top_logprobs": []}


class Chat(BaseChatModel):
    """Says what a result and its generation say beside the message."""

    logprobs: bool = True
    pieces: int = 2
    _asked: list[str] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        self._asked.append("_generate")
        info = {"finish_reason": "stop", "logprobs": {"content": [ENTRY]}}
        generation = ChatGeneration(message=AIMessage("4"), generation_info=info)
        return ChatResult(generations=[generation], llm_output={"model_name": "chat", "finish_reason": "unknown"})

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._asked.append("_stream")
        for _each in range(self.pieces):
            info = {"logprobs": {"content": [ENTRY]}}
            yield ChatGenerationChunk(message=AIMessageChunk("4"), generation_info=info)


class Told(Chat):
    """Its methods cannot be called without the manager of a run."""

    def _generate(self, messages: list[BaseMessage], stop: Any, run_manager: Any, **_: Any) -> ChatResult:  # type: ignore[override]
        return super()._generate(messages, stop)


class Untold(Chat):
    """Its methods cannot be called with one."""

    def _generate(self, messages: list[BaseMessage], stop: Any = None, *, logprobs: Any = None) -> ChatResult:  # type: ignore[override]
        return super()._generate(messages, stop)

    async def _agenerate(self, messages: list[BaseMessage], stop: Any = None) -> ChatResult:  # type: ignore[override]
        return super()._generate(messages, stop)


class Limiter(BaseRateLimiter):
    def __init__(self) -> None:
        self.acquired = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


def _whole(chat: BaseChatModel, asynchronous: bool, runnable: Any = None) -> Any:
    asked: Any = (chat, runnable or chat, [AIMessage("2+2?")], {})
    return asyncio.run(ainvoked(*asked)) if asynchronous else invoked(*asked)


def _streamed(chat: BaseChatModel, asynchronous: bool) -> list[Any]:
    asked: Any = (chat, chat, [AIMessage("2+2?")], {})

    async def all_of(items: AsyncIterator[Any]) -> list[Any]:
        return [item async for item in items]

    return asyncio.run(all_of(astreamed(*asked))) if asynchronous else list(streamed(*asked))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", [Chat, Told, Untold])
def test_the_message_is_that_of_invoke(kind: type[Chat], asynchronous: bool) -> None:
    alone, entered = kind().invoke("2+2?"), _whole(kind(), asynchronous)
    assert entered.content == alone.content
    assert entered.response_metadata == alone.response_metadata
    assert list(entered.response_metadata) == list(alone.response_metadata)
    assert entered.response_metadata["finish_reason"] == "stop"  # the generation's comes before the result's


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_pieces_are_those_of_stream(asynchronous: bool) -> None:
    alone, entered = list(Chat().stream("2+2?")), _streamed(Chat(), asynchronous)

    def told(pieces: list[Any]) -> list[Any]:
        return [(piece.content, piece.response_metadata, piece.chunk_position) for piece in pieces]

    assert told(entered) == told(alone)
    assert entered[-1].chunk_position == "last"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_without_a_piece_fails_as_langchains_does(asynchronous: bool) -> None:
    with pytest.raises(ValueError, match="No generation chunks"):
        list(Chat(pieces=0).stream("2+2?"))
    with pytest.raises(ValueError, match="No generation chunks"):
        _streamed(Chat(pieces=0), asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_methods_between_are_left_out_only_where_they_do_nothing(
    monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """LangChain's own method is passed by; one that is overridden, as by a tracer that patches the class, is called."""
    name = "_agenerate_with_cache" if asynchronous else "_generate_with_cache"
    called = []
    theirs = getattr(BaseChatModel, name)

    class Overriding(Chat):
        pass

    def overriding(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(type(self).__name__)
        return theirs(self, *args, **kwargs)

    setattr(Overriding, name, overriding)
    _whole(Overriding(), asynchronous)
    assert called == ["Overriding"]
    monkeypatch.setattr(BaseChatModel, name, overriding)
    _whole(Chat(), asynchronous)
    assert called == ["Overriding", "Chat"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_answers_are_looked_up_in_a_cache(everywhere: bool, asynchronous: bool) -> None:
    chat = Chat(cache=None if everywhere else InMemoryCache())
    set_llm_cache(InMemoryCache() if everywhere else None)
    try:
        for _ in range(2):
            assert _whole(chat, asynchronous).content == "4"
    finally:
        set_llm_cache(None)
    assert chat._asked == ["_generate"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rate_limiter_is_waited_for(asynchronous: bool) -> None:
    limiter = Limiter()
    _whole(Chat(rate_limiter=limiter), asynchronous)
    _streamed(Chat(rate_limiter=limiter), asynchronous)
    assert limiter.acquired == 2


def test_a_model_that_streams_where_it_is_invoked_streams() -> None:
    class Streaming(Chat):
        streaming: bool = False

    chat = Streaming(streaming=True)
    assert _whole(chat, asynchronous=False).content == "44"
    assert chat._asked == ["_stream"]


def test_blocks_are_made_of_the_content_where_that_is_wanted() -> None:
    assert _whole(Chat(output_version="v1"), asynchronous=False).content == [{"type": "text", "text": "4"}]


class Heard(BaseCallbackHandler):
    """Keeps where it is told of attempts, and of which runs."""

    def __init__(self, *, run_inline: bool = False) -> None:
        self.run_inline = run_inline
        self.told: list[tuple[str, UUID, int]] = []

    def on_chain_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.told.append(("start", run_id, threading.get_ident()))

    def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.told.append(("end", run_id, threading.get_ident()))


class Awaited(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.told: list[tuple[str, UUID, int]] = []

    async def on_chain_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        await asyncio.sleep(0)
        self.told.append(("start", run_id, threading.get_ident()))

    async def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.told.append(("end", run_id, threading.get_ident()))


def test_handlers_hear_of_an_attempt_where_langchain_would_call_them() -> None:
    """Those that may block in a thread, the others in the event loop; all of the same run."""
    blocking, other, inline, awaited = Heard(), Heard(), Heard(run_inline=True), Awaited()
    small = ScriptedModel("small", {"2+2?": ("4", 0.99)})
    llm = ConfidenceCascadeLLM(models=[small, ScriptedModel("large")], threshold=0.9)
    asyncio.run(llm.ainvoke("2+2?", {"callbacks": [blocking, other, inline, awaited]}))
    handlers: list[Any] = [blocking, other, inline, awaited]
    assert [[what for what, *_ in each.told] for each in handlers] == [["start", "end"]] * 4
    assert len({run_id for each in handlers for _, run_id, _ in each.told}) == 1
    here = threading.get_ident()
    assert [[thread == here for *_, thread in each.told] for each in handlers] == [[False] * 2] * 2 + [[True] * 2] * 2
