"""How good answers are, and how well a signal tells right ones from wrong ones.

Arrays have one entry per question. *Points* are hundredths of an accuracy; a relative drop is a share of the largest
model's accuracy. The paper prints both as "PD", in different tables: here each has its own name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "aurc",
    "auroc",
    "auroc_interval",
    "brier",
    "calibration_error",
    "drop_points",
    "drop_relative",
    "excess_aurc",
    "hallucination_rate",
    "macro_scores",
    "reliability",
    "risk_coverage",
]


# ---------------------------------------------------------------------- answers


def drop_points(accuracy: float, largest: float) -> float:
    """Accuracy gained (+) or lost (-) against the largest model, in points.

    >>> round(drop_points(0.8322, 0.8357), 2)
    -0.35
    """
    return 100 * (accuracy - largest)


def drop_relative(accuracy: float, largest: float) -> float:
    """Accuracy gained (+) or lost (-) against the largest model, in percent of its accuracy.

    >>> round(drop_relative(0.8322, 0.8357), 2)
    -0.42
    """
    return 100 * (accuracy - largest) / largest


def macro_scores(
    predicted: Sequence[str], reference: Sequence[str], labels: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Precision, recall and F1, each the mean over the labels.

    A label that is never predicted has precision 0, one that is never right recall 0.

    Args:
        predicted: Of each question.
        reference: Of each question.
        labels: To take the mean over; by default those of the references and of the predictions. Give those of the
            references where a prediction may be none at all, which is no label of its own.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        reference, predicted, average="macro", zero_division=0, labels=labels
    )
    return float(precision), float(recall), float(f1)


def hallucination_rate(grades: ArrayLike, refused: ArrayLike) -> float:
    """The share of the questions that are answered wrongly: neither right nor "I don't know".

    Args:
        grades: From 0 to 1; of a partly right answer the missing part counts.
        refused: Whether the answer says that it does not know.
    """
    wrong = (1 - np.asarray(grades, dtype=float)) * ~np.asarray(refused, dtype=bool)
    return float(wrong.mean())


# ---------------------------------------------------------------------- signals


def auroc(right: ArrayLike, score: ArrayLike) -> float | None:
    """Area under the ROC curve: the probability that a right answer's score is above a wrong one's, ties half.

    None where all answers are right, or all wrong.
    """
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(right, dtype=bool)
    return float(roc_auc_score(labels, score)) if 0 < labels.sum() < len(labels) else None


def auroc_interval(
    right: ArrayLike, score: ArrayLike, *, groups: Sequence[str] | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """A two-sided interval of `auroc`. None where all answers are right, or all wrong.

    Of independent answers, the values from which the one found is not further away than chance allows, with the
    variance that holds at them: never of width 0, not even around a perfect order. Of answers in groups that go
    together, the quantiles of 2,000 draws of whole groups (a bootstrap), where that is wider.

    Args:
        right: Whether each answer is right.
        score: Of each.
        groups: What answers that are not independent have in common (the fact behind them, say).
        confidence: With which the interval holds the true value, about.
        seed: Of the draws.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    part 2, method 5: the variance of Hanley & McNeil 1982 with the mean of both sizes.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    found = auroc(right, score)
    if found is None:
        return None
    labels = np.asarray(right, dtype=bool)
    m, n = int(labels.sum()), int((~labels).sum())
    z, half = float(norm.ppf((1 + confidence) / 2)), (m + n) / 2 - 1

    def beyond(value: float) -> float:
        spread = value * (1 - value) * (1 + half * (1 - value) / (2 - value) + half * value / (1 + value)) / (m * n)
        return abs(found - value) - z * math.sqrt(spread)

    # at 0 and 1 the spread is 0, so that a perfect order is a root itself: the one sought lies beside it
    low = 0.0 if found == 0 else float(brentq(beyond, 0.0, found - 1e-12))
    high = 1.0 if found == 1 else float(brentq(beyond, found + 1e-12, 1.0))
    if groups is None or len(set(groups)) == len(labels):
        return low, high
    drawn = _auroc_of_draws(labels, np.asarray(score, dtype=float), groups, seed)
    tail = (1 - confidence) / 2
    return min(low, float(np.quantile(drawn, tail))), max(high, float(np.quantile(drawn, 1 - tail)))


