"""One model's attempt at one question, and what its signals made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticSerializationError

from confcascade.asks import Flow
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Signal
from confcascade.types import Token, Usage

__all__ = ["NOT_KEPT", "RecordedScore", "Row", "judged_score", "score_of"]


class RecordedScore(BaseModel):
    """What one signal made of one attempt.

    Attributes:
        value: In the signal's own space, higher = more likely right; None if it could not be computed.
        phase: "pre" is judged before anything is generated, "post" by the answer.
        prefill: Whether the model reads the prompt for it in a pass of its own, which is paid for even where the signal
            fails (a hidden state, say; a router of texts needs no model).
        depth: Behind which share of the model's blocks a score of the phase "pre" is known, so that the pass of a
            rejected question ends there; 0 where texts are enough. None where the prompt is read to its end in any
            case, or it was not recorded: a rejected question is then charged a whole pass.
        upper: Where a signal can decide early: (tokens, bound) each time the greatest value that it can still reach
            falls, tokens being those generated so far. A draft ends where the bound falls below the threshold.
        lower: The greatest value that it could no longer fall below before the answer ended; None if that was never
            above the least of its space. Where it reaches the threshold, a draft is shown before its end, and stands
            even if it is then cut off.
        details: Further figures of the signal's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float | None
    phase: Literal["pre", "post"] = "post"
    prefill: bool = False
    depth: float | None = Field(default=None, ge=0, le=1)
    upper: tuple[tuple[int, float], ...] = ()
    lower: float | None = None
    details: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bounds_fall(self) -> RecordedScore:
        for (before, high), (after, low) in zip(self.upper, self.upper[1:], strict=False):
            if not (before < after and low < high):
                raise ValueError("`upper` must rise in tokens and fall in bounds")
        if self.depth is not None and self.phase == "post":
            raise ValueError("a signal of the phase 'post' has no `depth`: it is judged by the answer")
        if self.upper and self.phase == "pre":
            raise ValueError("a signal of the phase 'pre' has no `upper`: it is judged before the first token")
        if self.upper and self.upper[0][0] < (0 if self.prefill else 1):
            raise ValueError("`upper` begins with the first token (1), or with the prompt (0) where `prefill` is true")
        if self.upper and self.value is not None and self.value > self.upper[-1][1]:
            raise ValueError(f"`value` {self.value} lies above its last upper bound {self.upper[-1][1]}")
        if self.lower is not None and self.phase == "pre":
            raise ValueError("a signal of the phase 'pre' has no `lower`: it is judged before the first token")
        if self.lower is not None and self.value is not None and self.value < self.lower:
            raise ValueError(f"`value` {self.value} lies below its lower bound {self.lower}")
        return self


