"""From scores to a confidence: a calibrated estimate of the probability that an answer is right, in [0, 1].

`Platt`, `Isotonic` and `Temperature` read one signal's score, `Fusion` several, of which some may be missing;
`fit_calibrator` chooses. `EarlyAccept` makes one of two, of which the first is known before an answer has ended.
scikit-learn fits them; a fitted one is a few numbers, stored as JSON, and a confidence takes the standard library
alone: a microsecond or two in a live cascade. `predict` is that same arithmetic over arrays, so that a confidence
chosen as a threshold on recorded scores decides alike to the last bit when the cascade is live.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from confcascade.calibration.base import VERSION, Calibrator, Input, Space, as_space, finite
from confcascade.calibration.early_accept import EarlyAccept
from confcascade.calibration.fusion import Feature, Fusion
from confcascade.calibration.single import Isotonic, Platt, Temperature
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Calibrator",
    "EarlyAccept",
    "Feature",
    "Fusion",
    "Input",
    "Isotonic",
    "Platt",
    "Space",
    "Temperature",
    "calibrator_from_dict",
    "fit_calibrator",
]

ISOTONIC_ROWS = 1000  # below which isotonic regression follows the noise

_KINDS: dict[str, type[Calibrator]] = {kind.kind: kind for kind in (Platt, Temperature, Isotonic, Fusion, EarlyAccept)}


def calibrator_from_dict(stored: Mapping[str, Any]) -> Calibrator:
    """The calibrator that `Calibrator.as_dict` stored.

    Raises:
        ConfigurationError: If it is none, of another version, or damaged.
    """
    kind = stored.get("calibrator") if isinstance(stored, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigurationError(f"There is no calibrator of kind {kind!r}; known are {sorted(_KINDS)}.")
    if stored.get("version") != VERSION:
        raise ConfigurationError(
            f"The calibrator is stored in version {stored.get('version')!r}; this confcascade reads version {VERSION}. "
            "Fit it again."
        )
    try:
        return _KINDS[kind]._from(_inputs(stored["inputs"]), stored)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"The stored {kind} calibrator is damaged ({error}). Fit it again.") from error


def _inputs(stored: Sequence[Mapping[str, Any]]) -> tuple[Input, ...]:
    found = []
    for each in stored:
        low, high = each["space"]
        limits = -math.inf if low is None else finite(low), math.inf if high is None else finite(high)
        found.append(Input(str(each["signal"]), as_space(limits)))
    if not found or len({each.name for each in found}) < len(found):
        raise ValueError("its inputs must be named, each once")
    return tuple(found)


def fit_calibrator(
    scores: Mapping[str, ArrayLike],
    right: ArrayLike,
    spaces: Mapping[str, Space],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Calibrator:
    """The calibrator for what there is: `Fusion` of several signals; of one `Platt`, or `Isotonic` if that does better.

    Isotonic regression is tried from 1,000 answers on, and taken if its Brier score in five-fold cross-validation is
    the lower. Answers without the score of a single signal are left out: they have no confidence.

    Args:
        scores: By signal, shape (n,); NaN where missing.
        right: Whether each answer was right, shape (n,).
        spaces: Of each signal.
        groups: What must not be on both sides of a fold, as numbers of shape (n,): of the question, say. By default
            every answer is its own.
        seed: Of the folds.

    Raises:
        ConfigurationError: If there are fewer than 30 rows, one class only, a score outside its space, or a signal
            whose score is the same throughout.
    """
    import numpy as np

    if unknown := [name for name in scores if name not in spaces]:
        raise ConfigurationError(f"`spaces` must tell the space of every signal. Missing: {unknown}.")
    if len(scores) != 1:
        return Fusion.fit(scores, right, spaces)
    ((name, values),) = scores.items()
    score, y = np.asarray(values, dtype=float), np.asarray(right, dtype=float)
    if score.shape != y.shape:
        return Platt.fit(score, y, signal=name, space=spaces[name])  # which says so
    known = ~np.isnan(score)
    group = (np.arange(len(y)) if groups is None else np.asarray(groups))[known]
    score, y = score[known], y[known]
    platt = Platt.fit(score, y, signal=name, space=spaces[name])
    if len(y) < ISOTONIC_ROWS or not platt.monotone:
        return platt
    kinds: tuple[type[Platt | Isotonic], ...] = (Platt, Isotonic)
    errors = [_cross_brier(kind, score, y, group, name, spaces[name], seed) for kind in kinds]
    return platt if errors[0] <= errors[1] else Isotonic.fit(score, y, signal=name, space=spaces[name])


def _cross_brier(
    kind: type[Platt | Isotonic],
    score: NDArray[np.float64],
    y: NDArray[np.float64],
    group: NDArray[np.int64],
    name: str,
    space: Space,
    seed: int,
    folds: int = 5,
) -> float:
    """The Brier score of every row by a calibrator that did not see its fold; infinite if a fold cannot be fitted."""
    import numpy as np

    # folds by rank among the groups of a class, so that each fold has both
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(first)), y[first]))
    place = np.empty(len(first), dtype=int)
    place[order] = np.arange(len(first)) % folds
    fold = place[member]
    wrong = 0.0
    for held in (fold == i for i in range(folds)):
        try:
            fitted = kind.fit(score[~held], y[~held], signal=name, space=space)
        except ConfigurationError:  # of few wrong answers one fold may lack them all
            return math.inf
        wrong += float(((fitted.predict(score[held]) - y[held]) ** 2).sum())
    return wrong / len(y)
