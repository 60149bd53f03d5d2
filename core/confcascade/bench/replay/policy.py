"""What is replayed on a recording: models of it in order, with thresholds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from confcascade.bench.recording.columns import Columns
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.signals import Threshold, ends_of

__all__ = ["PolicyStage", "models_in_order", "stages_from_thresholds"]


def models_in_order(
    columns: Columns, architectures: Mapping[str, Architecture], prices: Mapping[str, Prices]
) -> tuple[tuple[str, ...], str]:
    """All models of a recording, smallest first, and by what that is known."""
    for name, told in (("operations for a token", architectures), ("price of a token", prices)):
        if all(model in told for model in columns.models):
            size = {
                model: architectures[model].parameters
                if told is architectures
                else prices[model].input_usd + prices[model].output_usd
                for model in columns.models
            }
            return tuple(sorted(columns.models, key=lambda model: size[model])), name
    return columns.models, "first row"


def stages_from_thresholds(
    columns: Columns, models: Sequence[str], thresholds: Mapping[str, Threshold]
) -> tuple[PolicyStage, ...]:
    """A policy whose thresholds are told as ``{"p_t": 0.9}``, for every model that has the signal, or
    ``{"small.p_t": 0.9}`` for one model, which goes before.

    Raises:
        ConfigurationError: If a threshold is of no recorded signal, or a model but the last has none.
    """
    found: dict[str, dict[str, Threshold]] = {model: {} for model in models[:-1]}
    owned = {model: {name for owner, name in columns.signals if owner == model} for model in models}
    if thresholds and len(models) == 1:
        raise ConfigurationError(
            f"'{models[0]}' is the only model, and the last one always answers: a threshold has no one to pass a "
            "question on to. A cascade takes two models or more, smallest first."
        )
    for key, value in sorted(thresholds.items(), key=lambda each: any(each[0].startswith(f"{m}.") for m in models)):
        owners = [model for model in found if key in owned[model]]
        own = [(m, key[len(m) + 1 :]) for m in found if key.startswith(f"{m}.") and key[len(m) + 1 :] in owned[m]]
        if not owners and not own:
            known = {model: sorted(owned[model]) for model in found}
            raise ConfigurationError(
                f"Threshold '{key}' is of no recorded signal of a model before the last. Recorded are "
                + "; ".join(f"{model}: {', '.join(names) or 'none'}" for model, names in known.items())
                + "."
            )
        for model in owners:
            found[model][key] = value
        for model, name in own:
            found[model][name] = value
    if bare := [model for model, chosen in found.items() if not chosen]:
        raise ConfigurationError(
            f"Model '{bare[0]}' has no threshold, so it is not known when its answer is kept. Its recorded signals: "
            f"{', '.join(sorted(owned[bare[0]])) or 'none'}. Give one, or leave the model out."
        )
    for model, chosen in found.items():
        for name, value in chosen.items():
            scores = columns.signal(model, name).values
            told = scores[~np.isnan(scores)]
            each = ends_of(value)[1]
            beyond = not isinstance(each, str) and not 0 <= each <= 1
            if beyond and len(told) and bool(((told >= 0) & (told <= 1)).all()):
                warnings.warn(
                    f"Threshold '{name}' of '{model}' is {each}, and its recorded scores all lie in [0, 1]: "
                    f"{'none of them reaches it' if float(each) > 1 else 'each of them reaches it'}. 90 % is 0.9.",
                    stacklevel=2,
                )
    return (*(PolicyStage(model, chosen) for model, chosen in found.items()), PolicyStage(models[-1]))


@dataclass(frozen=True)
class PolicyStage:
    """A stage of a policy: a model of the recording, and a threshold for each of its signals that judges it.

    Thresholds are as in `Stage`, and so is `skip`. Those of the last stage are not used: it always answers.
    """

    model: str
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    skip: Mapping[str, float] = field(default_factory=dict)