def _auroc_of_draws(
    labels: NDArray[np.bool_], score: NDArray[np.float64], groups: Sequence[str], seed: int, draws: int = 2_000
) -> NDArray[np.float64]:
    """`auroc` of draws of as many groups with repeats; draws of one class alone are left out."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    _, tie = np.unique(score, return_inverse=True)
    areas = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[group]
        right = np.bincount(tie, weights=weight * labels)
        wrong = np.bincount(tie, weights=weight * ~labels)
        pairs = right.sum() * wrong.sum()
        if pairs:
            areas.append(float((right * (np.cumsum(wrong) - wrong / 2)).sum() / pairs))
    return np.array(areas)


def aurc(right: ArrayLike, score: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean over k of the error rate among the k answers of the highest score.

    In [0, 1], less is better. Equal scores are taken in random order: the expected value.

    Source: Geifman, Uziel & El-Yaniv 2019, arXiv 1805.08206.

    >>> round(aurc([True, True, False], [0.9, 0.8, 0.1]), 3)  # (0 + 0 + 1/3) / 3
    0.111
    """
    return float(risk_coverage(right, score).mean())


def risk_coverage(right: ArrayLike, score: ArrayLike) -> NDArray[np.float64]:
    """The error rate among the k answers of the highest score, for k = 1 ... n: risk at coverage k / n.

    Equal scores are taken in random order: the expected value.

    >>> risk_coverage([True, False], [0.9, 0.1]).tolist()
    [0.0, 0.5]
    """
    y, s = _checked(right, score)
    order = np.argsort(-s, kind="stable")
    wrong = 1 - _shared_by_ties(y, s)[order]
    return np.asarray(np.cumsum(wrong) / np.arange(1, len(y) + 1))


def excess_aurc(right: ArrayLike, score: ArrayLike) -> float:
    """`aurc` above that of a perfect order, which is r + (1 - r) ln(1 - r) for an error rate r; 0 is best.

    The formula is the limit of many answers: with few, a perfect order lies a little above or below 0.
    """
    y, _ = _checked(right, score)
    r = 1 - float(y.mean())
    return aurc(right, score) - (1.0 if r == 1 else r + (1 - r) * math.log(1 - r))


def brier(right: ArrayLike, confidence: ArrayLike) -> float:
    """Mean squared difference between a confidence in [0, 1] and being right (1) or wrong (0); less is better."""
    y, p = _checked(right, confidence, probability=True)
    return float(((p - y) ** 2).mean())


def calibration_error(right: ArrayLike, confidence: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (ECE): |accuracy - mean confidence| of bins of equal mass, weighted by their size.

    Answers of equal confidence share their accuracy, so that the result does not depend on their order.

    Args:
        right: Whether each answer is right (or its grade).
        confidence: In [0, 1].
        bins: Their number, at least 1; sizes differ by one at most. With fewer answers than bins, one each.
    """
    n, accuracy, mean = reliability(right, confidence, bins).T
    return float((n * np.abs(accuracy - mean)).sum() / n.sum())


def reliability(right: ArrayLike, confidence: ArrayLike, bins: int = 15) -> NDArray[np.float64]:
    """What a reliability diagram shows: how many answers, their accuracy and their mean confidence, shape (bins, 3).

    Bins are of equal mass, as `calibration_error` has them, from the least confidence to the greatest.
    """
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1. Got {bins}.")
    y, p = _checked(right, confidence, probability=True)
    order = np.argsort(p, kind="stable")
    parts = zip(*(np.array_split(each[order], min(bins, len(p))) for each in (_shared_by_ties(y, p), p)), strict=True)
    return np.array([(len(a), a.mean(), b.mean()) for a, b in parts])


def _checked(
    right: ArrayLike, score: ArrayLike, probability: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, s = np.asarray(right, dtype=float), np.asarray(score, dtype=float)
    if y.ndim != 1 or y.shape != s.shape or not len(y):
        raise ValueError(f"Right answers and scores must be two lists of the same length. Got {y.shape} and {s.shape}.")
    if not np.isfinite(s).all() or not np.isfinite(y).all():
        raise ValueError("Scores must be finite, and every answer graded. Leave out the others, and say how many.")
    if probability and not ((s >= 0) & (s <= 1)).all():
        raise ValueError(f"A confidence lies in [0, 1]. Got values from {s.min():g} to {s.max():g}.")
    return y, s


def _shared_by_ties(y: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """`y` with the mean of its group in the place of each value, groups being of equal `s`."""
    _, group, size = np.unique(s, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = (np.bincount(group, weights=y) / size)[group]
    return means
