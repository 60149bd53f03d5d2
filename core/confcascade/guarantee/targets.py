"""Other targets than accuracy: a class's precision, recall and F1, the price of errors, cost, latency.

Each target is a statement about one variable of a question, in one of two forms:

- *a share*: of the questions that count, at most so many fail. Which count hangs on answers (of precision those that
  are answered with the class), so their number is random; given it, the failures are binomial, and a Clopper-Pearson
  bound is exact whatever that number turns out to be.
- *a mean*: a variable that cannot exceed a known bound has a mean of at most 0. It is tested by betting, which holds at
  any number of questions and needs no bound from below.

Several targets of quality are promised together by testing each at the whole level and asking that all pass: whoever
breaks any of them must pass the test of that very one, so nothing is divided. Caps on cost and time are tested from the
other end of the path, where they are likeliest to hold, at a tenth of the level (docs/design/targets.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from confcascade.errors import ConfigurationError
from confcascade.guarantee.bounds import betting_wins, upper
from confcascade.guarantee.certification import Examined, TestName, examine
from confcascade.guarantee.promise import Promise

__all__ = [
    "CAPS_SHARE",
    "CAP_KINDS",
    "CLASS_KINDS",
    "Evidence",
    "Mean",
    "Paired",
    "Played",
    "Proof",
    "Share",
    "Shown",
    "Target",
    "TargetKind",
    "in_testing_order",
    "prove_together",
    "prove_within",
]

TargetKind: TypeAlias = Literal["precision", "recall", "f1", "asked", "late", "latency", "cost", "total"]
CLASS_KINDS: tuple[TargetKind, ...] = ("precision", "recall", "f1")
CAP_KINDS: tuple[TargetKind, ...] = (
    "asked",
    "late",
    "latency",
    "cost",
)  # kept by whoever asks the largest model seldom
CAPS_SHARE = 0.1  # of delta, where caps and quality are promised together: costs vary little, and need less
_LIKELY, _SURE = 1.0, 3.0  # standard errors on the questions that order, which are fewer than those that test
_NEARLY = 0.8  # of the widest margin
_TOLERANCE = 1e-4  # of a bound on a mean that is searched for, as a share of the variable's own bound


@dataclass(frozen=True)
class Target:
    """What shall be promised of a policy.

    Attributes:
        kind: "precision", "recall" or "f1" of a class: at least `limit`. "asked": the largest model is asked at most
            this share of the questions. "late": at most this share of them takes longer than `seconds`. "latency": a
            question takes at most so many seconds on average. "cost": the mean cost is at most this share of the
            largest model's. "total": with an error priced at `limit`, in the unit of costs, cost and errors together
            are on average at most the largest model's.
        limit: As told by the kind.
        of: The class; None where the kind knows none.
        seconds: Of "late".
    """

    kind: TargetKind
    limit: float
    of: str | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.kind in CLASS_KINDS) != (self.of is not None):
            raise ConfigurationError(f"A class is named by precision, recall and F1, and by these only. Got {self}.")
        if (self.kind == "late") != (self.seconds is not None):
            raise ConfigurationError(f"`seconds` belong to the target 'late', which needs them. Got {self}.")
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigurationError(f"`seconds` must be above 0. Got {self.seconds:g}.")
        if self.kind in ("latency", "total"):
            if not 0 < self.limit < np.inf:
                what = "A mean latency in seconds" if self.kind == "latency" else "The price of an error"
                raise ConfigurationError(f"{what} must be above 0. Got {self.limit:g}.")
        elif not 0 < self.limit < 1:
            raise ConfigurationError(
                f"The limit of '{self.kind}' is a share between 0 and 1, such as 0.9 for 90 %. Got {self.limit:g}."
            )

    @property
    def failing(self) -> float:
        """Of a share: how many of the questions that count may fail.

        F1 = 2 TP / (2 TP + FP + FN) is at least t where FP + FN are at most 2 (1 - t) / (2 - t) of TP + FP + FN, so of
        the questions that have the class or are given it. (The same as E[2 TP - t (2 TP + FP + FN)] >= 0.)
        """
        if self.kind == "f1":
            return 2 * (1 - self.limit) / (2 - self.limit)
        return 1 - self.limit if self.kind in CLASS_KINDS else self.limit

    def measured(self, failing: float) -> float:
        """A failing share in the target's own terms: the inverse of `failing`."""
        if self.kind == "f1":
            return 2 * (1 - failing) / (2 - failing)
        return 1 - failing if self.kind in CLASS_KINDS else failing

    def evidence(self, played: Played, confidence: float) -> Evidence:
        """The target's variable, of every policy and question, with its test.

        Args:
            played: What the policies do.
            confidence: With which the target shall hold.

        Raises:
            ConfigurationError: If what it needs is not known, or its variable has no bound.
        """
        match self.kind:
            case "precision" | "recall" | "f1":
                return Share(self, self._class_marks(played), confidence)
            case "asked":
                return Share(self, played.asked.astype(np.int8), confidence)
            case "late":
                if not np.isfinite(played.seconds).all():
                    raise ConfigurationError("The recording does not tell how long each answer took: collect again.")
                return Share(self, (played.seconds > (self.seconds or 0.0)).astype(np.int8), confidence)
            case "latency":
                return Mean(self, played.seconds - self.limit, played.top("seconds") - self.limit, confidence)
            case "cost":
                # who asks the largest model pays all the others and (1 - limit) of it
                top = played.top("others") + (1 - self.limit) * played.top("largest")
                return Mean(self, played.cost - self.limit * played.largest_cost, top, confidence)
            case "total":
                # where the largest model is asked, its cost and its answer cancel out
                values = played.cost - played.largest_cost + self.limit * (played.largest_grade - played.grade)
                return Mean(self, values, played.top("others") + self.limit, confidence)

    def _class_marks(self, played: Played) -> NDArray[np.int8]:
        if self.of not in played.classes:
            known = ", ".join(repr(each) for each in played.classes[:20]) or "none"
            raise ConfigurationError(
                f"No answer and no reference of the recording is '{self.of}', of which a target speaks. Classes there: "
                f"{known}."
            )
        code = played.classes.index(self.of)
        given, has = played.answers == code, np.broadcast_to(played.references == code, played.answers.shape)
        counts = {"precision": given, "recall": has, "f1": given | has}[self.kind]
        marks: NDArray[np.int8] = np.where(counts, (given != has).astype(np.int8), np.int8(-1))
        return marks


