"""Checks of texts that somebody parses afterwards: what does not parse goes to the next model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

__all__ = ["Check", "active_checks", "checking", "failed_check"]

Check: TypeAlias = Callable[[str], Any]

_active: ContextVar[tuple[Check, ...]] = ContextVar("confcascade_checks", default=())


@contextmanager
def checking(check: Check) -> Iterator[None]:
    """While it is open, cascades keep only texts that pass `check`, whatever framework asks them.

    For what parses an answer itself: a router's selector, a program, an evaluator. The last stage answers whatever it
    says, as it would alone. A stream shows nothing of a draft before it is whole and has passed.

    Args:
        check: Called with the text of a draft; one that raises, or returns False, does not pass.

    >>> from confcascade import Cascade, Stage, TokenProbability
    >>> from confcascade.testing import ScriptedModel
    >>> small, large = ScriptedModel("small", {"2+2?": ("four", 0.99)}), ScriptedModel("large", {"2+2?": "4"})
    >>> cascade = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(large)])
    >>> with checking(int):
    ...     cascade.run("2+2?").text
    '4'
    """
    token = _active.set((*_active.get(), check))
    try:
        yield
    finally:
        _active.reset(token)


def active_checks() -> tuple[Check, ...]:
    """Those of the `checking` blocks around the caller."""
    return _active.get()


def failed_check(checks: Sequence[Check], text: str) -> str | None:
    """Why a text does not pass, in one line without its content; None if it does."""
    for check in checks:
        try:
            passed = check(text)
        except Exception as error:
            return f"it does not pass the check ({type(error).__name__})"
        if passed is False:
            return "it does not pass the check"
    return None