class Row(BaseModel):
    """One model's attempt at one question.

    Attributes:
        format: Of the row.
        question: Its id; with `model` the key of the row. Of rows with the same key the last holds.
        model: By which stages name it.
        group: What the figures are also told by (a subject, say).
        prompt: What was asked, if it is to be kept.
        reference: The right answer, if it is to be kept.
        answer: The text, without thoughts; empty if there was none.
        grade: How right it is, from 0 to 1; None if nobody graded it.
        refused: It says that it does not know; counted apart from a wrong answer.
        predicted: The answer as its grader read it (a letter, a number), if it did.
        error: Why the model failed, if it did. There is no answer then.
        problem: Why a cascade cannot keep the answer (cut off, filtered ...), as `confcascade.unusable` says.
        finish_reason: As in `Response`.
        tokens: Of the answer, which their texts spell, with log-probabilities; None where the model tells none, or they
            were not kept.
        before_answer: How many tokens came before them: thoughts, their marks, blanks.
        thoughts: What the model thought before it answered, or "(not kept)"; "" if it did not.
        labels: Log-probability that the answer begins with each label, read off the prompt (`Prefilled`).
        scores: By the name of the signal.
        usage: Tokens paid for.
        gate_input_tokens: Those of the prompt's tokens that a call of its own read before the answer, which read the
            prompt again (`Prefilled.apart`); 0 where one pass served both.
        gate_output_tokens: What that call had to write.
        flops: Floating-point operations, where several models made the answer (`Response.cost`); None where sizes and
            tokens of its one model say.
        usd: US dollars, likewise.
        latency_s: Seconds from asking to the end of the answer; of a call for many questions, this one's share; None if
            unknown.
        prefill_s: Those of them for reading the prompt; None if unknown.
        build: The model's exact build (fingerprint, revision, date), if known.
        prompt_version: Which prompt was used, if there are several.
        drawn: How often the question was drawn, at least 1: it was asked once, and its row counts so many times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    question: str = Field(min_length=1)
    model: str = Field(min_length=1)
    group: str | None = None
    prompt: str | None = None
    reference: str | None = None
    answer: str = ""
    grade: float | None = Field(default=None, ge=0, le=1)
    refused: bool = False
    predicted: str | None = None
    error: str | None = None
    problem: str | None = None
    finish_reason: str | None = "stop"
    tokens: tuple[Token, ...] | None = None
    before_answer: int = Field(default=0, ge=0)
    thoughts: str = ""
    labels: Mapping[str, float] = Field(default_factory=dict)
    scores: Mapping[str, RecordedScore] = Field(default_factory=dict)
    usage: Usage = Usage()
    gate_input_tokens: int = Field(default=0, ge=0)
    gate_output_tokens: int = Field(default=0, ge=0)
    flops: float | None = Field(default=None, ge=0)
    usd: float | None = Field(default=None, ge=0)
    latency_s: float | None = Field(default=None, ge=0)
    prefill_s: float | None = Field(default=None, ge=0)
    build: str | None = None
    prompt_version: str | None = None
    drawn: int = Field(default=1, ge=1)

    @property
    def key(self) -> tuple[str, str]:
        """The question and the model."""
        return self.question, self.model

    @property
    def usable(self) -> bool:
        """Whether there is an answer that a cascade could keep."""
        return self.error is None and self.problem is None and bool(self.answer.strip())

    def line(self) -> bytes:
        """As it stands in a file: UTF-8 JSON, values that are the default's left out, and a newline.

        Half a surrogate pair, of an emoji that a model was cut off in, say, cannot stand there: it becomes U+FFFD.
        """
        try:
            return self.model_dump_json(exclude_defaults=True).encode() + b"\n"
        except PydanticSerializationError:
            told = json.dumps(self.model_dump(exclude_defaults=True), ensure_ascii=False, separators=(",", ":"))
            return re.sub("[\ud800-\udfff]", "\ufffd", told).encode() + b"\n"


def score_of(signal: Signal, evidence: Evidence, *, prefill: bool = False, depth: float | None = None) -> RecordedScore:
    """What `signal` makes of a finished attempt, with the bounds that it would have given along the way.

    Args:
        signal: One that needs no further calls; `judged_score` takes any.
        evidence: The whole attempt: what was prefilled, the tokens and the response.
        prefill: Whether the prompt is read in a pass of its own for this signal: as in the flow, because it names
            layers, or labels that the model can tell from the prompt.
        depth: As of `RecordedScore`.

    Returns:
        Its score; `RecordedScore.value` is None, and the detail ``unavailable`` says why, if it cannot be computed.

    Raises:
        ConfigurationError: If the signal asks for a further call.
    """
    flow = judged_score(signal, evidence, prefill=prefill, depth=depth)
    try:
        next(flow)
    except StopIteration as ended:
        score: RecordedScore = ended.value
        return score
    raise ConfigurationError(f"Signal '{signal.name}' needs further calls of a model; `collect` records such scores.")


def judged_score(
    signal: Signal, evidence: Evidence, *, prefill: bool = False, depth: float | None = None, whole: bool = False
) -> Flow[RecordedScore]:
    """`score_of` as a flow, which asks for the further calls that a signal may need.

    Args:
        signal: Any.
        evidence: As of `score_of`.
        prefill: As of `score_of`.
        depth: As of `RecordedScore`.
        whole: Whether the cascade judges such an answer only when it is whole, whatever the signal could do.
    """
    upper: list[tuple[int, float]] = []
    lower = signal.space[0]
    before = len(evidence.response.thought_tokens or ()) if evidence.response is not None else 0
    if not prefill:  # another signal's pass is not its own
        evidence = replace(evidence, prefilled=None)
    if signal.phase == "post" and signal.early and not whole:
        tokens, least = evidence.tokens or (), signal.space[1]
        for count in range(0 if prefill else 1, len(tokens) + 1):
            low, high = signal.bounds(Evidence(evidence.request, evidence.prefilled, tuple(tokens[:count])))
            lower = max(lower, low) if count else lower  # nothing is shown before there is a token
            if high < least or (count, high) == (0, least):
                upper.append((before + count if count else 0, high))
                least = high
    value: float | None = None
    details: Mapping[str, Any] = {}
    try:
        measured = yield from signal.judge(evidence)
        value, details = measured.value, measured.details
    except SignalUnavailableError as error:
        details = {"unavailable": str(error)}
    return RecordedScore(
        value=value,
        phase=signal.phase,
        prefill=prefill,
        depth=depth,
        upper=tuple(upper),
        lower=lower if lower > signal.space[0] else None,
        details=details,
    )


NOT_KEPT = "(not kept)"  # a row without an answer would be one that no cascade could keep
