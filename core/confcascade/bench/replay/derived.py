"""Columns computed from recorded ones: what `Calibrated` and `ExpectedGain` of these signals are when live."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.columns import Column, Columns, Upper
from confcascade.calibration import Calibrator
from confcascade.errors import ConfigurationError
from confcascade.signals.calibrated import gain

__all__ = ["score_columns", "with_confidence", "with_gain"]


def score_columns(columns: Columns, model: str, signals: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The scores of some signals of a model, as calibrators read them: shape (questions,), NaN where missing."""
    return {name: columns.signal(model, name).values for name in signals}


def with_confidence(columns: Columns, model: str, calibrator: Calibrator, *, name: str = "confidence") -> Columns:
    """The recording with the signal that ``Calibrated(signals, calibrator, name=name)`` of this model's signals is.

    Phase, reading of the prompt, and early decisions are the live signal's, so that `replay` decides as the cascade
    does.

    Raises:
        ConfigurationError: If the recording lacks a signal that the calibrator reads, or has one of this name.
    """
    parts = {part: columns.signal(model, part) for part in calibrator.signals}
    values = calibrator.predict(score_columns(columns, model, calibrator.signals))
    return _added(columns, model, name, parts.values(), values, _upper(calibrator, parts), _lower(calibrator, parts))


def with_gain(columns: Columns, model: str, own: Calibrator, larger: Calibrator, *, name: str = "gain") -> Columns:
    """The recording with the signal that ``ExpectedGain(signals, own, larger, name=name)`` is; as `with_confidence`."""
    parts = {part: columns.signal(model, part) for part in (*own.signals, *larger.signals)}
    both = (each.predict(score_columns(columns, model, each.signals)).tolist() for each in (own, larger))
    told = ([None if math.isnan(value) else value for value in values] for values in both)
    found = [gain(ours, theirs) for ours, theirs in zip(*told, strict=True)]
    values = np.array([math.nan if value is None else value for value in found])
    return _added(columns, model, name, parts.values(), values, None)


def _added(
    columns: Columns,
    model: str,
    name: str,
    parts: Iterable[Column],
    values: NDArray[np.float64],
    upper: Upper | None,
    lower: NDArray[np.float64] | None = None,
) -> Columns:
    if (model, name) in columns.signals:
        raise ConfigurationError(
            f"The recording has a signal '{name}' of model '{model}' already; choose another name."
        )
    made_of = list(parts)
    phase = "pre" if all(part.phase == "pre" for part in made_of) else "post"
    depths = [part.depth for part in made_of if part.depth is not None]
    early = (upper, lower) if phase == "post" else (None, None)
    column = Column(
        values,
        phase,
        any(part.prefill for part in made_of),
        early[0],
        depth=max(depths) if phase == "pre" and len(depths) == len(made_of) else None,
        lower=early[1],
    )
    return replace(columns, signals={**columns.signals, (model, name): column})


def _upper(calibrator: Calibrator, parts: Mapping[str, Column]) -> Upper | None:
    """How the greatest confidence falls, from what the calibrator can reach at all (at 0 tokens) on."""
    uppers = {name: part.upper for name, part in parts.items() if part.upper is not None}
    if not calibrator.monotone or not uppers:
        return None
    counts, tokens, bounds = [], [], []
    for question in range(len(next(iter(parts.values())).values)):
        falls = list(_falls(calibrator, uppers, question))
        counts.append(len(falls))
        tokens += [at for at, _ in falls]
        bounds += [bound for _, bound in falls]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Upper(starts, np.array(tokens, dtype=np.int64), np.array(bounds))


def _lower(calibrator: Calibrator, parts: Mapping[str, Column]) -> NDArray[np.float64] | None:
    """What the confidence could no longer fall below (`Column.lower`): that of its parts' own least values."""
    lowers = {name: part.lower for name, part in parts.items() if part.lower is not None}
    if not calibrator.monotone or not lowers:
        return None
    spaces = {each.name: each.space for each in calibrator.inputs}
    ends = {name: space[0] for name, space in spaces.items()}, {name: space[1] for name, space in spaces.items()}
    least = calibrator.bounds(*ends)[0]
    found = np.full(len(next(iter(parts.values())).values), np.nan)
    for question in np.flatnonzero(np.any([~np.isnan(lower) for lower in lowers.values()], axis=0)):
        known = {name: lower[question] for name, lower in lowers.items() if not math.isnan(lower[question])}
        reached = calibrator.bounds({**ends[0], **{name: float(v) for name, v in known.items()}}, ends[1])[0]
        found[question] = reached if reached > least else np.nan
    return None if np.isnan(found).all() else found


def _falls(calibrator: Calibrator, uppers: Mapping[str, Upper], question: int) -> Iterator[tuple[int, float]]:
    low = {each.name: each.space[0] for each in calibrator.inputs}
    high = {each.name: each.space[1] for each in calibrator.inputs}
    least = calibrator.bounds(low, high)[1]
    events = []
    for name, upper in uppers.items():
        own = slice(int(upper.starts[question]), int(upper.starts[question + 1]))
        events += [(t, name, b) for t, b in zip(upper.tokens[own].tolist(), upper.bounds[own].tolist(), strict=True)]
    events.sort(key=lambda event: event[0])
    if not events or events[0][0] > 0:
        yield 0, least
    for number, (at, name, bound) in enumerate(events):
        high[name] = bound
        if number + 1 < len(events) and events[number + 1][0] == at:
            continue  # of bounds that fall together, all of them
        reached = calibrator.bounds(low, high)[1]
        if reached < least or at == 0:
            yield at, reached
            least = reached
