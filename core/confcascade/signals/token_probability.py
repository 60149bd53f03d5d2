"""P(T): the probability that the model gave to its own answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.models import LanguageModel
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.types import Token

__all__ = ["TokenProbability"]

Aggregate = Literal["mean", "min", "product", "first"]


class TokenProbability(Signal):
    """P(T), the probability of the answer's tokens, in [0, 1].

    Not a probability of being right: only calibration makes that.

    Of free text, it is an aggregate over the visible tokens (end-of-text tokens left out):

    - "mean" (default): exp of the mean log-probability, the reciprocal of the perplexity;
    - "min": the least probable token;
    - "product": the probability of the whole sequence;
    - "first": the first token alone.

    Of answer labels (multiple choice), it is the probability of the most confident option before anything is generated,
    P(T) = max_c p(c | x), where " A" and "A" are pooled; the sum over all labels is the detail ``label_mass``.
    Needs no generation: a label that is not likely enough escalates from the prompt alone.

    Args:
        labels: The answer labels, such as "ABCD"; empty means free text. Labels are never guessed from a prompt.
        aggregate: How the tokens of free text become one number.
        after: Score only what follows the last occurrence of this text ("Answer:" of a worked solution).
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If the arguments contradict each other.

    Source: "Confidence-Driven Multi-Scale Model Selection", section 3 and equation 1 (labels); mean and sum are
    Chow-Average and Chow-Sum of Gupta et al. 2024, arXiv 2404.10136.
    """

    phase: ClassVar[Literal["pre", "post"]] = "post"
    logprobs = True

    def __init__(
        self,
        labels: Iterable[str] = (),
        *,
        aggregate: Aggregate = "mean",
        after: str | None = None,
        name: str = "p_t",
    ) -> None:
        self.labels = tuple(labels)
        self.aggregate = aggregate
        self.after = after
        self.name = name
        if aggregate not in ("mean", "min", "product", "first"):
            raise ConfigurationError(
                f'`aggregate` of TokenProbability must be "mean", "min", "product" or "first". Got {aggregate!r}.'
            )
        if self.labels and (after is not None or aggregate != "mean"):
            raise ConfigurationError(
                "TokenProbability judges either `labels` or free text (`aggregate`, `after`), not both. "
                f"Got labels={self.labels}, aggregate={aggregate!r}, after={after!r}."
            )
        proper = all(isinstance(label, str) and label and label == label.strip() for label in self.labels)
        if self.labels and (not proper or len(set(self.labels)) < max(2, len(self.labels))):
            raise ConfigurationError(
                "`labels` must be at least two different, non-empty strings without spaces around them. "
                f"Got {self.labels}."
            )
        if after is not None and not after:
            raise ConfigurationError('`after` must be a text such as "Answer:", or None for the whole answer. Got "".')
        self.top_logprobs = 20 if self.labels else 0
        # a mean can still rise and fall, and so can the place of the last marker
        self.early = bool(self.labels) or (after is None and aggregate != "mean")

    def __repr__(self) -> str:
        what = f"labels={self.labels}" if self.labels else f"aggregate={self.aggregate!r}, after={self.after!r}"
        return f"TokenProbability({what})"

    def identity(self) -> Mapping[str, Any]:
        return {
            "signal": "TokenProbability",
            "labels": list(self.labels),
            "aggregate": self.aggregate,
            "after": self.after,
        }

    def check(self, model: LanguageModel) -> None:
        if model.capability.logprobs is False:
            raise ConfigurationError(
                f"TokenProbability needs log-probabilities, and model '{model.name}' does not return them. "
                "Use a model that does, or put this one last."
            )

    def score(self, evidence: Evidence) -> Measurement:
        if self.labels:
            return self._score_labels(evidence)
        tokens = self._answer_span(evidence.tokens)
        logprobs = [token.logprob for token in tokens]
        if self.aggregate == "first":
            return Measurement(math.exp(logprobs[0]))
        if self.aggregate == "min":
            return Measurement(math.exp(min(logprobs)))
        total = math.fsum(logprobs)
        return Measurement(math.exp(total if self.aggregate == "product" else total / len(logprobs)))

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        if self.labels:
            if (evidence.prefilled and evidence.prefilled.label_logprobs) or evidence.tokens:
                try:
                    value = self._score_labels(evidence).value
                except SignalUnavailableError:
                    return self.space  # the finished answer will say why
                return value, value
            return self.space
        if not self.early or not evidence.tokens:
            return self.space
        value = self.score(evidence).value
        return (value, value) if self.aggregate == "first" else (0.0, value)

    def _score_labels(self, evidence: Evidence) -> Measurement:
        found: Mapping[str, float] = evidence.prefilled.label_logprobs if evidence.prefilled else {}
        truncated = False
        if not found:  # an API tells the first position's most probable alternatives only
            if not evidence.tokens:
                raise SignalUnavailableError("the model returned no log-probabilities")
            pooled: dict[str, float] = {}
            for text, logprob in evidence.tokens[0].top:
                if text.strip() in self.labels:
                    pooled[text.strip()] = pooled.get(text.strip(), 0.0) + math.exp(logprob)
            if not pooled:
                raise SignalUnavailableError(
                    f"none of the labels {self.labels} is among the {len(evidence.tokens[0].top)} alternatives "
                    "of the first token"
                )
            found = {label: math.log(p) for label, p in pooled.items()}
            truncated = len(found) < len(self.labels)
        label = max(found, key=lambda candidate: found[candidate])
        mass = math.fsum(math.exp(logprob) for logprob in found.values())
        details = {"label": label, "label_mass": min(1.0, mass)}
        if truncated:
            details["label_mass_is_lower_bound"] = True
        return Measurement(min(1.0, math.exp(found[label])), details)

    def _answer_span(self, tokens: Sequence[Token] | None) -> Sequence[Token]:
        """The tokens that are judged; never empty."""
        if tokens is None:
            raise SignalUnavailableError("the model returned no log-probabilities")
        if self.after is not None:
            text = "".join(token.text for token in tokens)
            start = text.rfind(self.after)
            if start < 0:
                raise SignalUnavailableError(f"the answer does not contain {self.after!r}")
            start += len(self.after)
            position = 0
            span = []
            for token in tokens:
                begin, position = position, position + len(token.text)
                if text[max(begin, start) : position].strip():  # of a token across the marker's end, only what follows
                    span.append(token)
            tokens = span
        if not tokens:
            raise SignalUnavailableError("there are no tokens to judge")
        return tokens
