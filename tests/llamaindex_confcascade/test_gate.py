"""Stages of every make are silent: whatever LLM stands in a cascade, listeners hear one call, the cascade's."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import llama_index.core
import pytest
from confcascade import Wording
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ChatResponseAsyncGen, ChatResponseGen
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.types import Thread
from llama_index.llms.openai import OpenAI
from llama_index_instrumentation.dispatcher import Dispatcher

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.gate import install_gate, is_muted, muted

MESSAGES = [ChatMessage("Capital of Tuvalu?")]
PROMPT = PromptTemplate("Capital of {land}?")


class Place(BaseModel):
    name: str


# ---------------------------------------------------------------------- stages of one's own make


def logged(method: Any) -> Any:
    """A decorator of one's own, around LlamaIndex's."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return call


def decorated(base: Any) -> Any:
    methods = {name: logged(getattr(base, name)) for name in ("chat", "achat", "stream_chat", "astream_chat")}
    return type("Decorated", (base,), {"__module__": __name__, **methods})


def mixed(base: Any) -> Any:
    class Mixin:
        """No LLM, and yet it chats."""

        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            return self._whole(messages, kwargs)

        @llm_chat_callback()
        def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
            return (piece for piece in self._pieces(messages, kwargs))

        @llm_chat_callback()
        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            return self._whole(messages, kwargs)

    return type("Mixed", (Mixin, base), {"__module__": __name__})


def delegating(base: Any) -> Any:
    class Delegating(base):
        """A router, say: it has another LLM, of the same script, answer."""

        def _inner(self) -> LLM:
            return base(name=self.name, script=self.script)

        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            return self._inner().chat(messages, **kwargs)

        @llm_chat_callback()
        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            return await self._inner().achat(messages, **kwargs)

        @llm_chat_callback()
        def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
            return self._inner().stream_chat(messages, **kwargs)

        @llm_chat_callback()
        async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
            return await self._inner().astream_chat(messages, **kwargs)

    return Delegating


def threaded(base: Any) -> Any:
    class Threaded(delegating(base)):
        """Delegates in threads that copy the context: LlamaIndex's own, and asyncio's."""

        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            found: list[ChatResponse] = []
            thread = Thread(target=lambda: found.append(self._inner().chat(messages, **kwargs)))
            thread.start()
            thread.join()
            return found[0]

        @llm_chat_callback()
        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            return await asyncio.to_thread(self._inner().chat, messages, **kwargs)

    return Threaded


