"""Signals made of other signals: a calibrated confidence, and what a larger model would gain."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from confcascade.asks import Flow, LanguageModel
from confcascade.calibration import Calibrator
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.types import Request, Response

__all__ = ["Calibrated", "ExpectedGain", "gain"]


class _Derived(Signal):
    """A score computed from the scores of other signals, its parts.

    What it needs of an attempt is all that its parts need. It is judged before the answer if all of them are. Its
    details hold the raw score of every part (``scores``), why one is missing (``missing``), and the parts' own details
    (``parts``).
    """

    def __init__(self, signals: Sequence[Signal], calibrators: Sequence[Calibrator], name: str) -> None:
        kind = type(self).__name__
        if not signals or not all(isinstance(signal, Signal) for signal in signals):
            raise ConfigurationError(
                f"{kind} is made of a list of signals, such as [TokenProbability()]. Got {signals!r}."
            )
        if not all(isinstance(calibrator, Calibrator) for calibrator in calibrators):
            raise ConfigurationError(f"{kind} needs fitted calibrators (confcascade.calibration). Got {calibrators!r}.")
        names = [signal.name for signal in signals]
        read = {each.name: each.space for calibrator in calibrators for each in calibrator.inputs}
        if len(set(names)) < len(names) or set(names) != set(read):
            raise ConfigurationError(
                f"The calibrator of '{name}' was fitted on the signals {sorted(read)}, so it takes these, each once. "
                f"Got {names}."
            )
        for signal in signals:
            (low, high), (least, most) = signal.space, read[signal.name]
            # the same, for bounds before there is a token are the space's; a recorded signal does not tell its own
            if (low, high) not in ((least, most), (-math.inf, math.inf)):
                raise ConfigurationError(
                    f"The calibrator of '{name}' was fitted on scores of '{signal.name}' in [{least:g}, {most:g}]; "
                    f"those of this signal lie in [{low:g}, {high:g}]."
                )
        self.parts = tuple(signals)
        self.name = name
        self.phase = "pre" if all(part.phase == "pre" for part in self.parts) else "post"  # type: ignore[misc]
        self.labels = tuple(dict.fromkeys(label for part in self.parts for label in part.labels))
        self.prefix = next((part.prefix for part in self.parts if part.prefix is not None), None)
        self.logprobs = any(part.logprobs for part in self.parts)
        self.top_logprobs = max(part.top_logprobs for part in self.parts)
        self.rewords = any(part.rewords for part in self.parts)
        self.follows_up = any(part.follows_up for part in self.parts)
        self.told = all(part.told for part in self.parts)

    def asks(self, request: Request) -> Request:
        for part in self.parts:
            request = part.asks(request)
        return request

    def reads(self, request: Request, response: Response) -> Response:
        for part in self.parts:
            response = part.reads(request, response)
        return response

    def layers(self, model: LanguageModel) -> tuple[int, ...]:
        return tuple(sorted({layer for part in self.parts for layer in part.layers(model)}))

    def answer_layers(self, model: LanguageModel) -> tuple[int, ...]:
        return tuple(sorted({layer for part in self.parts for layer in part.answer_layers(model)}))

    def known_at(self, model: LanguageModel) -> int | None:
        blocks = [part.known_at(model) for part in self.parts]
        return None if None in blocks else max(block for block in blocks if block is not None)

    def check(self, model: LanguageModel) -> None:
        for part in self.parts:
            part.check(model)

    @abstractmethod
    def _value(self, scores: Mapping[str, float | None]) -> float | None:
        """The score; None if it cannot be told without what is missing."""

    def score(self, evidence: Evidence) -> Measurement:
        found: dict[str, Measurement | SignalUnavailableError] = {}
        for part in self.parts:
            try:
                found[part.name] = part.score(evidence)
            except SignalUnavailableError as error:
                found[part.name] = error
        return self._measured(found)

    def judge(self, evidence: Evidence) -> Flow[Measurement]:
        found: dict[str, Measurement | SignalUnavailableError] = {}
        for part in self.parts:
            try:
                found[part.name] = yield from part.judge(evidence)
            except SignalUnavailableError as error:
                found[part.name] = error
        return self._measured(found)

    def _measured(self, found: Mapping[str, Measurement | SignalUnavailableError]) -> Measurement:
        scores = {name: part.value if isinstance(part, Measurement) else None for name, part in found.items()}
        missing = {name: str(part) for name, part in found.items() if not isinstance(part, Measurement)}
        value = self._value(scores)
        if value is None:
            raise SignalUnavailableError("; ".join(f"{name}: {why}" for name, why in missing.items()))
        details: dict[str, Any] = {"scores": scores}
        if missing:
            details["missing"] = missing
        if told := {n: part.details for n, part in found.items() if isinstance(part, Measurement) and part.details}:
            details["parts"] = told
        return Measurement(value, details)


class Calibrated(_Derived):
    """A confidence: the probability that the answer is right, calibrated on graded answers of the same kind.

    It decides early where its parts do and the calibrator is monotone: a bound of a part's score is then a bound of the
    confidence. A part of the phase "pre" adds none, so beside one an answer is seldom ended early.

    A part that is missing is a missing value for a `Fusion`; the confidence is unavailable where that learnt nothing of
    missing ones, and for a calibrator of one signal.

    Args:
        signals: What the calibrator reads, in any order.
        calibrator: As fitted by `confcascade.calibration.fit_calibrator`.
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If the calibrator was fitted on other signals, or in other spaces.
    """

    def __init__(self, signals: Sequence[Signal], calibrator: Calibrator, *, name: str = "confidence") -> None:
        super().__init__(signals, [calibrator], name)
        self.calibrator = calibrator
        self.early = self.phase == "post" and calibrator.monotone and any(part.early for part in self.parts)
        if self.early:  # the confidence of which nothing is known, not even whether the parts will have a score
            ends = [{each.name: each.space[end] for each in calibrator.inputs} for end in (0, 1)]
            self._least = calibrator.bounds(*ends)[0]

    def __repr__(self) -> str:
        return f"Calibrated({list(self.parts)}, {type(self.calibrator).__name__})"

    def identity(self) -> Mapping[str, Any]:
        return {
            "signal": "Calibrated",
            "parts": {part.name: part.identity() for part in self.parts},
            "calibrator": self.calibrator.as_dict(),
        }

    def _value(self, scores: Mapping[str, float | None]) -> float | None:
        return self.calibrator.confidence(scores)

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        if not self.early:
            return self.space
        found = {part.name: part.bounds(evidence) for part in self.parts}
        highs = {name: high for name, (_, high) in found.items()}
        low, high = self.calibrator.bounds({name: low for name, (low, _) in found.items()}, highs)
        return (low if low > self._least else self.space[0]), high


class ExpectedGain(_Derived):
    """P(this stage's answer is right) - P(the larger model's is), both by the same evidence, in [-1, 1].

    Asks whether the larger model will do better, and not only whether this one is unsure: where both fail, passing a
    question on costs and gains nothing. A threshold of -0.05 keeps an answer unless the larger model's is more likely
    right by more than five points.

    Not decided before the answer is whole.

    Args:
        signals: What the calibrators read, in any order.
        own: P(own answer right): fitted on grades of this stage's answers.
        larger: P(larger model's answer right), by the same signals of *this* stage or some of them: fitted on grades of
            the larger model's answers to the same questions.
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If the calibrators were fitted on other signals, or in other spaces.

    Source: the Bayes-optimal rule of Jitkrittum et al. 2023, arXiv 2307.02764, as a post-hoc model of both.
    """

    space = (-1.0, 1.0)

    def __init__(self, signals: Sequence[Signal], own: Calibrator, larger: Calibrator, *, name: str = "gain") -> None:
        super().__init__(signals, [own, larger], name)
        self.own = own
        self.larger = larger

    def __repr__(self) -> str:
        return f"ExpectedGain({list(self.parts)}, {type(self.own).__name__}, {type(self.larger).__name__})"

    def identity(self) -> Mapping[str, Any]:
        return {
            "signal": "ExpectedGain",
            "parts": {part.name: part.identity() for part in self.parts},
            "own": self.own.as_dict(),
            "larger": self.larger.as_dict(),
        }

    def _value(self, scores: Mapping[str, float | None]) -> float | None:
        return gain(self.own.confidence(scores), self.larger.confidence(scores))


def gain(own: float | None, larger: float | None) -> float | None:
    """The difference of two confidences, if both are known."""
    return None if own is None or larger is None else own - larger