@dataclass(frozen=True)
class Played:
    """What policies do on questions: arrays of shape (policies, questions), or (questions,) where all do the same.

    What is not needed may be left out.

    Attributes:
        asked: Whether the largest model was asked.
        cost: In one unit, every model that ran.
        largest_cost: Of the largest model alone, shape (questions,).
        grade: From 0 to 1.
        largest_grade: Of the largest model alone, shape (questions,).
        seconds: From the question to the answer, every model that ran.
        answers: Which of the `classes` each answer is; -1 where there is none.
        references: Which of them it ought to be, shape (questions,); -1 where that is not known.
        classes: Names.
        tops: What a question can cost at most: "others" (all models of a policy but the largest together) and
            "seconds" (all of them) of shape (policies,), and "largest" of shape (); what is missing has no bound.
    """

    asked: NDArray[np.bool_]
    cost: NDArray[np.float64]
    largest_cost: NDArray[np.float64]
    grade: NDArray[np.float64]
    largest_grade: NDArray[np.float64]
    seconds: NDArray[np.float64]
    answers: NDArray[np.int32]
    references: NDArray[np.int32]
    classes: tuple[str, ...]
    tops: dict[str, NDArray[np.float64]]

    def take(self, policies: NDArray[np.intp], questions: NDArray[np.intp]) -> Played:
        """Some policies on some questions."""
        both = ("asked", "cost", "grade", "seconds", "answers")
        tops = {name: top[policies] if top.ndim else top for name, top in self.tops.items()}
        return replace(
            self,
            **{name: getattr(self, name)[policies].take(questions, axis=1) for name in both},
            **{name: getattr(self, name)[questions] for name in ("largest_cost", "largest_grade", "references")},
            tops=tops,
        )

    def top(self, name: str) -> NDArray[np.float64]:
        """A bound on what a question can cost.

        Raises:
            ConfigurationError: If there is none.
        """
        if name not in self.tops:
            if name == "seconds":
                raise ConfigurationError(
                    "Nothing can be promised of a mean latency that has no bound, whatever the number of questions: "
                    "one query in a thousand that hangs for an hour adds seconds. Say after how many seconds an "
                    "attempt is given up (`timeout=...`), or promise that few queries are late (`late_share=...`)."
                )
            raise ConfigurationError(
                "Nothing can be promised of a mean cost that has no bound, whatever the number of questions: one query "
                "in a thousand may cost as much as all others. Say how many tokens of a prompt and an answer a model "
                "is paid for at most (`most_tokens=...`), or limit how often the largest model is asked "
                "(`max_asked=...`)."
            )
        return self.tops[name]


