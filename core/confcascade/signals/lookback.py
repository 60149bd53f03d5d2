"""Whether the next step may be written by the small model, from how sure it was of the last one (STEER)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.step_mixture import StepMixture, step_confidence

__all__ = ["Lookback"]


class Lookback(Signal):
    """How sure the small model is of the step before, whoever wrote it, in [0, 1]; known before the next is written.

    The confidence of a step is the mean over its tokens of the greatest raw logit that the small model has there. A
    `StepMixture`, fitted on unlabelled traces, says how probable it is that such a step is one of the confident kind:
    that is the score. Before the first step it is the greatest logit of what the model expects next.

    Needs a model that can read what another has written: in this process, or behind a server that tells the
    log-probabilities of a prompt (vLLM, with `OpenAICompatibleModel(reads="prompt_logprobs")`), of which a reading is a
    call of its own. No server tells logits: there it takes a mixture of "max_logprob", and the greatest log-probability
    stands in the place of the logit. That is not STEER's, whose logits keep what the softmax takes away, and it has
    nothing to judge before the first step, which the large model writes then.

    Only for cascades that decide step by step. A score is no probability of being right.

    Args:
        mixture: Of the stage's model, or the file that it was saved in.
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If the file holds no mixture.

    Source: STEER, arXiv 2511.06190, as far as it is told; see docs/papers/steer.md.
    """

    phase: ClassVar[Literal["pre", "post"]] = "pre"
    following = True
    between_steps = True

    def __init__(self, mixture: StepMixture | str | Path, *, name: str = "lookback") -> None:
        self.mixture = mixture if isinstance(mixture, StepMixture) else StepMixture.load(mixture)
        self.name = name
        self.top_logprobs = int(self.mixture.quantity == "max_logprob")

    def __repr__(self) -> str:
        low, high = self.mixture.means
        return f"Lookback({self.mixture.quantity} around {low:.4g} and {high:.4g}, model={self.mixture.model!r})"

    def identity(self) -> Mapping[str, Any]:
        mixture = self.mixture
        return {
            "signal": "Lookback",
            "quantity": mixture.quantity,
            "weights": list(mixture.weights),
            "means": list(mixture.means),
            "deviations": list(mixture.deviations),
        }

    def check(self, model: LanguageModel) -> None:
        capability, mixture = model.capability, self.mixture
        if not (capability.continues and (capability.prefill or capability.reads)):
            raise ConfigurationError(
                f"Lookback needs a model that reads what another has written, and tells how; model '{model.name}' does "
                "not. Use a TransformersModel, or vLLM with OpenAICompatibleModel(..., "
                'continues="continue_final_message", reads="prompt_logprobs"), or a signal that judges the model\'s '
                "own finished step, such as TokenProbability()."
            )
        if mixture.quantity == "max_logit" and not capability.prefill:
            raise ConfigurationError(
                f"This mixture is of raw logits, and model '{model.name}' is behind an API, where only "
                "log-probabilities are told. Fit one of those: StepMixture.fit(step_confidences(model, ..., "
                'quantity="max_logprob"), quantity="max_logprob", model=model).'
            )
        fingerprint = getattr(model, "fingerprint", None)
        known = isinstance(fingerprint, str) and mixture.fingerprint is not None
        if known and fingerprint != mixture.fingerprint:
            raise ConfigurationError(
                f"This mixture was fitted on steps as model '{mixture.model}' reads them (fingerprint "
                f"{mixture.fingerprint}); the stage's model is '{model.name}' (fingerprint {fingerprint}), whose "
                "logits have a scale of their own. Fit one for it: StepMixture.fit(values, model=...)."
            )

    def score(self, evidence: Evidence) -> Measurement:
        confidence = self._confidence(evidence)
        details = {"step_confidence": confidence, "quantity": self.mixture.quantity}
        return Measurement(self.mixture.posterior(confidence), details)

    def _confidence(self, evidence: Evidence) -> float:
        if evidence.tokens is None:
            raise SignalUnavailableError("the model returned no log-probabilities")
        if evidence.tokens:
            return step_confidence(evidence.tokens, self.mixture.quantity)
        if self.mixture.quantity != "max_logit":
            raise SignalUnavailableError("before the first step there is no log-probability to judge")
        following = None if evidence.prefilled is None else evidence.prefilled.following
        if following is None or following.max_logit is None:
            raise SignalUnavailableError("the model does not tell the greatest logit of what it expects next")
        if not math.isfinite(following.max_logit):
            raise SignalUnavailableError(f"the greatest logit of what is expected next is {following.max_logit}")
        return following.max_logit
