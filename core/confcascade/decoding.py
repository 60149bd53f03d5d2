"""How a model decodes: the settings that a stage asks for with every call, and what is known of a model's own.

A score means what it meant only while answers come about in the same way, so a recording and a policy keep the settings
that they were made under, and a cascade that is known to decode otherwise is refused (`Policy.check`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError
from confcascade.types import Request

__all__ = ["Decoding", "asked_with", "settings_of_model"]


@dataclass(frozen=True)
class Decoding:
    """Settings that go along with each call of a stage; None leaves one to the model.

    What a request says itself comes first.

    Attributes:
        temperature: 0 is greedy: the most probable token each time.
        max_tokens: Most tokens of an answer.
        top_p: Of sampling: the likeliest tokens that have so much of the probability.
        top_k: Of sampling: so many of the likeliest tokens.
        seed: Of sampling.

    Raises:
        ConfigurationError: If one is not a number in its range.

    >>> Decoding(temperature=0, max_tokens=64).describe()
    'greedy, at most 64 tokens'
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least, whole in (
            ("temperature", 0, False),
            ("max_tokens", 1, True),
            ("top_p", 0, False),
            ("top_k", 1, True),
            ("seed", -math.inf, True),
        ):
            value = getattr(self, name)
            kind = int if whole else int | float
            if value is None or (isinstance(value, kind) and not isinstance(value, bool) and least <= value < math.inf):
                continue
            number = "a whole number" if whole else "a number"
            bound = "" if least == -math.inf else f" of at least {least}"
            raise ConfigurationError(f"`{name}` must be {number}{bound}, or None for the model's own. Got {value!r}.")

    @property
    def settings(self) -> dict[str, Any]:
        """Those that are not left to the model, JSON-ready."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: float(value) if name == "temperature" else value for name, value in named if value is not None}

    @cached_property
    def _says_nothing(self) -> bool:
        return not self.settings

    def applied(self, request: Request) -> Request:
        """`request` with these settings, where it does not say otherwise."""
        if self._says_nothing:
            return request
        settings = self.settings
        temperature, limit = settings.pop("temperature", None), settings.pop("max_tokens", None)
        return replace(
            request,
            temperature=temperature if request.temperature is None else request.temperature,
            max_tokens=limit if request.max_tokens is None else request.max_tokens,
            options={**settings, **request.options},
        )

    def describe(self) -> str:
        """In a few words, such as "greedy, at most 64 tokens"."""
        told = []
        if self.temperature is not None:
            told.append("greedy" if self.temperature == 0 else f"temperature {self.temperature:g}")
        told += [f"at most {self.max_tokens} tokens"] if self.max_tokens is not None else []
        told += [
            f"{name} {value:g}" for name in ("top_p", "top_k", "seed") if (value := getattr(self, name)) is not None
        ]
        return ", ".join(told) or "as the model does by itself"


_NAMES = tuple(each.name for each in fields(Decoding))


def settings_of_model(model: LanguageModel) -> dict[str, Any]:
    """What is known of how a model decodes where a request does not say; a setting that is not there is not known."""
    told: Mapping[str, Any] = getattr(model, "own_decoding", None) or {}
    known = {name: told[name] for name in _NAMES if isinstance(told.get(name), int | float)}
    return {name: float(value) if name == "temperature" else value for name, value in known.items()}


def asked_with(model: LanguageModel, decoding: Decoding, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a model's answers come about with, as far as they are known.

    Args:
        model: Its own, where nothing else is asked for.
        decoding: Of its stage.
        parameters: Fields of requests, which come first.
    """
    given = {name: parameters[name] for name in _NAMES if parameters.get(name) is not None}
    given |= {name: value for name, value in (parameters.get("options") or {}).items() if name in _NAMES}
    if "temperature" in given:
        given["temperature"] = float(given["temperature"])
    return {**settings_of_model(model), **decoding.settings, **given}
