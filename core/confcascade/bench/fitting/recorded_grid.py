"""The thresholds at which a recording has a stepwise cascade, and the policy of the one that can be promised.

What each of them decides by (models, signal, threshold, steps) is written down beside the recording when it is
collected, so the order of the tests, the highest threshold first, is settled by that and not by the answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.grid import GridFit, certify_grid
from confcascade.bench.fitting.material import FitData, read_material
from confcascade.bench.fitting.policy_file import Described, entries_of
from confcascade.bench.recording.provenance import meta_path, noted
from confcascade.cascade_file import CascadeFile
from confcascade.cost import Prices
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Promise
from confcascade.policy import FittedStage, Policy, Stepwise

__all__ = ["RecordedGrid", "stepwise_models"]


def stepwise_models(recording: str | Path) -> tuple[str, ...]:
    """Names of the models of a recording that are cascades which write step by step."""
    return tuple(_told(recording))


@dataclass(frozen=True)
class RecordedGrid:
    """A stepwise cascade at several thresholds, as a recording has it; made by `read`.

    Attributes:
        recording: Its path.
        told: What each configuration decides by, by its name, the safest first, as is written beside the recording.
    """

    recording: Path
    told: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, recording: str | Path, models: Sequence[str] | None = None) -> RecordedGrid:
        """What is written beside a recording that `collect` made.

        Args:
            recording: Its path.
            models: Configurations, and the large model; by default every configuration.

        Raises:
            ConfigurationError: If it has no such cascade, several, or one that differs in more than a threshold.
        """
        told = _told(recording)
        if not told:
            raise ConfigurationError(
                f"'{recording}' has no cascade that writes step by step: what is recorded as one is noted in "
                f"'{meta_path(recording).name}' when `collect` asks a cascade with `mode: stepwise`."
            )
        if models is not None:
            large = next(iter(told.values()))["stages"][-1]["model"]
            if strange := [name for name in models if name not in told and name != large]:
                raise ConfigurationError(
                    f"'{strange[0]}' is no cascade that writes step by step: the recording has {', '.join(told)}."
                )
            told = {name: each for name, each in told.items() if name in models}
        shared = {json.dumps(_without_thresholds(each), sort_keys=True): name for name, each in told.items()}
        if len(shared) != 1:
            raise ConfigurationError(
                f"A grid is of one cascade at several thresholds, and {' and '.join(shared.values())} differ in more: "
                "in models, signals or steps. Name those of one grid in `models=[...]`."
            )
        several = [name for name, each in told.items() if len(each["stages"][0]["thresholds"]) != 1]
        if several:
            raise ConfigurationError(
                f"'{several[0]}' has several thresholds, and a grid is ordered by one: collect a cascade "
                "with one signal."
            )
        return cls(Path(recording), dict(sorted(told.items(), key=lambda item: _height(item[1]), reverse=True)))

    @property
    def order(self) -> tuple[str, ...]:
        """The configurations, the highest threshold first: the large model writes the most there."""
        return tuple(self.told)

    @property
    def small(self) -> str:
        """The model whose steps are judged."""
        return str(self._stages[0]["model"])

    @property
    def large(self) -> str:
        """The model that writes the others, and that promises are held against."""
        return str(self._stages[-1]["model"])

    @property
    def signal(self) -> str:
        """By which steps are judged."""
        return str(next(iter(self._stages[0]["thresholds"])))

    @property
    def _stages(self) -> Sequence[Mapping[str, Any]]:
        told: Sequence[Mapping[str, Any]] = next(iter(self.told.values()))["stages"]
        return told

    def describe(self) -> str:
        """What is tested, in which order, and why in that one; a sentence each."""
        each = ", ".join(map(_shown, map(_threshold, self.told.values())))
        return (
            f"Step by step, {self.small} and {self.large}, at the thresholds of {self.signal} {each}. They are tested "
            "in this order, the highest and so the safest first, up to the first that fails; no answer has a say in it."
        )

    def material(self, *, graded: bool = True, texts: bool = False) -> FitData:
        """The questions that every configuration and the large model were asked.

        Args:
            graded: Leave out questions without a grade.
            texts: Hold answers and prompts, for comparing answers.

        Raises:
            ConfigurationError: If there are none, or the recording has other builds than are noted beside it.
        """
        material = read_material(self.recording, models=[*self.order, self.large], graded=graded, texts=texts)
        asked = material.identity["models"].get(self.large, {})
        now, was = self._stages[-1]["fingerprint"], asked.get("fingerprint")
        if was != now:
            raise ConfigurationError(
                f"'{self.large}' was recorded by itself in build {was}, and in the cascade in build {now}. Nothing can "
                "be promised of one against the other: collect both anew."
            )
        return material

    def certify(
        self,
        material: FitData,
        promise: Promise,
        *,
        same: NDArray[np.bool_] | None = None,
        unit: str | None = None,
        plan: bool = True,
    ) -> GridFit:
        """`certify_grid`, in the order of the thresholds, at what the answers were recorded to have cost.

        Args:
            material: Of this grid.
            promise: As for `certify_grid`, as are the others.
            same: Whether answers are the large model's.
            unit: Of costs; by default the first of flops and usd that is known of all.
            plan: Whether to look for how many more questions would do.

        Raises:
            ConfigurationError: As by `certify_grid`, and if a cascade failed, and what it had spent is not known.
        """
        columns = material.columns
        failed = {name: int(columns.failed[:, columns.index(name)].sum()) for name in self.order}
        if unit != "seconds" and (name := next((name for name, n in failed.items() if n), None)) is not None:
            raise ConfigurationError(
                f"'{name}' failed on {failed[name]:,} of {len(material):,} questions, and what it had spent by then is "
                "not known. Collect these again (`retry_errors=True`), or say `unit='seconds'`."
            )
        prices = self._stages[-1]["prices"]
        sizes = {name: size for name, size in noted(self.recording).architectures.items() if name == self.large}
        if (unit == "usd" and prices is None) or (unit == "flops" and not sizes):
            raise ConfigurationError(
                f"What the answers cost in {unit} is not in the recording, and cannot be told afterwards. Collect "
                "again, with `prices` of both models in the cascade file; or leave the unit out."
            )
        return certify_grid(
            material,
            self.order,
            promise,
            same=same,
            unit=unit,
            architectures=sizes,
            prices={} if prices is None else {self.large: Prices(**prices)},
            plan=plan,
        )

    def policy(
        self,
        found: GridFit,
        material: FitData,
        *,
        described: CascadeFile | None = None,
        folder: str | Path | None = None,
    ) -> Policy:
        """The policy of the configuration that was chosen.

        Args:
            found: By `certify`.
            material: That it was certified on.
            described: The cascade file, which says how the signal is made live.
            folder: Where the policy will be kept; paths in it are relative to this.

        Raises:
            ConfigurationError: If nothing is promised, or the file's signal is not the recorded one.
        """
        if found.chosen is None:
            raise ConfigurationError(f"There is no policy, for nothing can be promised: {found.why}.")
        told = self.told[found.chosen.name]
        small, large = (
            FittedStage(
                model=each["model"],
                build=each["fingerprint"],
                prompt_version=material.prompt_versions.get(found.chosen.name),
                decoding=each["decoding"],
            )
            for each in told["stages"]
        )
        first = told["stages"][0]
        small = small.model_copy(update={"identities": first["signals"], "thresholds": first["thresholds"]})
        if described is not None and (entries := described.signal_entries.get(self.small)):
            known, names = Described(entries, described.folder), (self.signal,)
            live = {"signals": entries_of(known, names, described.folder)}
            here = FittedStage(**{**small.model_dump(), **live})
            here.load(described.folder, {})  # now, and not when it is first used, if it is another signal
            kept = {"signals": entries_of(known, names, Path(folder or "."))}
            small = FittedStage(**{**small.model_dump(), **kept})
        stages = [small, large]
        return found.policy(material, stages, Stepwise(**told["steps"]))


def _told(recording: str | Path) -> dict[str, Mapping[str, Any]]:
    """What each stepwise cascade of a recording decides by."""
    path = meta_path(recording)
    if not path.exists():
        return {}
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["identity"]["models"]
        return {name: each["stepwise"] for name, each in models.items() if "stepwise" in each}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"'{path}' does not tell what the recording was made with: {error}.") from error


def _without_thresholds(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "stages": [{**stage, "thresholds": list(stage["thresholds"])} for stage in told["stages"]]}


def _threshold(told: Mapping[str, Any]) -> Any:
    return next(iter(told["stages"][0]["thresholds"].values()))


def _height(told: Mapping[str, Any]) -> float:
    value = _threshold(told)
    return {"never": math.inf, "always": -math.inf}[value] if isinstance(value, str) else float(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.12g}"
