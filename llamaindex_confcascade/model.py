"""Any LlamaIndex LLM as a model of a cascade: convert the ask, call the LLM, read what came back."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

from confcascade import (
    Architecture,
    Capability,
    Chunk,
    ConfigurationError,
    Generate,
    ModelError,
    Response,
    Token,
    Usage,
    Watcher,
)
from confcascade.models.logprobs import TokenReader, visible
from confcascade.models.remote import Remote, estimated_usage
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, ToolCallBlock
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.instrumentation import quiet

__all__ = ["LlamaIndexModel"]

T = TypeVar("T")

# classes and what derives from them, by name: importing them would need their packages
_NO_LOGPROBS = {"Anthropic", "HuggingFaceLLM", "LangChainLLM", "MistralAI", "Ollama", "Vllm", "VllmServer"}
_OPENAI = {"OpenAI", "OpenAILike"}
_BLOCKING = {"CustomLLM", "HuggingFaceLLM", "LangChainLLM"}  # their asynchronous methods call the synchronous ones


class LlamaIndexModel(Remote):
    """A LlamaIndex LLM as a `LanguageModel` of the core.

    The LLM is never changed: log-probabilities are asked for per call, where a signal needs them and the LLM has a
    parameter `logprobs`. One that refuses them is asked again without, and from then on without.

    Args:
        native: The LLM. It is asked without its own callbacks, events and spans: see `quiet`.

    Raises:
        ConfigurationError: If the LLM does not know its own model, and so could never answer.
    """

    def __init__(self, native: LLM) -> None:
        ancestors = {cls.__name__ for cls in type(native).__mro__}
        self.native = native
        self._name = _name(native)
        self._silent = not ancestors.isdisjoint(_NO_LOGPROBS)
        self._is_openai = not ancestors.isdisjoint(_OPENAI)
        self._takes = {"logprobs"} if not self._silent and "logprobs" in type(native).model_fields else set()
        self._takes |= {"stream_options"} if self._is_openai else set()

    def __repr__(self) -> str:
        return f"LlamaIndexModel({type(self.native).__name__}, name={self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return Capability(logprobs=False if self._silent else None, top_logprobs=20)

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

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        reading = _Reading(ask, must_finish=self._is_openai)
        responses, whole = self._responses(self._call(ask, stream=True)), False
        try:
            for response in responses:
                yield from reading.add(response)
                if reading.aborted:
                    break
            else:
                whole = True
        finally:
            if not whole:
                responses.close()
                if self._is_openai:
                    # openai's abandoned stream is a cycle that LlamaIndex never closes; were it collected later, inside
                    # the connection pool's lock, closing it would wait for that lock for ever
                    gc.collect()
        yield reading.response()

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        if self._blocks("astream_chat"):
            async for item in _in_threads(self.stream(ask)):
                yield item
            return
        reading = _Reading(ask, must_finish=self._is_openai)
        responses = self._aresponses(self._call(ask, stream=True))
        try:
            async for response in responses:
                for chunk in reading.add(response):
                    yield chunk
                if reading.aborted:
                    break
        finally:
            await _aclose(responses)
        yield reading.response()

    # ------------------------------------------------------------------ calls

    def answer(self, ask: Generate) -> Response:
        call = self._call(ask)
        while True:
            try:
                response = quiet(self.native).chat(call.messages, **call.parameters)
            except Exception as error:
                call.retry_without(error)
            else:
                call.succeeded()
                return _response(response, ask)

    async def aanswer(self, ask: Generate) -> Response:
        if self._blocks("achat"):
            return await asyncio.to_thread(self.answer, ask)
        call = self._call(ask)
        while True:
            try:
                response = await quiet(self.native).achat(call.messages, **call.parameters)
            except Exception as error:
                call.retry_without(error)
            else:
                call.succeeded()
                return _response(response, ask)

    def _responses(self, call: _Call) -> Generator[ChatResponse, None, None]:
        while not call.done:
            try:
                for response in quiet(self.native).stream_chat(call.messages, **call.parameters):
                    call.succeeded()
                    yield response
            except Exception as error:
                call.retry_without(error)
            else:
                call.succeeded()

    async def _aresponses(self, call: _Call) -> AsyncIterator[ChatResponse]:
        while not call.done:
            responses: Any = None
            try:
                opened: Any = quiet(self.native).astream_chat(call.messages, **call.parameters)
                responses = await opened if inspect.isawaitable(opened) else opened
                async for response in responses:
                    call.succeeded()
                    yield response
            except Exception as error:
                call.retry_without(error)
            else:
                call.succeeded()
            finally:
                await _aclose(responses)

    def _call(self, ask: Generate, stream: bool = False) -> _Call:
        metadata = self.metadata
        return _Call(self._takes, ask, stream, chat=metadata is None or metadata.is_chat_model)

    def _blocks(self, method: str) -> bool:
        # spans wrap methods, so functions cannot be compared: what counts is the class that defines it
        owner = next(cls for cls in type(self.native).__mro__ if method in vars(cls))
        return owner.__name__ in _BLOCKING


class _Call:
    """The messages and parameters of a call, and what of them the LLM may refuse.

    Args:
        takes: What may be added for this LLM; what it refuses before it answers is taken out.
        chat: Whether the LLM is a chat model; one for completions knows log-probabilities by another parameter.
    """

    def __init__(self, takes: set[str], ask: Generate, stream: bool, chat: bool) -> None:
        request = ask.request
        self.done = False
        self._request = request
        self._takes = takes
        self._refused: set[str] = set()
        self._added: dict[str, dict[str, Any]] = {}
        self._options = dict(request.options)
        if request.max_tokens is not None:
            self._options["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            self._options["temperature"] = request.temperature
        if request.stop:
            self._options["stop"] = list(request.stop)
        if ask.logprobs and "logprobs" in takes:
            # LlamaIndex drops, and some servers do not tell, log-probabilities of tokens without alternatives
            top = max(1, ask.top_logprobs, self._options.get("top_logprobs") or 0)
            self._added["logprobs"] = {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
        if stream and "stream_options" in takes:
            given = self._options.get("stream_options") or {}
            self._added["stream_options"] = {"stream_options": {"include_usage": True, **given}}

    @property
    def messages(self) -> list[ChatMessage]:
        """A list of its own for every call: some LLMs append to theirs."""
        if self._request.native is not None:
            return list(self._request.native)
        return [ChatMessage(role=message.role, content=message.content) for message in self._request.messages]

    @property
    def parameters(self) -> dict[str, Any]:
        return self._options | {key: value for added in self._added.values() for key, value in added.items()}

    def retry_without(self, error: Exception) -> None:
        """Drop what `error` refuses; raise it if that is nothing of ours, or part of an answer came already."""
        refused = {name for name in self._added if name in str(error)}
        if self.done or not refused or getattr(error, "status_code", None) not in (None, 400, 403, 422):
            raise error
        for name in refused:
            del self._added[name]
        self._refused |= refused

    def succeeded(self) -> None:
        """Remember what was refused: without it, there is an answer."""
        self.done = True
        self._takes -= self._refused


def _name(native: LLM) -> str:
    try:
        name = native.metadata.model_name
    except ValueError as error:  # OpenAI(model="no-such-model") could not answer either
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"The LLM {type(native).__name__} cannot be used. {reason}") from error
    except Exception:  # some ask their server, which may be down just now
        name = str(getattr(native, "model", None) or getattr(native, "model_name", None) or "unknown")
    return type(native).__name__ if name in ("", "unknown") else name


async def _in_threads(items: Iterator[T]) -> AsyncIterator[T]:
    """Take each item in a thread, all of them in one copy of the caller's context."""
    context, loop, end = copy_context(), asyncio.get_running_loop(), object()

    def step() -> Any:
        return next(items, end)

    while (item := await loop.run_in_executor(None, context.run, step)) is not end:
        yield item


