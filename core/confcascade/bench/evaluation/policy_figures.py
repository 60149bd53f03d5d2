"""What one policy gets right and what it costs, beside the largest model on the same questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.evaluation.gathered import NO_LETTER, Gathered, letters
from confcascade.bench.metrics.frontier import Curve, oracle, random_routing, share_of_gap
from confcascade.bench.metrics.ranking import drop_relative, hallucination_rate, macro_scores
from confcascade.bench.metrics.significance import discordant, mcnemar, mean_interval, paired_difference, saving
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costs import UNITS, Costs, chosen_unit, known
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import Replay, Sweep, replay, sweep
from confcascade.bench.replay.stage_columns import corrects
from confcascade.cost import Architecture, Prices, break_even_retention
from confcascade.graders.grade import is_right
from confcascade.signals import Threshold

__all__ = ["Bench", "Interval", "PolicyFigures", "Spent", "thresholds_by_model"]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spent:
    """Mean cost of a question; None where unknown."""

    flops: float | None
    usd: float | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True)
class PolicyFigures:
    """What a policy does on a recording.

    Attributes:
        name: Of the policy.
        thresholds: By model, in the order of the stages; of the last there are none.
        questions: How many.
        accuracy: The mean grade, in [0, 1].
        drop_points: Accuracy gained (+) or lost (-) against the largest model, in points (paired bootstrap).
        drop_relative: The same in percent of the largest model's accuracy.
        harms: Questions that the largest model alone gets right.
        benefits: Questions that the policy alone gets right.
        mcnemar_p: Of McNemar's exact test of the two.
        macro_precision: Mean over letters; None where answers or references are no letters. So are the next two.
        macro_recall: As above.
        macro_f1: As above.
        answered: Share of all questions that each model answered.
        retention: Of those that reached it; None where none did.
        unanswered: Share without any answer.
        hallucination_rate: Share answered wrongly: neither right nor "I don't know".
        refused: Share answered with "I don't know".
        cost: Every model that ran.
        cost_answering_stage: The papers' accounting: the answering attempt alone.
        saved: Share of the largest model's cost, by unit, every model that ran.
        saved_answering_stage: The same in the papers' accounting.
        saved_interval: Of the unit that counts.
        blind: Accuracy of drawing the model by lot, at the same cost.
        oracle: Of who knows every grade and cost, at the same cost.
        gap_closed: How far the policy comes from the first (0) to the second (1).
    """

    name: str
    thresholds: Mapping[str, Mapping[str, Threshold]]
    questions: int
    accuracy: Interval
    drop_points: Interval
    drop_relative: float | None
    harms: int
    benefits: int
    mcnemar_p: float
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    answered: Mapping[str, float]
    retention: Mapping[str, float | None]
    unanswered: float
    hallucination_rate: float
    refused: float
    cost: Spent
    cost_answering_stage: Spent
    saved: Mapping[str, float | None]
    saved_answering_stage: Mapping[str, float | None]
    saved_interval: Interval | None
    blind: float | None
    oracle: float | None
    gap_closed: float | None


@dataclass(frozen=True)
class Bench:
    """The questions on which policies are measured, and the single models beside which they are.

    Attributes:
        gathered: The recording: every one of `models` asked every question, every usable answer graded.
        models: Smallest first.
        architectures: By model.
        prices: By model.
        unit: In which costs count, one of `UNITS`.
        alone: What each model does by itself.
        blind: Of drawing a model by lot, in `unit`.
        oracle: Of knowing everything.
        sweep: Who plays many policies: this process, or `replay.ray.ray_sweep` a cluster.
    """

    gathered: Gathered
    models: tuple[str, ...]
    architectures: Mapping[str, Architecture]
    prices: Mapping[str, Prices]
    unit: str
    alone: Mapping[str, Replay]
    blind: Curve
    oracle: Curve
    sweep: Callable[..., Sweep] = sweep

    @classmethod
    def of(
        cls,
        gathered: Gathered,
        models: Sequence[str],
        *,
        architectures: Mapping[str, Architecture],
        prices: Mapping[str, Prices],
        unit: str | None = None,
    ) -> Bench:
        """By default costs count in the first of `UNITS` that is known of every model.

        Raises:
            ConfigurationError: If nothing is known, or not the `unit` that was asked for.
        """
        alone = _alone(gathered.columns, models, architectures, prices)
        means = Costs(*(np.array([getattr(each.cost, name).mean() for each in alone.values()]) for name in UNITS))
        unit = chosen_unit(means, unit)
        return cls._of(gathered, tuple(models), architectures, prices, unit, alone)

    @classmethod
    def _of(
        cls,
        gathered: Gathered,
        models: tuple[str, ...],
        architectures: Mapping[str, Architecture],
        prices: Mapping[str, Prices],
        unit: str,
        alone: Mapping[str, Replay],
    ) -> Bench:
        grades = np.column_stack([alone[model].grade for model in models])
        costs = np.column_stack([getattr(alone[model].cost, unit) for model in models])
        blind, best = random_routing(grades, costs), oracle(grades, costs)
        return cls(gathered, models, architectures, prices, unit, alone, blind, best)

    def take(self, rows: NDArray[np.intp]) -> Bench:
        """The same on some of the questions."""
        part = self.gathered.take(rows)
        alone = _alone(part.columns, self.models, self.architectures, self.prices)
        return self._of(part, self.models, self.architectures, self.prices, self.unit, alone)

    @property
    def columns(self) -> Columns:
        """The recording's numbers."""
        return self.gathered.columns

    @property
    def largest(self) -> Replay:
        """The last model alone."""
        return self.alone[self.models[-1]]

    def mean_cost(self, model: str) -> float:
        """Of a question to one model alone, in `unit`."""
        return float(getattr(self.alone[model].cost, self.unit).mean())

    def break_even(self) -> dict[str, float | None]:
        """The retention at which each model but the last begins to save something before the last one."""
        last = self.mean_cost(self.models[-1])
        return {
            model: break_even_retention(self.mean_cost(model), last) if last > 0 else None for model in self.models[:-1]
        }

    def play(self, policy: Sequence[PolicyStage]) -> Replay:
        """`replay` on the bench's questions."""
        return replay(self.columns, policy, architectures=self.architectures, prices=self.prices)

    def judge(self, name: str, policy: Sequence[PolicyStage], played: Replay | None = None) -> PolicyFigures:
        """Measure a policy beside the last of the bench's models; what `play` made of it may be given."""
        played = self.play(policy) if played is None else played
        grade, largest = played.grade, self.largest.grade
        right, theirs = is_right(grade), is_right(largest)
        refused = self._of_answer(self.columns.refused, policy, played, False)
        difference, low, high = paired_difference(grade, largest)
        macro = self._macro(policy, played)
        spent = float(getattr(played.cost, self.unit).mean())
        blind, best = self.blind.at(spent), self.oracle.at(spent)
        retention = played.retention
        return PolicyFigures(
            name=name,
            thresholds=thresholds_by_model(policy),
            questions=len(grade),
            accuracy=Interval(*mean_interval(grade)),
            drop_points=Interval(100 * difference, 100 * low, 100 * high),
            drop_relative=drop_relative(float(grade.mean()), float(largest.mean())) if largest.any() else None,
            harms=discordant(right, theirs)[0],
            benefits=discordant(right, theirs)[1],
            mcnemar_p=mcnemar(right, theirs),
            macro_precision=macro and macro[0],
            macro_recall=macro and macro[1],
            macro_f1=macro and macro[2],
            answered={stage.model: float((played.stage == j).mean()) for j, stage in enumerate(policy)},
            retention={stage.model: known(retention[j]) for j, stage in enumerate(policy)},
            unanswered=float((played.stage < 0).mean()),
            hallucination_rate=hallucination_rate(np.where(played.stage < 0, 1.0, grade), refused),
            refused=float(refused.mean()),
            cost=_mean(played.cost),
            cost_answering_stage=_mean(played.cost_answering_stage),
            saved=self._saved(played.cost),
            saved_answering_stage=self._saved(played.cost_answering_stage),
            saved_interval=self._saved_interval(played),
            blind=known(blind),
            oracle=known(best),
            gap_closed=known(share_of_gap(float(grade.mean()), blind, best)),
        )

    def _of_answer(
        self, values: NDArray[np.generic], policy: Sequence[PolicyStage], played: Replay, otherwise: bool | int
    ) -> NDArray[np.generic]:
        """`values`, of shape (questions, models of the recording), of the model whose answer stands."""
        place = np.array([self.columns.index(stage.model) for stage in policy])
        answered = played.stage >= 0
        chosen = np.take_along_axis(values, place[np.maximum(played.stage, 0)][:, None], axis=1)[:, 0]
        return np.where(answered, chosen, otherwise)

    def _macro(self, policy: Sequence[PolicyStage], played: Replay) -> tuple[float, float, float] | None:
        if any(
            isinstance(each, Mapping) and corrects(self.columns, stage.model, name)
            for stage in policy[:-1]
            for name, each in stage.thresholds.items()
        ):
            return None  # which label a corrected answer has is not kept
        reference = self.gathered.reference
        predicted = self._of_answer(self.gathered.predicted, policy, played, NO_LETTER)
        if (reference == NO_LETTER).any() or (predicted == NO_LETTER).all():
            return None
        right = letters(reference)
        return macro_scores(letters(predicted.astype(np.int8)), right, sorted(set(right)))

    def _saved(self, cost: Costs) -> dict[str, float | None]:
        saved: dict[str, float | None] = {}
        for unit in UNITS:
            alone = float(getattr(self.largest.cost, unit).sum())
            share = 1 - float(getattr(cost, unit).sum()) / alone if alone > 0 else math.nan
            saved[unit] = known(share)
        return saved

    def _saved_interval(self, played: Replay) -> Interval | None:
        ours, theirs = getattr(played.cost, self.unit), getattr(self.largest.cost, self.unit)
        if (theirs <= 0).mean() ** len(theirs) > 1e-9:  # a resample could cost nothing
            return None
        if np.allclose(ours * theirs.sum(), theirs * ours.sum(), rtol=1e-12):  # the same share on every question
            share = 1 - float(ours.sum() / theirs.sum())
            return Interval(share, share, share)
        return Interval(*saving(ours, theirs))


def thresholds_by_model(policy: Sequence[PolicyStage]) -> dict[str, dict[str, Threshold]]:
    """By model; the last stage, which always answers, has none."""
    return {stage.model: dict(stage.thresholds) if j < len(policy) - 1 else {} for j, stage in enumerate(policy)}


def _alone(
    columns: Columns,
    models: Sequence[str],
    architectures: Mapping[str, Architecture],
    prices: Mapping[str, Prices],
) -> dict[str, Replay]:
    return {
        model: replay(columns, [PolicyStage(model)], architectures=architectures, prices=prices) for model in models
    }


def _mean(costs: Costs) -> Spent:
    return Spent(**{each.name: known(getattr(costs, each.name).mean()) for each in fields(Costs)})
