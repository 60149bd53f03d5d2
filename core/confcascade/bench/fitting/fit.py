"""Choose a path of policies on some questions, if there is one to choose, and certify it on the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.by_group import dearer, fit_groups, saving_of_groups, testable
from confcascade.bench.fitting.candidates import Candidates, at_pass_rates, by_label, candidates, derive, lone_path
from confcascade.bench.fitting.material import FitData, read_material
from confcascade.bench.fitting.not_certified import nothing_promised, why_nothing
from confcascade.bench.fitting.policy_file import Described, fitted_policy, saving_of
from confcascade.bench.fitting.proof import Path as TestPath
from confcascade.bench.fitting.proof import expected, losses, most_accurate
from confcascade.bench.fitting.refusals import check, only_grade, too_few
from confcascade.bench.fitting.results import Contender, Fitted, NotCertified
from confcascade.bench.fitting.rivals import rivals
from confcascade.bench.fitting.splitting import SHARES, FitSplit, split_by_key
from confcascade.bench.fitting.tested import put_to_proof
from confcascade.bench.metrics.health import SignalHealth, signal_health
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import replay
from confcascade.cascade_file import CascadeFile
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Certificate, Promise, TestName, suited_test

__all__ = ["Rule", "fit"]

Rule = Literal["quantiles", "pass-rate", "per-label"]


def fit(
    material: FitData | str | Path,
    promise: Promise,
    *,
    same: NDArray[np.bool_] | None = None,
    max_cost: float | None = None,
    per_group: bool = False,
    signals: Sequence[str] | None = None,
    early: str | None = None,
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

    With two models and one signal only its threshold is to be found, and every question proves (`lone_path`). Else some
    of the questions choose among paths of policies (`SHARES`), and with several signals calibrate what is made of them.
    Of the certified policies the one that saves most over all questions is taken: costs are not what is tested.

    Args:
        material: The recording, or its file.
        promise: What shall be promised; with an equivalence, of agreement.
        same: With an equivalence, whether answers are the largest model's (`agreement`).
        max_cost: In the place of a target: the least loss at this share of the largest model's cost, in (0, 1).
        per_group: Whether each group of questions shall have a promise and thresholds of its own (`by_group`); with a
            `max_cost`, one policy for all of them, its loss bounded in each.
        signals: Which to use; by default all that have scores. A single one spends the fewest questions.
        early: A signal that is known before an answer has ended, such as ``TokenProbability(first=8)``: an answer is
            kept, and streamed, as soon as it is sure enough by this one, else judged by all signals once it is whole
            (`EarlyAccept`). Both are charged: answers that were shown, and cut off later, count as wrong.
        described: By model, how its signals are made live; or the cascade file that says so, whose models are then
            those that are read from a recording's file.
        architectures: By model.
        prices: By model.
        unit: Of costs.
        seed: Of the split.
        parts: In the place of a split by hashes.
        folder: Where the policy will be kept; paths in it are relative to this.
        rule: Which thresholds are tried: quantiles of the scores, only the next model's pass rate (`at_pass_rates`), or
            one for each label that an answer may give (`by_label`).
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
    check(material, promise, same, max_cost, signals, early)
    if early is not None and rule != "quantiles":
        raise ConfigurationError(f"`early` goes with the rule 'quantiles', not with '{rule}'.")
    bill = Costing.of(material.columns, material.models, architectures, prices, unit)
    if unit is None and bill.unit == "tokens":  # by which whoever asks two models saves nothing, ever
        raise ConfigurationError(
            "What the models cost is not known, and by tokens alone a small one is as dear as a large one: give sizes "
            "(`architectures=...`) or prices (`prices=...`) of every model; or say `unit='seconds'` or `unit='tokens'`."
        )
    names = _names(material, signals)
    routable = _routable(material.columns, names)
    lone = lone_path(material.columns, material.models, routable) if rule == "quantiles" and max_cost is None else None
    if parts is None:
        several = rule == "per-label" or any(len(each) > 1 for each in routable.values())
        shares = SHARES["threshold" if lone is not None else "signals" if several else "path"]
        parts = split_by_key(material.keys, seed=seed, shares=shares)
    parts.check(material.keys)
    singles = losses(material.columns, [[PolicyStage(model)] for model in material.models], material.models[-1], same)
    test = suited_test(singles, promise)
    task = _Task(material, parts, bill, _promises(material, promise, parts, test, per_group), test, same, max_cost)
    health = _health(task, names)
    made = Candidates(material.columns)
    path: TestPath | None
    if lone is not None:
        path = TestPath(lone.rule, lone.policies, np.empty((0, 0)), 0.0)
    else:
        made = _calibrate(task, routable, described or {}, rule, early)
        path = _choose(task, made, progress)
    if path is not None and per_group and max_cost is None:
        return _certify_groups(task, made, path, health, described=described or {}, seed=seed, folder=folder)
    return _certify(task, made, path, health, described=described or {}, seed=seed, folder=folder)


@dataclass(frozen=True)
class _Task:
    """What is to be fitted, on what.

    Attributes:
        material: The recording.
        split: Its questions in three parts.
        bill: Of costs.
        promises: By group that is tested; "" for all questions.
        test: By which test.
        same: As of `fit`.
        max_cost: As of `fit`.
    """

    material: FitData
    split: FitSplit
    bill: Costing
    promises: Mapping[str, Promise]
    test: TestName
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

    def same_of(self, rows: NDArray[np.intp]) -> NDArray[np.bool_] | None:
        return None if self.same is None else self.same[rows]


def _calibrate(
    task: _Task, names: Mapping[str, Sequence[str]], described: Mapping[str, Described], rule: Rule, early: str | None
) -> Candidates:
    """What is made of the signals, and the paths that can be tried."""
    columns, models, labels = task.columns, task.material.models, task.same is None
    made = Candidates(columns)
    if rule != "per-label" and any(len(each) > 1 for each in names.values()):
        made = derive(
            columns,
            models,
            names,
            task.right,
            task.split.calibrate,
            _spaces(columns, described),
            confidence="confidence" if labels else "agreement",
            gains=labels,
            early=early,
            texts=np.unique(np.array(task.material.keys, dtype=object), return_inverse=True)[1],
        )
    if rule == "pass-rate":
        return at_pass_rates(made, models, names, task.right, task.split.ordering)
    if rule == "per-label":
        return by_label(made, models, names, task.right, task.split.ordering, agreement=not labels)
    return candidates(made, models, names, task.split.ordering)


def _choose(task: _Task, made: Candidates, progress: Callable[[int, int, str], None] | None) -> TestPath | None:
    """The path that is put to the proof: of which most is expected, or, where a cost must be kept, the least loss."""
    ordering, proof = task.split.ordering, task.columns.groups[task.split.certify]
    columns, same = made.columns.take(ordering), task.same_of(ordering)
    n = {name: len(proof) if name == "" else int((proof == name).sum()) for name in task.promises}
    most = None if task.max_cost is None else task.max_cost * _dearest(task, columns)
    found: list[TestPath] = []
    for i, structure in enumerate(made.structures):
        if progress is not None:
            progress(i, len(made.structures), structure.rule)
        if most is None:
            found.append(expected(columns, structure, task.largest, same, task.bill, task.promises, n))
        elif (best := most_accurate(columns, structure, task.largest, same, task.bill, most)) is not None:
            found.append(best)
    if progress is not None:
        progress(len(made.structures), len(made.structures), "proof")
    if most is not None:
        return min(found, key=lambda each: (float(each.losses.mean()), -each.saved), default=None)
    return max(found, key=lambda each: (each.saved, each.hoped), default=None)


def _certify(
    task: _Task,
    made: Candidates,
    path: TestPath | None,
    health: Mapping[tuple[str, str], SignalHealth],
    *,
    described: Mapping[str, Described],
    seed: int,
    folder: Path | None,
) -> Fitted | NotCertified:
    """Put policies to the proof, and take the one that saves most of those that pass."""
    material, bill, split = task.material, task.bill, task.split
    proof, same = made.columns.take(split.certify), task.same_of(split.certify)
    tested: tuple[Contender, ...] = ()
    if path is not None and all((proof.groups == name).any() if name else len(proof) for name in task.promises):
        tested = put_to_proof(
            path, made.columns, proof, same, task.promises, task.test, largest=task.largest, bill=bill
        )
    passed = [runner for runner in tested if runner.certified]
    notes = _notes(task, made)
    nothing = functools.partial(
        nothing_promised,
        material=material,
        columns=made.columns,
        path=path,
        same=task.same,
        promises=task.promises,
        bill=bill,
        n=len(split.certify),
        tested=tested,
        health=health,
        notes=notes,
    )
    if not passed:
        return nothing(why_nothing(path, tested, too_few(task.promises, proof), task.max_cost))
    chosen = max(passed, key=lambda each: each.saved)
    saved = saving_of(proof, [each.policy for each in passed], passed.index(chosen), task.largest, bill)
    if saved.share <= 0:
        return nothing(dearer(chosen, saved, task.largest), plan=saved.high > 0)
    if saved.low < 0:
        notes.append(
            f"Whether this policy saves anything is not sure: the interval of its saving, {saved.low:.1%} to "
            f"{saved.high:.1%}, reaches below 0. Record more questions, or ask only {task.largest}."
        )
    if early := replay(proof, chosen.policy).shown_early.mean():
        notes.append(f"{early:.1%} of the questions are answered by a draft that is shown before its end.")
    certificates = [
        Certificate.of(examined, each, repeated=material.repeated)
        for examined, each in zip(chosen.examined, task.promises.values(), strict=True)
    ]
    policy = fitted_policy(
        material, made, chosen.policy, certificates, saved, described=described, seed=seed, folder=folder
    )
    target = next(iter(task.promises.values())).max_drop
    beside = rivals(material.columns.take(split.certify), material.models, same, bill, max_drop=target)
    return Fitted(policy, chosen.rule, chosen.policy, tested, health, split, beside, tuple(notes))


def _certify_groups(
    task: _Task,
    made: Candidates,
    path: TestPath,
    health: Mapping[tuple[str, str], SignalHealth],
    *,
    described: Mapping[str, Described],
    seed: int,
    folder: Path | None,
) -> Fitted | NotCertified:
    """The same for each group apart, the largest model alone where nothing passes that saves anything."""
    material, bill, split = task.material, task.bill, task.split
    groups = fit_groups(path, material, made.columns, split, task.same, task.promises, task.test, bill)
    tested = tuple(runner for group in groups for runner in group.tested)
    certificates = [group.certificate for group in groups if group.certificate is not None]
    notes = _notes(task, made)
    if not certificates:
        return nothing_promised(
            f"of the {len(groups)} groups there is none in which a policy passed that saves anything",
            material,
            made.columns,
            path,
            task.same,
            task.promises,
            bill,
            n=len(split.certify),
            tested=tested,
            health=health,
            notes=notes,
            groups=groups,
        )
    saved = saving_of_groups(made.columns.take(split.certify), groups, task.largest, bill)
    alone = (PolicyStage(task.largest),)
    policy = fitted_policy(
        material,
        made,
        alone,
        certificates,
        saved,
        described=described,
        seed=seed,
        folder=folder,
        groups={group.name: (group.stages, group.saving) for group in groups},
    )
    return Fitted(policy, path.rule, alone, tested, health, split, (), tuple(notes), groups)


def _notes(task: _Task, made: Candidates) -> list[str]:
    notes = [*task.material.notes]
    if task.same is None and only_grade(task.material) == 1:
        notes.append(
            "CHECK THE GRADER: it calls every answer of every model right. If some are wrong, this promise is worth "
            "nothing."
        )
    return notes + made.notes


def _dearest(task: _Task, columns: Columns) -> float:
    """The largest model's mean cost."""
    return float(task.bill.means(columns, [[PolicyStage(task.largest)]])[0])


