"""A fitted policy, ``policy.json``: which models, judged by what, kept from which score on, and what that promises.

`confcascade.bench.fitting` makes one; here it is read, checked against the models that it shall decide for, and made
into stages. What was promised of some models, builds and prompts is not promised of others, so those are refused.

Not imported by `confcascade` itself: this module needs pydantic at once.
"""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from confcascade.asks import LanguageModel
from confcascade.decoding import Decoding
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Certificate, TargetCertificate
from confcascade.models import from_string
from confcascade.policy.description import described, shown
from confcascade.policy.fitted_stage import CalibratedEntry, ExpectedGainEntry, FittedStage
from confcascade.schema import Entry
from confcascade.schema.steps import StepsFields
from confcascade.signals import Signal
from confcascade.stage import FittedStages, Stage
from confcascade.stepwise import Steps

__all__ = [
    "AnyCertificate",
    "CalibratedEntry",
    "ExpectedGainEntry",
    "FittedGroup",
    "FittedStage",
    "MadeFrom",
    "Policy",
    "Saving",
    "Stepwise",
    "question_key",
    "shown",
]

_KEY = 6  # bytes of a question's hash: of 10,000 and 10,000 others two agree by chance once in three million

AnyCertificate: TypeAlias = Annotated[Certificate | TargetCertificate, Field(discriminator="kind")]


class Stepwise(StepsFields):
    """How a policy decides within an answer, step by step: by the thresholds of its first stage, before or after each.

    Attributes:
        delimiter: As of `Steps`.
        max_steps: Likewise.
        final: Likewise.
        configuration: The name that the grid's recording gave it ("small+large@0.7").
    """

    configuration: str | None = None

    def load(self) -> Steps:
        """As the cascade takes them."""
        return Steps(**self.model_dump(exclude={"configuration"}))


class Saving(Entry):
    """What a policy saves, every model that ran being charged, on questions that did not choose it.

    Attributes:
        unit: Of the costs: "flops", "usd", "tokens" or "seconds".
        cost: Mean of a question.
        largest: That of the largest model alone.
        share: 1 - cost / largest.
        low: Lower end of its 95 % interval.
        high: Upper end.
        spared: Share of the questions that the largest model is not asked; None if that is not known.
    """

    unit: Literal["flops", "usd", "tokens", "seconds"]
    cost: float = Field(ge=0, allow_inf_nan=False)
    largest: float = Field(gt=0, allow_inf_nan=False)
    share: float = Field(le=1, allow_inf_nan=False)
    low: float
    high: float
    spared: float | None = Field(default=None, ge=0, le=1)


class FittedGroup(Entry):
    """What is done with the questions of one group.

    Attributes:
        stages: As of `Policy`; the largest model alone where nothing is promised.
        saving: What they save in the group.
    """

    stages: list[FittedStage] = Field(min_length=1)
    saving: Saving


class MadeFrom(Entry):
    """Where a policy comes from.

    Attributes:
        recording: The sha256 of the recording.
        data: That of the questions' file, as `collect` wrote it down.
        grader: Identity of what graded the answers, likewise.
        parameters: Of the requests, likewise.
        seed: Of the split.
        questions: How many were used.
        keyed_by: Whether a question is known again by its "prompt", where the recording keeps it, or its "id".
        keys: Hashes of the questions, in base64, six bytes each.
    """

    recording: str | None = None
    data: str | None = None
    grader: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    seed: int = 0
    questions: int = Field(ge=1)
    keyed_by: Literal["prompt", "id"]
    keys: str

    def overlap(self, keys: Iterable[bytes]) -> int:
        """How many of some questions (`question_key`) the policy was fitted on."""
        joined = base64.b64decode(self.keys)
        known = {joined[i : i + _KEY] for i in range(0, len(joined), _KEY)}
        return sum(key in known for key in keys)


