"""What is said when no policy passed: why, and how many more questions would do at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.proof import Tried
from confcascade.bench.fitting.results import Contender, NotCertified
from confcascade.bench.fitting.splitting import SHARES
from confcascade.bench.metrics.health import SignalHealth
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import replay
from confcascade.guarantee import Promise, examples_needed_like

__all__ = ["nothing_promised", "why_nothing"]

_PLANNED = 3  # policies of the order for which the planner is asked


def why_nothing(
    path: Sequence[Tried], tested: Sequence[Contender], lacking: str, max_cost: float | None, *, blind: bool
) -> str:
    """Why no policy passed, as a clause.

    Args:
        path: What could be put to the proof, the safest first.
        tested: What was; empty if `path` is, or if something is lacking.
        lacking: Of `too_few`; "" if enough questions are there.
        max_cost: As of `fit`.
        blind: Whether there is no signal that can route.
    """
    if not path and max_cost is None:
        why = "no policy that was tried costs less than the largest model alone"
    elif not path:
        why = f"no policy that was tried costs at most {max_cost:.0%} of the largest model alone"
    elif lacking:
        why = lacking
    else:
        worst = max(tested[0].examined, key=lambda each: each.bound)
        why = (
            f"the safest policy that saves anything lost {worst.harms:,} answers and gained {worst.benefits:,} of "
            f"{worst.n:,}, so its loss may be {worst.bound:.2%}"
        )
    return f"no signal can route, so that only single models could be tried, and {why}" if blind else why


def nothing_promised(
    why: str,
    material: FitData,
    path: Sequence[Tried],
    promises: Mapping[str, Promise],
    bill: Costing,
    *,
    n: int,
    dearest: float,
    tested: tuple[Contender, ...],
    health: Mapping[tuple[str, str], SignalHealth],
    notes: Sequence[str],
    plan: bool = True,
    blind: bool = False,
) -> NotCertified:
    """That nothing is, and how many more questions would do, as far as that can be planned.

    Args:
        why: Of `why_nothing`.
        material: The recording.
        path: What could be put to the proof, the safest first.
        promises: By group.
        bill: Of costs.
        n: Questions of the proof.
        dearest: The largest model's mean cost, in the bill's unit, on the questions that ordered `path`.
        tested: What was put to the proof.
        health: Of every signal, by model and name.
        notes: What a reader should know.
        plan: Whether more questions could help.
        blind: As of `why_nothing`.
    """
    promise = next(iter(promises.values()))
    more, saved = None, None
    if plan and path and promise.max_drop is not None and len(promises) == 1:
        more, saved = _planned(material, path, promise, dearest, blind=blind)
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
    material: FitData, path: Sequence[Tried], promise: Promise, dearest: float, *, blind: bool
) -> tuple[int | None, float | None]:
    """The fewest further questions for any policy of the order, and what it saves."""
    best: tuple[int, float] | None = None
    for i in np.unique(np.linspace(0, len(path) - 1, _PLANNED).round().astype(int)):
        tried = path[i]
        if (i or blind) and tried.losses.mean() > promise.tested_drop / 2:
            break  # so near the target it takes many more than the safest
        # one harm more than was seen, for a policy that has lost nothing yet is not known to lose nothing; of very few
        # questions one harm is too much
        needed = examples_needed_like(np.append(tried.losses, 1.0), promise)
        if needed is None:
            needed = examples_needed_like(tried.losses, promise)
        if needed is not None:
            more = max(0, math.ceil(needed / SHARES["certify"]) - len(material))
            if best is None or more < best[0]:
                best = more, 1 - tried.cost / dearest
    if best is None:
        return None, None
    return _rounded(best[0]), best[1]


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
