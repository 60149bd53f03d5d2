"""An answer that two models write in turn, step by step: the second flow over the same asks.

Before each step, or of each step once the smaller model has written it, the smaller model's signals say whether it is
sure enough. If it is, the step is its own; if not, the larger model writes that step, and the smaller one reads it and
is judged again. After STEER (arXiv 2511.06190), GlimpRouter (arXiv 2601.05110) and reward-guided speculative decoding
(arXiv 2501.19324), which differ in what is scored and when: see `docs/papers/steer.md`.

Nothing here awaits, reads a clock or touches a model: `drivers` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal

from confcascade.answers import parted
from confcascade.asks import Answer, Flow, Generate, Left, Session, ask
from confcascade.attempts import (
    Bill,
    OnError,
    OnExhausted,
    Outcome,
    Tried,
    any_failed,
    explained,
    inability,
    score_all,
)
from confcascade.cost import attempt_cost, extension_flops
from confcascade.errors import CascadeExhaustedError, ConfigurationError, StreamBrokenError, joined, kept_of
from confcascade.flow import prefill_for
from confcascade.notices import log_text
from confcascade.signals import Evidence, Signal
from confcascade.stage import Stage
from confcascade.tools import CUT
from confcascade.trace import Attempt, Record, Score, Step
from confcascade.types import Cost, Prefilled, Request, Response, Token, Usage, WrittenTokens

__all__ = ["Steps", "stepwise_flow"]


@dataclass(frozen=True)
class Steps:
    """What a step is, and who ends the answer.

    Attributes:
        delimiter: What ends a step, and is part of it.
        max_steps: After so many steps the larger model writes the rest as one.
        final: Who may write the last step, in which the answer is given: "author", whoever is its turn, or "large": if
            the smaller model comes to the end of the answer, the larger one writes that step anew.

    Raises:
        ConfigurationError: If one of them cannot be.
    """

    delimiter: str = "\n\n"
    max_steps: int = 64
    final: Literal["author", "large"] = "author"

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, str) or not self.delimiter:
            raise ConfigurationError(
                f'`delimiter` must be the text that ends a step, such as "\\n\\n". Got {self.delimiter!r}.'
            )
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ConfigurationError(f"`max_steps` must be a whole number of at least 1. Got {self.max_steps!r}.")
        if self.final not in ("author", "large"):
            raise ConfigurationError(f'`final` must be "author" or "large". Got {self.final!r}.')


def stepwise_flow(
    stages: Sequence[Stage],
    request: Request,
    *,
    steps: Steps,
    on_error: OnError = "escalate",
    on_exhausted: OnExhausted = "raise",
    policy_id: str = "",
    tried: Tried | None = None,
) -> Flow[Outcome]:
    """Answer `request` with steps of two models.

    Args:
        stages: The smaller model, whose signals decide about each step, and the larger one.
        request: The question; without tools and structured output, which are not written step by step.
        steps: What a step is.
        on_error: With "escalate", the larger model writes the rest if the smaller one fails; "raise" raises.
        on_exhausted: What follows if the larger model fails: "raise" raises, "best" lets the smaller one write the
            rest, flagged as degraded.
        policy_id: The cascade's.
        tried: Where attempts are kept as they end.

    Raises:
        CascadeExhaustedError: If the larger model failed, or both did.
        StreamBrokenError: If a model failed in the middle of a step that was shown already.
        Exception: The smaller model's own error, with ``on_error="raise"``.
    """
    tried = Tried() if tried is None else tried
    answer = _Answer(stages, request, steps, on_error, on_exhausted)
    try:
        response = yield from answer.written()
    except Left as left:
        answer.leave(left)
        for attempt in answer.attempts("left"):
            tried.add(attempt, None)
        raise
    except Exception as error:
        for attempt in answer.attempts("failed"):
            tried.add(attempt, None)
        if isinstance(error, _LargerFailedError):
            failed = tried.attempts[-1]
            exhausted = CascadeExhaustedError(
                f"The larger model, '{failed.model}', failed ({failed.reason.rstrip('.')}).",
                tried.attempts,
                tried.responses,
            )
            raise joined(exhausted, error.error) from None
        raise
    last = answer.last
    for attempt in answer.attempts("answered"):
        tried.add(attempt, response if attempt.stage == last.index else None)
    record = Record(policy_id, tuple(tried.attempts), last.index, last.stage.model.name, degraded=answer.degraded)
    return Outcome(response, record, tuple(tried.responses))


def _tokens_of(pieces: Sequence[Response]) -> WrittenTokens | None:
    """What these responses say one after another, in tokens, if all tell them and have the same ones."""
    told = [piece.written_tokens for piece in pieces]
    known = [each for each in told if each is not None]
    if not known or len(known) < len(told) or len({each.vocabulary for each in known}) > 1:
        return None
    return reduce(WrittenTokens.__add__, known)


def _joined(pieces: Sequence[Response]) -> Response:
    """One response of several that follow each other."""
    if len(pieces) == 1:
        return pieces[0]
    told = [piece.tokens for piece in pieces]
    return pieces[-1].replace(
        text="".join(piece.text for piece in pieces),
        written_tokens=_tokens_of(pieces),
        tokens=None if any(each is None for each in told) else tuple(t for each in told for t in each or ()),
        usage=sum((piece.usage for piece in pieces), Usage()),
    )


class _LargerFailedError(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class _Author:
    """One of the two models, what it has read, what it wrote, and what that cost.

    Attributes:
        stage: Its stage.
        index: Of the stage.
        out: Why it writes no more; "" while it may.
        error: That it failed with.
        steps: That it wrote.
        scores: Of the last step that was judged.
    """

    stage: Stage
    index: int
    out: str = ""
    error: Exception | None = None
    steps: list[Step] = field(default_factory=list)
    scores: Mapping[str, Score] = field(default_factory=dict)
    session: Session = field(default_factory=Session)
    bill: Bill = field(default_factory=Bill)
    cost: Cost = field(default_factory=Cost)
    kept: Cost = field(default_factory=Cost)
    _read: int = 0  # tokens that are in its KV cache

    @property
    def reads(self) -> bool:
        """Whether it keeps what it has read, and can be asked about a text that it did not write."""
        reads: bool = self.stage.model.capability.prefill
        return reads

    @property
    def asked(self) -> bool:
        return bool(self.bill.elapsed_s or self.steps or self.error is not None or self.bill.usage.total_tokens)

    def charge(self, answer: Answer[Any]) -> tuple[Any, Cost]:
        """What came of an ask, and what that cost; raises its error."""
        came = answer.value.usage if isinstance(answer.value, Prefilled | Response) else Usage()
        cost = self._cost(answer.usage or came, answer.busy_s)
        self.cost += cost
        value = self.bill.add(answer)  # which adds the usage of an ask that failed
        self.bill.usage += came
        return value, cost

    def forget(self, tokens: int) -> None:
        """The last so many tokens that it has read: they were thrown away."""
        self._read = max(0, self._read - tokens)

    def scored(self, signals: Sequence[Signal], evidence: Evidence, scores: dict[str, Score]) -> Flow[None]:
        """Add the signals' scores; what they ask further is charged."""
        aside = Bill()
        yield from score_all(signals, self.stage, evidence, scores, aside)
        if aside.elapsed_s:
            self.bill.usage += aside.usage
            self.bill.elapsed_s += aside.elapsed_s
            self.cost += aside.cost(self.stage)

    def _cost(self, usage: Usage, seconds: float) -> Cost:
        """Of tokens that follow those it has read, or, of a model that keeps nothing, of all but what is cached."""
        model, prices = self.stage.model, self.stage.prices
        before = self._read if self.reads else min(usage.input_details.get("cache_read", 0), usage.input_tokens)
        new = usage.total_tokens if self.reads else usage.total_tokens - before
        self._read += new if self.reads else 0
        architecture = model.architecture
        cost = attempt_cost(usage, seconds, architecture, prices)
        if architecture is None or cost.flops is None:
            return cost
        return replace(cost, flops=extension_flops(architecture, before, new))

    def attempt(self, decision: Literal["accept", "escalate", "fail", "left"], reason: str) -> Attempt:
        return Attempt(
            stage=self.index,
            model=self.stage.model.name,
            decision=decision,
            reason=reason,
            scores=dict(self.scores),
            error=None if self.error is None else kept_of(self.error),
            steps=tuple(self.steps),
            usage=self.bill.usage,
            cost=self.cost,
            kept_cost=self.kept,
            latency_s=self.bill.elapsed_s,
        )


