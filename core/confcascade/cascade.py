"""The cascade without any framework: stages, and six ways to ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from confcascade import drivers
from confcascade.asks import Chunk, Flow, Left
from confcascade.attempts import OnError, OnExhausted, Outcome, Tried, Unanswered
from confcascade.audit import Audit
from confcascade.audit.auditor import Auditor
from confcascade.building import build_stages, plain_thresholds, thresholds_of
from confcascade.checks import active_checks
from confcascade.errors import ConfigurationError
from confcascade.flow import cascade_flow
from confcascade.notices import Notices, log_only_told
from confcascade.quick_init import quick_init
from confcascade.signals import Signal, Threshold
from confcascade.stage import FittedStages, Stage, policy_id
from confcascade.trace import Record, Trace, open_traces
from confcascade.types import Message, Request
from confcascade.unusable import OnCut

if TYPE_CHECKING:
    from confcascade.policy import Policy

__all__ = ["Batching", "Cascade", "Query"]

Messages = Any  # str | Message | sequence of messages, pairs or mappings: see Message.parse
Progress = Callable[[int, "Outcome | Exception"], None]
OnEnded = Callable[[Request, "Outcome | Unanswered"], None]


def _guarding(stages: tuple[Stage, ...], audit: float | Audit) -> float | Audit:
    """What `audit` means of these stages: a share of a policy's queries guards its promise, by its own rule."""
    if not audit or not isinstance(stages, FittedStages):
        return audit
    from confcascade.audit.of_policy import audit_of  # here, for it needs numpy

    return audit_of(stages.policy, audit)


