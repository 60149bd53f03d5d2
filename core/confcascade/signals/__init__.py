"""What a signal is: a score of how likely a model's answer is right, from what one attempt has shown."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

from confcascade.asks import Flow, LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.quick_init import quick_init
from confcascade.types import Prefilled, Request, Response, Token

__all__ = [
    "Evidence",
    "Measurement",
    "OneThreshold",
    "Signal",
    "Threshold",
    "corrected",
    "ends_of",
    "passes",
    "plain",
    "threshold_of",
]

OneThreshold: TypeAlias = float | Literal["always", "never"]
Threshold: TypeAlias = OneThreshold | Mapping[str, OneThreshold]  # one for all answers, or by the label of the answer


@quick_init
@dataclass(frozen=True)
class Evidence:
    """What an attempt has shown so far.

    Attributes:
        request: The question.
        prefilled: From the pass over the prompt, where a signal of the stage wanted it.
        tokens: Those of the answer so far, without thoughts, or None where the model tells no log-probabilities.
        response: The finished answer, once there is one.
        model: Whose attempt it is, for signals that ask it further.
    """

    request: Request
    prefilled: Prefilled | None = None
    tokens: tuple[Token, ...] | None = ()
    response: Response | None = None
    model: LanguageModel | None = None


@quick_init
@dataclass(frozen=True)
class Measurement:
    """A signal's value, higher = more likely right, and further figures worth a record.

    Raises:
        SignalUnavailableError: If the value is not finite, and so no score.
    """

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise SignalUnavailableError(f"the score is not finite ({self.value})")


class Signal(ABC):
    """The contract of a signal.

    `name` keys thresholds and records; `space` is the range of its values, both ends included, or infinite where they
    know no bound.
    """

    name: str
    space: tuple[float, float] = (0.0, 1.0)
    phase: ClassVar[Literal["pre", "post"]]

    # what it needs of an attempt
    labels: tuple[str, ...] = ()
    prefix: str | None = None  # with what answers are to begin, where the model can be made to
    logprobs: bool = False
    top_logprobs: int = 0
    following: bool = False  # what the model expects next (`Prefilled.following`)

    # whether it has something to judge only between the steps of an answer that is written in turn
    between_steps: bool = False

    # whether `bounds` can be tighter than `space` before the answer is finished
    early: bool = False

    # whether it changes what its stage's model is asked (`asks`): such an answer is judged whole
    rewords: bool = False

    # whether `judge` asks its stage's model something in the conversation that the answer belongs to
    follows_up: bool = False

    # whether the detail ``label`` of its scores tells which label the answer gives: then thresholds may be by label
    labelled: bool = False

    # whether an answer whose label does not reach its threshold is given another label that does (thresholds by label)
    corrects: bool = False

    # whether it is what the model says of itself, so that whoever writes part of the prompt can make it say more
    told: bool = False

    def layers(self, model: LanguageModel) -> tuple[int, ...]:
        """Blocks whose hidden state it reads, of a model that passed `check`."""
        del model
        return ()

    def answer_layers(self, model: LanguageModel) -> tuple[int, ...]:
        """Blocks whose hidden state it reads with the answer (`Generate.layers`), of the phase "post"."""
        del model
        return ()

    def known_at(self, model: LanguageModel) -> int | None:
        """Behind which block of `model` a score of the phase "pre" is known, so that a pass may end there.

        Returns:
            0 where texts are enough; None where the prompt must be read to its end, or a further call answered.
        """
        further = type(self).judge is not Signal.judge
        if self.phase == "post" or self.labels or self.following or further:
            return None
        return max(self.layers(model), default=0)

    @abstractmethod
    def check(self, model: LanguageModel) -> None:
        """Raise `ConfigurationError` if `model` cannot serve this signal."""

    @abstractmethod
    def score(self, evidence: Evidence) -> Measurement:
        """Judge an attempt: before generation for the phase "pre", else once the answer is finished.

        Raises:
            SignalUnavailableError: If the evidence lacks what is needed. No value is invented.
        """

    def asks(self, request: Request) -> Request:
        """What its stage's model is asked in the place of `request`, which other stages and signals see."""
        return request

    def reads(self, request: Request, response: Response) -> Response:
        """The model's response, tokens as it told them, without what only this signal had asked for."""
        del request
        return response

    def gives(self, response: Response, label: str) -> Response:
        """The response with another label in the place of its own; asked only of a signal that `corrects`."""
        raise NotImplementedError(f"Signal '{self.name}' corrects no answers, so it cannot give {label!r}.")

    def judge(self, evidence: Evidence) -> Flow[Measurement]:
        """`score` as a flow; a signal that needs further calls overrides this and asks for them."""
        return self.score(evidence)
        yield ()  # makes this a generator

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        """The least and the greatest value that `score` can still give, whatever tokens follow."""
        del evidence
        return self.space

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """JSON-ready: all that decides its values. Part of a policy's id."""

    def validate(self, threshold: Threshold) -> None:
        """Raise `ConfigurationError` for a threshold outside the signal's space."""
        low, high = self.space
        if isinstance(threshold, Mapping):
            self._validate_labels(threshold)
            return
        if isinstance(threshold, str) and threshold in ("always", "never"):
            return
        is_number = isinstance(threshold, Real) and not isinstance(threshold, bool) and math.isfinite(threshold)
        if not is_number or not low <= float(threshold) <= high:
            raise ConfigurationError(
                f"The threshold of signal '{self.name}' must be a number in [{low:g}, {high:g}], "
                f'"always" or "never". Got {threshold!r}.'
            )

    def _validate_labels(self, thresholds: Mapping[str, OneThreshold]) -> None:
        if not self.labelled:
            raise ConfigurationError(
                f"Signal '{self.name}' takes one threshold, not one for each label: only TokenProbability(labels=...) "
                f"tells which label an answer gives. Got {dict(thresholds)!r}."
            )
        if not thresholds or (self.labels and set(thresholds) != set(self.labels)):
            raise ConfigurationError(
                f"The threshold of signal '{self.name}' must be one number, or name each of its labels"
                f"{f' {list(self.labels)}' if self.labels else ''}. Got {dict(thresholds)!r}."
            )
        for label, each in thresholds.items():
            if each == "always":
                raise ConfigurationError(
                    f"The threshold of label '{label}' of signal '{self.name}' cannot be \"always\": an answer whose "
                    "label cannot be read has none. Use the least score."
                )
            self.validate(each)


