"""Any cascade policy over a recording, as array arithmetic: the decisions of the live cascade, and what they cost.

The rules are those of `flow`: signals of the phase "pre" first, and where one fails only the prompt is paid for, if it
was read; a score that is missing passes "always" alone; an empty draft or an error passes the query on; a draft ends
with the token at which a signal can no longer pass; if the last stage fails, the last complete earlier answer stands.
Answers are texts: requests with tools or structured output are not replayed. ``on_error`` and ``on_exhausted`` are
the defaults, "escalate" and "best".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from confcascade.cost import Architecture, Prices, token_flops
from confcascade.errors import ConfigurationError
from confcascade.evaluation.columns import Column, Columns
from confcascade.signals import Threshold

__all__ = ["ACCEPT", "ESCALATE", "FAIL", "NOT_ASKED", "Costs", "PolicyStage", "Replay", "Sweep", "replay", "sweep"]

NOT_ASKED, ACCEPT, ESCALATE, FAIL = -1, 0, 1, 2  # an attempt's decision

Masks: TypeAlias = NDArray[np.bool_]  # of shape (policies, questions)
Figures: TypeAlias = NDArray[np.float64]

_QUESTIONS = 16_384  # at a time, however long the recording
_CELLS = 1 << 19  # policies times questions at a time: a few megabytes, which a processor's cache holds
_UNITS = ("flops", "tokens", "usd", "seconds")
_FREE = np.finfo(np.float64).max  # the bound of a signal that cannot tell yet: below "never" (infinity) alone


@dataclass(frozen=True)
class PolicyStage:
    """A stage of a policy: a model of the recording, and a threshold for each of its signals that judges it.

    Thresholds are as in `Stage`. Those of the last stage are not used: it always answers.
    """

    model: str
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """Costs of every question (of every policy: their means); NaN where unknown, as `Cost` has None."""

    flops: Figures
    tokens: Figures
    usd: Figures
    seconds: Figures


@dataclass(frozen=True)
class Replay:
    """What one policy does on every question; arrays of shape (questions,) or (questions, stages).

    Attributes:
        stage: Which answered; -1 if none did.
        degraded: An earlier, rejected answer stands, because the last stage failed.
        grade: Of the answer, from 0 to 1: 0 if there is none, NaN if it was not graded.
        decision: Of each stage: `ACCEPT`, `ESCALATE`, `FAIL` or `NOT_ASKED`.
        aborted: The draft was ended early.
        input_tokens: Paid for at each stage.
        output_tokens: Paid for at each stage.
        cost: Of every model that ran.
        cost_answering_stage: The papers' accounting: of the attempt alone whose answer stands.
    """

    stage: NDArray[np.int64]
    degraded: NDArray[np.bool_]
    grade: Figures
    decision: NDArray[np.int64]
    aborted: NDArray[np.bool_]
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
        degraded: The share on which an earlier answer stands because the last stage failed.
        unanswered: The share on which no stage gave an answer.
        cost: Mean cost of a question, every model that ran.
        cost_answering_stage: Of the attempt alone whose answer stands.
    """

    accuracy: Figures
    answered: Figures
    degraded: Figures
    unanswered: Figures
    cost: Costs
    cost_answering_stage: Costs


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
    structure = _structure(columns, policy)
    thresholds = _thresholds([policy], structure)
    parts = [
        _details([_prepare(columns, rows, each, architectures or {}, prices or {}) for each in structure], thresholds)
        for rows in _slices(len(columns), _QUESTIONS)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    cost, answering = joined.pop("cost"), joined.pop("cost_answering_stage")
    return Replay(**joined, cost=Costs(*cost.T), cost_answering_stage=Costs(*answering.T))


def sweep(
    columns: Columns,
    policies: Sequence[Sequence[PolicyStage]],
    *,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> Sweep:
    """What many policies do on average: `replay` of each, summed up.

    Takes time in proportion to policies times questions (times the steps in which bounds fall, where signals decide
    early), and little memory beyond `columns`. Policies of the same models and signals are played together.

    Args:
        columns: As for `replay`.
        policies: Any mixture of chains, pairs and single models.
        architectures: By model, for FLOPs.
        prices: By model, for dollars.

    Raises:
        ConfigurationError: If a policy cannot be replayed on this recording.
    """
    n, count = len(columns), len(policies)
    sums = np.zeros((count, _WIDTH))
    answered = np.zeros((count, max((len(policy) for policy in policies), default=0)))
    alike: dict[tuple[tuple[str, tuple[str, ...]], ...], list[int]] = {}
    for i, policy in enumerate(policies):
        alike.setdefault(tuple((stage.model, tuple(stage.thresholds)) for stage in policy), []).append(i)
    for members in alike.values():
        chosen = np.array(members)
        structure = _structure(columns, policies[members[0]])
        thresholds = _thresholds([policies[i] for i in members], structure)
        for rows in _slices(n, _QUESTIONS):
            stages = [_prepare(columns, rows, each, architectures or {}, prices or {}) for each in structure]
            for block in _slices(len(members), max(1, _CELLS // min(n, _QUESTIONS))):
                played, by_stage = _sums(stages, [each[block] for each in thresholds])
                sums[chosen[block]] += played
                answered[chosen[block], : len(stages)] += by_stage
    accuracy, degraded, unanswered, *costs = sums.T / n
    return Sweep(accuracy, answered / n, degraded, unanswered, Costs(*costs[:4]), Costs(*costs[4:]))


# ---------------------------------------------------------------------- what is asked of the recording


@dataclass(frozen=True)
class _Judged:
    """A stage of a policy without its thresholds."""

    model: int
    name: str
    signals: tuple[tuple[str, Column], ...]


def _structure(columns: Columns, policy: Sequence[PolicyStage]) -> list[_Judged]:
    if not policy:
        raise ConfigurationError("A policy needs at least one stage; the list is empty.")
    structure: list[_Judged] = []
    for stage in policy:
        model, last = columns.index(stage.model), len(structure) == len(policy) - 1
        if missing := int((~columns.recorded[:, model]).sum()):
            raise ConfigurationError(
                f"Model '{stage.model}' was not asked {missing} of the {len(columns)} questions. "
                "Leave them out with Columns.complete()."
            )
        if not last and not stage.thresholds:
            raise ConfigurationError(
                f"Stage '{stage.model}' of the policy has no threshold, so it could never pass a query on."
            )
        names = () if last else tuple(stage.thresholds)
        structure.append(
            _Judged(model, stage.model, tuple((name, columns.signal(stage.model, name)) for name in names))
        )
    return structure


def _thresholds(policies: Sequence[Sequence[PolicyStage]], structure: Sequence[_Judged]) -> list[Figures]:
    """For each stage an array of shape (policies, signals): "always" is below every score, a missing one's included."""
    return [
        np.array(
            [[_number(name, policy[j].thresholds[name]) for name, _ in judged.signals] for policy in policies],
            dtype=np.float64,
        ).reshape(len(policies), len(judged.signals))
        for j, judged in enumerate(structure)
    ]


def _number(name: str, threshold: Threshold) -> float:
    if threshold == "always":
        return -np.inf
    if threshold == "never":
        return np.inf
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not np.isfinite(threshold):
        raise ConfigurationError(
            f'The threshold of signal \'{name}\' must be a finite number, "always" or "never". Got {threshold!r}.'
        )
    return float(threshold)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


# ---------------------------------------------------------------------- a stage on a slice of the questions


@dataclass(frozen=True)
class _Step:
    """The next token at which the drafts of some questions may end.

    Attributes:
        rows: These questions, ascending.
        bounds: By the index of the signal: the greatest value that it can still reach.
        tokens: Generated by then.
        cost: Of a draft that ends here, shape (rows, units).
        change: What one that does not end here costs more than that, up to the next step, shape (rows, units).
    """

    rows: NDArray[np.intp]
    bounds: list[tuple[int, Figures]]
    tokens: NDArray[np.int64]
    cost: Figures
    change: Figures

    def passed(self, thresholds: Figures) -> Masks:
        """Whether drafts go on, shape (policies, rows)."""
        return _all_pass(self.bounds, thresholds, np.ones((len(thresholds), len(self.rows)), dtype=bool))


@dataclass(frozen=True)
class _Stage:
    """A stage on a slice of the questions; costs of shape (questions, units).

    Attributes:
        pre: Scores of the signals that judge before the answer, by the signal's index; minus infinity where missing.
        post: Those that judge by it.
        gate_cost: Of an attempt that is rejected before it is generated.
        first_cost: Of one that ends at its first step; of a whole one where there is no step.
        whole_cost: Of one that is generated whole.
    """

    pre: list[tuple[int, Figures]]
    post: list[tuple[int, Figures]]
    usable: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    grades: Figures
    prefilled: bool
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    gate_cost: Figures
    first_cost: Figures
    whole_cost: Figures
    steps: list[_Step]


def _prepare(
    columns: Columns,
    rows: slice,
    judged: _Judged,
    architectures: Mapping[str, Architecture],
    prices: Mapping[str, Prices],
) -> _Stage:
    j = judged.model
    architecture, price = architectures.get(judged.name), prices.get(judged.name)
    failed = columns.failed[rows, j]
    prefilled = any(column.prefill for _, column in judged.signals)
    read = columns.input_tokens[rows, j]
    written = np.where(failed, 0, columns.output_tokens[rows, j])
    latency, prefill_s = columns.latency_s[rows, j], columns.prefill_s[rows, j]

    def cost(i: NDArray[np.int64], o: NDArray[np.int64], seconds: Figures) -> Figures:
        unknown = np.full(len(i), np.nan)
        flops = unknown if architecture is None else token_flops(architecture, (i + o).astype(np.float64))
        usd = unknown if price is None else (i * price.input_usd + o * price.output_usd) / 1e6
        return np.stack([flops, (i + o).astype(np.float64), usd, seconds], axis=1)

    zero = np.zeros_like(read)
    prompt = read if prefilled else zero
    gate_cost = cost(prompt, zero, prefill_s if prefilled else np.zeros(len(read)))
    # of a failed call only the time is known, and the tokens of a prompt that was read before it
    whole_cost = cost(np.where(failed, prompt, read), written, latency)
    judges = [(s, column) for s, (_, column) in enumerate(judged.signals) if column.phase == "post"]
    first_cost: Figures = whole_cost
    steps: list[_Step] = []
    if any(column.upper is not None for _, column in judges):
        most = np.where(failed, 0, np.maximum(0, columns.told_tokens[rows, j]))
        at, tokens, bounds = _falling(judges, rows, most, 0 if prefilled else 1)
        paid = np.minimum(tokens, written[at])
        share = np.divide(paid, written[at], out=np.zeros(len(at)), where=written[at] > 0)
        cut_cost = cost(read[at], paid, prefill_s[at] + (latency[at] - prefill_s[at]) * share)
        first_cost, steps = _steps(at, tokens, bounds, cut_cost, whole_cost)
    # the last stage, which has no signals, answers whatever it says
    usable = columns.usable[rows, j] if judged.signals else ~failed
    return _Stage(
        pre=[(s, _known(column, rows)) for s, (_, column) in enumerate(judged.signals) if column.phase == "pre"],
        post=[(s, _known(column, rows)) for s, column in judges],
        usable=usable,
        failed=failed,
        grades=np.where(usable, columns.grades[rows, j], 0.0),
        prefilled=prefilled,
        input_tokens=read,
        output_tokens=written,
        gate_cost=gate_cost,
        first_cost=first_cost,
        whole_cost=whole_cost,
        steps=steps,
    )


def _steps(
    at: NDArray[np.intp],
    tokens: NDArray[np.int64],
    bounds: Sequence[tuple[int, Figures]],
    cut_cost: Figures,
    whole_cost: Figures,
) -> tuple[Figures, list[_Step]]:
    """The cost of drafts that end at their first step, and the steps, first ones together, then second ones, ...

    Args:
        at: Questions, ascending, once for each step.
        tokens: Of each step.
        bounds: Of each step, by the index of the signal.
        cut_cost: Of a draft that ends there.
        whole_cost: Of every question's whole answer.
    """
    first_cost = whole_cost.copy()
    if not len(at):
        return first_cost, []
    begins = np.diff(at, prepend=-1) > 0
    first_cost[at[begins]] = cut_cost[begins]
    ends = np.append(begins[1:], True)
    onward = np.where(ends[:, None], whole_cost[at], np.roll(cut_cost, -1, axis=0))
    rank = np.arange(len(at)) - np.maximum.accumulate(np.where(begins, np.arange(len(at)), 0))
    parts = np.split(np.argsort(rank, kind="stable"), np.cumsum(np.bincount(rank))[:-1])
    change = onward - cut_cost
    return first_cost, [
        _Step(at[part], [(s, values[part]) for s, values in bounds], tokens[part], cut_cost[part], change[part])
        for part in parts
    ]


def _known(column: Column, rows: slice) -> Figures:
    values = column.values[rows]
    return np.where(np.isnan(values), -np.inf, values)


def _falling(
    judges: Sequence[tuple[int, Column]], rows: slice, most: NDArray[np.int64], first: int
) -> tuple[NDArray[np.intp], NDArray[np.int64], list[tuple[int, Figures]]]:
    """Where any signal's bound falls: questions (ascending), tokens (ascending within one), bounds of all signals.

    Drafts are first looked at with `first` tokens, and last with `most`.
    """
    width = np.int64(int(most.max(initial=0)) + 1)

    def keys(question: NDArray[np.intp], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return question * width + tokens

    begun = np.flatnonzero(most >= first)
    found, own = [keys(begun, np.full(len(begun), first))], []
    for s, column in judges:
        if column.upper is None:
            continue
        upper = column.upper[rows]
        question = np.repeat(np.arange(len(most)), np.diff(upper.starts))
        seen = upper.tokens <= most[question]
        own.append((s, keys(question[seen], upper.tokens[seen]), upper.bounds[seen]))
        found.append(own[-1][1][upper.tokens[seen] >= first])
    every = np.unique(np.concatenate(found))
    at, tokens = every // width, every % width
    bounds = {s: np.full(len(every), _FREE) for s, _ in judges}
    for s, known, values in own:
        last = np.searchsorted(known, every, side="right") - 1
        told = (last >= 0) & (known[last] // width == at) if len(known) else np.zeros(len(every), dtype=bool)
        bounds[s][told] = values[last[told]]
    return at, tokens, list(bounds.items())


# ---------------------------------------------------------------------- playing


def _all_pass(scores: Sequence[tuple[int, Figures]], thresholds: Figures, mask: Masks) -> Masks:
    for s, values in scores:
        mask = mask & (values >= thresholds[:, s, None])
    return mask


def _ascend(
    stages: Sequence[_Stage], thresholds: Sequence[Figures]
) -> Iterator[tuple[_Stage, Masks, Masks, list[Masks], Masks]]:
    """Each stage with who reaches it, who is let generate, whose draft passes each step, and who is kept."""
    reach = np.ones((len(thresholds[0]), len(stages[0].usable)), dtype=bool)
    for stage, limits in zip(stages, thresholds, strict=True):
        go = _all_pass(stage.pre, limits, reach)
        keep = _all_pass(stage.post, limits, go & stage.usable)
        yield stage, reach, go, [step.passed(limits) for step in stage.steps], keep
        reach = reach & ~keep


def _finished(stage: _Stage, go: Masks, passed: Sequence[Masks], rows: NDArray[np.intp]) -> Masks:
    """Whether there is a complete answer, kept or not, to some questions."""
    done: Masks = go[:, rows] & stage.usable[rows]
    for step, passes in zip(stage.steps, passed, strict=True):
        _, ours, theirs = np.intersect1d(rows, step.rows, assume_unique=True, return_indices=True)
        done[:, ours] &= passes[:, theirs]
    return done


_WIDTH = 3 + 2 * len(_UNITS)  # accuracy, degraded, unanswered, and both costs


def _sums(stages: Sequence[_Stage], thresholds: Sequence[Figures]) -> tuple[Figures, Figures]:
    """Sums over the questions: those of a `Sweep`, shape (policies, _WIDTH), and answers by stage."""
    sums = np.zeros((len(thresholds[0]), _WIDTH))
    accuracy, degraded, unanswered, cost, answering = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:7], sums[:, 7:]
    answered = np.zeros((len(sums), len(stages)))
    broken = np.flatnonzero(~stages[-1].usable)
    complete = []
    for j, (stage, reach, go, passed, keep) in enumerate(_ascend(stages, thresholds)):
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
        if len(broken):
            complete.append((stage, _finished(stage, go, passed, broken)))
            lost = (reach & ~keep)[:, broken]
    if len(broken):
        for j, (stage, done) in reversed(list(enumerate(complete[:-1]))):
            stands = lost & done
            answered[:, j] += stands.sum(axis=1)
            degraded += stands.sum(axis=1)
            accuracy += _total(stands, stage.grades[broken])
            answering += _total(stands, stage.whole_cost[broken])
            lost = lost & ~done
        unanswered += lost.sum(axis=1)
    return sums, answered


def _total(mask: Masks, values: Figures) -> Figures:
    """Sums of `values` over the questions in `mask`; a product of matrices is the quickest way to them."""
    return mask.astype(np.float64) @ values


def _details(stages: Sequence[_Stage], thresholds: Sequence[Figures]) -> dict[str, NDArray[np.generic]]:
    """What a `Replay` is made of, for the single policy of `thresholds`."""
    n, k = len(stages[0].usable), len(stages)
    stage_of, degraded, grade = np.full(n, -1), np.zeros(n, dtype=bool), np.zeros(n)
    decision, aborted = np.full((n, k), NOT_ASKED), np.zeros((n, k), dtype=bool)
    read, written = np.zeros((n, k), dtype=np.int64), np.zeros((n, k), dtype=np.int64)
    cost, answering = np.zeros((n, len(_UNITS))), np.zeros((n, len(_UNITS)))
    broken = np.flatnonzero(~stages[-1].usable)
    for j, (stage, reaches, goes, passed, keeps) in enumerate(_ascend(stages, thresholds)):
        reach, go, keep = reaches[0], goes[0], keeps[0]
        tokens, generated_cost = stage.output_tokens.copy(), stage.whole_cost.copy()
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
        read[:, j] = np.where(reach & (stage.prefilled | (generated & ~stage.failed)), stage.input_tokens, 0)
        written[:, j] = np.where(generated, np.minimum(tokens, stage.output_tokens), 0)
        cost[reach] += attempt[reach]
        stage_of[keep], grade[keep], answering[keep] = j, stage.grades[keep], stage.whole_cost[keep]
        if not last:
            done = _finished(stage, goes, passed, broken)[0]
            standing = broken[done]  # until a later stage has an answer, too
            stage_of[standing], grade[standing] = j, stage.grades[standing]
            answering[standing], degraded[standing] = stage.whole_cost[standing], True
            degraded[keep] = False
    return {
        "stage": stage_of,
        "degraded": degraded,
        "grade": grade,
        "decision": decision,
        "aborted": aborted,
        "input_tokens": read,
        "output_tokens": written,
        "cost": cost,
        "cost_answering_stage": answering,
    }
