"""The stages of a cascade file: a model, what judges it, its prices and limits, and how it decodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from confcascade.cascade_file.models import ModelEntry, PricesEntry
from confcascade.schema import Entry, ThresholdValue, located, suggestion
from confcascade.schema.signals import SignalEntry
from confcascade.schema.steps import StepsFields
from confcascade.stepwise import Steps

__all__ = ["DecodingEntry", "PricesEntry", "RateLimit", "StageEntry", "StepsEntry", "check_known", "names_of", "said"]


class RateLimit(Entry):
    """What a provider allows; None for no limit."""

    requests_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)


class DecodingEntry(Entry):
    """Settings of a model's calls (`Decoding`); null leaves one to the model."""

    temperature: float | None = Field(None, ge=0, allow_inf_nan=False, description="0 is greedy.")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of an answer.")
    top_p: float | None = Field(None, gt=0, le=1, description="Of sampling.")
    top_k: int | None = Field(None, ge=1, description="Of sampling.")
    seed: int | None = Field(None, description="Of sampling.")


class StepsEntry(StepsFields):
    """What a step of an answer is, and who ends the answer."""

    def load(self) -> Steps:
        """As the cascade takes them."""
        return Steps(**self.model_dump())


class StageEntry(Entry):
    """A model and what its answers must reach to be kept."""

    model: ModelEntry
    signals: list[SignalEntry] = Field([], description="What judges its attempts; all of them must pass.")
    thresholds: dict[str, ThresholdValue] = Field({}, description="By the name of the signal.")
    skip: dict[str, ThresholdValue] = Field(
        {}, description="By the name of a signal that judges before the answer: below this, straight to the last stage."
    )
    prices: PricesEntry | None = Field(None, description="US dollars per million tokens.")
    rate_limit: RateLimit | None = Field(None, description="What the provider allows; for `confcascade collect`.")
    decoding: DecodingEntry | None = Field(None, description="How it decodes, where not as the file's others.")

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = names_of(self.signals, "signals")
        check_known(self.thresholds, names, "thresholds")
        check_known(self.skip, list(self.thresholds), "skip")
        return self


def names_of(signals: Sequence[SignalEntry], *keys: str) -> list[str]:
    """The names of signals, each once."""
    names = [signal.name for signal in signals]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise located(f"two signals are called '{name}'; give one another `name`", *keys, i)
    return names


def check_known(thresholds: Iterable[str], names: Sequence[str], *keys: str) -> None:
    """Refuse thresholds of signals that there are not."""
    for name in thresholds:
        if name not in names:
            told = suggestion(name, list(names)) if names else "the stage has no signals"
            raise located(f"there is no signal of this name; {told}", *keys, name)


def said(decoding: DecodingEntry | None) -> dict[str, Any]:
    """The settings that a part of a file says, null included; none, where it says nothing."""
    return {} if decoding is None else {name: getattr(decoding, name) for name in decoding.model_fields_set}
