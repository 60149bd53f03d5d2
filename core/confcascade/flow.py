"""The cascade, written once: a generator that asks and is answered.

Ascending the stages, each is first judged before it generates (P(IK)), then by what it generated (P(T)); a stage
whose scores all reach their thresholds answers; any other escalates the query, to the next stage, or straight to the
last where it is plain before generating that those between would not do either; the last stage always answers.
A draft that cannot be kept (cut off, say, or a call of an unknown tool) escalates before it is scored.

Nothing here awaits, reads a clock or touches a model: `drivers` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from confcascade.answers import parted
from confcascade.asks import Answer, Flow, Gate, Generate, LanguageModel, Left, Prefill, Verdict, Watch, ask
from confcascade.attempts import (
    Bill,
    OnError,
    OnExhausted,
    Outcome,
    Tried,
    any_failed,
    as_decided,
    confidence_of,
    explained,
    inability,
    score_all,
)
from confcascade.checks import Check, failed_check
from confcascade.errors import (
    CascadeExhaustedError,
    StreamBrokenError,
    joined,
    kept_of,
)
from confcascade.notices import log_text
from confcascade.quick_init import quick_init
from confcascade.signals import Evidence, Signal, ends_of, passes
from confcascade.stage import Stage
from confcascade.tools import in_words, response_schema
from confcascade.trace import Attempt, Record, Score
from confcascade.types import Prefilled, Request, Response, Token, Usage
from confcascade.unusable import OnCut, why_unusable
from confcascade.wants import NOTHING

__all__ = ["answer_layers", "begun_for", "cascade_flow", "prefill_for", "read_for"]


def cascade_flow(
    stages: Sequence[Stage],
    request: Request,
    *,
    on_error: OnError = "escalate",
    on_exhausted: OnExhausted = "raise",
    on_cut: OnCut = "escalate",
    checks: Sequence[Check] = (),
    shows_early: bool = True,
    only: int | None = None,
    policy_id: str = "",
    tried: Tried | None = None,
) -> Flow[Outcome]:
    """Answer `request` with the first stage whose attempt passes.

    Args:
        stages: Smallest first; the last always answers.
        request: The question.
        on_error: With "escalate", a query whose model failed goes to the next stage; "raise" raises.
        on_exhausted: What follows if the last stage fails: "raise" raises, "best" returns the last complete and usable
            earlier answer in words, flagged as degraded.
        on_cut: What happens to a text that was cut off at the token limit. With "escalate" it goes to the next stage,
            which may finish; with "keep" it is judged as it stands.
        checks: What every draft must pass, beside its stage's own (`confcascade.checking`).
        shows_early: Whether a draft that no score can withdraw any more is streamed at once. It then stands, even if it
            is cut off or filtered later.
        only: Index of the one stage that is asked, and answers as the last does; None for all.
        policy_id: The cascade's.
        tried: Where attempts are kept as they end.

    Raises:
        CascadeExhaustedError: If the last stage failed and there is no earlier answer, or none is wanted.
        StreamBrokenError: If a model failed in the middle of an answer that could no longer be withdrawn.
        Exception: The model's own error, if only one stage was to be asked, or with ``on_error="raise"``.
    """
    tried = Tried() if tried is None else tried
    attempts, responses = tried.attempts, tried.responses
    kept: tuple[int, Response] | None = None
    last, straight = len(stages) - 1 if only is None else only, False
    alone = only is not None or len(stages) == 1
    rules = _Rules(on_cut, checks, shows_early, stands=alone or on_exhausted == "raise")
    for index, stage in enumerate(stages):
        if index < last and (straight or only is not None):
            continue
        attempt, response, error = yield from _attempt(stage, index, request, stages[last], index == last, rules, tried)
        straight = bool(_hopeless(stage, attempt.scores))
        tried.add(attempt, response)
        if error is not None and alone:
            raise error.__cause__ if isinstance(error, StreamBrokenError) and error.__cause__ is not None else error
        if error is not None and (on_error == "raise" or isinstance(error, StreamBrokenError)):
            raise error
        if attempt.decision == "accept" and response is not None:
            return Outcome(response, Record(policy_id, tuple(attempts), index, stage.model.name), tuple(responses))
        # never a call of a tool: it was rejected, and agents act on it without a look at the record
        acts = response is not None and response.calls_tools and request.output is None
        if response is not None and response.problem is None and not (response.is_empty or acts or attempt.aborted):
            kept = index, response
        if index == last:
            break
    if kept is None or on_exhausted == "raise":
        failed = attempts[-1]
        exhausted = CascadeExhaustedError(
            f"The last stage, '{failed.model}', gave no answer ({failed.reason.rstrip('.')})"
            + ("." if kept or on_exhausted == "raise" else " and no earlier stage has a complete one."),
            attempts,
            responses,
        )
        raise joined(exhausted, error)
    index, response = kept
    record = Record(policy_id, tuple(attempts), index, stages[index].model.name, degraded=True)
    return Outcome(response, record, tuple(responses))


@quick_init
@dataclass(frozen=True)
class _Rules:
    """What holds for every attempt: as of `cascade_flow`, and whether nothing can replace the last answer."""

    on_cut: OnCut
    checks: Sequence[Check]
    shows_early: bool
    stands: bool


def _attempt(
    stage: Stage, index: int, request: Request, largest: Stage, last: bool, rules: _Rules, tried: Tried
) -> Flow[tuple[Attempt, Response | None, Exception | None]]:
    """One stage's try: its record, its answer if it finished one, and the error if it failed."""
    bill = Bill()
    wants = NOTHING if last else stage.wants
    signals, judges = wants.signals, wants.after
    scores: dict[str, Score] = {}

    def ended(
        decision: Literal["accept", "escalate", "fail", "left"],
        reason: str,
        response: Response | None = None,
        error: Exception | None = None,
    ) -> tuple[Attempt, Response | None, Exception | None]:
        attempt = Attempt(
            stage=index,
            model=stage.model.name,
            decision=decision,
            reason=reason,
            scores=scores,
            confidence=confidence_of(signals, scores),
            error=None if error is None else kept_of(error),
            aborted=response is not None and response.finish_reason == "aborted",
            steps=() if response is None else response.steps,
            usage=bill.usage,
            cost=bill.cost(stage),
            latency_s=bill.elapsed_s,
        )
        return attempt, response, error

    if reason := inability(stage.model, request):
        return ended("fail" if last else "escalate", reason)
    asked = stage.decoding.applied(request)
    if wants.asks:
        asked = begun_for(stage.model, signals, asked)
    if request.output is not None and not stage.model.capability.structured:
        asked = in_words(asked)
    try:
        # before anything is generated
        prefilled: Prefilled | None = None
        gate = _gate_of(wants.before, stage, request) if wants.before else None
        if wants.prefill and (first := prefill_for(stage.model, signals, asked)) is not None:
            prefilled = bill.read = bill.add((yield from ask(replace(first, gate=gate))))
            bill.usage = prefilled.usage
        evidence = Evidence(request, prefilled, model=stage.model)
        if gate is not None and prefilled is not None and (judged := gate.scores(prefilled)) is not None:
            scores |= judged
        elif wants.before:
            yield from score_all(wants.before, stage, evidence, scores, bill)
        if any_failed(scores):
            hopeless = _hopeless(stage, scores)
            return ended(
                "escalate", explained(scores) + (f"; {hopeless}: straight to {largest.model.name}" * bool(hopeless))
            )

        # generation, ended early where the rest cannot change the decision
        checks = () if last else (*rules.checks, *([stage.check] if stage.check is not None else []))
        whole = request.judged_whole or bool(checks) or response_schema(request) is not None
        watch = _Watch(judges, stage, evidence, rules.shows_early) if wants.early and not whole else None
        if watch is not None and prefilled is not None and watch(()) == "abort":
            yield from score_all(judges, stage, evidence, scores, bill)
            return ended("escalate", explained(scores) + " (before generating)")
        live = last or (rules.shows_early and not (judges or whole))
        answer: Answer[Response]
        (answer,) = yield (
            Generate(
                stage.model,
                asked,
                prefilled=prefilled,
                logprobs=wants.logprobs,
                top_logprobs=wants.top_logprobs,
                watch=watch,
                live=live,
                final=last and rules.stands,
                followed=wants.follows_up,
                layers=answer_layers(stage.model, judges) if wants.states else (),
            ),
        )
        told = bill.add(answer)
        response = parted(asked, read_for(signals, request, told) if wants.reads else told)
        usage = response.usage
        bill.usage, bill.told = usage if prefilled is None else bill.read_apart + usage, response.cost

        # after it
        aborted = response.finish_reason == "aborted"
        on_cut = "keep" if last else rules.on_cut
        problem = None if aborted else why_unusable(request, response, on_cut, labels=wants.labels)
        if checks and problem is None and not (aborted or response.calls_tools):
            problem = failed_check(checks, response.text)
        shown = not last and (live or (watch is not None and watch.released)) and bool(response.text.strip())
        if shown:
            problem = None  # nothing withdraws it
        in_its_words = request.output is not None and not stage.model.capability.structured
        if problem is None and in_its_words and request.output is not None and request.output.check is not None:
            problem = request.output.check(response.answer)
        if last:  # answers as it would alone
            return ended("accept", "last stage" + (f" ({problem})" if problem else ""), response)
        if problem is not None:
            return ended("escalate", problem, response.replace(problem=problem))
        evidence = Evidence(request, prefilled, response.tokens, response, stage.model)
        try:
            yield from score_all(judges, stage, evidence, scores, bill)
        except Exception as error:
            if not shown:
                raise
            log_text(stage.model.name, error)
            return ended("accept", f"shown before it was scored ({kept_of(error)})", response)
        if aborted:
            said = response.usage.output_tokens
            early_end = f" (ended after {said} token{'' if said == 1 else 's'})"
            return ended("escalate", explained(scores) + early_end, response)
        if any_failed(scores) and not shown:
            return ended("escalate", explained(scores), response)
        return ended("accept", explained(scores), as_decided(response, judges, scores))
    except Left as left:
        for answer in left.answers:
            bill.leave(answer)
        tried.add(*ended("left", "left before it had answered")[:2])
        raise
    except Exception as error:  # a model's; cancellation and the like are no Exception
        log_text(stage.model.name, error)
        return ended("fail", kept_of(error), error=error)


