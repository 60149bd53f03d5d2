"""Recordings of every kind that there is: prefilled or not, told or silent, empty, failed, incomplete."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confcascade import Architecture, Message, Prices, Request, TokenProbability, Usage
from confcascade.answers import parted
from confcascade.bench.recording import RecordedScore, Row, score_of
from confcascade.bench.recording.row import NOT_KEPT
from confcascade.bench.replay import PolicyStage
from confcascade.extending import Evidence, Prefilled, Response
from confcascade.types import Token
from hypothesis import strategies as st

# signals of a live model, computed from what the recording holds of its tokens
LIVE = {
    "mean": TokenProbability(name="mean"),
    "first": TokenProbability(aggregate="first", name="first"),
    "opening": TokenProbability(first=2, name="opening"),
    "opening_min": TokenProbability(first=2, aggregate="min", name="opening_min"),
    "min": TokenProbability(aggregate="min", name="min"),
    "product": TokenProbability(aggregate="product", name="product"),
    "letter": TokenProbability("AB", name="letter"),
    "corrected": TokenProbability("AB", corrects=True, name="corrected"),
}
PROBABILITIES = st.sampled_from([1.0, 0.95, 0.9, 0.7, 0.5, 0.2])
SCORES = st.none() | PROBABILITIES
THRESHOLDS = st.sampled_from([0.0, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0, "always", "never"])
LABELLED = [name for name, signal in LIVE.items() if signal.labels]
BY_LABEL = THRESHOLDS | st.fixed_dictionaries(dict.fromkeys("AB", THRESHOLDS.filter(lambda each: each != "always")))
SIZES = [Architecture(10, 2, 3), Architecture(100, 3, 5, 30), Architecture(1000, 4, 7, 100)]
PRICES = [Prices(1, 2), Prices(10, 30), Prices(100, 500)]
THINKING = ["<think>", "hm", "</think>", "\n", "A", ", b"]
LIST = ["A", ", b", " c", " d"]
NAMES = ["small", "medium", "large"]
DEPTHS = {"router": [None, 0.0, 0.0], "probe": [None, 0.5, 0.5, 1.0], "deeper": [None, 0.75, 0.75, 0.5]}


@dataclass(frozen=True)
class Case:
    """A recording, policies over it, and what its models cost."""

    rows: list[Row]
    questions: list[str]
    policies: list[list[PolicyStage]]
    architectures: Mapping[str, Architecture]
    prices: Mapping[str, Prices]


def made_row(
    question: str,
    model: str,
    *,
    words: Sequence[str],
    probabilities: Sequence[float] | None,
    local: bool,
    letter: float,
    error: str | None,
    graded: bool,
    uncounted: int = 0,
    cut: bool = False,
    gate: tuple[int, int] = (0, 0),
    **scores: RecordedScore,
) -> Row:
    """A row whose scores of tokens are what the live signals make of them.

    Args:
        uncounted: Tokens that are paid for and not visible (the end of a text), or the reverse.
        cut: Whether it was cut off at the token limit.
        gate: Tokens of the prompt that a call of its own read before the answer, and what it had to write.
    """
    told = None if probabilities is None else tuple(map(Token, words, map(math.log, probabilities)))
    usage = Usage(3 + len(model), max(0, len(words) + uncounted))
    request = Request((Message("user", question),))
    labels = {"A": math.log(letter), "B": math.log(1.001 - letter)} if local else {}
    response = parted(request, Response("".join(words), told, usage))
    told = response.tokens
    for name, signal in LIVE.items():
        if not signal.labels:
            scores[name] = score_of(signal, Evidence(request, None, told, response))
        elif local:
            seen = Prefilled(Usage(usage.input_tokens), label_logprobs=labels)
            score = score_of(signal, Evidence(request, seen, told, response), prefill=True)
            if "probabilities" in score.details:  # as `collect` asks its grader about the other label
                grades = {label: 0.25 for label in "AB" if label != score.details["label"]}
                score = score.model_copy(update={"details": {**score.details, "grades": grades}})
            scores[name] = score
    return Row(
        question=question,
        model=model,
        answer="" if error else response.answer,
        error=error,
        problem="it was cut off" if cut and not error else None,
        finish_reason="length" if cut else "stop",
        before_answer=len(response.thought_tokens or ()),
        thoughts=NOT_KEPT if response.thoughts else "",
        tokens=told,
        labels=labels,
        grade=float(graded),
        scores=scores,
        usage=Usage(*gate) if error else usage + Usage(*gate),
        gate_input_tokens=gate[0],
        gate_output_tokens=gate[1],
        latency_s=0.5 + len(words),
        prefill_s=0.25,
    )


@st.composite
def skips(draw: Any, thresholds: Mapping[str, Any]) -> dict[str, float]:
    """Scores that send a query straight to the last stage, for some signals that judge before the answer."""
    found = {}
    for name in sorted({"router", "probe", "deeper"} & set(thresholds)):
        most = 1.0 if thresholds[name] == "never" else thresholds[name]
        if most != "always" and draw(st.booleans()):
            found[name] = draw(st.sampled_from([score for score in (0.0, 0.2, 0.35, 0.5, 0.7, 1.0) if score <= most]))
    return found


@st.composite
def cases(draw: Any) -> Case:
    """Two or three models, a few questions, a few policies."""
    names = NAMES[: draw(st.integers(2, 3))]
    questions = [f"q{i}" for i in range(draw(st.integers(1, 4)))]
    rows = []
    for model in names:
        local = draw(st.booleans())
        served = not local and draw(st.booleans())  # hidden states by a call of their own
        depths = {name: draw(st.sampled_from(told)) for name, told in DEPTHS.items()}
        for question in questions:
            words = draw(st.sampled_from([[], [" "], ["yes"], ["A"], ["B"], ["a", " b"], LIST, THINKING]))
            told = draw(st.lists(PROBABILITIES, min_size=len(words), max_size=len(words)))
            scores = {
                "router": RecordedScore(value=draw(SCORES), phase="pre", depth=depths["router"]),
                "sure": RecordedScore(value=draw(SCORES)),
            }
            for probe in ("probe", "deeper") if local or served else ():
                older = draw(st.integers(0, 9)) == 0  # a row that does not tell the depth
                depth = None if older or served else depths[probe]
                scores[probe] = RecordedScore(value=draw(SCORES), phase="pre", prefill=True, depth=depth)
            row = made_row(
                question,
                model,
                words=words,
                probabilities=draw(st.sampled_from([told, told, None])),
                local=local,
                letter=draw(st.sampled_from([0.9, 0.6, 0.3])),
                error=draw(st.sampled_from([None, None, None, None, "down"])),
                graded=draw(st.booleans()),
                uncounted=draw(st.sampled_from([0, 0, 1, -1])),
                # one that is nothing but a label is whole, wherever it ends
                gate=(2 + len(model), 1) if served else (0, 0),
                cut=words in (["yes"], ["a", " b"], LIST, THINKING) and draw(st.booleans()),
                **scores,
            )
            rows.append(row.model_copy(update={"tokens": None}) if draw(st.integers(0, 5)) == 0 else row)  # not kept
    policies = []
    for _ in range(draw(st.integers(1, 3))):
        chosen = sorted(draw(st.sets(st.sampled_from(names), min_size=1)), key=NAMES.index)
        stages = []
        for model in chosen[:-1]:
            known = sorted({name for row in rows if row.model == model for name in row.scores})
            signals = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
            thresholds = {name: draw(BY_LABEL if name in LABELLED else THRESHOLDS) for name in signals}
            stages.append(PolicyStage(model, thresholds, draw(skips(thresholds))))
        policies.append([*stages, PolicyStage(chosen[-1])])
    return Case(
        rows,
        questions,
        policies,
        dict(zip(names, SIZES, strict=False)),
        dict(zip(names, PRICES, strict=False)),
    )
