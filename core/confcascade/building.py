"""Stages from what a user may give: models with a threshold or a policy, or stages complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.errors import ConfigurationError
from confcascade.models import from_string
from confcascade.signals import Signal, Threshold, plain
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import FittedStages, Stage

if TYPE_CHECKING:
    from confcascade.policy import Policy

__all__ = ["build_stages", "plain_thresholds", "thresholds_of"]


def plain_thresholds(thresholds: Mapping[str, Threshold]) -> dict[str, Threshold]:
    """With Python's own numbers: NumPy's go into no JSON and no checkpoint."""
    return {name: plain(value) for name, value in thresholds.items()}


def build_stages(
    *,
    models: Sequence[Any] | None = None,
    stages: Sequence[Stage] | None = None,
    threshold: Threshold | Mapping[str, Threshold] | None = None,
    signals: Sequence[Signal] | Mapping[str, Sequence[Signal]] | None = None,
    policy: Policy | str | Path | None = None,
    group: str | None = None,
    wrap: Callable[[Any], Any] = lambda model: model,
    stepwise: bool = False,
) -> tuple[Stage, ...]:
    """Stages from what a user may give: `models` with a `threshold` or a `policy`, or `stages` complete.

    Args:
        models: Smallest first; the last always answers.
        stages: The same, with signals and thresholds of their own.
        threshold: With `models`: a number for the one signal, or numbers by signal name.
        signals: With `models`: what judges every stage but the last; by default P(T), `TokenProbability`. With a
            `policy`: those that it does not say how to make, or by the model's name.
        policy: With `models`: one that was fitted on them, or its file; it chooses among them.
        group: With a `policy` that has thresholds of its own for each group of questions: which group.
        wrap: Turns a framework's model into a `LanguageModel` (strings are resolved before).
        stepwise: Whether the cascade decides step by step, as a `policy` must have been fitted to.

    Raises:
        ConfigurationError: If they contradict each other, or a stage cannot work.
    """
    if (models is None) == (stages is None):
        got = "neither" if models is None else "both"
        raise ConfigurationError(f"Give either `models` (smallest first, with `threshold`) or `stages`. Got {got}.")
    if stages is not None and (threshold is not None or signals is not None):
        raise ConfigurationError(
            "With `stages`, each stage carries its own signals and thresholds; drop `threshold` and `signals`."
        )
    if group is not None and policy is None:
        raise ConfigurationError("A `group` goes with a `policy` that was fitted for each group of questions.")
    if policy is not None:
        if models is None or threshold is not None:
            raise ConfigurationError(
                "A `policy` brings signals and thresholds, and goes with `models`; drop `stages` and `threshold`."
            )
        stages, models = _fitted(policy, group, _listed("models", models), signals, wrap, stepwise), None
        wrap = _as_it_is
    if models is not None:
        models = _listed("models", models)
        chosen = (TokenProbability(),) if signals is None else tuple(_listed("signals", signals))
        thresholds = thresholds_of(threshold, chosen) if len(models) > 1 else {}
        stages = [Stage(model, chosen, thresholds) for model in models[:-1]] + [Stage(model) for model in models[-1:]]
    fitted = stages.policy if isinstance(stages, FittedStages) else None
    resolved = []
    for stage in _listed("stages", stages):
        if not isinstance(stage, Stage):
            raise ConfigurationError(
                f"`stages` must hold Stage objects. Got {type(stage).__name__}; bare models go into `models`."
            )
        model = from_string(stage.model) if isinstance(stage.model, str) else wrap(stage.model)
        resolved.append(replace(stage, model=model))
    if not resolved:
        raise ConfigurationError("A cascade needs at least one stage; the list is empty.")
    for stage in resolved:
        stage.validate()
    resolved = [
        replace(stage, thresholds=plain_thresholds(stage.thresholds), skip={k: float(v) for k, v in stage.skip.items()})
        for stage in resolved
    ]
    for stage in resolved[:-1]:
        if not stage.signals:
            raise ConfigurationError(
                f"Stage '{stage.model.name}' has no signal, so it could never escalate a query. "
                "Every stage but the last needs one, such as TokenProbability()."
            )
    return tuple(resolved) if fitted is None else FittedStages.of(fitted, resolved)


def _as_it_is(model: Any) -> Any:
    return model


def _fitted(
    policy: Policy | str | Path,
    group: str | None,
    models: Sequence[Any],
    signals: Sequence[Signal] | Mapping[str, Sequence[Signal]] | None,
    wrap: Callable[[Any], Any],
    stepwise: bool,
) -> tuple[Stage, ...]:
    from confcascade.policy import Policy

    if not isinstance(policy, Policy | str | Path):
        raise ConfigurationError(f"`policy` must be a Policy or the path of its file. Got {type(policy).__name__}.")
    chosen = policy if isinstance(policy, Policy) else Policy.load(policy)
    if group is not None:
        chosen = chosen.for_group(group)
    resolved = [from_string(model) if isinstance(model, str) else wrap(model) for model in models]
    if signals is not None and not isinstance(signals, Mapping):
        signals = _listed("signals", signals)
    return chosen.make_stages(resolved, signals=signals or (), stepwise=stepwise)


def _listed(name: str, value: Any) -> list[Any]:
    # a single model may be iterable, too, as pydantic's are, and its repr may show a key
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ConfigurationError(f"`{name}` must be a list. Got {type(value).__name__}.")
    return list(value)


def thresholds_of(
    threshold: Threshold | Mapping[str, Threshold] | None, signals: Sequence[Signal]
) -> dict[str, Threshold]:
    """Thresholds by signal, of one value for the one signal or a mapping.

    Raises:
        ConfigurationError: If there is no signal or no threshold, or one value for several signals.
    """
    if not signals:
        raise ConfigurationError(
            "`signals` is empty, so no stage could ever escalate a query. Leave it out for TokenProbability()."
        )
    names = [signal.name if isinstance(signal, Signal) else type(signal).__name__ for signal in signals]
    if threshold is None:
        raise ConfigurationError(
            f"`threshold` is missing: a number such as 0.9 for the signal {names}, or a mapping by signal. "
            "Higher keeps fewer answers of the smaller models."
        )
    if isinstance(threshold, Mapping):
        return dict(threshold)
    if len(names) != 1:
        raise ConfigurationError(
            f"With signals {names}, `threshold` must be a mapping such as {dict.fromkeys(names, 0.9)}. "
            f"Got {threshold!r}."
        )
    return {names[0]: threshold}
