"""What the stages of a policy read of a recording: the columns that they compare, and their thresholds as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from confcascade.bench.recording.columns import Column, Columns, Labels
from confcascade.bench.replay.costs import Figures
from confcascade.bench.replay.policy import PolicyStage
from confcascade.errors import ConfigurationError
from confcascade.signals import OneThreshold, Threshold, ends_of, threshold_of

__all__ = [
    "Compared",
    "StageColumns",
    "compared_in",
    "corrects",
    "counts_shown",
    "skips_of",
    "structure_of",
    "threshold_arrays",
]


class Compared(NamedTuple):
    """What a threshold is of: a signal, or a signal where the answer gives a label.

    Attributes:
        signal: Its name.
        label: Where only answers with this label are compared.
        among: Where thresholds are by label, and this is compared with the least: those that have one.
        corrects: Where answers are corrected: what the labels must reach.
    """

    signal: str
    label: str | None = None
    among: tuple[str, ...] = ()
    corrects: tuple[tuple[str, OneThreshold], ...] = ()


@dataclass(frozen=True)
class StageColumns:
    """A stage of a policy without its thresholds.

    Attributes:
        model: Its index.
        name: Its name.
        signals: What is compared with a threshold each: a signal as a whole, or with a label what it is of answers that
            give that one, and infinite of all others. All must pass, so a threshold for each label becomes as many
            thresholds, beside the least of them, which holds whatever the label will be.
        grades: Of the answers as they are kept, where a signal corrects them; None where they are as recorded.
    """

    model: int
    name: str
    signals: tuple[tuple[Compared, Column], ...]
    grades: Figures | None = None


def structure_of(columns: Columns, policy: Sequence[PolicyStage]) -> list[StageColumns]:
    """Which columns a policy reads.

    Raises:
        ConfigurationError: If the policy cannot be replayed on this recording.
    """
    if not policy:
        raise ConfigurationError("A policy needs at least one stage; the list is empty.")
    structure: list[StageColumns] = []
    for stage in policy:
        model, last = columns.index(stage.model), len(structure) == len(policy) - 1
        if missing := int((~columns.recorded[:, model]).sum()):
            raise ConfigurationError(
                f"Model '{stage.model}' was not asked {missing} of the {len(columns)} questions. "
                "Leave them out with Columns.complete()."
            )
        if not last and not stage.thresholds:
            raise ConfigurationError(
                f"Stage '{stage.model}' of the policy has no threshold, so it could never escalate a query."
            )
        if last:
            structure.append(StageColumns(model, stage.model, ()))
            continue
        judged, grades = [], None
        for each in compared_in(columns, stage):
            if each.corrects:
                column, grades = _corrected(columns, stage.model, each)
            else:
                column = _column(columns, stage.model, each)
            judged.append((each, column))
        structure.append(StageColumns(model, stage.model, tuple(judged), grades))
    return structure


def compared_in(columns: Columns, stage: PolicyStage) -> tuple[Compared, ...]:
    """What a stage compares with thresholds, each once; stages that compare the same are played together."""
    found: list[Compared] = []
    for name, threshold in stage.thresholds.items():
        if not isinstance(threshold, Mapping):
            found.append(Compared(name))
        elif corrects(columns, stage.model, name):
            found.append(Compared(name, among=tuple(threshold), corrects=tuple(sorted(threshold.items()))))
        else:
            found += [Compared(name, among=tuple(threshold)), *(Compared(name, label) for label in threshold)]
    return tuple(found)


def corrects(columns: Columns, model: str, signal: str) -> bool:
    """Whether a recorded signal corrects answers, where it has a threshold for each label."""
    labels = columns.signal(model, signal).labels
    return labels is not None and labels.probabilities is not None


def _corrected(columns: Columns, model: str, compared: Compared) -> tuple[Column, Figures]:
    """A signal that corrects, infinite where the answer is kept, and the grades of the answers that are.

    Kept is an answer whose label reaches its threshold, else the most probable label that does, as live.
    """
    column = columns.signal(model, compared.signal)
    labels = column.labels
    assert labels is not None
    assert labels.probabilities is not None
    assert labels.grades is not None
    own_grades = columns.grades[:, columns.index(model)]
    cuts = {label: _number(compared, each) for label, each in compared.corrects}
    least = np.array([cuts.get(label, np.inf) for label in labels.names])
    own = np.append(least, np.inf)[labels.index]  # -1 is the last
    keeps = np.nan_to_num(column.values, nan=-np.inf) >= own
    reached = np.where(labels.probabilities >= least, labels.probabilities, -np.inf)
    best = reached.argmax(axis=1)  # of two as probable the first by name
    changed = ~keeps & (reached.max(axis=1) > -np.inf)
    grades = np.where(changed, labels.grades[np.arange(len(best)), best], own_grades)
    values = np.where(keeps | changed, np.inf, np.nan)
    return replace(column, values=values, labels=None, lower=None), grades


def _column(columns: Columns, model: str, compared: Compared) -> Column:
    column = columns.signal(model, compared.signal)
    if compared.label is None and not compared.among:
        return column
    scored = ~np.isnan(column.values)
    labels = column.labels or Labels((), np.full(len(columns), -1, dtype=np.int16))
    if unknown := int((scored & (labels.index < 0)).sum()):
        raise ConfigurationError(
            f"Signal '{compared.signal}' of model '{model}' has a threshold for each label, and the recording does not "
            f"tell which label {unknown} of {len(columns)} answers give. Record TokenProbability(labels=...)."
        )
    if compared.label is None:
        kept = np.any([labels.are(label) for label in compared.among], axis=0)
        return replace(column, values=np.where(kept, column.values, np.nan))
    others = scored & ~labels.are(compared.label)
    values = np.where(others, np.inf, column.values)
    return Column(values, column.phase, column.prefill, None, depth=column.depth, lower=column.lower)


def threshold_arrays(policies: Sequence[Sequence[PolicyStage]], structure: Sequence[StageColumns]) -> list[Figures]:
    """For each stage an array of shape (policies, signals): "always" is below every score, a missing one's included."""
    return [
        np.array(
            [[_number(each, policy[j].thresholds[each.signal]) for each, _ in judged.signals] for policy in policies],
            dtype=np.float64,
        ).reshape(len(policies), len(judged.signals))
        for j, judged in enumerate(structure)
    ]


