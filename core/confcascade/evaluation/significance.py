"""Whether a difference between a cascade and the largest model, on the same questions, may be chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["discordant", "mcnemar", "mean_interval", "paired_difference", "saving"]

_BATCH = 4_000_000  # resampled questions at a time: 32 MB


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
    """Mean paired difference of grades and its 95 % interval, by a bootstrap over questions (10,000 draws, seed 0)."""
    from scipy.stats import bootstrap

    difference = cascade.astype(float) - largest.astype(float)
    if not difference.any():
        return 0.0, 0.0, 0.0
    interval = bootstrap(
        (difference,),
        np.mean,
        n_resamples=10_000,
        batch=max(1, _BATCH // len(difference)),
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(difference.mean()), float(interval.low), float(interval.high)


def saving(cascade: NDArray[np.float64], largest: NDArray[np.float64]) -> tuple[float, float, float]:
    """Share of the largest model's cost that is saved, and its 95 % interval by a bootstrap over questions.

    Args:
        cascade: What it spent on each question.
        largest: What the largest model alone spends on each.
    """
    from scipy.stats import bootstrap

    def share(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(1 - a.sum(axis) / b.sum(axis))

    interval = bootstrap(
        (cascade, largest),
        share,
        n_resamples=2_000,
        batch=max(1, _BATCH // len(cascade)),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(share(cascade, largest)), float(interval.low), float(interval.high)
