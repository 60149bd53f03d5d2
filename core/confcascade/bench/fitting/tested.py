"""Policies of a path put to the proof: those that are shown, with what was shown of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.proof import Path, prove, shown
from confcascade.bench.fitting.results import Contender
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.guarantee import Promise, TestName

__all__ = ["put_to_proof"]

_COMPARED = 10  # certified policies that are shown, and of which the cheapest is taken


def put_to_proof(
    path: Path,
    everything: Columns,
    proof: Columns,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    test: TestName,
    *,
    largest: str,
    bill: Costing,
) -> tuple[Contender, ...]:
    """At most ten of the policies that pass, and the first that fails, if any, in the order of the path.

    Args:
        path: Whose policies they are.
        everything: The questions over which costs are told.
        proof: Questions whose labels chose nothing.
        same: Of the proof, as for `losses`.
        promises: By group; "" for all questions.
        test: By which.
        largest: The model that promises are held against.
        bill: Of costs.
    """
    policies, failed = prove(proof, path.policies, largest, same, promises, test)
    policies = _thinned(policies[:-1] if failed else policies) + (policies[-1:] if failed else [])
    examined = shown(proof, policies, largest, same, bill, promises, test)
    *costs, alone = bill.means(everything, [*policies, [PolicyStage(largest)]])
    return tuple(
        Contender(path.rule, policy, float(1 - cost / alone), each)
        for policy, cost, each in zip(policies, costs, examined, strict=True)
    )


def _thinned(policies: list[tuple[PolicyStage, ...]]) -> list[tuple[PolicyStage, ...]]:
    """At most `_COMPARED` of them, with the first and the last: neighbours on a path hardly differ."""
    at = np.linspace(0, len(policies) - 1, min(len(policies), _COMPARED)).round().astype(int)
    return [policies[i] for i in at]
