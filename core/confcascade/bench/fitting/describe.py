"""What came of a fit, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from confcascade.bench.fitting.results import Contender, Fitted, GroupFit, NotCertified
from confcascade.bench.fitting.rivals import Rival
from confcascade.bench.replay.policy import PolicyStage
from confcascade.policy import shown

__all__ = ["describe_fit", "told"]

_SHOWN = 5  # runners-up


def describe_fit(result: Fitted | NotCertified) -> str:
    """Several lines: what is promised or why nothing is, the runners-up, every signal's health, and notes."""
    lines = _nothing(result) if isinstance(result, NotCertified) else _fitted(result)
    lines += ["", "Signals:"]
    lines += [f"  {model}.{name}: {each.verdict}" for (model, name), each in result.health.items()]
    return "\n".join([*lines, *(["", *result.notes] if result.notes else [])])


def _fitted(fitted: Fitted) -> list[str]:
    n = {name: len(getattr(fitted.parts, name)) for name in ("calibrate", "choose", "certify")}
    came = (
        f"Rule '{fitted.rule}', chosen with {n['calibrate'] + n['choose']:,} questions and certified on "
        f"{n['certify']:,} others."
        if n["calibrate"] + n["choose"]
        else f"Rule '{fitted.rule}', at thresholds fixed beforehand, certified on all {n['certify']:,} questions."
    )
    lines = [fitted.policy.describe(), "", came]
    if fitted.groups:
        return [*lines, *_of_groups(fitted.groups)]
    others = [each for each in fitted.tested if each.policy != fitted.stages]
    if others:
        lines += ["", "Tested, too:", *map(_runner, _nearest(others))]
    rivals = [each for each in fitted.rivals if each.name != told(fitted.stages)]
    if rivals:
        what = f"Beside it, what asks one model only, in hindsight on the {n['certify']:,} questions of the proof:"
        lines += ["", what, *map(_rival, rivals)]
    return lines


def _rival(rival: Rival) -> str:
    if not rival.saved:
        return f"  {rival.name}: saves nothing within the target at any threshold"
    beyond = ", more than the target" if rival.within is False else ""
    return f"  {rival.name}: {rival.saved:.1%} saved, net {rival.loss:.2%} lost{beyond}"


def _of_groups(groups: Sequence[GroupFit]) -> list[str]:
    """A line for each."""
    held = [group for group in groups if group.certificate is not None]
    lines = ["", f"Groups that have a promise, {len(held)} of {len(groups)}:"] if held else []
    for group in held:
        assert group.certificate is not None
        shows = group.certificate
        lines.append(
            f"  {group.name}: {told(group.stages)}: {group.saving.share:.1%} saved, {shows.harms:,} lost and "
            f"{shows.benefits:,} gained of {shows.n:,}, at most {shows.bound:.2%}"
        )
    if rest := [group for group in groups if group.certificate is None]:
        lines += ["", f"Groups that the largest model answers alone, {len(rest)} of {len(groups)}:"]
    for group in rest:
        lines.append(f"  {group.name}: {group.why}. {_more(group)}")
    return lines


def _more(group: GroupFit) -> str:
    if group.more is None:
        return "No number of further questions is known that would do."
    if group.more == 0:
        return "So many questions suffice as a rule; this time chance was against it."
    return (
        f"About {group.more:,} more questions of this group would do for a policy that saves about "
        f"{_about(group.could)} there."
    )


def _nearest(others: Sequence[Contender]) -> list[Contender]:
    """The one that failed, if any, and those that did not and come last in the order."""
    failed = [each for each in others if not each.certified]
    return [each for each in reversed(others) if each.certified][: _SHOWN - len(failed)] + failed


def _runner(runner: Contender) -> str:
    worst = max(runner.examined, key=lambda each: each.bound)
    verdict = "holds, too" if runner.certified else "failed"
    return (
        f"  {told(runner.policy)}: about {runner.saved:.1%} saved, {worst.harms:,} lost and {worst.benefits:,} gained "
        f"of {worst.n:,}, at most {worst.bound:.2%}: {verdict}"
    )


def told(policy: Sequence[PolicyStage]) -> str:
    """A policy in one line."""
    *gated, last = policy
    parts = []
    for stage in gated:
        rules = [f"{name} >= {shown(value)}" for name, value in stage.thresholds.items()]
        skips = [f"; {last.model} at once if {name} < {value:.4g}" for name, value in stage.skip.items()]
        parts.append(f"{stage.model} ({' and '.join(rules)}{''.join(skips)})")
    return " → ".join([*parts, last.model]) if parts else f"{last.model} alone"


def _nothing(nothing: NotCertified) -> list[str]:
    lines = [
        f"Nothing can be promised with {nothing.questions:,} questions, {nothing.n:,} of them for the proof: "
        f"{nothing.why}."
    ]
    if nothing.groups:
        return [*lines, *_of_groups(nothing.groups), "Until then, ask the largest model alone."]
    if nothing.more:
        costs = [] if nothing.usd is None else [f"${nothing.usd:.2f}"]
        costs.append(f"{nothing.tokens:,.0f} tokens")
        if nothing.seconds is not None:
            costs.append(f"{nothing.seconds / 3600:.1f} h of models' time")
        lines.append(
            f"About {nothing.more:,} more would do for a policy that saves about {_about(nothing.saved)}; asking every "
            f"model these costs about {', '.join(costs)}, as the recorded questions did."
        )
    elif nothing.more == 0:
        lines.append(
            "So many questions suffice as a rule: this time chance was against it. (To try other "
            "seeds until one passes is to choose by the proof.)"
        )
    else:
        lines.append("No number of questions is known that would do: allow a greater drop, or look for better signals.")
    lines.append("Until then, ask the largest model alone.")
    if nothing.tested:
        lines += ["", "Tested:", *map(_runner, nothing.tested)]
    return lines


def _about(share: float | None) -> str:
    """In whole percent, or in tenths where it is next to nothing."""
    assert share is not None  # it is known where the number of questions is
    return f"{share:.0%}" if share >= 0.015 else f"{share:.1%}"
