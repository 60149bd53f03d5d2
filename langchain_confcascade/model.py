"""Any LangChain chat model as a model of the core."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from functools import cache
from typing import Any

from confcascade import (
    Architecture,
    Capability,
    Chunk,
    ConfigurationError,
    Generate,
    Response,
)
from confcascade.models.remote import Remote
from langchain_core.globals import get_debug
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import var_child_runnable_config

from langchain_confcascade.convert import Reading, response_from

__all__ = ["LangChainModel"]

# by which `invoke` and `ainvoke` come to `_generate` and `_agenerate`
_WAYS = "invoke ainvoke generate_prompt agenerate_prompt generate agenerate _convert_input".split()
# parameters that are for handlers, and do not reach the model
_TOLD = ("ls_structured_output_format", "structured_output_format")
# classes whose providers tell no log-probabilities, whatever is asked
_NO_LOGPROBS = {"ChatAnthropic", "ChatAnthropicVertex", "ChatMistralAI", "ChatGoogleGenerativeAI"}
# what a refusal of a parameter that we add is recognised by
_REFUSALS = {"logprobs": ("logprobs",), "stream_usage": ("stream_usage", "stream_options")}


class LangChainModel(Remote):
    """A LangChain chat model, or one with parameters bound to it, as a `LanguageModel` of the core.

    The model is never changed: what a signal needs (log-probabilities) goes along with each call, and a server that
    refuses it is asked again without.  Its calls stay out of the caller's callbacks, tracers and streams, which see
    the cascade as one call.

    Args:
        native: A `BaseChatModel`, or what its `bind` or `with_retry` returns.
        name: Shown in records; by default the name that the model gives in traces.
        architecture: If known, for costs in FLOPs.

    Raises:
        ConfigurationError: If it is no chat model.
    """

    def __init__(self, native: Any, *, name: str | None = None, architecture: Architecture | None = None) -> None:
        chat, bound = native, []
        while isinstance(chat, RunnableBindingBase):
            bound.append(chat.kwargs)
            chat = chat.bound
        if not isinstance(chat, BaseChatModel):
            raise ConfigurationError(f"LangChainModel takes a LangChain chat model. Got {type(chat).__name__}.")
        self.native = native
        self._chat: BaseChatModel = chat
        self._bound = bound
        self._name = name or chat._get_ls_params().get("ls_model_name") or type(chat).__name__
        self._architecture = architecture
        self._ordinary = native is chat and all(
            getattr(type(chat), way) is getattr(BaseChatModel, way) for way in _WAYS
        )
        fields = type(chat).model_fields
        # a model that knows these words takes them per call; any other is read for what it tells unasked
        self._takes = {"logprobs"} if fields.keys() & {"logprobs", "top_logprobs"} else set()
        if "stream_usage" in fields and getattr(chat, "stream_usage", None) is not False:
            self._takes.add("stream_usage")

    def __repr__(self) -> str:
        return f"LangChainModel({type(self._chat).__name__}, name={self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        silent = any(cls.__name__ in _NO_LOGPROBS for cls in type(self._chat).__mro__)
        return Capability(logprobs=False if silent else None, top_logprobs=20)

    @property
    def architecture(self) -> Architecture | None:
        return self._architecture

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the model's class and settings, none of which can be read from them."""
        return hashlib.sha256(f"{self._chat._get_llm_string()}{self._bound}".encode()).hexdigest()[:12]

    # ------------------------------------------------------------------ LanguageModel

    def answer(self, ask: Generate) -> Response:
        call = _Call(self._takes, ask, streamed=False)
        while True:
            try:
                with _apart():
                    message = self._invoke(call)
            except Exception as error:
                call.retry_without(error)
            else:
                call.answered()
                return response_from(message)

    async def aanswer(self, ask: Generate) -> Response:
        call = _Call(self._takes, ask, streamed=False)
        while True:
            try:
                with _apart():
                    message = await self._ainvoke(call)
            except Exception as error:
                call.retry_without(error)
            else:
                call.answered()
                return response_from(message)

    def _invoke(self, call: _Call) -> Any:
        parameters = call.parameters
        if self._is_watched(call.messages, parameters):
            return self.native.invoke(call.messages, _config(), **parameters)
        return self._chat._generate_with_cache(list(call.messages), **parameters).generations[0].message

    async def _ainvoke(self, call: _Call) -> Any:
        parameters = call.parameters
        if self._is_watched(call.messages, parameters):
            return await self.native.ainvoke(call.messages, _config(), **parameters)
        return (await self._chat._agenerate_with_cache(list(call.messages), **parameters)).generations[0].message

    def _is_watched(self, messages: Sequence[BaseMessage], parameters: Mapping[str, Any]) -> bool:
        """Whether a call needs the whole of `invoke`, and not only what is left of it where no handler is to be told.

        Telling is most of its time; cache, rate limiter and the choice between `_generate` and `_stream` lie deeper.
        """
        chat = self._chat
        return (
            not self._ordinary
            or bool(chat.callbacks or chat.verbose)
            or get_debug()
            or not parameters.keys().isdisjoint(_TOLD)
            or not all(isinstance(message.content, str) for message in messages)  # blocks are normalised on the way
        )

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        call, reading = _Call(self._takes, ask, streamed=True), Reading(ask)
        while not reading.ended:
            with closing(self.native.stream(call.messages, _config(), **call.parameters)) as chunks:
                while not reading.ended:
                    try:
                        with _apart():
                            chunk = next(chunks, None)
                    except Exception as error:
                        if reading.begun:
                            raise
                        call.retry_without(error)
                        break
                    call.answered()
                    yield from reading.add(chunk)
        yield reading.response()

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        call, reading = _Call(self._takes, ask, streamed=True), Reading(ask)
        while not reading.ended:
            async with aclosing(self.native.astream(call.messages, _config(), **call.parameters)) as chunks:
                while not reading.ended:
                    try:
                        with _apart():
                            chunk = await anext(chunks, None)
                    except Exception as error:
                        if reading.begun:
                            raise
                        call.retry_without(error)
                        break
                    call.answered()
                    for piece in reading.add(chunk):
                        yield piece
        yield reading.response()


