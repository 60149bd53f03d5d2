"""Which policies are certified: ordered by some questions, tested in that order on others, up to the first failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.errors import ConfigurationError
from confcascade.guarantee.bounds import (
    betting_bound,
    checked_losses,
    harm_bound,
    net_loss_bound,
    unconditional_bound,
    unconditional_p_value,
)
from confcascade.guarantee.promise import Promise

__all__ = ["Certification", "Examined", "Ordered", "TestName", "certify", "examine", "least_loss", "order_policies"]

TestName: TypeAlias = Literal["harms", "split", "unconditional", "betting"]

_STANDARD_ERRORS = 3  # above the mean, where a policy stands in the order; docs/design/guarantee.md


@dataclass(frozen=True)
class Ordered:
    """A policy's place in the order of testing.

    Attributes:
        index: Its row in the arrays that were given.
        test: The one that is expected to be the sharpest on the certification split.
    """

    index: int
    test: TestName


@dataclass(frozen=True)
class Examined:
    """One policy on the questions of the certification split.

    Attributes:
        index: Its row in the arrays that were given.
        test: "harms" (`harm_bound`), "split" (`net_loss_bound`), "unconditional" (`unconditional_bound`) or "betting"
            (`betting_bound`).
        n: Questions.
        harms: On how many it lost against the largest model (without labels: disagreed with it).
        benefits: On how many it gained.
        loss: The mean paired loss, in [-1, 1].
        bound: Upper bound on the loss at the promise's confidence, the equivalence's error included.
        cost: Mean cost of a question, in the unit of the costs given.
        certified: Whether the bound reaches the promise's target; None where it has none.
    """

    index: int
    test: TestName
    n: int
    harms: int
    benefits: int
    loss: float
    bound: float
    cost: float
    certified: bool | None


@dataclass(frozen=True)
class Certification:
    """The policies that were tested, in order, of which only the last can have failed; and the cheapest certified."""

    tested: tuple[Examined, ...]
    chosen: Examined | None


def order_policies(
    losses: ArrayLike, costs: ArrayLike, promise: Promise, *, n: int, most: int = 50
) -> tuple[Ordered, ...]:
    """Policies in the order in which `certify` shall test them, safest first, from questions that it will not see.

    Safe is what has a small pessimistic estimate of its loss: its mean and three standard errors. Of policies no safer
    than a cheaper one none is kept ("Pareto testing", Laufer-Goldshtein et al. 2022, arXiv 2210.07913).

    Args:
        losses: Paired losses on the ordering split, in [-1, 1], shape (policies, questions).
        costs: Mean costs of a question, shape (policies,).
        promise: Decides, with `n`, which test is sharpest for each policy.
        n: Questions of the certification split.
        most: The most policies to keep, at least 1.

    Returns:
        Policies, each cheaper than all before it.

    Raises:
        ConfigurationError: If losses or costs are not numbers in range, or do not fit together.
    """
    values, means = _checked(losses, costs)
    if n < 1 or most < 1:
        raise ConfigurationError(f"`n` and `most` must be at least 1. Got {n} and {most}.")
    questions = values.shape[1]
    # one harm more than was seen, so that a policy without any is not the surer for it
    squared = ((values**2).sum(axis=1) + 1) / questions
    pessimistic = values.mean(axis=1) + _STANDARD_ERRORS * np.sqrt(squared / questions)
    safest_first = np.lexsort((means, pessimistic))
    cheapest_before = np.concatenate([[np.inf], np.minimum.accumulate(means[safest_first])[:-1]])
    front = safest_first[means[safest_first] < cheapest_before]
    if len(front) > most:
        front = front[np.linspace(0, len(front) - 1, most).round().astype(int)]
    return tuple(Ordered(int(i), sharpest_test(values[i], promise, n=n)) for i in front)


def sharpest_test(losses: ArrayLike, promise: Promise, *, n: int) -> TestName:
    """The test with the smallest bound, if the certification split were like these questions.

    Chosen on the questions on which it is then used, it would not be valid.

    Args:
        losses: Paired losses of one policy on the ordering split, shape (questions,).
        promise: On agreement, harms alone count.
        n: Questions of the certification split.
    """
    values = checked_losses(losses)
    if promise.equivalence is not None:
        return "harms"
    if not binary(values):
        return "betting"
    scale = n / len(values)
    harms, benefits = round(scale * int((values > 0).sum())), round(scale * int((values < 0).sum()))
    harms = min(harms, n - (benefits := min(benefits, n)))
    harm, split = harm_bound(harms, n, promise.delta), net_loss_bound(harms, benefits, n, promise.delta)
    if unconditional_p_value(harms, benefits, n, min(harm, split), promise.delta) <= promise.delta:
        return "unconditional"  # its bound is below that drop
    return "harms" if harm < split else "split"


def examine(losses: ArrayLike, cost: float, promise: Promise, test: TestName, *, index: int = 0) -> Examined:
    """One policy, fixed before these questions were looked at, with an upper bound on its loss.

    Args:
        losses: Paired losses on the certification split, in [-1, 1], shape (questions,); without labels 1 where the
            kept answer disagrees with the largest model's, else 0.
        cost: Mean cost of a question.
        promise: Its confidence and target; the target may be None.
        test: Fixed before, too (`Ordered.test`).
        index: What `Examined.index` shall be.

    Raises:
        ConfigurationError: If losses are not numbers in range, or the test does not fit them.
    """
    values = checked_losses(losses)
    if values.ndim != 1:
        raise ConfigurationError(f"One policy's losses have one axis. Got the shape {values.shape}.")
    n, harms, benefits = len(values), int((values > 0).sum()), int((values < 0).sum())
    if test != "betting" and not binary(values):
        raise ConfigurationError(
            f"The test '{test}' is for answers that are right or wrong; graded ones need 'betting'."
        )
    if promise.equivalence is not None and (test != "harms" or benefits):
        raise ConfigurationError(
            "Agreement is promised by the test 'harms', on losses that are 1 for a kept answer that disagrees, else 0."
        )
    match test:
        case "harms":
            bound = harm_bound(harms, n, promise.delta)
        case "split":
            bound = net_loss_bound(harms, benefits, n, promise.delta)
        case "unconditional":
            bound = unconditional_bound(harms, benefits, n, promise.delta)
        case "betting":
            bound = betting_bound(values, promise.delta)
    bound = min(1.0, bound + promise.error)
    certified = None if promise.max_drop is None else bound <= promise.max_drop
    return Examined(index, test, n, harms, benefits, float(values.mean()), bound, float(cost), certified)


def certify(losses: ArrayLike, costs: ArrayLike, tests: Sequence[TestName], promise: Promise) -> Certification:
    """Test policies in the order given, each at the promise's whole level, up to the first failure.

    Policies, order and tests must have been fixed without these questions. Then, with probability at least the
    promise's confidence, *every* certified policy keeps the target, and so does the cheapest: a false certificate
    needs the first policy of the order that breaks the target to pass its test.

    Args:
        losses: Paired losses on the certification split, safest policy first, shape (policies, questions).
        costs: Mean costs of a question, shape (policies,).
        tests: One for each policy, as `order_policies` chose them.
        promise: What each must show.

    Raises:
        ConfigurationError: If the promise has no target, or the arrays do not fit together.

    Source: fixed-sequence testing, Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052, section 3.2.
    """
    if promise.max_drop is None:
        raise ConfigurationError("A search for a certified policy needs a target: give the promise a `max_drop`.")
    values, means = _checked(losses, costs)
    if len(tests) != len(values):
        raise ConfigurationError(f"Every policy needs its test: {len(values)} policies and {len(tests)} tests.")
    tested: list[Examined] = []
    for i, test in enumerate(tests):
        tested.append(examine(values[i], float(means[i]), promise, test, index=i))
        if not tested[-1].certified:
            break
    chosen = min((each for each in tested if each.certified), key=lambda each: each.cost, default=None)
    return Certification(tuple(tested), chosen)


def least_loss(losses: ArrayLike, costs: ArrayLike, max_cost: float) -> int | None:
    """Of the policies that cost at most so much, the one which loses least on the ordering split.

    `examine` then bounds its loss on the certification split. Its cost is an estimate, not a promise.

    Args:
        losses: As for `order_policies`.
        costs: Mean costs of a question, shape (policies,).
        max_cost: In the same unit.

    Returns:
        Its row, the cheaper one's where two lose the same; None if all cost more.

    Raises:
        ConfigurationError: If losses or costs are not numbers in range, or do not fit together.
    """
    values, means = _checked(losses, costs)
    ranked = np.lexsort((means, values.mean(axis=1)))
    return next((int(i) for i in ranked if means[i] <= max_cost), None)


def binary(values: NDArray[np.float64]) -> bool:
    """Whether all are harms, benefits or neither."""
    return bool(np.isin(values, (-1.0, 0.0, 1.0)).all())


def _checked(losses: ArrayLike, costs: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, means = checked_losses(losses), np.asarray(costs, dtype=np.float64)
    if values.ndim != 2 or means.shape != values.shape[:1] or not len(values):
        raise ConfigurationError(
            "Losses are of shape (policies, questions) and costs of shape (policies,), with at least one policy. "
            f"Got {values.shape} and {means.shape}."
        )
    if not np.isfinite(means).all():
        raise ConfigurationError("A policy's cost is not known: give the models' sizes or prices.")
    return values, means
