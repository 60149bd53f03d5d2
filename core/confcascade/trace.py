"""What happened to a query: a record of every attempt, on the answer and in `trace()`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, Literal, TypeVar

from confcascade.quick_init import quick_init
from confcascade.types import Cost, Usage

__all__ = ["Attempt", "Record", "Score", "Step", "Trace", "trace"]

Accounts = TypeVar("Accounts", Usage, Cost)
SCHEMA = 2


@quick_init
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
class Step:
    """A part of an answer that several models write in turn, or one that was thrown away.

    Attributes:
        index: Its place in the answer, from 0. One that was thrown away has that of the one in its place.
        author: Name of the model that wrote it.
        kept: Whether it is part of the answer.
        reason: Why this model wrote it, or why it was thrown away, in one line without its text.
        tokens: That were written.
        scores: Of the smaller model's signals: before it, or of it.
    """

    index: int
    author: str
    kept: bool
    reason: str
    tokens: int
    scores: Mapping[str, Score] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "scores": {name: score.as_dict() for name, score in self.scores.items()}}


@quick_init
@dataclass(frozen=True)
class Attempt:
    """One stage's try at one query; of an answer written in turn, all that one model did for it.

    Attributes:
        stage: Its index.
        model: Name of its model.
        decision: "left" if the caller went away before there was one.
        reason: Why, in one line without texts of prompts, answers or errors.
        scores: By signal; of an answer written in turn, those of the last step that was judged.
        confidence: A probability; None unless a calibrator made it.
        error: What is kept of the model's error; None without.
        aborted: Whether the answer was ended early.
        steps: Of an answer written in turn, those that this model wrote.
        usage: Tokens paid for.
        cost: Of all it did.
        kept_cost: Of an answer written in turn, of the calls that wrote what was kept; None of any other.
        latency_s: Seconds.
    """

    stage: int
    model: str
    decision: Literal["accept", "escalate", "fail", "left"]
    reason: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    confidence: float | None = None
    error: str | None = None
    aborted: bool = False
    steps: tuple[Step, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)
    kept_cost: Cost | None = None
    latency_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **vars(self),  # not `dataclasses.asdict`, whose recursion takes as long as the rest of a call
            "scores": {name: score.as_dict() for name, score in self.scores.items()},
            "steps": [step.as_dict() for step in self.steps],
            "usage": self.usage.as_dict(),
            "cost": self.cost.as_dict(),
            "kept_cost": None if self.kept_cost is None else self.kept_cost.as_dict(),
        }

    def attributes(self) -> dict[str, str | bool | int | float]:
        """Plain values under flat names, behind ``confcascade_``, by which tracers can filter; no value is unknown."""
        told: dict[str, Any] = {
            "stage": self.stage,
            "model": self.model,
            "decision": self.decision,
            "reason": self.reason,
            "confidence": self.confidence,
            "error": self.error,
            "aborted": self.aborted,
            "latency_s": self.latency_s,
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "tokens_estimated": self.usage.estimated,
            **{f"input_{name}_tokens": count for name, count in self.usage.input_details.items()},
            **{f"output_{name}_tokens": count for name, count in self.usage.output_details.items()},
            "usd": self.cost.usd,
            "flops": self.cost.flops,
        }
        if self.steps:
            told["steps_kept"] = sum(step.kept for step in self.steps)
            told["steps_redone"] = len(self.steps) - told["steps_kept"]
        for name, score in self.scores.items():
            told |= {f"score_{name}": score.value, f"threshold_{name}": score.threshold, f"passed_{name}": score.passed}
        return {f"confcascade_{name}": value for name, value in told.items() if value is not None}


@quick_init
@dataclass(frozen=True)
class Record:
    """Everything that happened to one query.

    Attributes:
        policy_id: Identifies stages, signals and thresholds: equal ids decide equally.
        attempts: In the order in which they were made.
        stage: Index of the stage that answered; None if none did.
        answered_by: Name of its model; None if none did.
        degraded: The answer is an earlier, rejected one, because every later stage failed.
        ended: "answered"; "failed", with an error; or "left", by a caller who closed the stream or cancelled the call.
    """

    policy_id: str
    attempts: tuple[Attempt, ...]
    stage: int | None
    answered_by: str | None
    degraded: bool = False
    ended: Literal["answered", "failed", "left"] = "answered"

    @property
    def usage(self) -> Usage:
        """Tokens of every attempt that was paid for."""
        return _total([attempt.usage for attempt in self.attempts], Usage)

    @property
    def cost(self) -> Cost:
        """Every model that ran."""
        return _total([attempt.cost for attempt in self.attempts], Cost)

    @property
    def cost_answering_stage(self) -> Cost:
        """The papers' accounting: only the attempt whose answer was kept; nothing if none was.

        Of an answer written in turn, the calls that wrote what was kept.
        """
        written = [attempt.kept_cost for attempt in self.attempts if attempt.kept_cost is not None]
        kept = [attempt.cost for attempt in self.attempts if attempt.stage == self.stage]
        return _total(written or kept[:1], Cost)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Of an answer written in turn, all its steps in their order, those thrown away before those in their place."""
        steps = [step for attempt in self.attempts for step in attempt.steps]
        return tuple(sorted(steps, key=lambda step: (step.index, step.kept)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the ``confcascade`` entry on every answer."""
        return {
            "schema": SCHEMA,
            "policy_id": self.policy_id,
            "answered_by": self.answered_by,
            "stage": self.stage,
            "degraded": self.degraded,
            "ended": self.ended,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
            "usage": self.usage.as_dict(),
            "cost": self.cost.as_dict(),
            "cost_answering_stage": self.cost_answering_stage.as_dict(),
        }


def _total(parts: list[Accounts], kind: type[Accounts]) -> Accounts:
    """Their sum; one alone as it is, which is nearly every query's."""
    return parts[0] if len(parts) == 1 else sum(parts, kind())


_active: ContextVar[tuple[Trace, ...]] = ContextVar("confcascade_traces", default=())


class Trace:
    """The records of the queries asked inside `trace()`, in the order in which they ended."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __repr__(self) -> str:
        return f"Trace({len(self.records)} records)"

    @property
    def answered(self) -> list[Record]:
        """Without those that failed or were left."""
        return [record for record in self.records if record.ended == "answered"]

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
    """Collect the record of every query that a cascade is asked inside the block, however it ends.

    For places where no message survives: after `StrOutputParser`, structured output, or a query engine. It reaches over
    tasks, LangChain's threads and those of any `ThreadPoolExecutor`; a plain `threading.Thread` has a context of its
    own, in which nothing is collected, and so have later steps of a generator that a server steps through.

    >>> with trace() as t:
    ...     pass
    >>> t.records
    []
    """
    _carry_into_thread_pools()
    collector = Trace()
    token = _active.set((*_active.get(), collector))
    try:
        yield collector
    finally:
        # a generator that a server steps through has another context at its end, and nothing to reset there
        with contextlib.suppress(ValueError):
            _active.reset(token)


def open_traces() -> tuple[Trace, ...]:
    """Those that collect what is asked here and now."""
    return _active.get()


class Within:
    """While a stage's model is called: where it is a cascade itself, its record is part of the outer one's.

    So it is collected here and not by the traces around, and what it paid is known also if it fails.
    """

    def __init__(self) -> None:
        self._inner = Trace()
        self._traces = (self._inner,)

    def __enter__(self) -> None:
        self._token = _active.set(self._traces)

    def __exit__(self, *_: object) -> None:
        try:  # noqa: SIM105  # every step of a stream passes here, and `suppress` takes longer than all it does
            _active.reset(self._token)
        except ValueError:  # a step that is broken off may end in another context
            pass

    @property
    def usage(self) -> Usage | None:
        """Of the cascades that were asked; None if there was none."""
        return self._inner.usage if self._inner.records else None


@cache
def _carry_into_thread_pools() -> None:
    """Let jobs of thread pools be collected by the traces that are open where they are submitted.

    A pool's threads know nothing of the context of whoever submits. As OpenTelemetry's instrumentation of threads does
    it, but for this one variable: the context of a job that is submitted outside of any trace is not touched.
    """
    submit = ThreadPoolExecutor.submit

    @wraps(submit)  # type: ignore[arg-type]
    def carrying(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        traces = _active.get()
        return submit(self, _job, traces, fn, args, kwargs) if traces else submit(self, fn, *args, **kwargs)

    ThreadPoolExecutor.submit = carrying  # type: ignore[method-assign, assignment]


def _job(traces: tuple[Trace, ...], fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    token = _active.set(traces)
    try:
        return fn(*args, **kwargs)
    finally:
        _active.reset(token)
