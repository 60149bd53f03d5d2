"""How true stated confidences are: what a model says of its answers, beside whether they are right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from confcascade.bench.metrics.health import SignalHealth, signal_health
from confcascade.bench.metrics.ranking import auroc, auroc_interval, brier, calibration_error, reliability
from confcascade.bench.recording.row import Row
from confcascade.graders.grade import is_right

__all__ = ["ConfidenceFigures", "figures_of"]


@dataclass(frozen=True)
class ConfidenceFigures:
    """A confidence on graded answers.

    An answer without a score escalates in a cascade, and so it stands below all others in the AUROC. ECE and Brier
    score are those of the answers that have one; None if none has.

    Attributes:
        n: Graded answers.
        scored: Those with a score.
        accuracy: Share of right answers.
        mean: Mean score.
        ece: Expected calibration error, 15 bins of equal mass.
        brier: Mean squared error.
        auroc: None where all answers are right, or all wrong.
        low: Lower end of its 95 % interval.
        high: Upper end.
        health: Whether `fit` would route by it, decided as in every report.
        bins: Number, accuracy and mean score of each of 15 bins of equal mass.
    """

    n: int
    scored: int
    accuracy: float
    mean: float | None
    ece: float | None
    brier: float | None
    auroc: float | None
    low: float | None
    high: float | None
    health: SignalHealth
    bins: tuple[tuple[int, float, float], ...]

    @property
    def earned(self) -> float:
        """What the proper reward would pay for a mean answer: accuracy, 1 for a statement, less the Brier score.

        By this the weights are chosen: from -1 (no answer right, none with a statement) to 2.
        """
        share = self.scored / self.n
        return self.accuracy + share - (share * (self.brier or 0.0) + (1 - share))


def figures_of(rows: Iterable[Row], signal: str) -> ConfidenceFigures | None:
    """Of the graded answers of a recording by one model; None if there is none.

    Args:
        rows: Of one model.
        signal: By which name the score is recorded.
    """
    graded = [row for row in rows if row.error is None and row.grade is not None]
    if not graded:
        return None
    right = np.array([is_right(row.grade or 0.0) for row in graded])
    found = [row.scores[signal].value if signal in row.scores else None for row in graded]
    score = np.array([np.nan if value is None else value for value in found])
    known = ~np.isnan(score)
    below = np.where(known, score, -1.0)
    interval = auroc_interval(right, below)
    any_ = bool(known.any())
    return ConfidenceFigures(
        n=len(graded),
        scored=int(known.sum()),
        accuracy=float(right.mean()),
        mean=float(score[known].mean()) if any_ else None,
        ece=calibration_error(right[known], score[known]) if any_ else None,
        brier=brier(right[known], score[known]) if any_ else None,
        auroc=auroc(right, below),
        low=None if interval is None else interval[0],
        high=None if interval is None else interval[1],
        health=signal_health(score, right),
        bins=tuple((int(n), float(a), float(m)) for n, a, m in reliability(right[known], score[known])) if any_ else (),
    )