def prefill_for(model: LanguageModel, signals: Sequence[Signal], request: Request) -> Prefill | None:
    """The pass over the prompt that `signals` want of `model`; None if they want none, or it can make none."""
    layers = {layer for signal in signals for layer in signal.layers(model)}
    labels = [label for signal in signals for label in signal.labels]
    following = any(signal.following for signal in signals)
    if not (layers or following or (labels and model.capability.prefill)):
        return None
    return Prefill(model, request, tuple(sorted(layers)), tuple(dict.fromkeys(labels)), following=following)


def answer_layers(model: LanguageModel, signals: Sequence[Signal]) -> tuple[int, ...]:
    """Blocks whose hidden states `signals` want of `model` with its answer."""
    return tuple(sorted({layer for signal in signals for layer in signal.answer_layers(model)}))


def begun_for(model: LanguageModel, signals: Sequence[Signal], request: Request) -> Request:
    """`request` as `signals` want it asked, and the answer begun so, where `model` can be made to begin it."""
    for signal in signals:
        request = signal.asks(request)
    for signal in signals:
        if signal.prefix is not None:
            free = not request.judged_whole and response_schema(request) is None
            return replace(request, begun=signal.prefix) if free and model.capability.prefill else request
    return request


def read_for(signals: Sequence[Signal], request: Request, response: Response) -> Response:
    """A model's response without what `signals` had asked for beside the answer."""
    for signal in signals:
        response = signal.reads(request, response)
    return response


