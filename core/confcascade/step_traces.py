"""How confident a model is of its own steps: what a mixture is fitted on. No label is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.attempts import Outcome
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.step_mixture import Quantity, step_confidence
from confcascade.stage import Stage
from confcascade.stepwise import Steps
from confcascade.stepwise_cascade import StepwiseCascade

__all__ = ["step_confidences"]

_LOWEST = -1e30  # what every confidence passes


class _Confidence(Signal):
    """The confidence of each step that the model has written."""

    name = "confidence"
    space = (-math.inf, math.inf)
    phase: ClassVar[Literal["pre", "post"]] = "post"
    logprobs = True

    def __init__(self, quantity: Quantity) -> None:
        self._quantity = quantity
        self.top_logprobs = 1 if quantity == "max_logprob" else 0

    def check(self, model: LanguageModel) -> None:
        """Any that goes on with an answer."""

    def score(self, evidence: Evidence) -> Measurement:
        return Measurement(step_confidence(evidence.tokens or (), self._quantity))

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "step confidence", "quantity": self._quantity}


def step_confidences(
    model: LanguageModel,
    queries: Iterable[Any],
    *,
    steps: Steps | None = None,
    quantity: Quantity = "max_logit",
    max_concurrency: int = 16,
    on_result: Callable[[int, Outcome | Exception], None] | None = None,
    **parameters: Any,
) -> list[float]:
    """Let a model answer by itself, and tell how confident it was of each step: for `StepMixture.fit`.

    Args:
        model: The small model of a cascade that is to decide step by step.
        queries: What `Cascade.run` takes, many times: like those to come, and none of those to be judged.
        steps: What a step is; as of the cascade.
        quantity: As of `StepMixture.fit`.
        max_concurrency: Most calls to APIs at a time.
        on_result: Called with a query's index and outcome as each ends (for a progress bar).
        **parameters: Fields of `Request`, such as ``max_tokens``.

    Returns:
        One number for each step of each answer.

    Raises:
        ConfigurationError: If the model cannot go on with an answer that has been begun.
        ConfcascadeError: If it fails to answer.
    """
    signal = _Confidence(quantity)
    small = Stage(model, [signal], {signal.name: _LOWEST})  # "always" would write an answer as one step
    cascade = StepwiseCascade([small, Stage(model)], steps=steps)
    outcomes = cascade.run_batch(queries, max_concurrency=max_concurrency, on_result=on_result, **parameters)
    written = [step for outcome in outcomes for step in outcome.record.steps if step.kept]
    scores = [step.scores.get(signal.name) for step in written]
    return [score.value for score in scores if score is not None and score.value is not None]
