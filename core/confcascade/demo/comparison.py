"""A cascade beside its smallest and its largest model alone, on the same questions: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from confcascade.attempts import Outcome
from confcascade.bench.replay.costs import UNITS, Costs, chosen_unit
from confcascade.errors import require
from confcascade.types import Cost

__all__ = ["Comparison", "Contender", "amount", "ready_to_plot"]

WIDEST_NAME = 30  # columns of the table, beyond which a name is folded
_UNIT_NAMES = {"flops": "Compute (FLOPs)", "usd": "Dollars", "tokens": "Tokens", "seconds": "Seconds"}


@dataclass(frozen=True)
class Contender:
    """What answers the questions: a model alone, or the cascade.

    Attributes:
        name: As the table shows it.
        right: Whether each answer is right.
        every: What each question cost, every model that ran charged.
        answering: Likewise, only the model that answered charged.
    """

    name: str
    right: tuple[bool, ...]
    every: tuple[Cost, ...]
    answering: tuple[Cost, ...]

    @classmethod
    def of(cls, name: str, right: Sequence[bool], outcomes: Sequence[Outcome]) -> Contender:
        """One of whose answers the outcomes are."""
        records = [outcome.record for outcome in outcomes]
        return cls(
            name,
            tuple(right),
            tuple(record.cost for record in records),
            tuple(record.cost_answering_stage for record in records),
        )

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(self.right) / len(self.right)

    def spent(self, unit: str, *, every: bool = True) -> float:
        """In all, in a unit that is known; every model that ran charged, or only the one that answered."""
        return float(sum(getattr(cost, unit) for cost in (self.every if every else self.answering)))

    def mean_costs(self) -> list[float]:
        """Of a question, in each of `UNITS`; NaN where it is not known."""
        values = [[getattr(cost, unit) for cost in self.every] for unit in UNITS]
        return [float("nan") if None in each else float(np.mean(each)) for each in values]


@dataclass(frozen=True)
class Comparison:
    """The three of them, on the same questions.

    Attributes:
        smallest: Alone.
        cascade: Of all models.
        largest: Alone.
        unit: In which costs count, one of `UNITS`.
    """

    smallest: Contender
    cascade: Contender
    largest: Contender
    unit: str

    @classmethod
    def of(cls, smallest: Contender, cascade: Contender, largest: Contender, *, in_dollars: bool = False) -> Comparison:
        """In dollars if wanted, else in the first of `UNITS` that is known of all.

        Raises:
            ConfigurationError: If dollars are wanted and not known.
        """
        costs = Costs(*np.array([each.mean_costs() for each in (smallest, cascade, largest)]).T)
        return cls(smallest, cascade, largest, chosen_unit(costs, "usd" if in_dollars else None))

    @property
    def contenders(self) -> tuple[Contender, Contender, Contender]:
        """All three, as the table shows them."""
        return self.smallest, self.largest, self.cascade

    def share(self, contender: Contender, *, every: bool = True) -> float:
        """Its cost relative to the largest model's alone."""
        return contender.spent(self.unit, every=every) / self.largest.spent(self.unit)

    @property
    def unit_name(self) -> str:
        """As a sentence begins with it."""
        return _UNIT_NAMES[self.unit]

    def table(self, title: str) -> Table:
        """Accuracy, both accountings of cost relative to the largest model, and seconds."""
        table = Table(title=title, title_justify="left", title_style="bold")
        longest = max(len(each.name) for each in self.contenders)
        table.add_column("who", min_width=min(longest, WIDEST_NAME), overflow="fold")
        for column in ("right", "every model that ran", "answering stage only", "seconds"):
            table.add_column(column, justify="right")
        for each in self.contenders:
            table.add_row(
                escape(each.name),
                f"{sum(each.right)} ({each.accuracy:.1%})",
                f"{self.share(each):.1%}",
                f"{self.share(each, every=False):.1%}",
                f"{each.spent('seconds'):.1f}",
            )
        return table

    def plot(self, path: Path, curve: Sequence[tuple[float, float, str]] = ()) -> None:
        """Write a PNG of accuracy over cost; see `ready_to_plot`.

        Args:
            path: Where.
            curve: Of the cascade at other thresholds: cost relative to the largest model, accuracy, and the threshold.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
        for each in self.contenders:
            every, answering = (100 * self.share(each, every=which) for which in (True, False))
            (point,) = axes.plot([every], [100 * each.accuracy], "o", markersize=9, label=each.name)
            if answering != every:
                axes.plot([answering], [100 * each.accuracy], "o", color=point.get_color(), fillstyle="none",
                          label=f"{each.name}, answering stage only (the papers' accounting)")  # fmt: skip
        if curve:
            axes.plot([100 * cost for cost, _, _ in curve], [100 * accuracy for _, accuracy, _ in curve], color="gray",
                      linewidth=1, zorder=1, label="cascade at other thresholds")  # fmt: skip
            for cost, accuracy, threshold in curve:
                axes.annotate(threshold, (100 * cost, 100 * accuracy), textcoords="offset points", xytext=(4, -10),
                              fontsize=7, color="gray")  # fmt: skip
        axes.axhline(100 * self.largest.accuracy - 1, linestyle=":", linewidth=1, color="gray",
                     label=f"1 point below {self.largest.name}")  # fmt: skip
        axes.margins(0.1)
        axes.set(
            xlabel=f"{self.unit_name.lower().replace('flops', 'FLOPs')}, % of {self.largest.name} alone",
            ylabel="accuracy, %",
            title="Accuracy over cost",
        )
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def ready_to_plot(path: Path | None) -> None:
    """Before anybody is asked: that a picture can be drawn and written, if one is wanted.

    Raises:
        MissingExtraError: Without matplotlib.
    """
    if path is not None:
        require("matplotlib", "plots")
        path.parent.mkdir(parents=True, exist_ok=True)


def amount(value: float, unit: str) -> str:
    """A cost at a glance: "1.2 GFLOP", "340 MFLOP", "$0.000150", "35 tokens", "1.5 s"."""
    if unit == "usd":
        return f"${value:.6f}" if value < 0.01 else f"${value:.4f}"
    if unit == "tokens":
        return f"{value:.0f} tokens"
    if unit == "seconds":
        return f"{value:.1f} s"
    size, prefix = next((each for each in ((1e12, "T"), (1e9, "G")) if value >= each[0]), (1e6, "M"))
    return f"{value / size:.{1 if value < 100 * size else 0}f} {prefix}FLOP"
