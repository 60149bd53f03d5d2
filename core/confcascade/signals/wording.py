"""A rule on wording: answers that say that they are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal

__all__ = ["REFUSALS", "Wording"]

REFUSALS = (
    r"\bI(?:'m| am) (?:sorry|unable|not able)\b",
    r"\bI (?:can(?:'|no)t|cannot|won't|will not) (?:help|assist|answer|provide|comply|do that)\b",
    r"\bI (?:don't|do not) (?:know|have (?:enough|sufficient|that|any) (?:information|context|data))\b",
    r"\bas an AI\b",
)


class Wording(Signal):
    """1 if none of some patterns is found in the answer, else 0: escalate refusals, "I don't know" and the like.

    Such answers are sure of themselves, so P(T) keeps them. Off unless it is given; to be used beside another signal,
    with a threshold of 1.

    Args:
        patterns: Regular expressions, searched for in the answer without regard to case; by default English refusals
            (`REFUSALS`).
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If there is none, or one cannot be read.
    """

    phase: ClassVar[Literal["pre", "post"]] = "post"

    def __init__(self, patterns: Iterable[str] = REFUSALS, *, name: str = "wording") -> None:
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        self.name = name
        if not self.patterns:
            raise ConfigurationError("`patterns` of Wording is empty, so every answer would score 1.")
        try:
            self._found = re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns), re.IGNORECASE)
        except re.error as error:
            raise ConfigurationError(f"A pattern of Wording is not a regular expression: {error}.") from error

    def __repr__(self) -> str:
        return f"Wording({len(self.patterns)} patterns)"

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "Wording", "patterns": list(self.patterns)}

    def check(self, model: LanguageModel) -> None:
        del model  # any has texts

    def score(self, evidence: Evidence) -> Measurement:
        if evidence.response is None:
            raise SignalUnavailableError("there is no answer yet")
        answer = evidence.response.answer.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return Measurement(float(self._found.search(answer) is None))
