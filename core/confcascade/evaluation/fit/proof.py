"""Losses and costs of candidate policies; which are put to the proof, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.fit.candidates import Structure
from confcascade.evaluation.replay import PolicyStage, outcomes, replay, sweep
from confcascade.evaluation.stages import UNITS
from confcascade.guarantee import (
    Examined,
    Ordered,
    Promise,
    Test,
    examine,
    least_loss,
    order_policies,
    sharpest_test,
)

__all__ = ["Bill", "Tried", "in_order", "losses", "most_accurate", "prove", "shortlist"]

_PREFERRED = ("flops", "usd", "tokens", "seconds")


@dataclass(frozen=True)
class Bill:
    """What things cost.

    Attributes:
        unit: In which costs count, one of "flops", "usd", "tokens" and "seconds".
        architectures: By model.
        prices: By model.
    """

    unit: str
    architectures: Mapping[str, Architecture]
    prices: Mapping[str, Prices]

    @classmethod
    def of(
        cls,
        columns: Columns,
        models: Sequence[str],
        architectures: Mapping[str, Architecture] | None = None,
        prices: Mapping[str, Prices] | None = None,
        unit: str | None = None,
    ) -> Bill:
        """In the unit that was asked for, else in the first of flops, usd, tokens and seconds that is known of all.

        Raises:
            ConfigurationError: If it is not known.
        """
        sizes, told = dict(architectures or {}), dict(prices or {})
        alone = sweep(columns, [[PolicyStage(model)] for model in models], architectures=sizes, prices=told)
        known = [
            each
            for each in _PREFERRED
            if np.isfinite(getattr(alone.cost, each)).all() and getattr(alone.cost, each)[-1] > 0
        ]
        if unit is not None and unit not in UNITS:
            raise ConfigurationError(f"The unit of costs must be one of {', '.join(_PREFERRED)}. Got '{unit}'.")
        if not known or (unit is not None and unit not in known):
            raise ConfigurationError(
                f"Costs cannot count in {unit or 'any unit'}: that is not known of every model. Known of all: "
                f"{', '.join(known) or 'nothing'}. Give sizes (`architectures=...`) or "
                "prices (`prices=...`) of every model."
            )
        return cls(unit or known[0], sizes, told)

    def means(self, columns: Columns, policies: Sequence[Sequence[PolicyStage]]) -> NDArray[np.float64]:
        """Mean cost of a question under each policy, every model that ran."""
        swept = sweep(columns, policies, architectures=self.architectures, prices=self.prices)
        return cast("NDArray[np.float64]", getattr(swept.cost, self.unit))

    def each(self, columns: Columns, policy: Sequence[PolicyStage]) -> NDArray[np.float64]:
        """Cost of every question under one policy."""
        played = replay(columns, policy, architectures=self.architectures, prices=self.prices)
        return cast("NDArray[np.float64]", getattr(played.cost, self.unit))


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
    test: Test


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
    bill: Bill,
    promise: Promise,
    n: int,
) -> list[Tried]:
    """Of one structure the policies that save anything, and that no safer one undercuts."""
    dearest = bill.means(columns, [[PolicyStage(largest)]])[0]
    costs = bill.means(columns, structure.policies)
    cheaper = np.flatnonzero(costs < dearest)
    if not len(cheaper):
        return []
    chosen = [structure.policies[i] for i in cheaper]
    lost = losses(columns, chosen, largest, same)
    ordered = order_policies(lost, costs[cheaper], promise, n=n, most=len(chosen))
    return [
        Tried(structure.rule, chosen[each.index], float(costs[cheaper][each.index]), lost[each.index], each.test)
        for each in ordered
    ]


def most_accurate(
    columns: Columns,
    structure: Structure,
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Bill,
    promise: Promise,
    n: int,
    most: float,
) -> list[Tried]:
    """Of one structure the policy that loses least at a cost of at most `most`."""
    costs = bill.means(columns, structure.policies)
    affordable = np.flatnonzero(costs <= most)
    if not len(affordable):
        return []
    chosen = [structure.policies[i] for i in affordable]
    lost = losses(columns, chosen, largest, same)
    best = least_loss(lost, costs[affordable], most)
    if best is None:
        return []
    test = sharpest_test(lost[best], promise, n=n)
    return [Tried(structure.rule, chosen[best], float(costs[affordable][best]), lost[best], test)]


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
    tests: Sequence[Mapping[str, Test]],
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