# ---------------------------------------------------------------------- a call


class _Call:
    """The messages and parameters of a call, and what of them a server may refuse.

    Args:
        takes: What may be added for this model; a refusal that was followed by an answer is taken out.
    """

    def __init__(self, takes: set[str], ask: Generate, streamed: bool) -> None:
        request = ask.request
        self._takes = takes
        self._refused: set[str] = set()
        self._added: dict[str, dict[str, Any]] = {}
        self._options = dict(request.options)
        if request.stop:
            self._options["stop"] = list(request.stop)
        if request.max_tokens is not None:
            self._options["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            self._options["temperature"] = request.temperature
        if ask.logprobs and "logprobs" in takes:
            # some servers answer top_logprobs=0 with no log-probabilities at all
            top = max(1, ask.top_logprobs, self._options.get("top_logprobs") or 0)
            self._added["logprobs"] = {"logprobs": True, "top_logprobs": top}
        if streamed and "stream_usage" in takes:
            self._added["stream_usage"] = {"stream_usage": True}
        if request.native is None:
            self.messages = convert_to_messages([(message.role, message.content) for message in request.messages])
        else:
            self.messages = request.native  # of which LangChain's `invoke` makes a list of its own

    @property
    def parameters(self) -> dict[str, Any]:
        return self._options | {key: value for added in self._added.values() for key, value in added.items()}

    def retry_without(self, error: Exception) -> None:
        """Drop what `error` refuses; raise it if that is nothing of ours."""
        refused = {name for name in self._added if any(word in str(error) for word in _REFUSALS[name])}
        if not refused or getattr(error, "status_code", None) not in (None, 400, 403, 422):
            raise error
        for name in refused:
            del self._added[name]
        self._refused |= refused

    def answered(self) -> None:
        """Remember what was refused: without it, there is an answer."""
        self._takes -= self._refused


def _config() -> RunnableConfig:
    return {"callbacks": []}


@cache
def _tracing() -> tuple[Any, Any, Any]:
    from langchain_core.tracers import context  # here, because langchain_core imports it late too
    from langsmith import run_helpers
    from langsmith.utils import tracing_is_enabled

    return context, run_helpers, tracing_is_enabled


@contextmanager
def _apart() -> Iterator[None]:
    """While a model is called: nothing around the cascade's call reaches it, be it config, handlers or tracers.

    An explicit config is not enough: a bound model merges the ambient one into it, `get_usage_metadata_callback` and
    its like attach themselves to every run, and so does a LangSmith tracer.
    """
    tracers, langsmith, is_enabled = _tracing()
    hooks = [variable for variable, *_ in tracers._configure_hooks]
    variables: list[Any] = [var_child_runnable_config, tracers.tracing_v2_callback_var, *hooks]
    tokens = [(variable, variable.set(None)) for variable in variables if variable.get() is not None]
    traced = langsmith.get_tracing_context()
    try:
        if any(value is not None for value in traced.values()) or is_enabled(traced):
            with langsmith.tracing_context(parent=False, enabled=False):
                yield
        else:  # mostly nothing is traced, and to say so again takes longer than to see it
            yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
