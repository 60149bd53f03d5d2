"""A whole table answered with few calls of an oracle: label by label from the surest row down, with a promise.

The rows are at hand before the first is answered, and a small model has told how probable each answer label is for each
of them; what the oracle, the largest model, would answer is known only where it is asked. A row is *kept* where its
answer is a label of the small model's, and it is *asked* otherwise; asked rows cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.calibration.fitting import drawn_logistic, log_odds
from confcascade.errors import ConfigurationError

__all__ = ["TableAnswers", "answer_table", "check_rate", "planned_errors"]

Ask: TypeAlias = Callable[[NDArray[np.intp]], ArrayLike]

_START = 50  # rows asked at random, so that the first estimates are not the small model's own
_STEPS = 400  # of a walk, at most so many rows of the table each
_REFIT = 8  # checks at least, after which estimates are made anew
_GROWTH = 0.05  # or so much more than there were
_KEPT_TIMES_RATE = 0.1  # kept share times the error rate at the cut, for the planned number of errors


@dataclass(frozen=True)
class TableAnswers:
    """A table's answers, and what is promised of them.

    Attributes:
        answers: The label of every row, as its index; shape (rows,).
        asked: Whether the oracle was asked, shape (rows,).
        checks: Rows that would have been kept and were asked to see whether they may be.
        errors: Of the checks, those on which the small model's label was not the oracle's.
        rate: Share of such rows that is checked, by chance, in (0, 1).
        cuts: For each label the least probability with which a row was kept under it; NaN where none was.
        allowed: With the confidence asked for, at most so many rows of the table disagree with the oracle.
    """

    answers: NDArray[np.intp]
    asked: NDArray[np.bool_]
    checks: int
    errors: int
    rate: float
    cuts: NDArray[np.float64]
    allowed: int

    @property
    def share(self) -> float:
        """Share of the rows that the oracle was asked, all of them counted."""
        return float(self.asked.mean())


def planned_errors(rows: int, max_disagreement: float) -> int:
    """Errors among the checks at which a walk shall stop, less one: few make it end by chance, many cost checks.

    Of E errors that end it, E·k/L of the table's k kept rows are checks, L being the errors allowed; and about
    1.64·L/√E of those allowed are not used, which at an error rate r of the rows at the cut is 1.64·L/(r·√E) rows that
    are asked in vain. The sum is least at E^(3/2) = 0.82·L²/(k·r). Here k·r is taken to be 0.1 of the rows; the sum is
    flat about its least value.
    """
    allowed_squared = (max_disagreement * rows) ** 2
    return round(float((0.82 * allowed_squared / (_KEPT_TIMES_RATE * rows)) ** (2 / 3)))


def check_rate(errors: int, allowed: int, confidence: float) -> float:
    """The share of rows to check so that a walk which ends with one error more than `errors` keeps its promise.

    Each row that would be kept is checked with this probability, whatever it is and whatever came before. So of those
    on which the small model is wrong, in the order of the walk, each is found with it, independently: how many are
    found before ``allowed + 1`` are missed is negative binomial, and the rate is the one at which they are at most
    `errors` with probability ``1 - confidence``.

    Args:
        errors: At least 0.
        allowed: Rows that may disagree, at least 0.
        confidence: In (0, 1).

    Returns:
        A share in (0, 1).

    Raises:
        ConfigurationError: If an argument is out of range.

    >>> round(check_rate(0, 0, 0.95), 2)  # one miss is too many: nearly every row must be checked
    0.95
    """
    from scipy.optimize import brentq
    from scipy.special import betainc

    if errors < 0 or allowed < 0 or not 0 < confidence < 1:
        raise ConfigurationError(
            "`errors` and `allowed` must be at least 0, and `confidence` between 0 and 1. "
            f"Got {errors}, {allowed} and {confidence}."
        )
    # P(at most `errors` found before allowed + 1 missed) = I(1 - rate; allowed + 1, errors + 1)
    return float(brentq(lambda rate: betainc(allowed + 1, errors + 1, 1 - rate) - (1 - confidence), 0.0, 1.0))


def answer_table(
    probabilities: ArrayLike,
    ask: Ask,
    *,
    max_disagreement: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> TableAnswers:
    """Answer every row of a table as an oracle would, but for a few, and ask it as seldom as that takes.

    From the surest row down: the next row is the one that is likeliest right if it is given some label, by an estimate
    from all that was asked so far. It is kept, or by chance checked (`check_rate`); the walk ends with the check that
    finds one error more than `planned_errors`, and all rows that it has not come to are asked. With two labels this is
    two cuts of one probability, "no" up to the lower and "yes" from the higher on. They may both lie on one side of a
    half: then the answer of a biased small model is *corrected*.

    With probability at least `confidence`, over the chance that decides which rows are checked, at most
    ``floor(max_disagreement * rows)`` of the answers disagree with what the oracle says, or would say if it were asked.
    That holds exactly for this very table, however large, ordered or drawn, and however bad probabilities and
    estimates are, if the oracle always says the same to the same row. It says nothing of rows that come later.

    Args:
        probabilities: Of the answer labels, by the small model, in [0, 1], shape (rows, labels); two labels at least.
        ask: What the oracle says: called with the indices of rows, shape (n,), it returns the indices of their labels.
            No row is asked twice.
        max_disagreement: Share of the rows that may disagree, in [0, 1).
        confidence: In (0, 1).
        seed: Of all chance. Choose it before the labels are seen.

    Raises:
        ConfigurationError: If an argument is out of range, or the oracle says something else than labels.

    Source: the cuts of one probability as in "Streaming Model Cascades for Semantic SQL", arXiv 2604.00660; the proof,
    by errors that chance checks find, is ours (docs/design/two-cuts.md).
    """
    table = _checked(probabilities, max_disagreement)
    rows, labels = table.shape
    rng = np.random.default_rng(seed)
    allowed = math.floor(max_disagreement * rows + 1e-9)
    stop_after = planned_errors(rows, max_disagreement)
    rate = check_rate(stop_after, allowed, confidence)
    chance = np.less(rng.random(rows), rate)
    shuffled = rng.permutation(rows)  # ties are broken by chance
    orders = [shuffled[np.argsort(-table[shuffled, label], kind="stable")] for label in range(labels)]
    places = [0] * labels

    said = np.full(rows, -1, dtype=np.intp)  # by the oracle
    kept = np.full(rows, -1, dtype=np.intp)  # the label under which the walk came by
    estimates = _Estimates(table)

    def heard(chosen: NDArray[np.intp]) -> None:
        told = np.asarray(ask(chosen)) if len(chosen) else np.zeros(0, dtype=np.intp)
        if told.shape != chosen.shape or told.dtype.kind not in "iub" or not ((told >= 0) & (told < labels)).all():
            raise ConfigurationError(
                f"`ask` must return one index of a label, 0 to {labels - 1}, for each of the {len(chosen)} rows."
            )
        said[chosen] = told
        estimates.add(chosen, said[chosen])

    heard(shuffled[: min(_START, rows)])
    checks = errors = 0
    size = max(1, rows // _STEPS)
    while errors <= stop_after:
        for label in range(labels):
            while places[label] < rows and kept[orders[label][places[label]]] >= 0:
                places[label] += 1
        if places[0] == rows:
            break  # every row was come by
        best = max(range(labels), key=lambda label: estimates.right(label, orders[label][places[label]]))
        step = orders[best][places[best] : places[best] + size]
        step = step[kept[step] < 0]
        checked = step[chance[step] & (said[step] < 0)]
        heard(checked)
        wrong = checked[said[checked] != best]
        if errors + len(wrong) > stop_after:  # the rows behind the error that ends it are not come by
            end = int(np.flatnonzero(np.equal(step, wrong[stop_after - errors]))[0]) + 1
            step, checked = step[:end], checked[np.isin(checked, step[:end])]
        kept[step] = best
        checks += len(checked)
        errors += len(wrong)
    heard(np.flatnonzero((kept < 0) & (said < 0)))
    cuts = np.array([table[kept == label, label].min() if (kept == label).any() else np.nan for label in range(labels)])
    return TableAnswers(
        np.where(said >= 0, said, kept), said >= 0, checks, min(errors, stop_after + 1), rate, cuts, allowed
    )


class _Estimates:
    """How likely a label is right: for each a logistic regression, drawn to the small model's own probability."""

    def __init__(self, table: NDArray[np.float64]) -> None:
        self._odds = log_odds(table)
        self._lines = np.tile([0.0, 1.0], (table.shape[1], 1))  # intercept and slope
        self._rows: list[NDArray[np.intp]] = []
        self._said: list[NDArray[np.intp]] = []
        self._known = self._fitted = 0

    def add(self, rows: NDArray[np.intp], said: NDArray[np.intp]) -> None:
        """What the oracle said of some rows."""
        self._rows.append(rows)
        self._said.append(said)
        self._known += len(rows)

    def right(self, label: int, row: int) -> float:
        """The estimate, as log-odds."""
        if self._known >= self._fitted + max(_REFIT, _GROWTH * self._fitted):
            self._fitted = self._known
            rows, said = np.concatenate(self._rows), np.concatenate(self._said)
            for each in range(len(self._lines)):
                self._lines[each] = drawn_logistic(self._odds[rows, each], said == each, (0.0, 1.0))
        intercept, slope = self._lines[label]
        return float(intercept + slope * self._odds[row, label])


def _checked(probabilities: ArrayLike, max_disagreement: float) -> NDArray[np.float64]:
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not len(table):
        raise ConfigurationError(
            "`probabilities` must have a row for each of the table's and a column for each of two labels or more. "
            f"Got the shape {table.shape}."
        )
    if not ((table >= 0) & (table <= 1)).all():
        raise ConfigurationError("`probabilities` must be numbers from 0 to 1.")
    if not 0 <= max_disagreement < 1:
        raise ConfigurationError(f"`max_disagreement` must be in [0, 1). Got {max_disagreement}.")
    return table
