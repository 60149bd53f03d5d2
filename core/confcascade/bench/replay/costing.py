"""Which cost counts, and what policies cost in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costs import chosen_unit
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import replay, sweep
from confcascade.cost import Architecture, Prices

__all__ = ["Costing"]


@dataclass(frozen=True)
class Costing:
    """What things cost.

    Attributes:
        unit: In which costs count, one of "flops", "usd", "tokens" and "seconds".
        architectures: By model.
        prices: By model.
    """

    unit: str
    architectures: Mapping[str, Architecture]
    prices: Mapping[str, Prices]

    @classmethod
    def of(
        cls,
        columns: Columns,
        models: Sequence[str],
        architectures: Mapping[str, Architecture] | None = None,
        prices: Mapping[str, Prices] | None = None,
        unit: str | None = None,
    ) -> Costing:
        """In the unit that was asked for, else in the first of flops, usd, tokens and seconds that is known of all.

        Raises:
            ConfigurationError: If it is not known.
        """
        sizes, told = dict(architectures or {}), dict(prices or {})
        alone = sweep(columns, [[PolicyStage(model)] for model in models], architectures=sizes, prices=told)
        return cls(chosen_unit(alone.cost, unit), sizes, told)

    def means(self, columns: Columns, policies: Sequence[Sequence[PolicyStage]]) -> NDArray[np.float64]:
        """Mean cost of a question under each policy, every model that ran."""
        swept = sweep(columns, policies, architectures=self.architectures, prices=self.prices)
        return cast("NDArray[np.float64]", getattr(swept.cost, self.unit))

    def each(self, columns: Columns, policy: Sequence[PolicyStage]) -> NDArray[np.float64]:
        """Cost of every question under one policy."""
        played = replay(columns, policy, architectures=self.architectures, prices=self.prices)
        return cast("NDArray[np.float64]", getattr(played.cost, self.unit))
