"""P(IK) of every labelled question, each by a probe that did not see it.

A probe takes questions with labels, and so does a threshold. Where there are not enough for both, each question is
scored by a probe that was trained on the others, and all scores can be used: for figures, and to choose thresholds
with. What is deployed is one probe of all questions, whose scores are not quite these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from confcascade.bench.questions import side
from confcascade.bench.training.probes import KINDS, Kind
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.signals.probe_fitting import fit_weights, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["folds_of", "out_of_fold"]


def folds_of(kept_with: Sequence[str], folds: int = 10, seed: int = 0) -> NDArray[np.intp]:
    """The fold of each question, from 0, shape (n,): by a hash of what must not be shared, so the same in every run.

    Raises:
        ConfigurationError: If there are fewer than three folds: to learn from, to stop by, and to score.
    """
    if folds < 3:
        raise ConfigurationError(f"Cross-fitting needs at least 3 folds. Got {folds}.")
    shares = {str(fold): 1 / folds for fold in range(folds)}
    return np.array([int(side(Example(text), shares, seed=seed)) for text in kept_with], np.intp)


def out_of_fold(
    hidden: NDArray[np.float32],
    right: NDArray[np.bool_],
    folds: NDArray[np.intp],
    *,
    kind: Kind = "linear",
    balanced: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """P(IK) of each question in [0, 1], by the probe that was trained without its fold, shape (n,).

    The next fold says when that probe's training stops, and it learns from all others.

    Args:
        hidden: Hidden states at one depth, shape (n, hidden_size).
        right: What the probe learns to predict, shape (n,): whether the model's answer was right.
        folds: Of each question, from 0, shape (n,).
        kind: "linear" or "mlp".
        balanced: As of `fit_weights`.
        seed: Of the networks.
        progress: Called with how many folds are done, and how many there are.

    Raises:
        ConfigurationError: If a fold, or what is learned from, has only right or only wrong answers.
    """
    count = int(folds.max()) + 1
    scores = np.full(len(right), np.nan)
    for fold in range(count):
        validation, test = np.flatnonzero(folds == (fold + 1) % count), np.flatnonzero(folds == fold)
        train = np.flatnonzero((folds != fold) & (folds != (fold + 1) % count))
        for rows in (train, validation):
            if not 0 < right[rows].sum() < len(rows):
                raise ConfigurationError(
                    f"Cross-fitting needs right and wrong answers in every fold. Of {len(rows)} questions without "
                    f"fold {fold} {int(right[rows].sum())} are right. Collect more questions, or take fewer folds."
                )
        weights, _ = fit_weights(
            hidden, right, train, validation, hidden_layers=KINDS[kind], balanced=balanced, seed=seed
        )
        scores[test] = predict(weights, hidden[test])
        if progress is not None:
            progress(fold + 1, count)
    return scores
