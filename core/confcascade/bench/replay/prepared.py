"""Stages of a policy over a recording, made ready to be played: scores, bounds and costs of a slice of questions.

What does not hang on thresholds is worked out here, once for all policies of the same models and signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.columns import Column, Columns, Labels
from confcascade.bench.replay.costs import Figures
from confcascade.bench.replay.policy import PolicyStage
from confcascade.cost import Architecture, Prices, stopped_flops, token_flops
from confcascade.errors import ConfigurationError
from confcascade.signals import OneThreshold, Threshold, ends_of, threshold_of

__all__ = [
    "Compared",
    "Masks",
    "PreparedStage",
    "StageColumns",
    "Step",
    "all_pass",
    "any_below",
    "compared_in",
    "corrects",
    "counts_shown",
    "prepare",
    "skips_of",
    "structure_of",
    "summable",
    "threshold_arrays",
]

Masks: TypeAlias = NDArray[np.bool_]  # of shape (policies, questions)

_UNDECIDED = np.finfo(np.float64).max  # the bound of a signal that cannot tell yet: below "never" (infinity) alone


# ---------------------------------------------------------------------- what is asked of the recording


class Compared(NamedTuple):
    """What a threshold is of: a signal, or a signal where the answer gives a label.

    Attributes:
        signal: Its name.
        label: Where only answers with this label are compared.
        among: Where thresholds are by label, and this is compared with the least: those that have one.
        corrects: Where answers are corrected: what the labels must reach.
    """

    signal: str
    label: str | None = None
    among: tuple[str, ...] = ()
    corrects: tuple[tuple[str, OneThreshold], ...] = ()


@dataclass(frozen=True)
class StageColumns:
    """A stage of a policy without its thresholds.

    Attributes:
        model: Its index.
        name: Its name.
        signals: What is compared with a threshold each: a signal as a whole, or with a label what it is of answers that
            give that one, and infinite of all others. All must pass, so a threshold for each label becomes as many
            thresholds, beside the least of them, which holds whatever the label will be.
        grades: Of the answers as they are kept, where a signal corrects them; None where they are as recorded.
    """

    model: int
    name: str
    signals: tuple[tuple[Compared, Column], ...]
    grades: Figures | None = None


def structure_of(columns: Columns, policy: Sequence[PolicyStage]) -> list[StageColumns]:
    """Which columns a policy reads.

    Raises:
        ConfigurationError: If the policy cannot be replayed on this recording.
    """
    if not policy:
        raise ConfigurationError("A policy needs at least one stage; the list is empty.")
    structure: list[StageColumns] = []
    for stage in policy:
        model, last = columns.index(stage.model), len(structure) == len(policy) - 1
        if missing := int((~columns.recorded[:, model]).sum()):
            raise ConfigurationError(
                f"Model '{stage.model}' was not asked {missing} of the {len(columns)} questions. "
                "Leave them out with Columns.complete()."
            )
        if not last and not stage.thresholds:
            raise ConfigurationError(
                f"Stage '{stage.model}' of the policy has no threshold, so it could never escalate a query."
            )
        if last:
            structure.append(StageColumns(model, stage.model, ()))
            continue
        judged, grades = [], None
        for each in compared_in(columns, stage):
            if each.corrects:
                column, grades = _corrected(columns, stage.model, each)
            else:
                column = _column(columns, stage.model, each)
            judged.append((each, column))
        structure.append(StageColumns(model, stage.model, tuple(judged), grades))
    return structure


def compared_in(columns: Columns, stage: PolicyStage) -> tuple[Compared, ...]:
    """What a stage compares with thresholds, each once; stages that compare the same are played together."""
    found: list[Compared] = []
    for name, threshold in stage.thresholds.items():
        if not isinstance(threshold, Mapping):
            found.append(Compared(name))
        elif corrects(columns, stage.model, name):
            found.append(Compared(name, among=tuple(threshold), corrects=tuple(sorted(threshold.items()))))
        else:
            found += [Compared(name, among=tuple(threshold)), *(Compared(name, label) for label in threshold)]
    return tuple(found)


def corrects(columns: Columns, model: str, signal: str) -> bool:
    """Whether a recorded signal corrects answers, where it has a threshold for each label."""
    labels = columns.signal(model, signal).labels
    return labels is not None and labels.probabilities is not None


def _corrected(columns: Columns, model: str, compared: Compared) -> tuple[Column, Figures]:
    """A signal that corrects, infinite where the answer is kept, and the grades of the answers that are.

    Kept is an answer whose label reaches its threshold, else the most probable label that does, as live.
    """
    column = columns.signal(model, compared.signal)
    labels = column.labels
    assert labels is not None
    assert labels.probabilities is not None
    assert labels.grades is not None
    own_grades = columns.grades[:, columns.index(model)]
    cuts = {label: _number(compared, each) for label, each in compared.corrects}
    least = np.array([cuts.get(label, np.inf) for label in labels.names])
    own = np.append(least, np.inf)[labels.index]  # -1 is the last
    keeps = np.nan_to_num(column.values, nan=-np.inf) >= own
    reached = np.where(labels.probabilities >= least, labels.probabilities, -np.inf)
    best = reached.argmax(axis=1)  # of two as probable the first by name
    changed = ~keeps & (reached.max(axis=1) > -np.inf)
    grades = np.where(changed, labels.grades[np.arange(len(best)), best], own_grades)
    values = np.where(keeps | changed, np.inf, np.nan)
    return replace(column, values=values, labels=None, lower=None), grades


def _column(columns: Columns, model: str, compared: Compared) -> Column:
    column = columns.signal(model, compared.signal)
    if compared.label is None and not compared.among:
        return column
    scored = ~np.isnan(column.values)
    labels = column.labels or Labels((), np.full(len(columns), -1, dtype=np.int16))
    if unknown := int((scored & (labels.index < 0)).sum()):
        raise ConfigurationError(
            f"Signal '{compared.signal}' of model '{model}' has a threshold for each label, and the recording does not "
            f"tell which label {unknown} of {len(columns)} answers give. Record TokenProbability(labels=...)."
        )
    if compared.label is None:
        kept = np.any([labels.are(label) for label in compared.among], axis=0)
        return replace(column, values=np.where(kept, column.values, np.nan))
    others = scored & ~labels.are(compared.label)
    values = np.where(others, np.inf, column.values)
    return Column(values, column.phase, column.prefill, None, depth=column.depth, lower=column.lower)


def threshold_arrays(policies: Sequence[Sequence[PolicyStage]], structure: Sequence[StageColumns]) -> list[Figures]:
    """For each stage an array of shape (policies, signals): "always" is below every score, a missing one's included."""
    return [
        np.array(
            [[_number(each, policy[j].thresholds[each.signal]) for each, _ in judged.signals] for policy in policies],
            dtype=np.float64,
        ).reshape(len(policies), len(judged.signals))
        for j, judged in enumerate(structure)
    ]


