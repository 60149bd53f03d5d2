"""What every flow does: asking what a model can, billing it, scoring what it said, and saying how a query ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from confcascade.asks import Answer, Flow, Generate, LanguageModel, Left
from confcascade.cost import attempt_cost
from confcascade.errors import SignalUnavailableError
from confcascade.quick_init import quick_init
from confcascade.signals import Evidence, Signal, corrected, ends_of, passes, threshold_of
from confcascade.signals.calibrated import Calibrated
from confcascade.stage import Stage
from confcascade.trace import Attempt, Record, Score
from confcascade.types import Cost, Prefilled, Request, Response, Usage

__all__ = [
    "Bill",
    "OnError",
    "OnExhausted",
    "Outcome",
    "Tried",
    "Unanswered",
    "any_failed",
    "as_decided",
    "billed",
    "confidence_of",
    "explained",
    "inability",
    "score_all",
]

T = TypeVar("T")
OnError = Literal["escalate", "raise"]
OnExhausted = Literal["best", "raise"]


@quick_init
@dataclass(frozen=True)
class Outcome:
    """The answer to a query and the record of how it came about.

    Attributes:
        response: The answer.
        record: Every attempt, without what was said.
        responses: What was said: for each attempt of the record its response, None where it gave none.
    """

    response: Response
    record: Record
    responses: tuple[Response | None, ...] = ()

    @property
    def text(self) -> str:
        """The answer as the user sees it."""
        return self.response.text

    @property
    def stage(self) -> int:
        """Index of the stage that answered."""
        assert self.record.stage is not None
        return self.record.stage


@dataclass(frozen=True)
class Unanswered:
    """A query that has no answer, because it failed or was left.

    Attributes:
        record: Every attempt.
        responses: As of an `Outcome`.
    """

    record: Record
    responses: tuple[Response | None, ...] = ()


@dataclass
class Tried:
    """What a flow has tried so far, for whoever has to account for one that gives no answer.

    Attributes:
        attempts: That have ended.
        responses: What was said in each; None where it gave nothing.
    """

    attempts: list[Attempt] = field(default_factory=list)
    responses: list[Response | None] = field(default_factory=list)

    def add(self, attempt: Attempt, response: Response | None) -> None:
        """One more."""
        self.attempts.append(attempt)
        self.responses.append(response)


def inability(model: LanguageModel, request: Request) -> str | None:
    """Why `model` is not even asked: what it would answer instead is no answer."""
    if request.media and not model.capability.media:
        return "the model takes only text"
    if request.tools and not model.capability.tools:
        return "the model cannot call tools"
    if not model.capability.tool_history and any(message.tool_calls for message in request.messages):
        return "the model cannot read tool calls"
    if request.output is not None and request.output.instructions is None and not model.capability.structured:
        return "the model cannot give structured output"
    return None


class Bill:
    """What an attempt has used so far. A failed ask is charged its time, and the tokens that are known of."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.read: Prefilled | None = None  # the pass over the prompt, which its gate may have ended
        self.told: Cost | None = None  # what the answer cost, where it tells that itself (`Response.cost`)
        self.elapsed_s = 0.0
        self.busy_s = 0.0

    @property
    def read_apart(self) -> Usage:
        """Of a call of its own that read the prompt, which the usage of the answer lacks."""
        return self.read.usage if self.read is not None and self.read.apart else Usage()

    def add(self, answer: Answer[Any]) -> Any:
        self.elapsed_s += answer.elapsed_s
        self.busy_s += answer.busy_s
        if answer.usage is not None:
            self.usage += answer.usage
        return answer.unwrap()

    def cost(self, stage: Stage) -> Cost:
        """In all; the prices of the stage hold where the answer tells no dollars itself."""
        cost = attempt_cost(self.usage, self.busy_s, stage.model.architecture, stage.prices, self.read)
        if self.told is None:
            return cost
        return replace(cost, flops=self.told.flops, usd=cost.usd if self.told.usd is None else self.told.usd)

    def leave(self, answer: Answer[Any], before: Usage | None = None) -> None:
        """What has come of an answer that nobody waits for any more.

        Args:
            answer: With its usage.
            before: What was used before it was asked for; by default by a call of its own that read the prompt.
        """
        self.elapsed_s += answer.elapsed_s
        self.busy_s += answer.busy_s
        if answer.value is not None:
            self.usage = (self.read_apart if before is None else before) + answer.value.usage


