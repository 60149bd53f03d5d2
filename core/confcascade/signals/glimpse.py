"""How clear it is what comes next, before anything is written (GlimpRouter)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal

__all__ = ["Glimpse"]


class Glimpse(Signal):
    """exp(-entropy) of the next token's distribution, in (0, 1]: the reciprocal of how many tokens it is as if among.

    1 where the model knows what comes next, 1/k where k tokens are equally likely. Between steps that is the first
    token of the next step, by the small model; of a whole answer, its first token. Known before anything is generated,
    fitted on nothing.

    Needs a model that reads the prompt in this process. How an answer begins may be clear while the answer is not, as
    with models that always begin with the same words: look at its AUROC on your own questions.

    Args:
        name: Key of thresholds and records.

    Source: GlimpRouter, arXiv 2601.05110, which thresholds the entropy itself; exp(-entropy) orders alike.
    """

    phase: ClassVar[Literal["pre", "post"]] = "pre"
    following = True

    def __init__(self, *, name: str = "glimpse") -> None:
        self.name = name

    def __repr__(self) -> str:
        return "Glimpse()"

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "Glimpse"}

    def check(self, model: LanguageModel) -> None:
        if not model.capability.prefill:
            raise ConfigurationError(
                f"Glimpse needs a model that tells what it expects next, before it writes; model '{model.name}' does "
                "not. Use a TransformersModel, or a signal that judges what was "
                "written, such as TokenProbability()."
            )

    def score(self, evidence: Evidence) -> Measurement:
        following = None if evidence.prefilled is None else evidence.prefilled.following
        if following is None:
            raise SignalUnavailableError("the model does not tell what it expects next")
        if not following.entropy >= -1e-6:  # rounding; and NaN is no entropy
            raise SignalUnavailableError(f"an entropy of {following.entropy} is none")
        return Measurement(math.exp(-max(0.0, following.entropy)), {"entropy": following.entropy})