def skips_of(policies: Sequence[Sequence[PolicyStage]], structure: Sequence[StageColumns]) -> list[Figures]:
    """As `threshold_arrays`, the scores below which a query goes straight to the last stage.

    No score is below minus infinity, which stands where there is none.

    Raises:
        ConfigurationError: If one is of no signal of the stage that judges before the answer.
    """
    for policy in policies:
        for stage, judged in zip(policy, structure, strict=True):
            gates = [each.signal for each, column in judged.signals if column.phase == "pre"]
            if unknown := [name for name in stage.skip if judged.signals and name not in gates]:
                raise ConfigurationError(
                    f"`skip` of stage '{stage.model}' names '{unknown[0]}', which is not one of its signals that judge "
                    f"before the answer. Those are {gates}."
                )
    return [
        np.array(
            [[policy[j].skip.get(each.signal, -np.inf) for each, _ in judged.signals] for policy in policies],
            dtype=np.float64,
        ).reshape(len(policies), len(judged.signals))
        for j, judged in enumerate(structure)
    ]


def counts_shown(columns: Columns, stage: PolicyStage) -> bool:
    """Whether a replay knows which drafts of a stage are shown before their end, and so stand if they are cut off.

    It does of signals that judge before the answer; of the others it must have been recorded (`Column.lower`), and so
    must the tokens.
    """
    judges = [columns.signal(stage.model, name) for name in stage.thresholds]
    after = [column for column in judges if column.phase == "post"]
    j = columns.index(stage.model)
    told = bool((columns.told_tokens[:, j] >= 0)[columns.said[:, j]].all())
    return not after or (told and all(column.lower is not None for column in after))