@dataclass(frozen=True)
class Shown:
    """A target of one policy on the questions of the proof.

    Attributes:
        target: It.
        test: "binomial" (Clopper-Pearson bound on a share) or "betting" (on a mean).
        n: Questions.
        counted: How many of them the target speaks about.
        failing: How many of these fail; 0 for a mean.
        seen: The share in the target's own terms; of a mean its excess over what is allowed, in its unit.
        bound: What can be promised, likewise; of a mean 0 stands for all below it, too.
        certified: Whether that reaches the target.
    """

    target: Target
    test: Literal["binomial", "betting"]
    n: int
    counted: int
    failing: int
    seen: float
    bound: float
    certified: bool


class Evidence(Protocol):
    """A target's variable of policies on questions."""

    def margins(self) -> NDArray[np.float64]:
        """How far each policy is on the safe side, in standard errors, one failure more than was seen."""
        ...

    def examine(self, policy: int) -> Shown | Examined:
        """The test of one policy, fixed before these questions were looked at."""
        ...


@dataclass(frozen=True)
class Share:
    """Of the questions that count, at most so many fail.

    Attributes:
        target: Which says how many.
        marks: 1 of a question that fails, 0 of one that does not, -1 of one that does not count; shape (policies,
            questions).
        confidence: With which the target shall hold.
    """

    target: Target
    marks: NDArray[np.int8]
    confidence: float

    def margins(self) -> NDArray[np.float64]:
        counted, failing = (self.marks >= 0).sum(axis=1), (self.marks > 0).sum(axis=1)
        share = (failing + 1) / (counted + 1)
        error = np.sqrt(np.maximum(share * (1 - share), 1e-12) / np.maximum(counted, 1))
        return np.where(counted > 0, (self.target.failing - share) / error, -np.inf)

    def examine(self, policy: int) -> Shown:
        marks = self.marks[policy]
        counted, failing = int((marks >= 0).sum()), int((marks > 0).sum())
        bound = float(upper(failing, counted, _delta(self.confidence))) if counted else 1.0
        return Shown(
            target=self.target,
            test="binomial",
            n=len(marks),
            counted=counted,
            failing=failing,
            seen=self.target.measured(failing / counted if counted else 1.0),
            bound=self.target.measured(bound),
            certified=bound <= self.target.failing,
        )


@dataclass(frozen=True)
class Mean:
    """A variable that cannot exceed `top` has a mean of at most 0.

    A gambler who believes so stakes a share of the capital on every question: `betting_bound` says how. The capital
    stays above 0 as long as no value is above `top`, however far others are below 0.

    Attributes:
        target: Of which it is the excess over what is allowed.
        values: Shape (policies, questions), in the unit of the target.
        top: Shape (policies,).
        confidence: With which the target shall hold.
    """

    target: Target
    values: NDArray[np.float64]
    top: NDArray[np.float64]
    confidence: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.values).all():
            what = "how long each answer took" if self.target.kind == "latency" else "the cost and grade of each answer"
            raise ConfigurationError(f"The recording does not tell {what}: the target '{self.target.kind}' needs that.")
        if (self.values > (self.top + 1e-9 * np.abs(self.top) + 1e-12)[:, None]).any():
            raise ConfigurationError(
                "Recorded queries cost more, or took longer, than is said to be the most (`most_tokens=...`, "
                "`timeout=...`): give a bound that every query keeps."
            )

    def margins(self) -> NDArray[np.float64]:
        n = self.values.shape[1]
        mean = self.values.mean(axis=1)
        squared = ((self.values - mean[:, None]) ** 2).sum(axis=1) + np.maximum(self.top, 1e-300) ** 2
        return np.asarray(-mean / (np.sqrt(squared / n) / np.sqrt(n)))

    def examine(self, policy: int) -> Shown:
        values, top, delta = self.values[policy], float(self.top[policy]), _delta(self.confidence)
        bound = 0.0
        if top > 0 and not betting_wins(values / top, 0.0, delta):
            low, high = 0.0, 1.0
            while high - low > _TOLERANCE:
                middle = (low + high) / 2
                low, high = (low, middle) if betting_wins(values / top, middle, delta) else (middle, high)
            bound = high * top
        return Shown(
            target=self.target,
            test="betting",
            n=len(values),
            counted=len(values),
            failing=0,
            seen=float(values.mean()),
            bound=bound,
            certified=bound == 0,
        )


@dataclass(frozen=True)
class Paired:
    """The loss of accuracy (of agreement) against the largest model: a `Promise` among other targets.

    Attributes:
        promise: With a `max_drop`.
        losses: Paired losses, shape (policies, questions), as of `examine`.
        tests: One for each policy, fixed without these questions.
    """

    promise: Promise
    losses: NDArray[np.float64]
    tests: Sequence[TestName]

    def margins(self) -> NDArray[np.float64]:
        n = self.losses.shape[1]
        error = np.sqrt(((self.losses**2).sum(axis=1) + 1) / n / n)
        return np.asarray((self.promise.tested_drop - self.losses.mean(axis=1)) / error)

    def examine(self, policy: int) -> Examined:
        return examine(self.losses[policy], 0.0, self.promise, self.tests[policy], index=policy)


