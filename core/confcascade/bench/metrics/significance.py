"""Whether a difference between a cascade and the largest model, on the same questions, may be chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["discordant", "mcnemar", "mean_interval", "paired_difference", "saving"]

_RESAMPLED = 2_000
_BATCH = 4_000_000  # resampled questions at a time: 32 MB
_MANY, _BLOCKS = 10_000, 5_000  # of more questions than the first, sums of blocks of them are resampled


def mean_interval(grades: NDArray[np.generic]) -> tuple[float, float, float]:
    """Mean of grades in [0, 1] and its 95 % interval (Wilson's score interval).

    Exact in form for grades that are 0 or 1; of others it is wider than it need be, for none vary more.

    Source: Wilson 1927, Journal of the American Statistical Association 22(158).
    """
    from scipy.stats import norm

    n, mean, z = len(grades), float(grades.astype(float).mean()), float(norm.ppf(0.975))
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)))
    return mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def discordant(cascade: NDArray[np.bool_], largest: NDArray[np.bool_]) -> tuple[int, int]:
    """How many questions only the largest model gets right (harms), and how many only the cascade (benefits)."""
    return int((largest & ~cascade).sum()), int((cascade & ~largest).sum())


def mcnemar(cascade: NDArray[np.bool_], largest: NDArray[np.bool_]) -> float:
    """McNemar's exact two-sided p-value: are the questions that only one of the two gets right evenly divided?

    A large value is no evidence that the two are equally good.
    """
    from scipy.stats import binomtest

    lost, won = discordant(cascade, largest)
    return 1.0 if lost + won == 0 else float(binomtest(min(lost, won), lost + won).pvalue)


def paired_difference(cascade: NDArray[np.generic], largest: NDArray[np.generic]) -> tuple[float, float, float]:
    """Mean paired difference of grades and its 95 % interval, by a bootstrap over questions (10,000 draws, seed 0).

    Of a single question with a difference it is all that differences can be, -1 to 1: one tells nothing of others.
    """
    from scipy.stats import bootstrap

    difference = cascade.astype(float) - largest.astype(float)
    if not difference.any():
        return 0.0, 0.0, 0.0
    if len(difference) == 1:
        return float(difference[0]), -1.0, 1.0
    (blocks,) = _blocks(difference)
    interval = bootstrap(
        (blocks,),
        np.mean,
        n_resamples=10_000,
        batch=max(1, _BATCH // len(blocks)),
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(difference.mean()), float(interval.low), float(interval.high)


def savings(costs: NDArray[np.float64], largest: NDArray[np.float64], chosen: int) -> tuple[float, float, float]:
    """As `saving`, of one policy among several of which it was chosen, by these questions or others.

    The intervals of all the policies hold at once in 95 % of samples, so that of the chosen one does, however it was
    chosen: percentiles of the same resampled questions, moved apart until so many of the resampled savings lie within
    all of them. Of a single policy it is the interval of percentiles.

    Args:
        costs: What each policy spent on each question, shape (policies, questions).
        largest: What the largest model alone spends on each, shape (questions,).
        chosen: Row of the policy.
    """
    rng = np.random.default_rng(0)
    *ours, theirs = _blocks(*costs, largest)
    spent, n = np.stack([*ours, theirs]), len(theirs)
    drawn = np.empty((_RESAMPLED, len(spent)))
    for i in range(_RESAMPLED):
        drawn[i] = spent @ np.bincount(rng.integers(n, size=n), minlength=n)
    shares = 1 - drawn[:, :-1] / drawn[:, -1:]
    ranks = (shares.argsort(axis=0).argsort(axis=0) + 0.5) / _RESAMPLED
    edge = float(np.quantile(np.minimum(ranks, 1 - ranks).min(axis=1), 0.05))
    low, high = np.quantile(shares[:, chosen], [edge, 1 - edge])
    return float(1 - costs[chosen].sum() / largest.sum()), float(low), float(high)


def saving(cascade: NDArray[np.float64], largest: NDArray[np.float64]) -> tuple[float, float, float]:
    """Share of the largest model's cost that is saved, and its 95 % interval by a bootstrap over questions.

    Args:
        cascade: What it spent on each question.
        largest: What the largest model alone spends on each.
    """
    from scipy.stats import bootstrap

    def share(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(1 - a.sum(axis) / b.sum(axis))

    blocks = _blocks(cascade, largest)
    interval = bootstrap(
        blocks,
        share,
        n_resamples=_RESAMPLED,
        batch=max(1, _BATCH // len(blocks[0])),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(share(cascade, largest)), float(interval.low), float(interval.high)


def _blocks(*values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """What is resampled: each question; of very many, the mean of each of 5,000 blocks drawn by lot (seed 0).

    Questions are independent, so means of blocks vary as they do, and time does not grow with their number.
    """
    n = len(values[0])
    if n <= _MANY:
        return values
    order = np.random.default_rng(0).permutation(n)
    starts = np.linspace(0, n, _BLOCKS, endpoint=False).astype(np.intp)
    return tuple(np.add.reduceat(each[order], starts) * (_BLOCKS / n) for each in values)
