"""What happened to a query: a record of every attempt, on the answer and in `trace()`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from confcascade.cost import Cost
from confcascade.types import Usage

__all__ = ["Attempt", "Record", "Score", "Trace", "trace"]

SCHEMA = 1


@dataclass(frozen=True)
class Score:
    """A signal's judgement of one attempt.

    Attributes:
        value: In the signal's own space, higher = more likely right; None if it could not be computed.
        threshold: What it was compared with: a number, "always" or "never".
        passed: Whether it reached the threshold.
        details: Further figures of the signal's (the label and the label mass, say).
    """

    value: float | None
    threshold: float | str
    passed: bool
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "details": deepcopy(dict(self.details)) if self.details else {}}


@dataclass(frozen=True)
class Attempt:
    """One stage's try at one query. ``confidence`` is None unless a calibrator made it."""

    stage: int
    model: str
    decision: Literal["accept", "escalate", "fail"]
    reason: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    confidence: float | None = None
    error: str | None = None
    aborted: bool = False
    steps: tuple[Any, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)
    latency_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **vars(self),  # not `dataclasses.asdict`, whose recursion takes as long as the rest of a call
            "scores": {name: score.as_dict() for name, score in self.scores.items()},
            "steps": list(self.steps),
            "usage": self.usage.as_dict(),
            "cost": self.cost.as_dict(),
        }


@dataclass(frozen=True)
class Record:
    """Everything that happened to one query.

    Attributes:
        policy_id: Identifies stages, signals and thresholds: equal ids decide equally.
        attempts: In the order in which they were made.
        stage: Index of the stage that answered.
        degraded: The answer is an earlier, rejected one, because every later stage failed.
    """

    policy_id: str
    attempts: tuple[Attempt, ...]
    stage: int
    answered_by: str
    degraded: bool = False

    @property
    def usage(self) -> Usage:
        """Tokens of every attempt that was paid for."""
        return sum((attempt.usage for attempt in self.attempts), Usage())

    @property
    def cost(self) -> Cost:
        """Every model that ran."""
        return sum((attempt.cost for attempt in self.attempts), Cost())

    @property
    def cost_answering_stage(self) -> Cost:
        """The papers' accounting: only the attempt whose answer was kept."""
        return next(attempt.cost for attempt in self.attempts if attempt.stage == self.stage)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the ``confcascade`` entry on every answer."""
        return {
            "schema": SCHEMA,
            "policy_id": self.policy_id,
            "answered_by": self.answered_by,
            "stage": self.stage,
            "degraded": self.degraded,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
            "usage": self.usage.as_dict(),
            "cost": self.cost.as_dict(),
            "cost_answering_stage": self.cost_answering_stage.as_dict(),
        }


_active: ContextVar[tuple[Trace, ...]] = ContextVar("confcascade_traces", default=())


class Trace:
    """The records of the queries answered inside `trace()`, in the order in which they ended."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __repr__(self) -> str:
        return f"Trace({len(self.records)} records)"

    @property
    def cost(self) -> Cost:
        """Every model that ran, for all the queries."""
        return sum((record.cost for record in self.records), Cost())

    @property
    def usage(self) -> Usage:
        """Tokens of every attempt that was paid for, for all the queries."""
        return sum((record.usage for record in self.records), Usage())


@contextlib.contextmanager
def trace() -> Iterator[Trace]:
    """Collect the record of every query that a cascade answers inside the block.

    For places where no message survives: after `StrOutputParser`, structured output, or a query engine.

    >>> with trace() as t:
    ...     pass
    >>> t.records
    []
    """
    collector = Trace()
    token = _active.set((*_active.get(), collector))
    try:
        yield collector
    finally:
        _active.reset(token)


def untraced() -> contextlib.AbstractContextManager[None]:
    """While a stage's model is called: where it is a cascade itself, its record is part of the outer one's."""
    return _without_collectors() if _active.get() else _NOTHING_TO_DO


_NOTHING_TO_DO = contextlib.nullcontext()


@contextlib.contextmanager
def _without_collectors() -> Iterator[None]:
    token = _active.set(())
    try:
        yield
    finally:
        _active.reset(token)


def publish(record: Record) -> None:
    """Hand a finished record to every `trace()` that is open where the query was asked."""
    for collector in _active.get():
        collector.records.append(record)
