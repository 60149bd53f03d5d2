"""What is to be labelled: policies made without a label, in their order, and questions that could tell them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import outcomes
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError

__all__ = ["LabelTask", "Wanted", "same_text"]

GRID_SHARE = 0.1  # of the questions: they set the thresholds, and are never labelled
LEVELS = np.linspace(0.98, 0.0, 50)  # quantiles of the scores, the safest first


@dataclass(frozen=True)
class Wanted:
    """A question to label.

    Attributes:
        place: In the drawn order.
        question: Its id.
        prompt: What was asked; empty where the recording does not keep it.
        answers: Texts that are to be judged, each once.
        models: Whose answers they are, for each text.
    """

    place: int
    question: str
    prompt: str
    answers: tuple[str, ...]
    models: tuple[tuple[str, ...], ...]

    def grades(self, told: Sequence[float]) -> dict[str, float]:
        """By model, from a grade for each text."""
        return {name: float(grade) for names, grade in zip(self.models, told, strict=True) for name in names}


@dataclass(frozen=True)
class LabelTask:
    """Policies in a fixed order, and where their losses are not known without a label.

    Attributes:
        whole: All questions.
        material: Those that may be labelled, in the order in which they were drawn.
        signals: By smaller model, the one that keeps its answers.
        policies: The safest first.
        answering: Whose answer stands, as an index of the columns' models; -1 where none does; shape (policies,
            questions).
        open: Where a label is needed: a smaller model's answer stands, and it is not the largest's; likewise.
        same: Whether answers are the largest's, shape (questions, models).
        spread: Share of the questions that set the thresholds on which each policy is open, shape (policies,).
        saved: Share of the largest model's cost that each policy saves, likewise.
        bill: Of costs.
        seed: Of the draw.
    """

    whole: FitData
    material: FitData
    signals: Mapping[str, str]
    policies: tuple[tuple[PolicyStage, ...], ...]
    answering: NDArray[np.intp]
    open: NDArray[np.bool_]
    same: NDArray[np.bool_]
    spread: NDArray[np.float64]
    saved: NDArray[np.float64]
    bill: Costing
    seed: int

    @classmethod
    def of(
        cls,
        material: FitData,
        same: NDArray[np.bool_],
        *,
        signals: Sequence[str] | None = None,
        architectures: Mapping[str, Architecture] | None = None,
        prices: Mapping[str, Prices] | None = None,
        unit: str | None = None,
        seed: int = 0,
    ) -> LabelTask:
        """Draw the order of the questions, set thresholds by the first tenth, and see where the others are open.

        All stages of a policy keep the same share of the scores on those questions, for one model knows nothing of
        another's labels yet.

        Args:
            material: Questions that every model has answered.
            same: Whether answers are the largest's, so that no label can tell them apart, shape (questions, models).
            signals: One for each smaller model; by default the only one that it has.
            architectures: By model.
            prices: By model.
            unit: Of costs.
            seed: Of the draw.

        Raises:
            ConfigurationError: If no signal is told, costs are not known, or nothing saves anything.
        """
        if len(material.models) < 2:
            raise ConfigurationError(
                f"A policy chooses among models; the recording has {', '.join(material.models)} alone."
            )
        chosen = _signals(material, signals)
        order = np.random.default_rng(seed).permutation(len(material))
        cut = math.ceil(GRID_SHARE * len(order))
        grid, drawn = material.take(order[:cut]), material.take(order[cut:])
        if not len(drawn):
            raise ConfigurationError(f"There are {len(material)} questions: too few to label any.")
        bill = Costing.of(material.columns, material.models, architectures, prices, unit)
        if unit is None and bill.unit == "tokens":
            raise ConfigurationError(
                "What the models cost is not known, and by tokens alone a small one is as dear as a large one: give "
                "sizes (`architectures=...`) or prices (`prices=...`) of every model."
            )
        policies = _policies(grid, chosen, bill)
        columns = drawn.columns
        answering, unknown = _open(drawn, policies, same[order[cut:]])
        before = _open(grid, policies, same[order[:cut]])[1].sum(axis=1)
        costs = bill.means(columns, [*policies, (PolicyStage(material.models[-1]),)])
        return cls(
            material,
            drawn,
            chosen,
            policies,
            answering,
            unknown,
            same[order[cut:]],
            (before + 1) / (len(grid) + 2),
            1 - costs[:-1] / costs[-1],
            bill,
            seed,
        )

    def costed(self, material: FitData) -> LabelTask:
        """The same task, at the costs of a recording of the same questions that knows more of the largest model."""
        order = np.random.default_rng(self.seed).permutation(len(material))
        drawn = material.take(order[-len(self.material) :])
        if drawn.columns.questions != self.material.columns.questions:
            raise ConfigurationError("The recording has other questions than the one that labels were bought for.")
        costs = self.bill.means(drawn.columns, [*self.policies, (PolicyStage(self.largest),)])
        return replace(self, whole=material, material=drawn, saved=1 - costs[:-1] / costs[-1])

    @property
    def largest(self) -> str:
        """The model that the promise is held against."""
        return self.material.models[-1]

    def losses(self) -> NDArray[np.float64]:
        """Of every policy, NaN where it is open, shape (policies, questions).

        Where the largest model gave no answer, nothing is counted as gained.
        """
        return np.where(self.open, np.nan, 0.0)

    def losses_of(self, place: int, grades: Mapping[str, float] | None) -> NDArray[np.float64]:
        """Of every policy on one question.

        Args:
            place: In the drawn order.
            grades: By model; None where nobody can tell, which counts as lost.
        """
        if grades is None:
            return np.ones(len(self.policies))
        by_model = np.array([grades.get(name, 0.0) for name in self.material.columns.models])
        at = self.answering[:, place]
        theirs = grades[self.largest]
        return np.where(at >= 0, theirs - by_model[at], 0.0)

    def wanted(self, place: int) -> Wanted:
        """What is to be judged of a question: each text once, in an order that does not tell whose it is."""
        columns, material = self.material.columns, self.material
        question = columns.questions[place]
        groups: dict[str, list[str]] = {}
        largest = material.answers.get((question, self.largest), "")
        for model in material.models:
            j = columns.index(model)
            if columns.usable[place, j]:
                text = largest if self.same[place, j] else material.answers.get((question, model), "")
                groups.setdefault(text, []).append(model)
        texts = sorted(groups)
        order = np.random.default_rng([self.seed, place]).permutation(len(texts))
        return Wanted(
            place,
            question,
            material.prompts.get(question, ""),
            tuple(texts[i] for i in order),
            tuple(tuple(groups[texts[i]]) for i in order),
        )

    def repeats(self, place: int) -> tuple[int, ...]:
        """All places of the same question: one label tells all of them."""
        return tuple(self._places[self.material.columns.questions[place]])

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for i, question in enumerate(self.material.columns.questions):
            found.setdefault(question, []).append(i)
        return found


def same_text(material: FitData) -> NDArray[np.bool_]:
    """Whether each model's answer is, to the letter, the largest's: then no grader can tell them apart.

    Args:
        material: Read with `texts`.

    Raises:
        ConfigurationError: If the recording keeps no answers.
    """
    columns, largest = material.columns, material.models[-1]
    same = np.zeros((len(columns), len(columns.models)), dtype=bool)
    for i, question in enumerate(columns.questions):
        for model in material.models:
            if not columns.usable[i, columns.index(model)]:
                continue
            if not (text := material.answers.get((question, model), "")).strip():
                raise ConfigurationError(
                    f"The recording keeps no answer of '{model}' to question '{question}', so nobody can label it. "
                    "Collect with `keep_text=True`."
                )
            same[i, columns.index(model)] = text == material.answers.get((question, largest), "")
    same[:, columns.index(largest)] = True
    return same


def _open(
    material: FitData, policies: Sequence[Sequence[PolicyStage]], same: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """`LabelTask.answering` and `LabelTask.open` of some questions."""
    columns = material.columns
    stage = outcomes(columns, policies).stage.astype(np.intp)
    place = np.array([columns.index(model) for model in material.models])
    answering = np.where(stage >= 0, place[stage], -1)
    largest = columns.index(material.models[-1])
    known = same[np.arange(len(material)), answering] | (answering < 0) | ~columns.usable[:, largest]
    return answering, ~known & (answering != largest)


def _signals(material: FitData, wanted: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for model in material.models[:-1]:
        known = sorted(name for owner, name in material.columns.signals if owner == model)
        chosen = [name for name in known if wanted is None or name in wanted]
        if len(chosen) != 1:
            raise ConfigurationError(
                f"Say which signal keeps the answers of '{model}': it has {', '.join(known) or 'none'}. Without labels "
                "nothing tells which is better, so one must be named beforehand (`signals=...`)."
            )
        found[model] = chosen[0]
    return found


def _policies(grid: FitData, signals: Mapping[str, str], bill: Costing) -> tuple[tuple[PolicyStage, ...], ...]:
    """The same quantile at every stage, the safest first; those that save something on the questions of the grid."""
    thresholds = {}
    for model, name in signals.items():
        values = grid.columns.signal(model, name).values
        known = values[np.isfinite(values)]
        if not len(known):
            raise ConfigurationError(f"Of {len(grid)} answers of '{model}' none has a score '{name}'.")
        thresholds[model] = np.quantile(known, LEVELS)
    last = PolicyStage(grid.models[-1])
    found: dict[tuple[float, ...], tuple[PolicyStage, ...]] = {}
    for level in range(len(LEVELS)):
        at = {model: float(thresholds[model][level]) for model in signals}
        found[tuple(at.values())] = (*(PolicyStage(m, {signals[m]: at[m]}) for m in signals), last)
    policies = list(found.values())
    costs = bill.means(grid.columns, [*policies, (last,)])
    saving = tuple(policy for policy, cost in zip(policies, costs, strict=False) if cost < costs[-1])
    if not saving:
        raise ConfigurationError(
            f"No threshold makes the cascade cheaper than '{last.model}' alone: there is nothing to certify."
        )
    return saving
