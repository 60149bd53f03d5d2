"""Any LangChain chat model as a model of the core."""

from __future__ import annotations

import asyncio
import hashlib
import operator
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from confcascade import Architecture, ConfigurationError, Decoding, ModelError, Request
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
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import var_child_runnable_config

from langchain_confcascade.continuing import Continuing
from langchain_confcascade.convert import Reading, response_from
from langchain_confcascade.decoding import ClientSettings, own_settings
from langchain_confcascade.entering import ainvoked, astreamed, invoked, streamed
from langchain_confcascade.structured import (
    Structured,
    can_give_structured_output,
    judged,
    taken_apart,
    unread_output,
)
from langchain_confcascade.tools import binding_options, can_call_tools

__all__ = ["LangChainModel"]

# classes whose providers tell no log-probabilities, whatever is asked
_NO_LOGPROBS = {"ChatAnthropic", "ChatAnthropicVertex", "ChatMistralAI", "ChatGoogleGenerativeAI"}
# classes that have no field of that name, and hand it to their provider where it is given per call
_LOGPROBS_PER_CALL = {"ChatFireworks", "ChatOpenRouter"}
# classes whose providers say why an answer ended: a draft without a reason was cut off
_MUST_FINISH = {"BaseChatOpenAI"}
# what a model is set to if its user wants log-probabilities on the message
_LOGPROBS_WANTED = ("logprobs", "top_logprobs", "response_logprobs")
# what a refusal of a parameter that is added to calls is recognised by
_REFUSALS = {"logprobs": ("logprobs",), "stream_usage": ("stream_usage", "stream_options")}


