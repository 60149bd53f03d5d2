"""A key, a prompt and an answer, planted in the texts of errors, are found in nothing that is kept of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from confcascade import ConfcascadeError, trace
from confcascade.testing import ScriptedModel
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.llms.openai_like import OpenAILike
from pytest_httpserver import HTTPServer
from werkzeug import Response as Sent

from llamaindex_confcascade import ConfidenceCascadeLLM

from ..planted import ERRORS, KEY, PROMPT, STATUSES, error_body


class Failing(CustomLLM):
    error: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="failing")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        raise self.error()

    stream_complete = complete


@pytest.fixture
def failing(httpserver: HTTPServer) -> Callable[[Any], Any]:
    def make(kind: str | int) -> Any:
        if isinstance(kind, str):
            return Failing(error=ERRORS[kind])
        body = json.dumps({"error": error_body(kind)})
        httpserver.expect_request("/v1/chat/completions").respond_with_handler(
            lambda _: Sent(body, kind, content_type="application/json")
        )
        url = httpserver.url_for("/v1")
        return OpenAILike(model="m", api_base=url, api_key=KEY, is_chat_model=True, max_retries=0, timeout=5)

    return make


@pytest.fixture
def spans() -> Any:
    handler = SimpleSpanHandler()
    dispatcher = get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)


def asked(llm: Any, way: str) -> str:
    """What the caller is given of it, as text: the answer, or our own exception."""
    message = ChatMessage(content=PROMPT)
    try:
        if way == "stream_chat":
            return repr([response.additional_kwargs for response in llm.stream_chat([message])])
        return repr(llm.chat([message]).additional_kwargs)
    except ConfcascadeError as error:
        return f"{error} {error!r} {error.args} {getattr(error, 'attempts', '')!r}"
    except Exception:  # the stage's own, as alone
        return ""


@pytest.mark.parametrize("way", ["chat", "stream_chat"])
@pytest.mark.parametrize("kind", [*ERRORS, *STATUSES])
def test_what_errors_quote_is_kept_nowhere(failing: Any, caplog: Any, spans: Any, kind: Any, way: str) -> None:
    """Whichever stage fails: no record, log line, span of an attempt, cache key or exception of ours has it."""
    caplog.set_level(logging.DEBUG, logger="confcascade")
    unsure, sure = ScriptedModel("unsure", lambda _: ("perhaps", 0.2)), ScriptedModel("large", lambda _: "fine")
    found = []
    for models, options in (
        ([failing(kind), sure], {}),
        ([unsure, failing(kind)], {}),
        ([unsure, failing(kind)], {"on_exhausted": "best"}),
        ([failing(kind), failing(kind)], {}),
        ([failing(kind)], {}),
    ):
        llm = ConfidenceCascadeLLM(models=models, threshold=0.9, **options)
        with trace() as t:
            found.append(asked(llm, way))
        (record,) = t.records
        found += [repr(record), json.dumps(record.as_dict()), repr(llm), json.dumps(llm.to_dict())]
    found += [record.getMessage() for record in caplog.records if record.name.startswith("confcascade")]
    attempts = [span for span in (*spans.completed_spans, *spans.dropped_spans) if "attempt" in span.id_]
    assert len(attempts) == 9
    found += [f"{span.tags} {getattr(span, 'err_str', '')}" for span in attempts]

    for planted in (KEY, "PLANTEDPROMPT", "PLANTEDANSWER"):
        where = [text for text in found if planted in text]
        assert not where, (planted, where[0][:600])