def _number(compared: Compared, told: Threshold) -> float:
    name = compared.signal
    threshold: OneThreshold = ends_of(told)[0] if compared.label is None else threshold_of(told, compared.label)
    if threshold == "always":
        return -np.inf
    if threshold == "never":
        return np.inf
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not np.isfinite(threshold):
        raise ConfigurationError(
            f'The threshold of signal \'{name}\' must be a finite number, "always" or "never". Got {threshold!r}.'
        )
    return float(threshold)


# ---------------------------------------------------------------------- a stage on a slice of the questions


def all_pass(scores: Sequence[tuple[int, Figures]], thresholds: Figures, mask: Masks) -> Masks:
    """Who of `mask` passes all signals: scores by the signal's index, thresholds of shape (policies, signals)."""
    for s, values in scores:
        mask = mask & (values >= thresholds[:, s, None])
    return mask


def any_below(scores: Sequence[tuple[int, Figures]], least: Figures, mask: Masks) -> Masks:
    """Who of `mask` has a score, missing ones apart, below the `least` of its signal, shape (policies, signals)."""
    below = np.zeros_like(mask)
    for s, values in scores:
        below |= (values < least[:, s, None]) & (values > -np.inf)
    return mask & below


@dataclass(frozen=True)
class Step:
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
        return all_pass(self.bounds, thresholds, np.ones((len(thresholds), len(self.rows)), dtype=bool))


