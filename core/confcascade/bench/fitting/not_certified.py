"""What is said when no policy passed: why, and how many more questions would do at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.proof import Path, losses
from confcascade.bench.fitting.results import Contender, GroupFit, NotCertified
from confcascade.bench.metrics.health import SignalHealth
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import replay
from confcascade.guarantee import Promise, examples_needed_like, fewest_examples

__all__ = ["equal_scores", "lost_too_much", "nothing_promised", "planned", "why_nothing"]

_PLANNED = 33  # policies of the path that are looked at
_COMMON = 0.2  # of answers that score the same, from which on it is said
_WORTH = 0.5  # of the most that can be saved, what a policy saves for which questions are collected
_DEVIATIONS = 2.5  # of a test at 5 % with a power of 80 %


def why_nothing(path: Path | None, tested: Sequence[Contender], lacking: str, max_cost: float | None) -> str:
    """Why no policy passed, as a clause.

    Args:
        path: What could be put to the proof.
        tested: What was.
        lacking: Of `too_few`; "" if enough questions are there.
        max_cost: As of `fit`.
    """
    if path is None:
        return f"no policy that was tried costs at most {max_cost:.0%} of the largest model alone"
    return lacking or lost_too_much(tested)


def lost_too_much(tested: Sequence[Contender]) -> str:
    """Why the first policy that was tested did not pass, as a clause."""
    worst = max(tested[0].examined, key=lambda each: each.bound)
    return (
        f"the policy that keeps least lost {worst.harms:,} answers and gained {worst.benefits:,} of {worst.n:,}, so "
        f"its loss may be {worst.bound:.2%}"
    )


def equal_scores(columns: Columns, path: Path) -> list[str]:
    """That answers which score the same are kept together, where that is a large part of them.

    Args:
        columns: The questions, derived signals included.
        path: What was put to the proof; of the signals that it decides by.
    """
    found = []
    for model, name in {(stage.model, name) for stage in path.policies[0] for name in stage.thresholds}:
        values = columns.signal(model, name).values
        scores, counts = np.unique(values[np.isfinite(values)], return_counts=True)
        share = counts.max() / counts.sum()
        if share >= _COMMON and not np.isin(scores, (0, 1)).all():  # yes or no has no parts
            found.append(
                f"{share:.0%} of the scores {model}.{name} are {scores[counts.argmax()]:.4g}, and a threshold "
                "keeps all of these answers or none. Recorded with `ties: lot` (`TiesByLot`), a part of them may be "
                "promised."
            )
    return sorted(found)


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
    groups: Sequence[GroupFit] = (),
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
        groups: What came of each, where each has a promise of its own.
    """
    more, saved = None, None
    if groups:
        lacking = [(each.more, each.could) for each in groups if each.more is not None]
        more, saved = min(lacking, key=lambda each: each[0], default=(None, None))
    elif plan and path is not None and all(promise.max_drop is not None for promise in promises.values()):
        more, saved = planned(columns, path, material.models[-1], same, promises, bill, share=n / len(material))
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
        notes=(*notes, *([] if path is None or groups else equal_scores(columns, path))),
        groups=tuple(groups),
    )


def planned(
    columns: Columns,
    path: Path,
    largest: str,
    same: NDArray[np.bool_] | None,
    promises: Mapping[str, Promise],
    bill: Costing,
    *,
    share: float,
) -> tuple[int | None, float | None]:
    """The fewest further questions for a policy of the path that is worth them, and what it saves.

    That is one that saves at least half of the most that those policies save which seem to keep the target. The one
    that takes the fewest questions of all keeps hardly an answer: whoever collected them would save next to nothing.
    All questions are looked at, for nothing is promised here.

    Args:
        columns: The questions.
        path: Whose policies are looked at.
        largest: The model that promises are held against.
        same: Of these questions, as for `losses`.
        promises: By group; "" for all questions.
        bill: Of costs.
        share: Of the questions that prove, in (0, 1].

    Returns:
        None, twice, if no number is known that would do.
    """
    at = np.unique(np.linspace(0, len(path.policies) - 1, _PLANNED).round().astype(int))
    policies = [path.policies[i] for i in at]
    *costs, alone = bill.means(columns, [*policies, [PolicyStage(largest)]])
    found: list[tuple[float, float, NDArray[np.float64]]] = []
    for lost, cost in zip(losses(columns, policies, largest, same), costs, strict=True):
        about = max(_about(lost[members], each) for members, each in _parts(columns, promises))
        if cost < alone and math.isfinite(about):
            found.append((about, float(1 - cost / alone), lost))
    if not found:
        return None, None
    worth = max(saved for _, saved, _ in found) * _WORTH
    _, saved, lost = min((each for each in found if each[1] >= worth), key=lambda each: each[0])
    needed = [_needed(lost[members], each) for members, each in _parts(columns, promises)]
    if None in needed:
        return None, None
    more = math.ceil(max(each for each in needed if each is not None) * len(columns) / max(share, 1e-9)) - len(columns)
    return _rounded(max(0, more)), saved


def _parts(columns: Columns, promises: Mapping[str, Promise]) -> list[tuple[NDArray[np.bool_], Promise]]:
    """Which questions each promise is about."""
    everything = np.ones(len(columns), bool)
    return [(everything if name == "" else columns.groups == name, each) for name, each in promises.items()]


def _about(lost: NDArray[np.float64], promise: Promise) -> float:
    """How many times as many questions as these a proof takes, by the normal approximation; infinity if none do."""
    n = len(lost)
    if not n:
        return math.inf
    spread, room = float((lost**2).sum() + 1) / n, promise.tested_drop - float(lost.mean())
    if room <= 0:
        return math.inf
    return max(fewest_examples(promise), _DEVIATIONS**2 * spread / room**2) / n


def _needed(lost: NDArray[np.float64], promise: Promise) -> float | None:
    """The same by the tests themselves; None if no number would do."""
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
