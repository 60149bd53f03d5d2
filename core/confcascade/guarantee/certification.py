"""Which policies are certified: tested in an order that was fixed beforehand, up to the first that fails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.errors import ConfigurationError
from confcascade.guarantee.bounds import (
    betting_bound,
    betting_wins,
    checked_losses,
    harm_bound,
    score_bound,
    score_p_value,
    score_statistic,
    upper,
)
from confcascade.guarantee.promise import Promise

__all__ = [
    "Certification",
    "Examined",
    "TestName",
    "certify",
    "examine",
    "least_loss",
    "passes",
    "reach",
    "suited_test",
]

TestName: TypeAlias = Literal["harms", "score", "betting"]


@dataclass(frozen=True)
class Examined:
    """One policy on the questions of the certification split.

    Attributes:
        index: Its row in the arrays that were given.
        test: "harms" (`harm_bound`), "score" (`score_p_value`) or "betting" (`betting_bound`).
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


def reach(losses: ArrayLike, promise: Promise, *, n: int, doubt: float = 0.5) -> int:
    """How many policies of a path would be certified on n other questions, if those were like these.

    By this, paths are compared on questions that prove nothing.

    Args:
        losses: Paired losses, safest policy first, in [-1, 1], shape (policies, questions).
        promise: What each must show.
        n: Questions of the certification split.
        doubt: Harms that are counted beside those seen, so that of few questions none looks sure; not of grades.

    Raises:
        ConfigurationError: If losses are not numbers in range, or `n` is not at least 1.
    """
    values = checked_losses(losses)
    if n < 1:
        raise ConfigurationError(f"`n` must be at least 1. Got {n}.")
    test = suited_test(values, promise)
    if test == "betting":
        drawn = np.random.default_rng(0).integers(values.shape[1], size=n)
        passing = np.array([passes(own[drawn], promise, test) for own in values])
    else:
        scale = n / values.shape[1]
        benefits = np.minimum(((values < 0).sum(axis=1) * scale).round(), n)
        harms = np.minimum((((values > 0).sum(axis=1) + doubt) * scale).round(), n - benefits)
        if test == "harms":
            passing = upper(harms, n, promise.delta) <= promise.tested_drop
        else:  # by its normal approximation, which misses the exact border by a count or so
            passing = score_statistic(harms, benefits, n, promise.tested_drop) <= NormalDist().inv_cdf(promise.delta)
    return len(values) if passing.all() else int(np.argmin(passing))


def passes(losses: NDArray[np.float64], promise: Promise, test: TestName) -> bool:
    """Whether one policy keeps the target by the test, as `examine` says with its bound.

    Args:
        losses: As for `examine`.
        promise: With a target.
        test: As for `examine`.
    """
    if test == "betting":
        return bool(betting_wins(losses, promise.tested_drop, promise.delta))
    return _passes(test, int((losses > 0).sum()), int((losses < 0).sum()), len(losses), promise)


def _passes(test: TestName, harms: int, benefits: int, n: int, promise: Promise) -> bool:
    if test == "harms":
        return harm_bound(harms, n, promise.delta) <= promise.tested_drop
    return (
        harms - benefits < n * promise.tested_drop
        and score_p_value(harms, benefits, n, promise.tested_drop) <= promise.delta
    )


def suited_test(losses: ArrayLike, promise: Promise) -> TestName:
    """The test that fits: "harms" of agreement, "score" of right and wrong answers, "betting" of grades between.

    Args:
        losses: Paired losses, of any shape.
        promise: On agreement, harms alone count.
    """
    values = checked_losses(losses)
    if promise.equivalence is not None:
        return "harms"
    return "score" if binary(values) else "betting"


def examine(losses: ArrayLike, cost: float, promise: Promise, test: TestName, *, index: int = 0) -> Examined:
    """One policy, fixed before these questions were looked at, with an upper bound on its loss.

    Args:
        losses: Paired losses on the certification split, in [-1, 1], shape (questions,); without labels 1 where the
            kept answer disagrees with the largest model's, else 0.
        cost: Mean cost of a question.
        promise: Its confidence and target; the target may be None.
        test: Fixed before, too (`suited_test`).
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
        case "score":
            bound = score_bound(harms, benefits, n, promise.delta)
        case "betting":
            bound = betting_bound(values, promise.delta)
    bound = min(1.0, bound + promise.error)
    certified = None
    if promise.max_drop is not None:
        certified = bound <= promise.max_drop
        if test == "score":  # its bound is searched for, to a thousandth of a point
            certified = _passes(test, harms, benefits, n, promise)
            bound = min(bound, promise.max_drop) if certified else max(bound, math.nextafter(promise.max_drop, 1))
    return Examined(index, test, n, harms, benefits, float(values.mean()), bound, float(cost), certified)


def certify(losses: ArrayLike, costs: ArrayLike, promise: Promise, test: TestName) -> Certification:
    """Test policies in the order given, each at the promise's whole level, up to the first failure.

    Policies, their order and the test must have been fixed without the labels of these questions. Then, with
    probability at least the promise's confidence, *every* certified policy keeps the target, and so does the cheapest:
    a false certificate needs the first policy of the order that breaks the target to pass its test.

    Args:
        losses: Paired losses on the certification split, safest policy first, shape (policies, questions).
        costs: Mean costs of a question, shape (policies,).
        promise: What each must show.
        test: By which, as `suited_test` says.

    Raises:
        ConfigurationError: If the promise has no target, or the arrays do not fit together.

    Source: fixed-sequence testing, Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052, section 3.2.
    """
    if promise.max_drop is None:
        raise ConfigurationError("A search for a certified policy needs a target: give the promise a `max_drop`.")
    values, means = _checked(losses, costs)
    tested: list[Examined] = []
    for i, own in enumerate(values):
        tested.append(examine(own, float(means[i]), promise, test, index=i))
        if not tested[-1].certified:
            break
    chosen = min((each for each in tested if each.certified), key=lambda each: each.cost, default=None)
    return Certification(tuple(tested), chosen)


def least_loss(losses: ArrayLike, costs: ArrayLike, max_cost: float) -> int | None:
    """Of the policies that cost at most so much, the one which loses least on the ordering split.

    `examine` then bounds its loss on the certification split. Its cost is an estimate, not a promise.

    Args:
        losses: Paired losses on the questions that choose, in [-1, 1], shape (policies, questions).
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
