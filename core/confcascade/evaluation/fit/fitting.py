"""Calibrate on some questions, choose on these and more, certify on the rest."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confcascade.cost import Architecture, Prices
from confcascade.entries.signals import SignalType
from confcascade.errors import ConfigurationError
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.derived import with_confidence, with_gain
from confcascade.evaluation.fit.candidates import Candidates, Derived, candidates, derive
from confcascade.evaluation.fit.material import Material
from confcascade.evaluation.fit.proof import Bill, Tried, in_order, most_accurate, prove, shortlist
from confcascade.evaluation.fit.splitting import SHARES, Parts, split_by_key
from confcascade.evaluation.health import SignalHealth, signal_health
from confcascade.evaluation.replay import PolicyStage, replay
from confcascade.evaluation.significance import saving
from confcascade.guarantee import (
    Certificate,
    Examined,
    Promise,
    Test,
    examples_needed_like,
    fewest_examples,
    sharpest_test,
)
from confcascade.policy import CalibratedEntry, ExpectedGainEntry, FittedStage, MadeFrom, Policy, Saving

__all__ = ["Described", "Fitted", "Nothing", "Runner", "fit", "replayable"]

_PLANNED = 3  # policies of the order for which the planner is asked


@dataclass(frozen=True)
class Described:
    """How to make a model's signals live, as a cascade file says it.

    Attributes:
        entries: The signals.
        folder: What their paths are relative to.
    """

    entries: Sequence[SignalType]
    folder: Path


@dataclass(frozen=True)
class Runner:
    """A policy that was tested, too.

    Attributes:
        rule: What keeps an answer.
        policy: It.
        saved: Share of the largest model's cost, on the questions that ordered policies.
        examined: What was shown, by group.
    """

    rule: str
    policy: tuple[PolicyStage, ...]
    saved: float
    examined: tuple[Examined, ...]

    @property
    def certified(self) -> bool:
        """Whether it holds, too."""
        return all(each.certified is not False for each in self.examined)


@dataclass(frozen=True)
class Fitted:
    """A policy with its promise, and what stood beside it.

    Attributes:
        policy: It.
        rule: What keeps an answer.
        stages: It, as it is replayed on `replayable` columns.
        tested: All that were tested, in their order.
        health: Of every signal, by model and name.
        parts: Of the material's questions.
        notes: What a reader should know.
    """

    policy: Policy
    rule: str
    stages: tuple[PolicyStage, ...]
    tested: tuple[Runner, ...]
    health: Mapping[tuple[str, str], SignalHealth]
    parts: Parts
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Nothing:
    """Nothing can be promised.

    Attributes:
        why: In words.
        n: Questions there were for the proof.
        questions: In all.
        more: How many more in all would do; None if no number is known that would.
        saved: What the policy that they would do for saves, about.
        usd: What collecting them costs, about; None if prices are not known.
        tokens: Likewise.
        seconds: Likewise, one after the other; None if the recording tells no times.
        tested: As of `Fitted`.
        health: As of `Fitted`.
        notes: As of `Fitted`.
    """

    why: str
    n: int
    questions: int
    more: int | None
    saved: float | None
    usd: float | None
    tokens: float
    seconds: float | None
    tested: tuple[Runner, ...]
    health: Mapping[tuple[str, str], SignalHealth]
    notes: tuple[str, ...]


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
    _check(material, promise, same, max_cost, signals)
    columns, models, largest = material.columns, material.models, material.models[-1]
    right = material.right if same is None else same
    split = split_by_key(material.keys, seed=seed) if parts is None else parts
    split.check(material.keys)
    ordering, n = split.ordering, len(split.certify)
    bill = Bill.of(columns, models, architectures, prices, unit)
    if unit is None and bill.unit == "tokens":  # by which whoever asks two models saves nothing, ever
        raise ConfigurationError(
            "What the models cost is not known, and by tokens alone a small one is as dear as a large one: give sizes "
            "(--parameters small=8e9,large=70e9) or prices (--prices) of every model; or say --unit seconds or tokens."
        )
    promises = _promises(material, promise, split, per_group)
    health = _health(columns, models, right, ordering, signals)
    routable = {
        model: [name for (owner, name), each in health.items() if owner == model and each.can_route] for model in models
    }
    notes = list(material.notes)
    blind = not any(routable[model] for model in models[:-1])
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
    found: list[Tried] = []
    for i, structure in enumerate(made.structures):
        if progress is not None:
            progress(i, len(made.structures), structure.rule)
        if max_cost is None:
            found += shortlist(whole, structure, largest, alike, bill, narrowest, max(n, 1))
        else:
            most = max_cost * dearest
            found += most_accurate(whole, structure, largest, alike, bill, narrowest, max(n, 1), most)
    if progress is not None:
        progress(len(made.structures), len(made.structures), "proof")
    if max_cost is None:
        path = in_order(found, narrowest, max(n, 1))
    else:
        path = sorted(found, key=lambda each: (float(each.losses.mean()), each.cost))[:1]
    tests = [_tests(each, whole.groups, promises, split, columns) for each in path]
    proof = made.columns.take(split.certify)
    shown: list[list[Examined]] = []
    lacking = _too_few(promises, proof)
    if path and not lacking:
        shown = prove(proof, path, largest, None if same is None else same[split.certify], promises, tests)
    tested = tuple(
        Runner(each.rule, each.policy, 1 - each.cost / dearest, tuple(examined))
        for each, examined in zip(path, shown, strict=False)
    )
    passed = [i for i, runner in enumerate(tested) if runner.certified]
    if not passed:
        return _nothing(material, path, promises, lacking, tested, health, notes, dearest, bill, split, max_cost, blind)
    chosen = passed[-1]  # each is cheaper than all before it
    stages = path[chosen].policy
    policy = Policy(
        models=list(models),
        stages=[
            _stage(material, made, each, last=each is stages[-1], described=described or {}, folder=folder)
            for each in stages
        ],
        certificates=[
            Certificate.of(examined, each) for examined, each in zip(shown[chosen], promises.values(), strict=True)
        ],
        saving=_saving(proof, stages, largest, bill),
        made_from=MadeFrom(
            recording=material.digest,
            data=material.identity.get("data"),
            grader=material.identity.get("grader"),
            parameters=material.identity.get("parameters"),
            seed=seed,
            questions=len(material),
            keyed_by=material.keyed_by,
            keys=base64.b64encode(b"".join(sorted(material.keys))).decode(),
        ),
    )
    return Fitted(policy, path[chosen].rule, stages, tested, health, split, tuple(notes))


def replayable(columns: Columns, policy: Policy) -> tuple[Columns, tuple[PolicyStage, ...]]:
    """A recording with the signals that a policy is made of, and its stages, to be replayed on it.

    Raises:
        ConfigurationError: If the recording lacks a model or a signal.
    """
    for stage in policy.listed:
        columns.index(stage.model)
        for each in stage.derived:
            if isinstance(each, CalibratedEntry):
                (own,) = each.calibrators
                columns = with_confidence(columns, stage.model, own, name=each.name)
            else:
                own, larger = each.calibrators
                columns = with_gain(columns, stage.model, own, larger, name=each.name)
    return columns, tuple(PolicyStage(stage.model, dict(stage.thresholds), dict(stage.skip)) for stage in policy.listed)


# ---------------------------------------------------------------------- what is refused


def _check(
    material: Material,
    promise: Promise,
    same: NDArray[np.bool_] | None,
    max_cost: float | None,
    signals: Sequence[str] | None,
) -> None:
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
    if same is not None:
        return
    at = [columns.index(model) for model in material.models]
    grades = np.where(columns.failed[:, at], 0.0, columns.grades[:, at])
    if (grades == grades[0, 0]).all():
        raise ConfigurationError(
            f"Every grade in the recording is {grades[0, 0]:g}: labels that are all alike tell no answer from another. "
            "Look at the grader and its references."
        )


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
                "Look at the grader, or leave the model out with --models."
            )
        names = sorted(name for owner, name in columns.signals if owner == model)
        for name in names if wanted is None else [name for name in names if name in wanted]:
            if len(judged):
                found[model, name] = signal_health(columns.signals[model, name].values[judged], labels)
    return found


def _promises(material: Material, promise: Promise, split: Parts, per_group: bool) -> dict[str, Promise]:
    if not per_group:
        return {"": promise}
    names = sorted(set(material.columns.groups.tolist()))
    if "" in names:
        raise ConfigurationError("A promise for every group needs a group of every question; some have none.")
    del split
    return promise.per_group(names)


def _too_few(promises: Mapping[str, Promise], proof: Columns) -> str:
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


# ---------------------------------------------------------------------- parts


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


def _saving(columns: Columns, stages: Sequence[PolicyStage], largest: str, bill: Bill) -> Saving:
    alone = [PolicyStage(largest)]
    ours, theirs = bill.each(columns, stages), bill.each(columns, alone)
    played = replay(columns, stages)
    asked = np.zeros(len(columns), bool)
    if stages[-1].model == largest:
        asked = played.decision[:, -1] != -1
    share, low, high = saving(ours, theirs)
    return Saving(
        unit=bill.unit,  # type: ignore[arg-type]
        cost=float(ours.mean()),
        largest=float(theirs.mean()),
        share=share,
        low=low,
        high=high,
        spared=float(1 - asked.mean()),
    )


def _stage(
    material: Material,
    made: Candidates,
    stage: PolicyStage,
    *,
    last: bool,
    described: Mapping[str, Described],
    folder: Path | None,
) -> FittedStage:
    model, thresholds = stage.model, {} if last else dict(stage.thresholds)
    derived = [made.derived[model, name] for name in thresholds if (model, name) in made.derived]
    entries = [_entry(each) for each in derived]
    bare = FittedStage(model=model, thresholds=thresholds, derived=entries)
    needs = bare.needs
    known = described.get(model)
    recorded = material.identity.get("models", {}).get(model, {}).get("signals", {})
    return FittedStage(
        model=model,
        build=material.builds.get(model),
        prompt_version=material.prompt_versions.get(model),
        signals=[] if known is None else _entries(known, needs, folder or Path()),
        identities={name: recorded[name] for name in needs if name in recorded},
        derived=entries,
        thresholds=thresholds,
        skip=dict(stage.skip),
    )


def _entries(described: Described, needs: Sequence[str], folder: Path) -> Any:
    """As a file says them, for the policy to read."""
    wanted = [each.moved(described.folder, folder) for each in described.entries if each.name in needs]
    return [each.model_dump(mode="json") for each in wanted]


def _entry(derived: Derived) -> CalibratedEntry | ExpectedGainEntry:
    own = derived.own.as_dict()
    if derived.larger is None:
        return CalibratedEntry(type="calibrated", name=derived.name, calibrator=own)
    return ExpectedGainEntry(type="expected_gain", name=derived.name, own=own, larger=derived.larger.as_dict())


# ---------------------------------------------------------------------- nothing


def _nothing(
    material: Material,
    path: Sequence[Tried],
    promises: Mapping[str, Promise],
    lacking: str,
    tested: tuple[Runner, ...],
    health: Mapping[tuple[str, str], SignalHealth],
    notes: Sequence[str],
    dearest: float,
    bill: Bill,
    split: Parts,
    max_cost: float | None,
    blind: bool,
) -> Nothing:
    n, promise = len(split.certify), next(iter(promises.values()))
    why = lacking
    if not path:
        why = (
            "no policy that was tried costs less than the largest model alone"
            if max_cost is None
            else f"no policy that was tried costs at most {max_cost:.0%} of the largest model alone"
        )
    elif not why:
        failed = tested[0].examined
        worst = max(failed, key=lambda each: each.bound)
        why = (
            f"the safest policy that saves anything lost {worst.harms:,} answers and gained {worst.benefits:,} of "
            f"{worst.n:,}, so its loss may be {worst.bound:.2%}"
        )
    if blind:
        why = f"no signal can route, so that only single models could be tried, and {why}"
    more, saved = None, None
    if path and promise.max_drop is not None and len(promises) == 1:
        more, saved = _planned(material, path, promise, dearest)
    per_question = _collecting(material, bill)
    times = 0 if more is None else more
    usd, tokens, seconds = per_question
    return Nothing(
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
    material: Material, path: Sequence[Tried], promise: Promise, dearest: float
) -> tuple[int | None, float | None]:
    """The fewest further questions for any policy of the order, and what it saves."""
    best: tuple[int, float] | None = None
    for i in np.unique(np.linspace(0, len(path) - 1, _PLANNED).round().astype(int)):
        tried = path[i]
        if i and tried.losses.mean() > promise.tested_drop / 2:
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


def _collecting(material: Material, bill: Bill) -> tuple[float | None, float, float | None]:
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
