"""From the thresholds that were chosen to a `Policy`, and from a policy back to what can be replayed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from confcascade.bench.fitting.candidates import Candidates, Derived
from confcascade.bench.fitting.material import FitData
from confcascade.bench.metrics.significance import savings
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.derived import with_confidence, with_gain
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import replay
from confcascade.bench.replay.stage_columns import counts_shown
from confcascade.errors import ConfigurationError
from confcascade.policy import (
    AnyCertificate,
    CalibratedEntry,
    ExpectedGainEntry,
    FittedGroup,
    FittedStage,
    MadeFrom,
    Policy,
    Saving,
)
from confcascade.schema.signals import SignalType

__all__ = ["Described", "entries_of", "fitted_policy", "made_from", "replayable", "saving_of"]


@dataclass(frozen=True)
class Described:
    """How to make a model's signals live, as a cascade file says it.

    Attributes:
        entries: The signals.
        folder: What their paths are relative to.
    """

    entries: Sequence[SignalType]
    folder: Path


def fitted_policy(
    material: FitData,
    made: Candidates,
    stages: Sequence[PolicyStage],
    certificates: Sequence[AnyCertificate],
    saved: Saving,
    *,
    described: Mapping[str, Described],
    seed: int,
    folder: Path | None,
    groups: Mapping[str, tuple[Sequence[PolicyStage], Saving]] = MappingProxyType({}),
) -> Policy:
    """What was chosen and shown, to be kept.

    Args:
        material: The recording.
        made: Signals that were derived of it, and by what.
        stages: What was chosen.
        certificates: What it promises.
        saved: What it saves (`saving_of`).
        described: By model, how its signals are made live.
        seed: Of the split.
        folder: Where the policy will be kept; paths in it are relative to this.
        groups: By group, what was chosen there and what it saves, where each has its own.
    """

    def entries(of: Sequence[PolicyStage]) -> list[FittedStage]:
        return [_stage(material, made, each, last=each is of[-1], described=described, folder=folder) for each in of]

    return Policy(
        models=list(material.models),
        stages=entries(stages),
        groups={name: FittedGroup(stages=entries(own), saving=its) for name, (own, its) in groups.items()},
        certificates=list(certificates),
        saving=saved,
        made_from=made_from(material, seed=seed),
    )


def made_from(material: FitData, *, seed: int = 0) -> MadeFrom:
    """Where a policy comes from that was fitted on a recording."""
    return MadeFrom(
        recording=material.digest,
        data=material.identity.get("data"),
        grader=material.identity.get("grader"),
        parameters=material.identity.get("parameters"),
        seed=seed,
        questions=len(material),
        keyed_by=material.keyed_by,
        keys=base64.b64encode(b"".join(sorted(set(material.keys)))).decode(),
    )


def replayable(columns: Columns, policy: Policy) -> tuple[Columns, tuple[PolicyStage, ...]]:
    """A recording with the signals that a policy is made of, and its stages, to be replayed on it.

    Raises:
        ConfigurationError: If the recording lacks a model or a signal, or the policy decides step by step, or each
            group by its own stages (`Policy.for_group`).
    """
    policy.check_one()
    if policy.stepwise is not None:
        raise ConfigurationError(
            "A policy that decides step by step cannot be replayed: another threshold writes another answer. Record "
            "its answers, and compare them with the large model's."
        )
    for stage in policy.stages:
        columns.index(stage.model)
        for each in stage.derived:
            if isinstance(each, CalibratedEntry):
                (own,) = each.calibrators
                columns = with_confidence(columns, stage.model, own, name=each.name)
            else:
                own, larger = each.calibrators
                columns = with_gain(columns, stage.model, own, larger, name=each.name)
    return columns, tuple(PolicyStage(stage.model, dict(stage.thresholds), dict(stage.skip)) for stage in policy.stages)


def saving_of(
    columns: Columns, policies: Sequence[Sequence[PolicyStage]], chosen: int, largest: str, bill: Costing
) -> Saving:
    """What a policy saves that was chosen among several.

    Args:
        columns: The questions of the proof, which chose the policy only in so far as they chose among these.
        policies: All that it was chosen among.
        chosen: Which it is.
        largest: The model that promises are held against.
        bill: Of costs.
    """
    stages = policies[chosen]
    costs = np.array([bill.each(columns, each) for each in policies])
    ours, theirs = costs[chosen], bill.each(columns, [PolicyStage(largest)])
    played = replay(columns, stages)
    asked = np.zeros(len(columns), bool)
    if stages[-1].model == largest:
        asked = played.decision[:, -1] != -1
    share, low, high = savings(costs, theirs, chosen)
    return Saving(
        unit=bill.unit,  # type: ignore[arg-type]
        cost=float(ours.mean()),
        largest=float(theirs.mean()),
        share=share,
        low=low,
        high=high,
        spared=float(1 - asked.mean()),
    )


def _stage(
    material: FitData,
    made: Candidates,
    stage: PolicyStage,
    *,
    last: bool,
    described: Mapping[str, Described],
    folder: Path | None,
) -> FittedStage:
    model, thresholds = stage.model, {} if last else dict(stage.thresholds)
    derived = [made.derived[model, name] for name in thresholds if (model, name) in made.derived]
    entries = [_entry(each) for each in derived]
    bare = FittedStage(model=model, thresholds=thresholds, derived=entries)
    needs = bare.needs
    known = described.get(model)
    noted = material.identity.get("models", {}).get(model, {})
    recorded = noted.get("signals", {})
    return FittedStage(
        model=model,
        build=material.builds.get(model),
        prompt_version=material.prompt_versions.get(model),
        signals=[] if known is None else entries_of(known, needs, folder or Path()),
        identities={name: recorded[name] for name in needs if name in recorded},
        derived=entries,
        thresholds=thresholds,
        skip=dict(stage.skip),
        shows_early=not last and counts_shown(made.columns, stage),
        decoding=noted.get("decoding"),
    )


def entries_of(described: Described, needs: Sequence[str], folder: Path) -> Any:
    """Signals as a file says them, for the policy to read; paths relative to `folder`."""
    wanted = [each.moved(described.folder, folder) for each in described.entries if each.name in needs]
    return [each.model_dump(mode="json") for each in wanted]


def _entry(derived: Derived) -> CalibratedEntry | ExpectedGainEntry:
    own = derived.own.as_dict()
    if derived.larger is None:
        return CalibratedEntry(type="calibrated", name=derived.name, calibrator=own)
    return ExpectedGainEntry(type="expected_gain", name=derived.name, own=own, larger=derived.larger.as_dict())