async def _aclose(items: Any) -> None:
    if aclose := getattr(items, "aclose", None):
        await aclose()


# ---------------------------------------------------------------------- what came back


def _get(thing: Any, key: str) -> Any:
    """Of a mapping or an object; None if it has no such thing."""
    return thing.get(key) if isinstance(thing, Mapping) else getattr(thing, key, None)


def _choice(response: ChatResponse) -> Any:
    choices = _get(response.raw, "choices")
    return choices[0] if isinstance(choices, Sequence) and choices else None


def _logprobs(response: ChatResponse) -> Any:
    """The raw answer's, or LlamaIndex's: among these, alternatives only, the chosen token may be missing."""
    told = _get(_choice(response), "logprobs")
    if told is not None or not response.logprobs:
        return told
    return [{"token": top[0].token, "logprob": top[0].logprob, "top_logprobs": top} for top in response.logprobs if top]


def _usage(response: ChatResponse) -> Usage | None:
    for counts in (_get(response.raw, "usage"), _get(response.raw, "usage_metadata"), response.additional_kwargs):
        if not counts:  # as in nearly every piece of a stream
            continue
        read, written = (
            next((n for key in keys if isinstance(n := _get(counts, key), int)), None)
            for keys in (
                ("prompt_tokens", "input_tokens", "prompt_token_count"),
                ("completion_tokens", "output_tokens", "candidates_token_count"),
            )
        )
        if read is not None or written is not None:
            return Usage(read or 0, written or 0, estimated=read is None or written is None)
    return None


