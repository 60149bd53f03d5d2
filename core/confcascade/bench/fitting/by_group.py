"""A promise for each group of questions apart: along one path, each group goes as far as its own questions prove.

Every group that is tested has an equal part of the error, those that fail included. So with the promise's confidence
all the groups that passed keep it at once, and which of them passed does not matter. A group is not tested if it has so
few questions that nothing could pass: only their numbers decide that, and these say nothing of losses. Where nothing
passed the largest model alone is asked, which loses nothing against itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.describe import told
from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.not_certified import lost_too_much, planned
from confcascade.bench.fitting.policy_file import saving_of
from confcascade.bench.fitting.proof import Path
from confcascade.bench.fitting.results import Contender, GroupFit
from confcascade.bench.fitting.splitting import FitSplit
from confcascade.bench.fitting.tested import put_to_proof
from confcascade.bench.metrics.significance import savings
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.guarantee import Certificate, Promise, TestName, fewest_examples, passes
from confcascade.policy import Saving

__all__ = ["dearer", "fit_groups", "saving_of_groups", "testable"]


def testable(sizes: Mapping[str, int], promise: Promise, test: TestName) -> list[str]:
    """The groups that are tested: as many of the largest as each pass at an equal part of the error if nothing is lost.

    Args:
        sizes: Questions of the proof, by group.
        promise: With a target.
        test: By which.

    Returns:
        Their names, in the order of `sizes`; all of them if none can pass.
    """
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    for count in range(len(sizes), 0, -1):
        at, n = replace(promise, groups=count), sizes[largest_first[count - 1]]
        if n >= fewest_examples(at) and passes(np.zeros(n), at, test):
            return [name for name in sizes if name in largest_first[:count]]
    return list(sizes)


def fit_groups(
    path: Path,
    material: FitData,
    columns: Columns,
    split: FitSplit,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    test: TestName,
    bill: Costing,
) -> tuple[GroupFit, ...]:
    """What is promised of each group of the recording, by its own questions of the proof.

    Args:
        path: Chosen for all groups together, without the questions of the proof.
        material: The recording.
        columns: The recording, derived signals included.
        split: Its questions.
        same: As of `fit`.
        promises: Of the groups that are tested (`testable`), at each one's part of the error.
        test: By which.
        bill: Of costs.
    """
    largest = material.models[-1]
    alone = (PolicyStage(largest),)
    share = len(split.certify) / len(columns)
    untested = replace(next(iter(promises.values())), groups=len(promises) + 1)  # as one group more would be
    found = []
    for name in np.unique(columns.groups).tolist():
        promise = promises.get(name, replace(untested, group=name))
        rows, proving = np.flatnonzero(columns.groups == name), split.certify[columns.groups[split.certify] == name]
        own, proof, only = columns.take(rows), columns.take(proving), {name: promise}
        least = fewest_examples(promise)
        tested: tuple[Contender, ...] = ()
        if enough := name in promises and len(proof) >= least:
            its = None if same is None else same[proving]
            tested = put_to_proof(path, own, proof, its, only, test, largest=largest, bill=bill)
        passed = [runner for runner in tested if runner.certified]
        if passed:
            chosen = max(passed, key=lambda each: each.saved)
            saved = saving_of(proof, [each.policy for each in passed], passed.index(chosen), largest, bill)
            if saved.share > 0:
                certificate = Certificate.of(chosen.examined[0], promise, repeated=material.take(rows).repeated)
                found.append(GroupFit(name, len(rows), chosen.policy, saved, certificate, tested))
                continue
            why = dearer(chosen, saved, largest)
        elif enough:
            why = lost_too_much(tested)
        else:
            why = (
                f"{len(proof):,} questions for the proof, and even a policy that never loses an answer takes "
                f"{max(least, len(proof) + 1):,}"
            )
        its = None if same is None else same[rows]
        more, could = planned(own, path, largest, its, only, bill, share=share)
        cost = float(bill.means(own, [alone])[0])
        nothing = Saving(unit=bill.unit, cost=cost, largest=cost, share=0, low=0, high=0, spared=0)  # type: ignore[arg-type]
        found.append(GroupFit(name, len(rows), alone, nothing, None, tested, why, more, could))
    return tuple(found)


def saving_of_groups(columns: Columns, groups: Sequence[GroupFit], largest: str, bill: Costing) -> Saving:
    """What is saved over all groups in their proportions, those that the largest model answers alone included.

    Each group's policy was chosen among those that passed there. The interval is one that holds at once for the
    choice that was made, and for those where each group stops the first, the second, ... of its policies that passed.

    Args:
        columns: The questions of the proof.
        groups: Of `fit_groups`.
        largest: The model that promises are held against.
        bill: Of costs.
    """
    theirs = bill.each(columns, [PolicyStage(largest)])
    passed = {group.name: [each.policy for each in group.tested if each.certified] for group in groups}
    levels = max(len(each) for each in passed.values())
    costs, spared = np.tile(theirs, (levels + 1, 1)), 0.0
    for group in groups:
        rows = np.flatnonzero(columns.groups == group.name)
        if group.certificate is None or not len(rows):
            continue
        part = columns.take(rows)
        its = np.array([bill.each(part, each) for each in passed[group.name]])
        costs[0, rows] = its[passed[group.name].index(group.stages)]
        costs[1:, rows] = its[np.minimum(np.arange(levels), len(its) - 1)]
        spared += len(rows) * (group.saving.spared or 0.0)
    share, low, high = savings(costs, theirs, 0)
    return Saving(
        unit=bill.unit,  # type: ignore[arg-type]
        cost=float(costs[0].mean()),
        largest=float(theirs.mean()),
        share=share,
        low=low,
        high=high,
        spared=spared / len(columns),
    )


def dearer(runner: Contender, saved: Saving, largest: str) -> str:
    """Why a policy that holds is not sold, as a clause."""
    return (
        f"of the policies that keep the promise the cheapest, {told(runner.policy)}, costs more than {largest} alone: "
        f"{saved.share:.1%} saved on the questions of the proof, 95 % interval {saved.low:.1%} to {saved.high:.1%}"
    )
