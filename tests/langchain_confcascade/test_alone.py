"""One stage alone is that stage alone: each kind of stage, by each method, against the same stage without a cascade.

The stage's own model is the control: nothing of what is expected is typed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.convert import chunk_from

MESSAGES = [SystemMessage("Be brief."), HumanMessage("capital of France?", name="ann")]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Sum(BaseModel):
    """A sum."""

    total: int


# ---------------------------------------------------------------------- kinds of stages


class Own(BaseChatModel):
    """A model of the user's own, over a client that is asked like ChatOpenAI's."""

    client: Any

    @property
    def _llm_type(self) -> str:
        return "own"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        answer = self.client.invoke(messages, {"callbacks": []}, stop=stop, **options)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self.bind(tools=self.client.bind_tools(tools).kwargs["tools"], **options)


class SyncOnly(Own):
    """Like ChatHuggingFace over a pipeline."""

    model_id: str = "org/tiny"

    async def _agenerate(self, *args: Any, **options: Any) -> ChatResult:
        raise NotImplementedError("async generation is not supported")


class AsyncOnly(Own):
    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise NotImplementedError("synchronous generation is not supported")

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        answer = await self.client.ainvoke(messages, {"callbacks": []}, stop=stop, **options)
        return ChatResult(generations=[ChatGeneration(message=answer)])


class StreamOnly(Own):
    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **options))

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **options))

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Iterator[Any]:
        for chunk in self.client.stream(messages, {"callbacks": []}, stop=stop, **options):
            yield ChatGenerationChunk(message=chunk)

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
        async for chunk in self.client.astream(messages, {"callbacks": []}, stop=stop, **options):
            yield ChatGenerationChunk(message=chunk)


class Delegating(ChatOpenAI):
    """Instruments the public methods, as gateways' wrappers do."""

    def invoke(self, asked: Any, config: Any = None, **options: Any) -> Any:
        return super().invoke(asked, config, **options | {"user": "wrapper"})

    async def ainvoke(self, asked: Any, config: Any = None, **options: Any) -> Any:
        return await super().ainvoke(asked, config, **options | {"user": "wrapper"})

    def stream(self, asked: Any, config: Any = None, **options: Any) -> Any:
        yield from super().stream(asked, config, **options | {"user": "wrapper"})

    async def astream(self, asked: Any, config: Any = None, **options: Any) -> Any:
        async for chunk in super().astream(asked, config, **options | {"user": "wrapper"}):
            yield chunk


class Prompting(ChatOpenAI):
    """Puts a system prompt of its own before every conversation."""

    def _convert_input(self, model_input: Any) -> Any:
        messages = super()._convert_input(model_input).to_messages()
        return super()._convert_input([SystemMessage("You are Ann."), *messages])


class Blocks(BaseChatModel):
    """Thinks in content blocks, as Anthropic's models do."""

    @property
    def _llm_type(self) -> str:
        return "blocks"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **options))

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Iterator[Any]:
        blocks: list[dict[str, Any]] = [{"type": "thinking", "thinking": t, "index": 0} for t in ("so", " then")]
        blocks += [{"type": "thinking", "signature": "abc", "index": 0}]
        blocks += [{"type": "text", "text": t, "index": 1} for t in ("It", " is", " so")]
        for block in blocks:
            yield ChatGenerationChunk(message=AIMessageChunk([block]))
        end = {"stop_reason": "end_turn", "model_provider": "anthropic"}
        yield ChatGenerationChunk(message=AIMessageChunk("", response_metadata=end, chunk_position="last"))


def openai(p: Any, kind: Any = ChatOpenAI, **more: Any) -> Any:
    return kind(**p.settings(**{"stream_usage": True} | more))


def deepseek(p: Any) -> Any:
    settings = p.settings()
    return ChatDeepSeek(model="tiny", api_base=settings["base_url"], api_key="none", max_retries=0, stream_usage=True)


