"""Errors of twenty kinds whose texts and fields quote a key, a prompt and an answer."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
from pydantic import BaseModel

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


ERRORS: dict[str, Callable[[], Exception]] = {
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
    "ExceptionGroup": lambda: ExceptionGroup(TEXT, [ValueError(TEXT)]),
    "fields": with_fields,
    "caused": caused,
    "echo": lambda: Echo(TEXT),
}
STATUSES = (400, 401, 403, 404, 409, 422, 429, 500, 503)


def error_body(status: int) -> dict[str, str]:
    """What an OpenAI-compatible server says of such an error."""
    return {"message": TEXT, "type": TEXT, "code": TEXT if status % 2 else "invalid_api_key", "param": TEXT}
