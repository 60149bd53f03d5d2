"""How well each signal of each model tells its right answers from its wrong ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confcascade.evaluation.examples import is_right
from confcascade.evaluation.health import SignalHealth, signal_health
from confcascade.evaluation.metrics import (
    aurc,
    auroc,
    brier,
    calibration_error,
    excess_aurc,
    reliability,
    risk_coverage,
)
from confcascade.evaluation.policy_figures import Bench

__all__ = ["SignalFigures", "signal_figures"]

_POINTS = 200  # of a risk-coverage curve


@dataclass(frozen=True)
class SignalFigures:
    """One signal of one model, on the questions to which it gave a score and a usable answer.

    Attributes:
        model: Its owner.
        signal: Its name.
        phase: "pre" or "post".
        scored: Answers with a score.
        missing: Answers without.
        hint: What speaks against routing by it; empty if nothing does.
        low: Least score; None where no answer has one, as all that follow.
        high: Greatest.
        auroc: None where all answers are right, or all wrong.
        aurc: Area under the risk-coverage curve, less is better.
        excess_aurc: Above that of a perfect order.
        brier: None of scores that do not all lie in [0, 1]. So is the next.
        ece: Expected calibration error, 15 bins of equal mass.
        bins: Number, accuracy and mean score of each of these bins.
        risk_coverage: (coverage, error rate) at some hundred points.
    """

    model: str
    signal: str
    phase: str
    scored: int
    missing: int
    hint: str
    low: float | None = None
    high: float | None = None
    auroc: float | None = None
    aurc: float | None = None
    excess_aurc: float | None = None
    brier: float | None = None
    ece: float | None = None
    bins: tuple[tuple[int, float, float], ...] = ()
    risk_coverage: tuple[tuple[float, float], ...] = ()


def signal_figures(bench: Bench) -> tuple[SignalFigures, ...]:
    """Of every recorded signal of the bench's models, in their order."""
    return tuple(
        _figures(bench, model, name)
        for model in bench.models
        for name in bench.columns.signal_names
        if (model, name) in bench.columns.signals
    )


def _figures(bench: Bench, model: str, name: str) -> SignalFigures:
    column = bench.columns.signal(model, name)
    usable = bench.columns.usable[:, bench.columns.index(model)]
    scored = usable & ~np.isnan(column.values)
    missing = int((usable & ~scored).sum())
    score, grade = column.values[scored], bench.alone[model].grade[scored]
    if not len(score):
        return SignalFigures(model, name, column.phase, 0, missing, "cannot route: no answer has a score")
    right = is_right(grade)
    low, high = float(score.min()), float(score.max())
    probability = low >= 0 and high <= 1
    area = auroc(right, score)
    risk = risk_coverage(grade, score)
    at = np.unique(np.linspace(0, len(risk) - 1, min(_POINTS, len(risk))).astype(int))
    return SignalFigures(
        model=model,
        signal=name,
        phase=column.phase,
        scored=len(score),
        missing=missing,
        low=low,
        high=high,
        auroc=area,
        aurc=aurc(grade, score),
        excess_aurc=excess_aurc(grade, score),
        brier=brier(grade, score) if probability else None,
        ece=calibration_error(grade, score) if probability else None,
        bins=tuple((int(n), float(a), float(p)) for n, a, p in reliability(grade, score)) if probability else (),
        risk_coverage=tuple((float((k + 1) / len(risk)), float(risk[k])) for k in at),
        hint=_hint(signal_health(column.values[usable], is_right(bench.alone[model].grade[usable]))),
    )


def _hint(health: SignalHealth) -> str:
    if not health.can_route:
        return f"cannot route: {'; '.join(health.reasons)}"
    return "" if health.coverage == 1 else f"{1 - health.coverage:.1%} of the answers have no score and are passed on"
