"""The paper's first-token signal of open questions: how probable it is that the answer begins as it was told to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.token_probability import first_logprobs, prompt_logprobs

__all__ = ["FormatProbability"]


class FormatProbability(Signal):
    """How probable it is that the answer begins with "Answer", in [0, 1]; " Answer" and "Answer" are pooled.

    For prompts that ask for the format "Answer: <answer>", as the paper's do. It measures whether the model keeps to
    that format and nothing of what comes after: a model that always keeps to it scores near 1 on right and wrong
    answers alike. So look at its AUROC on your own questions before it decides anything; the default is P(T) of the
    answer (`TokenProbability`).

    Known before anything is generated where the model reads the prompt in this process, else at the first token of the
    answer; an answer that begins otherwise is then ended.

    The turn must be the model's own from its first token: a prompt that begins the assistant's turn with "Answer:"
    leaves nothing to measure.

    Args:
        opening: What answers are to begin with. It must be a single token of the model.
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If `opening` is not a single word.

    Source: "Confidence-Driven Multi-Scale Model Selection", Appendix F: "the probability of the first token being
    'Answer'".
    """

    phase: ClassVar[Literal["pre", "post"]] = "post"
    logprobs = True
    top_logprobs = 20
    early = True

    def __init__(self, opening: str = "Answer", *, name: str = "p_format") -> None:
        if not isinstance(opening, str) or opening.split() != [opening]:
            raise ConfigurationError(
                f'`opening` of FormatProbability must be one word without spaces, such as "Answer". Got {opening!r}.'
            )
        self.opening = opening
        self.labels = (opening,)
        self.name = name

    def __repr__(self) -> str:
        return f"FormatProbability({self.opening!r})"

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "FormatProbability", "opening": self.opening}

    def check(self, model: LanguageModel) -> None:
        if model.capability.logprobs is False:
            raise ConfigurationError(
                f"FormatProbability needs log-probabilities, and model '{model.name}' does not return them. "
                + (model.capability.remedy or "Use a model that does, or put this one last.")
            )

    def score(self, evidence: Evidence) -> Measurement:
        found = prompt_logprobs(evidence, self.labels) or first_logprobs(evidence, self.labels)
        return Measurement(min(1.0, math.exp(found[self.opening])))

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        try:
            value = self.score(evidence).value
        except SignalUnavailableError:
            return self.space  # not told yet, or the finished answer will say why
        return value, value
