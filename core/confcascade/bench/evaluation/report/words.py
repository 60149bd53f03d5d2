"""The verdict, in words that need no statistics."""

from __future__ import annotations

from confcascade.bench.evaluation.evaluate import Evaluation
from confcascade.bench.evaluation.policy_figures import PolicyFigures
from confcascade.bench.evaluation.report.tables import percent, signed
from confcascade.bench.replay.costs import UNIT_NAMES

__all__ = ["headline", "verdict"]


def headline(evaluation: Evaluation) -> str:
    """One sentence."""
    policy, saved = evaluation.policy, evaluation.policy.saved[evaluation.unit]
    if len(evaluation.models) == 1:
        return f"{evaluation.models[0]} alone: there is no cascade to judge."
    if saved is None:
        return "What it would save is not known."
    if saved <= 0 or _as_much(saved):
        much = "as many {} as" if _as_much(saved) else "more {} than"
        than = much.format(UNIT_NAMES[evaluation.unit]) + " the largest model alone"
        tokens = evaluation.unit == "tokens"
        return f"It takes {than}; what they cost is not known." if tokens else f"It saves nothing: it costs {than}."
    interval = policy.saved_interval
    if interval is not None and interval.low <= 0:
        return "What it saves may be chance."
    if policy.blind is not None and policy.accuracy.value <= policy.blind:
        return "One model, or a draw by lot between two, does as well for the same cost."
    if policy.drop_points.high < 0:
        return "It is cheaper, and it gets fewer questions right."
    if policy.drop_points.low > 0:
        return "It is cheaper, and it gets more questions right."
    lost = max(0.0, -policy.drop_points.low)
    return "It is cheaper, and no loss of right answers is shown" + (
        f", though {lost:.1f} points may be lost." if lost else "."
    )


def _as_much(saved: float) -> bool:
    return abs(saved) < 0.0005  # told as 0.0 %


def verdict(evaluation: Evaluation) -> list[str]:
    """What follows from the figures, sentence by sentence."""
    policy, largest, unit = evaluation.policy, evaluation.largest, UNIT_NAMES[evaluation.unit]
    if len(evaluation.models) == 1:
        return [f"It gets {percent(policy.accuracy.value)} of {evaluation.questions:,} questions right."]
    lines = [
        f"On {evaluation.questions:,} questions {policy.name} gets {percent(policy.accuracy.value)} right, and "
        f"{evaluation.models[-1]} alone {percent(largest.accuracy.value)}: {_difference(policy)}"
    ]
    saved, hidden = policy.saved[evaluation.unit], policy.saved_answering_stage[evaluation.unit]
    if saved is not None and hidden is not None:
        lines.append(_saving(evaluation, saved, hidden, unit))
    first = evaluation.models[0]
    kept, needed = policy.retention[first], evaluation.break_even[first]
    if kept is not None and needed is not None:
        lines.append(
            f"{first} answers {percent(kept)} of the questions; before {evaluation.models[-1]} alone it saves "
            f"something from {percent(needed)}."
        )
    if policy.blind is not None and policy.oracle is not None:
        lines.append(_between(policy, policy.blind, policy.oracle))
    lines += [
        f"{signal.signal} of {signal.model} {signal.hint}."
        for signal in evaluation.signals
        if signal.signal in policy.thresholds.get(signal.model, {}) and "cannot" in signal.hint
    ]
    return lines


def _difference(policy: PolicyFigures) -> str:
    points = policy.drop_points
    if points.value == 0 and points.low == points.high:
        return "the same ones."
    word = "fewer" if points.value < 0 else "more"
    chance = (
        "chance alone hardly makes such a difference"
        if policy.mcnemar_p < 0.05
        else "chance alone may make such a difference, which does not show that the two are equally good"
    )
    return (
        f"{abs(points.value):.2f} points {word} (95 % interval {signed(points.low)} to {signed(points.high)}). "
        f"Questions lost: {policy.harms:,}, won: {policy.benefits:,}; {chance} "
        f"(McNemar's exact test, p = {policy.mcnemar_p:.2g})."
    )


def _saving(evaluation: Evaluation, saved: float, hidden: float, unit: str) -> str:
    interval, known = evaluation.policy.saved_interval, ""
    if interval is not None and interval.low < interval.high:
        known = f" (95 % interval {percent(interval.low)} to {percent(interval.high)})"
    does = f"It saves {percent(saved)} of the largest model's {unit}{known}"
    if _as_much(saved):
        does = f"It costs as many {unit} as the largest model alone"
    elif saved < 0:
        does = f"It costs {percent(-saved)} more {unit} than the largest model alone"
    theirs = f"{percent(hidden)} saved" if hidden >= 0 else f"{percent(-hidden)} more"
    return (
        f"{does}, every model that ran charged; the papers' accounting, "
        f"which charges only the model that answered, would say {theirs}."
    )


def _between(policy: PolicyFigures, blind: float, oracle: float) -> str:
    text = f"For its cost, drawing the model by lot would get {percent(blind)} right and an oracle {percent(oracle)}"
    if policy.gap_closed is None:
        return text + "."
    if policy.gap_closed < 0:
        return text + ": it does worse than chance."
    return text + f": it closes {100 * policy.gap_closed:.0f} % of the gap between them."
