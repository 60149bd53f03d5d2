"""What can have no promise: arguments that contradict each other, recordings that tell nothing, too few questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.recording.columns import Columns
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Promise, fewest_examples

__all__ = ["check", "only_grade", "too_few"]


def check(
    material: FitData,
    promise: Promise,
    same: NDArray[np.bool_] | None,
    max_cost: float | None,
    signals: Sequence[str] | None,
    early: str | None = None,
) -> None:
    """Of the arguments of `fit`.

    Raises:
        ConfigurationError: If they contradict each other, the recording has one model, or one grade below 1 alone,
            or not such a signal.
    """
    if (promise.equivalence is None) != (same is None):
        raise ConfigurationError("An equivalence and the answers compared by it go together.")
    if (max_cost is None) != (promise.max_drop is not None):
        raise ConfigurationError("Give either a `max_drop` to the promise or a `max_cost`.")
    if max_cost is not None and not 0 < max_cost < 1:
        raise ConfigurationError(
            f"`max_cost` is a share of the largest model's cost, between 0 and 1, such as 0.4. Got {max_cost:g}."
        )
    if len(material.models) < 2:
        raise ConfigurationError(
            f"A policy chooses among models; the recording has {', '.join(material.models)} alone."
        )
    columns = material.columns
    known = {name for owner, name in columns.signals if owner in material.models[:-1]}
    if strange := [name for name in signals or () if name not in known]:
        raise ConfigurationError(
            f"No smaller model of the recording has a signal '{strange[0]}'. They have: {', '.join(sorted(known))}."
        )
    if early is not None:
        known_early = [
            model
            for model in material.models[:-1]
            if (model, early) in columns.signals and columns.signals[model, early].lower is not None
        ]
        beside = {name for owner, name in columns.signals if owner in known_early and name in (signals or known)}
        if not known_early or len(beside | {early}) < 2 or (signals is not None and early not in signals):
            raise ConfigurationError(
                f"No smaller model has a signal '{early}' that is known before its answers end, and another beside it. "
                'Collect with TokenProbability(first=8, name="opening"), say, and TokenProbability().'
            )
    if same is not None:
        return
    grade = only_grade(material)
    if grade is not None and grade != 1:
        raise ConfigurationError(
            f"Every grade in the recording is {grade:g}: labels that are all alike tell no answer from another. "
            "Look at the grader and its references."
        )


def only_grade(material: FitData) -> float | None:
    """The grade of every answer, where all are alike; else None. A failure is graded 0."""
    columns, at = material.columns, [material.columns.index(model) for model in material.models]
    grades = np.where(columns.failed[:, at], 0.0, columns.grades[:, at])
    return float(grades[0, 0]) if (grades == grades[0, 0]).all() else None


def too_few(promises: Mapping[str, Promise], proof: Columns) -> str:
    """Why no policy whatever could pass; "" if one could."""
    for name, promise in promises.items():
        if promise.max_drop is None:
            n = len(proof) if name == "" else int((proof.groups == name).sum())
            if not n:
                return "there is no question to prove it on"
            continue
        n = len(proof) if name == "" else int((proof.groups == name).sum())
        least = fewest_examples(promise)
        if n < least:
            of = "" if name == "" else f" of the group '{name}'"
            return (
                f"{n:,} questions{of} are there for the proof, and even a policy that never loses an answer takes "
                f"{least:,} to promise {promise.max_drop:.2%} with {promise.confidence:g} confidence"
            )
    return ""
