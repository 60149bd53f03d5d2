"""Losses and costs of candidate policies; which are put to the proof, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.candidates import Structure
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import outcomes
from confcascade.guarantee import (
    Examined,
    Ordered,
    Promise,
    TestName,
    examine,
    least_loss,
    order_policies,
    sharpest_test,
)

__all__ = ["Tried", "in_order", "losses", "most_accurate", "prove", "shortlist"]


@dataclass(frozen=True)
class Tried:
    """A policy that may be put to the proof.

    Attributes:
        rule: What keeps an answer, in words.
        policy: It.
        cost: Mean cost on the questions that order policies.
        losses: On these questions.
        test: Which is expected to be the sharpest.
    """

    rule: str
    policy: tuple[PolicyStage, ...]
    cost: float
    losses: NDArray[np.float64]
    test: TestName


def losses(
    columns: Columns,
    policies: Sequence[Sequence[PolicyStage]],
    largest: str,
    same: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """Paired losses against the largest model, shape (policies, questions).

    Args:
        columns: The questions.
        policies: Any.
        largest: The model that promises are held against.
        same: Without labels, whether answers are the largest model's, shape (questions, models); a kept one that is
            not is a loss of 1, and so is no answer where the largest model gives one. With labels None: the loss is the
            difference of grades.
    """
    played = outcomes(columns, policies)
    if same is None:
        alone = outcomes(columns, [[PolicyStage(largest)]]).grade[0]
        return np.asarray(alone - played.grade)
    lost, answerable = np.zeros(played.stage.shape), columns.usable[:, columns.index(largest)]
    for i, policy in enumerate(policies):
        place = np.array([columns.index(stage.model) for stage in policy])
        model = place[np.maximum(played.stage[i], 0)]
        lost[i] = np.where(played.stage[i] >= 0, ~same[np.arange(len(same)), model], answerable)
    return lost


def shortlist(
    columns: Columns,
    structure: Structure,
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    promise: Promise,
    n: int,
) -> list[Tried]:
    """Of one structure the policies that save anything, and that no safer one undercuts."""
    dearest = bill.means(columns, [[PolicyStage(largest)]])[0]
    chosen, costs, lost = _played(columns, structure, largest, same, bill, lambda costs: costs < dearest)
    ordered = order_policies(lost, costs, promise, n=n, most=len(chosen)) if chosen else ()
    return [
        Tried(structure.rule, chosen[each.index], float(costs[each.index]), lost[each.index], each.test)
        for each in ordered
    ]


def most_accurate(
    columns: Columns,
    structure: Structure,
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    promise: Promise,
    n: int,
    most: float,
) -> list[Tried]:
    """Of one structure the policy that loses least at a cost of at most `most`."""
    chosen, costs, lost = _played(columns, structure, largest, same, bill, lambda costs: costs <= most)
    best = least_loss(lost, costs, most) if chosen else None
    if best is None:
        return []
    test = sharpest_test(lost[best], promise, n=n)
    return [Tried(structure.rule, chosen[best], float(costs[best]), lost[best], test)]


def _played(
    columns: Columns,
    structure: Structure,
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    affordable: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
) -> tuple[list[tuple[PolicyStage, ...]], NDArray[np.float64], NDArray[np.float64]]:
    """The affordable policies of a structure, their mean costs and their losses."""
    costs = bill.means(columns, structure.policies)
    places = np.flatnonzero(affordable(costs))
    chosen = [structure.policies[i] for i in places]
    lost = losses(columns, chosen, largest, same) if chosen else np.empty((0, len(columns)))
    return chosen, costs[places], lost


def in_order(tried: Sequence[Tried], promise: Promise, n: int) -> list[Tried]:
    """The safest first, over all structures, each cheaper than all before it."""
    if not tried:
        return []
    path: tuple[Ordered, ...] = order_policies(
        np.array([each.losses for each in tried]), np.array([each.cost for each in tried]), promise, n=n
    )
    return [tried[each.index] for each in path]


def prove(
    columns: Columns,
    path: Sequence[Tried],
    largest: str,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    tests: Sequence[Mapping[str, TestName]],
) -> list[list[Examined]]:
    """Put policies to the proof in their order, up to the first that fails for any group.

    Args:
        columns: Questions that chose nothing.
        path: The safest first.
        largest: The model that promises are held against.
        same: As for `losses`.
        promises: By group; "" for all questions.
        tests: For each policy, by group, fixed beforehand.

    Returns:
        For each policy that was tested, what was shown for each group, in the order of the promises; only the last
        can have failed.
    """
    lost = losses(columns, [each.policy for each in path], largest, same)
    members = {name: np.ones(len(columns), bool) if name == "" else columns.groups == name for name in promises}
    shown: list[list[Examined]] = []
    for i, each in enumerate(path):
        shown.append(
            [
                examine(lost[i, members[name]], each.cost, promise, tests[i][name], index=i)
                for name, promise in promises.items()
            ]
        )
        if any(one.certified is False for one in shown[-1]):
            break
    return shown