class Policy(Entry):
    """A fitted policy; `load` reads it.

    Attributes:
        version: Of the format, and of what scores are made of: 2 since thoughts do not count.
        models: All that were compared, smallest first; the last is the one that the promise is held against.
        stages: Smallest first. Only one means "use this model". With `groups`: the largest model alone.
        certificates: What is promised; one, or one for each group or target, which hold together. None where the
            largest model alone is asked, which is held against itself.
        saving: What it saves, over all groups in their proportions.
        made_from: What it was fitted on.
        stepwise: How it decides step by step, of two stages; None if it decides by the whole answer.
        groups: What is done with each group of questions that the fit knew, where each has thresholds of its own;
            `for_group` makes an ordinary policy of one.
    """

    version: Literal[2] = 2
    models: list[str] = Field(min_length=1)
    stages: list[FittedStage] = Field(min_length=1)
    certificates: list[AnyCertificate]
    saving: Saving
    made_from: MadeFrom
    stepwise: Stepwise | None = None
    groups: dict[str, FittedGroup] = Field(default_factory=dict)

    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [stage.model for stage in self.stages]
        self._check_stages(self.stages)
        if self.groups:
            if self.stepwise is not None or names != self.models[-1:]:
                raise ValueError("a policy of groups has the largest model as its stage, and is not stepwise")
            for name, group in self.groups.items():
                self._check_stages(group.stages)
                if [stage.model for stage in group.stages] != names and not self.promised(name):
                    raise ValueError(f"it promises nothing of the group '{name}', which smaller models may answer")
        elif not self.certificates and names != self.models[-1:]:
            raise ValueError("it promises nothing, and smaller models may answer")
        if self.stepwise is not None and len(names) != 2:
            raise ValueError(f"a policy that decides step by step has two stages, not {len(names)}")
        return self

    def _check_stages(self, stages: Sequence[FittedStage]) -> None:
        names = [stage.model for stage in stages]
        if len(set(names)) < len(names) or not set(names) <= set(self.models):
            raise ValueError(f"its stages {names} must be different ones of its models {self.models}")
        for stage in stages[:-1]:
            if not stage.thresholds:
                raise ValueError(f"stage '{stage.model}' has no threshold, so it could never escalate a query")

    def promised(self, group: str) -> list[AnyCertificate]:
        """What is promised of one group."""
        return [each for each in self.certificates if isinstance(each, Certificate) and each.group == group]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy; no model is loaded.

        Raises:
            ConfigurationError: If it is none, or of another version.
        """
        place = Path(path).expanduser()
        try:
            policy = cls.model_validate_json(place.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"The policy '{path}' cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            if first["loc"] == ("version",):
                raise ConfigurationError(
                    f"The policy '{path}' was fitted by another version of confcascade, whose scores were of other "
                    "tokens (of thoughts, too, say). Collect and fit again."
                ) from error
            raise ConfigurationError(
                f"'{path}' is not a policy of this version of confcascade: {where}: {first['msg']}."
            ) from error
        policy._folder = place.parent
        return policy

    def save(self, path: str | Path) -> None:
        """Write it; `load` reads it back."""
        Path(path).write_text(self.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")

    def for_group(self, group: str, *, unknown: Literal["refuse", "largest"] = "refuse") -> Self:
        """The policy of one group of questions: an ordinary one, with this group's thresholds and its promise.

        Args:
            group: As the recording named it.
            unknown: What is done of a group that the fit did not know: it is refused, or the largest model alone is
                asked.

        Raises:
            ConfigurationError: If the policy has no groups, or not this one.
        """
        if not self.groups:
            raise ConfigurationError(
                f"This policy decides all groups alike: leave the group '{group}' out, or fit with `per_group=True`."
            )
        found = self.groups.get(group)
        if found is None and unknown != "largest":
            raise ConfigurationError(
                f"The policy was not fitted on a group '{group}', and nothing is promised of it. It knows "
                f"{', '.join(self.groups)}. Ask the largest model there: "
                'Policy.load(...).for_group(..., unknown="largest").'
            )
        if found is None:
            cost = self.saving.largest
            alone = Saving(unit=self.saving.unit, cost=cost, largest=cost, share=0, low=0, high=0, spared=0)
            found = FittedGroup(stages=self.stages, saving=alone)
        update = {
            "stages": found.stages,
            "certificates": self.promised(group),
            "saving": found.saving,
            "groups": {},
        }
        return self.model_copy(update=update)  # with where its paths are relative to

    def check(
        self,
        models: Sequence[LanguageModel],
        *,
        prompt_version: str | None = None,
        decoding: Mapping[str, Decoding] = MappingProxyType({}),
    ) -> tuple[str, ...]:
        """Refuse models and prompts that the policy was not fitted on.

        Args:
            models: Those that it shall decide for; such as it leaves out may be among them.
            prompt_version: Of the prompt that they will be asked with (`confcascade.bench.questions.prompts.Prompt`).
            decoding: What is asked of them, by name, where anything is.

        Returns:
            What cannot be checked, in words.

        Raises:
            ConfigurationError: If a model is missing, is another one or another build, is known to decode otherwise, or
                the prompt is another.
        """
        by_name = {model.name: model for model in models}
        if len(by_name) < len(models):
            raise ConfigurationError(f"Two models have the same name. Got {[model.name for model in models]}.")
        if strange := [name for name in by_name if name not in self.models]:
            raise ConfigurationError(
                f"The policy was not fitted on model '{strange[0]}', but on {', '.join(self.models)}; nothing is "
                "promised of another. Fit again with it, or give it the name that it had in the recording."
            )
        unknown = []
        for stage in self.stages:
            if stage.model not in by_name:
                raise ConfigurationError(
                    f"The policy asks model '{stage.model}', which is not among the models {list(by_name)}."
                )
            # before the build: some have their settings in it, which names none of them
            _, unclear = stage.decodes(by_name[stage.model], decoding.get(stage.model, Decoding()))
            build = getattr(by_name[stage.model], "fingerprint", None)
            if stage.build is None or build is None or _maker(stage.build) != _maker(build):
                unknown.append(f"the build of '{stage.model}'")
            elif stage.build != build:
                raise ConfigurationError(
                    f"The policy was fitted on build {stage.build} of '{stage.model}'; this is build {build}. Its "
                    "scores may be others, so nothing is promised: collect and fit again."
                )
            unknown += [f"the {name} of '{stage.model}' (fitted with {stage.decoding[name]})" for name in unclear]  # type: ignore[index]
            if prompt_version is not None and stage.prompt_version not in (None, prompt_version):
                raise ConfigurationError(
                    f"The policy was fitted on answers to prompt {stage.prompt_version} ('{stage.model}'); this is "
                    f"prompt {prompt_version}. Another prompt makes other scores: collect and fit again."
                )
        if prompt_version is None or any(stage.prompt_version is None for stage in self.stages):
            unknown.append("the prompt")
        return tuple(unknown)

    def check_mode(self, *, stepwise: bool) -> None:
        """Raise `ConfigurationError` unless the policy decides step by step, or by whole answers, as its cascade does.

        Args:
            stepwise: Whether the cascade decides step by step.
        """
        if stepwise != (self.stepwise is not None):
            decides, other = ("by the whole answer", "query") if stepwise else ("step by step", "stepwise")
            raise ConfigurationError(
                f"This policy decides {decides}, and nothing is promised of another way: use "
                f'mode="{other}", or fit again.'
            )

    def check_one(self) -> None:
        """Raise `ConfigurationError` if each group of questions has stages of its own, and none was chosen."""
        if self.groups:
            raise ConfigurationError(
                f"This policy has thresholds of its own for each of {len(self.groups)} groups of questions: say which, "
                f'with `group="{next(iter(self.groups))}"` or `Policy.load(...).for_group(...)`.'
            )

    def make_stages(
        self,
        models: Sequence[LanguageModel | str],
        *,
        prompt_version: str | None = None,
        signals: Sequence[Signal] | Mapping[str, Sequence[Signal]] = (),
        decoding: Mapping[str, Decoding] = MappingProxyType({}),
        stepwise: bool = False,
    ) -> FittedStages:
        """The policy's stages, of the models that it was fitted on; an audit of a cascade of them guards its promise.

        Args:
            models: Core models, or strings such as "openai:gpt-4o"; those that the policy leaves out are not used.
            prompt_version: As for `check`. What cannot be checked is said in a warning.
            signals: Live ones, in the place of those of the same name that the policy describes; of every model, or
                by the model's name.
            decoding: As for `check`. Where nothing is asked, models decode as they did when the policy was fitted, if
                they take settings with each call.
            stepwise: Whether the cascade decides step by step. What was promised of one way says nothing of the other.

        Raises:
            ConfigurationError: As by `check`, if the policy decides the other way or each group its own, and if a
                signal is missing or not the one that was recorded.
        """
        self.check_mode(stepwise=stepwise)
        self.check_one()
        resolved = [from_string(model) if isinstance(model, str) else model for model in models]
        if unknown := self.check(resolved, prompt_version=prompt_version, decoding=decoding):
            warnings.warn(
                f"This policy's promise holds for what it was fitted on; not known here is {' and '.join(unknown)}. "
                "See that it is the same.",
                stacklevel=2,
            )
        by_name = {model.name: model for model in resolved}
        stages = []
        for each in self.stages:
            theirs = signals.get(each.model, ()) if isinstance(signals, Mapping) else signals
            given = {signal.name: signal for signal in theirs}
            loaded = each.load(self._folder, given)
            model = by_name[each.model]
            how, _ = each.decodes(model, decoding.get(each.model, Decoding()))
            stages.append(Stage(model, loaded, dict(each.thresholds), skip=dict(each.skip), decoding=how))
        return FittedStages.of(self, stages)

    @property
    def shows_early(self) -> bool:
        """Whether what is promised counts drafts that were shown before their end."""
        return all(stage.shows_early for stage in self.stages[:-1])

    @property
    def name(self) -> str:
        """Its models, as in "small → large"."""
        return " → ".join(stage.model for stage in self.stages)

    def describe(self) -> str:
        """What it does, what it promises under which assumptions, and what it saves, in several lines."""
        return described(self)

    @property
    def accuracy_certificates(self) -> list[Certificate]:
        """Those of accuracy or agreement: what an audit can guard."""
        return [each for each in self.certificates if isinstance(each, Certificate)]


def question_key(text: str) -> bytes:
    """The hash by which a question is known again; texts that differ in case and white space alone have the same."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:_KEY]


def _maker(build: str) -> str:
    """Whose fingerprint it is: what a framework's class makes of a model's settings says nothing of another's."""
    return build.rpartition(":")[0]
