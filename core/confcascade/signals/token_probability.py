"""P(T): the probability that the model gave to its own answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.spans import call_tokens, thought_tokens, value_tokens, wants_object
from confcascade.types import Token

__all__ = ["TokenProbability", "label_logprobs"]

Aggregate = Literal["mean", "min", "product", "first"]

_TOKENS = 2  # by which rule tokens count: scores of another one are others, and so are thresholds fitted on them


class TokenProbability(Signal):
    """P(T), the probability of the answer's tokens, in [0, 1].

    Not a probability of being right: only calibration makes that.

    Of free text, it is an aggregate over the tokens of the answer: thoughts, marks, stop strings and blanks that were
    stripped do not count (`confcascade.answers`). Tokens that do not spell the answer give no score.

    - "mean" (default): exp of the mean log-probability, the reciprocal of the perplexity;
    - "min": the least probable token;
    - "product": the probability of the whole sequence;
    - "first": the first token alone.

    Of answer labels (multiple choice), it is the probability of the most confident option before anything is generated,
    P(T) = max_c p(c | x), where " A" and "A" are pooled; the sum over all labels is the detail ``label_mass``.
    Needs no generation: a label that is not likely enough escalates from the prompt alone.

    Of tool calls and structured output, it is the same aggregate over the tokens of the values, and of a call's name
    where the request left the choice: braces, quotes and keys follow from the schema. Needs a model that lists the
    calls' own tokens among its log-probabilities (llama.cpp and vLLM do, OpenAI does not) in JSON. With tools or a
    schema in the request, nothing is decided before the answer is whole.

    Args:
        labels: The answer labels, such as "ABCD"; empty means free text. Labels are never guessed from a prompt.
        aggregate: How the tokens of free text become one number.
        part: "answer", or "thoughts": the same aggregate over what the model thought before it, which needs a model
            that tells the log-probabilities of its thoughts. An answer without thoughts has no such score.
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
        part: Literal["answer", "thoughts"] = "answer",
        after: str | None = None,
        name: str = "p_t",
    ) -> None:
        self.labels = tuple(labels)
        self.aggregate = aggregate
        self.part = part
        self.after = after
        self.name = name
        if part not in ("answer", "thoughts"):
            raise ConfigurationError(f'`part` of TokenProbability must be "answer" or "thoughts". Got {part!r}.')
        if aggregate not in ("mean", "min", "product", "first"):
            raise ConfigurationError(
                f'`aggregate` of TokenProbability must be "mean", "min", "product" or "first". Got {aggregate!r}.'
            )
        if self.labels and (after is not None or aggregate != "mean" or part != "answer"):
            raise ConfigurationError(
                "TokenProbability judges either `labels` or free text (`aggregate`, `part`, `after`), not both. "
                f"Got labels={self.labels}, aggregate={aggregate!r}, part={part!r}, after={after!r}."
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
        self.early = bool(self.labels) or (after is None and aggregate != "mean" and part == "answer")

    def __repr__(self) -> str:
        thoughts = ", part='thoughts'" if self.part == "thoughts" else ""
        what = f"aggregate={self.aggregate!r}{thoughts}, after={self.after!r}"
        what = f"labels={self.labels}" if self.labels else what
        return f"TokenProbability({what})"

    def identity(self) -> Mapping[str, Any]:
        return {
            "signal": "TokenProbability",
            "tokens": _TOKENS,
            "labels": list(self.labels),
            "aggregate": self.aggregate,
            "part": self.part,
            "after": self.after,
        }

    def check(self, model: LanguageModel) -> None:
        if model.capability.logprobs is False:
            raise ConfigurationError(
                f"TokenProbability needs log-probabilities, and model '{model.name}' does not return them. "
                + (model.capability.remedy or "Use a model that does, or put this one last.")
            )

    def score(self, evidence: Evidence) -> Measurement:
        response = evidence.response
        if self.part == "thoughts" and response is not None:
            return self._aggregated(self._span(thought_tokens(response)))
        if response is not None and response.tool_calls:
            return self._aggregated(call_tokens(evidence.request, response))
        if self.labels:
            return self._score_labels(evidence)
        tokens = self._span(answer_tokens(evidence))
        return self._aggregated(value_tokens(tokens) if wants_object(evidence.request) else tokens)

    def _aggregated(self, tokens: Sequence[Token]) -> Measurement:
        logprobs = _known(token.logprob for token in tokens)
        if self.aggregate == "first":
            return Measurement(math.exp(logprobs[0]))
        if self.aggregate == "min":
            return Measurement(math.exp(min(logprobs)))
        total = math.fsum(logprobs)
        return Measurement(math.exp(total if self.aggregate == "product" else total / len(logprobs)))

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        if evidence.request.judged_whole or wants_object(evidence.request):
            return self.space  # most tokens of a tool call or an object do not count
        if self.labels:
            if (evidence.prefilled and evidence.prefilled.label_logprobs) or evidence.tokens:
                try:
                    value = self._score_labels(evidence).value
                except SignalUnavailableError:
                    return self.space  # the finished answer will say why
                return self.space[0], value  # of another label that it may turn out to answer with, less
            return self.space
        if not self.early or not evidence.tokens:
            return self.space
        try:
            value = self.score(evidence).value
        except SignalUnavailableError:
            return self.space  # the finished answer will say why
        return (value, value) if self.aggregate == "first" else (0.0, value)

    def _score_labels(self, evidence: Evidence) -> Measurement:
        found = label_logprobs(evidence, self.labels)
        truncated = len(found) < len(self.labels)
        label = max(found, key=lambda candidate: found[candidate])
        if evidence.response is not None:
            label = label_of(evidence.response.answer, self.labels)
            if label not in found:
                raise SignalUnavailableError(f"the label of the answer, {label!r}, is not among the alternatives")
        mass = math.fsum(math.exp(logprob) for logprob in found.values())
        details = {"label": label, "label_mass": min(1.0, mass)}
        if truncated:
            details["label_mass_is_lower_bound"] = True
        return Measurement(min(1.0, math.exp(found[label])), details)

    def _span(self, tokens: Sequence[Token]) -> Sequence[Token]:
        """The tokens that are judged; never empty."""
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


def answer_tokens(evidence: Evidence) -> Sequence[Token]:
    """The answer's tokens, as far as they are known.

    Raises:
        SignalUnavailableError: If the model tells none, or they are not those of the answer.
    """
    if evidence.tokens is None:
        told = None if evidence.response is None else evidence.response.unscored
        raise SignalUnavailableError(told or "the model returned no log-probabilities")
    return evidence.tokens


def label_of(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer consists of or begins with: "B", "(B)", "B. Lyon", but not "A good question".

    Raises:
        SignalUnavailableError: If it is none.
    """
    begun = answer.strip().lstrip("\"'([{*` ")
    for label in sorted(labels, key=len, reverse=True):
        rest = begun[len(label) :]
        if not begun.startswith(label) or rest[:1].isalnum():
            continue
        # after a single letter, a word would make another word of it
        if len(label) > 1 or not rest.strip() or rest[0] == "\n" or not rest.lstrip(" ")[0].isalnum():
            return label
    raise SignalUnavailableError("the answer does not begin with one of the labels")


def label_logprobs(evidence: Evidence, labels: Sequence[str]) -> dict[str, float]:
    """Log-probability that the answer begins with each of `labels`, " A" and "A" pooled.

    As the pass over the prompt told them, where there was one; else from the alternatives of the first token, of which
    an API tells only the most probable: a label that is not among them is left out.

    Raises:
        SignalUnavailableError: If none is known, or one is not a number.
    """
    thought = evidence.response is not None and evidence.response.thoughts  # then the prompt's next token was no answer
    told = evidence.prefilled.label_logprobs if evidence.prefilled and not thought else {}
    if found := {label: told[label] for label in labels if label in told}:  # others are another signal's
        _known(found.values())
        return found
    if not answer_tokens(evidence):
        raise SignalUnavailableError("the model returned no log-probabilities")
    assert evidence.tokens
    pooled: dict[str, float] = {}
    _known(logprob for _, logprob in evidence.tokens[0].top)
    for text, logprob in evidence.tokens[0].top:
        if text.strip() in labels:
            pooled[text.strip()] = pooled.get(text.strip(), 0.0) + math.exp(logprob)
    if not pooled:
        raise SignalUnavailableError(
            f"none of the labels {tuple(labels)} is among the {len(evidence.tokens[0].top)} alternatives "
            "of the first token"
        )
    return {label: math.log(p) if p else -math.inf for label, p in pooled.items()}


def _known(logprobs: Iterable[float]) -> list[float]:
    """As they are; minus infinity is a probability of 0.

    Raises:
        SignalUnavailableError: If one is NaN or infinite.
    """
    listed = list(logprobs)
    if not all(logprob < math.inf for logprob in listed):
        raise SignalUnavailableError("a log-probability of the answer is not finite")
    return listed
