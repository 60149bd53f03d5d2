"""Calibrate on some questions, choose on these and more, certify on the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.candidates import Candidates, at_pass_rates, candidates, derive
from confcascade.bench.fitting.describe import told
from confcascade.bench.fitting.material import FitData, read_material
from confcascade.bench.fitting.not_certified import nothing_promised, why_nothing
from confcascade.bench.fitting.policy_file import Described, fitted_policy, saving_of
from confcascade.bench.fitting.proof import Tried, in_order, most_accurate, prove, shortlist
from confcascade.bench.fitting.refusals import check, only_grade, too_few
from confcascade.bench.fitting.results import Contender, Fitted, NotCertified
from confcascade.bench.fitting.splitting import FitSplit, split_by_key
from confcascade.bench.metrics.health import SignalHealth, signal_health
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.cascade_file import CascadeFile
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Certificate, Examined, Promise, TestName, sharpest_test
from confcascade.policy import Saving

__all__ = ["Rule", "fit"]

Rule = Literal["quantiles", "pass-rate"]


def fit(
    material: FitData | str | Path,
    promise: Promise,
    *,
    same: NDArray[np.bool_] | None = None,
    max_cost: float | None = None,
    per_group: bool = False,
    signals: Sequence[str] | None = None,
    described: Mapping[str, Described] | CascadeFile | None = None,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    unit: str | None = None,
    seed: int = 0,
    parts: FitSplit | None = None,
    folder: Path | None = None,
    rule: Rule = "quantiles",
    progress: Callable[[int, int, str], None] | None = None,
) -> Fitted | NotCertified:
    """Calibrate, choose, certify.

    Of the certified policies the one that saves most over all questions is taken: costs are not what is tested.

    Args:
        material: The recording, or its file.
        promise: What shall be promised; with an equivalence, of agreement.
        same: With an equivalence, whether answers are the largest model's (`agreement`).
        max_cost: In the place of a target: the least loss at this share of the largest model's cost, in (0, 1).
        per_group: Whether it shall hold for every group of questions.
        signals: Which to use; by default all that can route.
        described: By model, how its signals are made live; or the cascade file that says so, whose models are then
            those that are read from a recording's file.
        architectures: By model.
        prices: By model.
        unit: Of costs.
        seed: Of the split.
        parts: In the place of a split by hashes.
        folder: Where the policy will be kept; paths in it are relative to this.
        rule: Which thresholds are tried: quantiles of the scores, or only the next model's pass rate (`at_pass_rates`).
        progress: Called with structures done, all of them, and what is next.

    Raises:
        ConfigurationError: If the recording is one of which nothing can be promised, whatever its size.
    """
    if rule not in get_args(Rule):
        raise ConfigurationError(f"`rule` must be one of {', '.join(get_args(Rule))}. Got {rule!r}.")
    if rule == "pass-rate" and same is not None:
        raise ConfigurationError("A pass rate needs graded answers: it does not go with an equivalence.")
    models_of = None
    if isinstance(described, CascadeFile):
        described.only_whole("A fitted policy")
        models_of = tuple(described.thresholds)
        described = {name: Described(each, described.folder) for name, each in described.signal_entries.items()}
    if not isinstance(material, FitData):
        material = read_material(material, models=models_of, architectures=architectures, prices=prices)
    check(material, promise, same, max_cost, signals)
    split = split_by_key(material.keys, seed=seed) if parts is None else parts
    split.check(material.keys)
    bill = Costing.of(material.columns, material.models, architectures, prices, unit)
    if unit is None and bill.unit == "tokens":  # by which whoever asks two models saves nothing, ever
        raise ConfigurationError(
            "What the models cost is not known, and by tokens alone a small one is as dear as a large one: give sizes "
            "(`architectures=...`) or prices (`prices=...`) of every model; or say `unit='seconds'` or `unit='tokens'`."
        )
    task = _Task(material, split, bill, _promises(material, promise, per_group), same, max_cost)
    made, health = _calibrate(task, signals, described or {}, rule)
    path = _choose(task, made, progress)
    return _certify(task, made, path, health, described=described or {}, seed=seed, folder=folder)


@dataclass(frozen=True)
class _Task:
    """What is to be fitted, on what.

    Attributes:
        material: The recording.
        split: Its questions in three parts.
        bill: Of costs.
        promises: By group; "" for all questions.
        same: As of `fit`.
        max_cost: As of `fit`.
    """

    material: FitData
    split: FitSplit
    bill: Costing
    promises: Mapping[str, Promise]
    same: NDArray[np.bool_] | None
    max_cost: float | None

    @property
    def columns(self) -> Columns:
        return self.material.columns

    @property
    def largest(self) -> str:
        return self.material.models[-1]

    @property
    def right(self) -> NDArray[np.bool_]:
        """What signals are to predict."""
        return self.material.right if self.same is None else self.same

    @property
    def narrowest(self) -> Promise:
        """By which policies are ordered."""
        return min(self.promises.values(), key=lambda each: each.delta)

    def same_of(self, rows: NDArray[np.intp]) -> NDArray[np.bool_] | None:
        return None if self.same is None else self.same[rows]


def _calibrate(
    task: _Task, wanted: Sequence[str] | None, described: Mapping[str, Described], rule: Rule
) -> tuple[Candidates, dict[tuple[str, str], SignalHealth]]:
    """Which signals can route, what is made of them, and the policies that can be tried."""
    columns, models, ordering = task.columns, task.material.models, task.split.ordering
    labels = task.same is None
    health = _health(columns, models, task.right, ordering, wanted, labels=labels)
    routable = {
        model: [name for (owner, name), each in health.items() if owner == model and each.can_route] for model in models
    }
    made = derive(
        columns,
        models,
        routable,
        task.right,
        task.split.calibrate,
        _spaces(columns, described),
        confidence="confidence" if labels else "agreement",
        gains=labels,
        texts=np.unique(np.array(task.material.keys, dtype=object), return_inverse=True)[1],
    )
    if rule == "pass-rate":
        return at_pass_rates(made, models, routable, task.right, task.split.calibrate), health
    return candidates(made, models, routable, ordering), health


def _choose(task: _Task, made: Candidates, progress: Callable[[int, int, str], None] | None) -> list[Tried]:
    """What is put to the proof, the safest first; where a cost must be kept, the one that loses least at it."""
    ordering, n = task.split.ordering, max(len(task.split.certify), 1)
    columns, same, promise = made.columns.take(ordering), task.same_of(ordering), task.narrowest
    most = None if task.max_cost is None else task.max_cost * _dearest(task, columns)
    found: list[Tried] = []
    for i, structure in enumerate(made.structures):
        if progress is not None:
            progress(i, len(made.structures), structure.rule)
        if most is None:
            found += shortlist(columns, structure, task.largest, same, task.bill, promise, n)
        else:
            found += most_accurate(columns, structure, task.largest, same, task.bill, promise, n, most)
    if progress is not None:
        progress(len(made.structures), len(made.structures), "proof")
    if most is None:
        return in_order(found, promise, n)
    return sorted(found, key=lambda each: (float(each.losses.mean()), each.cost))[:1]


def _certify(
    task: _Task,
    made: Candidates,
    path: list[Tried],
    health: Mapping[tuple[str, str], SignalHealth],
    *,
    described: Mapping[str, Described],
    seed: int,
    folder: Path | None,
) -> Fitted | NotCertified:
    """Put policies to the proof, and take the one that saves most of those that pass."""
    material, bill, split = task.material, task.bill, task.split
    proof = made.columns.take(split.certify)
    shown: list[list[Examined]] = []
    lacking = too_few(task.promises, proof)
    if path and not lacking:
        tests = [_tests(each, task) for each in path]
        shown = prove(proof, path, task.largest, task.same_of(split.certify), task.promises, tests)
    played = [*(each.policy for each in path[: len(shown)]), [PolicyStage(task.largest)]]
    *costs, alone = bill.means(made.columns, played)
    tested = tuple(
        Contender(each.rule, each.policy, float(1 - cost / alone), tuple(examined))
        for each, cost, examined in zip(path, costs, shown, strict=False)
    )
    passed = [i for i, runner in enumerate(tested) if runner.certified]
    blind = not any(each.can_route for each in health.values())
    notes = [*material.notes]
    if task.same is None and only_grade(material) == 1:
        notes.append(
            "CHECK THE GRADER: it calls every answer of every model right. If some are wrong, this promise is worth "
            "nothing."
        )
    notes += made.notes
    nothing = functools.partial(
        nothing_promised,
        material=material,
        path=path,
        promises=task.promises,
        bill=bill,
        n=len(split.certify),
        dearest=_dearest(task, made.columns.take(split.ordering)),
        tested=tested,
        health=health,
        blind=blind,
        notes=notes,
    )
    if not passed:
        return nothing(why_nothing(path, tested, lacking, task.max_cost, blind=blind))
    chosen = max(passed, key=lambda i: tested[i].saved)
    saved = saving_of(proof, [path[i].policy for i in passed], passed.index(chosen), task.largest, bill)
    if saved.high < 0:
        return nothing(_dearer(tested[chosen], saved, task.largest), plan=False)
    if saved.low < 0:
        notes.append(
            f"Whether this policy saves anything is not sure: the interval of its saving, {saved.low:.1%} to "
            f"{saved.high:.1%}, reaches below 0. Record more questions, or ask only {task.largest}."
        )
    certificates = [
        Certificate.of(examined, each, repeated=material.repeated)
        for examined, each in zip(shown[chosen], task.promises.values(), strict=True)
    ]
    stages = path[chosen].policy
    policy = fitted_policy(material, made, stages, certificates, saved, described=described, seed=seed, folder=folder)
    return Fitted(policy, path[chosen].rule, stages, tested, health, split, tuple(notes))


def _dearest(task: _Task, columns: Columns) -> float:
    """The largest model's mean cost."""
    return float(task.bill.means(columns, [[PolicyStage(task.largest)]])[0])


