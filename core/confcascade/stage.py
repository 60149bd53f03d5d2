"""A stage: a model, what judges its answers, and what these must reach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from confcascade.asks import LanguageModel
from confcascade.checks import Check
from confcascade.cost import Prices
from confcascade.decoding import Decoding
from confcascade.errors import ConfigurationError
from confcascade.signals import Signal, Threshold, plain
from confcascade.unusable import OnCut
from confcascade.wants import Wants

__all__ = ["FittedStages", "Stage", "policy_id"]


@dataclass(frozen=True)
class Stage:
    """A model and what its answers must reach to be kept.

    Args:
        model: A `LanguageModel`, a string such as ``"local:Qwen/Qwen3-4B"``, or a model of the integration's framework.
        signals: What judges its attempts; all of them must pass. The last stage of a cascade needs none.
        thresholds: By the name of the signal, in the signal's own space; or "always", which keeps every usable answer,
            even one that the signal cannot score, or "never". Of P(T) of labels also one for each label:
            ``{"p_t": {"yes": 0.93, "no": 0.71}}``; what the answer must reach is then that of the label which it gives.
        skip: By the name of a signal of the phase "pre": below this score, at most its threshold, a query goes straight
            to the last stage. A score that is missing skips nothing.
        prices: US dollars per million tokens, for the costs in the record.
        check: What a text must pass to be kept, if somebody parses it afterwards: see `confcascade.checking`.
        decoding: Settings of its model's calls, where a request does not say: ``Decoding(temperature=0)``.
    """

    model: Any
    signals: Sequence[Signal] = ()
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    prices: Prices | None = None
    skip: Mapping[str, float] = field(default_factory=dict)
    check: Check | None = None
    decoding: Decoding = field(default_factory=Decoding)

    @cached_property
    def wants(self) -> Wants:
        """What its signals want of each attempt."""
        return Wants(self.signals)

    def validate(self) -> None:
        """Raise `ConfigurationError` unless every signal has a threshold, and its model can serve it."""
        if not isinstance(self.model, LanguageModel):
            raise ConfigurationError(
                f"A stage's model must be a LanguageModel or a string. Got {type(self.model).__name__}; models of "
                "LangChain go into langchain_confcascade.ConfidenceCascadeLLM, those of LlamaIndex into "
                "llamaindex_confcascade.ConfidenceCascadeLLM."
            )
        if not isinstance(self.signals, Sequence) or not all(isinstance(signal, Signal) for signal in self.signals):
            raise ConfigurationError(
                f"The signals of stage '{self.model.name}' must be a list of signals, such as [TokenProbability()]. "
                f"Got {self.signals!r}."
            )
        names = [signal.name for signal in self.signals]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"The signals of stage '{self.model.name}' must have different names (argument `name`). Got {names}."
            )
        if not isinstance(self.thresholds, Mapping) or set(self.thresholds) != set(names):
            given = list(self.thresholds) if isinstance(self.thresholds, Mapping) else self.thresholds
            raise ConfigurationError(
                f"Stage '{self.model.name}' needs one threshold for each of its signals {names}: a mapping such as "
                f"{dict.fromkeys(names, 0.9)}. Got {given!r}."
            )
        for signal in self.signals:
            signal.validate(self.thresholds[signal.name])
            if not (signal.phase == "post" and self.thresholds[signal.name] == "always"):  # which needs no score
                signal.check(self.model)
        prefixes = {signal.prefix for signal in self.signals if signal.labels}
        if len(prefixes) > 1 and self.model.capability.prefill:  # an answer is begun in one way
            raise ConfigurationError(
                f"The signals of stage '{self.model.name}' that judge labels want answers to begin differently: "
                f"{', '.join(repr(prefix) for prefix in sorted(map(str, prefixes)))}. Give them the same `prefix`."
            )
        rewording = [signal.name for signal in self.signals if signal.rewords]
        if len(rewording) > 1:
            raise ConfigurationError(
                f"The signals {rewording} of stage '{self.model.name}' each change what the model is asked. Keep one, "
                'or let the others ask afterwards: Verbalized("two-step").'
            )
        probing = [signal.name for signal in self.signals if signal.layers(self.model)]
        if rewording and probing and self.model.capability.layers:
            raise ConfigurationError(
                f"The signal '{rewording[0]}' of stage '{self.model.name}' changes the prompt, and '{probing[0]}' was "
                'trained on hidden states at the prompt\'s end. Let it ask afterwards: Verbalized("two-step").'
            )
        probes = probing if prefixes - {None} else []
        if probes and self.model.capability.prefill:
            raise ConfigurationError(
                f"Stage '{self.model.name}' begins its answers with a `prefix`, and '{probes[0]}' was trained on "
                "hidden states at the prompt's end. Leave the `prefix` out."
            )
        correcting = [signal.name for signal in self.signals if signal.corrects]
        if len(correcting) > 1:
            raise ConfigurationError(
                f"The signals {correcting} of stage '{self.model.name}' would each correct the answer. Keep one."
            )
        if not isinstance(self.decoding, Decoding):
            raise ConfigurationError(
                f"`decoding` of stage '{self.model.name}' must be a Decoding, such as Decoding(temperature=0). "
                f"Got {type(self.decoding).__name__}."
            )
        if (check_decoding := getattr(self.model, "check_decoding", None)) is not None:
            check_decoding(self.decoding)
        if self.check is not None and not callable(self.check):
            raise ConfigurationError(
                f"`check` of stage '{self.model.name}' must be a function of the text, such as a parser's `parse`. "
                f"Got {type(self.check).__name__}."
            )
        self.validate_skip()

    def validate_skip(self) -> None:
        """Raise `ConfigurationError` unless `skip` names signals of the phase "pre", at most their thresholds."""
        if not isinstance(self.skip, Mapping):
            raise ConfigurationError(
                f"`skip` of stage '{self.model.name}' must be a mapping such as {{'p_ik': 0.2}}. Got {self.skip!r}."
            )
        gates = {signal.name: signal for signal in self.signals if signal.phase == "pre"}
        for name, score in self.skip.items():
            if name not in gates:
                raise ConfigurationError(
                    f"`skip` of stage '{self.model.name}' names '{name}', which is not one of its signals that judge "
                    f"before the answer. Those are {sorted(gates)}."
                )
            gates[name].validate(score)
            threshold = self.thresholds[name]
            number = threshold if isinstance(threshold, int | float) else None  # labels are of no gate
            if isinstance(score, str) or threshold == "always" or (number is not None and score > number):
                raise ConfigurationError(
                    f"`skip` of stage '{self.model.name}' must be a number that is at most the threshold of '{name}', "
                    f"{threshold!r}: what passes cannot escalate. Got {score!r}."
                )


class FittedStages(tuple[Stage, ...]):
    """The stages of a fitted policy, which remember it: an audit of a cascade of them guards its promise.

    Attributes:
        policy: Where they come from.
    """

    policy: Any  # a `Policy`, which knows of stages, and not they of it

    @classmethod
    def of(cls, policy: Any, stages: Iterable[Stage]) -> FittedStages:
        """Stages that `policy` decides by."""
        made = cls(stages)
        made.policy = policy
        return made


def policy_id(stages: Sequence[Stage], on_cut: OnCut = "escalate") -> str:
    """Twelve hexadecimal digits: cascades that decide alike (same models, signals and thresholds) have the same."""
    identity = [
        {
            "model": stage.model.name,
            "fingerprint": getattr(stage.model, "fingerprint", None),  # of its settings, where it has one
            "signals": {signal.name: signal.identity() for signal in stage.signals},
            # 1 and 1.0 decide alike
            "thresholds": {k: plain(v) for k, v in stage.thresholds.items()},
            **({"skip": {k: float(v) for k, v in stage.skip.items()}} if stage.skip else {}),
            **({"decoding": stage.decoding.settings} if stage.decoding.settings else {}),
        }
        for stage in stages
    ]
    told = identity if on_cut == "escalate" else [*identity, {"on_cut": on_cut}]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
