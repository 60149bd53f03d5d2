"""How sure a model is of the very next token: a glimpse of what it is about to write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal

__all__ = ["Glimpse"]


class Glimpse(Signal):
    """exp(-H) of the next token's distribution, in (0, 1]: 1 if only one token can follow, 1/n if n are equally likely.

    Where an answer is written in turn (`StepwiseCascade`), it is known before each step; else before the answer. Needs
    a model in this process, whose whole distribution can be seen.

    Args:
        name: Key of thresholds and records.

    Source: GlimpRouter, arXiv 2601.05110, which compares the entropy H of a step's first token with a threshold.
    """

    phase: ClassVar[Literal["pre", "post"]] = "pre"
    following = True

    def __init__(self, *, name: str = "glimpse") -> None:
        self.name = name

    def __repr__(self) -> str:
        return "Glimpse()"

    def check(self, model: LanguageModel) -> None:
        if not model.capability.prefill:
            raise ConfigurationError(
                f"Model '{model.name}' does not show what it expects next before it writes, which Glimpse reads. "
                "TransformersModel does. Of others, judge what they have written, by TokenProbability()."
            )

    def score(self, evidence: Evidence) -> Measurement:
        if evidence.prefilled is None or evidence.prefilled.following is None:
            raise SignalUnavailableError("it is not known what the model expects next")
        return Measurement(math.exp(-evidence.prefilled.following.entropy))

    def identity(self) -> Mapping[str, Any]:
        return {"type": "glimpse"}
