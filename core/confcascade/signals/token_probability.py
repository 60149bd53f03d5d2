"""P(T): the probability that the model gave to its own answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from confcascade.answers import solid
from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.letters import begins_with, folded, named_by, read_label
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.spans import call_tokens, thought_tokens, value_tokens, wants_object
from confcascade.thoughts import answer_at
from confcascade.types import Response, Token

__all__ = ["TokenProbability", "first_logprobs", "prompt_logprobs"]

Aggregate = Literal["mean", "min", "product", "first"]

# by which rule tokens count: scores of another one are others, and so are thresholds fitted on them
_TOKENS = 2
_LABELS = 3  # likewise, where they are labels: since they are judged where they stand


class TokenProbability(Signal):
    """P(T), the probability of the answer's tokens, in [0, 1].

    Not a probability of being right: only calibration makes that.

    Of free text, it is an aggregate over the tokens of the answer: thoughts, marks, stop strings and blanks that were
    stripped do not count (`confcascade.answers`). Tokens that do not spell the answer give no score.

    - "mean" (default): exp of the mean log-probability, the reciprocal of the perplexity;
    - "min": the least probable token;
    - "product": the probability of the whole sequence;
    - "first": only the first token.

    With `first`, only so many tokens count, whatever follows: the score is known once they have come, or the answer has
    ended. A stream goes on from there, where the mean of the whole answer holds it back to its end.

    Of answer labels (multiple choice), it is the probability of the label that the answer gives, at the place where it
    gives it: the paper's P(T) = max_c p(c | x) where the answer begins with its label, and the letter's own token where
    a model says "Answer: B" first. Tokens that are the same label are pooled, with blanks and punctuation or without
    (" A", "A", "A.", "(A"); the sum over all labels is the detail ``label_mass``, and ``token`` tells which token of
    the answer it was, if not the first. Which label an answer gives is read as the choice grader reads it
    (`confcascade.letters`); where none can be read, there is no score.

    A model that reads the prompt in this process tells how likely each label is before anything is generated. Where a
    label is bound to come first, that is the score, and one that is not likely enough escalates from the prompt alone.
    With `prefix`, such a model's answer is begun with it, so that the label comes first; it is not part of the answer.
    Models behind an API cannot be made to begin so: there the label is what follows the last `prefix` of the answer.

    Of tool calls and structured output, it is the same aggregate over the tokens of the values, and of a call's name
    where the request left the choice: braces, quotes and keys follow from the schema. Needs a model that lists the
    calls' own tokens among its log-probabilities (llama.cpp and vLLM do, OpenAI does not) in JSON. With tools or a
    schema in the request, nothing is decided before the answer is whole.

    Args:
        labels: The answer labels, such as "ABCD"; empty means free text. Labels are never guessed from a prompt.
        prefix: With `labels`: what stands before the label, such as "Answer:".
        aggregate: How the tokens of free text become one number.
        part: "answer", or "thoughts": the same aggregate over what the model thought before it, which needs a model
            that tells the log-probabilities of its thoughts. An answer without thoughts has no such score.
        first: Score only the first so many tokens, at least 1. ``aggregate="first"`` is the same with one.
        after: Score only what follows the last occurrence of this text ("Answer:" of a worked solution).
        corrects: With `labels` and a threshold for each: an answer whose label does not reach its threshold is given
            the most probable label that does. So a small model that says "no" too readily is put right. Only answers of
            nothing but a label, and of what `prefix` says before it: reasons would speak for the other one. With one
            threshold for all nothing is corrected.
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
        prefix: str | None = None,
        aggregate: Aggregate = "mean",
        first: int | None = None,
        part: Literal["answer", "thoughts"] = "answer",
        after: str | None = None,
        corrects: bool = False,
        name: str = "p_t",
    ) -> None:
        self.labels = tuple(labels)
        self.prefix = prefix
        self.aggregate = aggregate
        self.first = first
        self.part = part
        self.after = after
        self.corrects = corrects
        self.name = name
        if part not in ("answer", "thoughts"):
            raise ConfigurationError(f'`part` of TokenProbability must be "answer" or "thoughts". Got {part!r}.')
        if aggregate not in ("mean", "min", "product", "first"):
            raise ConfigurationError(
                f'`aggregate` of TokenProbability must be "mean", "min", "product" or "first". Got {aggregate!r}.'
            )
        if self.labels and (after is not None or aggregate != "mean" or part != "answer" or first is not None):
            raise ConfigurationError(
                "TokenProbability judges either `labels` or free text (`aggregate`, `first`, `part`, `after`), not "
                f"both. Got labels={self.labels}, aggregate={aggregate!r}, first={first!r}, part={part!r}, "
                f"after={after!r}."
            )
        whole_number = isinstance(first, int) and not isinstance(first, bool)
        if first is not None and (aggregate == "first" or not whole_number or first < 1):
            raise ConfigurationError(
                "`first` of TokenProbability must be a number of tokens, at least 1, and goes with the aggregates "
                f'"mean", "min" and "product". Got first={first!r}, aggregate={aggregate!r}.'
            )
        proper = all(isinstance(label, str) and label and label == label.strip() for label in self.labels)
        if self.labels and (not proper or len(set(self.labels)) < max(2, len(self.labels))):
            raise ConfigurationError(
                "`labels` must be at least two different, non-empty strings without spaces around them. "
                f"Got {self.labels}."
            )
        if corrects and not self.labels:
            raise ConfigurationError("`corrects` gives an answer another of its `labels`: name them.")
        if prefix is not None and (not self.labels or not isinstance(prefix, str) or not prefix.strip()):
            raise ConfigurationError(
                f'`prefix` must be a text such as "Answer:", and goes with `labels`. Got {prefix!r}.'
            )
        if after is not None and not after:
            raise ConfigurationError('`after` must be a text such as "Answer:", or None for the whole answer. Got "".')
        self.top_logprobs = 20 if self.labels else 0
        self.labelled = bool(self.labels)
        self._counted = 1 if aggregate == "first" else first  # tokens; None for all
        # a mean of all can still rise and fall, and so can the place of the last marker
        falls = aggregate != "mean" or self._counted is not None
        self.early = bool(self.labels) or (after is None and falls and part == "answer")

    def __repr__(self) -> str:
        thoughts = ", part='thoughts'" if self.part == "thoughts" else ""
        first = "" if self.first is None else f", first={self.first}"
        what = f"aggregate={self.aggregate!r}{first}{thoughts}, after={self.after!r}"
        prefix = "" if self.prefix is None else f", prefix={self.prefix!r}"
        prefix += ", corrects=True" if self.corrects else ""
        what = f"labels={self.labels}{prefix}" if self.labels else what
        return f"TokenProbability({what})"

    def identity(self) -> Mapping[str, Any]:
        return {
            "signal": "TokenProbability",
            "tokens": _LABELS if self.labels else _TOKENS,
            "labels": list(self.labels),
            "aggregate": self.aggregate,
            **({} if self.first is None else {"first": self.first}),
            "part": self.part,
            "after": self.after,
            **({} if self.prefix is None else {"prefix": self.prefix}),
            **({"corrects": True} if self.corrects else {}),
        }

    def check(self, model: LanguageModel) -> None:
        if model.capability.logprobs is False:
            raise ConfigurationError(
                f"TokenProbability needs log-probabilities, and model '{model.name}' does not return them. "
                + (
                    model.capability.remedy
                    or "Use Verbalized(), which needs only text, or a model that does, or put this one last."
                )
            )

    def score(self, evidence: Evidence) -> Measurement:
        response = evidence.response
        if self.part == "thoughts" and response is not None:
            return self._aggregated(self._span(thought_tokens(response)))
        if response is not None and response.tool_calls:
            return self._aggregated(call_tokens(evidence.request, response))
        if self.labels:
            measured, found = self._score_labels(evidence)
            if self.corrects and response is not None and self._bare(response.answer):
                told = {label: min(1.0, math.exp(logprob)) for label, logprob in found.items()}
                return Measurement(measured.value, {**measured.details, "probabilities": told})
            return measured
        tokens = self._span(answer_tokens(evidence))
        return self._aggregated(value_tokens(tokens) if wants_object(evidence.request) else tokens)

    def _aggregated(self, tokens: Sequence[Token]) -> Measurement:
        logprobs = _known([token.logprob for token in tokens[: self._counted]])
        if self.aggregate == "min":
            return Measurement(math.exp(min(logprobs)))
        total = math.fsum(logprobs)
        return Measurement(math.exp(total if self.aggregate == "product" else total / len(logprobs)))

    def _bounds(self, tokens: Sequence[Token]) -> tuple[float, float]:
        """Of an answer that begins with these tokens, at least one: exact once all that count have come."""
        value = self._aggregated(tokens).value
        if self._counted is not None and len(tokens) >= self._counted:
            return value, value
        if self.aggregate != "mean":
            return 0.0, value  # one more factor never lifts it
        assert self._counted is not None  # or it is not `early`
        # at best all that are to come have probability 1, and are as many as count
        return 0.0, min(1.0, math.exp(math.fsum(_known(token.logprob for token in tokens)) / self._counted))

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        if evidence.request.judged_whole or wants_object(evidence.request):
            return self.space  # most tokens of a tool call or an object do not count
        if self.labels:
            return self.space[0], self._highest(evidence)
        if not self.early or not evidence.tokens:
            return self.space
        try:
            return self._bounds(evidence.tokens)
        except SignalUnavailableError:
            return self.space  # the finished answer will say why

    def _bare(self, answer: str) -> bool:
        """Whether an answer is nothing but its label, and what `prefix` says before it."""
        read = read_label(answer, self.labels, after=self.prefix)
        if read.label is None or read.at is None:
            return False
        before, behind = answer[: read.at], answer[read.at + len(read.label) :]
        if self.prefix is not None:
            before = before.strip().removesuffix(self.prefix.strip())
        return not any(character.isalnum() for character in before + behind)

    def gives(self, response: Response, label: str) -> Response:
        answer = response.answer
        own = read_label(answer, self.labels, after=self.prefix)
        assert own.label is not None
        assert own.at is not None  # it was scored, and so read
        at = answer_at(response.text) + own.at
        return response.replace(text=response.text[:at] + label + response.text[at + len(own.label) :])

    def _score_labels(self, evidence: Evidence) -> tuple[Measurement, Mapping[str, float]]:
        """The score, and the log-probabilities of the labels where it was taken."""
        told = prompt_logprobs(evidence, self.labels)
        if evidence.response is None:  # all that is known is how likely each is to come first
            found = told or alternatives(answer_tokens(evidence), 0, self.labels)
            return _measured(found, max(found, key=lambda label: found[label]), len(self.labels)), found
        answer = evidence.response.answer
        read = read_label(answer, self.labels, after=self.prefix)
        if read.label is None:
            raise SignalUnavailableError(f"the answer gives none of the labels: {read.problem}")
        if told and _bound_to_come_first(told):
            return _measured(told, read.label, len(self.labels)), told
        begun = begins_with(answer, self.labels)
        if begun is not None and begun[0] != read.label:  # a draft could be ended by the first, before the other came
            raise SignalUnavailableError(f"the answer begins with {begun[0]!r} and concludes with {read.label!r}")
        at = read.at if begun is None else begun[1]
        assert at is not None  # a label that is read from only the answer stands in it
        place = 0 if told and not evidence.tokens else _token_at(answer_tokens(evidence), answer, at)
        if told and place == 0:
            if not answer.startswith(read.label, at) and len(read.label) > 1:
                raise SignalUnavailableError(
                    f"the answer spells the label {read.label!r} otherwise, which was not told"
                )
            return _measured(told, read.label, len(self.labels)), told
        found = alternatives(answer_tokens(evidence), place, self.labels)
        return _measured(found, read.label, len(self.labels), place), found

    def _highest(self, evidence: Evidence) -> float:
        """The most that the label which the finished answer gives can be given; what it is, is not known yet."""
        try:
            found = prompt_logprobs(evidence, self.labels)
            text = "".join(token.text for token in evidence.tokens or ())
            begun = begins_with(text, self.labels, open_ended=True)
            place = None if begun is None else _token_at(answer_tokens(evidence), text, begun[1])
            if not found or not (place == 0 or _bound_to_come_first(found)):
                found = {} if place is None else alternatives(answer_tokens(evidence), place, self.labels)
            if found:
                return min(1.0, math.exp(max(found.values())))
        except SignalUnavailableError:  # the finished answer will say why
            pass
        return self.space[1]

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