def _dearer(runner: Contender, saved: Saving, largest: str) -> str:
    """Why a policy that holds is not sold, as a clause."""
    return (
        f"of the policies that keep the promise the cheapest, {told(runner.policy)}, costs more than {largest} alone: "
        f"{saved.share:.1%} saved on the questions of the proof, 95 % interval {saved.low:.1%} to {saved.high:.1%}"
    )


def _health(
    columns: Columns,
    models: Sequence[str],
    right: NDArray[np.bool_],
    rows: NDArray[np.intp],
    wanted: Sequence[str] | None,
    *,
    labels: bool,
) -> dict[tuple[str, str], SignalHealth]:
    found, classes = {}, ("right", "wrong") if labels else ("agreeing", "differing")
    for model in models[:-1]:
        j = columns.index(model)
        judged = rows[columns.usable[rows, j]]
        its = right[judged, j]
        if len(its) and not its.any():  # all right is another matter: such a model may do alone
            what, where = ("wrong", "grader") if labels else ("other than the largest model's", "equivalence")
            raise ConfigurationError(
                f"All {len(its):,} answers of '{model}' that could choose a threshold are {what}: of one class only, "
                f"no signal can be told to be good or bad. Look at the {where}, or leave the model out of `models=...`."
            )
        names = sorted(name for owner, name in columns.signals if owner == model)
        for name in names if wanted is None else [name for name in names if name in wanted]:
            if len(judged):
                found[model, name] = signal_health(columns.signals[model, name].values[judged], its, classes=classes)
    return found