@dataclass(frozen=True)
class PreparedStage:
    """A stage on a slice of the questions; costs of shape (questions, units).

    Attributes:
        pre: Scores of the signals that judge before the answer, by the signal's index; minus infinity where missing.
        post: Those that judge by it.
        shown: There is an answer which a stream may have shown before its end.
        floors: What the scores of `post` could no longer fall below before it ended; None if no draft is shown before.
        gate_input_tokens: Of an attempt that is rejected before it is generated: those of the prompt, if it was read.
        gate_output_tokens: What a call of its own that read it had to write (`Row.gate_output_tokens`).
        input_tokens: Of an attempt that is generated, the same and its own.
        output_tokens: Likewise.
        gate_cost: Of an attempt that is rejected before it is generated: of a pass that ended behind the block where
            that was known, where all its scores were.
        first_cost: Of one that ends at its first step; of a whole one where there is no step.
        whole_cost: Of one that is generated whole.
    """

    pre: list[tuple[int, Figures]]
    post: list[tuple[int, Figures]]
    shown: NDArray[np.bool_]
    floors: list[tuple[int, Figures]] | None
    usable: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    grades: Figures
    gate_input_tokens: NDArray[np.int64]
    gate_output_tokens: NDArray[np.int64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    gate_cost: Figures
    first_cost: Figures
    whole_cost: Figures
    steps: list[Step]


def prepare(
    columns: Columns,
    rows: slice,
    judged: StageColumns,
    architectures: Mapping[str, Architecture],
    prices: Mapping[str, Prices],
) -> PreparedStage:
    """A stage on the questions `rows`."""
    j = judged.model
    architecture, price = architectures.get(judged.name), prices.get(judged.name)
    failed = columns.failed[rows, j]
    prefilled = any(column.prefill for _, column in judged.signals)
    zero = np.zeros_like(columns.input_tokens[rows, j])
    latency, prefill_s = columns.latency_s[rows, j], columns.prefill_s[rows, j]
    # a call of its own that read the prompt before the answer: paid for where a signal wants it
    first_read, first_written = columns.gate_input_tokens[rows, j], columns.gate_output_tokens[rows, j]
    apart = first_read > 0
    read = columns.input_tokens[rows, j] - (0 if prefilled else first_read)
    written = np.where(failed, 0, columns.output_tokens[rows, j] - first_written)
    prompt = np.where(apart, first_read, read) if prefilled else zero
    asked = first_written if prefilled else zero
    before = np.where(apart, prompt + asked, 0)
    if not prefilled:  # how long the answer's own reading of the prompt took is not recorded
        latency, prefill_s = np.where(apart, latency - prefill_s, latency), np.where(apart, 0.0, prefill_s)

    flops_told, usd_told = (np.where(failed, np.nan, told[rows, j]) for told in (columns.flops, columns.usd))
    made_by_several = ~(np.isnan(flops_told) & np.isnan(usd_told))

    def cost(i: NDArray[np.int64], o: NDArray[np.int64], seconds: Figures, at: Any = None) -> Figures:
        """`at`: Of whose answers, whole or in part; what these tell of their cost holds. None: nothing is answered."""
        unknown = np.where(i + o == 0, 0.0, np.nan) if made_by_several.any() else np.full(len(i), np.nan)
        if architecture is None:
            flops = unknown
        else:
            own = before if at is None else before[at]
            flops = token_flops(architecture, own.astype(np.float64))
            flops = flops + token_flops(architecture, (i + o - own).astype(np.float64))
        usd = unknown if price is None else (i * price.input_usd + o * price.output_usd) / 1e6
        if at is not None:  # one that is ended early is charged whole: whose part was saved is not recorded
            flops = np.where(np.isnan(flops_told[at]), flops, flops_told[at])
            usd = np.where(np.isnan(usd_told[at]), usd, usd_told[at])
        return np.stack([flops, usd, (i + o).astype(np.float64), seconds], axis=1)  # as in `UNITS`

    gate_cost = cost(prompt, asked, prefill_s if prefilled else np.zeros(len(read)))
    if (depth := _depth(judged)) is not None:
        ends = ~np.any([np.isnan(c.values[rows]) for _, c in judged.signals if c.phase == "pre"], axis=0)
        if architecture is not None:
            stopped = stopped_flops(architecture, prompt.astype(np.float64), depth)
            gate_cost[ends, 0] = np.where(np.isnan(gate_cost[ends, 0]), np.nan, stopped[ends])
        gate_cost[ends, 3] *= depth
    # of a failed call only the time is known, and the tokens of a prompt that was read before it
    whole_cost = cost(np.where(failed, prompt, read), asked + written, latency, slice(None))
    judges = [(s, column) for s, (_, column) in enumerate(judged.signals) if column.phase == "post"]
    whole = [(s, column) for s, column in judges if judged.signals[s][0].label is None]  # no label is known early
    first_cost: Figures = whole_cost
    steps: list[Step] = []
    if any(_watched(column) for _, column in whole):
        most = np.where(failed, 0, np.maximum(0, columns.told_tokens[rows, j]))
        at, tokens, bounds = _falling(whole, rows, most, zero if prefilled else columns.before_answer[rows, j] + 1)
        # of an answer by several models, those of the others come first, and are all paid
        paid = np.minimum(np.where(made_by_several[at], written[at] - most[at] + tokens, tokens), written[at])
        share = np.divide(paid, written[at], out=np.zeros(len(at)), where=written[at] > 0)
        begun = np.where(tokens > 0, read[at], prompt[at])  # the prompt may do to tell that it would be ended
        cut_cost = cost(begun, asked[at] + paid, prefill_s[at] + (latency[at] - prefill_s[at]) * share, at)
        first_cost, steps = _steps(at, tokens, bounds, cut_cost, whole_cost)
    # the last stage, which has no signals, answers whatever it says
    usable = columns.usable[rows, j] if judged.signals else ~failed
    return PreparedStage(
        pre=[(s, _known(column.values, rows)) for s, (_, column) in enumerate(judged.signals) if column.phase == "pre"],
        post=[(s, _known(column.values, rows)) for s, column in judges],
        # behind signals that judge before the answer only, it is shown from its first token; else once it is known
        shown=columns.said[rows, j] & (columns.told_tokens[rows, j] > 0) if judges else columns.said[rows, j],
        floors=_floors(judges, rows) if judged.signals else None,
        usable=usable,
        failed=failed,
        grades=np.where(usable, columns.grades[rows, j] if judged.grades is None else judged.grades[rows], 0.0),
        gate_input_tokens=prompt,
        gate_output_tokens=asked,
        input_tokens=read,
        output_tokens=asked + written,
        gate_cost=gate_cost,
        first_cost=first_cost,
        whole_cost=whole_cost,
        steps=steps,
    )


def _depth(judged: StageColumns) -> float | None:
    """Behind which share of the blocks a pass over the prompt ends if it is rejected; None if it goes on to the end."""
    depths = [column.depth for _, column in judged.signals if column.phase == "pre"]
    told = [depth for depth in depths if depth is not None]
    deepest = max(told, default=0.0)
    return deepest if deepest > 0 and len(told) == len(depths) else None


def summable(stage: PreparedStage) -> PreparedStage:
    """The same, its costs and grades rounded to about twelve digits of the largest of them.

    Sums of up to 2^14 questions are then exact: the same to the last digit in whatever order they are added, by one
    thread or many, here or on another machine.
    """
    arrays = [stage.gate_cost, stage.first_cost, stage.whole_cost, *(step.cost for step in stage.steps)]
    largest = np.fmax.reduce([np.fmax.reduce(np.abs(each), axis=0, initial=0.0) for each in arrays])
    unit = _unit(largest)
    steps = [replace(step, cost=_rounded(step.cost, unit), change=_rounded(step.change, unit)) for step in stage.steps]
    return replace(
        stage,
        grades=_rounded(stage.grades, _unit(1.0)),
        gate_cost=_rounded(stage.gate_cost, unit),
        first_cost=_rounded(stage.first_cost, unit),
        whole_cost=_rounded(stage.whole_cost, unit),
        steps=steps,
    )


def _unit(largest: Figures | float) -> Figures:
    """A power of two, of which 2^14 numbers up to twice `largest` make a sum that 53 bits hold."""
    unit: Figures = np.ldexp(1.0, np.frexp(largest)[1] - 38)
    return unit


def _rounded(values: Figures, unit: Figures) -> Figures:
    rounded: Figures = np.rint(values / unit) * unit
    return rounded


def _steps(
    at: NDArray[np.intp],
    tokens: NDArray[np.int64],
    bounds: Sequence[tuple[int, Figures]],
    cut_cost: Figures,
    whole_cost: Figures,
) -> tuple[Figures, list[Step]]:
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
        Step(at[part], [(s, values[part]) for s, values in bounds], tokens[part], cut_cost[part], change[part])
        for part in parts
    ]