def skips_of(policies: Sequence[Sequence[PolicyStage]], structure: Sequence[StageColumns]) -> list[Figures]:
    """As `threshold_arrays`, the scores below which a query goes straight to the last stage.

    No score is below minus infinity, which stands where there is none.

    Raises:
        ConfigurationError: If one is of no signal of the stage that judges before the answer.
    """
    for policy in policies:
        for stage, judged in zip(policy, structure, strict=True):
            gates = [each.signal for each, column in judged.signals if column.phase == "pre"]
            if unknown := [name for name in stage.skip if judged.signals and name not in gates]:
                raise ConfigurationError(
                    f"`skip` of stage '{stage.model}' names '{unknown[0]}', which is not one of its signals that judge "
                    f"before the answer. Those are {gates}."
                )
    return [
        np.array(
            [[policy[j].skip.get(each.signal, -np.inf) for each, _ in judged.signals] for policy in policies],
            dtype=np.float64,
        ).reshape(len(policies), len(judged.signals))
        for j, judged in enumerate(structure)
    ]


def counts_shown(columns: Columns, stage: PolicyStage) -> bool:
    """Whether a replay knows which drafts of a stage are shown before their end, and so stand if they are cut off.

    It does of signals that judge before the answer; of the others it must have been recorded (`Column.lower`), and so
    must the tokens.
    """
    judges = [columns.signal(stage.model, name) for name in stage.thresholds]
    after = [column for column in judges if column.phase == "post"]
    j = columns.index(stage.model)
    told = bool((columns.told_tokens[:, j] >= 0)[columns.said[:, j]].all())
    return not after or (told and all(column.lower is not None for column in after))


def _number(compared: Compared, told: Threshold) -> float:
    name = compared.signal
    threshold: OneThreshold = ends_of(told)[0] if compared.label is None else threshold_of(told, compared.label)
    if threshold == "always":
        return -np.inf
    if threshold == "never":
        return np.inf
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not np.isfinite(threshold):
        raise ConfigurationError(
            f'The threshold of signal \'{name}\' must be a finite number, "always" or "never". Got {threshold!r}.'
        )
    return float(threshold)