class _Gate(Gate):
    """Ends the pass over a prompt once all that judges before the answer is known, and some of it does not pass.

    A score that is missing ends nothing: what it is missing for may be the model's error, which a whole pass shows.
    """

    def __init__(self, signals: Sequence[Signal], stage: Stage, request: Request, block: int) -> None:
        self._signals = signals
        self._stage = stage
        self._request = request
        self._block = block
        self._judged: tuple[Mapping[int, Any], dict[str, Score]] | None = None

    def __call__(self, hidden_states: Mapping[int, Any]) -> bool:
        if max(hidden_states) != self._block:  # scores below it are for the record, and for `Stage.skip`
            return True
        scores: dict[str, Score] = {}
        evidence = Evidence(self._request, Prefilled(Usage(), hidden_states), model=self._stage.model)
        try:
            for _ in score_all(self._signals, self._stage, evidence, scores):
                return True  # it asks for more, which `known_at` had denied
        except Exception:  # which the flow meets again, and accounts for
            return True
        if any(score.value is None for score in scores.values()):
            return True
        self._judged = hidden_states, scores
        return not any_failed(scores)

    def scores(self, prefilled: Prefilled) -> dict[str, Score] | None:
        """What it has made of these very hidden states, by the name of the signal; None if nothing."""
        if self._judged is None:
            return None
        states, scores = self._judged
        same = all(prefilled.hidden_states.get(layer) is state for layer, state in states.items())
        return scores if same or prefilled.depth is not None else None


