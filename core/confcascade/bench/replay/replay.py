"""Any cascade policy over a recording, as array arithmetic: the decisions of the live cascade, and what they cost.

The rules are those of `flow`: signals of the phase "pre" first, and where one fails only the prompt is paid for, if it
was read; a score that is missing passes "always" alone; an empty draft or an error escalates; a draft ends
with the token at which a signal can no longer pass; one whose signals could no longer fail before it ended was shown,
so it is kept, though it be cut off or filtered later, and then it is wrong, whatever its grade; a score below its
`skip` sends the query to the last stage; if the last stage fails, there is no answer.
Answers are texts: requests with tools or structured output are not replayed. ``on_error`` and ``on_exhausted`` are
the defaults, "escalate" and "raise".
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costs import UNITS, Costs, Figures
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.prepared import Masks, PreparedStage, all_pass, any_below, prepare, summable
from confcascade.bench.replay.stage_columns import (
    Compared,
    StageColumns,
    compared_in,
    skips_of,
    structure_of,
    threshold_arrays,
)
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError

__all__ = [
    "ACCEPT",
    "DECISIONS",
    "ESCALATE",
    "FAIL",
    "NOT_ASKED",
    "QUESTIONS",
    "Outcomes",
    "PolicyStage",
    "Replay",
    "Sums",
    "Sweep",
    "outcomes",
    "replay",
    "sum_up",
    "sweep",
    "total",
]

NOT_ASKED, ACCEPT, ESCALATE, FAIL = -1, 0, 1, 2  # an attempt's decision
DECISIONS = {"accept": ACCEPT, "escalate": ESCALATE, "fail": FAIL}  # as records name them

QUESTIONS = 1 << 14  # played at a time, however long the recording; no more are `summable`
StageThresholds: TypeAlias = Sequence[tuple[Figures, Figures]]  # by stage: thresholds, and what skips to the last
_CELLS = 1 << 19  # policies times questions at a time: a few megabytes, which a processor's cache holds


@dataclass(frozen=True)
class Replay:
    """What one policy does on every question; arrays of shape (questions,) or (questions, stages).

    Attributes:
        stage: Which answered; -1 if none did.
        grade: Of the answer, from 0 to 1: 0 if there is none, NaN if it was not graded.
        decision: Of each stage: `ACCEPT`, `ESCALATE`, `FAIL` or `NOT_ASKED`.
        aborted: The draft was ended early.
        shown_early: The answer is a draft that could no longer fail before it ended, so that a stream showed it then,
            shape (questions,). What the last stage says, which streams from its first token, is no draft.
        input_tokens: Paid for at each stage.
        output_tokens: Paid for at each stage.
        cost: Of every model that ran.
        cost_answering_stage: The papers' accounting: of the attempt alone whose answer stands.
    """

    stage: NDArray[np.int64]
    grade: Figures
    decision: NDArray[np.int64]
    aborted: NDArray[np.bool_]
    shown_early: NDArray[np.bool_]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cost: Costs
    cost_answering_stage: Costs

    @property
    def retention(self) -> Figures:
        """The share of the questions that reached a stage which it answered; NaN where none reached it."""
        reached = (self.decision != NOT_ASKED).sum(axis=0)
        accepted = (self.decision == ACCEPT).sum(axis=0)
        return np.where(reached > 0, accepted / np.maximum(reached, 1), np.nan)


@dataclass(frozen=True)
class Sweep:
    """What many policies do, on average over the questions; arrays of shape (policies,).

    Attributes:
        accuracy: The mean grade; NaN if an answer that a policy may give was not graded.
        answered: The share of questions that each stage answered, shape (policies, most stages of a policy); where a
            policy has fewer stages, 0.
        unanswered: The share on which no stage gave an answer.
        cost: Mean cost of a question, every model that ran; NaN where that of an attempt which it may make is unknown.
        cost_answering_stage: Of the attempt alone whose answer stands.
    """

    accuracy: Figures
    answered: Figures
    unanswered: Figures
    cost: Costs
    cost_answering_stage: Costs


@dataclass(frozen=True)
class Outcomes:
    """What many policies do on every question; arrays of shape (policies, questions).

    Attributes:
        stage: Which answered; -1 if none did.
        grade: As of `Replay`.
    """

    stage: NDArray[np.int8]
    grade: Figures


def replay(
    columns: Columns,
    policy: Sequence[PolicyStage],
    *,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> Replay:
    """What a policy does on every question of a recording.

    Args:
        columns: The recording; every model of the policy must have been asked every question (`Columns.complete`).
        policy: Stages, smallest first.
        architectures: By model, for FLOPs.
        prices: By model, for dollars.

    Raises:
        ConfigurationError: If the policy cannot be replayed on this recording.
    """
    structure = structure_of(columns, policy)
    limits = _limits([policy], structure)
    parts = [
        _details([prepare(columns, rows, each, architectures or {}, prices or {}) for each in structure], limits)
        for rows in _slices(len(columns), QUESTIONS)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    cost, answering = joined.pop("cost"), joined.pop("cost_answering_stage")
    return Replay(**joined, cost=Costs(*cost.T), cost_answering_stage=Costs(*answering.T))


def outcomes(columns: Columns, policies: Sequence[Sequence[PolicyStage]]) -> Outcomes:
    """Who answers every question under many policies, and how well: what paired losses are made of.

    Takes policies times questions times 9 bytes.

    Raises:
        ConfigurationError: If a policy cannot be replayed on this recording.
    """
    stage = np.full((len(policies), len(columns)), -1, dtype=np.int8)
    grade = np.zeros(stage.shape)
    for members, structure, limits in _alike(columns, policies):
        for rows in _slices(len(columns), QUESTIONS):
            stages = [prepare(columns, rows, each, {}, {}) for each in structure]
            for block in _slices(len(members), max(1, _CELLS // min(len(columns), QUESTIONS))):
                at = np.ix_(members[block], np.arange(*rows.indices(len(columns))))
                stage[at], grade[at] = _answers(stages, [(each[block], least[block]) for each, least in limits])
    return Outcomes(stage, grade)


@dataclass(frozen=True)
class Sums:
    """What many policies do in all, on a part of a recording; those of two parts add up.

    Attributes:
        questions: In the part.
        answered: By each stage, shape (policies, stages).
        figures: Sums of accuracy, unanswered and both costs, shape (policies, 10).
    """

    questions: int
    answered: Figures
    figures: Figures

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.questions + other.questions, self.answered + other.answered, self.figures + other.figures)

    def means(self) -> Sweep:
        """On average over the questions."""
        accuracy, unanswered, *costs = self.figures.T / self.questions
        every, answering = Costs(*costs[: len(UNITS)]), Costs(*costs[len(UNITS) :])
        return Sweep(accuracy, self.answered / self.questions, unanswered, every, answering)


def sweep(
    columns: Columns | Iterable[Columns],
    policies: Sequence[Sequence[PolicyStage]],
    *,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> Sweep:
    """What many policies do on average: `replay` of each, summed up.

    Takes time in proportion to policies times questions (times the steps in which bounds fall, where signals decide
    early), and little memory beyond `columns`. Policies of the same models and signals are played together.

    Args:
        columns: As for `replay`; or parts of a recording, of which one at a time is held:
            ``map(read_columns, part_paths("recording"))``. A question belongs to one part.
        policies: Any mixture of chains, pairs and single models.
        architectures: By model, for FLOPs.
        prices: By model, for dollars.

    Raises:
        ConfigurationError: If a policy cannot be replayed on this recording, or there is no part.
    """
    parts = [columns] if isinstance(columns, Columns) else columns
    return total(sum_up(part, policies, architectures=architectures, prices=prices) for part in parts)


def total(sums: Iterable[Sums]) -> Sweep:
    """The means over all parts, added in their order: the same to the last digit, wherever each was summed up.

    (They are those of the whole to the last digit, too, if each part but the last has `QUESTIONS` questions.)

    Raises:
        ConfigurationError: If there is no part.
    """
    every = list(sums)
    if not every:
        raise ConfigurationError("A sweep needs at least one part of a recording; there is none.")
    return functools.reduce(operator.add, every).means()


def sum_up(
    columns: Columns,
    policies: Sequence[Sequence[PolicyStage]],
    *,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> Sums:
    """What many policies do in all on one part of a recording; as `sweep`."""
    n, count = len(columns), len(policies)
    sums = np.zeros((count, _WIDTH))
    answered = np.zeros((count, max((len(policy) for policy in policies), default=0)))
    for chosen, structure, limits in _alike(columns, policies):
        for rows in _slices(n, QUESTIONS):
            prepared = (prepare(columns, rows, each, architectures or {}, prices or {}) for each in structure)
            stages = [summable(stage) for stage in prepared]
            for block in _slices(len(chosen), max(1, _CELLS // min(n, QUESTIONS))):
                played, by_stage = _sums(stages, [(each[block], least[block]) for each, least in limits])
                sums[chosen[block]] += played
                answered[chosen[block], : len(stages)] += by_stage
    return Sums(n, answered, sums)


def _alike(
    columns: Columns, policies: Sequence[Sequence[PolicyStage]]
) -> Iterator[tuple[NDArray[np.intp], list[StageColumns], StageThresholds]]:
    """Policies of the same models and signals together: which they are, what they read, and their limits."""
    alike: dict[tuple[tuple[str, tuple[Compared, ...]], ...], list[int]] = {}
    for i, policy in enumerate(policies):
        *gated, last = policy or [PolicyStage("")]  # `structure_of` refuses an empty one
        key = (*((stage.model, compared_in(columns, stage)) for stage in gated), (last.model, ()))
        alike.setdefault(key, []).append(i)
    for members in alike.values():
        structure = structure_of(columns, policies[members[0]])
        yield np.array(members), structure, _limits([policies[i] for i in members], structure)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


# ---------------------------------------------------------------------- playing


def _limits(policies: Sequence[Sequence[PolicyStage]], structure: Sequence[StageColumns]) -> StageThresholds:
    return list(zip(threshold_arrays(policies, structure), skips_of(policies, structure), strict=True))


def _ascend(
    stages: Sequence[PreparedStage], limits: StageThresholds
) -> Iterator[tuple[PreparedStage, Masks, Masks, list[Masks], Masks]]:
    """Each stage with who reaches it, who is let generate, whose draft passes each step, and who is kept."""
    reach = np.ones((len(limits[0][0]), len(stages[0].usable)), dtype=bool)
    straight = np.zeros_like(reach)  # to the last stage
    for j, (stage, (thresholds, least)) in enumerate(zip(stages, limits, strict=True)):
        if j == len(stages) - 1:
            reach = reach | straight
        go = all_pass(stage.pre, thresholds, reach)
        keep = all_pass(stage.post, thresholds, go & stage.usable)
        if stage.floors is not None:
            keep = keep | all_pass(stage.floors, thresholds, go & stage.shown)
        yield stage, reach, go, [step.passed(thresholds) for step in stage.steps], keep
        reach = reach & ~keep
        if np.isfinite(least).any():
            leaving = any_below(stage.pre, least, reach & ~go)
            straight, reach = straight | leaving, reach & ~leaving


_WIDTH = 2 + 2 * len(UNITS)  # accuracy, unanswered, and both costs


def _sums(stages: Sequence[PreparedStage], limits: StageThresholds) -> tuple[Figures, Figures]:
    """Sums over the questions: those of a `Sweep`, shape (policies, _WIDTH), and answers by stage."""
    sums = np.zeros((len(limits[0][0]), _WIDTH))
    accuracy, unanswered, cost, answering = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:]
    answered = np.zeros((len(sums), len(stages)))
    for j, (stage, reach, go, passed, keep) in enumerate(_ascend(stages, limits)):
        if stage.pre:
            cost += _total(reach, stage.gate_cost) + _total(go, stage.first_cost - stage.gate_cost)
        else:
            cost += _total(go, stage.first_cost)
        for step, passes in zip(stage.steps, passed, strict=True):
            cost += _total(go[:, step.rows] & passes, step.change)
        kept = _total(keep, np.column_stack([np.ones(len(stage.grades)), stage.grades, stage.whole_cost]))
        answered[:, j] = kept[:, 0]
        accuracy += kept[:, 1]
        answering += kept[:, 2:]
    unanswered += len(stages[0].usable) - answered.sum(axis=1)
    return sums, answered


def _answers(stages: Sequence[PreparedStage], limits: StageThresholds) -> tuple[NDArray[np.int8], Figures]:
    """Which stage answers each question, and the grade, shape (policies, questions)."""
    shape = len(limits[0][0]), len(stages[0].usable)
    stage_of, grade = np.full(shape, -1, dtype=np.int8), np.zeros(shape)
    for j, (stage, *_, keep) in enumerate(_ascend(stages, limits)):
        stage_of[keep] = j
        grade = np.where(keep, stage.grades, grade)
    return stage_of, grade


def _total(mask: Masks, values: Figures) -> Figures:
    """Sums of `values` over the questions in `mask`; a product of matrices is the quickest way to them."""
    return mask.astype(np.float64) @ values


def _details(stages: Sequence[PreparedStage], limits: StageThresholds) -> dict[str, NDArray[np.generic]]:
    """What a `Replay` is made of, for the single policy of `limits`."""
    n, k = len(stages[0].usable), len(stages)
    stage_of, grade = np.full(n, -1), np.zeros(n)
    decision, aborted = np.full((n, k), NOT_ASKED), np.zeros((n, k), dtype=bool)
    read, written = np.zeros((n, k), dtype=np.int64), np.zeros((n, k), dtype=np.int64)
    cost, answering = np.zeros((n, len(UNITS))), np.zeros((n, len(UNITS)))
    shown_early = np.zeros(n, dtype=bool)
    for j, (stage, reaches, goes, passed, keeps) in enumerate(_ascend(stages, limits)):
        reach, go, keep = reaches[0], goes[0], keeps[0]
        tokens, generated_cost = stage.output_tokens - stage.gate_output_tokens, stage.whole_cost.copy()
        ended = np.zeros(n, dtype=bool)
        for step, passes in zip(stage.steps, passed, strict=True):
            first = ~passes[0] & ~ended[step.rows]
            ends = step.rows[first]
            tokens[ends], generated_cost[ends], ended[ends] = step.tokens[first], step.cost[first], True
        ended &= go
        attempt = np.where(go[:, None], generated_cost, stage.gate_cost)
        last = j == k - 1
        decision[reach, j] = FAIL if last else ESCALATE
        decision[go & stage.failed & ~ended, j] = FAIL
        decision[keep, j] = ACCEPT
        aborted[:, j] = ended & (tokens > 0)
        generated = go & ~(ended & (tokens == 0))
        answered = generated & ~stage.failed
        read[:, j] = np.where(reach, np.where(answered, stage.input_tokens, stage.gate_input_tokens), 0)
        of_answer = np.minimum(tokens, stage.output_tokens - stage.gate_output_tokens)
        written[:, j] = np.where(reach, stage.gate_output_tokens + np.where(generated, of_answer, 0), 0)
        cost[reach] += attempt[reach]
        if stage.floors is not None:
            shown_early |= all_pass(stage.floors, limits[j][0], keeps & stage.shown)[0]
        stage_of[keep], grade[keep], answering[keep] = j, stage.grades[keep], stage.whole_cost[keep]
    return {
        "stage": stage_of,
        "grade": grade,
        "decision": decision,
        "aborted": aborted,
        "shown_early": shown_early,
        "input_tokens": read,
        "output_tokens": written,
        "cost": cost,
        "cost_answering_stage": answering,
    }
