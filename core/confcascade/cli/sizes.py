"""Sizes and prices of a recording's models: of the command line, else the cascade file, else the recording's notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confcascade.cli.options import architecture, pair
from confcascade.cli.options import prices as prices_of

if TYPE_CHECKING:
    from confcascade.cascade_file import CascadeFile
    from confcascade.cost import Architecture, Prices

__all__ = ["Sizes"]

_TYPED = "the command line"


@dataclass(frozen=True)
class Sizes:
    """What is known of models' sizes and prices, and who says so.

    Attributes:
        architectures: By the model's name; without the models of unknown size.
        prices: Likewise.
        sources: Who tells: by "parameters" or "prices", and the model's name.
    """

    architectures: Mapping[str, Architecture]
    prices: Mapping[str, Prices]
    sources: Mapping[tuple[str, str], str]

    @classmethod
    def told(
        cls, parameters: str | None, prices: Iterable[str] | None, file: CascadeFile | None, recording: str | Path
    ) -> Sizes:
        """Of each model, what the first of them says that says anything.

        Args:
            parameters: Of the command line: "small=8B,large=70B".
            prices: Of the command line: "small=0.15,0.6" each.
            file: The cascade file, if one is given.
            recording: Beside which its notes lie, if `collect` made it.

        Raises:
            ConfigurationError: If one of them cannot be read.
        """
        from confcascade.bench.recording.provenance import meta_path, noted

        typed_sizes = dict(pair(part, "--parameters", architecture) for part in (parameters or "").split(",") if part)
        typed_prices = dict(pair(part, "--prices", prices_of) for part in prices or ())
        beside = noted(recording)
        where = meta_path(recording).name
        architectures: dict[str, Architecture] = {}
        priced: dict[str, Prices] = {}
        sources: dict[tuple[str, str], str] = {}
        for source, sizes, costs in (
            (where, beside.architectures, beside.prices),
            *([] if file is None else [("the cascade file", file.architectures, file.prices)]),
            (_TYPED, typed_sizes, typed_prices),
        ):
            architectures |= sizes
            priced |= costs
            sources |= {("parameters", name): source for name in sizes} | {("prices", name): source for name in costs}
        return cls(architectures, priced, sources)

    @property
    def typed(self) -> frozenset[str]:
        """The models that the command line names."""
        return frozenset(name for (_, name), source in self.sources.items() if source == _TYPED)

    def unit(self, models: Sequence[str]) -> str | None:
        """Dollars, where the command line prices all `models` and sizes none of them; else what is usual."""
        priced = all(self.sources.get(("prices", name)) == _TYPED for name in models)
        sized = any(self.sources.get(("parameters", name)) == _TYPED for name in models)
        return "usd" if priced and not sized else None

    def describe(self, models: Sequence[str]) -> list[str]:
        """A sentence each on sizes and prices of `models`, where any is known: which, and who says so."""
        sizes = {name: f"{self.architectures[name].parameters:,}" for name in models if name in self.architectures}
        told = {name: self.prices[name] for name in models if name in self.prices}
        costs = {name: f"{each.input_usd:g} and {each.output_usd:g}" for name, each in told.items()}
        return [
            f"{head}: {'; '.join(f'{name} {value} ({self.sources[kind, name]})' for name, value in values.items())}."
            for head, kind, values in (
                ("Parameters", "parameters", sizes),
                ("Dollars for a million tokens, read and written", "prices", costs),
            )
            if values
        ]