def _gate_of(signals: Sequence[Signal], stage: Stage, request: Request) -> _Gate | None:
    """A gate of these signals of the phase "pre", if the model obeys one and hidden states tell their scores."""
    if not stage.model.capability.stops:
        return None
    blocks = [signal.known_at(stage.model) for signal in signals]
    block = max((block for block in blocks if block is not None), default=0)
    return _Gate(signals, stage, request, block) if block and None not in blocks else None


class _Watch(Watch):
    """Ends an attempt as soon as a signal can no longer pass, releases it as soon as none can fail.

    Attributes:
        released: Whether it has released it. What is found out later, such as that it was cut off, changes nothing.
    """

    def __init__(self, signals: Sequence[Signal], stage: Stage, evidence: Evidence, shows_early: bool) -> None:
        self._signals = signals
        self._thresholds = stage.thresholds
        self._evidence = evidence
        self._shows_early = shows_early
        self.released = False

    def __call__(self, tokens: Sequence[Token]) -> Verdict:
        evidence = Evidence(self._evidence.request, self._evidence.prefilled, tuple(tokens))
        released = self._shows_early
        for signal in self._signals:
            low, high = signal.bounds(evidence)
            least, greatest = ends_of(self._thresholds[signal.name])
            if not passes(high, least):
                return "abort"
            # at the least of its space nothing is known yet, not even whether there will be a score
            known = low > signal.space[0] or greatest == "always"
            corrects = signal.corrects and isinstance(self._thresholds[signal.name], Mapping)
            released = released and known and not corrects and passes(low, greatest)
        self.released = released and bool(tokens)
        return "release" if released else "hold"


def _hopeless(stage: Stage, scores: Mapping[str, Score]) -> str:
    """Which scores send the query straight to the last stage: "p_ik 0.05 < 0.2"; empty if none does."""
    if not stage.skip:
        return ""
    known = {name: score.value for name, score in scores.items() if score.value is not None}
    low = [(name, known[name], least) for name, least in stage.skip.items() if known.get(name, least) < least]
    return ", ".join(f"{name} {value:.3g} < {least:g}" for name, value, least in low)