def in_testing_order(
    evidence: Sequence[Evidence], objective: NDArray[np.float64], chains: Sequence[Sequence[int]]
) -> list[int]:
    """Policies in the order in which they shall be tested, from questions that will not test them.

    Of several chains the one is taken that holds the best policy by the objective which is likely to pass. Its tests
    begin with the most cautious policy that is nearly sure to, or nearly as sure as any of them, and leave none out
    for a noisy estimate.

    Args:
        evidence: Of every target, on the questions that order.
        objective: What is to be small, shape (policies,): the mean cost, say.
        chains: Policies that differ in a threshold alone, the most cautious first.

    Returns:
        A part of one chain; empty if there is none.
    """
    if not any(len(chain) for chain in chains):
        return []
    margin = np.min([each.margins() for each in evidence], axis=0)

    def promise(chain: Sequence[int]) -> tuple[float, float]:
        """The best objective of a policy that is likely to pass; where none is, how far the nearest one is from it."""
        likely = [float(objective[i]) for i in chain if margin[i] >= _LIKELY]
        return min(likely, default=np.inf), -max((float(margin[i]) for i in chain), default=-np.inf)

    best = min((chain for chain in chains if len(chain)), key=promise)
    highest = max(float(margin[i]) for i in best)
    enough = min(_SURE, _NEARLY * highest if highest > 0 else highest)
    start = next(at for at, i in enumerate(best) if margin[i] >= enough)
    return [int(i) for i in best[start:]]


def prove_together(evidence: Sequence[Evidence], path: Sequence[int]) -> list[tuple[Shown | Examined, ...]]:
    """Test policies in their order, all targets of each, up to the first policy of which any target fails.

    Order and tests must have been fixed without these questions. Then, with probability at least the confidence, every
    policy of which all targets passed keeps all of them. A false certificate needs the first policy of the order that
    breaks any target to pass, and so the test of a target that it breaks, which happens with probability at most 1 -
    confidence: an intersection-union test (Berger 1982, Technometrics 24(4)) within fixed-sequence testing.

    Args:
        evidence: Of every target, at least one.
        path: Policies, the likeliest to hold first.

    Returns:
        For each policy that was tested, what was shown of each target; only the last can have failed.
    """
    if not evidence:
        raise ConfigurationError("There is nothing to prove: give a target.")
    shown: list[tuple[Shown | Examined, ...]] = []
    for policy in path:
        shown.append(tuple(each.examine(policy) for each in evidence))
        if not all(one.certified for one in shown[-1]):
            break
    return shown


@dataclass(frozen=True)
class Proof:
    """What was shown of one policy.

    Attributes:
        policy: Its place in the arrays that were given.
        shown: Of each target that was tested of it, targets of quality first.
        certified: Whether all targets were, and hold.
    """

    policy: int
    shown: tuple[Shown | Examined, ...]
    certified: bool


def prove_within(
    quality: Sequence[Evidence], caps: Sequence[Evidence], path: Sequence[int], back: Sequence[int]
) -> list[Proof]:
    """Targets of quality along a path, caps along the way back: what holds is what passes both.

    Each way is a `prove_together` of its own. Their error probabilities add up, so their confidences are to be chosen
    such that these sum to what is allowed (`CAPS_SHARE`). Where there is one kind only, it is tested along the path.

    Args:
        quality: Evidence of targets of quality; may be empty.
        caps: Evidence of caps; may be empty.
        path: Policies, the likeliest to hold first.
        back: The same policies, the likeliest to keep the caps first.

    Returns:
        Of every policy that was tested on anything, in the order of the path.
    """
    if not quality or not caps:
        shown = prove_together([*quality, *caps], path)
        return [
            Proof(policy, each, all(one.certified for one in each)) for policy, each in zip(path, shown, strict=False)
        ]
    held = dict(zip(path, prove_together(quality, path), strict=False))
    kept = dict(zip(back, prove_together(caps, back), strict=False))
    found: list[Proof] = []
    for policy in path:
        shown_of = held.get(policy, ()) + kept.get(policy, ())
        both = policy in held and policy in kept
        if shown_of:
            found.append(Proof(policy, shown_of, both and all(one.certified for one in shown_of)))
    return found


def _delta(confidence: float) -> float:
    return round(1 - confidence, 12)  # because 1 - 0.95 is not 0.05
