"""Targets other than accuracy, of policies on a recording: what is promised of them, and a fit for them.

`Wanted` puts the targets and a drop of accuracy together, and `fit_targets` chooses a threshold of one signal by some
questions and proves it on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.candidates import Candidates
from confcascade.bench.fitting.describe import told
from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.played import ClassAnswers, QueryLimits, played
from confcascade.bench.fitting.policy_file import Described, fitted_policy, saving_of
from confcascade.bench.fitting.proof import losses
from confcascade.bench.fitting.splitting import SHARES, FitSplit, split_by_key
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.cascade_file import CascadeFile
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.guarantee import (
    CAP_KINDS,
    CAPS_SHARE,
    CLASS_KINDS,
    Certificate,
    Evidence,
    Examined,
    Paired,
    Played,
    Promise,
    Proof,
    Shown,
    Target,
    TargetCertificate,
    TestName,
    in_testing_order,
    prove_within,
    suited_test,
)
from confcascade.policy import AnyCertificate, Policy

__all__ = ["EACH", "TargetsFit", "Wanted", "fit_targets"]

EACH = "each"  # in the place of a class: every class that the questions which choose are of
_THRESHOLDS = np.linspace(0.98, 0.02, 49)


@dataclass(frozen=True)
class Wanted:
    """Everything that shall hold at once.

    Attributes:
        targets: Other than accuracy.
        promise: Of accuracy or agreement, with a `max_drop`; None if none is wanted.
        confidence: With which all hold together.
    """

    targets: tuple[Target, ...]
    promise: Promise | None
    confidence: float

    def __post_init__(self) -> None:
        if not self.targets and self.promise is None:
            raise ConfigurationError("There is nothing to promise: give a target or a `max_drop`.")
        if not 0 < self.confidence < 1:
            raise ConfigurationError(f"`confidence` must be between 0 and 1, such as 0.95. Got {self.confidence}.")
        if self.promise is not None and (self.promise.max_drop is None or self.promise.confidence != self.confidence):
            raise ConfigurationError("A promise among targets has a `max_drop`, and the confidence of all.")
        if sum(each.kind == "total" for each in self.targets) > 1:
            raise ConfigurationError("An error has one price. Got several.")

    @property
    def goal(self) -> Literal["total", "cost", "loss"]:
        """What is to be small among the policies that hold: cost and priced errors; the cost, where a target guards
        the quality; else the loss against the largest model."""
        if any(each.kind == "total" for each in self.targets):
            return "total"
        guarded = self.promise is not None or any(each.kind in CLASS_KINDS for each in self.targets)
        return "cost" if guarded else "loss"

    def objective(self, seen: Played, lost: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each policy, what is to be small.

        Args:
            seen: What they do.
            lost: Paired losses, shape (policies, questions).
        """
        if self.goal == "loss":
            return np.asarray(lost.mean(axis=1))
        cost = seen.cost.mean(axis=1)
        if self.goal == "total":
            price = next(each.limit for each in self.targets if each.kind == "total")
            cost = cost - price * seen.grade.mean(axis=1)
        return np.asarray(cost)

    @property
    def caps(self) -> tuple[Target, ...]:
        """Targets that whoever asks the largest model seldom keeps: on cost and time."""
        return tuple(each for each in self.targets if each.kind in CAP_KINDS)

    @property
    def tested(self) -> tuple[Promise | None, float, float]:
        """The promise as it is tested, and the confidences of tests of quality and of caps: where both are wanted,
        their error probabilities add up to what is allowed."""
        both = self.caps and len(self.caps) < len(self.targets) + (self.promise is not None)
        if not both:
            return self.promise, self.confidence, self.confidence
        delta = 1 - self.confidence
        quality, caps = 1 - (1 - CAPS_SHARE) * delta, 1 - CAPS_SHARE * delta
        return None if self.promise is None else replace(self.promise, confidence=quality), quality, caps

    def evidence(
        self, seen: Played, lost: NDArray[np.float64], tests: Sequence[TestName]
    ) -> tuple[list[Evidence], list[Evidence]]:
        """The variables of all targets: those of quality, accuracy first, and those of caps.

        Args:
            seen: What the policies do.
            lost: Their paired losses, shape (policies, questions).
            tests: Of accuracy, one for each policy, fixed without these questions; needed by `Paired.examine` only.
        """
        promise, quality, caps = self.tested
        found: list[Evidence] = [] if promise is None else [Paired(promise, lost, tests)]
        found += [each.evidence(seen, quality) for each in self.targets if each.kind not in CAP_KINDS]
        return found, [each.evidence(seen, caps) for each in self.caps]

    def order(
        self,
        seen: Played,
        lost: NDArray[np.float64],
        chains: Sequence[Sequence[int]],
    ) -> tuple[list[int], list[int]]:
        """The path of tests and the way back, as of `prove_within`, from questions that will not test.

        Args:
            seen: What the policies do on them.
            lost: Paired losses, likewise.
            chains: Policies that differ in a threshold alone, those that keep the fewest answers first.
        """
        quality, caps = self.evidence(seen, lost, ())
        if not quality:
            path = in_testing_order(caps, self.objective(seen, lost), [chain[::-1] for chain in chains])
            return path, path
        path = in_testing_order(quality, self.objective(seen, lost), chains)
        if not caps:
            return path, path
        margin = np.min([each.margins() for each in caps], axis=0)
        return path, sorted(path, key=lambda i: -margin[i])