def _known(scores: Figures, rows: slice) -> Figures:
    values = scores[rows]
    return np.where(np.isnan(values), -np.inf, values)


def _watched(column: Column) -> bool:
    """Whether a draft is looked at while it is written."""
    return column.upper is not None or column.lower is not None


def _floors(judges: Sequence[tuple[int, Column]], rows: slice) -> list[tuple[int, Figures]] | None:
    """What the scores could no longer fall below, minus infinity where nothing is known; None if nothing ever is."""
    if judges and not any(_watched(column) for _, column in judges):
        return None
    unknown = np.full(len(judges[0][1].values) if judges else 0, np.nan)
    return [(s, _known(unknown if column.lower is None else column.lower, rows)) for s, column in judges]


def _falling(
    judges: Sequence[tuple[int, Column]], rows: slice, most: NDArray[np.int64], first: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64], list[tuple[int, Figures]]]:
    """Where any signal's bound falls: questions (ascending), tokens (ascending within one), bounds of all signals.

    Drafts are first looked at with `first` tokens, the first of their answer among them, and last with `most`.
    """
    width = np.int64(int(most.max(initial=0)) + 1)

    def keys(question: NDArray[np.intp], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return question * width + tokens

    begun = np.flatnonzero(most >= first)
    found, own = [keys(begun, first[begun])], []
    for s, column in judges:
        if column.upper is None:
            continue
        upper = column.upper[rows]
        question = np.repeat(np.arange(len(most)), np.diff(upper.starts))
        seen = upper.tokens <= most[question]
        own.append((s, keys(question[seen], upper.tokens[seen]), upper.bounds[seen]))
        found.append(own[-1][1][upper.tokens[seen] >= first[question[seen]]])
    every = np.unique(np.concatenate(found))
    at, tokens = every // width, every % width
    bounds = {s: np.full(len(every), _UNDECIDED) for s, _ in judges}
    for s, known, values in own:
        last = np.searchsorted(known, every, side="right") - 1
        told = (last >= 0) & (known[last] // width == at) if len(known) else np.zeros(len(every), dtype=bool)
        bounds[s][told] = values[last[told]]
    return at, tokens, list(bounds.items())
