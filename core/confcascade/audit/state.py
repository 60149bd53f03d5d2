"""What an audit knows, as plain values: for an alarm hook, for the command line, for whoever watches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["AuditState", "AuditTest", "Disagreement", "TestName"]

TestName = Literal["agreement", "accuracy"]


@dataclass(frozen=True)
class AuditTest:
    """How one promise stands.

    Attributes:
        bound: The share of all queries that is promised at most: answered differently from the largest model
            ("agreement"), or lost net of those gained ("accuracy").
        n: Queries that it has counted.
        loss: The sum of their losses: disagreements, or answers lost less answers gained.
        log_e: Natural logarithm of the evidence against the promise.
        alarm_at: When it was first held to be broken, in seconds since 1970; None if never.
        unlabelled: Disagreements of which the test waits to be told who was right; always 0 for "agreement".
    """

    bound: float
    n: int
    loss: float
    log_e: float
    alarm_at: float | None
    unlabelled: int = 0

    @property
    def e_value(self) -> float:
        """The evidence against the promise: 1 at the start, an alarm at ``1 / false_alarms``."""
        return math.exp(min(self.log_e, 700.0))


@dataclass(frozen=True)
class AuditState:
    """All counts of an audit, over all processes that share its file, since it was begun.

    A query is *drawn* before it is known whether its answer is kept; the test counts all that are drawn. An answer of
    the largest model agrees with itself and costs nothing; for a kept one the largest model is asked: an *audit*.

    Attributes:
        policy_id: Of the cascade that is audited.
        models: Its stages' names.
        equivalence: The rule by which answers are the same.
        since: When it was begun, in seconds since 1970.
        queries: All that were answered. Like `kept`, told with every drawn query and at the end of a process: the
            counts of a process that is killed may be a little behind.
        kept: Those answered below the last stage.
        n: Drawn, and counted.
        audited: Of them, those whose kept answer was compared with the largest model's.
        disagreements: Of them, those where the two differ.
        dropped: Drawn, but not looked at, whatever their answer: too many were waiting, or the budget was spent.
        skipped: Drawn, but of a kind that is not compared: tools, structured output, a cascade whose last model failed.
        failed: Audits in which the largest model gave no answer, or the rule could not tell.
        low: With `high`, an interval for the share of all queries on which the cascade and the largest model disagree,
            that holds at all times at once with 95%, if the share does not change.
        high: See `low`.
        usd: Paid for audits; None if some price is not known.
        false_alarms: The probability that a test ever raises an alarm though its promise holds.
        tests: By name, those promises that are guarded.
        certificate: The one whose promise is guarded, as JSON; None if bounds were given, or none.
    """

    policy_id: str
    models: tuple[str, ...]
    equivalence: str
    since: float
    queries: int
    kept: int
    n: int
    audited: int
    disagreements: int
    dropped: int
    skipped: int
    failed: int
    low: float
    high: float
    usd: float | None
    false_alarms: float
    tests: Mapping[TestName, AuditTest] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None

    @property
    def disagreement(self) -> float | None:
        """The share of all queries on which the cascade and the largest model disagree, as estimated."""
        return self.disagreements / self.n if self.n else None

    @property
    def alarms(self) -> tuple[TestName, ...]:
        """The tests that hold their promise to be broken."""
        return tuple(name for name, test in self.tests.items() if test.alarm_at is not None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        tests = {name: {**vars(test), "e_value": test.e_value} for name, test in self.tests.items()}
        derived = {"disagreement": self.disagreement, "alarms": list(self.alarms)}
        return {**vars(self), "models": list(self.models), "tests": tests, **derived}


@dataclass(frozen=True)
class Disagreement:
    """A query whose kept answer differs from the largest model's.

    Attributes:
        number: For `AuditFile.feedback`.
        at: When it was found, in seconds since 1970.
        question_hash: First sixteen hexadecimal digits of the SHA-256 of its messages' texts (`question_hash`).
        texts: Question, kept answer and the largest model's; None unless the audit keeps texts.
    """

    number: int
    at: float
    question_hash: str
    texts: tuple[str, str, str] | None
