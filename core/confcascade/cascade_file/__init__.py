"""A cascade in a file: models, signals and thresholds in YAML or TOML, to keep, share and run from the command line.

`source` reads a file and knows the line of each key, `models` is what stages are made of, and so are signals
(`confcascade.schema`).

Not imported by `confcascade` itself: this package needs pydantic and PyYAML at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, model_validator

from confcascade.asks import LanguageModel
from confcascade.attempts import OnError, OnExhausted
from confcascade.audit import Audit
from confcascade.building import thresholds_of
from confcascade.cascade import Cascade
from confcascade.cascade_file.models import (
    ModelEntry,
    PricesEntry,
    is_greedy,
    loaded,
    own_decoding,
    parts_of,
)
from confcascade.cascade_file.source import Source
from confcascade.cascade_file.stages import (
    DecodingEntry,
    RateLimit,
    StageEntry,
    StepsEntry,
    check_known,
    names_of,
    said,
)
from confcascade.cost import Architecture, Prices
from confcascade.decoding import Decoding
from confcascade.errors import ConfigurationError
from confcascade.models.memory import MemoryBound
from confcascade.schema import Entry, PromptValue, ThresholdValues, existing, located, suggestion
from confcascade.schema.signals import SignalEntry, TokenProbabilityEntry
from confcascade.signals import Threshold
from confcascade.stage import FittedStages, Stage
from confcascade.stepwise_cascade import Mode, StepwiseCascade
from confcascade.unusable import OnCut

__all__ = ["CascadeFile", "PricesEntry", "RateLimit", "StageEntry"]


class CascadeFile(Entry):
    """A cascade in a file; made by `load`.

    Either `models`, smallest first, with `threshold` and `signals` for all but the last, or `stages`, each with its
    own. Thresholds may be left out where none is needed yet, as for collecting the answers to choose them by.

    Attributes:
        models: Smallest first; the last always answers.
        threshold: With `models`: a number for the one signal, or numbers by signal name.
        signals: With `models`: what judges every stage but the last; by default P(T).
        stages: Each with signals and thresholds of its own, if there are no `models`.
        policy: With `models`: a fitted one, ``policy.json``, with thresholds of its own.
        group: With a `policy` that has thresholds of its own for each group of questions: which group.
        mode: "query" for a `Cascade`, "stepwise" for a `StepwiseCascade` of two models.
        steps: With "stepwise": what a step is, as of `Steps`; a policy has its own.
        on_error: As of `Cascade`.
        on_exhausted: As of `Cascade`.
        on_cut: As of `Cascade`.
        decoding: How its models decode, when they are collected from and when they answer.
        memory_gib: Most memory, in GiB, for the weights of its `local` and `bundled` models, which are then loaded when
            they are first asked (`MemoryBound`).
        prompt: Name of a prompt, or templates ``{system, user}``, as written; see
            `confcascade.bench.questions.prompts`.
    """

    models: list[ModelEntry] | None = Field(None, min_length=1, description="Smallest first; the last always answers.")
    threshold: ThresholdValues | None = Field(
        None, description="With `models`: a number for the one signal, or numbers by signal name."
    )
    signals: list[SignalEntry] | None = Field(
        None, min_length=1, description="With `models`: what judges every stage but the last; by default p_t."
    )
    stages: list[StageEntry] | None = Field(
        None,
        min_length=1,
        description="Instead of `models`: each with signals and thresholds of its own.",
    )
    policy: str | None = Field(
        None, min_length=1, description="With `models`: the file of a fitted policy, in the place of thresholds."
    )
    group: str | None = Field(
        None, min_length=1, description="With a `policy` of thresholds for each group of questions: which group."
    )
    mode: Mode = Field(
        "query", description="query: the first that is sure enough answers; stepwise: two write each answer in turn."
    )
    steps: StepsEntry | None = Field(None, description="With `mode: stepwise`: what a step is.")
    on_error: OnError = Field("escalate", description="Whether a query whose model failed is passed on.")
    on_exhausted: OnExhausted = Field("raise", description="What follows if the last stage fails.")
    on_cut: OnCut = Field("escalate", description="What follows if a draft was cut off at its most tokens.")
    decoding: DecodingEntry | None = Field(
        None, description="How models decode, collected and live: {max_tokens: 64}; greedily, if nothing is said."
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description="Most memory for the weights of local and bundled models, which are then loaded when first asked.",
    )
    prompt: PromptValue | None = Field(
        None, description="How questions are put: the name of a prompt, or templates {system, user}."
    )

    _source: Source = PrivateAttr(default_factory=Source)
    _entries: tuple[StageEntry, ...] = PrivateAttr(())
    _stages: tuple[Stage, ...] | None = PrivateAttr(None)
    _memory: MemoryBound | None = PrivateAttr(None)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file; no model is loaded yet.

        Raises:
            ConfigurationError: If it cannot be a cascade; with the file, the line and the key.
        """
        source = Source.read(Path(path).expanduser())
        try:
            return cls.model_validate(source.data, context=source)
        except ValidationError as error:
            problems = sorted(source.problem(each) for each in error.errors(include_url=False))
        # outside of the block: its error holds the file's values, and a traceback would show them
        raise ConfigurationError("\n".join(told for _, told in problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled file loads its models where it arrives."""
        return _again, (type(self), self._source)

    def make_stages(self, *, memory: MemoryBound | None = None) -> tuple[Stage, ...]:
        """The stages, their models loaded at the first call, or within a bound when they are first asked.

        Where the file has no thresholds, the stages have none; signals of the last stage, which judge nothing in a
        cascade, then pass "always".

        Args:
            memory: A bound that they share with other cascades, in the place of the file's.

        Raises:
            ConfigurationError: If a model, a probe or a key is not there, or a stage cannot work.
            MissingExtraError: If the extra that brings a model is not installed.
        """
        self._memory = memory or self._memory
        if self._stages is None:
            self._stages = self._load() if self.policy is None else self._fitted(None, None, None)
        return self._stages

    def model(self, name: str | None = None) -> LanguageModel:
        """One of its models, by its name in records (by default the first), loaded alone.

        Raises:
            ConfigurationError: If there is none of this name, or it cannot be loaded.
            MissingExtraError: If the extra that brings it is not installed.
        """
        called = self._called()
        if name is not None and name not in called:
            raise ConfigurationError(f"The cascade file has no model '{name}'; {suggestion(name, called)}")
        i = 0 if name is None else called.index(name)
        with self._source.at(self._keys(i, "model")):
            return self._entries[i].model.load(self._source.folder)

    def cascade(
        self,
        *,
        policy: str | Path | None = None,
        group: str | None = None,
        prompt_version: str | None = None,
        audit: float | Audit = 0.0,
        memory: MemoryBound | None = None,
    ) -> Cascade:
        """The cascade.

        Args:
            policy: The file of a fitted policy, in the place of the thresholds or the policy that the file names.
            group: Which group of questions, with a policy that has thresholds for each; in the place of the file's.
            prompt_version: Of the prompt that will be used, which a policy must have been fitted on.
            audit: As of `Cascade`; a share guards the promise of the policy.
            memory: As of `make_stages`.

        Raises:
            ConfigurationError: As by `stages`, if a threshold is missing, the policy was fitted on other models, or its
                promise cannot be audited.
        """
        self._memory = memory or self._memory
        if policy is not None or self.policy is not None:
            stages = self._fitted(policy, group, prompt_version)
            with self._source.at():
                if self.mode == "stepwise":
                    return self._stepwise(stages, audit=audit)
                return Cascade(stages, **self._options, audit=audit)
        if group is not None:
            with self.at():
                raise ConfigurationError("A `group` goes with a `policy` that was fitted for each group of questions.")
        for i, entry in enumerate(self._entries[:-1]):
            missing = [signal.name for signal in entry.signals if signal.name not in entry.thresholds]
            if missing:
                one = self.stages is None and len(entry.signals) == 1
                key = "thresholds" if self.stages is not None else "threshold"
                wanted = 0.9 if one else dict.fromkeys(missing, 0.9)
                raise ConfigurationError(
                    f"{self._source.where(self._keys(i))}: a cascade needs a threshold for {', '.join(missing)} here. "
                    f"Set `{key}`, such as {wanted}; higher keeps fewer answers of this model."
                )
        stages = self.make_stages()
        if self.mode == "query":
            with self._source.at():
                return Cascade(stages, **self._options, audit=audit)
        with self.at("mode"):
            return self._stepwise(stages, audit=audit)

    def grid(self, thresholds: Sequence[Threshold]) -> tuple[StepwiseCascade, ...]:
        """A stepwise cascade for each threshold, of the same models, loaded once.

        Args:
            thresholds: Of the one signal, in the place of the file's.

        Raises:
            ConfigurationError: If the file's cascade is not stepwise, has several signals or cannot work.
        """
        if self.mode != "stepwise":
            with self.at():
                raise ConfigurationError(
                    "A grid of thresholds is for `mode: stepwise`: of whole answers one recording is replayed at any."
                )
        if self.policy is not None and thresholds:
            with self.at("policy"):
                raise ConfigurationError("A policy has one threshold, which is fitted: drop `policy` for a grid.")
        small, large = self.make_stages()
        with self.at("mode"):
            return tuple(
                self._stepwise([replace(small, thresholds=thresholds_of(threshold, small.signals)), large])
                for threshold in thresholds
            )

    def _stepwise(self, stages: Sequence[Stage], **others: Any) -> StepwiseCascade:
        steps = None if self.steps is None else self.steps.load()
        return StepwiseCascade(stages, steps=steps, **self._options, **others)

    def only_whole(self, who: str) -> None:
        """Raise `ConfigurationError` if the file's cascade does what recordings of whole answers cannot show.

        It keeps drafts that were cut off, which recordings count as not usable; or it writes step by step.

        Args:
            who: Reads a recording so.
        """
        if self.mode == "stepwise":
            with self.at("mode"):
                raise ConfigurationError(
                    f"{who} replays whole answers, and what a cascade writes step by step is another answer at another "
                    "threshold. Collect it at each, as models of their own."
                )
        if self.on_cut == "keep":
            with self.at("on_cut"):
                raise ConfigurationError(
                    f"{who} counts drafts that were cut off as not usable: leave out `on_cut: keep`."
                )

    @property
    def _options(self) -> dict[str, Any]:
        return {"on_error": self.on_error, "on_exhausted": self.on_exhausted, "on_cut": self.on_cut}

    def at(self, *keys: str | int) -> AbstractContextManager[None]:
        """A `ConfigurationError` of the block is told with the file, the line and the key that it is about."""
        return self._source.at(keys)

    @property
    def rate_limits(self) -> Mapping[str, RateLimit]:
        """What the providers allow, by the model's name; without the models that have no limit."""
        return {name: entry.rate_limit for name, entry in self._named.items() if entry.rate_limit is not None}

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, Threshold]]:
        """By the model's name, smallest first, and the signal's; no model is loaded for it."""
        return {name: dict(entry.thresholds) for name, entry in self._named.items()}

    @property
    def signal_entries(self) -> Mapping[str, Sequence[SignalEntry]]:
        """The signals by the model's name, as the file describes them."""
        return {name: entry.signals for name, entry in self._named.items()}

    @property
    def folder(self) -> Path:
        """What relative paths in it are relative to."""
        return self._source.folder

    @property
    def policy_path(self) -> Path | None:
        """Where the policy lies that the file names."""
        return None if self.policy is None else existing(self.folder, self.policy)

    @property
    def skips(self) -> Mapping[str, Mapping[str, Threshold]]:
        """What sends a query straight to the last stage, by the model's name; without the models that have none."""
        return {name: dict(entry.skip) for name, entry in self._named.items() if entry.skip}

    @property
    def prices(self) -> Mapping[str, Prices]:
        """By the model's name; without the models whose prices the file does not say."""
        return {name: entry.prices.load() for name, entry in self._named.items() if entry.prices is not None}

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """By the model's name; without the models whose sizes the file does not say. No model is loaded for it."""
        told = {name: getattr(entry.model, "architecture", None) for name, entry in self._named.items()}
        return {name: each.load() for name, each in told.items() if each is not None}

    @property
    def decodings(self) -> Mapping[str, Decoding]:
        """How each model decodes, by name: as the file says, else greedily. No model is loaded for it."""
        greedy = {name: {} if is_greedy(entry.model) else {"temperature": 0.0} for name, entry in self._named.items()}
        return {name: Decoding(**(greedy[name] | settings)) for name, settings in self._said_decodings.items()}

    @property
    def _said_decodings(self) -> dict[str, dict[str, Any]]:
        """What the file says of decoding, by the model's name; a temperature that is left to the model is said, too."""
        entries, of_all = self._named.items(), said(self.decoding)
        return {name: own_decoding(entry.model) | of_all | said(entry.decoding) for name, entry in entries}

    @property
    def digest(self) -> str:
        """The sha256 of what the file says, however it says it: short forms are written out, defaults filled in.

        Paths count as they are written, and what they lead to does not count.
        """
        steps = self.steps or StepsEntry.model_validate({})
        told = {
            "stages": [
                entry.model_dump(mode="json", exclude=None if entry.decoding else {"decoding"})
                for entry in self._entries
            ],
            **self.model_dump(mode="json", include={"on_error", "on_exhausted", "on_cut", "prompt"}),
            **({} if self.decoding is None else {"decoding": said(self.decoding)}),
            **({} if self.policy is None else {"policy": self.policy}),
            **({} if self.group is None else {"group": self.group}),
            **({} if self.mode == "query" else {"mode": self.mode, "steps": steps.model_dump()}),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    # ------------------------------------------------------------------ made of

    @model_validator(mode="after")
    def _whole(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, Source):
            self._source = info.context
        if (self.models is None) == (self.stages is None):
            raise located("give either `models` (smallest first, with `threshold`) or `stages`")
        if self.stages is not None:
            for key in ("threshold", "signals", "policy"):
                if getattr(self, key) is not None:
                    raise located(f"with `stages`, each stage has its own signals and thresholds; drop `{key}`", key)
        for key in ("threshold", "signals") if self.policy is not None else ():
            if getattr(self, key) is not None:
                raise located(f"a `policy` brings its own signals and thresholds; drop `{key}`", key)
        if self.group is not None and self.policy is None:
            raise located("goes with a `policy` that was fitted for each group of questions; drop `group`", "group")
        self._entries = tuple(self.stages or self._written_out())
        self._memory = None if self.memory_gib is None else MemoryBound(self.memory_gib)
        self._check_mode()
        called = self._called()
        for i, name in enumerate(called):
            if name in called[:i]:
                raise located(
                    f"two models are called '{name}', and records could not tell them apart; give one a `name`",
                    *self._keys(i, "model"),
                )
        return self

    def _check_mode(self) -> None:
        """Refuse what is only for the other mode."""
        if self.mode == "query":
            if self.steps is not None:
                raise located("goes with `mode: stepwise`; add the mode, or drop `steps`", "steps")
            for i, entry in enumerate(self._entries):
                for j, signal in enumerate(entry.signals):
                    if signal.between_steps:
                        told = f"{signal.type} judges the steps of an answer, and goes with `mode: stepwise`"
                        raise located(told, *self._keys(i, "signals", j))
            return
        if len(self._entries) != 2:
            told = f"step by step, a small and a large model write in turn: name two. Got {len(self._entries)}"
            raise located(told, "models" if self.stages is None else "stages")
        if self.on_cut == "keep":
            raise located("is not for answers that are written step by step; drop `on_cut`", "on_cut")
        for i, entry in enumerate(self._entries):
            if entry.skip:
                raise located("is not for answers that are written step by step; drop `skip`", "stages", i, "skip")

    def _written_out(self) -> list[StageEntry]:
        """The stages that `models` stands for; with a policy, without the signals that it brings."""
        if self.policy is not None:
            return [StageEntry.model_construct(model=model) for model in self.models or ()]
        signals = self.signals or [TokenProbabilityEntry.model_validate({"type": "token_probability"})]
        names = names_of(signals, "signals")
        if isinstance(self.threshold, dict):
            check_known(self.threshold, names, "threshold")
            thresholds = self.threshold
        elif self.threshold is not None and len(names) > 1:
            raise located(f"with several signals, must be a mapping such as {dict.fromkeys(names, 0.9)}", "threshold")
        else:
            thresholds = {} if self.threshold is None else {names[0]: self.threshold}
        *gated, last = (StageEntry.model_construct(model=model) for model in self.models or ())
        return [*(entry.model_copy(update={"signals": signals, "thresholds": thresholds}) for entry in gated), last]

    def _load(self) -> tuple[Stage, ...]:
        at, folder = self._source.at, self._source.folder
        judged = []
        for i, entry in enumerate(self._entries):  # before any model, which may take minutes
            signals = []
            thresholds = dict(entry.thresholds)
            for j, each in enumerate(entry.signals):
                with at(self._keys(i, "signals", j)):
                    signals.append(each.load(folder))
                if i == len(self._entries) - 1:
                    thresholds.setdefault(each.name, "always")
                if each.name in thresholds:
                    with at(self._keys(i, "thresholds", each.name)):
                        signals[-1].validate(thresholds[each.name])
            judged.append((signals, thresholds))
        stages: list[Stage] = []
        for i, (entry, (signals, thresholds)) in enumerate(zip(self._entries, judged, strict=True)):
            with at(self._keys(i, "model")):
                model = self._loaded(i, [stage.model for stage in stages])
            for j, signal in enumerate(signals):
                with at(self._keys(i, "signals", j)):
                    signal.check(model)
            prices = self.prices.get(entry.model.called(folder))
            decoding = self.decodings[entry.model.called(folder)]
            stage = Stage(model, signals, thresholds, prices, entry.skip, decoding=decoding)  # type: ignore[arg-type]  # checked right here
            if entry.skip:
                with at(self._keys(i, "skip")):
                    stage.validate_skip()
            stages.append(stage)
        return tuple(stages)

    def _fitted(self, policy: str | Path | None, group: str | None, prompt_version: str | None) -> tuple[Stage, ...]:
        """The stages of a fitted policy, of the file's models and at its prices."""
        from confcascade.policy import Policy

        place = self.policy_path if policy is None else policy
        assert place is not None
        with self._source.at(("policy",) if policy is None else ()):
            chosen = Policy.load(place)
        if (group := group or self.group) is not None:
            with self._source.at(("group",) if self.group is not None else ()):
                chosen = chosen.for_group(group)
        models: list[LanguageModel] = []
        for i in range(len(self._entries)):
            with self._source.at(self._keys(i, "model")):
                models.append(self._loaded(i, models))
        with self._source.at(("policy",) if policy is None else ()):
            # greedy is what nothing said means, and then the policy knows better
            asked = {name: Decoding(**said) for name, said in self._said_decodings.items()}
            stages = chosen.make_stages(
                models, prompt_version=prompt_version, decoding=asked, stepwise=self.mode == "stepwise"
            )
        priced = (replace(stage, prices=self.prices.get(stage.model.name)) for stage in stages)
        return FittedStages.of(chosen, priced)

    def _loaded(self, i: int, before: Sequence[LanguageModel]) -> LanguageModel:
        """The model of a stage, made of those before it wherever it can be."""
        entries = zip(self._entries, before, strict=False)
        known = [part for entry, model in entries for part in parts_of(entry.model, model)]
        return loaded(self._entries[i].model, self.folder, known, self._memory)

    @property
    def _named(self) -> dict[str, StageEntry]:
        """Its stages, by the model's name."""
        return dict(zip(self._called(), self._entries, strict=True))

    def _called(self) -> list[str]:
        return [entry.model.called(self._source.folder) for entry in self._entries]

    def _keys(self, stage: int, part: str = "", *more: str | int) -> tuple[str | int, ...]:
        """Where the file says a part of a stage."""
        if self.stages is not None:
            return ("stages", stage, *((part, *more) if part else ()))
        if part == "thresholds":
            return ("threshold", *(more if isinstance(self.threshold, dict) else ()))
        return ("signals", *more) if part == "signals" else ("models", stage)


def _again(kind: type[CascadeFile], source: Source) -> CascadeFile:
    return kind.model_validate(source.data, context=source)
