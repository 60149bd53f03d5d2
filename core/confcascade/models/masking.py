"""Keys are no part of what is raised: a server may repeat the one that it was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["masked"]

_LEAST_KEY = 8  # characters: what is shorter stands in the place of a key, as "none" or "EMPTY" do


def masked(told: Any, keys: Sequence[str]) -> Any:
    """The same, ``***`` in the place of the keys, wherever there is text in it.

    Of an error, in the error itself and in those that it came from, which a traceback shows.
    """
    if isinstance(told, str):
        for key in keys:
            told = told.replace(key, "***") if len(key) >= _LEAST_KEY else told
    elif isinstance(told, Mapping):
        told = {masked(key, keys): masked(value, keys) for key, value in told.items()}
    elif isinstance(told, list | tuple):
        told = type(told)(masked(each, keys) for each in told)
    elif isinstance(told, BaseException):
        told.args = masked(told.args, keys)
        for name, value in vars(told).items():  # message, body, type; the text that is no JSON
            if isinstance(value, str | dict | list):
                setattr(told, name, masked(value, keys))
        masked(told.__cause__ or told.__context__, keys)
    return told