def prompt_logprobs(evidence: Evidence, labels: Sequence[str]) -> dict[str, float]:
    """Log-probability that what follows the prompt is each of `labels`, as the pass over it told; empty without one.

    Raises:
        SignalUnavailableError: If one is not a number.
    """
    thought = evidence.response is not None and evidence.response.thoughts  # then the prompt's next token was no answer
    told = evidence.prefilled.label_logprobs if evidence.prefilled and not thought else {}
    found = {label: told[label] for label in labels if label in told}  # others are another signal's
    _known(found.values())
    return found


def first_logprobs(evidence: Evidence, labels: Sequence[str]) -> dict[str, float]:
    """Log-probability that the answer's first token is each of `labels`, with blanks around it or without."""
    return alternatives(answer_tokens(evidence), 0, labels, lambda token, _: token.strip())


def alternatives(
    tokens: Sequence[Token],
    place: int,
    labels: Sequence[str],
    meant: Callable[[str, Sequence[str]], str | None] | None = None,
) -> dict[str, float]:
    """Log-probability of each of `labels` at a token of the answer, all tokens that are the same label pooled.

    From the alternatives that are listed there; an API tells only the most probable, and a label that is not among
    them is left out.

    Raises:
        SignalUnavailableError: If none is known, or one is not a number.
    """
    if not tokens:
        raise SignalUnavailableError("the model returned no log-probabilities")
    top = tokens[place].top
    _known(logprob for _, logprob in top)
    own = tokens[place].text
    if meant is None:  # "b" is B only in an answer that writes so
        meant = folded if folded(own, labels) and not named_by(own, labels) else named_by
    pooled: dict[str, float] = {}
    for text, logprob in top:
        if (label := meant(text, labels)) in labels:
            assert label is not None
            pooled[label] = pooled.get(label, 0.0) + math.exp(logprob)
    if not pooled:
        where = "the first token" if place == 0 else f"token {place + 1}"
        raise SignalUnavailableError(
            f"none of the labels {tuple(labels)} is among the {len(top)} alternatives of {where}"
        )
    return {label: math.log(p) if p else -math.inf for label, p in pooled.items()}


