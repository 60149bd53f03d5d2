"""What LlamaIndex's instrumentation and callbacks learn: one call of the cascade, and below it a span for each attempt.

A stage's LLM is asked in silence: with a span, events and callbacks of its own it would be counted beside the cascade,
and its events would show drafts.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any, TypeVar
from uuid import uuid4

from confcascade import Attempt, Cascade, CascadeExhaustedError, ModelError, Outcome, Request
from confcascade.extending import Chunk, Response
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.events.span import SpanDropEvent
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler

__all__ = ["TracedCascade"]

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
