"""What a fitted policy does, promises and saves, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from confcascade.decoding import Decoding
from confcascade.signals import Threshold
from confcascade.signals.ties_by_lot import LOT

if TYPE_CHECKING:
    from confcascade.policy import Policy

__all__ = ["described", "shown"]


def described(policy: Policy) -> str:
    """What it does, what it promises under which assumptions, and what it saves, in several lines."""
    certificates, lines = policy.certificates, [*_decisions(policy), _expected(policy)]
    if policy.groups:
        return "\n".join([*lines, *_promised_of_groups(policy)])
    if len(certificates) in (1, len(policy.accuracy_certificates)):
        return "\n".join([*lines, *(each.describe() for each in certificates)])
    lines.append(f"{len(certificates)} promises, which hold together with {certificates[0].confidence:.4g} confidence:")
    lines += [each.evidence for each in certificates]
    assumptions = dict.fromkeys(sentence for each in certificates for sentence in each.assumptions)
    return "\n".join([*lines, "They hold as long as:", *(f"- {sentence}" for sentence in assumptions)])


def _promised_of_groups(policy: Policy) -> list[str]:
    """What is promised of how many groups, and once what that assumes."""
    promised = sum(bool(policy.promised(name)) for name in policy.groups)
    lines = [f"Promised of {promised} of {len(policy.groups)} groups, all at once; on the others it loses nothing."]
    if policy.certificates:
        first = policy.certificates[0]
        lines += [f"The first of these promises: {first.evidence}", "They hold as long as:"]
        lines += [f"- {sentence}" for sentence in first.assumptions]
    return lines


def _decisions(policy: Policy) -> list[str]:
    *gated, last = policy.stages
    if policy.groups:
        return [f"Policy: a cascade for each of {len(policy.groups)} groups, or {last.model} alone."]
    how = {stage.model: Decoding(**stage.decoding).describe() for stage in policy.stages if stage.decoding}
    if not gated:
        return [f"Policy: ask {last.model} alone."]
    if policy.stepwise is not None:
        rule = " and ".join(f"{name} >= {shown(value)}" for name, value in gated[0].thresholds.items())
        final = ", and the last" if policy.stepwise.final == "large" else ""
        return [
            f"Policy: {policy.name}, step by step",
            f"  {gated[0].model} writes the steps with {rule}",
            f"  {last.model} writes the others{final}",
        ]
    lines = [f"Policy: {policy.name}"]
    for stage in gated:
        rules = [f"{name} >= {shown(value)}" for name, value in stage.thresholds.items()]
        lines.append(f"  keep the answer of {stage.model} if {' and '.join(rules)}")
        for name, value in stage.skip.items():
            lines.append(f"  ask {last.model} at once if its {name} < {shown(value)}")
    lines.append(f"  else ask {last.model}")
    if len(set(how.values())) == 1 and len(how) == len(policy.stages):
        lines.append(f"  answers: {next(iter(how.values()))}")
    else:
        lines += [f"  answers of {model}: {each}" for model, each in how.items()]
    if skipped := [name for name in policy.models if name not in {stage.model for stage in policy.stages}]:
        lines.append(f"  (not asked at all: {', '.join(skipped)})")
    return lines


def _expected(policy: Policy) -> str:
    s = policy.saving
    spared = "" if s.spared is None else f", and it is spared {s.spared:.1%} of the questions"
    return (
        f"Expected: {s.share:.1%} of the cost of {policy.models[-1]} alone is saved (95 % interval {s.low:.1%} to "
        f"{s.high:.1%}; in {s.unit}, every model that ran){spared}."
    )


def shown(value: Threshold) -> str:
    """A threshold with four digits, more where it keeps a part of equal scores (`TiesByLot`), or one for each label."""
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(each)} ({label})" for label, each in value.items())
    if isinstance(value, str):
        return value
    return f"{value:.11g}" if 0 < abs(value - round(value, 2)) <= LOT else f"{value:.4g}"
