"""What LlamaIndex's tracing learns of a cascade: below the span of its call, a span for each attempt.

An attempt is told as a call of its model: a pair of events with the model's name and the attempt's usage, by which
tracing back-ends count and price it. The cascade's own event of its end then tells no usage, or it would count twice.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any
from uuid import uuid4

from confcascade import Attempt, ModelError, Request
from confcascade.extending import Response
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatStartEvent, LLMCompletionEndEvent
from llama_index.core.llms.custom import CustomLLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.events.span import SpanDropEvent
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler

__all__ = ["counted_once", "report"]

_dispatcher = get_dispatcher(__name__)
_COUNTS = {"prompt_tokens", "completion_tokens", "total_tokens"}


def report(request: Request, ended: Any) -> None:
    """Tell of every attempt at a query, once it has ended (`Cascade`, `on_ended`), below the span that is active here.

    An attempt's tags are its `Attempt.attributes`; its arguments, what was
    asked, by whom, and what became of it, and of an answer written in turn the steps of this model; its result, what
    was said. One that failed is a dropped span. No event shows what was said by an attempt whose answer was not kept.
    """
    if not _listened():
        return
    messages = [message for message in request.native or () if isinstance(message, ChatMessage)]
    for attempt, response in zip(ended.record.attempts, ended.responses, strict=True):
        _report_one(messages, attempt, response, kept=attempt.stage == ended.record.stage)


def _report_one(messages: list[ChatMessage], attempt: Attempt, response: Response | None, kept: bool) -> None:
    scores = {name: score.value for name, score in attempt.scores.items()}
    said = _said(response)
    text = None if said is None else said.content
    bound = _SIGNATURE.bind(messages, attempt.model, attempt.decision, attempt.reason, scores, text)
    if attempt.steps:
        bound.arguments["steps"] = [step.as_dict() for step in attempt.steps]
    tags = attempt.attributes()
    # LlamaIndex reads what comes before the first hyphen as the name
    span: dict[str, Any] = {"id_": f"ConfidenceCascadeLLM.attempt-{uuid4()}", "bound_args": bound}
    span["instance"] = _Asked(model=attempt.model)
    _dispatcher.span_enter(**span, parent_id=active_span_id.get(), tags=tags)
    if attempt.usage.total_tokens:
        event: dict[str, Any] = {"span_id": span["id_"], "messages": messages, "tags": dict(tags)}
        _dispatcher.event(LLMChatStartEvent(**event, additional_kwargs={}, model_dict={"model": attempt.model}))
        shown = ChatMessage(role=MessageRole.ASSISTANT, content=text if kept else "")
        _dispatcher.event(LLMChatEndEvent(**event, response=ChatResponse(message=shown, raw=_raw(attempt))))
    if attempt.error is None:
        _dispatcher.span_exit(**span, result=said)
    else:
        _dispatcher.event(SpanDropEvent(span_id=span["id_"], err_str=attempt.error))
        _dispatcher.span_drop(**span, err=ModelError(attempt.error))


def _attempt(
    messages: Any, model: str, decision: str, reason: str, scores: Any, answer: str | None, steps: Any = ()
) -> None:
    """For its signature: a span is that of a call."""


_SIGNATURE = inspect.signature(_attempt)


class _Asked(CustomLLM):
    """Stands for an attempt's model where tracers look for the LLM of a span. It is never asked."""

    model: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, is_chat_model=True)

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    stream_complete = complete


def _raw(attempt: Attempt) -> dict[str, Any]:
    """The attempt's usage, as OpenAI's answers have it."""
    usage = attempt.usage
    counts = (usage.input_tokens, usage.output_tokens, usage.total_tokens)
    told: dict[str, Any] = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True))
    if (cached := usage.input_details.get("cache_read")) is not None:
        told["prompt_tokens_details"] = {"cached_tokens": cached}
    if (thought := usage.output_details.get("reasoning")) is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": thought}
    return {"usage": told}


def _said(response: Response | None) -> ChatMessage | None:
    """Without the provider's accounts, which are the attempt's: tracers that add up usage would count it again."""
    if response is None:
        return None
    if isinstance(response.native, ChatResponse):
        return response.native.message
    return ChatMessage(role=MessageRole.ASSISTANT, content=response.text)


def counted_once(event: BaseEvent) -> BaseEvent:
    """`event`; the end of a cascade's call without its usage, if the attempts told theirs."""
    if not _is_end(type(event)) or (response := event.response) is None:  # type: ignore[attr-defined]
        return event
    if not _listened() or "confcascade" not in response.additional_kwargs:
        return event
    kept = {key: value for key, value in response.additional_kwargs.items() if key not in _COUNTS}
    raw = (
        {key: value for key, value in response.raw.items() if key != "usage"}
        if isinstance(response.raw, dict)
        else None
    )
    uncounted = response.model_copy(update={"raw": raw, "additional_kwargs": kept})
    return event.model_copy(update={"response": uncounted})


@lru_cache(maxsize=128)
def _is_end(kind: type) -> bool:
    """Whether events of this class end a call."""
    return issubclass(kind, LLMChatEndEvent | LLMCompletionEndEvent)


def _listened() -> bool:
    """Whether any handler wants spans; without, nothing is prepared."""
    each = _dispatcher
    while True:
        for handler in each.span_handlers:
            if type(handler) is not NullSpanHandler and not isinstance(handler, NullSpanHandler):
                return True
        if not each.propagate:
            return False
        each = each.parent