class _Answer:
    """An answer while it is written.

    Attributes:
        last: Who wrote the last step.
        degraded: Whether the smaller model had to finish because the larger one failed.
    """

    def __init__(
        self, stages: Sequence[Stage], request: Request, steps: Steps, on_error: OnError, on_exhausted: OnExhausted
    ) -> None:
        self._small, self._large = (_Author(stage, index) for index, stage in enumerate(stages))
        self._request = request
        self._steps = steps
        self._on_error = on_error
        self._on_exhausted = on_exhausted
        self._text = request.written
        self._pieces: list[Response] = []
        self._tokens: tuple[Token, ...] | None = None  # of the last step, as the smaller model sees them
        self._seen: set[str] = set()
        self._asking = self._small
        self.last = self._large
        self.degraded = False
        thresholds = set(self._small.stage.thresholds.values())
        self._judges = not thresholds <= {"always"}
        unable = inability(self._small.stage.model, request)
        self._able = not unable
        self._small.out = unable or ("the threshold is never" if "never" in thresholds else "")

    def written(self) -> Flow[Response]:
        """Write it."""
        finished = False
        while not finished:
            wrote, scores, reason = yield from self._try_small()
            if not wrote:
                finished = yield from self._write_large(scores, reason)
            else:
                finished = self._pieces[-1].finish_reason != "step"
        return self._response()

    # ------------------------------------------------------------------ the smaller model

    def _try_small(self) -> Flow[tuple[bool, Mapping[str, Score], str]]:
        """Let the smaller model write a step, if it is sure enough: whether it did, and its scores, and why not."""
        author, scores = self._small, dict[str, Score]()
        if author.out:
            return False, scores, author.out
        if self._judges and len(self._pieces) >= self._steps.max_steps:
            author.out = f"the first {self._steps.max_steps} steps are over"
            return False, scores, author.out
        try:
            wrote, reason = yield from self._judged(scores)
        except Exception as error:
            author.error, author.out = error, f"{author.stage.model.name} failed: {kept_of(error)}"
            log_text(author.stage.model.name, error)
            if self._on_error == "raise" or self.degraded or isinstance(error, StreamBrokenError):
                raise
            return False, scores, author.out
        return wrote, scores, reason

    def _judged(self, scores: dict[str, Score]) -> Flow[tuple[bool, str]]:
        """A step of the smaller model's, judged before it is written and when it is."""
        author, stage = self._small, self._small.stage
        judges = [signal for signal in stage.signals if signal.phase == "post"] if self._judges else []
        prefilled: Prefilled | None = None
        before = Cost()
        if self._judges:
            author.scores = scores
            prefilled, before = yield from self._before(scores)
            if any_failed(scores):
                return False, explained(scores)
        redone = bool(judges) or self._steps.final == "large"
        response, cost = yield from self._generate(
            author,
            until=self._steps.delimiter if self._judges or self._steps.final == "large" else "",
            live=not redone,
            logprobs=True,
            top_logprobs=max((signal.top_logprobs for signal in stage.signals), default=0),
        )
        cut = self._cut_for_all(response)
        why = self._unusable(response) if not cut else ""
        ends = bool(self._pieces) and not response.text.strip()  # with nothing to judge
        if not (cut or why) and judges and not ends:
            evidence = Evidence(self._request, prefilled, response.tokens, response, stage.model)
            yield from author.scored(judges, evidence, scores)
            why = explained(scores) if any_failed(scores) else ""
        if not (cut or why) and self._steps.final == "large" and response.finish_reason != "step":
            why = "the larger model writes the last step"
            author.out = why
        if why and (redone or not self._text + response.text):
            self._note(author, response, scores, why, kept=False)
            author.forget(response.usage.output_tokens)
            return False, why
        unjudged = "the answer ends here" if self._judges else "the threshold is always"
        reason = cut or (explained(scores) if scores else unjudged)
        self._keep(author, response, before + cost, scores, reason)
        self._tokens = response.tokens
        return True, ""

    def _before(self, scores: dict[str, Score]) -> Flow[tuple[Prefilled | None, Cost]]:
        """Score what can be known before a step is written; and what that has read, and cost."""
        author, stage = self._small, self._small.stage
        gates = [signal for signal in stage.signals if signal.phase == "pre"]
        # what it wrote itself, it need not read again to know how sure it was
        ahead = [signal for signal in gates if not (signal.between_steps and self._tokens)]
        prefilled: Prefilled | None = None
        cost = Cost()
        if (first := prefill_for(stage.model, ahead, self._asked(author))) is not None:
            tokens = any(signal.between_steps for signal in ahead) and bool(self._pieces)
            self._asking = author
            answer = yield from ask(replace(first, session=author.session, tokens=tokens))
            prefilled, cost = author.charge(answer)
            if tokens and prefilled is not None:
                self._tokens = prefilled.tokens
        evidence = Evidence(self._asked(author), prefilled, self._tokens or ())
        yield from author.scored(gates, evidence, scores)
        return prefilled, cost

    def _cut_for_all(self, response: Response) -> str:
        """Why a step of the smaller model's that was cut is kept, whatever its scores are; "" if it is judged.

        The larger model would have what is left of the answer's tokens, too. Where that is less than a step of this
        answer takes, it comes to no end either, and what it has to read for it would be paid for nothing.
        """
        room = self._asked(self._large).max_tokens
        if not (self._judges and self._pieces) or response.finish_reason not in CUT or room is None:
            return ""
        wrote = sum(piece.usage.output_tokens for piece in self._pieces)
        few = room * len(self._pieces) < wrote
        return f"the answer is cut off here: {room} of its tokens were left, fewer than a step takes" if few else ""

    def _unusable(self, response: Response) -> str:
        """Why a step of the smaller model's is not kept, whatever its scores are."""
        if not self._judges:
            return ""
        said = response.text.strip()
        if not said and not self._text.strip():
            return "empty answer"
        if response.finish_reason in CUT and not response.text.endswith(self._steps.delimiter):
            return "it was cut off at its most tokens"
        return "it repeats an earlier step" if said in self._seen and response.finish_reason == "step" else ""

    # ------------------------------------------------------------------ the larger model

    def _write_large(self, scores: Mapping[str, Score], reason: str) -> Flow[bool]:
        """Let the larger model write a step, or the rest; whether the answer is finished."""
        author, rest = self._large, bool(self._small.out)
        try:
            response, cost = yield from self._generate(
                author,
                until="" if rest else self._steps.delimiter,
                live=True,
                final=self._on_exhausted == "raise",
                logprobs=author.stage.model.capability.logprobs is not False,
            )
        except Exception as error:
            author.error = error
            log_text(author.stage.model.name, error)
            if isinstance(error, StreamBrokenError):
                raise
            if self._on_exhausted == "raise" or not self._able or self._small.error is not None:
                raise _LargerFailedError(error) from None
            self.degraded, self._judges = True, False
            self._small.out, author.out = "", "failed"
            self._steps = replace(self._steps, final="author")
            return False
        self._keep(author, response, cost, scores, reason)
        self._tokens = None
        return response.finish_reason != "step"

    # ------------------------------------------------------------------ both

    def _asked(self, author: _Author) -> Request:
        request = author.stage.decoding.applied(self._request)
        limit = request.max_tokens
        if limit is not None:
            limit = max(1, limit - sum(piece.usage.output_tokens for piece in self._pieces))
        return replace(request, written=self._text, written_tokens=_tokens_of(self._pieces), max_tokens=limit)

    def _generate(self, author: _Author, **how: Any) -> Flow[tuple[Response, Cost]]:
        self._asking = author
        asked, paused, costs = self._asked(author), list[Response](), Cost()
        while True:
            behind = "".join(piece.text for piece in paused)
            limit = asked.max_tokens
            if limit is not None:
                limit = max(1, limit - sum(piece.usage.output_tokens for piece in paused))
            tokens = _tokens_of([*self._pieces, *paused])
            request = replace(asked, written=asked.written + behind, written_tokens=tokens, max_tokens=limit)
            answer = yield from ask(Generate(author.stage.model, request, session=author.session, **how))
            response, cost = author.charge(answer)
            costs += cost
            if response.finish_reason != "paused":
                break
            paused.append(response)
        response, cost = _joined([*paused, response]), costs
        limit = asked.max_tokens
        if response.finish_reason == "step" and limit is not None and response.usage.output_tokens >= limit:
            response = response.replace(finish_reason="length")  # nothing is left for another
        return response, cost

    def _keep(self, author: _Author, response: Response, cost: Cost, scores: Mapping[str, Score], reason: str) -> None:
        self._note(author, response, scores, reason, kept=True)
        author.kept += cost
        self._pieces.append(response)
        self._text += response.text
        self._seen.add(response.text.strip())
        self.last = author

    def _note(
        self, author: _Author, response: Response, scores: Mapping[str, Score], reason: str, *, kept: bool
    ) -> None:
        index, tokens = len(self._pieces), response.usage.output_tokens
        author.steps.append(Step(index, author.stage.model.name, kept, reason, tokens, dict(scores)))

    def _response(self) -> Response:
        """The whole answer."""
        authors = [author for author in (self._small, self._large) if author.asked]
        told = [piece.tokens for piece in self._pieces]
        tokens = None if any(each is None for each in told) else tuple(t for each in told for t in each or ())
        response = parted(
            self._request,
            Response(
                text="".join(piece.text for piece in self._pieces),
                tokens=tokens,
                usage=sum((author.bill.usage for author in authors), Usage()),
                finish_reason=self._pieces[-1].finish_reason,
                cost=sum((author.cost for author in authors), Cost()),
                steps=tuple(sorted((s for a in authors for s in a.steps), key=lambda step: (step.index, step.kept))),
            ),
        )
        return response.replace(text=response.answer) if response.thoughts else response

    def attempts(self, ended: Literal["answered", "failed", "left"]) -> list[Attempt]:
        """What each model did that was asked at all, the smaller one's first."""
        made: list[Attempt] = []
        for author in (self._small, self._large):
            if not author.asked:
                continue
            wrote = sum(step.kept for step in author.steps)
            redone = len(author.steps) - wrote
            reason = f"wrote {wrote} of {len(self._pieces)} steps" + (f", and {redone} in vain" if redone else "")
            if author.error is not None:
                made.append(author.attempt("fail", kept_of(author.error)))
            elif ended == "left":
                made.append(author.attempt("left", f"left before it had answered; {reason}"))
            else:
                last = ended == "answered" and author is self.last
                made.append(author.attempt("accept" if last else "escalate", reason))
        return made

    def leave(self, left: Left) -> None:
        """Charge what has come of the ask that nobody waits for any more."""
        for answer in left.answers:
            self._asking.charge(answer)