def pooled(base: Any) -> Any:
    class Pooled(delegating(base)):
        """Delegates in the threads of a pool, which know nothing of the context."""

        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(self._inner().chat, messages, **kwargs).result()

        @llm_chat_callback()
        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            call = functools.partial(self._inner().chat, messages, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(None, call)

    return Pooled


def registering(base: Any) -> Any:
    class Registering(base):
        """Its hook wants an argument, as that of a registry may."""

        def __init_subclass__(cls, *, tier: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)

    class Registered(Registering, tier="small"):
        pass

    return Registered


def inner_cascade(base: Any) -> Callable[..., LLM]:
    def make(name: str, script: Any) -> LLM:
        tiny = base(name="tiny", script=script)
        return ConfidenceCascadeLLM(models=[tiny, base(name=name, script=script)], threshold=0.8)

    return make


def structured(base: Any) -> Callable[..., LLM]:
    return lambda name, script: base(name=name, script=script).as_structured_llm(Place)


KINDS: dict[str, Callable[[Any], Callable[..., LLM]]] = {
    "as it is": lambda base: base,
    "decorated": decorated,
    "mixin": mixed,
    "delegating": delegating,
    "in threads": threaded,
    "in a pool": pooled,
    "with a hook": registering,
    "inner cascade": inner_cascade,
    "structured": structured,
}


async def chat(llm: LLM) -> Any:
    return llm.chat(MESSAGES)


async def achat(llm: LLM) -> Any:
    return await llm.achat(MESSAGES)


async def stream(llm: LLM) -> Any:
    return list(llm.stream_chat(MESSAGES))[-1]


async def astream(llm: LLM) -> Any:
    return [piece async for piece in await llm.astream_chat(MESSAGES)][-1]


async def an_object(llm: LLM) -> Any:
    return llm.structured_predict(Place, PROMPT, land="Tuvalu")


async def an_object_later(llm: LLM) -> Any:
    return await llm.astructured_predict(Place, PROMPT, land="Tuvalu")


WAYS = [chat, achat, stream, astream, an_object, an_object_later]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_cascade_is_heard(
    kind: str, way: Any, calling, said, events, spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair of events, no draft in any, and each paid token counted once, whatever make a stage is of."""
    counter = TokenCountingHandler(tokenizer=str.split)
    monkeypatch.setattr(llama_index.core, "global_handler", counter)

    class InWords(type(calling("x", "y"))):
        """Asked for objects, it writes JSON."""

        calls_tools: bool = False

    small = KINDS[kind](InWords)(name="small", script=said('{"name": "Lima"}', p=0.3))
    large = InWords(name="large", script='{"name": "Funafuti"}')
    # a structured LLM returns no log-probabilities: it is judged by its text
    judged = {"signals": [Wording()], "threshold": "never"} if kind == "structured" else {"threshold": 0.8}
    llm = ConfidenceCascadeLLM(models=[small, large], **judged)

    answer = await way(llm)

    assert "Funafuti" in repr(answer)
    assert "Lima" not in repr(events.seen)
    assert classes(events) == ["ConfidenceCascadeLLM"]
    assert {span.id_.partition(".")[0] for span in spans.all} == {"ConfidenceCascadeLLM"}
    (counted,) = counter.llm_token_counts
    if isinstance(answer, ChatResponse):
        usage = answer.additional_kwargs["confcascade"]["usage"]
        assert counted.total_token_count == usage["input_tokens"] + usage["output_tokens"]


async def test_a_method_that_is_patched_later_is_seen(calling, said) -> None:
    """Also after a call: a test that replaces `chat` would otherwise ask the real server, and pay."""
    small, large = calling("small", said("draft", p=0.3)), calling("large", "answer")
    llm = ConfidenceCascadeLLM(models=[small, large], threshold=0.8)
    assert llm.chat(MESSAGES).message.content == "answer"

    replaced = ChatResponse(message=ChatMessage("replaced"))
    with patch.object(type(small), "chat", lambda *_, **__: replaced):
        assert llm.chat(MESSAGES).message.content == "replaced"
    assert llm.chat(MESSAGES).message.content == "answer"


async def test_a_stage_is_heard_where_it_is_asked_without_the_cascade(calling, events) -> None:
    """Before, between the pieces of the cascade's stream, and after."""
    stage = calling("only", "one two three")
    llm = ConfidenceCascadeLLM(models=[stage])
    heard = lambda: classes(events).count(stage.class_name())  # noqa: E731

    pieces = llm.stream_chat(MESSAGES)
    next(pieces)
    stage.chat(MESSAGES)
    assert heard() == 1
    apieces = await llm.astream_chat(MESSAGES)
    await anext(apieces)
    await stage.achat(MESSAGES)
    assert heard() == 2
    pieces.close()
    await apieces.aclose()
    stage.chat(MESSAGES)
    assert heard() == 3


def test_a_stages_own_callbacks_hear_nothing_of_the_cascades_calls(calling) -> None:
    """And all of what is asked without it; the cascade's hear both stages."""
    own, ours = (TokenCountingHandler(tokenizer=str.split) for _ in range(2))
    stage = calling("small", "draft", callback_manager=CallbackManager([own]))
    models, listening = [stage, calling("large", "answer")], CallbackManager([ours])
    llm = ConfidenceCascadeLLM(models=models, threshold="never", callback_manager=listening)

    llm.chat(MESSAGES)
    assert (len(own.llm_token_counts), len(ours.llm_token_counts)) == (0, 1)
    stage.chat(MESSAGES)
    assert (len(own.llm_token_counts), len(ours.llm_token_counts)) == (1, 1)


def classes(events: Any) -> list[str]:
    """Of the LLMs that were heard; attempts, which are told with the names of their models, have none."""
    told = [event.model_dict for event in events.seen if isinstance(event, LLMChatStartEvent)]
    return [each["class_name"] for each in told if "class_name" in each]


# ---------------------------------------------------------------------- the gate itself


async def test_whatever_reports_is_mute_within_and_only_within(events, spans) -> None:
    """Each method of the dispatcher and of callback managers, in functions and streams of both kinds."""
    counter = TokenCountingHandler(tokenizer=str.split)
    manager, dispatcher = CallbackManager([counter]), get_dispatcher()

    @dispatcher.span
    def report() -> bool:
        with manager.as_trace("t"):
            dispatcher.event(LLMChatStartEvent(messages=[], additional_kwargs={}, model_dict={}))
            manager.on_event_end(CBEventType.LLM, {}, event_id=manager.on_event_start(CBEventType.LLM))
        return is_muted()

    @muted
    def stepwise() -> Iterator[bool]:
        yield report()
        try:
            yield report()
        finally:
            assert report()

    @muted
    async def astepwise() -> Any:
        yield report()
        await dispatcher.aevent(LLMChatStartEvent(messages=[], additional_kwargs={}, model_dict={}))
        yield report()

    @muted
    async def later() -> bool:
        await asyncio.sleep(0)
        return report()

    assert muted(report)()
    assert await later()
    items: Any = stepwise()
    assert next(items)
    assert not is_muted()
    items.close()
    assert [item async for item in astepwise()] == [True, True]
    assert events.seen == spans.all == counter.llm_token_counts == []

    assert report() is False
    assert len(events.seen) == len(spans.all) == len(counter.llm_token_counts) == 1


async def test_what_outlives_a_stages_call_is_heard_afterwards(calling) -> None:
    """Tasks and threads copy the context of the call that starts them; a call that is left open mutes no other."""
    asked: asyncio.Queue[asyncio.Future[bool]] = asyncio.Queue()
    base, workers = type(calling("x", "y")), []

    async def work() -> None:
        while True:
            (await asked.get()).set_result(is_muted())

    async def heard() -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await asked.put(future)
        return await future

    class Queued(base):
        """Its client starts a worker when it is first needed."""

        @llm_chat_callback()
        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            workers.append(asyncio.create_task(work()))
            assert await heard()
            return self._whole(messages, kwargs)

        @llm_chat_callback()
        async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
            async def pieces() -> Any:
                workers.append(asyncio.create_task(work()))
                for piece in self._pieces(messages, kwargs):
                    yield piece

            return pieces()

    llm = ConfidenceCascadeLLM(models=[Queued(name="only", script="one two three")])
    await llm.achat(MESSAGES)
    assert await heard() is False
    workers.pop().cancel()
    pieces = await llm.astream_chat(MESSAGES)
    await anext(pieces)
    assert await heard() is True  # what it does belongs to the stream, whose reader holds it
    assert not is_muted()
    await pieces.aclose()
    await asyncio.sleep(0)
    assert await heard() is False
    workers.pop().cancel()


async def test_a_thread_of_a_call_that_is_cancelled_stays_mute_to_its_end() -> None:
    """It still has the draft."""
    begun, cancelled, found = threading.Event(), threading.Event(), []

    def blocking() -> None:
        begun.set()
        cancelled.wait(5)
        found.append(is_muted())

    @muted
    async def asked() -> None:
        await asyncio.to_thread(blocking)

    task = asyncio.create_task(asked())
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    await asyncio.to_thread(lambda: [time.sleep(0.01) for _ in range(500) if not found])
    assert found == [True]


def test_the_gate_is_put_in_once() -> None:
    before = Dispatcher.event
    install_gate()
    assert Dispatcher.event is before


@pytest.mark.slow
def test_the_order_of_imports_does_not_matter() -> None:
    """In a process that imports the cascade first; here, LlamaIndex was."""
    program = """
import llamaindex_confcascade
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.mock import MockLLM
class Handler(BaseEventHandler):
    def handle(self, event, **kwargs):
        print(type(event).__name__, getattr(event, "model_dict", {}).get("class_name", ""))
get_dispatcher().add_event_handler(Handler())
llamaindex_confcascade.ConfidenceCascadeLLM(models=[MockLLM()]).complete("hi")
"""
    heard = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert heard.splitlines() == ["LLMCompletionStartEvent ConfidenceCascadeLLM", "LLMCompletionEndEvent "]


def test_openais_class_is_asked_silently(openai_server, said, events) -> None:
    small = openai_server.llm("gpt-4o-mini", said("Lima", p=0.3), cls=OpenAI)
    llm = ConfidenceCascadeLLM(models=[small, openai_server.llm("gpt-4o", "Funafuti")], threshold=0.8)

    assert list(llm.stream_chat(MESSAGES))[-1].message.content == "Funafuti"
    assert classes(events) == ["ConfidenceCascadeLLM"]
    assert "Lima" not in repr(events.seen)
