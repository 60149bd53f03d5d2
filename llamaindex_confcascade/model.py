"""Any LlamaIndex LLM as a model of a cascade: convert the ask, call the LLM, read what came back."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, TypeVar

from confcascade import Architecture, ConfigurationError, Request
from confcascade.extending import (
    CallParameters,
    Capability,
    Chunk,
    Generate,
    Refusals,
    Remote,
    Response,
    as_stream,
    in_threads,
)
from llama_index.core.base.llms.generic_utils import completion_response_to_chat_response
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.closing import aclose, close
from llamaindex_confcascade.gate import muted
from llamaindex_confcascade.reading import Reading, response_from
from llamaindex_confcascade.structured import Parsed, problem_with, seen_from
from llamaindex_confcascade.tools import call_blocks, can_call_tools, prepared

__all__ = ["LlamaIndexModel", "core_messages", "settings_of"]

T = TypeVar("T")

# fields of LLMs that say who asks, and not what is answered
_CREDENTIALS = re.compile("key|secret|password|credential|headers|token$")
# classes and what derives from them, by name: importing them would need their packages
_NO_LOGPROBS = {"Anthropic", "HuggingFaceLLM", "LangChainLLM", "MistralAI", "Ollama", "Vllm", "VllmServer"}
_OPENAI = {"OpenAI", "OpenAILike"}
_LOGPROBS_PER_CALL = {"HuggingFaceInferenceAPI", "OpenAIResponses"}  # no field of that name, but a way to ask
_BLOCKING = {"CustomLLM", "HuggingFaceLLM", "LangChainLLM"}  # their asynchronous methods call the synchronous ones


class LlamaIndexModel(Remote):
    """A LlamaIndex LLM as a `LanguageModel` of the core.

    The LLM is never changed: log-probabilities are asked for per call, where a signal needs them and the LLM has a
    parameter `logprobs`. One that refuses them is asked again without (`confcascade.models.calls`).

    Args:
        native: The LLM. Nobody hears its own callbacks, events and spans: see `gate`.

    Raises:
        ConfigurationError: If the LLM does not know its own model, and so could never answer.
    """

    def __init__(self, native: LLM) -> None:
        ancestors = {cls.__name__ for cls in type(native).__mro__}
        self.native = native
        self._name = _name(native)
        self._silent = not ancestors.isdisjoint(_NO_LOGPROBS)
        self._is_openai = not ancestors.isdisjoint(_OPENAI)
        self._calls_tools: bool | None = None
        self._is_responses = "OpenAIResponses" in ancestors
        asks = "logprobs" in type(native).model_fields or not ancestors.isdisjoint(_LOGPROBS_PER_CALL)
        self._asks = asks and not self._silent
        self._refusals = Refusals(self._name, {"logprobs": ("logprobs",), "stream_options": ("stream_options",)})
        self._lacks: set[str] = set()  # methods that it turned out not to have

    def __repr__(self) -> str:
        return f"LlamaIndexModel({type(self.native).__name__}, name={self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        if self._calls_tools is None:  # asked once, for some LLMs ask their server
            self._calls_tools = can_call_tools(self.native)
        return Capability(
            logprobs=False if self._silent else None,
            top_logprobs=20,
            tools=bool(self._calls_tools),
            structured=True,  # in words, if in no other way
            media=True,
        )

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
        if ask.request.output is not None:  # an object comes whole
            yield self.answer(ask)
            return
        if "stream_chat" not in self._lacks:
            begun = False
            try:
                with closing(self._stream(ask)) as items:
                    for item in items:
                        begun = True
                        yield item
            except NotImplementedError:
                if begun:
                    raise
            else:
                return
        answer = self.answer(ask)
        self._lacks.add("stream_chat")  # after an answer: what fails either way has not shown what it lacks
        yield from as_stream(answer, live=ask.live)

    def _stream(self, ask: Generate) -> Generator[Chunk | Response, None, None]:
        reading = Reading(ask, self.native, must_finish=self._is_openai)
        messages, call = self._call(ask, stream=True)
        responses = self._responses(messages, call)
        try:
            for response in responses:
                yield from reading.take(response)
                if reading.aborted:
                    break
        finally:
            close(responses)
        if call.whole:
            yield from as_stream(self.answer(ask), live=ask.live)
        else:
            yield call.explained(reading.response())

    @muted
    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        if ask.request.output is not None:
            yield await self.aanswer(ask)
            return
        if not self._blocks("astream_chat"):
            begun = False
            try:
                async with aclosing(self._astream(ask)) as items:
                    async for item in items:
                        begun = True
                        yield item
            except NotImplementedError:
                if begun:
                    raise
            else:
                return
        async for item in in_threads(self.stream(ask)):
            self._lacks.add("astream_chat")
            yield item

    async def _astream(self, ask: Generate) -> AsyncGenerator[Chunk | Response]:
        reading = Reading(ask, self.native, must_finish=self._is_openai)
        messages, call = self._call(ask, stream=True)
        responses = self._aresponses(messages, call)
        try:
            async for response in responses:
                for chunk in reading.take(response):
                    yield chunk
                if reading.aborted:
                    break
        finally:
            await aclose(responses)
        if call.whole:
            for item in as_stream(await self.aanswer(ask), live=ask.live):
                yield item
        else:
            yield call.explained(reading.response())

    # ------------------------------------------------------------------ calls

    @muted
    def answer(self, ask: Generate) -> Response:
        if ask.request.output is not None:
            return self._object(ask)
        (messages, call), native = self._call(ask), self.native
        return call.explained(response_from(_answered(messages, call, self._chat), ask, native))

    @muted
    async def aanswer(self, ask: Generate) -> Response:
        if not self._blocks("achat"):
            try:
                return await self._aanswer(ask)
            except NotImplementedError:
                pass
        response = await asyncio.to_thread(self.answer, ask)
        self._lacks.add("achat")
        return response

    async def _aanswer(self, ask: Generate) -> Response:
        if ask.request.output is not None:
            return await self._aobject(ask)
        (messages, call), native = self._call(ask), self.native
        return call.explained(response_from(await _aanswered(messages, call, native.achat), ask, native))

    def _object(self, ask: Generate) -> Response:
        """Structured output, asked for and read by the LLM's own `structured_predict`."""
        asking, native = _Asking(ask, self), self.native

        def chat(messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
            return asking.keep(_answered(messages, asking.call(options), native.chat))

        def complete(prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
            def completed(_: Any, **parameters: Any) -> ChatResponse:
                return asking.keep_completion(native.complete(prompt, formatted=formatted, **parameters))

            _answered([], asking.call(options), completed)
            return asking.completion

        seen = seen_from(native, {"chat": chat, "complete": complete})
        try:
            value = seen.structured_predict(**asking.arguments(seen))
        except Exception as error:
            return asking.response(None, error)
        return asking.response(value, None)

    async def _aobject(self, ask: Generate) -> Response:
        asking, native = _Asking(ask, self), self.native

        async def chat(messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
            return asking.keep(await _aanswered(messages, asking.call(options), native.achat))

        async def complete(prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
            async def completed(_: Any, **parameters: Any) -> ChatResponse:
                completion = await native.acomplete(prompt, formatted=formatted, **parameters)
                return asking.keep_completion(completion)

            await _aanswered([], asking.call(options), completed)
            return asking.completion

        seen = seen_from(native, {"achat": chat, "acomplete": complete})
        try:
            value = await seen.astructured_predict(**asking.arguments(seen))
        except Exception as error:
            return asking.response(None, error)
        return asking.response(value, None)

    def _responses(self, messages: Sequence[ChatMessage], call: CallParameters) -> Generator[ChatResponse, None, None]:
        while not (call.is_answered or call.whole):
            try:
                for response in self._stream_chat(list(messages), **call.parameters):
                    call.answered()
                    yield response
            except Exception as error:
                call.retry_without(error)
            else:
                call.answered()

    async def _aresponses(self, messages: Sequence[ChatMessage], call: CallParameters) -> AsyncIterator[ChatResponse]:
        while not (call.is_answered or call.whole):
            responses: Any = None
            try:
                opened: Any = self.native.astream_chat(list(messages), **call.parameters)
                responses = await opened if inspect.isawaitable(opened) else opened
                async for response in responses:
                    call.answered()
                    yield response
            except Exception as error:
                call.retry_without(error)
            else:
                call.answered()
            finally:
                await aclose(responses)

    def _call(self, ask: Generate, stream: bool = False) -> tuple[Sequence[ChatMessage], CallParameters]:
        messages, options = _messages(ask.request), dict(ask.request.options)
        if ask.request.tools:
            messages, options = prepared(self.native, ask.request, messages)
        return messages, self.call(ask, options, stream=stream)

    def call(self, ask: Generate, options: dict[str, Any], *, stream: bool = False) -> CallParameters:
        """The parameters of a call of the LLM, with what `ask` adds to them."""
        request, given = ask.request, dict(options)
        added: dict[str, dict[str, Any]] = {}
        if request.max_tokens is not None:
            given["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            given["temperature"] = request.temperature
        if request.stop:
            given["stop"] = list(request.stop)
        if ask.logprobs and self._asks:
            # LlamaIndex drops, and some servers do not tell, log-probabilities of tokens without alternatives
            added["logprobs"] = self._asking_for(max(1, ask.top_logprobs, given.get("top_logprobs") or 0), given)
        if stream and self._is_openai:
            told = given.get("stream_options") or {}
            added["stream_options"] = {"stream_options": {"include_usage": True, **told}}
        return CallParameters(ask, given, added, self._refusals, streamed=stream)

    def _asking_for(self, top: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that ask for log-probabilities, with `top` alternatives."""
        if self._is_responses:
            told = given.get("include") or getattr(self.native, "include", None) or ()
            return {"include": [*told, "message.output_text.logprobs"], "top_logprobs": top}
        if self._is_openai and (metadata := self.metadata) is not None and not metadata.is_chat_model:
            return {"logprobs": top}  # of OpenAI's completions
        return {"logprobs": True, "top_logprobs": top}

    def _blocks(self, method: str) -> bool:
        return method in self._lacks or self._owner(method).__name__ in _BLOCKING

    def _owner(self, method: str) -> type:
        """The class that defines a method. Spans wrap methods, so functions cannot be compared."""
        return next(cls for cls in type(self.native).__mro__ if method in vars(cls))

    def _chat(self, messages: Sequence[ChatMessage], **parameters: Any) -> ChatResponse:
        """The LLM's `chat`; of a class that completes prompts, what `CustomLLM.chat` does, log-probabilities kept."""
        native = self.native
        if self._owner("chat") is not CustomLLM:
            return native.chat(messages, **parameters)
        assert native.messages_to_prompt is not None
        return _as_chat(native.complete(native.messages_to_prompt(messages), formatted=True, **parameters))

    def _stream_chat(self, messages: Sequence[ChatMessage], **parameters: Any) -> Iterator[ChatResponse]:
        """`_chat`, streamed."""
        native = self.native
        if self._owner("stream_chat") is not CustomLLM:
            return native.stream_chat(messages, **parameters)
        assert native.messages_to_prompt is not None
        return _as_chats(native.stream_complete(native.messages_to_prompt(messages), formatted=True, **parameters))


def _answered(messages: Sequence[ChatMessage], call: CallParameters, chat: Callable[..., ChatResponse]) -> ChatResponse:
    while True:
        try:
            response = chat(list(messages), **call.parameters)  # some LLMs append to theirs
        except Exception as error:
            call.retry_without(error)
        else:
            call.answered()
            return response


async def _aanswered(
    messages: Sequence[ChatMessage], call: CallParameters, chat: Callable[..., Awaitable[ChatResponse]]
) -> ChatResponse:
    while True:
        try:
            response = await chat(list(messages), **call.parameters)
        except Exception as error:
            call.retry_without(error)
        else:
            call.answered()
            return response


def _as_chat(completion: CompletionResponse) -> ChatResponse:
    """As LlamaIndex converts it, but with the log-probabilities, which it drops."""
    response = completion_response_to_chat_response(completion)
    response.logprobs, response.delta = completion.logprobs, completion.delta
    return response


def _as_chats(pieces: CompletionResponseGen) -> Iterator[ChatResponse]:
    try:
        yield from map(_as_chat, pieces)
    finally:
        close(pieces)


class _Asking:
    """One request for structured output, while the LLM's own `structured_predict` runs.

    Attributes:
        completion: The answer of an LLM that completes prompts.
    """

    completion: CompletionResponse

    def __init__(self, ask: Generate, model: LlamaIndexModel) -> None:
        self._ask = ask
        self._model = model
        self._seen: ChatResponse | None = None

    def arguments(self, llm: LLM) -> dict[str, Any]:
        """Of `structured_predict`; `llm` is the one that it is called on."""
        output, request = self._ask.request.output, self._ask.request
        assert output is not None
        return output.native.asked_of(llm, _messages(request), dict(request.options))  # type: ignore[no-any-return]

    def call(self, options: dict[str, Any]) -> CallParameters:
        return self._model.call(self._ask, options)

    def keep(self, response: ChatResponse) -> ChatResponse:
        self._seen = response
        return response

    def keep_completion(self, completion: CompletionResponse) -> ChatResponse:
        self.completion = completion
        return self.keep(_as_chat(completion))

    def response(self, value: Any, error: Exception | None) -> Response:
        """The answer, with the object or the error that came of it."""
        seen, output = self._seen, self._ask.request.output
        assert output is not None
        if seen is None:
            if error is not None and not output.native.is_refused_by(error):  # the LLM failed, not its answer
                raise error
            # of a class that asks its client without `chat`: no more is known
            text = "" if value is None else value.model_dump_json()
            seen = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text))
        response = response_from(seen, self._ask, self._model.native)
        return response.replace(native=Parsed.of(seen, value, error), problem=problem_with(response, error, output))


def settings_of(model: Any) -> str:
    """The settings of a stage's LLM, but for credentials; empty if it is not one of LlamaIndex's."""
    if not isinstance(native := getattr(model, "native", None), LLM):
        return ""
    settings = {key: value for key, value in native.to_dict().items() if not _CREDENTIALS.search(key)}
    # a repr may hold an address, and would differ from process to process
    return json.dumps(settings, sort_keys=True, default=lambda value: type(value).__name__)


def _messages(request: Request) -> list[ChatMessage]:
    """The caller's own, or the core's."""
    return core_messages(request) if request.native is None else list(request.native)


def core_messages(request: Request) -> list[ChatMessage]:
    """The core's messages as LlamaIndex's, with their tool calls and results."""
    messages = []
    for message in request.messages:
        beside = {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
        text = [TextBlock(text=message.content)] if message.content or not message.tool_calls else []
        blocks = [*text, *call_blocks(message.tool_calls)]
        messages.append(ChatMessage(role=MessageRole(message.role), blocks=blocks, additional_kwargs=beside))
    return messages


def _name(native: LLM) -> str:
    try:
        name = native.metadata.model_name
    except ValueError as error:  # OpenAI(model="no-such-model") could not answer either
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"The LLM {type(native).__name__} cannot be used. {reason}") from error
    except Exception:  # some ask their server, which may be down just now
        name = str(getattr(native, "model", None) or getattr(native, "model_name", None) or "unknown")
    return type(native).__name__ if name in ("", "unknown") else name
