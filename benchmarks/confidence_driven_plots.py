"""Every threshold of `confidence_driven`, replayed: sensitivity to it, and cost beside accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from confcascade.bench.metrics.frontier import frontier, oracle, random_routing
from confcascade.bench.recording import Columns
from confcascade.bench.replay import PolicyStage, Sweep, sweep
from confcascade.cost import Architecture, token_flops
from confcascade.errors import require
from confcascade.models.bundled import SIZES

CHAINS = (("small", "large"), ("medium", "large"), ("small", "medium", "large"))
GRID = np.linspace(0, 1, 101)
Sweeps: TypeAlias = Mapping[tuple[str, tuple[str, ...], bool], Sweep]  # by set, chain and whether P(IK) judges too


def swept(columns: Columns, chain: tuple[str, ...], p_ik: bool, architectures: Mapping[str, Architecture]) -> Sweep:
    """The chain at every threshold of `GRID`, from the recording."""
    names = ("p_ik", "p_t") if p_ik else ("p_t",)
    policies = [
        [*(PolicyStage(size, dict.fromkeys(names, t)) for size in chain[:-1]), PolicyStage(chain[-1])]
        for t in GRID.tolist()
    ]
    return sweep(columns, policies, architectures=architectures)


def all_swept(recordings: Mapping[str, Columns], architectures: Mapping[str, Architecture]) -> Sweeps:
    """By set, chain and whether P(IK) judges too."""
    return {
        (asked, chain, p_ik): swept(columns, chain, p_ik, architectures)
        for asked, columns in recordings.items()
        for chain in CHAINS
        for p_ik in (True, False)
    }


def areas(recordings: Mapping[str, Columns], sweeps: Sweeps, architectures: Mapping[str, Architecture]) -> list[Any]:
    """What P(IK) is worth at equal cost: mean accuracy over all costs from the first model's to the last one's.

    Each cost is met by the best thresholds for it, in hindsight, both signals sharing one.
    """
    found = []
    for (asked, chain, p_ik), each in sweeps.items():
        curve = frontier(each.cost.flops, each.accuracy)
        last = costs_of(recordings[asked], architectures)[:, -1].mean()
        area = curve.area(float(curve.cost[0]), float(last))
        found.append({"set": asked, "chain": list(chain), "p_ik": p_ik, "mean_accuracy": round(area, 4)})
    return found


def draw(
    figures: Mapping[str, Any],
    recordings: Mapping[str, Columns],
    sweeps: Sweeps,
    architectures: Mapping[str, Architecture],
    out: Path,
) -> None:
    """``sensitivity.png`` and ``cost.png`` in the folder `out`; lines are replayed, dots are the live runs."""
    pyplot = require("matplotlib.pyplot", "plots")
    pyplot.switch_backend("agg")
    sensitivity(pyplot, figures, recordings, sweeps, architectures, out / "sensitivity.png")
    cost(pyplot, recordings, sweeps, architectures, out / "cost.png")


def live(figures: Mapping[str, Any], asked: str, chain: tuple[str, ...], p_ik: bool) -> list[dict[str, Any]]:
    return [run for run in figures["runs"] if (run["set"], run["chain"], run["p_ik"]) == (asked, list(chain), p_ik)]


def costs_of(columns: Columns, architectures: Mapping[str, Architecture]) -> Any:
    """Of every question to every model, asked whole: shape (questions, models), in the order of `SIZES`."""
    tokens = (columns.input_tokens + columns.output_tokens).astype(float)
    return np.column_stack([token_flops(architectures[s], tokens[:, columns.index(s)]) for s in SIZES])


def sensitivity(
    pyplot: Any,
    figures: Mapping[str, Any],
    recordings: Mapping[str, Columns],
    sweeps: Sweeps,
    architectures: Mapping[str, Architecture],
    path: Path,
) -> None:
    """Accuracy and operations saved over the threshold."""
    figure, axes = pyplot.subplots(2, len(recordings), figsize=(4 * len(recordings), 7), sharex=True, squeeze=False)
    for column, (asked, columns) in enumerate(recordings.items()):
        upper, lower = axes[:, column]
        alone = costs_of(columns, architectures)[:, -1].mean()
        for color, chain in enumerate(CHAINS):
            for p_ik in (True, False):
                line = sweeps[asked, chain, p_ik]
                style = {"color": f"C{color}", "linestyle": "-" if p_ik else "--"}
                label = f"{' → '.join(chain)}, {'P(IK) and P(T)' if p_ik else 'P(T)'}"
                upper.plot(GRID, 100 * line.accuracy, label=label, **style)
                lower.plot(GRID, 100 * (1 - line.cost.flops / alone), **style)
                runs = live(figures, asked, chain, p_ik)
                at = [run["threshold"] for run in runs]
                dots = {"color": f"C{color}", "marker": "o" if p_ik else "s", "markersize": 4, "linestyle": "none"}
                upper.plot(at, [100 * run["right"] / run["n"] for run in runs], **dots)
                lower.plot(at, [run["flops_saved"][0] for run in runs], **dots)
        for size, style in zip(SIZES, (":", "-.", "-"), strict=True):
            right = 100 * np.nanmean(columns.grades[:, columns.index(size)])
            upper.axhline(right, color="0.6", linewidth=0.8, linestyle=style, label=f"{size} alone")
        lower.axhline(0, color="0.6", linewidth=0.8)
        stands = figures["sets"][asked]["stands_for"]
        upper.set_title(asked + (f" (for {stands})" if stands else ""))
        lower.set_xlabel("threshold of every signal")
    axes[0, 0].set_ylabel("accuracy, %")
    axes[1, 0].set_ylabel("operations saved, all stages, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def cost(
    pyplot: Any,
    recordings: Mapping[str, Columns],
    sweeps: Sweeps,
    architectures: Mapping[str, Architecture],
    path: Path,
) -> None:
    """Accuracy over operations, beside the blind choice of a model and the oracle."""
    figure, axes = pyplot.subplots(1, len(recordings), figsize=(4 * len(recordings), 4.2), squeeze=False)
    for axis, (asked, columns) in zip(axes[0], recordings.items(), strict=True):
        costs = costs_of(columns, architectures)
        grades = np.column_stack([columns.grades[:, columns.index(size)] for size in SIZES])
        alone = costs[:, -1].mean()
        for color, chain in enumerate(CHAINS):
            for p_ik in (True, False):
                line = sweeps[asked, chain, p_ik]
                label = f"{' → '.join(chain)}, {'P(IK) and P(T)' if p_ik else 'P(T)'}"
                axis.plot(
                    100 * line.cost.flops / alone,
                    100 * line.accuracy,
                    color=f"C{color}",
                    linestyle="-" if p_ik else "--",
                    label=label,
                )
        for label, curve, style in (
            ("blind choice of one model", random_routing(grades, costs), "-."),
            ("oracle", oracle(grades, costs), ":"),
        ):
            axis.plot(100 * curve.cost / alone, 100 * curve.accuracy, color="0.4", linestyle=style, label=label)
        axis.set_title(asked)
        axis.set_xlabel("operations, % of large alone")
    axes[0, 0].set_ylabel("accuracy, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