Make = Callable[[Any], Any]
KINDS: dict[str, Make] = {
    "chat": openai,
    "settings": lambda p: openai(p, temperature=0.3, stop=["."], max_tokens=7, model_kwargs={"user": "ann"}),
    "responses": lambda p: openai(p, use_responses_api=True),
    "responses v1": lambda p: openai(p, use_responses_api=True, output_version="responses/v1"),
    "streaming": lambda p: openai(p, streaming=True),
    "not streaming": lambda p: openai(p, disable_streaming=True),
    "sync only": lambda p: SyncOnly(client=openai(p)),
    "async only": lambda p: AsyncOnly(client=openai(p)),
    "stream only": lambda p: StreamOnly(client=openai(p)),
    "own": lambda p: Own(client=openai(p)),
    "delegating": lambda p: openai(p, Delegating),
    "prompting": lambda p: openai(p, Prompting),
    "bound": lambda p: openai(p).bind(seed=7, stop=["."]).with_config(tags=["mine"]),
    "retrying": lambda p: openai(p).with_retry(stop_after_attempt=2, wait_exponential_jitter=False),
    "deepseek": deepseek,
    "blocks": lambda p: Blocks(),
}
SAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "thoughts": {"thoughts": "let me see"},
    "empty": {"text": ""},
    "cut": {"finish": "length"},
    "filtered": {"finish": "content_filter"},
    "call": {"call": ("add", '{"a": 1, "b": 2}')},
    "odd call": {"call": ("subtract", '{"a": "x"}')},
    "broken call": {"call": ("add", '{"a": 1,')},
    "no usage": {"usage": None},
}
ERRORS = (400, 401, 403, 404, 422, 429, 500)


# ---------------------------------------------------------------------- ways to ask


@dataclass
class Streamed:
    chunks: list[Any]


@dataclass
class Events:
    """Of a chat model's run: which came, streamed ones once, and its output."""

    kinds: list[str]
    ends: list[Any]


async def collected(chunks: Any) -> Streamed:
    return Streamed([chunk async for chunk in chunks])


async def events(llm: Any, messages: Any, config: Any) -> Events:
    told = Events([], [])
    async for event in llm.astream_events(messages, config, version="v2"):
        kind = event["event"]
        if kind == "on_chat_model_end":
            told.ends.append(event["data"]["output"])
        if kind in ("on_chat_model_start", "on_chat_model_end"):
            told.kinds.append(kind)
    return told


METHODS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "invoke": lambda llm, messages, config: llm.invoke(messages, config),
    "ainvoke": lambda llm, messages, config: llm.ainvoke(messages, config),
    "stream": lambda llm, messages, config: Streamed(list(llm.stream(messages, config))),
    "astream": lambda llm, messages, config: collected(llm.astream(messages, config)),
    "batch": lambda llm, messages, config: llm.batch([messages, messages], {**config, "max_concurrency": 1}),
    "abatch": lambda llm, messages, config: llm.abatch([messages, messages], {**config, "max_concurrency": 1}),
    "astream_events": events,
}


async def asked(way: str, llm: Any, config: Any) -> Any:
    """What comes back, or the error."""
    try:
        answer = METHODS[way](llm, [message.model_copy() for message in MESSAGES], config)
        return await answer if hasattr(answer, "__await__") else answer
    except Exception as error:
        return error


class Heard(BaseCallbackHandler):
    """How often each callback is called."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self._count("start")

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self._count("end")

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self._count("error")


# ---------------------------------------------------------------------- what is compared

OURS = ("confcascade", "model_name")  # the cascade's record, and its name, under which callbacks count


def shown(told: Any) -> Any:
    """Of an answer, chunks, events or an error: all that the caller can see, but for ids and the cascade's record."""
    if isinstance(told, Streamed):
        return pieces(told.chunks), shown_message(merged(told.chunks))
    if isinstance(told, Events):
        ends = [shown_message(end) for end in told.ends]
        for end in ends:
            del end["blocks"]  # of a chunk that may not say that it is the last
        return told.kinds, ends
    if isinstance(told, AIMessage):
        return shown_message(told)
    if isinstance(told, list):
        return list(map(shown, told))
    # our texts quote nothing (`kept_of`): the class by which an error is caught is the stage's
    return "error", type(told)


