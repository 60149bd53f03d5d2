"""A target other than accuracy that was shown to hold: on how many examples, by which test, under which assumptions."""

from __future__ import annotations

import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from confcascade.errors import ConfigurationError
from confcascade.guarantee.targets import CLASS_KINDS, Shown, Target, TargetKind

__all__ = ["TargetCertificate"]

_TESTS = {
    "binomial": "Clopper-Pearson bound on a share",
    "betting": "betting on the mean of a bounded variable (Waudby-Smith and Ramdas)",
}
_CLASS_WORDS = {"precision": "the precision", "recall": "the recall", "f1": "F1"}
_COUNTED = {"precision": "were answered so", "recall": "are of it", "f1": "are of it or were answered so"}
_UNITS = {"flops": "operations", "usd": "US dollars", "tokens": "tokens", "seconds": "seconds"}


class TargetCertificate(BaseModel):
    """What is promised of one policy beside, or in the place of, its accuracy, and the evidence.

    Attributes:
        version: Of this format.
        kind: As of `Target`, as are `limit`, `of` and `seconds`.
        limit: Of the target.
        of: The class.
        seconds: Of "late".
        against: What answers of a class are compared with: "references", or the "largest" model's answers.
        unit: Of the costs of "cost" and "total": "flops", "usd", "tokens" or "seconds".
        tokens: The most tokens of a prompt and of an answer that a model is paid for, where the promise needs that.
        timeout: The most seconds that an attempt takes, where the promise needs that.
        confidence: With which the promise holds, over the examples; for all certificates of the policy together.
        test: "binomial" or "betting", see `Shown`, as for the next five.
        n: Questions on which it was tested.
        counted: How many of them it speaks about.
        failing: How many of these fail.
        seen: What was seen.
        bound: What the test shows.
        date: When it was tested.
        assumptions: What must hold for the promise to hold, as sentences.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    kind: TargetKind
    limit: float = Field(gt=0)
    of: str | None = None
    seconds: float | None = Field(default=None, gt=0)
    against: Literal["references", "largest"] | None = None
    unit: Literal["flops", "usd", "tokens", "seconds"] | None = None
    tokens: tuple[int, int] | None = None
    timeout: float | None = Field(default=None, gt=0)
    confidence: float = Field(gt=0, lt=1)
    test: Literal["binomial", "betting"]
    n: int = Field(ge=1)
    counted: int = Field(ge=0)
    failing: int = Field(ge=0)
    seen: float
    bound: float
    date: datetime.date
    assumptions: tuple[str, ...]

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        target = self.target
        if not self.failing <= self.counted <= self.n:
            raise ValueError(f"{self.failing} of {self.counted} of {self.n} questions are no counts")
        if self.test == "binomial":
            held = self.bound >= target.limit if self.kind in CLASS_KINDS else self.bound <= target.limit
        else:
            held = self.bound <= 0
        if not held:
            raise ValueError(f"the bound {self.bound:g} does not reach the target, so nothing was shown")
        if (self.kind in CLASS_KINDS) != (self.against is not None):
            raise ValueError("`against` says what answers of a class are compared with, and belongs to no other kind")
        return self

    @classmethod
    def of_shown(
        cls,
        shown: Shown,
        confidence: float,
        *,
        against: Literal["references", "largest"] = "references",
        unit: str | None = None,
        tokens: tuple[int, int] | None = None,
        timeout: float | None = None,
        repeated: int = 0,
        date: datetime.date | None = None,
    ) -> Self:
        """That of a policy that passed.

        Args:
            shown: By the test.
            confidence: Of the test.
            against: As of the class.
            unit: Of costs.
            tokens: As of the class.
            timeout: As of the class.
            repeated: How many of all examples repeat the question of another.
            date: Of the test; today (UTC) if None.

        Raises:
            ConfigurationError: If the policy failed the test.
        """
        target = shown.target
        if not shown.certified:
            raise ConfigurationError(f"There is no certificate for a policy that failed: {shown}.")
        classes, costs = target.kind in CLASS_KINDS, target.kind in ("cost", "total")
        by_time = target.kind == "latency" or (costs and unit == "seconds")
        return cls(
            kind=target.kind,
            limit=target.limit,
            of=target.of,
            seconds=target.seconds,
            against=against if classes else None,
            unit=unit if costs else None,  # type: ignore[arg-type]
            tokens=tokens if costs and not by_time else None,
            timeout=timeout if by_time else None,
            confidence=confidence,
            test=shown.test,
            n=shown.n,
            counted=shown.counted,
            failing=shown.failing,
            seen=shown.seen,
            bound=shown.bound,
            date=date or datetime.datetime.now(datetime.UTC).date(),
            assumptions=_assumptions(
                target, against=against, tokens=tokens, timeout=timeout, by_time=by_time, repeated=repeated
            ),
        )

    @property
    def target(self) -> Target:
        """What is promised."""
        return Target(self.kind, self.limit, self.of, self.seconds)

    def describe(self) -> str:
        """The promise, the evidence and the assumptions, in plain words and several lines."""
        return "\n".join([self.evidence, "It holds as long as:", *(f"- {sentence}" for sentence in self.assumptions)])

    @property
    def evidence(self) -> str:
        """The promise and the evidence, in several lines."""
        return "\n".join(
            [
                f"Promised: {self._promise()}, with {self.confidence:.4g} confidence.",
                f"Evidence: {self._evidence()}",
                f"Test: {_TESTS[self.test]}, {self.date.isoformat()}.",
            ]
        )

    def _promise(self) -> str:
        by = "the references" if self.against == "references" else "the largest model's answers"
        match self.kind:
            case "precision" | "recall" | "f1":
                return f"{_CLASS_WORDS[self.kind]} of '{self.of}' against {by} is at least {self.limit:.2%}"
            case "asked":
                return f"at most {self.limit:.2%} of the questions are put to the largest model"
            case "late":
                return f"at most {self.limit:.2%} of the questions take longer than {self.seconds:g} s"
            case "latency":
                return f"a question takes at most {self.limit:g} s on average"
            case "cost":
                return f"a question costs on average at most {self.limit:.2%} of the largest model's cost"
            case "total":
                priced = f"${self.limit:g}" if self.unit == "usd" else f"{self.limit:g} {_UNITS[self.unit or 'usd']}"
                return (
                    f"cost and errors together, an error priced at {priced}, are on average no higher than those of "
                    "the largest model alone"
                )

    def _evidence(self) -> str:
        match self.kind:
            case "precision" | "recall" | "f1":
                return (
                    f"{self.counted:,} of {self.n:,} questions {_COUNTED[self.kind]}, and {self.failing:,} of these "
                    f"went wrong: {self.seen:.2%}; lower bound {self.bound:.2%}."
                )
            case "asked" | "late":
                late = f"took longer than {self.seconds or 0:g} s"
                what = "were put to the largest model" if self.kind == "asked" else late
                return (
                    f"{self.failing:,} of {self.n:,} questions {what} ({self.seen:.2%}); upper bound {self.bound:.2%}."
                )
            case "latency":
                return f"on {self.n:,} questions the mean was {self.limit + self.seen:.4g} s."
            case "cost":
                unit = _UNITS[self.unit or "usd"]
                return (
                    f"on {self.n:,} questions the mean cost was {-self.seen:.4g} {unit} below {self.limit:.2%} of the "
                    "largest model's."
                )
            case "total":
                unit = _UNITS[self.unit or "usd"]
                return f"on {self.n:,} questions the two together were {-self.seen:.4g} {unit} lower on average."


def _assumptions(
    target: Target,
    *,
    against: Literal["references", "largest"],
    tokens: tuple[int, int] | None,
    timeout: float | None,
    by_time: bool,
    repeated: int,
) -> tuple[str, ...]:
    sentences = [
        "The questions to come are like the examples, which were drawn from them independently of one another, repeats "
        "included.",
        "The labels of these examples fixed neither the policies, nor the order of tests, nor a calibrator.",
        "Models, their builds, prompts and decoding settings stay as they were.",
    ]
    if repeated:
        sentences.append(
            f"{repeated:,} examples repeat the question of another: a recorded answer counts as often as its question "
            "was drawn, and the answers to come to it are like that one."
        )
    if target.kind in CLASS_KINDS and against == "references":
        sentences.append("The references are right, and answers are read as the grader read them.")
    elif target.kind in CLASS_KINDS:
        sentences.append("The largest model's answer is what a question ought to be answered with.")
    if target.kind in ("cost", "total") and not by_time:
        sentences.append("Prices and sizes of the models stay as they were.")
        if tokens is not None:
            sentences.append(
                f"No model is paid for more than {tokens[0]:,} tokens of a prompt and {tokens[1]:,} of an answer for "
                "one question."
            )
    if target.kind in ("late", "latency") or by_time:
        sentences.append("Models and the machines that they run on stay as fast as they were.")
        if timeout is not None and by_time:
            sentences.append(f"No attempt takes longer than {timeout:g} s.")
    if target.kind == "total":
        sentences.append("Answers are graded as they were, and every error is worth the same.")
    return tuple(sentences)
