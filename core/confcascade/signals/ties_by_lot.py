"""Ties broken by lot: a signal of few values, told apart by the question, so that any share of a value can be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from confcascade.asks import Flow, LanguageModel
from confcascade.errors import ConfigurationError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.types import Request, Response

__all__ = ["LOT", "TiesByLot", "drawn", "lot_of"]

LOT = 1e-9  # how much the lot moves a score: less than scores differ that are no ties, more than floats do
_SAME = ("labels", "prefix", "logprobs", "top_logprobs", "following", "early", "rewords", "labelled", "told")


def lot_of(request: Request) -> float:
    """A number in [0, 1), uniform over questions and always the same for the same messages."""
    said = "\0".join(f"{message.role}\0{message.content}" for message in request.messages)
    return (int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") >> 11) / 2**53


def drawn(score: Any, lot: Any) -> Any:
    """A score with its lot, both in [0, 1] and of any shape: in the order of scores, and among equal ones of lots."""
    return (1 - LOT) * score + LOT * lot


class TiesByLot(Signal):
    """Another signal, its ties broken by lot: what `fit` needs to keep a part of the answers that score the same.

    Many scores are the same: stated confidences are multiples of 0.05, and an API may say that two answers in five
    have a probability of exactly 1. A threshold keeps all of these answers or none, and if all are too many for a
    promise, nothing is saved. Here every score is lowered by at most a billionth, by a hash of the question's messages.
    So a threshold of 0.94999999965 keeps all above 0.95, and of those at 0.95 four in ten: the same ones whenever they
    are asked, live and replayed. Which these are says nothing about whether they are right.

    A threshold of just 0.95 keeps hardly any of those at 0.95. So this is for thresholds that `fit` finds.

    Args:
        signal: The other one, of scores in [0, 1]. This one has its name, and takes its place.

    Raises:
        ConfigurationError: If scores may lie elsewhere, if the signal corrects answers, or judges steps.
    """

    def __init__(self, signal: Signal) -> None:
        if not isinstance(signal, Signal) or isinstance(signal, TiesByLot):
            raise ConfigurationError(f"TiesByLot takes one signal, such as Verbalized(). Got {signal!r}.")
        if signal.space != (0.0, 1.0) or signal.corrects or signal.between_steps:
            raise ConfigurationError(
                f"TiesByLot takes a signal of scores in [0, 1] that corrects no answers and judges no steps. '"
                f"{signal.name}' has scores in [{signal.space[0]:g}, {signal.space[1]:g}]"
                f"{', and corrects' if signal.corrects else ''}{', and judges steps' if signal.between_steps else ''}."
            )
        self.signal = signal
        self.name = signal.name
        self.phase = signal.phase  # type: ignore[misc]
        for each in _SAME:
            setattr(self, each, getattr(signal, each))

    def __repr__(self) -> str:
        return f"TiesByLot({self.signal!r})"

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "TiesByLot", "of": dict(self.signal.identity())}

    def layers(self, model: LanguageModel) -> tuple[int, ...]:
        return self.signal.layers(model)

    def answer_layers(self, model: LanguageModel) -> tuple[int, ...]:
        return self.signal.answer_layers(model)

    def check(self, model: LanguageModel) -> None:
        self.signal.check(model)

    def asks(self, request: Request) -> Request:
        return self.signal.asks(request)

    def reads(self, request: Request, response: Response) -> Response:
        return self.signal.reads(request, response)

    def score(self, evidence: Evidence) -> Measurement:
        return _measured(self.signal.score(evidence), evidence)

    def judge(self, evidence: Evidence) -> Flow[Measurement]:
        return _measured((yield from self.signal.judge(evidence)), evidence)

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        low, high = self.signal.bounds(evidence)
        lot = lot_of(evidence.request)
        return drawn(low, lot), drawn(high, lot)


def _measured(found: Measurement, evidence: Evidence) -> Measurement:
    return Measurement(drawn(found.value, lot_of(evidence.request)), found.details)