def pieces(chunks: list[Any]) -> list[Any]:
    """What each chunk adds; where the model does not stream, its one message."""
    told = [
        (chunk.content, chunk.additional_kwargs, [(c["name"], c["args"]) for c in chunk_from(chunk).tool_call_chunks])
        for chunk in chunks
    ]
    return [piece for piece in told if any(piece)]


def merged(chunks: list[Any]) -> Any:
    return chunks[0] + chunks[1:] if isinstance(chunks[0], AIMessageChunk) else chunks[0]


def shown_message(message: Any) -> dict[str, Any]:
    metadata = {key: value for key, value in message.response_metadata.items() if key not in OURS}
    return {
        "content": message.content,
        "additional_kwargs": message.additional_kwargs,
        "tool_calls": [{**call, "id": None} for call in message.tool_calls],
        "invalid_tool_calls": [{**call, "id": None, "error": None} for call in message.invalid_tool_calls],
        "usage": message.usage_metadata,
        "metadata": metadata,
        "blocks": [{**block, "id": None} for block in message.content_blocks],
    }


def seen(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return json.loads(json.dumps(bodies))


async def compare(make: Make, provider: Any, way: str, wrap: Callable[[Any], Any] = lambda llm: llm) -> None:
    """Ask the model alone, then the cascade of it, and hold the two equal."""
    alone, llm = wrap(make(provider)), wrap(ConfidenceCascadeLLM(models=[make(provider)]))
    expected, ours = Heard(), Heard()
    first = await asked(way, alone, {"callbacks": [expected]})
    without = seen(provider.asked)
    provider.asked.clear()
    second = await asked(way, llm, {"callbacks": [ours]})

    assert shown(second) == shown(first)
    if isinstance(first, Exception) and "batch" in way:  # of which the first error is raised, whatever the rest does
        assert seen(provider.asked)[:1] == without[:1]
    else:
        assert seen(provider.asked) == without
        assert ours.counts == expected.counts or (make is KINDS["retrying"] and set(ours.counts.values()) <= {1, 2})
    provider.asked.clear()


def quick(kinds: Iterable[str], *chosen: str) -> list[Any]:
    """Of all kinds, those that are not chosen are slow to try."""
    return [pytest.param(kind, marks=() if kind in chosen else pytest.mark.slow) for kind in kinds]


def skip_where_the_cascade_does_more(kind: str, way: str) -> None:
    if kind == "sync only" and way in ("ainvoke", "astream", "abatch", "astream_events"):
        pytest.skip("alone it fails; in a cascade it is called in a thread (test_async.py)")


@pytest.mark.parametrize("way", METHODS)
@pytest.mark.parametrize("kind", quick(KINDS, "chat", "responses", "stream only", "delegating", "deepseek", "blocks"))
async def test_an_answer_is_the_stages_own(provider, kind, way):
    """The same request to the server, the same answer, chunks, usage and metadata; callbacks heard as often."""
    skip_where_the_cascade_does_more(kind, way)
    says = SAYS["thoughts"] if kind == "deepseek" else {}
    await compare(KINDS[kind], provider(**says), way)


TOOLS = [
    kind for kind in KINDS if kind not in ("blocks", "bound", "retrying")
]  # of which the latter have no `bind_tools`


@pytest.mark.parametrize("way", METHODS)
@pytest.mark.parametrize("kind", quick(TOOLS, "chat", "responses v1", "prompting"))
async def test_a_call_of_a_bound_tool_is_the_stages_own(provider, kind, way):
    skip_where_the_cascade_does_more(kind, way)
    await compare(KINDS[kind], provider(**SAYS["call"]), way, lambda llm: llm.bind_tools([add]))


@pytest.mark.parametrize("way", ["invoke", "astream", "astream_events"])
@pytest.mark.parametrize("says", [*quick(SAYS, "empty", "filtered", "broken call")])
@pytest.mark.parametrize("kind", ["chat", "responses", "stream only", "deepseek"])
async def test_what_is_no_plain_answer_is_the_stages_own(provider, kind, says, way):
    """Nothing said, cut off, filtered, a call that cannot be used or read, no usage: it is not for us to judge."""
    await compare(KINDS[kind], provider(**SAYS[says]), way, lambda llm: llm.bind_tools([add]))


METHODS_OF_OBJECTS = ("function_calling", "json_mode", "json_schema")
OBJECTS = {"valid": '{"total": 3}', "invalid": '{"total": "many"}', "broken": '{"total": ', "none": ""}


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", METHODS_OF_OBJECTS)
@pytest.mark.parametrize("text", quick(OBJECTS, "valid", "invalid"))
@pytest.mark.parametrize("kind", quick(["chat", "delegating", "deepseek", "stream only"], "chat"))
async def test_an_object_is_the_stages_own(provider, kind, text, method, include_raw):
    """Or the error that its parser, or its client, raises."""
    if kind == "stream only" and method != "function_calling":
        pytest.skip("a model of the user's own knows only this one")
    if include_raw and method == "json_schema" and text != "valid" and kind != "deepseek":
        pytest.skip("alone the client raises; in a cascade `include_raw` never does (test_structured.py)")
    said = OBJECTS[text]
    server = provider(call=("Sum", said)) if method == "function_calling" and said else provider(text=said)
    for way in ("invoke", "ainvoke"):
        found = []
        for llm in (KINDS[kind](server), ConfidenceCascadeLLM(models=[KINDS[kind](server)])):
            objects = llm.with_structured_output(Sum, method=method, include_raw=include_raw)
            try:
                result = await objects.ainvoke(MESSAGES) if way == "ainvoke" else objects.invoke(MESSAGES)
            except Exception as error:
                result = error
            found.append((object_shown(result), seen(server.asked)))
            server.asked.clear()
        assert found[1] == found[0]


def object_shown(result: Any) -> Any:
    if isinstance(result, Exception):
        return type(result), str(result)[:60]  # what follows may quote ids
    if not isinstance(result, dict):
        return result
    raw = shown_message(result["raw"])
    del raw["additional_kwargs"]  # ChatOpenAI puts the parsed object there, which the cascade's parser takes away
    return raw, result["parsed"], type(result["parsing_error"])


@pytest.mark.parametrize("way", METHODS)
@pytest.mark.parametrize("status", quick(map(str, ERRORS), "401", "429"))
@pytest.mark.parametrize("kind", ["chat", "responses", "retrying", "deepseek"])
async def test_an_error_is_caught_as_the_stages_own(provider, kind, status, way):
    """By the class of the provider's client; as often tried."""
    await compare(KINDS[kind], provider(status=int(status)), way)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_what_is_patched_after_the_cascade_was_built_is_called(provider, monkeypatch, way):
    """As tracers and tests patch classes, LangChain's own among them."""
    for owner, name in ((BaseChatModel, way), (ChatOpenAI, way)):
        server, calls = provider(), []
        model = openai(server)
        llm = ConfidenceCascadeLLM(models=[model])
        await asked(way, llm, {})
        original = getattr(owner, name)

        def patched(self: Any, *args: Any, _original: Any = original, _calls: Any = calls, **options: Any) -> Any:
            _calls.append(type(self))
            return _original(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, patched)
            await asked(way, llm, {})
        assert calls.count(ChatOpenAI) == 1