class Cascade:
    """Models in ascending order, each answering what it is likely enough to get right.

    Args:
        stages: Smallest first; the last always answers and needs no signal.
        on_error: With "escalate", a query whose model failed goes to the next stage; "raise" raises its error.
        on_exhausted: If the last stage fails, "raise" raises `CascadeExhaustedError`, which is an instance of its
            error's class, too; "best" returns the last complete earlier answer in words, flagged ``degraded``, although
            it was rejected. A cascade of one stage raises that stage's own error.
        on_cut: What happens to a text that was cut off at the token limit. With "escalate" it goes to the next stage,
            which may finish; with "keep" it is judged as it stands. Cut-off objects and tool calls always escalate.
        audit: The share of kept answers that the largest model is asked about in the background, or an `Audit`. A share
            guards the promise of a fitted policy, if that is where the stages come from (`Policy.make_stages`).
        on_ended: Called once for every query, however it ended, with its request and an `Outcome` or, if it failed or
            was left, an `Unanswered`; in a copy of the context in which the query was asked.

    Attributes:
        auditor: What does so; None without `audit`.

    Raises:
        ConfigurationError: If a stage cannot work, or an audit cannot see what the policy promises; nothing is left to
            fail at the four-hundredth prompt.

    >>> from confcascade.signals.token_probability import TokenProbability
    >>> from confcascade.testing import ScriptedModel
    >>> small, large = ScriptedModel("small", {"2+2?": ("4", 0.99)}), ScriptedModel("large")
    >>> stage = Stage(small, [TokenProbability()], {"p_t": 0.9})
    >>> outcome = Cascade([stage, Stage(large)]).run("2+2?")
    >>> outcome.text, outcome.record.answered_by, outcome.record.attempts[0].reason
    ('4', 'small', 'p_t 0.99 >= 0.9')
    """

    _in_steps = False  # whether an answer has steps, between which signals may judge

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        on_error: OnError = "escalate",
        on_exhausted: OnExhausted = "raise",
        on_cut: OnCut = "escalate",
        audit: float | Audit = 0.0,
        on_ended: OnEnded | None = None,
    ) -> None:
        if on_error not in ("escalate", "raise"):
            raise ConfigurationError(f'`on_error` must be "escalate" or "raise". Got {on_error!r}.')
        if on_exhausted not in ("best", "raise"):
            raise ConfigurationError(f'`on_exhausted` must be "best" or "raise". Got {on_exhausted!r}.')
        self.stages = build_stages(stages=stages)
        between = [signal for stage in self.stages for signal in stage.signals if signal.between_steps]
        if between and not self._in_steps:
            raise ConfigurationError(
                f"{between[0]!r} judges the steps of an answer, and this cascade judges whole answers. It goes with "
                'mode="stepwise", or StepwiseCascade.'
            )
        for stage in self.stages[:-1]:
            own_word = [signal for signal in stage.signals if signal.told]
            if own_word and len(own_word) == len(stage.signals):
                log_only_told(stage.model.name)
        self.on_error = on_error
        if on_cut not in ("escalate", "keep"):
            raise ConfigurationError(f'`on_cut` must be "escalate" or "keep". Got {on_cut!r}.')
        if on_cut == "keep" and isinstance(self.stages, FittedStages):
            raise ConfigurationError(
                'A fitted policy promises nothing of drafts that were cut off: it goes with `on_cut="escalate"`.'
            )
        if isinstance(self.stages, FittedStages):
            self.stages.policy.check_mode(stepwise=self._in_steps)
        self.on_exhausted = on_exhausted
        self.on_cut = on_cut
        self.policy_id = self._id_of(self.stages)
        told = Audit.of(_guarding(self.stages, audit))
        self.auditor = None if told is None else Auditor(told, self.stages, self.policy_id)
        self._on_ended = on_ended
        self._notices = Notices(len(self.stages) - 1)

    @classmethod
    def of(
        cls,
        *,
        models: Sequence[Any] | None = None,
        stages: Sequence[Stage] | None = None,
        threshold: Threshold | Mapping[str, Threshold] | None = None,
        signals: Sequence[Signal] | Mapping[str, Sequence[Signal]] | None = None,
        policy: Policy | str | Path | None = None,
        group: str | None = None,
        wrap: Callable[[Any], Any] = lambda model: model,
        on_error: OnError = "escalate",
        on_exhausted: OnExhausted = "raise",
        on_cut: OnCut = "escalate",
        audit: float | Audit = 0.0,
        on_ended: OnEnded | None = None,
        **others: Any,
    ) -> Self:
        """A cascade from what a user may give: seven arguments as of `build_stages`, the others as of the class.

        Both integrations are made by this.

        Raises:
            ConfigurationError: As by `build_stages` and `Cascade`.
        """
        built = build_stages(
            models=models,
            stages=stages,
            threshold=threshold,
            signals=signals,
            policy=policy,
            group=group,
            wrap=wrap,
            stepwise=cls._in_steps,
        )
        return cls(
            built,
            on_error=on_error,
            on_exhausted=on_exhausted,
            on_cut=on_cut,
            audit=audit,
            on_ended=on_ended,
            **others,
        )

    def __repr__(self) -> str:
        models = " -> ".join(stage.model.name for stage in self.stages)
        return f"{type(self).__name__}({models}, policy_id={self.policy_id!r})"

    def flow(self, request: Request) -> Flow[Outcome]:
        """The flow that answers one request: for a driver of your own, or for a test that plays it by hand.

        Raises:
            ConfigurationError: If `Request.stage` or `Request.threshold` cannot be.
        """
        only = None if request.stage is None else self._index(request.stage)
        stages = self.stages if request.threshold is None else self._with_thresholds(request.threshold)
        asked = stages if only is None else stages[only : only + 1]
        own = request.stage is None and request.threshold is None
        return self._accounted(
            Query(
                request,
                stages,
                only,
                self.policy_id if own else self._id_of(asked),
                open_traces(),
                copy_context() if self._on_ended is not None else None,
                own,
            )
        )

    def _id_of(self, stages: Sequence[Stage]) -> str:
        return policy_id(stages, self.on_cut)

    def _accounted(self, query: Query) -> Flow[Outcome]:
        """Every query of every driver passes here, and leaves a record however it ends."""
        tried = Tried()
        try:
            outcome = yield from self._answered(query, tried)
        except (Exception, Left) as error:
            how: Literal["left", "failed"] = "left" if isinstance(error, Left) else "failed"
            record = Record(query.policy_id, tuple(tried.attempts), None, None, ended=how)
            self._publish(query, Unanswered(record, tuple(tried.responses)))
            raise
        self._publish(query, outcome)
        return outcome

    def _answered(self, query: Query, tried: Tried) -> Flow[Outcome]:
        """The flow that answers it."""
        return cascade_flow(
            query.stages,
            query.request,
            on_error=self.on_error,
            on_exhausted=self.on_exhausted,
            on_cut=self.on_cut,
            checks=active_checks(),
            # what is promised must have counted drafts that were shown, and cut off later
            shows_early=not isinstance(self.stages, FittedStages) or self.stages.policy.shows_early,
            only=query.only,
            policy_id=query.policy_id,
            tried=tried,
        )

    def _publish(self, query: Query, ended: Outcome | Unanswered) -> None:
        for trace in query.traces:
            trace.records.append(ended.record)
        self._notices.note(ended.record)
        if self.auditor is not None and query.own and isinstance(ended, Outcome):
            self.auditor.observe(query.request, ended)
        if self._on_ended is not None and query.context is not None:
            query.context.run(self._on_ended, query.request, ended)

    def _index(self, stage: str | int) -> int:
        names = [each.model.name for each in self.stages]
        if isinstance(stage, str) and names.count(stage) == 1:
            return names.index(stage)
        if isinstance(stage, int) and not isinstance(stage, bool) and -len(names) <= stage < len(names):
            return stage % len(names)
        if isinstance(stage, str) and stage in names:
            raise ConfigurationError(f"`stage` {stage!r} names several of {names}: give its index.")
        raise ConfigurationError(f"`stage` must name one of {names}, or be its index. Got {stage!r}.")

    def _with_thresholds(self, threshold: Threshold | Mapping[str, Threshold]) -> tuple[Stage, ...]:
        """The stages with other thresholds; a mapping leaves signals alone that it does not name."""
        changed = []
        for stage in self.stages[:-1]:
            told = threshold if isinstance(threshold, Mapping) else thresholds_of(threshold, stage.signals)
            kept = {name: told.get(name, value) for name, value in stage.thresholds.items()}
            skip = {name: least for name, least in stage.skip.items() if name not in told}
            for signal in stage.signals:
                signal.validate(kept[signal.name])
            changed.append(replace(stage, thresholds=plain_thresholds(kept), skip=skip))
        known = {name for stage in changed for name in stage.thresholds}
        if isinstance(threshold, Mapping) and (unknown := sorted(threshold.keys() - known)):
            raise ConfigurationError(f"`threshold` names {unknown}; the signals of this cascade are {sorted(known)}.")
        return (*changed, self.stages[-1])

    def run(self, messages: Messages, **parameters: Any) -> Outcome:
        """Answer one query.

        Args:
            messages: A string, or messages, oldest first.
            **parameters: Fields of `Request`, such as ``max_tokens`` or ``stop``.

        Raises:
            ConfigurationError: If there is no message.
            CascadeExhaustedError: If no stage gave an answer.
        """
        request = _request(messages, parameters)
        return drivers.run(self.flow(request))

    async def arun(self, messages: Messages, **parameters: Any) -> Outcome:
        """`run`, without blocking the event loop."""
        request = _request(messages, parameters)
        return await drivers.arun(self.flow(request))

    def stream(self, messages: Messages, **parameters: Any) -> Iterator[Chunk | Outcome]:
        """Answer one query piece by piece: chunks that nothing can withdraw, then the outcome.

        Decides as `run` does.
        """
        request = _request(messages, parameters)
        with closing(drivers.stream(self.flow(request))) as items:  # type: ignore[type-var]
            yield from items

    async def astream(self, messages: Messages, **parameters: Any) -> AsyncIterator[Chunk | Outcome]:
        """`stream`, without blocking the event loop."""
        request = _request(messages, parameters)
        async with aclosing(drivers.astream(self.flow(request))) as items:  # type: ignore[type-var]
            async for item in items:
                yield item

    def run_batch(
        self,
        queries: Iterable[Messages],
        *,
        max_concurrency: int = 16,
        return_exceptions: bool = False,
        on_result: Progress | None = None,
        **parameters: Any,
    ) -> list[Any]:
        """Answer many queries: local models in batches, APIs concurrently.

        Args:
            queries: What `run` takes, many times.
            max_concurrency: Most calls to APIs at a time.
            return_exceptions: Put an error in the place of its outcome; otherwise the first, in the order of the
                queries, is raised once all have ended.
            on_result: Called with a query's index and outcome as each ends (for a progress bar).
            **parameters: As for `run`.

        Returns:
            Outcomes in the order of the queries.
        """
        requests = _requests(queries, parameters)
        results: list[Any] = [None] * len(requests)
        with closing(drivers.run_many(map(self.flow, requests), max_concurrency)) as ended:  # type: ignore[type-var]
            for index, result in ended:
                results[index] = result
                if on_result is not None:
                    on_result(index, result)
        return _raise_first(results, return_exceptions)

    async def arun_batch(
        self,
        queries: Iterable[Messages],
        *,
        max_concurrency: int = 16,
        return_exceptions: bool = False,
        on_result: Progress | None = None,
        **parameters: Any,
    ) -> list[Any]:
        """`run_batch`, without blocking the event loop."""
        requests = _requests(queries, parameters)
        results: list[Any] = [None] * len(requests)
        async with aclosing(drivers.arun_many(map(self.flow, requests), max_concurrency)) as ended:  # type: ignore[type-var]
            async for index, result in ended:
                results[index] = result
                if on_result is not None:
                    on_result(index, result)
        return _raise_first(results, return_exceptions)

    def batching(self, *, max_concurrency: int = 16) -> Batching:
        """For many queries that come one by one, from threads or tasks of their own: see `Batching`."""
        return Batching(self, max_concurrency)


