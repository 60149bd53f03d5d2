"""One stage of a fitted policy, as its file has it: what its model was, and what its answers must reach to be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from confcascade.asks import LanguageModel
from confcascade.calibration import Calibrator, calibrator_from_dict
from confcascade.decoding import Decoding, asked_with
from confcascade.errors import ConfigurationError
from confcascade.schema import Entry, ThresholdValue
from confcascade.schema.signals import SignalEntry
from confcascade.signals import Signal
from confcascade.signals.calibrated import Calibrated, ExpectedGain

__all__ = ["CalibratedEntry", "ExpectedGainEntry", "FittedStage"]


class CalibratedEntry(Entry):
    """A confidence (`Calibrated`), its parts named by the calibrator."""

    type: Literal["calibrated"]
    name: str = Field(min_length=1)
    calibrator: dict[str, Any]

    @property
    def calibrators(self) -> tuple[Calibrator, ...]:
        """What it is computed by."""
        return (calibrator_from_dict(self.calibrator),)

    def made_of(self, parts: Mapping[str, Signal]) -> Signal:
        """The signal, from its parts by name."""
        (calibrator,) = self.calibrators
        return Calibrated([parts[name] for name in calibrator.signals], calibrator, name=self.name)


class ExpectedGainEntry(Entry):
    """What a larger model would gain (`ExpectedGain`), its parts named by the calibrators."""

    type: Literal["expected_gain"]
    name: str = Field(min_length=1)
    own: dict[str, Any]
    larger: dict[str, Any]

    @property
    def calibrators(self) -> tuple[Calibrator, ...]:
        """What it is computed by."""
        return calibrator_from_dict(self.own), calibrator_from_dict(self.larger)

    def made_of(self, parts: Mapping[str, Signal]) -> Signal:
        """The signal, from its parts by name."""
        own, larger = self.calibrators
        names = dict.fromkeys((*own.signals, *larger.signals))
        return ExpectedGain([parts[name] for name in names], own, larger, name=self.name)


DerivedEntry: TypeAlias = Annotated[CalibratedEntry | ExpectedGainEntry, Field(discriminator="type")]


class FittedStage(Entry):
    """A model and what its answers must reach to be kept.

    Attributes:
        model: Its name in records.
        build: Its fingerprint when it was recorded; None if it told none.
        prompt_version: Of the prompt that it was asked with; None if that was not recorded.
        signals: How to make those that are needed; those that are missing here are handed to `Policy.make_stages`.
        identities: What decides the values of the recorded signals (`Signal.identity`), as far as it was recorded.
        derived: Signals made of others.
        thresholds: By the name of the signal; none for the last stage.
        skip: As of `Stage`: scores below which a query goes straight to the last stage.
        shows_early: Whether a draft is streamed before its end where its scores can no longer fail. Such a draft
            stands, even if it is cut off later, so only where the fit counted those, as wrong.
        decoding: The settings that its answers came about with (`Decoding`); None if that was not recorded.
    """

    model: str = Field(min_length=1)
    build: str | None = None
    prompt_version: str | None = None
    signals: list[SignalEntry] = Field(default_factory=list)
    identities: dict[str, dict[str, Any]] = Field(default_factory=dict)
    derived: list[DerivedEntry] = Field(default_factory=list)
    thresholds: dict[str, ThresholdValue] = Field(default_factory=dict)
    skip: dict[str, float] = Field(default_factory=dict)
    shows_early: bool = False
    decoding: dict[str, Any] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the recorded signals that it judges by, those of which others are made included."""
        made = {each.name: each for each in self.derived}
        found: dict[str, None] = {}
        for name in self.thresholds:
            parts = [part for each in made[name].calibrators for part in each.signals] if name in made else [name]
            found.update(dict.fromkeys(parts))
        return tuple(found)

    def decodes(self, model: LanguageModel, asked: Decoding) -> tuple[Decoding, list[str]]:
        """How its model is to decode, and which of the settings are not known of it.

        Args:
            model: Which may have settings of its own.
            asked: What is asked of the stage.

        Raises:
            ConfigurationError: If a setting is known to be another than the recorded one.
        """
        if self.decoding is None:
            return asked, []
        known = asked_with(model, asked, {})
        for name in dict.fromkeys([*self.decoding, *asked.settings, "temperature"]):
            was, now = self.decoding.get(name), known.get(name)
            if now is not None and was != now:
                raise ConfigurationError(
                    f"The policy was fitted on answers of '{self.model}' with {name} "
                    f"{'left to the model' if was is None else was}; here it is {now}. Answers that come about "
                    "otherwise have other scores, so nothing is promised: set it as it was, or collect and fit again."
                )
        if model.capability.set_per_call:
            return Decoding(**self.decoding), []
        return asked, [name for name in self.decoding if name not in known]

    def load(self, folder: Path, given: Mapping[str, Signal]) -> list[Signal]:
        """Its signals, in the order of the thresholds; those `given` go before those described here."""
        described = {entry.name: entry for entry in self.signals}
        parts: dict[str, Signal] = {}
        for name in self.needs:
            if name not in given and name not in described:
                raise ConfigurationError(
                    f"The policy judges '{self.model}' by the signal '{name}' and does not say how to make it: hand it "
                    "over in `signals`, or fit with `described=...`, whose signals the policy then keeps."
                )
            parts[name] = given[name] if name in given else described[name].load(folder)
            was = self.identities.get(name)
            if was is not None and was != _plain(parts[name].identity()):
                raise ConfigurationError(
                    f"The policy was fitted on another signal '{name}' of '{self.model}': "
                    f"{_differing(was, parts[name])}. Its thresholds mean nothing for this one; fit again."
                )
        made = {each.name: each for each in self.derived}
        return [made[name].made_of(parts) if name in made else parts[name] for name in self.thresholds]


def _plain(identity: Mapping[str, Any]) -> Any:
    """As a file gives it back."""
    return json.loads(json.dumps(dict(identity)))


def _differing(was: Mapping[str, Any], signal: Signal) -> str:
    now = _plain(signal.identity())
    key = next(key for key in [*was, *now] if was.get(key) != now.get(key))
    return f"its `{key}` was {was.get(key)!r} and is now {now.get(key)!r}"
