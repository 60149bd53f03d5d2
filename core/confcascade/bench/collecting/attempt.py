"""One question put to one model, whole: the flow that `collect` plays once for each row of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confcascade.answers import parted
from confcascade.asks import Flow, Generate, LanguageModel, ask
from confcascade.attempts import Bill, billed
from confcascade.bench.recording.row import NOT_KEPT, RecordedScore, Row, judged_score
from confcascade.checks import failed_check
from confcascade.errors import ConfigurationError
from confcascade.flow import answer_layers, begun_for, prefill_for, read_for
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.signals import Evidence, Signal
from confcascade.stage import Stage
from confcascade.types import Message, Prefilled, Request, Response, Token, Usage
from confcascade.unusable import why_unusable

if TYPE_CHECKING:
    from confcascade.bench.questions.prompts import Prompt
    from confcascade.graders import Grader

__all__ = ["CollectOptions", "attempt_flow", "known_depth"]


@dataclass(frozen=True)
class CollectOptions:
    """How questions are put, answers judged, and what is kept of them.

    Attributes:
        prompt: Makes the messages.
        grader: Judges the answers.
        parameters: Further fields of every `Request`, such as ``max_tokens``.
        keep_text: Whether prompts, references and answers are kept; without, answers read "(not kept)", and of
            `Row.predicted` only the letter of a choice remains.
        keep_tokens: Whether the answer's tokens are kept with their log-probabilities (they spell the answer, so only
            with `keep_text`). Their alternatives are kept only of the first token, and where answer labels were judged.
        keep_thoughts: Whether what the model thought before it answered is kept (only with `keep_text`).
    """

    prompt: Prompt
    grader: Grader
    parameters: Mapping[str, Any] = field(default_factory=dict)
    keep_text: bool = True
    keep_tokens: bool = True
    keep_thoughts: bool = False

    def request(self, example: Example) -> Request:
        """What is asked about an example."""
        return Request(self.prompt.messages(example), **self.parameters)


def attempt_flow(example: Example, stage: Stage, asking: CollectOptions) -> Flow[Row]:
    """Ask a stage's model a question, let its signals and the grader judge the answer, and make a row of it.

    The model answers whole, whatever its signals say: thresholds play no part. What the live cascade would ask of the
    model to judge an attempt is asked here, too: a pass over the prompt (`prefill_for`), then the answer.

    Returns:
        The row; with `Row.error` if the model failed.
    """
    model, signals = stage.model, tuple(stage.signals)
    request = stage.decoding.applied(asking.request(example))
    asked = begun_for(model, signals, request)
    prefilled: Prefilled | None = None
    response: Response | None = None
    error: str | None = None
    problem: str | None = None
    usage, prefill_s, seconds = Usage(), None, 0.0
    grade = Grade(None)
    try:
        if (first := prefill_for(model, signals, asked)) is not None:
            answer = yield from ask(first)
            seconds += answer.busy_s
            prefilled = answer.unwrap()
            usage, prefill_s = prefilled.usage, answer.busy_s
        answer = yield from ask(
            Generate(
                model,
                asked,
                prefilled=prefilled,
                logprobs=model.capability.logprobs is not False,
                top_logprobs=max((signal.top_logprobs for signal in signals), default=0),
                followed=any(signal.follows_up for signal in signals),
                layers=answer_layers(model, signals),
            )
        )
        seconds += answer.busy_s
        response = parted(asked, read_for(signals, request, answer.unwrap()))
        usage = response.usage + (prefilled.usage if prefilled is not None and prefilled.apart else Usage())
        labels = {label for signal in signals for label in signal.labels}
        problem = why_unusable(request, response, labels=labels)
        if problem is None and stage.check is not None:
            problem = failed_check([stage.check], response.text)
    except Exception as failure:  # the model's
        error = f"{type(failure).__name__}: {failure}"
    further = Bill()
    scores = yield from _scores(stage, request, prefilled, response, further)
    if problem is None:  # of what cannot be kept, the live cascade asks nothing further
        usage, seconds = usage + further.usage, seconds + further.busy_s
    if response is not None:
        grade = yield from asking.grader.judge(example, response.answer)
        scores = yield from _with_grades(signals, scores, response, example, asking.grader)
    text = "" if response is None else response.answer
    kept = asking.keep_text
    return Row(
        question=example.id,
        model=model.name,
        group=example.group,
        prompt=_shown(request.messages) if kept else None,
        reference=" | ".join(example.references) if kept and example.references else None,
        answer=text if kept or not text.strip() else NOT_KEPT,
        grade=grade.value,
        refused=grade.refused,
        predicted=grade.predicted if kept or example.choices else None,
        error=error,
        problem=problem,
        finish_reason=None if response is None else response.finish_reason,
        tokens=_with_alternatives(response.tokens, scores) if response and kept and asking.keep_tokens else None,
        before_answer=0 if response is None else len(response.thought_tokens or ()),
        thoughts=_thoughts(response, keep=kept and asking.keep_thoughts),
        labels={} if prefilled is None else prefilled.label_logprobs,
        scores=scores,
        usage=usage,
        gate_input_tokens=prefilled.usage.input_tokens if prefilled is not None and prefilled.apart else 0,
        gate_output_tokens=prefilled.usage.output_tokens if prefilled is not None and prefilled.apart else 0,
        flops=None if response is None or response.cost is None else response.cost.flops,
        usd=None if response is None or response.cost is None else response.cost.usd,
        latency_s=seconds,
        prefill_s=prefill_s,
        build=getattr(model, "fingerprint", None),
        prompt_version=asking.prompt.version,
    )


def _scores(
    stage: Stage, request: Request, prefilled: Prefilled | None, response: Response | None, bill: Bill
) -> Flow[dict[str, RecordedScore]]:
    """Every signal's score, its further calls charged; of an attempt that failed, those that were judged before it."""
    scores: dict[str, RecordedScore] = {}
    model, whole = stage.model, any(signal.rewords for signal in stage.signals)
    for signal in stage.signals:
        evidence = Evidence(request, prefilled, model=model)
        if signal.phase == "post":
            if response is None:
                continue
            evidence = Evidence(request, prefilled, response.tokens, response, model)
        read = bool(signal.labels) and model.capability.prefill
        prefill = bool(signal.layers(model)) or signal.following or read
        if prefill and prefilled is None:  # that pass is what failed
            continue
        depth = known_depth(signal, model)
        try:
            judging = judged_score(signal, evidence, prefill=prefill, depth=depth, whole=whole)
            scores[signal.name] = yield from billed(judging, stage, bill)
        except ConfigurationError:
            raise
        except Exception as failure:  # the live attempt fails by it, and escalates, as one without a score
            unavailable = {"unavailable": f"{type(failure).__name__}: {failure}"}
            scores[signal.name] = RecordedScore(
                value=None, phase=signal.phase, prefill=prefill, depth=depth, details=unavailable
            )
    return scores


