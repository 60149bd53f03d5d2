"""A key, a prompt and an answer, planted in the texts of errors, are found in nothing that is kept of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confcascade import ConfcascadeError, trace
from confcascade.testing import ScriptedModel
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.outputs import ChatResult
from langchain_core.tracers import BaseTracer
from langchain_openai import ChatOpenAI

from langchain_confcascade import ConfidenceCascadeLLM

from ..planted import ANSWER, ERRORS, KEY, PROMPT, STATUSES, TEXT, error_body

OWN = ERRORS | {
    "OutputParserException": lambda: OutputParserException(TEXT, llm_output=ANSWER, observation=PROMPT),
}


class Failing(BaseChatModel):
    error: Any

    @property
    def _llm_type(self) -> str:
        return "failing"

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise self.error()


class Tracer(BaseTracer):
    """Keeps every run."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.attempts += run.child_runs


def told(record: Any) -> str:
    return repr(record) + json.dumps(record.as_dict())


@pytest.fixture
def failing(provider: Any) -> Callable[[Any], Any]:
    def make(kind: str | int) -> Any:
        if isinstance(kind, str):
            return Failing(error=OWN[kind])
        return ChatOpenAI(**provider(status=kind, error=error_body(kind)).settings(api_key=KEY))

    return make


def asked(llm: Any, way: str, config: Any) -> Iterator[str]:
    """What the caller is given of it, as text: the message, or our own exception."""
    try:
        if way == "stream":
            yield repr(list(llm.stream(PROMPT, config)))
        else:
            yield repr(llm.invoke(PROMPT, config))
    except ConfcascadeError as error:
        yield f"{error} {error!r} {error.args} {getattr(error, 'attempts', '')!r}"
    except Exception:  # the stage's own, as alone
        yield ""


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("kind", [*OWN, *STATUSES])
def test_what_errors_quote_is_kept_nowhere(failing, caplog, kind, way):
    """Whichever stage fails: no record, log line, run of an attempt, cache key or exception of ours has it."""
    caplog.set_level(logging.DEBUG, logger="confcascade")
    tracer, found = Tracer(), []
    unsure, sure = ScriptedModel("unsure", lambda _: ("perhaps", 0.2)), ScriptedModel("large", lambda _: "fine")
    for models, options in (
        ([failing(kind), sure], {}),
        ([unsure, failing(kind)], {}),
        ([unsure, failing(kind)], {"on_exhausted": "best"}),
        ([failing(kind), failing(kind)], {}),
        ([failing(kind)], {}),
    ):
        llm = ConfidenceCascadeLLM(models=models, threshold=0.9, **options)
        with trace() as t:
            found += asked(llm, way, {"callbacks": [tracer]})
        assert t.records
        found += [told(record) for record in t.records]
        found += [repr(llm), dumps(llm), llm._get_llm_string(), llm.cascade.policy_id]
    found += [record.getMessage() for record in caplog.records if record.name.startswith("confcascade")]
    assert len(tracer.attempts) == 9
    found += [f"{run.error} {run.extra} {run.name} {run.tags}" for run in tracer.attempts]

    for planted in (KEY, "PLANTEDPROMPT", "PLANTEDANSWER"):
        where = [text for text in found if planted in text]
        assert not where, (planted, where[0][:600])