def _names(material: FitData, wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """By model but the last, the signals that are asked for."""
    return {
        model: sorted(
            name for owner, name in material.columns.signals if owner == model and (wanted is None or name in wanted)
        )
        for model in material.models[:-1]
    }


def _routable(columns: Columns, names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Those of them that have different scores: whatever is made of one score, it keeps all or nothing."""

    def routes(model: str, name: str) -> bool:
        values = columns.signal(model, name).values
        return len(np.unique(values[np.isfinite(values)])) > 1

    return {model: [name for name in own if routes(model, name)] for model, own in names.items()}


def _health(task: _Task, names: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], SignalHealth]:
    """Of every signal, on the questions that choose, or on all where none do: for reports, it decides nothing."""
    columns, labels = task.columns, task.same is None
    rows = task.split.ordering if len(task.split.ordering) else task.split.certify
    found, classes = {}, ("right", "wrong") if labels else ("agreeing", "differing")
    for model, own in names.items():
        j = columns.index(model)
        judged = rows[columns.usable[rows, j]]
        its = task.right[judged, j]
        if len(its) and not its.any():  # all right is another matter: such a model may do alone
            what, where = ("wrong", "grader") if labels else ("other than the largest model's", "equivalence")
            raise ConfigurationError(
                f"All {len(its):,} answers of '{model}' that could choose a threshold are {what}: of one class only, "
                f"no signal can be told to be good or bad. Look at the {where}, or leave the model out of `models=...`."
            )
        for name in own if len(judged) else ():
            found[model, name] = signal_health(columns.signals[model, name].values[judged], its, classes=classes)
    return found


def _promises(
    material: FitData, promise: Promise, parts: FitSplit, test: TestName, per_group: bool
) -> dict[str, Promise]:
    if not per_group:
        return {"": promise}
    names = sorted(set(material.columns.groups.tolist()))
    if "" in names:
        raise ConfigurationError("A promise for every group needs a group of every question; some have none.")
    if promise.max_drop is None:
        return promise.per_group(names)
    proof = material.columns.groups[parts.certify]
    return promise.per_group(testable({name: int((proof == name).sum()) for name in names}, promise, test))


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
