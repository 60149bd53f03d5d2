"""Which passages were retrieved for the query that an LLM is answering, whatever thread or task it is answered in.

LlamaIndex tells every retrieval as an event, and opens a span with everything that it does. A handler of both keeps the
query at hand in a context variable, which LlamaIndex copies into its threads and tasks as it does its own. See
docs/design/retrieval-score.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.workflow import Workflow
from llama_index_instrumentation import get_dispatcher

from llamaindex_confcascade.steps import asteps_with, steps_with

__all__ = ["retrieved_scores", "watch_retrievals"]

Scores = tuple[float | None, ...]

# with each of these a query begins, and what is retrieved within it is no other's
_BEGINNINGS: Mapping[type, frozenset[str]] = {
    BaseQueryEngine: frozenset({"query", "aquery", "_query", "_aquery"}),  # some call another's `_query` directly
    BaseChatEngine: frozenset({"chat", "achat", "stream_chat", "astream_chat"}),
    BaseRetriever: frozenset({"retrieve", "aretrieve"}),
    Workflow: frozenset({"run"}),
}


class _Query:
    """One query, and the scores of what was retrieved for it last.

    Args:
        asker: Of a retrieval, the query that it is made for: it gets the scores.
    """

    def __init__(self, asker: _Query | None = None) -> None:
        self.asker = asker
        self.scores: Scores | None = None


_query: ContextVar[_Query | None] = ContextVar("confcascade_query", default=None)


class _Spans(NullSpanHandler):
    """Begins and ends queries with the spans of what asks them; a span outside of any begins one, too."""

    _open: dict[str, tuple[_Query, Token[_Query | None]]] = PrivateAttr(default_factory=dict)

    def span_enter(self, id_: str, *_: Any, instance: Any = None, **__: Any) -> None:
        outer = _query.get()
        method = id_.partition("-")[0].rpartition(".")[2]  # "Class.method-uuid"
        begins = any(isinstance(instance, kind) and method in methods for kind, methods in _BEGINNINGS.items())
        if begins or outer is None:
            query = _Query(asker=outer if isinstance(instance, BaseRetriever) else None)
            self._open[id_] = query, _query.set(query)

    def span_exit(self, id_: str, *_: Any, instance: Any = None, result: Any = None, **__: Any) -> None:
        if isinstance(instance, BaseSynthesizer):  # most call the LLM when the stream is read, outside of every span
            if isinstance(result, StreamingResponse):
                result.response_gen = steps_with(_query, _query.get(), result.response_gen)
            elif isinstance(result, AsyncStreamingResponse):
                result.response_gen = asteps_with(_query, _query.get(), result.response_gen)
        self._end(id_)

    def span_drop(self, id_: str, *_: Any, **__: Any) -> None:
        self._end(id_)

    def _end(self, id_: str) -> None:
        if (opened := self._open.pop(id_, None)) is None:
            return
        query, token = opened
        try:
            _query.reset(token)
        except ValueError:  # a function that returned a future: it ends elsewhere, and its caller still holds the query
            query.scores = None


class _Retrievals(BaseEventHandler):
    """Gives the scores of a retrieval to the query that it was made for."""

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, RetrievalEndEvent) and (query := _query.get()) is not None:
            (query.asker or query).scores = tuple(node.score for node in event.nodes)


_spans, _retrievals = _Spans(), _Retrievals()


def watch_retrievals() -> None:
    """See the retrievals of every query that begins from now on, in the whole process. Calling it twice is harmless."""
    dispatcher = get_dispatcher()  # the root: every other passes on to it
    if not any(handler is _spans for handler in dispatcher.span_handlers):
        dispatcher.add_span_handler(_spans)
    if not any(handler is _retrievals for handler in dispatcher.event_handlers):
        dispatcher.add_event_handler(_retrievals)


def retrieved_scores() -> Scores | None:
    """The scores of what was retrieved last for the query in which this is called; None if nothing was."""
    query = _query.get()
    return None if query is None else query.scores
