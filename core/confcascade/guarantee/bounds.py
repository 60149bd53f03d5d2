"""Upper confidence bounds on what a cascade loses against the largest model, on the same questions.

The paired loss of a question is D = grade(largest) - grade(cascade), in [-1, 1]. Where answers are right or wrong it is
1 (a *harm*: only the largest is right), -1 (a *benefit*: only the cascade is) or 0. All bounds hold at any number of
questions, which must be drawn independently from the traffic that they speak about; none is asymptotic.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confcascade.errors import ConfigurationError

__all__ = ["betting_bound", "harm_bound", "score_bound", "score_p_value", "score_statistic"]

_RATES = 16  # rates of benefits tried for the largest p-value, as many up to `_FEW` deviations as beyond, and ...
_FEW = 4.0
_PEAKS, _BETWEEN = 3, 8  # ... around each of the three largest six more; 600 in all make it larger by less than ...
_SEARCHED = 1.002  # ... this
_ASIDE = 2e-6  # added: half is the chance that a rate which is left out was the true one, half of the counts beyond ...
_SIGMAS = 5  # ... so many deviations, and nine
_TOLERANCE = 1e-5  # of a bound that is searched for, on its safe side: a thousandth of a point
_STAKE = 0.9  # the largest share of the capital put at risk on one question


def harm_bound(harms: int, n: int, delta: float) -> float:
    """Clopper-Pearson upper bound on the rate of harms, which is at least the net loss.

    With probability at least ``1 - delta`` the true rate is at most the returned value. Conservative, because the
    binomial is discrete.

    Args:
        harms: Questions that only the largest model gets right (without labels: kept answers that disagree with it).
        n: Questions, at least 1.
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        A rate in [0, 1].

    Raises:
        ConfigurationError: If counts or `delta` are out of range.

    Source: Clopper & Pearson 1934, Biometrika 26(4), through the beta quantile.

    >>> round(harm_bound(0, 299, 0.05), 4)
    0.01
    """
    _check(harms, 0, n, delta)
    return float(upper(harms, n, delta))


def score_statistic(harms: Any, benefits: Any, n: int, drop: float) -> NDArray[np.float64]:
    """How far the net loss seen lies from `drop`, in standard errors as they would be if it were just that.

    Rises with the harms and falls with the benefits.

    Args:
        harms: Counts, of any shape.
        benefits: Likewise.
        n: Questions.
        drop: A net loss in (0, 1).

    Source: Tango 1998, Statistics in Medicine 17(8), equations 3 to 6: the score test of paired proportions.
    """
    harms, benefits = np.asarray(harms, dtype=np.float64), np.asarray(benefits, dtype=np.float64)
    linear = (2 * n - harms + benefits) * drop - harms - benefits
    rate = (np.sqrt(linear**2 + 8 * n * benefits * drop * (1 - drop)) - linear) / (4 * n)  # of benefits, if it were
    return np.asarray((harms - benefits - n * drop) / np.sqrt(n * (2 * rate + drop * (1 - drop))))


@lru_cache(maxsize=1 << 17)  # neighbouring policies have the same counts
def score_p_value(harms: int, benefits: int, n: int, max_drop: float) -> float:
    """P-value of "the net loss is above `max_drop`": exact, at any number of questions.

    Outcomes are ordered by `score_statistic`. The p-value is the largest probability, over rates of harms and benefits
    that differ by `max_drop`, of an outcome that speaks against the hypothesis as much as the one seen. As the
    statistic rises with harms and falls with benefits, rates that differ by more give no larger one. Rates at which the
    two would surely be seen more often are left out; what that and the search may miss is added.

    Args:
        harms: Questions that only the largest model gets right.
        benefits: Questions that only the cascade gets right.
        n: Questions, at least ``harms + benefits``.
        max_drop: The hypothesis' boundary, in (0, 1).

    Returns:
        A probability; the hypothesis is rejected at level delta where it is at most delta.

    Raises:
        ConfigurationError: If counts or `max_drop` are out of range.

    Source: Hsueh, Liu & Chen 2001, Biometrics 57(2), "Unconditional exact tests for equivalence or noninferiority for
    paired binary endpoints": the exact test ordered by the score statistic; Berger & Boos 1994, JASA 89(427): the
    rates that are left out.

    >>> round(score_p_value(14, 9, 1430, 0.01), 3)  # "Confidence-Driven ...", 8B -> 70B
    0.038
    """
    from scipy.special import gammaln

    _check(harms, benefits, n, 0.5)
    if not 0 < max_drop < 1:
        raise ConfigurationError(f"`max_drop` must be between 0 and 1. Got {max_drop}.")
    discordant = float(upper(harms + benefits, n, _ASIDE / 2))
    most = max(0.0, (discordant - max_drop) / 2)  # the rate of benefits, at the greatest of discordant questions
    deviations = math.sqrt(n * most)
    gained = np.arange(min(n, int(n * most + _SIGMAS * deviations + 12)) + 1, dtype=np.float64)
    lost = most_harms(float(score_statistic(harms, benefits, n, max_drop)), n, gained, max_drop)
    few = min(deviations, _FEW)  # where counts are small, the chance rises and falls within a deviation
    roots = np.concatenate([np.linspace(0, few, _RATES), np.geomspace(max(few, 1e-9), max(deviations, 1e-9), _RATES)])
    ways = gammaln(n + 1) - gammaln(gained + 1) - gammaln(n - gained + 1)
    chances = [_chance(lost, ways, n, float(root**2 / n), max_drop) for root in roots]
    for peak in np.argsort(chances)[-_PEAKS:]:
        near = np.linspace(roots[max(peak - 1, 0)], roots[min(peak + 1, len(roots) - 1)], _BETWEEN)[1:-1]
        chances += [_chance(lost, ways, n, float(root**2 / n), max_drop) for root in near]
    return min(1.0, _SEARCHED * max(chances) + _ASIDE)


def most_harms(seen: float, n: int, benefits: NDArray[np.float64], drop: float) -> NDArray[np.float64]:
    """For each number of benefits, the most harms whose score statistic is at most `seen`; -1 if none is."""
    low, high = np.full(len(benefits), -1.0), n - benefits + 1
    while (wide := high - low > 1).any():
        middle = np.floor((low + high) / 2)
        within = score_statistic(middle, benefits, n, drop) <= seen + 1e-9
        low, high = np.where(wide & within, middle, low), np.where(wide & ~within, middle, high)
    return low


def _chance(most: NDArray[np.float64], ways: NDArray[np.float64], n: int, benefit: float, drop: float) -> float:
    """The probability of no more harms than `most`, at this rate of benefits.

    Args:
        most: By the number of benefits, from 0.
        ways: Likewise, the logarithm of how many ways there are to choose so many of `n`.
        n: Questions.
        benefit: The rate.
        drop: By how much that of harms is greater.
    """
    from scipy.special import bdtr, xlog1py, xlogy

    benefit = min(benefit, (1 - drop) / 2)
    harm = benefit + drop
    center, width = n * benefit, _SIGMAS * math.sqrt(n * benefit * (1 - benefit)) + 9
    b = np.arange(max(0, int(center - width)), min(len(most) - 1, int(center + width)) + 1)
    weight = np.exp(ways[b] + xlogy(b, benefit) + xlog1py(n - b, -benefit))
    share = 1.0 if benefit >= 1 - harm else harm / (1 - benefit)  # of harms, among what is no benefit
    below = np.where(most[b] < 0, 0.0, bdtr(np.clip(most[b], 0, n - b), n - b, share))
    return float(weight @ below)


@lru_cache(maxsize=1 << 16)
def score_bound(harms: int, benefits: int, n: int, delta: float) -> float:
    """Upper bound on harms minus benefits: the least drop, and all above it, that `score_p_value` rejects.

    Args:
        harms: As for `score_p_value`.
        benefits: Likewise.
        n: Likewise.
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        A net loss in [0, 1]; 0 also stands for all below it.

    Raises:
        ConfigurationError: If counts or `delta` are out of range.

    >>> round(score_bound(14, 9, 1430, 0.05), 4)
    0.0095
    """
    from scipy.optimize import brentq

    _check(harms, benefits, n, delta)
    if harms == n:
        return 1.0

    def excess(drop: float) -> float:
        return score_p_value(harms, benefits, n, drop) - delta

    low, high = max((harms - benefits) / n, 0.0) + _TOLERANCE, 1 - _TOLERANCE
    if excess(high) > 0:
        return 1.0
    if excess(low) <= 0:
        return low
    root: float = brentq(excess, low, high, xtol=_TOLERANCE / 4)
    return min(1.0, root + _TOLERANCE)


def betting_bound(losses: NDArray[np.float64], delta: float) -> float:
    """Upper bound on the mean of losses of any size in [-1, 1], for graded answers.

    A gambler who believes that the mean is below m stakes a share of the capital on every question in turn, more the
    smaller the losses have varied so far. If the mean is m or more, the capital is a supermartingale, and reaches
    1 / delta with probability at most `delta`. The bound is the least m at which it does.

    Args:
        losses: Of the questions, shape (n,). They are read in an order of a fixed seed, so that a recording sorted by
            subject is read like any other.
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        A mean loss in [0, 1]; 0 also stands for all below it.

    Raises:
        ConfigurationError: If a loss is missing or out of range, or `delta` is.

    Source: Waudby-Smith & Ramdas 2024, JRSS-B 86(1), "Estimating means of bounded random variables by betting",
    section 4.2: the predictable plug-in stake for a fixed number of observations, with one-sided truncation.
    """
    values = checked_losses(losses)
    _check(0, 0, len(values), delta)
    low, high = 0.0, 1.0
    if betting_wins(values, low, delta):
        return low
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (low, middle) if betting_wins(values, middle, delta) else (middle, high)
    return high


def betting_wins(losses: NDArray[np.float64], drop: float, delta: float) -> NDArray[np.bool_]:
    """Whether `betting_bound` is at most `drop`, which is in [0, 1], for samples of shape (..., n)."""
    n = losses.shape[-1]
    losses = losses[..., np.random.default_rng(0).permutation(n)]
    goal = math.log(1 / delta)
    seen = np.arange(1, n + 1)
    mean = np.cumsum(losses, axis=-1) / (seen + 1)
    spread = (0.25 + np.cumsum((losses - mean) ** 2, axis=-1)) / (seen + 1)
    past = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), spread[..., :-1]], axis=-1)
    stake = np.minimum(_STAKE, np.sqrt(2 * goal / (n * past)))
    won: NDArray[np.bool_] = np.cumsum(np.log1p(stake * (drop - losses)), axis=-1).max(axis=-1) >= goal
    return won


def upper(k: Any, n: Any, delta: float) -> Any:
    """Clopper-Pearson upper bounds, of arrays too."""
    from scipy.special import betaincinv

    k = np.asarray(k, dtype=np.float64)
    inside = np.minimum(k, n - 1)  # the beta distribution has no second parameter at k = n
    return np.where(k >= n, 1.0, betaincinv(inside + 1, n - inside, 1 - delta))


def lower(k: Any, n: Any, delta: float) -> Any:
    """Clopper-Pearson lower bounds, of arrays too."""
    return 1 - upper(n - np.asarray(k), n, delta)


def checked_losses(losses: Any) -> NDArray[np.float64]:
    """As an array of numbers in [-1, 1], at least one on the last axis."""
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim == 0 or not values.shape[-1]:
        raise ConfigurationError("There are no questions to certify on: `losses` is empty.")
    if wrong := int((~(np.abs(values) <= 1)).sum()):
        raise ConfigurationError(
            f"{wrong} of {values.size} paired losses are NaN or outside [-1, 1]: leave out questions that were not "
            "graded, and give grades between 0 and 1."
        )
    return values


def _check(harms: int, benefits: int, n: int, delta: float) -> None:
    if not (n >= 1 and harms >= 0 and benefits >= 0 and harms + benefits <= n):
        raise ConfigurationError(
            f"Harms and benefits must be counts, together at most n >= 1. Got {harms} and {benefits} of {n}."
        )
    if not 0 < delta < 1:
        raise ConfigurationError(f"`delta` must be between 0 and 1. Got {delta}.")
