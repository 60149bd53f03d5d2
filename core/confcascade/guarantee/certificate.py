"""A promise that was shown to hold: on how many examples, by which test, and what must stay as it was."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from confcascade.errors import ConfigurationError
from confcascade.guarantee.certification import Examined, TestName
from confcascade.guarantee.promise import Promise
from confcascade.guarantee.sequential_path import SequentiallyExamined

__all__ = ["Certificate"]

_TESTS: dict[str, str] = {
    "harms": "Clopper-Pearson bound on the harms",
    "score": "exact unconditional score test of paired proportions (Hsueh, Liu and Chen)",
    "split": "Clopper-Pearson bounds on harms and benefits",  # of certificates from before there was "score", as ...
    "unconditional": "exact unconditional test of paired proportions (Berger and Boos)",  # ... is this
    "betting": "betting bound on the mean of graded losses (Waudby-Smith and Ramdas)",
    "sequential": "betting, sequential: labels one by one, looked at after each (Waudby-Smith and Ramdas)",
}


class Certificate(BaseModel):
    """What is promised of one policy, and the evidence.

    Attributes:
        version: Of this format.
        kind: "labels" speaks about accuracy, "agreement" about answers that are the largest model's by an equivalence.
        max_drop: The target: the greatest net loss of accuracy (of agreement) against the largest model, as a share.
            None where there was none: then `bound` is promised.
        confidence: With which the promise holds, over the examples; for all groups at once where there are `groups`.
        group: Of which questions it speaks; None for all.
        groups: How many groups share the confidence.
        test: The test's name, see `Examined` and `SequentiallyExamined`.
        n: Questions on which it was tested.
        labels: How many of them were labelled, where labels were bought one by one: the loss on the others is 0
            whatever their labels; None where all were.
        harms: On how many the cascade lost against the largest model (disagreed with it).
        benefits: On how many it gained.
        loss: The mean paired loss seen.
        bound: The test's upper bound on the loss, the equivalence's error included.
        equivalence: The rule by which answers are the same; None for labels.
        equivalence_error: The most questions, as a share, on which it may call different answers the same.
        equivalence_delta: The probability with which that figure may be wrong.
        date: When it was tested.
        assumptions: What must hold for the promise to hold, as sentences.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    kind: Literal["labels", "agreement"]
    max_drop: float | None = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    group: str | None = None
    groups: int = Field(default=1, ge=1)
    test: TestName | Literal["sequential", "split", "unconditional"]
    n: int = Field(ge=1)
    labels: int | None = Field(default=None, ge=0)
    harms: int = Field(ge=0)
    benefits: int = Field(ge=0)
    loss: float = Field(ge=-1, le=1)
    bound: float = Field(ge=-1, le=1)
    equivalence: str | None = None
    equivalence_error: float = Field(default=0.0, ge=0, lt=1)
    equivalence_delta: float = Field(default=0.0, ge=0, lt=1)
    date: datetime.date
    assumptions: tuple[str, ...]

    @model_validator(mode="after")
    def _is_one(self) -> Certificate:
        if self.harms + self.benefits > self.n:
            raise ValueError(f"{self.harms} harms and {self.benefits} benefits are more than n = {self.n}")
        if self.max_drop is not None and self.bound > self.max_drop:
            raise ValueError(f"the bound {self.bound:g} is above the target {self.max_drop:g}, so nothing was shown")
        if (self.kind == "agreement") != (self.equivalence is not None):
            raise ValueError("`equivalence` names the rule of an agreement, and belongs to no other kind")
        return self

    @classmethod
    def of(
        cls,
        examined: Examined | SequentiallyExamined,
        promise: Promise,
        *,
        repeated: int = 0,
        date: datetime.date | None = None,
    ) -> Certificate:
        """The certificate of a policy that `certify` chose, `examine` bounded, or a `SequentialPath` certified.

        Args:
            examined: What the test showed.
            promise: The one that it was tested for.
            repeated: How many of all examples repeat the question of another.
            date: Of the test; today (UTC) if None.

        Raises:
            ConfigurationError: If the policy failed the test.
        """
        if examined.certified is False:
            raise ConfigurationError(
                f"There is no certificate for a policy that failed: its bound is {examined.bound:.4f}, the target "
                f"{promise.max_drop:g}."
            )
        same = promise.equivalence
        return cls(
            kind="labels" if same is None else "agreement",
            max_drop=promise.max_drop,
            confidence=promise.confidence,
            group=promise.group,
            groups=promise.groups,
            test=examined.test,
            n=examined.n,
            labels=examined.labels if isinstance(examined, SequentiallyExamined) else None,
            harms=examined.harms,
            benefits=examined.benefits,
            loss=examined.loss,
            bound=examined.bound,
            equivalence=None if same is None else same.name,
            equivalence_error=0.0 if same is None else same.error,
            equivalence_delta=0.0 if same is None else same.delta,
            date=date or datetime.datetime.now(datetime.UTC).date(),
            assumptions=_assumptions(promise, repeated),
        )

    @property
    def promised(self) -> float:
        """The drop that is promised: the target, or the bound where there was none.

        A bound below the target is no sharper promise: the policy was chosen among several for reaching the target.
        """
        return self.bound if self.max_drop is None else self.max_drop

    def describe(self) -> str:
        """The promise, the evidence and the assumptions, in plain words and several lines."""
        return "\n".join([self.evidence, "It holds as long as:", *(f"- {sentence}" for sentence in self.assumptions)])

    @property
    def evidence(self) -> str:
        """The promise and the evidence, in several lines."""
        who = "" if self.group is None else f" On questions of the group '{self.group}'."
        many = "" if self.groups == 1 else f", for all {self.groups} groups at once"
        if self.kind == "labels":
            lines = [
                f"Promised: accuracy at most {_points(self.promised)} below the largest model's, with "
                f"{self.confidence:.4g} confidence{many}.{who}",
                f"Evidence: on {self.n:,} questions the cascade lost against the largest model on {self.harms:,} and "
                f"gained on {self.benefits:,}, a net loss of {_points(self.loss)}; upper bound {_points(self.bound)}.",
            ]
        else:
            lines = [
                f"Promised: at most {self.promised:.2%} of the answers differ from the largest model's by "
                f"'{self.equivalence}', with {self.confidence:.4g} confidence{many}.{who}",
                f"Evidence: on {self.n:,} questions {self.harms:,} kept answers differed ({self.loss:.2%}); upper "
                f"bound {self.bound:.2%}.",
            ]
        if self.labels is not None:
            lines.append(f"Of these questions {self.labels:,} needed a label; on the others nothing could be lost.")
        return "\n".join([*lines, f"Test: {_TESTS[self.test]}, {self.date.isoformat()}."])


def _assumptions(promise: Promise, repeated: int) -> tuple[str, ...]:
    of = "" if promise.group is None else f" of the group '{promise.group}'"
    sentences = [
        f"The questions{of} to come are like the examples, which were drawn from them independently of one another, "
        "repeats included.",
        "The labels of these examples fixed neither the policies, nor the order of tests, nor a calibrator.",
        "Models, their builds, prompts and decoding settings stay as they were.",
    ]
    if repeated:
        sentences.append(
            f"{repeated:,} examples repeat the question of another: a recorded answer counts as often as its question "
            "was drawn, and the answers to come to it are like that one."
        )
    if promise.equivalence is None:
        sentences.append("Answers are graded as they were.")
    else:
        sentences.append(f"Answers that '{promise.equivalence.name}' calls the same are equally good.")
        if promise.error:
            sentences.append(
                f"It calls different answers the same on at most {promise.error:.2%} of the questions, which is "
                "included in the bound."
            )
    return tuple(sentences)


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"
