"""What LlamaIndex's instrumentation and callbacks learn: one call of the cascade, and below it a span for each attempt.

A stage's LLM is asked in silence: with a span, events and callbacks of its own it would be counted beside the cascade,
and its events would show drafts.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, TypeVar
from uuid import uuid4

from confcascade import Attempt, Cascade, CascadeExhaustedError, ModelError, Outcome, Request
from confcascade.extending import Chunk, Response
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import callbacks
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import PromptTemplate
from llama_index_instrumentation import dispatcher, get_dispatcher
from llama_index_instrumentation.events.span import SpanDropEvent
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler

__all__ = ["TracedCascade", "quiet"]

T = TypeVar("T", bound=BaseLLM)

_dispatcher = get_dispatcher(__name__)


# ---------------------------------------------------------------------- attempts as spans


class TracedCascade(Cascade):
    """A cascade that reports its attempts, once it has decided, as spans below the one in which it was asked.

    Each has the attempt's entry of the record for tags, every key behind ``confcascade_``, and what was said for its
    result; a failed attempt is a dropped span.
    """

    def run(self, messages: Any, **parameters: Any) -> Outcome:
        span = _Span.active()
        try:
            outcome = super().run(messages, **parameters)
        except CascadeExhaustedError as error:
            span.report(messages, error)
            raise
        span.report(messages, outcome)
        return outcome

    async def arun(self, messages: Any, **parameters: Any) -> Outcome:
        span = _Span.active()
        try:
            outcome = await super().arun(messages, **parameters)
        except CascadeExhaustedError as error:
            span.report(messages, error)
            raise
        span.report(messages, outcome)
        return outcome

    def stream(self, messages: Any, **parameters: Any) -> Iterator[Chunk | Outcome]:
        # the span is that of this call; whoever reads may be in another
        return self._reported(_Span.active(), messages, super().stream(messages, **parameters))

    def astream(self, messages: Any, **parameters: Any) -> AsyncIterator[Chunk | Outcome]:
        return self._areported(_Span.active(), messages, super().astream(messages, **parameters))

    @staticmethod
    def _reported(span: _Span, messages: Any, items: Any) -> Iterator[Chunk | Outcome]:
        with closing(items):
            try:
                for item in items:
                    if isinstance(item, Outcome):
                        span.report(messages, item)
                    yield item
            except CascadeExhaustedError as error:
                span.report(messages, error)
                raise

    @staticmethod
    async def _areported(span: _Span, messages: Any, items: Any) -> AsyncIterator[Chunk | Outcome]:
        async with aclosing(items):
            try:
                async for item in items:
                    if isinstance(item, Outcome):
                        span.report(messages, item)
                    yield item
            except CascadeExhaustedError as error:
                span.report(messages, error)
                raise


class _Span:
    """The span of a cascade's call.

    Args:
        id_: LlamaIndex's; None if the call is made outside of any.
    """

    def __init__(self, id_: str | None) -> None:
        self._id = id_

    @classmethod
    def active(cls) -> _Span:
        return cls(active_span_id.get())

    def report(self, messages: Any, ended: Outcome | CascadeExhaustedError) -> None:
        """One span below this for each attempt, if anybody listens."""
        if not _listened():
            return
        attempts = ended.record.attempts if isinstance(ended, Outcome) else ended.attempts
        if isinstance(messages, Request):
            messages = messages.native or messages.messages
        bound = inspect.signature(_attempt).bind(messages)
        for attempt, response in zip(attempts, ended.responses, strict=True):
            # LlamaIndex reads what comes before the first hyphen as the name
            span: dict[str, Any] = {"id_": f"ConfidenceCascadeLLM.attempt-{uuid4()}", "bound_args": bound}
            _dispatcher.span_enter(**span, parent_id=self._id, tags=_tags(attempt))
            if attempt.error is None:
                _dispatcher.span_exit(**span, result=_said(response))
            else:
                _dispatcher.event(SpanDropEvent(span_id=span["id_"], err_str=attempt.error))
                _dispatcher.span_drop(**span, err=ModelError(attempt.error))


def _attempt(messages: Any) -> None:
    """For its signature: a span is that of a call."""


def _tags(attempt: Attempt) -> dict[str, Any]:
    return {f"confcascade_{key}": value for key, value in attempt.as_dict().items()}


def _said(response: Response | None) -> ChatMessage | None:
    """Without the provider's accounts, which are the attempt's: tracers that add up usage would count it again."""
    if response is None:
        return None
    if isinstance(response.native, ChatResponse):
        return response.native.message
    return ChatMessage(role=MessageRole.ASSISTANT, content=response.text)


def _listened() -> bool:
    """Whether any handler wants spans; without, nothing is prepared."""
    each = _dispatcher
    while all(isinstance(handler, NullSpanHandler) for handler in each.span_handlers):
        if not each.propagate:
            return False
        each = each.parent
    return True


# ---------------------------------------------------------------------- stages in silence


def quiet(llm: T) -> T:
    """The same LLM, without what LlamaIndex wraps around its methods: spans, events and callbacks.

    A view: what one of the two learns (a client, a cache), the other knows. Its rate limiter is respected.
    """
    kind = type(llm)
    view: Any = object.__new__(_quiet_class(kind))
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(view, slot, getattr(llm, slot))
    return view  # type: ignore[no-any-return]


def _without_span(method: Any) -> Any:
    """A mark for LlamaIndex, which would put a span around it as it makes the class."""
    setattr(method, dispatcher.DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


@_without_span
def _structured_predict(
    self: LLM, output_cls: type[BaseModel], prompt: PromptTemplate, llm_kwargs: Any = None, **prompt_args: Any
) -> BaseModel:
    """`LLM.structured_predict`, whose last event would show a draft."""
    return _an_object(output_cls, _program(self, output_cls, prompt)(llm_kwargs=llm_kwargs, **prompt_args))


@_without_span
async def _astructured_predict(
    self: LLM, output_cls: type[BaseModel], prompt: PromptTemplate, llm_kwargs: Any = None, **prompt_args: Any
) -> BaseModel:
    program = _program(self, output_cls, prompt)
    return _an_object(output_cls, await program.acall(llm_kwargs=llm_kwargs, **prompt_args))


def _program(llm: LLM, output_cls: type[BaseModel], prompt: PromptTemplate) -> Any:
    from llama_index.core.program.utils import get_program_for_llm  # here, as in LlamaIndex: it imports LLMs itself

    return get_program_for_llm(output_cls, prompt, llm, pydantic_program_mode=llm.pydantic_program_mode)


def _an_object(output_cls: type[BaseModel], result: Any) -> BaseModel:
    if not isinstance(result, BaseModel):
        raise TypeError(f"structured_predict expected a {output_cls.__name__}, but got {type(result).__name__}.")
    return result


@cache
def _quiet_class(kind: type[BaseLLM]) -> type[BaseLLM]:
    """A subclass in whose order of resolution each class is preceded by its methods as they were written.

    So `super()` finds these, too.
    """
    bases = [_quiet_class(base) for base in kind.__bases__ if issubclass(base, BaseLLM) and base is not BaseLLM]
    methods = {name: _Method.of(method) for name, method in vars(kind).items() if inspect.isroutine(method)}
    silenced = {name: method.silenced() for name, method in methods.items() if method.is_wrapped}
    if kind is LLM:  # these emit events in their own bodies
        silenced |= {"structured_predict": _structured_predict, "astructured_predict": _astructured_predict}
    namespace = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, **silenced}
    metaclass: Any = type(kind)
    return metaclass(kind.__name__, (kind, *bases), namespace)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Method:
    """A method of an LLM's class as it was written, beneath what LlamaIndex wraps around it.

    Attributes:
        function: As it was written.
        is_wrapped: Whether there is a span around it, or one of the decorators that emit events and call callbacks.
        is_limited: Whether there is such a decorator: these ask the rate limiter, too.
    """

    function: Any
    is_wrapped: bool
    is_limited: bool

    @classmethod
    def of(cls, method: Any) -> _Method:
        function, limited = method, False
        while True:
            if getattr(getattr(function, "_self_wrapper", None), "__module__", None) == dispatcher.__name__:
                function = function.__wrapped__
            elif getattr(getattr(function, "__code__", None), "co_filename", None) == callbacks.__file__ and (
                inner := inspect.getclosurevars(function).nonlocals.get("f")
            ):
                function, limited = inner, True
            else:
                return cls(function, function is not method, limited)

    def silenced(self) -> Callable[..., Any]:
        function, limited = self.function, self.is_limited
        call: Any
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                if limited and self.rate_limiter is not None:
                    await self.rate_limiter.async_acquire()
                return await function(self, *args, **kwargs)

        else:

            @wraps(function)
            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                if limited and self.rate_limiter is not None:
                    self.rate_limiter.acquire()
                return function(self, *args, **kwargs)

        return _without_span(call)  # type: ignore[no-any-return]
