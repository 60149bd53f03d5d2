"""Calibrate on some questions, choose on these and more, certify on the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.fit.candidates import Structure, candidates, derive
from confcascade.evaluation.fit.material import Material
from confcascade.evaluation.fit.nothing import nothing_promised, why_nothing
from confcascade.evaluation.fit.policies import Described, policy_of, replayable
from confcascade.evaluation.fit.proof import Bill, Tried, in_order, most_accurate, prove, shortlist
from confcascade.evaluation.fit.refusals import check, too_few
from confcascade.evaluation.fit.results import Fitted, Nothing, Runner
from confcascade.evaluation.fit.splitting import Parts, split_by_key
from confcascade.evaluation.health import SignalHealth, signal_health
from confcascade.evaluation.replay import PolicyStage
from confcascade.guarantee import Certificate, Examined, Promise, Test, sharpest_test

__all__ = ["Described", "Fitted", "Nothing", "Runner", "fit", "replayable"]


def fit(
    material: Material,
    promise: Promise,
    *,
    same: NDArray[np.bool_] | None = None,
    max_cost: float | None = None,
    per_group: bool = False,
    signals: Sequence[str] | None = None,
    described: Mapping[str, Described] | None = None,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    unit: str | None = None,
    seed: int = 0,
    parts: Parts | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Fitted | Nothing:
    """Calibrate, choose, certify.

    Args:
        material: The recording.
        promise: What shall be promised; with an equivalence, of agreement.
        same: With an equivalence, whether answers are the largest model's (`agreement`).
        max_cost: In the place of a target: the least loss at this share of the largest model's cost, in (0, 1).
        per_group: Whether it shall hold for every group of questions.
        signals: Which to use; by default all that can route.
        described: By model, how its signals are made live.
        architectures: By model.
        prices: By model.
        unit: Of costs.
        seed: Of the split.
        parts: In the place of a split by hashes.
        folder: Where the policy will be kept; paths in it are relative to this.
        progress: Called with structures done, all of them, and what is next.

    Raises:
        ConfigurationError: If the recording is one of which nothing can be promised, whatever its size.
    """
    check(material, promise, same, max_cost, signals)
    columns, models, largest = material.columns, material.models, material.models[-1]
    right = material.right if same is None else same
    split = split_by_key(material.keys, seed=seed) if parts is None else parts
    split.check(material.keys)
    ordering = split.ordering
    bill = Bill.of(columns, models, architectures, prices, unit)
    if unit is None and bill.unit == "tokens":  # by which whoever asks two models saves nothing, ever
        raise ConfigurationError(
            "What the models cost is not known, and by tokens alone a small one is as dear as a large one: give sizes "
            "(`architectures=...`) or prices (`prices=...`) of every model; or say `unit='seconds'` or `unit='tokens'`."
        )
    promises = _promises(material, promise, per_group)
    health = _health(columns, models, right, ordering, signals)
    routable = {
        model: [name for (owner, name), each in health.items() if owner == model and each.can_route] for model in models
    }
    notes = list(material.notes)
    spaces = _spaces(columns, described or {})
    made = derive(
        columns,
        models,
        routable,
        right,
        split.calibrate,
        spaces,
        confidence="confidence" if same is None else "agreement",
        gains=same is None,
    )
    made = candidates(made, models, routable, ordering)
    notes += made.notes
    whole, narrowest = made.columns.take(ordering), min(promises.values(), key=lambda each: each.delta)
    alike = None if same is None else same[ordering]
    dearest = float(bill.means(whole, [[PolicyStage(largest)]])[0])
    most = None if max_cost is None else max_cost * dearest
    path = _path(whole, made.structures, largest, alike, bill, narrowest, max(len(split.certify), 1), most, progress)
    tests = [_tests(each, whole.groups, promises, split, columns) for each in path]
    proof = made.columns.take(split.certify)
    shown: list[list[Examined]] = []
    lacking = too_few(promises, proof)
    if path and not lacking:
        shown = prove(proof, path, largest, None if same is None else same[split.certify], promises, tests)
    tested = tuple(
        Runner(each.rule, each.policy, 1 - each.cost / dearest, tuple(examined))
        for each, examined in zip(path, shown, strict=False)
    )
    passed = [i for i, runner in enumerate(tested) if runner.certified]
    if not passed:
        return nothing_promised(
            why_nothing(path, tested, lacking, max_cost, blind=not any(routable.values())),
            material,
            path,
            promises,
            bill,
            n=len(split.certify),
            dearest=dearest,
            tested=tested,
            health=health,
            notes=notes,
        )
    chosen = passed[-1]  # each is cheaper than all before it
    certificates = [
        Certificate.of(examined, each) for examined, each in zip(shown[chosen], promises.values(), strict=True)
    ]
    stages = path[chosen].policy
    policy = policy_of(
        material, made, stages, certificates, split, bill, described=described or {}, seed=seed, folder=folder
    )
    return Fitted(policy, path[chosen].rule, stages, tested, health, split, tuple(notes))


def _health(
    columns: Columns,
    models: Sequence[str],
    right: NDArray[np.bool_],
    rows: NDArray[np.intp],
    wanted: Sequence[str] | None,
) -> dict[tuple[str, str], SignalHealth]:
    found = {}
    for model in models[:-1]:
        j = columns.index(model)
        judged = rows[columns.usable[rows, j]]
        labels = right[judged, j]
        if len(labels) and (labels.all() or not labels.any()):
            raise ConfigurationError(
                f"All {len(labels):,} answers of '{model}' that could choose a threshold are "
                f"{'right' if labels.all() else 'wrong'}: of one class only, no signal can be told to be good or bad. "
                "Look at the grader, or leave the model out of `models=...`."
            )
        names = sorted(name for owner, name in columns.signals if owner == model)
        for name in names if wanted is None else [name for name in names if name in wanted]:
            if len(judged):
                found[model, name] = signal_health(columns.signals[model, name].values[judged], labels)
    return found


def _promises(material: Material, promise: Promise, per_group: bool) -> dict[str, Promise]:
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


def _path(
    columns: Columns,
    structures: Sequence[Structure],
    largest: str,
    same: NDArray[np.bool_] | None,
    bill: Bill,
    promise: Promise,
    n: int,
    most: float | None,
    progress: Callable[[int, int, str], None] | None,
) -> list[Tried]:
    """What is put to the proof, the safest first; where a cost must be kept, the one that loses least at it."""
    found: list[Tried] = []
    for i, structure in enumerate(structures):
        if progress is not None:
            progress(i, len(structures), structure.rule)
        if most is None:
            found += shortlist(columns, structure, largest, same, bill, promise, n)
        else:
            found += most_accurate(columns, structure, largest, same, bill, promise, n, most)
    if progress is not None:
        progress(len(structures), len(structures), "proof")
    if most is None:
        return in_order(found, promise, n)
    return sorted(found, key=lambda each: (float(each.losses.mean()), each.cost))[:1]


def _tests(
    tried: Tried, groups: NDArray[np.str_], promises: Mapping[str, Promise], split: Parts, columns: Columns
) -> dict[str, Test]:
    if list(promises) == [""]:
        return {"": tried.test}
    found: dict[str, Test] = {}
    proof = columns.groups[split.certify]
    for name, promise in promises.items():
        n = max(1, int((proof == name).sum()))
        own = tried.losses[groups == name]
        found[name] = sharpest_test(own if len(own) else tried.losses, promise, n=n)
    return found
