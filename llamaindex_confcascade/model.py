"""Any LlamaIndex LLM as a model of a cascade: convert the ask, call the LLM, read what came back."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing
from typing import Any, TypeVar

from confcascade import Architecture, ConfigurationError, Decoding, Request
from confcascade.extending import (
    LEAST_LISTED,
    CallParameters,
    Capability,
    Chunk,
    Continues,
    Generate,
    Refusals,
    Remote,
    Response,
    as_stream,
    check_one_text,
    in_threads,
    in_turn,
    is_repeated,
)
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.asking import (
    Way,
    cascade_in,
    owner_of,
    seen_from,
    wanting,
    ways_of,
)
from llamaindex_confcascade.closing import aclose, close
from llamaindex_confcascade.continuing import Continuing
from llamaindex_confcascade.decoding import ClientSettings, own_settings
from llamaindex_confcascade.gate import muted
from llamaindex_confcascade.huggingface import HuggingFaceModel, loaded_name, remedy_for
from llamaindex_confcascade.reading import Reading, response_from
from llamaindex_confcascade.structured import Asking
from llamaindex_confcascade.tools import can_call_tools, prepared

__all__ = ["LlamaIndexModel", "settings_of"]

T = TypeVar("T")

# fields of LLMs that say who asks, and not what is answered
_CREDENTIALS = re.compile("key|secret|password|credential|headers|token$")
# classes and what derives from them, by name: importing them would need their packages
_NO_LOGPROBS = {  # with what to do about it
    "Anthropic": "",
    "HuggingFaceLLM": "",  # see `remedy_for`
    "LangChainLLM": "",
    "MistralAI": "",
    "Ollama": 'Ask its own /v1: OpenAILike(model=..., api_base="http://localhost:11434/v1", is_chat_model=True).',
    "StructuredLLM": "Call `as_structured_llm` on the cascade instead: each stage is then judged.",
    "Vllm": 'Serve the model: OpenAILike(model=..., api_base="http://localhost:8000/v1", is_chat_model=True).',
    "VllmServer": 'Ask its /v1: OpenAILike(model=..., api_base="http://localhost:8000/v1", is_chat_model=True).',
}
_OPENAI = {"OpenAI", "OpenAILike"}
_BLOCKING = {"CustomLLM", "HuggingFaceLLM", "LangChainLLM"}  # their asynchronous methods call the synchronous ones


class LlamaIndexModel(Remote):
    """A LlamaIndex LLM as a `LanguageModel` of the core.

    The LLM is never changed: log-probabilities are asked for per call, where a signal needs them and the LLM's methods
    take further parameters. One that refuses them is asked again without (`confcascade.models.calls`).

    Args:
        native: The LLM. Nobody hears its own callbacks, events and spans: see `gate`.
        name: What records call it; by default as it is called itself.
        continues: How its server goes on writing an answer that has been begun, for ``mode="stepwise"``, where its
            class can say so: "continue_final_message" for vLLM and SGLang and `OpenAI` or `OpenAILike`, "trailing" for
            a server that continues a last message of the assistant by itself.

    Raises:
        ConfigurationError: If the LLM does not know its own model, and so could never answer, or its class cannot say
            `continues`.
    """

    def __init__(self, native: LLM, name: str = "", *, continues: Continues | None = None) -> None:
        ancestors = {cls.__name__ for cls in type(native).__mro__}
        self.native = native
        self._name = name or _name(native)
        silent = [name for name in _NO_LOGPROBS if name in ancestors]
        self._silent = bool(silent)
        self._remedy = remedy_for(native) or next((_NO_LOGPROBS[name] for name in silent), "")
        inner = cascade_in(native)
        if inner is not None and not isinstance(inner.stages[-1].model, LlamaIndexModel | HuggingFaceModel):
            # only these can be asked for them where no signal of their own stage wants them
            self._silent, self._remedy = True, "Put its models into this cascade instead."
        self._is_openai = not ancestors.isdisjoint(_OPENAI)
        self._calls_tools: bool | None = None
        self._capability: Capability | None = None
        self._is_responses = "OpenAIResponses" in ancestors
        metadata = None if continues is None or inner is not None or self._is_responses else self.metadata
        chats = metadata is not None and metadata.is_chat_model
        self._continuing = Continuing.of(continues, native, self._name, chats=chats, is_openai=self._is_openai)
        self._takes: dict[str, bool] = {}  # methods, and whether they take any parameter
        self._settings = ClientSettings(native)
        self._refusals = Refusals(self._name, {"logprobs": ("logprobs",), "stream_options": ("stream_options",)})
        self._lacks: set[str] = set()  # methods, or kinds of them, that it turned out not to have
        if "StructuredLLM" in ancestors:  # its streams hold objects that are not whole, and no text that grows
            self._lacks |= {"stream_chat", "astream_chat"}

    def __repr__(self) -> str:
        return f"LlamaIndexModel({type(self.native).__name__}, name={self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        if self._calls_tools is None:  # asked once, for some LLMs ask their server
            self._calls_tools = can_call_tools(self.native)
            self._capability = None
        if self._capability is None:
            self._capability = self._capable()
        return self._capability

    def _capable(self) -> Capability:
        return Capability(
            logprobs=False if self._silent else None,
            top_logprobs=20,
            tools=bool(self._calls_tools),
            structured=True,  # in words, if in no other way
            media=True,
            remedy=self._remedy,
            continues=self._continuing.how is not None,
            set_per_call=False,  # some hand a parameter that they do not know to a client that fails of it
        )

    @property
    def own_decoding(self) -> dict[str, Any]:
        """How it is set to decode, where it says."""
        return own_settings(self.native)

    def check_decoding(self, decoding: Decoding) -> None:
        """Raise `ConfigurationError` if a stage's setting does not come through to the provider."""
        self._settings.check(self._name, decoding)

    @property
    def architecture(self) -> Architecture | None:
        return None

    @property
    def metadata(self) -> LLMMetadata | None:
        """The LLM's own; None if it cannot be told now (some ask their server)."""
        try:
            return self.native.metadata
        except Exception:
            return None

    # ------------------------------------------------------------------ LanguageModel

    @muted
    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        ask = wanting(ask)
        if ask.request.output is not None:  # an object comes whole
            yield self.answer(ask)
            return
        for way, last in self._ways(ask):
            begun = False
            try:
                with closing(self._stream_by(way, ask)) as items:
                    for item in items:
                        begun = True
                        yield item
            except NotImplementedError:
                if begun or last:
                    raise
            else:
                return

    def _stream_by(self, way: Way, ask: Generate) -> Generator[Chunk | Response, None, None]:
        method = way.method(streams=True)
        if method not in self._lacks:
            begun = False
            try:
                with closing(self._stream(way, ask)) as items:
                    for item in items:
                        begun = True
                        yield item
            except NotImplementedError:
                if begun:
                    raise
            else:
                return
        answer = self._answer(way, ask)
        self._lacks.add(method)  # after an answer: what fails either way has not shown what it lacks
        yield from as_stream(answer, live=ask.live)

    def _stream(self, way: Way, ask: Generate) -> Generator[Chunk | Response, None, None]:
        reading = self._reading(way, ask)
        way, call = self._call(way, ask, streams=True)
        responses = self._responses(way, call)
        try:
            for response in responses:
                yield from reading.take(response)
                if reading.ended:
                    break
        finally:
            close(responses)
        if call.whole:
            yield from as_stream(call.came_whole(self._answer(way, ask)), live=ask.live)
        else:
            yield self._whole(call, reading)

    @muted
    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        ask = wanting(ask)
        if ask.request.output is not None:
            yield await self.aanswer(ask)
            return
        for way, last in self._ways(ask):
            begun = False
            try:
                async with aclosing(self._astream_by(way, ask)) as items:
                    async for item in items:
                        begun = True
                        yield item
            except NotImplementedError:
                if begun or last:
                    raise
            else:
                return

    async def _astream_by(self, way: Way, ask: Generate) -> AsyncGenerator[Chunk | Response]:
        method = way.method(streams=True, is_async=True)
        if not self._blocks(method):
            begun = False
            try:
                async with aclosing(self._astream(way, ask)) as items:
                    async for item in items:
                        begun = True
                        yield item
            except NotImplementedError:
                if begun:
                    raise
            else:
                return
        async for item in in_threads(self._stream_by(way, ask)):
            self._lacks.add(method)
            yield item

    async def _astream(self, way: Way, ask: Generate) -> AsyncGenerator[Chunk | Response]:
        reading = self._reading(way, ask)
        way, call = self._call(way, ask, streams=True)
        responses = self._aresponses(way, call)
        try:
            async for response in responses:
                for chunk in reading.take(response):
                    yield chunk
                if reading.ended:
                    break
        finally:
            await aclose(responses)
        if call.whole:
            for item in as_stream(call.came_whole(await self._aanswer(way, ask)), live=ask.live):
                yield item
        else:
            yield self._whole(call, reading)

    def _reading(self, way: Way, ask: Generate) -> Reading:
        repeated = is_repeated(self._continuing.how)
        return Reading(ask, way.llm, self._is_openai, repeated=repeated, so_far=self._continuing.so_far(ask))

    def _whole(self, call: CallParameters, reading: Reading) -> Response:
        response = reading.response()
        check_one_text(call.ask, response)
        return call.explained(response)

    # ------------------------------------------------------------------ calls

    @muted
    def answer(self, ask: Generate) -> Response:
        ask = wanting(ask)
        if ask.request.output is not None:
            return self._object(ask)
        for way, last in self._ways(ask):
            try:
                return self._answer(way, ask)
            except NotImplementedError:
                if last:
                    raise
        raise AssertionError  # there is always a last one

    def _answer(self, way: Way, ask: Generate) -> Response:
        way, call = self._call(way, ask)
        return call.explained(response_from(_answered(call, way.whole), ask, way.llm))

    @muted
    async def aanswer(self, ask: Generate) -> Response:
        ask = wanting(ask)
        if ask.request.output is not None:
            if not self._blocks("achat"):
                try:
                    return await self._aobject(ask)
                except NotImplementedError:
                    pass
            return await self._in_a_thread("achat", lambda: self._object(ask))
        for way, last in self._ways(ask):
            try:
                return await self._aanswer(way, ask)
            except NotImplementedError:
                if last:
                    raise
        raise AssertionError

    async def _aanswer(self, way: Way, ask: Generate) -> Response:
        method = way.method(is_async=True)
        if not self._blocks(method):
            try:
                asking, call = self._call(way, ask)
                return call.explained(response_from(await _aanswered(call, asking.awhole), ask, way.llm))
            except NotImplementedError:
                pass
        return await self._in_a_thread(method, lambda: self._answer(way, ask))

    async def _in_a_thread(self, method: str, blocking: Callable[[], Response]) -> Response:
        """What the synchronous method answers in a thread, where the LLM lacks the asynchronous one."""
        response = await asyncio.to_thread(blocking)
        self._lacks.add(method)
        return response

    def _ways(self, ask: Generate) -> Iterator[tuple[Way, bool]]:
        """How the LLM is asked, each with whether it is the last; a way that it was found to lack is left out."""
        ways = ways_of(self._seen(ask.request), ask.request, ask.top_logprobs if ask.logprobs else None)
        if in_turn(ask):  # a chat, whose last message is what has been written
            ways = [self._continuing.behind(ways[-1], ask.request.written)]
        if len(ways) > 1 and ways[0].kind in self._lacks:
            del ways[0]
        for i, way in enumerate(ways):
            yield way, i == len(ways) - 1
            if way.kind == "complete":  # whoever is asked for another way has not been answered
                self._lacks.add(way.kind)

    def _seen(self, request: Request) -> LLM:
        """The LLM as it is asked: with what the cascade's user has set for all stages."""
        return seen_from(self.native, getattr(request.native, "settings", {}))

    def _object(self, ask: Generate) -> Response:
        """Structured output, asked for and read by the LLM's own `structured_predict`."""
        native = self.native
        asking = Asking(ask, native)

        def chat(messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
            return asking.keep(_answered(self._parameters(ask, options, "chat"), Way(native, "chat", messages).whole))

        def complete(prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
            def completed(**parameters: Any) -> ChatResponse:
                return asking.keep_completion(native.complete(prompt, formatted=formatted, **parameters))

            _answered(self._parameters(ask, options, "chat"), completed)
            return asking.completion

        seen = seen_from(self._seen(ask.request), {"chat": chat, "complete": complete})
        try:
            value = seen.structured_predict(**asking.arguments())
        except Exception as error:
            return asking.response(None, error)
        return asking.response(value, None)

    async def _aobject(self, ask: Generate) -> Response:
        native = self.native
        asking = Asking(ask, native)

        async def chat(messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
            return asking.keep(
                await _aanswered(self._parameters(ask, options, "chat"), Way(native, "chat", messages).awhole)
            )

        async def complete(prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
            async def completed(**parameters: Any) -> ChatResponse:
                completion = await native.acomplete(prompt, formatted=formatted, **parameters)
                return asking.keep_completion(completion)

            await _aanswered(self._parameters(ask, options, "chat"), completed)
            return asking.completion

        seen = seen_from(self._seen(ask.request), {"achat": chat, "acomplete": complete})
        try:
            value = await seen.astructured_predict(**asking.arguments())
        except Exception as error:
            return asking.response(None, error)
        return asking.response(value, None)

    def _responses(self, way: Way, call: CallParameters) -> Generator[ChatResponse, None, None]:
        while not (call.is_answered or call.whole):
            try:
                for response in way.streamed(**call.parameters):
                    call.answered()
                    yield response
            except Exception as error:
                call.retry_without(error)
            else:
                call.answered()

    async def _aresponses(self, way: Way, call: CallParameters) -> AsyncGenerator[ChatResponse]:
        while not (call.is_answered or call.whole):
            try:
                async with aclosing(way.astreamed(**call.parameters)) as responses:
                    async for response in responses:
                        call.answered()
                        yield response
            except Exception as error:
                call.retry_without(error)
            else:
                call.answered()

    def _call(self, way: Way, ask: Generate, streams: bool = False) -> tuple[Way, CallParameters]:
        options = dict(ask.request.options)
        if ask.request.tools:
            messages, options = prepared(way.llm, ask.request, list(way.messages))
            way = Way(way.llm, "chat", messages)
        way = self._continuing.told(way, ask, options)
        return way, self._parameters(ask, options, way.method(streams=streams))

    def _parameters(self, ask: Generate, options: dict[str, Any], method: str) -> CallParameters:
        """The parameters of a call of one of the LLM's methods, with what `ask` adds to them."""
        request, given, streams = ask.request, dict(options), "stream" in method
        added: dict[str, dict[str, Any]] = {}
        if request.max_tokens is not None:
            given["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            given["temperature"] = request.temperature
        if request.stop:
            given["stop"] = list(request.stop)
        if ask.logprobs and self._asks(method):
            # LlamaIndex drops, and some servers do not tell, log-probabilities of tokens without alternatives
            added["logprobs"] = self._asking_for(
                max(LEAST_LISTED, ask.top_logprobs, given.get("top_logprobs") or 0), given
            )
        if streams and self._is_openai:
            told = given.get("stream_options") or {}
            each = {"include_usage": True, **self._continuing.stream_options(ask), **told}
            added["stream_options"] = {"stream_options": each}
        given = self._settings.for_the_client(given)
        return CallParameters(ask, given, added, self._refusals, streamed=streams)

    def _asks(self, method: str) -> bool:
        """Whether a method can be asked for log-probabilities, as far as its signature says; a server may refuse."""
        if self._silent or cascade_in(self.native) is not None:  # a cascade is told with the messages
            return False
        if method not in self._takes:
            parameters = inspect.signature(getattr(self.native, method)).parameters
            anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            self._takes[method] = anything or "logprobs" in parameters
        return self._takes[method]

    def _asking_for(self, top: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that ask for log-probabilities, with `top` alternatives."""
        if self._is_responses:
            told = given.get("include") or getattr(self.native, "include", None) or ()
            return {"include": [*told, "message.output_text.logprobs"], "top_logprobs": top}
        metadata = self.metadata if self._is_openai else None
        if metadata is not None and not given.get("use_chat_completions", metadata.is_chat_model):
            return {"logprobs": top}  # of OpenAI's completions
        return {"logprobs": True, "top_logprobs": top}

    def _blocks(self, method: str) -> bool:
        return method in self._lacks or owner_of(type(self.native), method).__name__ in _BLOCKING


def _answered(call: CallParameters, ask: Callable[..., ChatResponse]) -> ChatResponse:
    while True:
        try:
            response = ask(**call.parameters)
        except Exception as error:
            call.retry_without(error)
        else:
            call.answered()
            return response


async def _aanswered(call: CallParameters, ask: Callable[..., Awaitable[ChatResponse]]) -> ChatResponse:
    while True:
        try:
            response = await ask(**call.parameters)
        except Exception as error:
            call.retry_without(error)
        else:
            call.answered()
            return response


def settings_of(model: Any) -> str:
    """The settings of a stage's LLM, but for credentials; empty if it is not one of LlamaIndex's."""
    if not isinstance(native := getattr(model, "native", None), LLM):
        return ""
    settings = {key: value for key, value in native.to_dict().items() if not _CREDENTIALS.search(key)}
    # a repr may hold an address, and would differ from process to process
    return json.dumps(settings, sort_keys=True, default=lambda value: type(value).__name__)


def _name(native: LLM) -> str:
    if HuggingFaceModel.is_one(native):
        return loaded_name(native)
    try:
        name = native.metadata.model_name
    except ValueError as error:  # OpenAI(model="no-such-model") could not answer either
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"The LLM {type(native).__name__} cannot be used. {reason}") from error
    except Exception:  # some ask their server, which may be down just now
        name = str(getattr(native, "model", None) or getattr(native, "model_name", None) or "unknown")
    return type(native).__name__ if name in ("", "unknown") else name
