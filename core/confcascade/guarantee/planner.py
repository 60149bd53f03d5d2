"""How many examples a promise takes, and what a number of examples may promise: the tests themselves, turned around.

All counts are of the certification split alone, and speak about one policy, chosen before. Rates are what the policy
truly has: an estimate of them makes an estimate of the count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.errors import ConfigurationError
from confcascade.guarantee.bounds import betting_wins, checked_losses, most_harms, score_p_value, upper
from confcascade.guarantee.certification import TestName, binary
from confcascade.guarantee.promise import Promise

__all__ = ["attainable_drop", "examples_needed", "examples_needed_like", "fewest_examples", "power_of"]

_MOST = 1_000_000  # examples; beyond them "never" is the useful answer
_STEP = 1.03  # between the sample sizes tried: counts are whole, so that the power rises in teeth of a saw
_COUNTS = 12  # of benefits at which the score test is inverted; between them its border is all but straight
_DRAWS = 400  # samples from which the power on graded losses is estimated


def fewest_examples(promise: Promise) -> int:
    """The least number of examples with which the promise can be certified by a policy that neither harms nor gains.

    (1 - max_drop)^n <= delta: both tests of counts, on 0 harms. Gains can make fewer do.

    >>> fewest_examples(Promise(max_drop=0.01))
    299
    """
    _check_target(promise)
    return math.ceil(math.log(promise.delta) / math.log1p(-promise.tested_drop) - 1e-9)


def power_of(test: TestName, n: int, promise: Promise, *, discordance: float, net_loss: float) -> float:
    """The probability with which a policy of these rates is certified on n examples by the test.

    Exact for "harms"; for "score" but for a count or so where there are many benefits.

    Args:
        test: "harms" or "score".
        n: Questions of the certification split.
        promise: Its target and confidence.
        discordance: The share of questions on which the policy loses or gains against the largest model.
        net_loss: Harms less benefits, as a share of the questions.

    Raises:
        ConfigurationError: If the rates are out of range.
    """
    from scipy.stats import binom

    _check_rates(discordance, net_loss)
    harm, benefit = (discordance + net_loss) / 2, (discordance - net_loss) / 2
    benefits = np.arange(int(max(0, binom.ppf(1e-4, n, benefit))), int(binom.isf(1e-4, n, benefit)) + 1)
    most = _most_harms(test, n, benefits, promise.tested_drop, promise.delta)
    harms_given = binom.cdf(
        most, n - benefits, min(1.0, harm / (1 - benefit)) if benefit < 1 else 0.0
    )  # 0 where most is -1
    return float((binom.pmf(benefits, n, benefit) * harms_given).sum())


def examples_needed(promise: Promise, *, discordance: float, net_loss: float = 0.0, power: float = 0.8) -> int | None:
    """How many examples it takes to certify a policy of these rates.

    Args:
        promise: Its target and confidence. On agreement, both rates are the share of disagreement.
        discordance: The share of questions on which the policy loses or gains against the largest model.
        net_loss: Harms less benefits, as a share of the questions.
        power: The probability with which that many shall suffice, in (0, 1).

    Returns:
        A number of which, and of all greater ones tried, the power is at least that asked for; within a few percent
        of the least such. None where a million would not do: the net loss is too close to the target, or above it.

    Raises:
        ConfigurationError: If rates or `power` are out of range.

    >>> examples_needed(Promise(max_drop=0.02), discordance=0.016, net_loss=0.0035)
    518
    """
    _check_target(promise)
    _check_rates(discordance, net_loss)
    if net_loss >= promise.tested_drop:
        return None

    def powerful(n: int) -> bool:
        return power_of(_test(promise), n, promise, discordance=discordance, net_loss=net_loss) >= power

    return _least(powerful, fewest_examples(promise), power)


def examples_needed_like(losses: ArrayLike, promise: Promise, *, power: float = 0.8) -> int | None:
    """How many examples it takes to certify a policy whose losses are like these.

    Graded losses are drawn again from those given (400 samples of a fixed seed) and put to the betting test.

    Args:
        losses: Paired losses of one policy on questions such as the ordering split, shape (questions,).
        promise: Its target and confidence.
        power: As for `examples_needed`.

    Returns:
        As `examples_needed`.

    Raises:
        ConfigurationError: If losses are not numbers in [-1, 1], or `power` is out of range.
    """
    values = checked_losses(losses)
    if binary(values):
        return examples_needed(
            promise, discordance=float(np.abs(values).mean()), net_loss=float(values.mean()), power=power
        )
    _check_target(promise)
    if values.mean() >= promise.tested_drop:
        return None

    def powerful(n: int) -> bool:
        rng, won, block = np.random.default_rng(0), 0, max(1, min(_DRAWS, 4_000_000 // n))
        for start in range(0, _DRAWS, block):
            drawn = rng.choice(values, size=(min(block, _DRAWS - start), n))
            won += int(betting_wins(drawn, promise.tested_drop, promise.delta).sum())
        return won >= power * _DRAWS

    return _least(powerful, fewest_examples(promise), power)


def attainable_drop(
    n: int, promise: Promise, *, discordance: float, net_loss: float = 0.0, power: float = 0.8
) -> float:
    """The smallest target that a policy of these rates reaches on n examples, with the power asked for.

    Args:
        n: Questions of the certification split.
        promise: Its confidence and equivalence; its target is not used.
        discordance: As for `examples_needed`.
        net_loss: Likewise.
        power: Likewise.

    Returns:
        A share in (0, 1], to a hundredth of itself.

    Raises:
        ConfigurationError: If rates, `n` or `power` are out of range.
    """
    _check_rates(discordance, net_loss)
    if n < 1 or not 0 < power < 1:
        raise ConfigurationError(f"`n` must be at least 1 and `power` between 0 and 1. Got {n} and {power}.")
    low, high = max(net_loss, 0.0) + promise.error, 1.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        asked = replace(promise, max_drop=middle)
        reached = power_of(_test(promise), n, asked, discordance=discordance, net_loss=net_loss) >= power
        low, high = (low, middle) if reached else (middle, high)
    return high


def _test(promise: Promise) -> TestName:
    return "score" if promise.equivalence is None else "harms"


def _most_harms(test: TestName, n: int, benefits: NDArray[np.intp], drop: float, delta: float) -> NDArray[np.intp]:
    """For each number of benefits, ascending, the most harms with which the test passes; -1 if it cannot."""
    from scipy.stats import norm

    if test == "harms":
        harms = np.arange(min(n, int(n * drop) + 1) + 1)
        most = int((upper(harms, n, delta) <= drop).sum()) - 1  # the bound rises with the harms
        return np.full(len(benefits), most, dtype=np.intp)
    at = np.unique(np.linspace(benefits[0], benefits[-1], min(len(benefits), _COUNTS)).round().astype(int))
    guesses = most_harms(float(norm.ppf(delta)), n, at.astype(np.float64), drop).astype(int).tolist()
    border: list[int] = []
    for gained, guess in zip(at.tolist(), guesses, strict=True):

        def passes(harms: int, gained: int = gained) -> bool:
            if harms < 0 or harms + gained > n:
                return harms < 0
            return harms - gained < n * drop and score_p_value(harms, gained, n, drop) <= delta

        border.append(_last(passes, guess))
    return np.asarray(np.interp(benefits, at, border).round(), dtype=np.intp)


def _last(passes: Callable[[int], bool], guess: int) -> int:
    """The last integer, from -1, that passes, where none does after it; near the guess it is found quickly."""
    step, up = 1, passes(guess)
    inside = guess
    while passes(inside + step if up else inside - step) == up:
        inside, step = (inside + step if up else inside - step), 2 * step
    low, high = (inside, inside + step) if up else (inside - step, inside)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return max(low, -1)


def _least(powerful: Callable[[int], bool], start: int, power: float) -> int | None:
    """The least of a geometric row of sample sizes from which on all are powerful."""
    if not 0 < power < 1:
        raise ConfigurationError(f"`power` must be between 0 and 1. Got {power}.")
    low = high = start
    while not powerful(high):
        low, high = high, math.ceil(1.5 * high)
        if high > _MOST:
            return None
    while high > low * _STEP:
        middle = math.ceil(math.sqrt(low * high))
        if middle == high:
            break
        low, high = (low, middle) if powerful(middle) else (middle, high)
    answer, n = high, high
    for _ in range(10):  # a third further: where the power falls below again, the next tooth counts
        n = math.ceil(n * _STEP)
        if not powerful(n):
            answer = math.ceil(n * _STEP)
    return answer


def _check_target(promise: Promise) -> None:
    if promise.max_drop is None:
        raise ConfigurationError("How many examples it takes depends on the target: give the promise a `max_drop`.")


def _check_rates(discordance: float, net_loss: float) -> None:
    if not 0 <= abs(net_loss) <= discordance <= 1:
        raise ConfigurationError(
            "A net loss is at most the discordance rate, and that at most 1. "
            f"Got net_loss={net_loss} and discordance={discordance}."
        )
