"""Whether a signal can route at all: enough different scores, on enough answers, higher for right ones than for wrong.

A signal that fails here gives no threshold worth having, whatever is calibrated on top of it: an untuned model that
says "95 %" of every answer, say, or a log-probability that is 1 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.errors import ConfigurationError
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.examples import is_right
from confcascade.evaluation.metrics import auroc

__all__ = ["SignalHealth", "auroc_lower_bound", "check_signals", "signal_health"]

# a signal routes if it has ...
LEAST_DISTINCT = 20  # different scores, or
LEAST_ENTROPY = 1.0  # more bits than this in 20 bins of equal width
MOST_ON_MODE = 0.6  # no more than this share on one score
LEAST_AUROC = 0.55  # more than this, with 95 % confidence
LEAST_COVERAGE = 0.95  # a score for this share of the answers
LEAST_OF_EACH = 5  # right answers, and wrong ones, below which nothing can be said


@dataclass(frozen=True)
class SignalHealth:
    """How a signal did on graded answers, and what speaks against routing by it.

    Attributes:
        answers: Graded and usable ones.
        coverage: The share of them that it scored.
        distinct: Different scores.
        mode: The most frequent score; None where there is no score, as the next.
        mode_share: Its share of the scores.
        entropy: Of the histogram of scores in 20 bins of equal width from the least to the greatest, in bits.
        auroc: None where the answers are all right or all wrong, as the next.
        auroc_low: Its lower 95 % bound (`auroc_lower_bound`).
        reasons: Why it cannot route; empty if it can.
    """

    answers: int
    coverage: float
    distinct: int
    mode: float | None
    mode_share: float | None
    entropy: float
    auroc: float | None
    auroc_low: float | None
    reasons: tuple[str, ...]

    @property
    def can_route(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        """One line: "can route (AUROC 0.84, at least 0.83)" or "this signal cannot route: ..."."""
        if self.reasons:
            return f"this signal cannot route: {'; '.join(self.reasons)}"
        return f"can route (AUROC {self.auroc:.2f}, at least {self.auroc_low:.2f})"


def signal_health(scores: ArrayLike, right: ArrayLike) -> SignalHealth:
    """Look at a signal's scores of graded answers.

    Args:
        scores: Shape (n,), NaN where missing.
        right: Whether each answer is right, shape (n,).

    Raises:
        ConfigurationError: If there is no answer, or not one score to each.
    """
    s, y = np.asarray(scores, dtype=float), np.asarray(right, dtype=bool)
    if s.ndim != 1 or s.shape != y.shape or not len(s):
        raise ConfigurationError(f"There must be one score to each of some answers. Got {s.shape} and {y.shape}.")
    scored = ~np.isnan(s)
    known, labels = s[scored], y[scored]
    coverage = float(scored.mean())
    if not len(known):
        return SignalHealth(len(s), 0.0, 0, None, None, 0.0, None, None, ("no answer has a score",))
    values, counts = np.unique(known, return_counts=True)
    most = int(counts.argmax())
    share = float(counts[most] / len(known))
    entropy = _entropy(known)
    area, low = auroc(labels, known), auroc_lower_bound(labels, known)
    reasons = []
    if len(values) == 1:
        reasons.append(f"every score is {values[0]:g}")
    else:
        if len(values) < LEAST_DISTINCT and entropy <= LEAST_ENTROPY:
            reasons.append(
                f"it has {len(values)} different scores, of {entropy:.2f} bits (more than {LEAST_ENTROPY:g})"
            )
        if share > MOST_ON_MODE:
            reasons.append(f"{share:.0%} of its scores are {values[most]:g} (at most {MOST_ON_MODE:.0%})")
        if min(labels.sum(), (~labels).sum()) < LEAST_OF_EACH:
            reasons.append(
                f"{int(labels.sum())} right and {int((~labels).sum())} wrong answers have scores: too few to tell "
                f"(at least {LEAST_OF_EACH} of each)"
            )
        elif area is not None and low is not None and low <= LEAST_AUROC:
            reasons.append(
                f"AUROC {area:.2f}, which may be as low as {low:.2f} (must be above {LEAST_AUROC:g})"
                + (": wrong answers score higher than right ones" if area < 0.5 else "")
            )
    if coverage < LEAST_COVERAGE:
        reasons.append(f"{coverage:.0%} of the answers have a score (at least {LEAST_COVERAGE:.0%})")
    return SignalHealth(len(s), coverage, len(values), float(values[most]), share, entropy, area, low, tuple(reasons))


def check_signals(columns: Columns) -> dict[tuple[str, str], SignalHealth]:
    """The health of every recorded signal, by model and name, on its model's usable and graded answers.

    Args:
        columns: The recording.

    Raises:
        ConfigurationError: If a model has no graded answer.
    """
    found = {}
    for model, name in columns.signals:
        j = columns.index(model)
        judged = columns.usable[:, j] & ~np.isnan(columns.grades[:, j])
        if not judged.any():
            raise ConfigurationError(f"Model '{model}' has no graded answer, by which its signals could be judged.")
        right = is_right(columns.grades[judged, j])
        found[model, name] = signal_health(columns.signals[model, name].values[judged], right)
    return found


def auroc_lower_bound(right: ArrayLike, score: ArrayLike, confidence: float = 0.95) -> float | None:
    """A one-sided lower confidence bound of the area under the ROC curve; None if all answers are right, or all wrong.

    DeLong's variance on the log-odds of the area, where a normal approximation does better near 1. Of a perfect order,
    whose variance is 0, it is (1 - confidence)^(1/m) for m of the rarer class: m pairs that share no answer are
    independent, and all of them were in order.

    Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3); the fast form of Sun & Xu 2014.

    >>> round(auroc_lower_bound([0] * 20 + [1] * 20, range(40)), 3)
    0.861
    """
    from scipy.stats import norm, rankdata

    y, s = np.asarray(right, dtype=bool), np.asarray(score, dtype=float)
    positive, negative = s[y], s[~y]
    m, n = len(positive), len(negative)
    if not m or not n:
        return None
    ranks = rankdata(np.concatenate([positive, negative]))
    above: NDArray[np.float64] = (ranks[:m] - rankdata(positive)) / n  # of each right one, the wrong ones below it
    below: NDArray[np.float64] = 1 - (ranks[m:] - rankdata(negative)) / m
    area = float(above.mean())
    if area in (0.0, 1.0):
        return area and (1 - confidence) ** (1 / min(m, n))
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (above, below) if len(part) > 1)
    width = float(norm.ppf(confidence)) * math.sqrt(variance) / (area * (1 - area))
    odds = math.log(area / (1 - area)) - width
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def _entropy(scores: NDArray[np.float64]) -> float:
    """Bits of the histogram in 20 bins."""
    counts, _ = np.histogram(scores, bins=20)
    shares = counts[counts > 0] / len(scores)
    return float(-(shares * np.log2(shares)).sum())