def threshold_of(threshold: Threshold, label: Any) -> OneThreshold:
    """That of an answer: of the label that it gives, where there is one for each label; a label without is not kept."""
    return threshold.get(label, "never") if isinstance(threshold, Mapping) else threshold


def corrected(threshold: Threshold, details: Mapping[str, Any]) -> str | None:
    """Another label that an answer is given, because its own does not reach its threshold; None if none does.

    Args:
        threshold: By label, or nothing is corrected.
        details: Of the measurement: ``probabilities`` of all labels, of a signal that corrects.

    Returns:
        The most probable of the labels that reach their thresholds.
    """
    if not isinstance(threshold, Mapping) or "probabilities" not in details:
        return None
    told: Mapping[str, float] = details["probabilities"]
    reaching = [label for label in sorted(told) if passes(told[label], threshold_of(threshold, label))]
    return max(reaching, key=lambda label: told[label], default=None)


def ends_of(threshold: Threshold) -> tuple[OneThreshold, OneThreshold]:
    """The least and the greatest that an answer may have to reach, while its label is not known yet."""
    if not isinstance(threshold, Mapping):
        return threshold, threshold
    ordered = sorted(threshold.values(), key=lambda each: math.inf if isinstance(each, str) else each)
    return ordered[0], ordered[-1]


def plain(threshold: Threshold) -> OneThreshold | dict[str, OneThreshold]:
    """With Python's own numbers: NumPy's go into no JSON and no checkpoint."""
    if isinstance(threshold, Mapping):
        return {label: each if isinstance(each, str) else float(each) for label, each in threshold.items()}
    return threshold if isinstance(threshold, str) else float(threshold)


def passes(value: float, threshold: OneThreshold) -> bool:
    """Whether a score reaches its threshold (>=, as in the paper)."""
    if threshold == "always":
        return True
    if threshold == "never":
        return False
    return bool(value >= threshold)  # of NumPy's numbers, too, which are no JSON
