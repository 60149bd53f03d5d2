"""What fitting takes: something to learn from, and Platt's logistic regression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from confcascade.calibration.base import CLIP, Input
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["checked", "drawn_logistic", "log_odds", "logistic"]

LEAST_ROWS = 30  # below which nothing is fitted


def logistic(x: NDArray[np.float64], y: NDArray[np.float64], *, intercept: bool) -> tuple[float, float]:
    """Slope and intercept of the maximum likelihood with Platt's targets.

    A target t between 0 and 1 is a row twice: right with weight t, and wrong with 1 - t. The scores are standardised
    for the optimiser's sake alone.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    positives, negatives = float(y.sum()), float(len(y) - y.sum())
    target = np.where(y > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    mean, scale = (float(x.mean()), float(x.std())) if intercept else (0.0, float(np.sqrt((x**2).mean())))
    z = ((x - mean) / scale)[:, None]
    fitted = LogisticRegression(C=np.inf, fit_intercept=intercept, tol=1e-8, max_iter=1000).fit(
        np.concatenate([z, z]),
        np.repeat([1, 0], len(y)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(fitted.coef_[0, 0]) / scale
    return slope, float(np.ravel(fitted.intercept_)[0]) - slope * mean


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of probabilities; of 0 and 1 as of what is a little from them, as calibrators take them."""
    import numpy as np

    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    return np.asarray(np.log(clipped / (1 - clipped)))


def drawn_logistic(
    x: NDArray[np.float64], y: NDArray[np.bool_], towards: tuple[float, float], weight: float = 0.5
) -> tuple[float, float]:
    """Intercept and slope of a logistic regression of `y` on `x`, drawn towards others: the likeliest under a prior.

    There is one whatever the rows, of one class, too, or none at all.

    Args:
        x: Shape (rows,).
        y: Likewise.
        towards: Intercept and slope that stand where there are no rows.
        weight: Of half the squared distance from them, beside the log-likelihood of all rows.
    """
    import numpy as np

    design, prior = np.column_stack([np.ones_like(x), x]), np.array(towards)
    line = prior.copy()
    for _ in range(50):
        q = 1 / (1 + np.exp(-np.clip(design @ line, -30, 30)))
        slope = design.T @ (y - q) - weight * (line - prior)
        step = np.linalg.solve((design * (q * (1 - q))[:, None]).T @ design + weight * np.eye(2), slope)
        line = line + step / max(1.0, np.abs(step).max() / 2)  # no further than 2 at once, or it may overshoot
        if np.abs(step).max() < 1e-4:
            break
    return float(line[0]), float(line[1])


def checked(
    scores: ArrayLike, right: ArrayLike, read: Input, *, missing: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transformed scores (NaN where missing) and labels, if something can be learnt from them."""
    import numpy as np

    s, y = np.asarray(scores, dtype=float), np.asarray(right, dtype=float)
    if s.ndim != 1 or s.shape != y.shape:
        raise ConfigurationError(
            f"There must be one label to each score of '{read.name}', in one dimension. Got {y.shape} and {s.shape}."
        )
    if not np.isin(y, (0, 1)).all():
        raise ConfigurationError(
            "A calibrator learns from answers that are right (1) or wrong (0). Leave out those that nobody graded, "
            "and say which are right (`is_right(grades)`, of confcascade.graders.grade)."
        )
    if len(y) < LEAST_ROWS:
        raise ConfigurationError(f"A calibrator needs at least {LEAST_ROWS} answers. Got {len(y)}.")
    if y.min() == y.max():
        raise ConfigurationError(
            f"All {len(y)} answers are {'right' if y[0] else 'wrong'}: a calibrator learns from both kinds."
        )
    gone = np.isnan(s)
    if gone.any() and not missing:
        raise ConfigurationError(
            f"{int(gone.sum())} of the {len(s)} scores of '{read.name}' are missing (NaN). Leave these answers out, or "
            "use a Fusion, which learns what a missing score means."
        )
    known = s[~gone]
    if not len(known) or known.min() == known.max():
        what = f"has one value throughout ({known[0]:g})" if len(known) else "has no score at all"
        raise ConfigurationError(f"Signal '{read.name}' {what}: it cannot tell right from wrong. Leave it out.")
    x = np.array([math.nan if math.isnan(value) else read.transformed(value) for value in s.tolist()])
    if not np.isfinite(x[~gone]).all():
        raise ConfigurationError(f"A score of '{read.name}' is infinite.")
    if np.nanmin(x) == np.nanmax(x):
        raise ConfigurationError(
            f"The scores of '{read.name}' differ only beyond {CLIP:g} of 0 or 1, where they are taken as equal. "
            "Leave it out."
        )
    return x, y
