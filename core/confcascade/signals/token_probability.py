"""P(T): the probability that the model gave to its own answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.models import LanguageModel
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.types import Response, Token, ToolCall

__all__ = ["TokenProbability", "label_logprobs"]

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

    Of tool calls, it is the same aggregate over the tokens that overlap the calls' names and argument values: braces,
    quotes and keys follow from the tool's schema, and would make any call look sure.  Needs a model that lists the
    calls' own tokens among its log-probabilities (llama.cpp and vLLM do, OpenAI does not) in JSON. With tools in the
    request, nothing is decided before the answer is whole.

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
        if evidence.response is not None and evidence.response.tool_calls:
            return self._aggregated(_call_tokens(evidence.tokens, evidence.response))
        if self.labels:
            return self._score_labels(evidence)
        return self._aggregated(self._answer_span(evidence.tokens))

    def _aggregated(self, tokens: Sequence[Token]) -> Measurement:
        logprobs = _known(token.logprob for token in tokens)
        if self.aggregate == "first":
            return Measurement(math.exp(logprobs[0]))
        if self.aggregate == "min":
            return Measurement(math.exp(min(logprobs)))
        total = math.fsum(logprobs)
        return Measurement(math.exp(total if self.aggregate == "product" else total / len(logprobs)))

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        if evidence.request.judged_whole:
            return self.space  # these may be the tokens of a tool call, most of which do not count
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
        try:
            value = self.score(evidence).value
        except SignalUnavailableError:
            return self.space  # the finished answer will say why
        return (value, value) if self.aggregate == "first" else (0.0, value)

    def _score_labels(self, evidence: Evidence) -> Measurement:
        found = label_logprobs(evidence, self.labels)
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


def label_logprobs(evidence: Evidence, labels: Sequence[str]) -> dict[str, float]:
    """Log-probability that the answer begins with each of `labels`, " A" and "A" pooled.

    As the pass over the prompt told them, where there was one; else from the alternatives of the first token, of which
    an API tells only the most probable: a label that is not among them is left out.

    Raises:
        SignalUnavailableError: If none is known, or one is not a number.
    """
    told = evidence.prefilled.label_logprobs if evidence.prefilled else {}
    if found := {label: told[label] for label in labels if label in told}:  # others are another signal's
        _known(found.values())
        return found
    if not evidence.tokens:
        raise SignalUnavailableError("the model returned no log-probabilities")
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


# ---------------------------------------------------------------------- tool calls

# a scalar value: a string that is no key, without its quotes, a number or a literal
_JSON_SCALAR = re.compile(r'"(?P<text>(?:[^"\\]|\\.)*)"(?P<key>\s*:)?|(?P<other>-?\d[\d.eE+-]*|true|false|null)')


def _call_tokens(tokens: Sequence[Token] | None, response: Response) -> Sequence[Token]:
    """The tokens of the names and argument values of an answer's tool calls; never empty.

    Raises:
        SignalUnavailableError: If the model tells none, or writes its calls otherwise than in JSON.
    """
    text = "".join(token.text for token in tokens or ())
    visible = response.text if text.startswith(response.text) else ""
    if not text[len(visible) :].strip():
        raise SignalUnavailableError("the model tells no log-probabilities of its tool calls")
    spans, position = [], len(visible)
    for call in response.tool_calls:
        found, position = _call_spans(text, call, position)
        spans += found
    judged, end = [], 0
    for token in tokens or ():
        begin, end = end, end + len(token.text)
        if any(begin < last and first < end for first, last in spans):
            judged.append(token)
    return judged


def _call_spans(text: str, call: ToolCall, start: int) -> tuple[list[tuple[int, int]], int]:
    """Where in `text`, from `start` on, the name and the argument values of a call are, and where it ends."""
    name = re.compile(rf"(?<!\w){re.escape(call.name)}(?!\w)")
    for first, last in _objects(text, call.arguments, start):
        # the nearest before its arguments, for reasoning may mention a tool; some write the name after them
        names = list(name.finditer(text, start, first)) or list(name.finditer(text, last))[:1]
        if names:
            scalars = [match for match in _JSON_SCALAR.finditer(text, first, last) if match["key"] is None]
            values = [match.span("text" if match["other"] is None else "other") for match in scalars]
            return [names[-1].span(), *values], max(last, names[-1].end())
    raise SignalUnavailableError("the tool calls cannot be found among the tokens of the answer")


def _objects(text: str, wanted: Mapping[str, Any], start: int) -> Iterator[tuple[int, int]]:
    """Where in `text`, from `start` on, a JSON object equal to `wanted` is."""
    decoder = json.JSONDecoder(strict=False)
    for brace in re.compile(r"\{").finditer(text, start):
        try:
            value, end = decoder.raw_decode(text, brace.start())
        except ValueError:
            continue
        if value == wanted:
            yield brace.start(), end
