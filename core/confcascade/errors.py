"""The error tree.

ConfcascadeError
├── ConfigurationError        a cascade, stage or signal that cannot work; raised when it is built
│   └── MissingExtraError     an optional dependency is not installed; names the pip command
├── ModelError                a model failed to answer
│   └── StreamBrokenError     it failed after a part of its answer had been shown
├── SignalUnavailableError    a score cannot be computed from this answer; the attempt escalates with the reason
└── CascadeExhaustedError     no stage gave an answer
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = [
    "CascadeExhaustedError",
    "ConfcascadeError",
    "ConfigurationError",
    "MissingExtraError",
    "ModelError",
    "SignalUnavailableError",
    "StreamBrokenError",
]

# what providers put into the fields of their errors; anything longer or freer may be a text, or a key
_CODE = re.compile(r"[A-Za-z][A-Za-z_.]{0,47}|\d{1,6}")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z_.\[\]\d]{0,63}")


class ConfcascadeError(Exception):
    """The root of every error raised on purpose."""


class ConfigurationError(ConfcascadeError, ValueError):
    """A cascade, stage or signal that cannot work as configured."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is not installed."""


class ModelError(ConfcascadeError):
    """A model failed to answer."""


class StreamBrokenError(ModelError):
    """A model failed after part of its answer had been shown: it cannot be taken back, so no other stage may answer."""


class SignalUnavailableError(ConfcascadeError):
    """A score cannot be computed from this answer; no value is invented in its place."""


class CascadeExhaustedError(ConfcascadeError):
    """No stage gave an answer. The cause is the last model's error.

    Attributes:
        attempts: Every attempt, as an answer's record has them (`Attempt`).
        responses: What was said: for each attempt its `Response`, None where it gave none.
    """

    def __init__(self, message: str, attempts: Sequence[Any] = (), responses: Sequence[Any] = ()) -> None:
        super().__init__(message)  # alone: a traceback in a log shows no answer
        self.attempts = tuple(attempts)
        self.responses = tuple(responses)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.attempts, self.responses)


def kept_of(error: BaseException) -> str:
    """What records, logs and errors of ours keep of an error: its type, status, code and parameter, never its text.

    A text may quote the prompt, the answer or a key. Those of confcascade's own errors do not, and are kept whole.
    To see the others, set the logger ``confcascade.texts`` to DEBUG.

    >>> error = ConnectionError("Invalid key sk-123")
    >>> error.status_code, error.code = 401, "invalid_api_key"
    >>> kept_of(error)
    'ConnectionError (401, invalid_api_key)'
    """
    name = type(error).__name__
    if isinstance(error, ConfcascadeError):
        return f"{name}: {error}"
    status = _first(error, "status_code", "status", "http_status") or _first(
        getattr(error, "response", None), "status_code", "status"
    )
    facts = [str(status)] if isinstance(status, int) else []
    code = _first(error, "code", "errno")
    if isinstance(code, str | int) and str(code) not in facts and _CODE.fullmatch(str(code)):
        facts.append(str(code))
    parameter = _first(error, "param")
    if isinstance(parameter, str) and _PARAMETER.fullmatch(parameter):
        facts.append(f"parameter {parameter}")
    if not facts and error.__cause__ is not None:
        facts.append(f"from {type(error.__cause__).__name__}")
    return f"{name} ({', '.join(facts)})" if facts else name


def _first(source: Any, *names: str) -> Any:
    """The first of these attributes that is set; some errors compute theirs, and fail at it."""
    for name in names:
        try:
            value = getattr(source, name, None)
        except Exception:
            continue
        if value is not None and not callable(value):
            return value
    return None


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        MissingExtraError: With the exact pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f'`{module}` is needed here and cannot be imported ({error}). Run: pip install "confcascade[{extra}]"'
        ) from error
