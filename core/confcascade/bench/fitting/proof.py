"""Losses and costs of candidate policies; which are put to the proof, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.candidates import Structure
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import outcomes
from confcascade.guarantee import Examined, Promise, TestName, examine, least_loss, passes, reach

__all__ = ["Path", "expected", "losses", "most_accurate", "prove", "shown"]

_BLOCK = 64  # policies that are replayed at a time, on their way to the first that fails


@dataclass(frozen=True)
class Path:
    """Policies that may be put to the proof, in their order.

    Attributes:
        rule: What keeps an answer, in words.
        policies: Them, the one that keeps least first.
        losses: On the questions that chose the path, shape (policies, questions); of a path that nothing chose, of no
            question.
        saved: What it is expected to save, as a share of the largest model's cost.
        hoped: The same of ten times as many questions, if their rates are just those seen. It tells paths apart of
            which nothing is expected.
    """

    rule: str
    policies: tuple[tuple[PolicyStage, ...], ...]
    losses: NDArray[np.float64]
    saved: float
    hoped: float = 0.0


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
    if same is None:
        alone = outcomes(columns, [[PolicyStage(largest)]]).grade[0]
        return np.asarray(alone - outcomes(columns, policies).grade)
    model, answerable = _answering(columns, policies), columns.usable[:, columns.index(largest)]
    return np.where(model >= 0, ~same[np.arange(len(same)), model], answerable).astype(np.float64)


def expected(
    columns: Columns,
    structure: Structure,
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    promises: Mapping[str, Promise],
    n: Mapping[str, int],
) -> Path:
    """A structure as a path, and what it would save if the questions of the proof were like these.

    Args:
        columns: Questions that prove nothing.
        structure: Whose policies they are.
        largest: The model that promises are held against.
        same: As for `losses`.
        bill: Of costs.
        promises: By group, each of which goes as far as it can; "" for all questions.
        n: Questions of the proof, by group.
    """
    lost = losses(columns, structure.policies, largest, same)
    costs = bill.means(columns, [*structure.policies, [PolicyStage(largest)]])
    # groups differ only in their numbers: few of the questions that choose are of any one of them
    sizes = {n[name]: (each, sum(n[other] == n[name] for other in promises)) for name, each in promises.items()}

    def saving(times: int, doubt: float) -> float:
        saved = 0.0
        for size, (promise, groups) in sizes.items():
            far = reach(lost, promise, n=max(times * size, 1), doubt=doubt)
            saved += groups * size * float(1 - costs[:far].min(initial=costs[-1]) / costs[-1])
        return saved / max(sum(n.values()), 1)

    return Path(structure.rule, structure.policies, lost, saving(1, 0.5), saving(10, 0.0))


def most_accurate(
    columns: Columns,
    structure: Structure,
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    most: float,
) -> Path | None:
    """Of one structure the policy that loses least at a cost of at most `most`, as a path of one; None if none does."""
    costs = bill.means(columns, structure.policies)
    lost = losses(columns, structure.policies, largest, same)
    best = least_loss(lost, costs, most)
    if best is None:
        return None
    alone = bill.means(columns, [[PolicyStage(largest)]])[0]
    return Path(structure.rule, (structure.policies[best],), lost[[best]], float(1 - costs[best] / alone))


def prove(
    columns: Columns,
    policies: Sequence[tuple[PolicyStage, ...]],
    largest: str,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    test: TestName,
) -> tuple[list[tuple[PolicyStage, ...]], bool]:
    """Put policies to the proof in their order, up to the first that fails for any group.

    A policy that keeps on these questions just what the one before it keeps is passed over: what is shown of that one
    is shown of it. Where a promise has no target, nothing can fail.

    Args:
        columns: Questions whose labels chose nothing.
        policies: Those of a path.
        largest: The model that promises are held against.
        same: As for `losses`.
        promises: By group; "" for all questions.
        test: By which.

    Returns:
        The policies that were tested, in their order, and whether the last of them failed.
    """
    members = _members(columns, promises)
    tested: list[tuple[PolicyStage, ...]] = []
    before: NDArray[np.intp] | None = None
    for start in range(0, len(policies), _BLOCK):
        block = policies[start : start + _BLOCK]
        lost, answering = losses(columns, block, largest, same), _answering(columns, block)
        for policy, own, model in zip(block, lost, answering, strict=True):
            if before is not None and (model == before).all():
                continue
            before = model
            tested.append(policy)
            for name, promise in promises.items():
                if promise.max_drop is not None and not passes(own[members[name]], promise, test):
                    return tested, True
    return tested, False


def shown(
    columns: Columns,
    policies: Sequence[tuple[PolicyStage, ...]],
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    promises: Mapping[str, Promise],
    test: TestName,
) -> list[tuple[Examined, ...]]:
    """What the proof shows of some policies that were tested: for each, by group, in the order of the promises."""
    members, lost, costs = (
        _members(columns, promises),
        losses(columns, policies, largest, same),
        bill.means(columns, policies),
    )
    return [
        tuple(examine(own[members[name]], float(cost), promise, test, index=i) for name, promise in promises.items())
        for i, (own, cost) in enumerate(zip(lost, costs, strict=True))
    ]


def _answering(columns: Columns, policies: Sequence[Sequence[PolicyStage]]) -> NDArray[np.intp]:
    """Whose answer stands, shape (policies, questions): the model's place in the columns, or -1."""
    stage = outcomes(columns, policies).stage
    found = np.full(stage.shape, -1, dtype=np.intp)
    for i, policy in enumerate(policies):
        place = np.array([columns.index(each.model) for each in policy])
        found[i] = np.where(stage[i] >= 0, place[np.maximum(stage[i], 0)], -1)
    return found


def _members(columns: Columns, groups: Iterable[str]) -> dict[str, NDArray[np.bool_]]:
    """By group, which questions belong to it; all to ""."""
    return {name: np.ones(len(columns), bool) if name == "" else columns.groups == name for name in groups}