@dataclass(frozen=True)
class TargetsFit:
    """What came of a fit for several targets.

    Attributes:
        policy: With its promises; None if nothing can be promised.
        stages: It, as it is replayed; empty if there is none.
        tested: Policies in the order of their tests, with what was shown of each target; only the last can have failed.
        split: Of the material's questions.
        why: In words, why there is no policy; "" if there is.
        notes: What a reader should know.
    """

    policy: Policy | None
    stages: tuple[PolicyStage, ...]
    tested: tuple[tuple[tuple[PolicyStage, ...], tuple[Shown | Examined, ...]], ...]
    split: FitSplit
    why: str
    notes: tuple[str, ...]

    def describe(self) -> str:
        """Several lines: what is promised, or why nothing is; and the policies that were tested."""
        chosen, proof = len(self.split.ordering), len(self.split.certify)
        if self.policy is None:
            lines = [
                f"Nothing can be promised with {chosen + proof:,} questions, {proof:,} of them for the proof: "
                f"{self.why}.",
                "Until then, ask the largest model alone.",
            ]
        else:
            lines = [
                self.policy.describe(),
                "",
                f"Chosen with {chosen:,} questions and proved on {proof:,} others.",
            ]
        if others := [each for each in self.tested if each[0] != self.stages]:
            lines += ["", "Tested, too:" if self.policy else "Tested:"]
            lines += [f"  {told(policy)}: {'; '.join(map(_in_words, shown))}" for policy, shown in others[-5:]]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])


