"""A threshold for each label of a signal: one path of them, from the safest on, learnt from some questions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.columns import Columns, Labels
from confcascade.bench.replay.stage_columns import corrects
from confcascade.calibration.fitting import drawn_logistic, log_odds
from confcascade.errors import ConfigurationError
from confcascade.graders.grade import is_right
from confcascade.signals import OneThreshold

__all__ = ["label_cuts"]

_SLOPE = 0.05  # at least, so that a higher score never means less
_LEAST = 30  # questions from which anything is learnt
_MOST = 12  # labels; answers out of more have too few questions each


def label_cuts(
    columns: Columns,
    model: str,
    signal: str,
    right: NDArray[np.bool_],
    rows: NDArray[np.intp],
    *,
    count: int = 49,
    agreement: bool = False,
) -> tuple[dict[str, OneThreshold], ...]:
    """Thresholds for each label, such as ``PolicyStage(model, {signal: each})`` takes, safest first.

    How likely an answer is right is estimated from its score for each label apart, by a logistic regression that is
    drawn to that of all labels; each mapping keeps the answers that are likely enough by it. So one number orders them,
    and whatever one mapping keeps, the next one keeps, too: they can be tested in this order, on other questions, as a
    fixed sequence.

    Of a signal that corrects (`TokenProbability(corrects=True)`), what is estimated is how likely each label is right,
    whether or not the model gave it, and answers are corrected where another label is likelier right.

    Args:
        columns: The recording; the signal must tell which label each answer gives.
        model: Whose.
        signal: Its name, of scores in [0, 1].
        right: Whether the model's answers are right (or the largest model's), shape (questions,).
        rows: The questions to learn from. They prove nothing afterwards.
        count: How many mappings at most; they keep evenly spaced shares of the questions `rows`.
        agreement: Whether `right` says that answers are the largest model's.

    Returns:
        Mappings, none twice; none at all if fewer than 30 of the questions have a score, or if labels are not a few.

    Raises:
        ConfigurationError: If scores do not lie in [0, 1], or with `agreement` for a signal that corrects: a recording
            says how right a corrected answer is, not whether it is the largest model's.
    """
    column = columns.signal(model, signal)
    corrected = corrects(columns, model, signal)
    if corrected and agreement:
        raise ConfigurationError(
            f"Signal '{signal}' of model '{model}' corrects answers, and the recording does not tell whether a "
            "corrected one is the largest model's. Fit with labels, or record the signal without `corrects`."
        )
    known = np.zeros(len(columns), dtype=bool)
    known[rows] = ~np.isnan(column.values[rows])
    labels = column.labels
    if labels is None or known.sum() < _LEAST or not 2 <= len(labels.names) <= _MOST or (labels.index[known] < 0).any():
        return ()
    told = column.values[known]
    if told.min() < 0 or told.max() > 1:
        raise ConfigurationError(f"Thresholds by label are of probabilities; '{signal}' of '{model}' is none.")
    scores, correct = _by_label(column.values, labels, np.asarray(right, dtype=bool))
    odds = log_odds(scores)
    learnt = known[:, None] & ~np.isnan(scores) & ~np.isnan(correct)
    pooled = drawn_logistic(odds[learnt], correct[learnt] > 0, (0.0, 1.0))
    lines = []
    for at in range(len(labels.names)):
        own = learnt[:, at]
        line = drawn_logistic(odds[own, at], correct[own, at] > 0, pooled, weight=2.0)
        lines.append((line[0], max(_SLOPE, line[1])))
    intercepts, slopes = np.array(lines).T
    likely = np.where(np.isnan(scores), -np.inf, intercepts + slopes * odds)[known].max(axis=1)  # as log-odds
    levels = np.unique(np.quantile(likely, np.linspace(0.98, 0.02, count)))[::-1]
    found: list[dict[str, OneThreshold]] = []
    for level in levels:
        cuts = 1 / (1 + np.exp(-(level - intercepts) / slopes))
        each: dict[str, OneThreshold] = {
            name: _cut(float(cut), scores[known, at])
            for at, (name, cut) in enumerate(zip(labels.names, cuts, strict=True))
        }
        if each not in found:
            found.append(each)
    return tuple(found)


def _by_label(
    values: NDArray[np.float64], labels: Labels, right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The score of each label and whether it is right, shape (questions, labels), NaN where it is not the answer's.

    Of a signal that corrects, those of the labels that an answer can be given, too.
    """
    here = np.arange(len(labels.names)) == labels.index[:, None]
    scores = np.where(here, values[:, None], np.nan)
    correct = np.where(here, right[:, None], np.nan)
    if labels.probabilities is not None and labels.grades is not None:
        other = ~here & ~np.isnan(labels.probabilities) & ~np.isnan(labels.grades)
        scores[other] = labels.probabilities[other]
        correct[other] = is_right(labels.grades[other])
    return scores, correct


def _cut(cut: float, scores: NDArray[np.float64]) -> OneThreshold:
    """The least score from `cut` on, which is as good; "never" if there is none."""
    reaching = scores[scores >= cut]
    return float(reaching.min()) if len(reaching) else "never"
