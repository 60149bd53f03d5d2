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
from contextlib import suppress
from functools import lru_cache
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, TypeVar

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


T = TypeVar("T", bound="ConfcascadeError")


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

    It is an instance of that error's class, too, with its attributes: handlers, retries and fallbacks that are keyed on
    a provider's error work as around the model itself.

    Attributes:
        attempts: Every attempt, as an answer's record has them (`Attempt`).
        responses: What was said: for each attempt its `Response`, None where it gave none.
    """

    def __init__(self, message: str, attempts: Sequence[Any] = (), responses: Sequence[Any] = ()) -> None:
        super().__init__(message)  # and nothing else: a traceback in a log shows no answer
        self.attempts = tuple(attempts)
        self.responses = tuple(responses)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.attempts, self.responses)


def joined(ours: T, error: Exception | None) -> T:
    """`ours`, caused by `error`, and an instance of its class, too, where that class can be derived from.

    >>> joined(ModelError("It broke."), TimeoutError("after 60 s"))
    ModelError('It broke.')
    >>> isinstance(joined(ModelError("It broke."), TimeoutError()), TimeoutError)
    True
    """
    theirs = error
    while isinstance(theirs, ConfcascadeError):  # of a cascade within a cascade, say
        theirs = theirs.__cause__ if isinstance(theirs.__cause__, Exception) else None
    both = None if theirs is None else _both(type(ours), type(theirs))  # type: ignore[arg-type]
    if both is not None and theirs is not None:
        try:
            made = both.__new__(both)
            made.args = ours.args
            for name in _slots_of(type(theirs)):
                with suppress(AttributeError, TypeError):
                    setattr(made, name, getattr(theirs, name))
            vars(made).update({k: v for k, v in vars(theirs).items() if k != "__notes__"} | vars(ours))
        except Exception:  # it wants more to be made of
            made = ours
        ours = made
    ours.__cause__ = error
    return ours


def _slots_of(kind: type) -> list[str]:
    """What its instances hold outside of their ``__dict__``, such as ``errno``."""
    kinds = (MemberDescriptorType, GetSetDescriptorType)
    return [
        name
        for cls in kind.__mro__
        if cls not in (Exception, BaseException, object)
        for name, each in vars(cls).items()
        if isinstance(each, kinds) and not name.startswith("__")
    ]


@lru_cache(maxsize=256)
def _both(ours: type[ConfcascadeError], theirs: type[Exception]) -> Any:
    """A class of both; None where `theirs` is final, or wants more of those who derive from it."""

    def reduced(self: Any) -> Any:  # without what is the provider's: it may hold a connection
        return ours, (*self.args, *(vars(self)[name] for name in ("attempts", "responses") if name in vars(self)))

    own = {name: getattr(Exception, name) for name in ("__str__", "__repr__")}
    try:
        return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__reduce__": reduced, **own})
    except Exception:
        return None


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
    status = status_of(error)
    facts = [] if status is None else [str(status)]
    code = _first(error, "code", "errno")
    if isinstance(code, str | int) and str(code) not in facts and _CODE.fullmatch(str(code)):
        facts.append(str(code))
    parameter = _first(error, "param")
    if isinstance(parameter, str) and _PARAMETER.fullmatch(parameter):
        facts.append(f"parameter {parameter}")
    if not facts and error.__cause__ is not None:
        facts.append(f"from {type(error.__cause__).__name__}")
    return f"{name} ({', '.join(facts)})" if facts else name


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a client's error tells, itself or by its response; None if there is none."""
    status = _first(error, "status_code", "status", "http_status")
    if status is None:
        status = _first(_first(error, "response"), "status_code", "status")
    return status if isinstance(status, int) else None


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
