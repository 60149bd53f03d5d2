"""What a cascade will do with a stage, said before it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confcascade.attempts import OnError
from confcascade.diagnosis.findings import Finding
from confcascade.stage import Stage

__all__ = ["Rules", "forecast"]


@dataclass(frozen=True)
class Rules:
    """Of the cascade.

    Attributes:
        on_error: What follows an error of a model.
        in_steps: Whether its models write in turn.
    """

    on_error: OnError = "escalate"
    in_steps: bool = False


def forecast(stages: Sequence[Stage], index: int, rules: Rules, findings: Sequence[Finding]) -> str:
    """In a sentence whose subject is the stage.

    Args:
        stages: Of the cascade.
        index: Of the stage.
        rules: Of the cascade.
        findings: Of the stage.
    """
    stage, last = stages[index], index == len(stages) - 1
    fails, warned = ({finding.kind for finding in findings if finding.level == level} for level in ("fails", "warning"))
    fatal = last or rules.on_error == "raise"
    other = "" if last else stages[index + 1].model.name
    if fails & {"error", "no_stream"}:
        return "queries that come to it fail" if fatal else f"its queries escalate to '{other}'"
    if last:
        does = "writes the steps that are not kept" if rules.in_steps else "answers whatever comes to it"
        return does + _streamed(stage, warned, fatal=True) if "no_stream" in warned else does
    if fails:
        return f"every query escalates to '{other}'"
    known = [(signal, stage.thresholds[signal.name]) for signal in stage.signals if signal.name in stage.thresholds]
    if not known:
        return "has no threshold yet: collect its answers and fit one, or set it"
    if rules.in_steps:
        told = " and ".join(f"{signal.name} {_reaches(least)}" for signal, least in known)
        return f"writes each step with {told}; '{other}' writes the others"
    if any(least == "never" for _, least in known):
        return f"every query escalates to '{other}'"
    must = [(signal, least) for signal, least in known if least != "always"]
    before, after = (
        " and ".join(f"{signal.name} {_reaches(least)}" for signal, least in must if signal.phase == phase)
        for phase in ("pre", "post")
    )
    kept = f"keeps an answer with {after}" if after else "keeps every usable answer"
    gate = f"answers only with {before}, " if before else ""
    return f"{gate}{kept}, else escalates to '{other}'{_streamed(stage, warned, fatal=fatal)}"


def _streamed(stage: Stage, warned: set[str], *, fatal: bool) -> str:
    """What a stream does otherwise."""
    if "no_stream" in warned:
        return "; streams that come to it fail" if fatal else "; in a stream its queries escalate"
    if "stream_unscored" in warned:
        return "; in a stream every query escalates"
    whole = any(signal.phase == "post" and not signal.early for signal in stage.signals)
    return "; a stream shows it once it is whole" if whole else ""


def _reaches(threshold: Any) -> str:
    if isinstance(threshold, str):
        return f"({threshold})"
    if isinstance(threshold, int | float):
        return f">= {threshold:g}"
    return ">= " + ", ".join(f"{value} for {label}" for label, value in threshold.items())