def known_depth(signal: Signal, model: LanguageModel) -> float | None:
    """Behind which share of the model's blocks a live cascade may end the pass, as far as this signal is concerned."""
    block = signal.known_at(model) if model.capability.stops else None
    return None if block is None else block / model.capability.layers


def _with_grades(
    signals: Sequence[Signal],
    scores: Mapping[str, RecordedScore],
    response: Response,
    example: Example,
    grader: Grader,
) -> Flow[dict[str, RecordedScore]]:
    """Scores of signals that correct, with the grade that the answer would have with each other label."""
    found = dict(scores)
    for signal in signals:
        score = scores.get(signal.name)
        if score is None or "probabilities" not in score.details:
            continue
        grades = {}
        for label in score.details["probabilities"]:
            if label != score.details["label"]:
                grade = yield from grader.judge(example, signal.gives(response, label).answer)
                grades[label] = grade.value
        found[signal.name] = score.model_copy(update={"details": {**score.details, "grades": grades}})
    return found


def _thoughts(response: Response | None, *, keep: bool) -> str:
    if response is None or not response.thoughts:
        return ""
    return response.thoughts if keep else NOT_KEPT


def _shown(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _with_alternatives(tokens: Sequence[Token] | None, scores: Mapping[str, RecordedScore]) -> tuple[Token, ...] | None:
    """The tokens, only those with alternatives at which labels are judged: the first, or where the label stands."""
    if tokens is None:
        return None
    kept = {0, *(score.details.get("token") for score in scores.values())}
    return tuple(token if i in kept else Token(token.text, token.logprob) for i, token in enumerate(tokens))
