"""What is said when no policy passed: why, and how many more questions would do at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.proof import Path, losses
from confcascade.bench.fitting.results import Contender, NotCertified
from confcascade.bench.metrics.health import SignalHealth
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import replay
from confcascade.guarantee import Promise, examples_needed_like

__all__ = ["nothing_promised", "why_nothing"]

_PLANNED = 9  # policies of the path for which the planner is asked


def why_nothing(path: Path | None, tested: Sequence[Contender], lacking: str, max_cost: float | None) -> str:
    """Why no policy passed, as a clause.

    Args:
        path: What could be put to the proof.
        tested: What was.
        lacking: Of `too_few`; "" if enough questions are there.
        max_cost: As of `fit`.
    """
    if path is None:
        if max_cost is None:
            return "there is no signal with a score, and no model but the largest"
        return f"no policy that was tried costs at most {max_cost:.0%} of the largest model alone"
    if lacking:
        return lacking
    worst = max(tested[0].examined, key=lambda each: each.bound)
    return (
        f"the policy that keeps least lost {worst.harms:,} answers and gained {worst.benefits:,} of {worst.n:,}, so "
        f"its loss may be {worst.bound:.2%}"
    )


def nothing_promised(
    why: str,
    material: FitData,
    columns: Columns,
    path: Path | None,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    bill: Costing,
    *,
    n: int,
    tested: tuple[Contender, ...],
    health: Mapping[tuple[str, str], SignalHealth],
    notes: Sequence[str],
    plan: bool = True,
) -> NotCertified:
    """That nothing is, and how many more questions would do, as far as that can be planned.

    Args:
        why: Of `why_nothing`.
        material: The recording.
        columns: The recording, derived signals included.
        path: What could be put to the proof.
        same: As of `fit`.
        promises: By group.
        bill: Of costs.
        n: Questions of the proof.
        tested: What was put to the proof.
        health: Of every signal, by model and name.
        notes: What a reader should know.
        plan: Whether more questions could help.
    """
    more, saved = None, None
    if plan and path is not None and all(promise.max_drop is not None for promise in promises.values()):
        more, saved = _planned(columns, path, material.models[-1], same, promises, bill, share=n / len(material))
    usd, tokens, seconds = _collecting(material, bill)
    times = 0 if more is None else more
    return NotCertified(
        why=why,
        n=n,
        questions=len(material),
        more=more,
        saved=saved,
        usd=None if usd is None else usd * times,
        tokens=tokens * times,
        seconds=None if seconds is None else seconds * times,
        tested=tested,
        health=health,
        notes=tuple(notes),
    )


def _planned(
    columns: Columns,
    path: Path,
    largest: str,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    bill: Costing,
    *,
    share: float,
) -> tuple[int | None, float | None]:
    """The fewest further questions for any policy of the path that saves something, and what it saves.

    All questions are looked at, for nothing is promised here.
    """
    at = np.unique(np.linspace(0, len(path.policies) - 1, _PLANNED).round().astype(int))
    policies = [path.policies[i] for i in at]
    *costs, alone = bill.means(columns, [*policies, [PolicyStage(largest)]])
    best: tuple[int, float] | None = None
    for lost, cost in zip(losses(columns, policies, largest, same), costs, strict=True):
        counts = [
            _needed(lost if name == "" else lost[columns.groups == name], promise) for name, promise in promises.items()
        ]
        known = [count for count in counts if count is not None]
        if cost >= alone or not known or len(known) < len(counts):
            continue
        more = max(0, math.ceil(max(known) * len(columns) / max(share, 1e-9)) - len(columns))
        if best is None or more < best[0]:
            best = more, float(1 - cost / alone)
    if best is None:
        return None, None
    return _rounded(best[0]), best[1]


def _needed(lost: NDArray[np.float64], promise: Promise) -> float | None:
    """How many times as many questions as these a proof takes; None if no number would do."""
    if not len(lost) or lost.mean() > promise.tested_drop / 2:
        return None  # so near the target it takes many more than a safer policy
    # one harm more than was seen, for a policy that has lost nothing yet is not known to lose nothing; of very few
    # questions one harm is too much
    needed = examples_needed_like(np.append(lost, 1.0), promise)
    if needed is None:
        needed = examples_needed_like(lost, promise)
    return None if needed is None else needed / len(lost)


def _rounded(count: int) -> int:
    """Up, to two digits: it is an estimate."""
    if count <= 10:
        return count
    unit: int = 10 ** (len(str(count)) - 2)
    return -(-count // unit) * unit


def _collecting(material: FitData, bill: Costing) -> tuple[float | None, float, float | None]:
    """Mean dollars, tokens and seconds of asking every model one question."""
    columns = material.columns
    alone = [replay(columns, [PolicyStage(model)], prices=bill.prices).cost for model in material.models]
    usd = sum(float(each.usd.mean()) for each in alone)
    seconds = float(sum(each.seconds.mean() for each in alone))
    return (
        usd if math.isfinite(usd) else None,
        float(sum(each.tokens.mean() for each in alone)),
        seconds if seconds > 0 and math.isfinite(seconds) else None,
    )