def _finish_reason(response: ChatResponse) -> str | None:
    message = response.message
    if message.additional_kwargs.get("tool_calls") or any(isinstance(block, ToolCallBlock) for block in message.blocks):
        return "tool_calls"
    reason = _get(_choice(response), "finish_reason")
    return None if reason is None else str(reason)


def _response(response: ChatResponse, ask: Generate) -> Response:
    text = response.message.content or ""
    tokens = visible(TokenReader(ask.top_logprobs).read(_logprobs(response)), text)
    return Response(
        text=text,
        tokens=tokens,
        usage=_usage(response) or estimated_usage(ask, text, tokens),
        finish_reason=_finish_reason(response) or "stop",
        native=response,
    )


class _Reading:
    """A streamed answer as it comes in.

    Args:
        must_finish: The LLM says why an answer ended; one without a reason was cut off.
    """

    def __init__(self, ask: Generate, must_finish: bool) -> None:
        self._ask = ask
        self._must_finish = must_finish
        self._watcher = Watcher(ask)
        self._reader = TokenReader(ask.top_logprobs)
        self._text = ""
        self._tokens: list[Token] | None = None
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._last: ChatResponse | None = None

    @property
    def aborted(self) -> bool:
        return self._watcher.verdict == "abort"

    def add(self, response: ChatResponse) -> Iterator[Chunk]:
        self._last = response
        self._usage = _usage(response) or self._usage
        self._finish_reason = _finish_reason(response) or self._finish_reason
        whole = response.message.content or ""
        text = whole[len(self._text) :] if response.delta is None else response.delta
        tokens = self._reader.read(_logprobs(response))
        if tokens and not text and _get(_choice(response), "finish_reason") is not None:
            tokens = ()  # what ended the answer, and is no part of it
        self._text += text
        if tokens is not None:
            self._tokens = self._tokens or []
            self._tokens += tokens
            if self._watcher.undecided and (seen := visible(self._tokens, self._text)):
                self._watcher.see(seen)
        if text or tokens:
            yield Chunk(text, tokens or (), released=self._watcher.verdict == "release", native=response)

    def response(self) -> Response:
        if self._must_finish and not self.aborted and self._finish_reason is None:
            raise ModelError(f"The stream of model '{self._ask.model.name}' ended before the answer did.")
        tokens = visible(self._tokens, self._text)
        return Response(
            text=self._text,
            tokens=tokens,
            usage=self._usage or estimated_usage(self._ask, self._text, tokens),
            finish_reason="aborted" if self.aborted else self._finish_reason or "stop",
            native=self._last,
        )
