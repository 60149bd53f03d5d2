"""What a policy would have got right and cost on recorded answers, beside everything it should be held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.evaluation.baselines import Baseline, baselines
from confcascade.bench.evaluation.curves import CurveFigures, sensitivity, signal_curves
from confcascade.bench.evaluation.gathered import MEAN_LOG_PROBABILITY, Gathered, Texts
from confcascade.bench.evaluation.policy_figures import Bench, PolicyFigures
from confcascade.bench.evaluation.signal_figures import SignalFigures, signal_figures
from confcascade.bench.metrics.frontier import Curve
from confcascade.bench.recording.columns import Columns
from confcascade.bench.recording.row import Row
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import ACCEPT, Replay, Sweep, sweep
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.graders.grade import RIGHT

__all__ = ["Evaluation", "Group", "HarmfulKeep", "evaluate", "with_texts"]

SMALL_GROUP = 30  # questions below which a group's figures are mostly chance
GROUPS_AT_MOST = 200  # the largest are told
HARMS_AT_MOST = 20
UNTOLD = (
    "If these thresholds were chosen on these very questions, the figures are better than what is to come: choose them "
    "on other questions. The recording does not tell."
)
_POINTS = 200  # of the oracle's curve


@dataclass(frozen=True)
class Group:
    """A group of the questions.

    Attributes:
        name: As the recording has it.
        few: Its figures are mostly chance.
        policy: On these questions alone.
        alone: Accuracy of each single model on them.
    """

    name: str
    few: bool
    policy: PolicyFigures
    alone: Mapping[str, float]


@dataclass(frozen=True)
class HarmfulKeep:
    """An answer that was kept though the largest model has a better one.

    Attributes:
        question: Its id.
        group: "" where none is told.
        model: Whose answer was kept.
        grade: Of that answer.
        largest_grade: Of the largest model's.
        scores: That it was kept by.
        prompt: None where the recording keeps none. So are the next three.
        reference: The right answer.
        answer: That was kept.
        largest_answer: That of the largest model.
    """

    question: str
    group: str
    model: str
    grade: float
    largest_grade: float
    scores: Mapping[str, float | None]
    prompt: str | None = None
    reference: str | None = None
    answer: str | None = None
    largest_answer: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report tells.

    Attributes:
        models: Smallest first; the last is what the policy is held against.
        unit: In which costs count.
        questions: How many the figures are of.
        policy: The one that is judged.
        beside: Others: pairs of its models with its own thresholds, and those that were asked for.
        alone: Each model by itself.
        baselines: Beside the policy, at its cost.
        break_even: The retention that each model but the last needs to save anything before the last.
        signals: Of each model.
        curves: Of each signal, on the whole chain and every pair.
        sensitivity: Of each threshold of the policy.
        blind: (cost, accuracy) of drawing a model by lot.
        oracle: Of knowing everything.
        groups: The largest first.
        harmful: The worst of the kept answers.
        notes: What a reader must know before believing the figures.
    """

    models: tuple[str, ...]
    unit: str
    questions: int
    policy: PolicyFigures
    beside: tuple[PolicyFigures, ...]
    alone: tuple[PolicyFigures, ...]
    baselines: tuple[Baseline, ...]
    break_even: Mapping[str, float | None]
    signals: tuple[SignalFigures, ...]
    curves: tuple[CurveFigures, ...]
    sensitivity: tuple[CurveFigures, ...]
    blind: tuple[tuple[float, float], ...]
    oracle: tuple[tuple[float, float], ...]
    groups: tuple[Group, ...]
    harmful: tuple[HarmfulKeep, ...]
    notes: tuple[str, ...]

    @property
    def largest(self) -> PolicyFigures:
        """The last model alone."""
        return self.alone[-1]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; None where a figure is unknown."""
        return asdict(self)


def evaluate(
    gathered: Gathered,
    policy: Sequence[PolicyStage],
    *,
    beside: Mapping[str, Sequence[PolicyStage]] | None = None,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    unit: str | None = None,
    sweep: Callable[..., Sweep] = sweep,
) -> Evaluation:
    """Judge a policy on a recording.

    Args:
        gathered: The recording, of `gather`.
        policy: Stages, smallest first; the last is the model that the others are to spare.
        beside: Further policies of the same models, by name.
        architectures: By model, for operations; all of them, or costs do not count in operations.
        prices: By model, for dollars; likewise.
        unit: In which costs count: "flops", "usd", "tokens" or "seconds"; by default the first of flops, usd and
            tokens that is known of every model.
        sweep: Who plays the policies of the curves: this process, or `replay.ray.ray_sweep` a cluster.

    Raises:
        ConfigurationError: If the policy cannot be replayed on the recording, or no question can be judged.
    """
    models = tuple(stage.model for stage in policy)
    rows, notes = _judged(gathered.columns, models)
    bench = Bench.of(gathered.take(rows), models, architectures=architectures or {}, prices=prices or {}, unit=unit)
    bench = replace(bench, sweep=sweep)
    played = bench.play(policy)
    judged = bench.judge(" → ".join(models), policy, played)
    by_model = {stage.model: stage for stage in policy}
    pairs = [(by_model[a], PolicyStage(b)) for a, b in combinations(models, 2) if len(models) > 2]
    others = {" → ".join(stage.model for stage in pair): pair for pair in pairs} | dict(beside or {})
    recorded = tuple(name for name in bench.columns.signal_names if name != MEAN_LOG_PROBABILITY)
    return Evaluation(
        models=models,
        unit=bench.unit,
        questions=len(rows),
        policy=judged,
        beside=tuple(bench.judge(name, other) for name, other in others.items()),
        alone=tuple(bench.judge(f"{model} alone", [PolicyStage(model)], bench.alone[model]) for model in models),
        baselines=baselines(bench, judged),
        break_even=bench.break_even(),
        signals=signal_figures(bench),
        curves=signal_curves(bench, recorded) if len(models) > 1 else (),
        sensitivity=sensitivity(bench, policy),
        blind=_points(bench.blind),
        oracle=_points(bench.oracle),
        groups=_groups(bench, policy, notes),
        harmful=_harmful(bench, policy, played),
        notes=(*notes, *_notes(bench, gathered, policy)),
    )


def with_texts(evaluation: Evaluation, rows: Iterable[Row]) -> Evaluation:
    """The same, its harmful keeps with their texts: for a recording of which `gather` held none.

    Args:
        evaluation: Of `evaluate`.
        rows: Of the recording, once more.
    """
    found = {keep.question: keep for keep in evaluation.harmful}
    for row in rows:
        keep = found.get(row.question)
        if keep is None or row.model not in (keep.model, evaluation.models[-1]):
            continue
        kept = row.model == keep.model
        found[row.question] = replace(
            keep,
            prompt=row.prompt or keep.prompt,
            reference=row.reference or keep.reference,
            answer=row.answer if kept else keep.answer,
            largest_answer=keep.largest_answer if kept else row.answer,
        )
    return replace(evaluation, harmful=tuple(found.values()))


# ---------------------------------------------------------------------- parts


def _judged(columns: Columns, models: Sequence[str]) -> tuple[NDArray[np.intp], list[str]]:
    at = [columns.index(model) for model in models]
    asked = columns.recorded[:, at].all(axis=1)
    graded = (~np.isnan(columns.grades[:, at]) | columns.failed[:, at]).all(axis=1)
    rows, notes = np.flatnonzero(asked & graded), []
    if not len(rows):
        raise ConfigurationError(
            f"No question was asked of all of {', '.join(models)} and graded: {int((~asked).sum())} of "
            f"{len(columns)} lack a row, {int((asked & ~graded).sum())} a grade."
        )
    if missing := int((~asked).sum()):
        notes.append(f"{missing:,} of {len(columns):,} questions are left out: not every model was asked them.")
    if missing := int((asked & ~graded).sum()):
        notes.append(f"{missing:,} of {len(columns):,} questions are left out: not every answer was graded.")
    return rows, notes


def _points(curve: Curve) -> tuple[tuple[float, float], ...]:
    at = np.unique(np.linspace(0, len(curve.cost) - 1, min(_POINTS, len(curve.cost))).astype(int))
    return tuple((float(curve.cost[i]), float(curve.accuracy[i])) for i in at)


def _groups(bench: Bench, policy: Sequence[PolicyStage], notes: list[str]) -> tuple[Group, ...]:
    names, counts = np.unique(bench.columns.groups, return_counts=True)
    largest_first = [str(names[i]) for i in np.argsort(-counts, kind="stable") if names[i] != ""]
    if len(largest_first) > GROUPS_AT_MOST:
        notes.append(f"Of {len(largest_first):,} groups the {GROUPS_AT_MOST} largest are told.")
    groups = []
    for name in largest_first[:GROUPS_AT_MOST]:
        part = bench.take(np.flatnonzero(bench.columns.groups == name))
        judged = part.judge(name, policy)
        alone = {model: float(played.grade.mean()) for model, played in part.alone.items()}
        groups.append(Group(name, judged.questions < SMALL_GROUP, judged, alone))
    return tuple(groups)


def _harmful(bench: Bench, policy: Sequence[PolicyStage], played: Replay) -> tuple[HarmfulKeep, ...]:
    loss = np.where(played.stage >= 0, bench.largest.grade - played.grade, 0.0)
    kept = np.flatnonzero((loss > 0) & (played.decision == ACCEPT).any(axis=1) & (played.stage < len(policy) - 1))
    columns, texts, found = bench.columns, bench.gathered.texts, []
    for i in kept:
        stage = policy[played.stage[i]]
        scores = {name: float(columns.signal(stage.model, name).values[i]) for name in stage.thresholds}
        found.append((float(loss[i]), min(scores.values(), default=0.0), int(i), stage.model, scores))
    ranked = sorted(found, key=lambda each: (-each[0], -each[1], each[2]))
    once = {columns.questions[each[2]]: each for each in reversed(ranked)}  # however often it was drawn
    worst = [each for each in ranked if once[columns.questions[each[2]]] is each][:HARMS_AT_MOST]
    return tuple(
        HarmfulKeep(
            question=columns.questions[i],
            group=str(columns.groups[i]),
            model=model,
            grade=float(played.grade[i]),
            largest_grade=float(bench.largest.grade[i]),
            scores={name: value if np.isfinite(value) else None for name, value in scores.items()},
            **({} if texts is None else _texts(texts, columns.questions[i], model, policy[-1].model)),
        )
        for _, _, i, model, scores in worst
    )


def _texts(texts: Texts, question: str, model: str, largest: str) -> dict[str, str | None]:
    return {
        "prompt": texts.prompts.get(question),
        "reference": texts.references.get(question),
        "answer": texts.answers.get((question, model)),
        "largest_answer": texts.answers.get((question, largest)),
    }


def _notes(bench: Bench, gathered: Gathered, policy: Sequence[PolicyStage]) -> list[str]:
    notes = []
    if len(policy) > 1:
        notes.append(UNTOLD)
        notes.append(
            "Curves, areas, quality-neutral costs and baselines at equal cost take the best of many thresholds in "
            "hindsight, on these very questions: no one would have known these thresholds before."
        )
    if bench.unit == "tokens":
        notes.append(
            "Costs count in tokens, of every model alike, for neither sizes nor prices of all models are known; "
            "a large model's token costs more than a small one's."
        )
    if gathered.estimated:
        notes.append(
            f"The token counts of {gathered.estimated:,} of {gathered.rows:,} rows are estimated: nobody told them."
        )
    if np.isnan(bench.largest.cost.seconds).any():
        notes.append("The recording tells no times.")
    grades = np.concatenate([played.grade for played in bench.alone.values()])
    if ((grades > 0) & (grades < 1)).any():
        notes.append(f"Where only right or wrong counts (McNemar, AUROC), a grade of at least {RIGHT:g} is right.")
    return notes
