"""What a signal can do at any threshold: cost-accuracy curves of the whole chain and of every pair, and sensitivity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from confcascade.bench.evaluation.policy_figures import Bench
from confcascade.bench.metrics.frontier import Curve, frontier
from confcascade.bench.recording.columns import Column
from confcascade.bench.replay.costs import known
from confcascade.bench.replay.policy import PolicyStage
from confcascade.signals import Threshold

__all__ = ["CurveFigures", "area", "chains", "hull", "neutral_cost", "sensitivity", "signal_curves", "with_signal"]

_STEPS = 100  # quantiles of the scores that are tried as thresholds


@dataclass(frozen=True)
class CurveFigures:
    """A chain of models at many thresholds of one signal; arrays of one entry per threshold.

    Attributes:
        signal: Whose threshold varies, the same at every stage that it judges.
        models: Of the chain, smallest first.
        thresholds: Ascending.
        accuracy: The mean grade.
        cost: Mean cost of a question in the unit that counts, every model that ran.
        cost_answering_stage: Of the answering attempt alone.
        answered: Share of the questions that each model answered, shape (thresholds, models).
        area: The mean accuracy over costs from the smallest model's to the largest's, mixtures with single models
            allowed; None where the largest costs no more than the smallest.
        neutral_cost: The least share of the largest model's cost for its accuracy (QNC); None if out of reach.
    """

    signal: str
    models: tuple[str, ...]
    thresholds: tuple[float, ...]
    accuracy: tuple[float, ...]
    cost: tuple[float, ...]
    cost_answering_stage: tuple[float, ...]
    answered: tuple[tuple[float, ...], ...]
    area: float | None
    neutral_cost: float | None


def chains(models: Sequence[str]) -> list[tuple[str, ...]]:
    """All models, and every pair of them."""
    return [tuple(models), *(pair for pair in combinations(models, 2) if len(models) > 2)]


def signal_curves(bench: Bench, signals: Sequence[str] | None = None) -> tuple[CurveFigures, ...]:
    """Of every signal alone, on every chain whose models all have it (but the last, which needs none)."""
    return _curves(
        bench,
        [
            _Wanted(name, chain, {})
            for name in (bench.columns.signal_names if signals is None else signals)
            for chain in chains(bench.models)
            if all((model, name) in bench.columns.signals for model in chain[:-1])
        ],
    )


def sensitivity(bench: Bench, policy: Sequence[PolicyStage]) -> tuple[CurveFigures, ...]:
    """Of each signal of a policy: its threshold varies wherever it judges, the others stay."""
    names = dict.fromkeys(name for stage in policy[:-1] for name in stage.thresholds)
    fixed = {stage.model: stage.thresholds for stage in policy[:-1]}
    return _curves(bench, [_Wanted(name, tuple(stage.model for stage in policy), fixed) for name in names])


@dataclass(frozen=True)
class _Wanted:
    """A curve: the signal whose threshold varies, the chain, and thresholds that stay."""

    signal: str
    models: tuple[str, ...]
    fixed: Mapping[str, Mapping[str, Threshold]]

    def thresholds(self, bench: Bench) -> list[float]:
        scores = np.concatenate([bench.columns.signal(model, self.signal).values for model in self._judged])
        scores = scores[~np.isnan(scores)]
        steps = np.unique(np.quantile(scores, np.linspace(0, 1, _STEPS + 1))) if len(scores) else np.array([0.0])
        return [float(step) for step in steps]

    def policy(self, threshold: float) -> list[PolicyStage]:
        judged = self._judged
        gated = [
            PolicyStage(model, {**self.fixed.get(model, {}), **({self.signal: threshold} if model in judged else {})})
            for model in self.models[:-1]
        ]
        return [*gated, PolicyStage(self.models[-1])]

    @property
    def _judged(self) -> list[str]:
        return [model for model in self.models[:-1] if not self.fixed or self.signal in self.fixed[model]]


def _curves(bench: Bench, wanted: Sequence[_Wanted]) -> tuple[CurveFigures, ...]:
    """All of them in one sweep."""
    if not wanted:
        return ()
    thresholds = [each.thresholds(bench) for each in wanted]
    policies = [each.policy(step) for each, steps in zip(wanted, thresholds, strict=True) for step in steps]
    swept = bench.sweep(bench.columns, policies, architectures=bench.architectures, prices=bench.prices)
    curves, begin = [], 0
    for each, steps in zip(wanted, thresholds, strict=True):
        own = slice(begin, begin := begin + len(steps))
        cost, accuracy = getattr(swept.cost, bench.unit)[own], swept.accuracy[own]
        curve = hull(bench, cost, accuracy)
        curves.append(
            CurveFigures(
                signal=each.signal,
                models=each.models,
                thresholds=tuple(steps),
                accuracy=tuple(accuracy.tolist()),
                cost=tuple(cost.tolist()),
                cost_answering_stage=tuple(getattr(swept.cost_answering_stage, bench.unit)[own].tolist()),
                answered=tuple(map(tuple, swept.answered[own, : len(each.models)].tolist())),
                area=area(bench, curve),
                neutral_cost=neutral_cost(bench, curve),
            )
        )
    return tuple(curves)


def hull(bench: Bench, cost: Iterable[float], accuracy: Iterable[float]) -> Curve:
    """The best of these policies and of the single models: chosen in hindsight, on the very same questions."""
    singles = [(bench.mean_cost(model), float(played.grade.mean())) for model, played in bench.alone.items()]
    return frontier([*cost, *(c for c, _ in singles)], [*accuracy, *(a for _, a in singles)])


def area(bench: Bench, curve: Curve) -> float | None:
    """Between the costs of the smallest and of the largest model."""
    low, high = bench.mean_cost(bench.models[0]), bench.mean_cost(bench.models[-1])
    return curve.area(low, high) if curve.cost[0] <= low < high else None


def neutral_cost(bench: Bench, curve: Curve) -> float | None:
    """Share of the largest model's cost for which its accuracy can be had."""
    alone = bench.mean_cost(bench.models[-1])
    return known(curve.cost_of(float(bench.largest.grade.mean())) / alone) if alone > 0 else None


def with_signal(bench: Bench, name: str, columns: Mapping[str, Column]) -> Bench:
    """A bench whose recording has one more signal, by model."""
    signals = {**bench.columns.signals, **{(model, name): column for model, column in columns.items()}}
    return replace(bench, gathered=replace(bench.gathered, columns=replace(bench.columns, signals=signals)))