class LangChainModel(Remote):
    """A LangChain chat model, or one with parameters bound to it, as a `LanguageModel` of the core.

    The model is never changed: what a signal needs (log-probabilities) goes along with each call, and a server that
    refuses it is asked again without (`Refusals`).  Its calls stay out of the caller's callbacks, tracers and streams,
    which see the cascade as one call.

    Args:
        native: A `BaseChatModel`, or what its `bind` or `with_retry` returns.
        name: Shown in records; by default the name that the model gives in traces, or its ``model_id``.
        architecture: If known, for costs in FLOPs.
        continues: How its server goes on writing an answer that has been begun, for ``mode="stepwise"``, where its
            class can say so: "continue_final_message" for vLLM and SGLang and classes of `langchain_openai`, "prefix"
            for `ChatMistralAI`, "trailing" for a server that continues a last message of the assistant by itself.

    Raises:
        ConfigurationError: If it is not a chat model, or its class cannot say `continues`.
    """

    def __init__(
        self,
        native: Any,
        *,
        name: str | None = None,
        architecture: Architecture | None = None,
        continues: Continues | None = None,
    ) -> None:
        chat, layers = native, []
        while isinstance(chat, RunnableBindingBase):
            layers.append(chat)
            chat = chat.bound
        if not isinstance(chat, BaseChatModel):
            raise ConfigurationError(f"LangChainModel takes a LangChain chat model. Got {type(chat).__name__}.")
        self.native = native
        self._chat: BaseChatModel = chat
        self._layers = layers
        self._last_way: _Way | None = None
        self._blocks = False  # whether it has no async of its own: known once it was tried
        self._name = name or _own_name(chat)
        self._architecture = architecture
        names = {cls.__name__ for cls in type(chat).__mro__}
        # langchain_openai asks for none, and reads none, of OpenAI's Responses API
        responses_api = "BaseChatOpenAI" in names and chat._use_responses_api({})  # type: ignore[attr-defined]
        self._silent = bool(names & _NO_LOGPROBS) or responses_api
        self._must_finish = bool(names & _MUST_FINISH) and not responses_api
        fields = type(chat).model_fields
        # a model that knows these words takes them per call; any other is read for what it tells unasked
        self._takes = (
            {"logprobs"} if names & _LOGPROBS_PER_CALL or fields.keys() & {"logprobs", "top_logprobs"} else set()
        )
        self._nested = "ConfidenceCascadeLLM" in names
        if self._nested:
            self._takes.add("logprobs")
        # OpenAI's Responses API reports usage unasked, and refuses the word
        if "stream_usage" in fields and getattr(chat, "stream_usage", None) is not False and not responses_api:
            self._takes.add("stream_usage")
        plain, counts = not (self._nested or responses_api), "stream_usage" in self._takes
        self._continuing = Continuing.of(continues, chat, self._name, plain=plain, counts=counts)
        self._settings = ClientSettings(chat, layers)
        self._refusals = Refusals(self._name, _REFUSALS)

    def __repr__(self) -> str:
        return f"LangChainModel({type(self._chat).__name__}, name={self._name!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last_way": None}  # the caller's tools may be functions

    @property
    def name(self) -> str:
        return self._name

    @property
    def chat(self) -> BaseChatModel:
        """The chat model, without what is bound to it."""
        return self._chat

    @cached_property
    def capability(self) -> Capability:
        return Capability(
            logprobs=False if self._silent else None,
            top_logprobs=20,
            tools=can_call_tools(self._chat),
            structured=can_give_structured_output(self._chat),
            media=True,
            continues=self._continuing.how is not None,
            set_per_call=False,  # some hand a parameter that they do not know to a client that fails of it
        )

    @property
    def own_decoding(self) -> dict[str, Any]:
        """How it is set to decode, where it says: what its class leaves unset, its provider decides."""
        return own_settings(self._chat, self._layers)

    def check_decoding(self, decoding: Decoding) -> None:
        """Raise `ConfigurationError` if a stage's setting is none of the provider's."""
        self._settings.check(self._name, decoding)

    @property
    def architecture(self) -> Architecture | None:
        return self._architecture

    @property
    def fingerprint(self) -> str:
        """Of the model's class and settings, none of which can be read from it: "langchain:" and twelve digits.

        So it is not compared with what the same model is called by a class of another library.
        """
        bound = [layer.kwargs for layer in self._layers]
        return f"langchain:{hashlib.sha256(f'{self._chat._get_llm_string()}{bound}'.encode()).hexdigest()[:12]}"

    @property
    def _streams(self) -> bool:
        """Whether it streams where it is invoked, too."""
        return vars(self._chat).get("streaming") is True

    def _may_stream(self, request: Request) -> bool:
        """Whether its `stream` does, and not only hand on what `invoke` gives."""
        chat, disabled = self._chat, self._chat.disable_streaming
        refuses = "streaming" in chat.model_fields_set and vars(chat).get("streaming") is False
        never = disabled is True or refuses
        return not (never or (disabled == "tool_calling" and request.tools))

    def way(self, request: Request) -> _Way:
        """How to ask for what `request` wants, tools and structured output bound the model's own way."""
        if not request.judged_whole:
            return _Way(self.native)
        wanted = [tool.native for tool in request.tools] if request.output is None else [request.output.native]
        options = binding_options(self._chat, request) if request.tools else {}
        # kept while the same tools or schema come again, as in every turn of an agent
        if (last := self._last_way) is not None and last.serves(wanted, options):
            return last
        if request.output is not None:
            runnable, parser = taken_apart(self._chat, request.output.native)
            way = _Way(self._wrapped(runnable), parser, wanted)
        else:
            way = _Way(self._wrapped(self._chat.bind_tools(wanted, **options)), None, wanted, options)
        self._last_way = way
        return way

    def check_structured(self, structured: Structured) -> None:
        """Raise what the chat model's own `with_structured_output` raises."""
        taken_apart(self._chat, structured)

    def _wrapped(self, runnable: Any) -> Any:
        """With all that was bound around the chat model (parameters, retries) around it."""
        for layer in reversed(self._layers):
            runnable = layer.model_copy(update={"bound": runnable})
        return runnable

    # ------------------------------------------------------------------ LanguageModel

    def answer(self, ask: Generate) -> Response:
        way = self.way(ask.request)
        call, messages, apart = self._call(ask, way), self._continuing.messages(ask.request), _Apart()
        while True:
            try:
                with apart:
                    message = invoked(self._chat, way.runnable, messages, call.parameters)
            except Exception as error:
                if (unread := way.unread(error, ask)) is not None:
                    return unread
                call.retry_without(error)
            else:
                call.answered()
                response = self._judged(
                    way,
                    response_from(message, ask, keeps_logprobs=self._keeps_logprobs(ask)),
                    ask,
                    held=self._streams and not ask.live,
                )
                return call.explained(response)

    async def aanswer(self, ask: Generate) -> Response:
        way = self.way(ask.request)
        call, messages, apart = self._call(ask, way), self._continuing.messages(ask.request), _Apart()
        while True:
            try:
                with apart:
                    message = await self._ainvoke(way, messages, call.parameters)
            except Exception as error:
                if (unread := way.unread(error, ask)) is not None:
                    return unread
                call.retry_without(error)
            else:
                call.answered()
                response = self._judged(
                    way,
                    response_from(message, ask, keeps_logprobs=self._keeps_logprobs(ask)),
                    ask,
                    held=self._streams and not ask.live,
                )
                return call.explained(response)

    def _judged(self, way: _Way, response: Response, ask: Generate, *, held: bool) -> Response:
        check_one_text(ask, response)
        # what is shown as it comes is the model's own, and some servers never say why an answer ended
        if held and self._must_finish and response.finish_reason is None:
            raise ModelError(f"The stream of model '{self._name}' ended before the answer did.")
        return way.judged(response, ask.request)

    def _reading(self, ask: Generate) -> Reading:
        return Reading(
            ask,
            keeps_logprobs=self._keeps_logprobs(ask),
            repeated=is_repeated(self._continuing.how),
            so_far=self._continuing.so_far(ask),
        )

    def _own_body(self) -> dict[str, Any]:
        """The further body that it sends with each call: what is given for one would replace it."""
        bound = (layer.kwargs for layer in reversed(self._layers))
        own = (vars(self._chat), getattr(self._chat, "model_kwargs", None) or {}, *bound)
        return next((dict(each["extra_body"]) for each in reversed(own) if each.get("extra_body")), {})

    def _call(self, ask: Generate, way: _Way, *, streamed: bool | None = None) -> CallParameters:
        """The parameters of a call; `streamed` is whether the model is told to stream."""
        request, added = ask.request, dict[str, dict[str, Any]]()
        given = {key: value for key, value in request.options.items() if key not in way.options}
        if request.stop:
            given["stop"] = list(request.stop)
        if request.max_tokens is not None:
            given["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            given["temperature"] = request.temperature
        if ask.logprobs and "logprobs" in self._takes:
            # some servers answer top_logprobs=0 with no log-probabilities at all
            top = max(LEAST_LISTED, ask.top_logprobs, given.get("top_logprobs") or 0)
            added["logprobs"] = {"keeps_logprobs": True} if self._nested else {"logprobs": True, "top_logprobs": top}
        if (self._streams if streamed is None else streamed and self._may_stream(request)) and (
            "stream_usage" in self._takes
        ):
            added["stream_usage"] = {"stream_usage": True}
        given = self._settings.for_the_client(given)
        if body := self._continuing.body(ask, streamed=bool(streamed)):
            given["extra_body"] = {**self._own_body(), **(given.get("extra_body") or {}), **body}
        return CallParameters(ask, given, added, self._refusals, streamed=bool(streamed))

    def _keeps_logprobs(self, ask: Generate) -> bool:
        """Whether log-probabilities stay on the message: where the caller, or the stage's own object, asks for them."""
        if not ask.logprobs:  # nothing was added to the call: the message is the model's own
            return True
        own = vars(self._chat)
        for each in (ask.request.options, *[layer.kwargs for layer in self._layers], own, own.get("model_kwargs")):
            if each:
                for name in _LOGPROBS_WANTED:
                    if each.get(name):
                        return True
        return False

    async def _ainvoke(self, way: _Way, messages: Sequence[BaseMessage], parameters: Mapping[str, Any]) -> Any:
        if not self._blocks:
            try:
                return await ainvoked(self._chat, way.runnable, messages, parameters)
            except Exception as error:
                if not _says_no_async(error):
                    raise
        message = await asyncio.to_thread(invoked, self._chat, way.runnable, messages, parameters)
        self._blocks = True  # after an answer: what fails either way has not shown that it has no async
        return message

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        way, reading = self.way(ask.request), self._reading(ask)
        call, messages, apart = self._call(ask, way, streamed=True), self._continuing.messages(ask.request), _Apart()
        while not (reading.ended or call.whole):
            with closing(streamed(self._chat, way.runnable, messages, call.parameters)) as chunks:
                while not reading.ended:
                    try:
                        with apart:
                            chunk = next(chunks, None)
                    except Exception as error:
                        if (unread := way.unread(error, ask)) is not None:
                            yield unread
                            return
                        if reading.begun:
                            raise
                        call.retry_without(error)
                        break
                    call.answered()
                    yield from reading.take(chunk)
        if call.whole:
            yield from as_stream(call.came_whole(self.answer(ask)), live=ask.live)
            return
        yield call.explained(self._judged(way, reading.response(), ask, held=not reading.released or in_turn(ask)))

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        """Piece by piece; in threads where the model has no async of its own."""
        if not self._blocks:
            try:
                async with aclosing(self._astream(ask)) as pieces:
                    async for piece in pieces:
                        yield piece
            except _NoAsyncError:
                pass
            else:
                return
        async for piece in in_threads(self.stream(ask)):
            self._blocks = True
            yield piece

    async def _astream(self, ask: Generate) -> AsyncGenerator[Chunk | Response]:
        way, reading = self.way(ask.request), self._reading(ask)
        call, messages, apart = self._call(ask, way, streamed=True), self._continuing.messages(ask.request), _Apart()
        while not (reading.ended or call.whole):
            async with aclosing(astreamed(self._chat, way.runnable, messages, call.parameters)) as chunks:
                while not reading.ended:
                    try:
                        with apart:
                            chunk = await anext(chunks, None)
                    except Exception as error:
                        if (unread := way.unread(error, ask)) is not None:
                            yield unread
                            return
                        if reading.begun:
                            raise
                        if _says_no_async(error):
                            raise _NoAsyncError from error
                        call.retry_without(error)
                        break
                    call.answered()
                    for piece in reading.take(chunk):
                        yield piece
        if call.whole:
            for item in as_stream(call.came_whole(await self.aanswer(ask)), live=ask.live):
                yield item
            return
        yield call.explained(self._judged(way, reading.response(), ask, held=not reading.released or in_turn(ask)))


def _says_no_async(error: Exception) -> bool:
    """Whether a model says by `error` that it has no async of its own.

    langchain-huggingface's pipelines raise NotImplementedError for `ainvoke`, and for `astream` miss a client of their
    own. Any other AttributeError, such as of an answer that is None, says nothing of the kind.
    """
    if isinstance(error, AttributeError):
        return isinstance(error.obj, BaseLanguageModel)
    return isinstance(error, NotImplementedError)


class _NoAsyncError(Exception):
    """A stream could not begin, for the model has no async of its own."""


# ---------------------------------------------------------------------- a call


@dataclass(frozen=True)
class _Way:
    """What is called for a request, and what is made of the answer.

    Attributes:
        runnable: The model, with what the request wants bound to it.
        parser: What reads structured output from its message.
        wanted: The tools, or the schema, that are bound.
        options: Those of the request that are bound.
    """

    runnable: Any  # a Runnable
    parser: Runnable[Any, Any] | None = None
    wanted: Sequence[Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def serves(self, wanted: Sequence[Any], options: Mapping[str, Any]) -> bool:
        same = len(wanted) == len(self.wanted) and all(map(operator.is_, wanted, self.wanted))
        return same and options == self.options

    def judged(self, response: Response, request: Request) -> Response:
        if self.parser is None or request.output is None:
            return response
        with _Apart():
            return judged(response, request.output, self.parser)

    def unread(self, error: Exception, ask: Generate) -> Response | None:
        """The answer behind an error with which a client refuses structured output; None if it is no such error."""
        structured = None if ask.request.output is None else ask.request.output.native
        return None if structured is None else unread_output(error, structured, ask)


def _own_name(chat: BaseChatModel) -> str:
    told = chat._get_ls_params().get("ls_model_name") or getattr(chat, "model_id", None)  # the latter: ChatHuggingFace
    return told if isinstance(told, str) and told else type(chat).__name__


@cache
def _tracing() -> tuple[Any, Any, Any]:
    from langchain_core.tracers import context  # here, because langchain_core imports it late too
    from langsmith import run_helpers
    from langsmith.utils import tracing_is_enabled

    return context, run_helpers, tracing_is_enabled


class _Apart:
    """While a model is called: nothing around the cascade's call reaches it, be it config, handlers or tracers.

    An explicit config is not enough: a bound model merges the ambient one into it, `get_usage_metadata_callback` and
    its like attach themselves to every run, and so does a LangSmith tracer.

    Entered for each step of a stream; between two of them the reader has the context as it was.
    """

    def __init__(self) -> None:
        tracers, self._langsmith, is_enabled = _tracing()
        hooks = [variable for variable, *_ in tracers._configure_hooks]
        self._variables = [var_child_runnable_config, tracers.tracing_v2_callback_var, *hooks]
        traced = self._langsmith.get_tracing_context()
        # mostly nothing is traced, and to say so again takes longer than to see it
        self._traced = any(value is not None for value in traced.values()) or is_enabled(traced)

    def __enter__(self) -> None:
        self._tokens = [(each, each.set(None)) for each in self._variables if each.get() is not None]
        if self._traced:
            self._tracing = self._langsmith.tracing_context(parent=False, enabled=False)
            self._tracing.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._traced:
            self._tracing.__exit__(*error)
        for variable, token in reversed(self._tokens):
            variable.reset(token)