def _measured(found: Mapping[str, float], label: str, labels: int, place: int = 0) -> Measurement:
    """The score of a label among those that are known at one place."""
    if label not in found:
        raise SignalUnavailableError(f"the label of the answer, {label!r}, is not among the alternatives")
    mass = math.fsum(math.exp(logprob) for logprob in found.values())
    details: dict[str, Any] = {"label": label, "label_mass": min(1.0, mass)}
    if len(found) < labels:
        details["label_mass_is_lower_bound"] = True
    if place:
        details["token"] = place
    return Measurement(min(1.0, math.exp(found[label])), details)


def _bound_to_come_first(told: Mapping[str, float]) -> bool:
    """Whether the likeliest token after the prompt is a label, whatever the others are.

    A label may be two tokens, " A" and "A", of which the likelier has half of it.
    """
    mass = math.fsum(map(math.exp, told.values()))
    return math.exp(max(told.values())) / 2 > 1 - mass


def _token_at(tokens: Sequence[Token], answer: str, at: int) -> int:
    """The token that holds a character of the answer, which the tokens spell but for blanks."""
    if not tokens:
        raise SignalUnavailableError("the model returned no log-probabilities")
    before = len(solid(answer[:at]))
    for place, token in enumerate(tokens):
        before -= len(solid(token.text))
        if before < 0:
            return place
    raise SignalUnavailableError("the log-probabilities are not those of the answer's text")


def _known(logprobs: Iterable[float]) -> list[float]:
    """As they are; minus infinity is a probability of 0.

    Raises:
        SignalUnavailableError: If one is NaN or infinite.
    """
    listed = list(logprobs)
    known = [logprob for logprob in listed if logprob < math.inf]
    if len(known) < len(listed):
        raise SignalUnavailableError("a log-probability of the answer is not finite")
    return known
