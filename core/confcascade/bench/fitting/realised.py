"""What a policy does on questions other than those that it was fitted on, beside what it promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.policy_file import replayable
from confcascade.bench.fitting.proof import losses
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.policy import Policy

__all__ = ["Realised", "overlap", "realised"]


@dataclass(frozen=True)
class Realised:
    """What came of a policy.

    Attributes:
        questions: How many.
        loss: Mean paired loss against the largest model: the drop of accuracy, or the share of other answers.
        harms: On how many it lost.
        benefits: On how many it gained.
        saved: Share of the largest model's cost, every model that ran being charged.
        seen: How many of the questions have the text of one that it was fitted on; None if that cannot be told.
        groups: The same of each group, where each is decided by its own thresholds; `seen` is told of all together.
    """

    questions: int
    loss: float
    harms: int
    benefits: int
    saved: float
    seen: int | None
    groups: Mapping[str, Realised] = field(default_factory=dict)

    def describe(self, policy: Policy) -> list[str]:
        """Beside what was promised, in lines."""
        came = (
            f"on these {self.questions:,} questions it loses {100 * self.loss:.2f} points of accuracy ({self.harms:,} "
            f"lost, {self.benefits:,} gained) and saves {self.saved:.1%} of cost."
        )
        lines = []
        if guarded := policy.accuracy_certificates:
            (first, *more) = guarded
            promised = (
                f"{100 * first.promised:.2f} points" if first.kind == "labels" else f"{first.promised:.2%} of answers"
            )
            of = "" if not more else f" in each of {len(guarded)} groups"
            lines.append(
                f"The policy promises to lose at most {promised}{of} against {policy.models[-1]}, with "
                f"{first.confidence:g} confidence; {came}"
            )
        else:
            lines.append(f"The policy promises nothing of accuracy; {came}")
        if self.groups:
            bound = {each.group: each.promised for each in guarded}
            held = {name: bound[name] for name in self.groups if name in bound}
            above = [name for name, most in held.items() if self.groups[name].loss > most]
            lines.append(
                f"Of {len(self.groups)} groups here {len(held)} have a promise. Above it, on these questions: "
                f"{', '.join(above) or 'none'}. (Few questions tell little of a group.)"
            )
        if others := [each.kind for each in policy.certificates if each.kind not in ("labels", "agreement")]:
            lines.append(f"What it promises of {', '.join(dict.fromkeys(others))} is not judged here.")
        if self.seen:
            lines.append(
                f"{self.seen:,} of the {self.questions:,} questions are among those that the policy was fitted on, or "
                "repeat them word for word: draws that it was fitted on prove nothing. Evaluate on new ones."
            )
        elif self.seen is None:
            lines.append(
                "Whether the policy was fitted on these questions cannot be told: prompts are kept in one of the two "
                "recordings alone."
            )
        return lines


def overlap(policy: Policy, material: FitData) -> int | None:
    """How many of some questions have the text of one that a policy was fitted on; None if that cannot be told."""
    if policy.made_from.keyed_by != material.keyed_by:
        return None
    return policy.made_from.overlap(material.keys)


def realised(
    policy: Policy,
    material: FitData,
    *,
    same: NDArray[np.bool_] | None = None,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    only_new: bool = False,
) -> Realised:
    """Replay a policy on a recording of the models, builds and prompts that it was fitted on.

    Args:
        policy: It.
        material: The recording, of all the policy's models.
        same: To count other answers in the place of lost accuracy (`agreement`), shape (questions, models).
        architectures: By model.
        prices: By model.
        only_new: Whether to refuse texts that the policy was fitted on.

    Raises:
        ConfigurationError: If a model, a build, or a prompt is another, a question is not new, or a group is not one
            that the policy knows.
    """
    for stage in [*policy.stages, *(stage for group in policy.groups.values() for stage in group.stages)]:
        for what, was, now in (
            ("build", stage.build, material.builds.get(stage.model)),
            ("prompt", stage.prompt_version, material.prompt_versions.get(stage.model)),
        ):
            if None not in (was, now) and was != now:
                raise ConfigurationError(
                    f"The policy was fitted on {what} {was} of '{stage.model}'; this recording is of {what} {now}. "
                    "Nothing is promised of it: fit again."
                )
    seen = overlap(policy, material)
    if seen and only_new:
        raise ConfigurationError(
            f"{seen:,} of the {len(material):,} questions are among those that the policy was fitted on, or repeat "
            "them word for word: draws that it was fitted on prove nothing."
        )
    columns, largest = material.columns, policy.models[-1]
    bill = Costing.of(columns, policy.models, architectures, prices, policy.saving.unit)
    parts: dict[str, NDArray[np.intp]] = {"": np.arange(len(columns))}
    if policy.groups:
        parts = {name: np.flatnonzero(columns.groups == name) for name in np.unique(columns.groups).tolist()}
    lost, ours, theirs = (np.empty(len(columns)) for _ in range(3))
    for name, rows in parts.items():
        own, stages = replayable(columns.take(rows), policy.for_group(name) if policy.groups else policy)
        (lost[rows],) = losses(own, [stages], largest, None if same is None else same[rows])
        ours[rows], theirs[rows] = bill.each(own, stages), bill.each(own, [PolicyStage(largest)])

    def came(rows: NDArray[np.intp], seen: int | None) -> Realised:
        return Realised(
            questions=len(rows),
            loss=float(lost[rows].mean()),
            harms=int((lost[rows] > 0).sum()),
            benefits=int((lost[rows] < 0).sum()),
            saved=float(1 - ours[rows].mean() / theirs[rows].mean()),
            seen=seen,
        )

    whole = came(np.arange(len(columns)), seen)
    return replace(whole, groups={name: came(rows, None) for name, rows in parts.items()}) if policy.groups else whole