def billed(flow: Flow[T], stage: Stage, bill: Bill) -> Flow[T]:
    """A signal's further calls, charged to the attempt; those of the stage's own model with the stage's decoding.

    What another model uses is not known to the stage's prices: of that only the time is charged.
    """
    try:
        asks = next(flow)
        while True:
            asks = tuple(
                replace(ask, request=stage.decoding.applied(ask.request))
                if isinstance(ask, Generate) and ask.model is stage.model
                else ask
                for ask in asks
            )
            try:
                answers = yield asks
            except Left as left:  # the answer before is paid for all the same
                for answer in left.answers:
                    bill.leave(answer, bill.usage)
                raise Left(()) from left
            for ask, answer in zip(asks, answers, strict=True):
                bill.elapsed_s += answer.elapsed_s
                bill.busy_s += answer.busy_s
                usage = answer.usage if answer.value is None else answer.value.usage
                if ask.model is stage.model and usage is not None:
                    bill.usage += usage
            asks = flow.send(answers)
    except StopIteration as ended:
        value: T = ended.value
        return value


def score_all(
    signals: Sequence[Signal], stage: Stage, evidence: Evidence, scores: dict[str, Score], bill: Bill | None = None
) -> Flow[None]:
    """Add each signal's score to `scores`; one that cannot be computed says why, and passes "always" alone.

    Further calls of signals are charged to `bill`.
    """
    for signal in signals:
        threshold = stage.thresholds[signal.name]
        try:
            if type(signal).judge is Signal.judge:  # it asks nothing
                measured = signal.score(evidence)
            else:
                judging = signal.judge(evidence)
                measured = yield from judging if bill is None else billed(judging, stage, bill)
        except SignalUnavailableError as error:
            least, _ = ends_of(threshold)
            scores[signal.name] = Score(None, least, threshold == "always", {"unavailable": str(error)})
        else:
            value, details = measured.value, measured.details
            own = threshold_of(threshold, details.get("label"))
            if not passes(value, own) and (other := corrected(threshold, details)) is not None:
                value, own = details["probabilities"][other], threshold_of(threshold, other)
                details = {**details, "label": other, "corrected": details["label"]}
            scores[signal.name] = Score(value, own, passes(value, own), details)


def as_decided(response: Response, signals: Sequence[Signal], scores: Mapping[str, Score]) -> Response:
    """An answer that is kept, with the label that it is given where its own did not reach its threshold."""
    for signal in signals:
        if "corrected" in (details := scores[signal.name].details):
            given = signal.gives(response, details["label"])
            response = given.replace(tokens=None, unscored="its label was corrected", corrected=details["corrected"])
    return response


def confidence_of(signals: Sequence[Signal], scores: Mapping[str, Score]) -> float | None:
    """That of the first calibrated signal, once it is known."""
    for signal in signals:
        if isinstance(signal, Calibrated):
            return scores[signal.name].value if signal.name in scores else None
    return None


def _shown(value: float, threshold: float) -> str:
    """With three digits, or as many as show that it is not the threshold."""
    shown = f"{value:.3g}"
    if value == threshold or shown != f"{threshold:.3g}":
        return shown
    digits = next((n for n in range(4, 17) if f"{value:.{n}g}" != f"{threshold:.{n}g}"), 17)
    return f"{value:.{digits}g}"


def any_failed(scores: Mapping[str, Score]) -> bool:
    """Whether some score did not pass."""
    return not all(score.passed for score in scores.values())


def explained(scores: Mapping[str, Score]) -> str:
    """One line: "p_ik 0.95 >= 0.9, p_t 0.41 < 0.9"."""
    parts = []
    for name, score in scores.items():
        if score.value is None:
            parts.append(f"{name}: {score.details['unavailable']}")
        elif isinstance(score.threshold, str):
            parts.append(f"{name} {score.value:.3g} ({score.threshold})")
        else:
            parts.append(
                f"{name} {_shown(score.value, score.threshold)} {'>=' if score.passed else '<'} {score.threshold:g}"
            )
        if "corrected" in score.details:
            parts[-1] += f" ({score.details['label']} instead of {score.details['corrected']})"
        if raw := score.details.get("scores"):  # of a signal made of others
            parts[-1] += f" (of {', '.join(f'{k} missing' if v is None else f'{k} {v:.3g}' for k, v in raw.items())})"
    return ", ".join(parts) or "no signal"