def fit_targets(
    material: FitData,
    wanted: Wanted,
    *,
    same: NDArray[np.bool_] | None = None,
    limits: QueryLimits | None = None,
    signals: Sequence[str] | None = None,
    described: Mapping[str, Described] | CascadeFile | None = None,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    unit: str | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> TargetsFit:
    """Choose a threshold of one signal of one smaller model before the largest, so that all targets hold.

    Some of the questions choose (`SHARES`); thresholds stand at quantiles of their scores. The others prove policies in
    the order of `in_testing_order`; of those that hold, the best by `Wanted.goal` over all questions is taken.

    Args:
        material: The recording, read with `texts` if a target speaks of a class.
        wanted: What shall hold.
        same: Without labels, whether answers are the largest model's (`agreement`); another one is then an error. With
            labels None.
        limits: What a question costs at most.
        signals: Which to use; by default all.
        described: By model, how its signals are made live, or the cascade file that says so.
        architectures: By model.
        prices: By model.
        unit: Of costs.
        seed: Of the split.
        folder: Where the policy will be kept; paths in it are relative to this.

    Raises:
        ConfigurationError: If a target needs what the recording does not tell, or a bound that is not given.
    """
    if wanted.promise is not None and (wanted.promise.equivalence is None) != (same is None):
        raise ConfigurationError("An equivalence and the answers compared by it go together.")
    if len(material.models) < 2:
        raise ConfigurationError(f"A policy chooses among models; the recording has only {material.models[0]}.")
    if isinstance(described, CascadeFile):
        described.only_whole("A fitted policy")
        described = {name: Described(each, described.folder) for name, each in described.signal_entries.items()}
    bill = Costing.of(material.columns, material.models, architectures, prices, unit)
    split = split_by_key(material.keys, seed=seed, shares=SHARES["path"])
    largest, limits = material.models[-1], limits or QueryLimits()
    classes = None
    if any(each.of is not None for each in wanted.targets):
        classes = ClassAnswers.of(material, labels=same is None)
        wanted = replace(wanted, targets=_spelled(wanted.targets, classes, split.ordering))
    policies, chains = _candidates(material, split.ordering, signals)

    def seen(rows: NDArray[np.intp], chosen: Sequence[tuple[PolicyStage, ...]]) -> tuple[Played, NDArray[np.float64]]:
        columns = material.columns.take(rows)
        its = None
        if classes is not None:
            its = replace(classes, answers=classes.answers[rows], references=classes.references[rows])
        found = played(columns, chosen, largest, bill, classes=its, limits=limits)
        if same is None:
            return found, found.largest_grade - found.grade
        lost = losses(columns, chosen, largest, same[rows])
        return replace(found, grade=1 - lost, largest_grade=np.ones(len(rows))), lost

    ordering, lost = seen(split.ordering, policies)
    path, back = wanted.order(ordering, lost, chains)
    tried, promise = [policies[i] for i in path], wanted.tested[0]
    tests = [] if promise is None else [suited_test(lost, promise)] * len(path)
    proofs: list[Proof] = []
    if len(split.certify):
        there = [path.index(i) for i in back]
        proofs = prove_within(*wanted.evidence(*seen(split.certify, tried), tests), range(len(tried)), there)
    tested = tuple((tried[each.policy], each.shown) for each in proofs)
    passed = [tried[each.policy] for each in proofs if each.certified]
    if not passed:
        return TargetsFit(None, (), tested, split, _why(tested), material.notes)
    best = int(np.argmin(wanted.objective(*seen(np.arange(len(material)), passed))))
    saved = saving_of(material.columns.take(split.certify), passed, best, largest, bill)
    if wanted.goal == "cost" and saved.high < 0:
        why = f"the cheapest policy that holds, {told(passed[best])}, costs more than {largest} alone"
        return TargetsFit(None, (), tested, split, why, material.notes)
    notes = [*material.notes]
    if wanted.goal == "loss":
        (came,) = seen(split.certify, [passed[best]])[1]
        what = "points of accuracy" if same is None else "points of agreement"
        notes.append(
            f"Nothing is promised of its quality: on the questions of the proof it lost {100 * came.mean():.2f} {what} "
            f"against {largest}. To have that promised, too, give a `max_drop=...`."
        )
    if wanted.goal == "cost" and saved.low < 0:
        notes.append(f"Whether this policy saves anything is not sure: {saved.low:.1%} to {saved.high:.1%}.")
    certificates: list[AnyCertificate] = []
    for one in next(shown for policy, shown in tested if policy == passed[best]):
        if isinstance(one, Examined):
            assert wanted.promise is not None
            certificates.append(Certificate.of(one, wanted.promise, repeated=material.repeated))
        else:
            certificates.append(
                TargetCertificate.of_shown(
                    one,
                    wanted.confidence,
                    against="references" if classes is None else classes.against,
                    unit=bill.unit,
                    tokens=limits.tokens,
                    timeout=limits.timeout,
                    repeated=material.repeated,
                )
            )
    policy = fitted_policy(
        material,
        Candidates(material.columns),
        passed[best],
        certificates,
        saved,
        described=described or {},
        seed=seed,
        folder=folder,
    )
    return TargetsFit(policy, passed[best], tested, split, "", tuple(notes))


def _why(tested: Sequence[tuple[tuple[PolicyStage, ...], tuple[Shown | Examined, ...]]]) -> str:
    """Why no policy holds, as a clause."""
    if not tested:
        return "there is no question to prove it on"
    held = [(policy, shown) for policy, shown in tested if all(one.certified for one in shown)]
    if held:
        return "some policies keep some of the targets, but none was shown to keep all of them"
    (policy, shown), *_ = tested
    failed = [one for one in shown if not one.certified]
    return f"of {told(policy)}, the likeliest to hold, {'; '.join(map(_in_words, failed))}"


def _spelled(targets: Sequence[Target], classes: ClassAnswers, rows: NDArray[np.intp]) -> tuple[Target, ...]:
    """Targets with classes as the recording writes them, and one for every class in the place of `EACH`.

    Classes are those of the questions that choose, so that the questions of the proof do not choose what is promised.
    """
    found: list[Target] = []
    for target in targets:
        if target.of == EACH:
            names = [classes.classes[i] for i in np.unique(classes.references[rows]) if i >= 0]
            found += [replace(target, of=name) for name in names]
        else:
            found.append(classes.named(target))
    return tuple(found)


def _candidates(
    material: FitData, rows: NDArray[np.intp], signals: Sequence[str] | None
) -> tuple[list[tuple[PolicyStage, ...]], list[list[int]]]:
    """Every smaller model before the largest, with a threshold of each of its signals, and alone; and which policies
    differ in a threshold alone, those that keep the fewest answers first."""
    columns, largest = material.columns.take(rows), material.models[-1]
    known = {name for owner, name in columns.signals if owner in material.models[:-1]}
    if strange := [name for name in signals or () if name not in known]:
        raise ConfigurationError(
            f"No smaller model of the recording has a signal '{strange[0]}'. They have: {', '.join(sorted(known))}."
        )
    found: list[tuple[PolicyStage, ...]] = []
    chains: list[list[int]] = []
    for model in material.models[:-1]:
        alone = len(found)
        found.append((PolicyStage(model),))
        chains.append([alone])
        for owner, name in sorted(columns.signals):
            if owner != model or (signals is not None and name not in signals):
                continue
            scores = columns.signals[owner, name].values
            scores = scores[np.isfinite(scores)]
            levels = np.unique(np.quantile(scores, _THRESHOLDS))[::-1].tolist() if len(scores) else []
            chains.append([*range(len(found), len(found) + len(levels)), alone])
            found += [(PolicyStage(model, {name: level}), PolicyStage(largest)) for level in levels]
    return found, chains


def _in_words(shown: Shown | Examined) -> str:
    verdict = "holds" if shown.certified else "not shown"
    if isinstance(shown, Examined):
        lost = f"{shown.harms:,} lost and {shown.benefits:,} gained of {shown.n:,}"
        return f"{lost}, at most {shown.bound:.2%}: {verdict}"
    target = shown.target
    named = target.kind if target.of is None else f"{target.kind} of '{target.of}'"
    if shown.test == "betting":
        return f"{named}: {shown.seen:+.3g} against what is allowed, may be {shown.bound:+.3g}: {verdict}"
    side = "at least" if target.kind in CLASS_KINDS else "at most"
    return f"{named}: {shown.seen:.2%} of {shown.counted:,}, {side} {shown.bound:.2%}: {verdict}"