def _promises(material: FitData, promise: Promise, per_group: bool) -> dict[str, Promise]:
    if not per_group:
        return {"": promise}
    names = sorted(set(material.columns.groups.tolist()))
    if "" in names:
        raise ConfigurationError("A promise for every group needs a group of every question; some have none.")
    return promise.per_group(names)


def _spaces(columns: Columns, described: Mapping[str, Described]) -> Callable[[str, str], tuple[float, float]]:
    """Of a signal: its own where it is described; else [0, 1] if all its scores lie there. A live signal of another
    space is refused by its calibrator."""
    known = {
        (model, entry.name): entry.load(each.folder).space
        for model, each in described.items()
        for entry in each.entries
        if (model, entry.name) in columns.signals
    }

    def space(model: str, name: str) -> tuple[float, float]:
        if (model, name) in known:
            return known[model, name]
        values = columns.signals[model, name].values
        told = values[np.isfinite(values)]
        inside = bool(len(told)) and told.min() >= 0 and told.max() <= 1
        return (0.0, 1.0) if inside else (-math.inf, math.inf)

    return space


def _tests(tried: Tried, task: _Task) -> dict[str, TestName]:
    """By group, the test that is expected to be the sharpest."""
    if list(task.promises) == [""]:
        return {"": tried.test}
    found: dict[str, TestName] = {}
    groups, proof = task.columns.groups[task.split.ordering], task.columns.groups[task.split.certify]
    for name, promise in task.promises.items():
        n = max(1, int((proof == name).sum()))
        own = tried.losses[groups == name]
        found[name] = sharpest_test(own if len(own) else tried.losses, promise, n=n)
    return found