@quick_init
@dataclass(frozen=True)
class Query:
    """One request, and where and how it was asked.

    Attributes:
        request: It.
        stages: That may answer it.
        only: Index of the one that does; None for all.
        policy_id: Of these.
        traces: That collect its record.
        context: For `on_ended`; None without.
        own: Whether the cascade's own policy decides, and not what the caller gave with the request.
    """

    request: Request
    stages: Sequence[Stage]
    only: int | None
    policy_id: str
    traces: Sequence[Trace]
    context: Context | None
    own: bool


class Batching:
    """A cascade's `run` and `arun` for callers that each wait for one query, with a bound on the calls to APIs.

    A `TransformersModel` batches what many callers ask by itself. This is for models that take batches and do not make
    them, and for callers that are many more than an API allows calls. `run` is for threads, `arun` for the tasks of one
    event loop.

    Args:
        cascade: Which answers.
        max_concurrency: Most calls to APIs at a time.

    Raises:
        ConfigurationError: If `max_concurrency` is no whole number of at least 1.
    """

    def __init__(self, cascade: Cascade, max_concurrency: int) -> None:
        self.cascade = cascade
        self._batcher = drivers.Batcher[Outcome](max_concurrency)
        self._async_batcher = drivers.AsyncBatcher[Outcome](max_concurrency)

    def run(self, messages: Messages, **parameters: Any) -> Outcome:
        """`Cascade.run`."""
        request = _request(messages, parameters)
        return self._batcher.run(self.cascade.flow(request))

    async def arun(self, messages: Messages, **parameters: Any) -> Outcome:
        """`Cascade.arun`."""
        request = _request(messages, parameters)
        return await self._async_batcher.arun(self.cascade.flow(request))


def _request(messages: Messages, parameters: Mapping[str, Any]) -> Request:
    if isinstance(messages, Request):
        return replace(messages, **parameters) if parameters else messages
    return Request(Message.parse(messages), **parameters)


def _requests(queries: Iterable[Messages], parameters: Mapping[str, Any]) -> list[Request]:
    if isinstance(queries, str | Message | Request | Mapping):
        raise ConfigurationError(
            f"`queries` must be many queries, such as a list. Got one {type(queries).__name__}; `run` answers one."
        )
    return [_request(messages, parameters) for messages in queries]


def _raise_first(results: list[Any], return_exceptions: bool) -> list[Any]:
    if not return_exceptions:
        for result in results:
            if isinstance(result, Exception):
                raise result
    return results
