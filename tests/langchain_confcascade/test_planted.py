"""A key, a prompt and an answer, planted in the texts of errors, are found in nothing that is kept of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from confcascade import ConfcascadeError, trace
from confcascade.testing import ScriptedModel
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.outputs import ChatResult
from langchain_core.tracers import BaseTracer
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from langchain_confcascade import ConfidenceCascadeLLM

KEY, PROMPT, ANSWER = "sk-planted0123456789abcdef", "PLANTEDPROMPT of a patient", "PLANTEDANSWER of a doctor"
TEXT = f"Incorrect API key provided: {KEY}. Could not parse '{ANSWER}' for '{PROMPT}'"


class Number(BaseModel):
    n: int


def validation() -> Exception:
    try:
        Number.model_validate({"n": TEXT})
    except Exception as error:
        return error
    raise AssertionError


def status_error() -> Exception:
    request = httpx.Request("POST", f"http://{KEY}.example/v1?q={ANSWER}", headers={"Authorization": f"Bearer {KEY}"})
    return httpx.HTTPStatusError(TEXT, request=request, response=httpx.Response(418, text=TEXT, request=request))


def with_fields() -> Exception:
    error = RuntimeError(TEXT)
    error.code, error.param, error.status_code = TEXT, TEXT, 400  # type: ignore[attr-defined]
    error.add_note(TEXT)
    return error


def caused() -> Exception:
    error = RuntimeError("outer")
    error.__cause__ = ValueError(TEXT)
    return error


class Echo(Exception):  # noqa: N818
    """An error whose repr and text are the prompt."""

    def __repr__(self) -> str:
        return TEXT

    __str__ = __repr__


OWN: dict[str, Callable[[], Exception]] = {
    "ValueError": lambda: ValueError(TEXT),
    "KeyError": lambda: KeyError(TEXT),
    "TimeoutError": lambda: TimeoutError(TEXT),
    "OSError": lambda: OSError(2, TEXT, ANSWER),
    "JSONDecodeError": lambda: json.JSONDecodeError(TEXT, TEXT, 0),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", TEXT.encode(), 0, 1, TEXT),
    "ValidationError": validation,
    "ConnectError": lambda: httpx.ConnectError(TEXT),
    "ReadTimeout": lambda: httpx.ReadTimeout(TEXT),
    "HTTPStatusError": status_error,
    "OutputParserException": lambda: OutputParserException(TEXT, llm_output=ANSWER, observation=PROMPT),
    "ExceptionGroup": lambda: ExceptionGroup(TEXT, [ValueError(TEXT)]),
    "fields": with_fields,
    "caused": caused,
    "echo": lambda: Echo(TEXT),
}
STATUSES = (400, 401, 403, 404, 409, 422, 429, 500, 503)


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
        error = {"message": TEXT, "type": TEXT, "code": TEXT if kind % 2 else "invalid_api_key", "param": TEXT}
        return ChatOpenAI(**provider(status=kind, error=error).settings(api_key=KEY))

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
