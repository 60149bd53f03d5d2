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
