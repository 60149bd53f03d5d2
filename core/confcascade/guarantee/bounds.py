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

__all__ = ["betting_bound", "harm_bound", "net_loss_bound", "unconditional_bound", "unconditional_p_value"]

HARMS_SHARE = 0.9  # of delta in the split bound; on the counts of the paper 0.5 to 0.95 give bounds within 3 %
_GRID = 16  # discordance rates tried for the largest p-value, which was at an end of the row wherever it was looked at
_TAIL = 1e-9  # more than the chance of the numbers of discordant questions that are left out, beyond six sigma
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


def net_loss_bound(harms: int, benefits: int, n: int, delta: float) -> float:
    """Upper bound on harms minus benefits: one Clopper-Pearson bound on each, at 0.9 and 0.1 of `delta`.

    By the union bound it fails with probability at most ``delta``.

    Args:
        harms: Questions that only the largest model gets right.
        benefits: Questions that only the cascade gets right.
        n: Questions, at least ``harms + benefits``.
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        A net loss in [-1, 1].

    Raises:
        ConfigurationError: If counts or `delta` are out of range.

    >>> round(net_loss_bound(14, 9, 1430, 0.05), 4)  # "Confidence-Driven ...", 8B -> 70B
    0.0132
    """
    _check(harms, benefits, n, delta)
    return float(upper(harms, n, HARMS_SHARE * delta) - lower(benefits, n, (1 - HARMS_SHARE) * delta))


@lru_cache(maxsize=1 << 16)  # neighbouring policies have the same counts
def unconditional_p_value(harms: int, benefits: int, n: int, max_drop: float, delta: float) -> float:
    """P-value of "the net loss is above `max_drop`", for a test at level `delta`.

    The number of discordant questions (harms and benefits) is binomial with an unknown rate q, and given it the harms
    are binomial with probability (q + max_drop) / 2q. The p-value is the largest probability, over every q that a
    Clopper-Pearson bound at level ``delta / 10`` leaves, of a net loss as small as the one seen, plus ``delta / 10``.
    It falls as `max_drop` grows.

    Args:
        harms: As for `net_loss_bound`.
        benefits: Likewise.
        n: Questions.
        max_drop: The hypothesis' boundary, in [-1, 1].
        delta: The level at which the test will be made; it decides how much is set aside for q.

    Returns:
        A probability; the hypothesis is rejected where it is at most `delta`.

    Raises:
        ConfigurationError: If counts, `delta` or `max_drop` are out of range.

    Source: Berger & Boos 1994, JASA 89(427); Suissa & Shuster 1991, Biometrics 47(2), for paired proportions.
    """
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    _check(harms, benefits, n, delta)
    if not -1 <= max_drop <= 1:
        raise ConfigurationError(f"`max_drop` must be between -1 and 1. Got {max_drop}.")
    aside = delta / 10
    least, most = max(max_drop, 1e-12), float(upper(harms + benefits, n, aside))  # E[D] is at most q
    if most < least:
        return aside
    q = np.linspace(least, most, _GRID)[:, None]
    fewest, greatest = n * least - 6 * math.sqrt(n * least), n * most + 6 * math.sqrt(n * most)
    k = np.arange(max(0, int(fewest) - 12), min(n, int(greatest) + 12) + 1)
    chances = np.exp(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + xlogy(k, q) + xlog1py(n - k, -q))
    harmed = np.floor((k + harms - benefits) / 2)  # of k discordant questions, at most so many harms
    below = np.where(harmed < 0, 0.0, bdtr(np.clip(harmed, 0, k), k, np.clip((q + max_drop) / (2 * q), 0, 1)))
    return min(1.0, aside + _TAIL + float((chances * below).sum(axis=1).max()))


@lru_cache(maxsize=1 << 16)
def unconditional_bound(harms: int, benefits: int, n: int, delta: float) -> float:
    """Upper bound on harms minus benefits: the smallest drop that `unconditional_p_value` certifies at level `delta`.

    Sharper than `net_loss_bound` where benefits balance harms, blunter where there are next to none.

    Args:
        harms: As for `net_loss_bound`.
        benefits: Likewise.
        n: Questions.
        delta: Probability with which the bound may fail, in (0, 1).

    Returns:
        A net loss in [-1, 1].

    Raises:
        ConfigurationError: If counts or `delta` are out of range.

    >>> round(unconditional_bound(14, 9, 1430, 0.05), 4)
    0.0111
    """
    from scipy.optimize import brentq

    _check(harms, benefits, n, delta)
    if harms == n:
        return 1.0

    def excess(drop: float) -> float:
        return unconditional_p_value(harms, benefits, n, drop, delta) - delta

    mean = (harms - benefits) / n
    if excess(mean) <= 0:  # cannot be certified by a sample of this very mean, but for rounding at -1
        return mean
    # the split bound is nearly always above it, and close
    split = net_loss_bound(harms, benefits, n, delta)
    high = split if excess(split) <= 0 else 1.0
    root: float = brentq(excess, mean, high, xtol=_TOLERANCE / 4)
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
