"""The plots of training: what was paid at each step, how true the statements were, and their reliability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from confcascade.bench.evaluation.report.plots import COLOURS, Plot
from confcascade.bench.training.verbalized.following import read_log
from confcascade.bench.training.verbalized.training import TrainedVerbalized

__all__ = ["training_plots"]

_SMOOTHED = 20  # steps


def training_plots(trained: TrainedVerbalized) -> list[Plot]:
    """Of the log, and of the sets that judged.

    Raises:
        MissingExtraError: When one is drawn, if matplotlib is not installed.
    """
    log = read_log(trained.log)
    steps = [told for told in log if "validation" not in told]
    checks = [told for told in log if "validation" in told]
    found = []
    if trained.method == "grpo":
        paid = sorted({name for told in steps for name in told if name.startswith("rewards/") and "mean" in name})
        names = {name: name.split("/")[1] for name in paid}
        found.append(_lines("rewards", "What was paid", "Mean of each reward at each step.", steps, names, "reward"))
        told = {"stated/auroc": "AUROC", "stated/ece": "ECE", "stated/read": "can be read", "stated/alike": "alike"}
        note = f"Of each step's sampled answers, the mean of {_SMOOTHED} steps; points: greedy, validation questions."
        found.append(_lines("statements", "Statements while training", note, steps, told, "", checks))
    return [*found, *(_reliability(name, trained) for name in trained.after)]


def _lines(
    name: str,
    title: str,
    note: str,
    steps: Sequence[dict[str, Any]],
    series: dict[str, str],
    label: str,
    checks: Sequence[dict[str, Any]] = (),
) -> Plot:
    def draw(axes: Any) -> None:
        for i, (key, shown) in enumerate(series.items()):
            known = [(told["step"], told[key]) for told in steps if told.get(key) is not None]
            if not known:
                continue
            x, y = zip(*known, strict=True)
            axes.plot(x, list(_smooth(y)), color=COLOURS[i], linewidth=1.2, label=shown)
            points = [(c["step"], c["validation"][key.split("/")[1]]) for c in checks if key in _CHECKED]
            if points := [(x, y) for x, y in points if y is not None]:
                axes.plot(*zip(*points, strict=True), "o", color=COLOURS[i], markersize=4)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.legend()

    header = ("step", *series.values())
    rows = tuple((told["step"], *(told.get(key) for key in series)) for told in steps)
    return Plot(name, title, note, header, rows, draw)


_CHECKED = ("stated/auroc", "stated/ece")


def _smooth(values: Sequence[float]) -> Iterator[float]:
    for i in range(len(values)):
        yield float(np.mean(values[max(0, i + 1 - _SMOOTHED) : i + 1]))


def _reliability(name: str, trained: TrainedVerbalized) -> Plot:
    curves = [("before", trained.before[name].stated), ("after", trained.after[name].stated)]

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=axes.ink, linestyle=":", linewidth=1)
        for i, (when, figures) in enumerate(curves):
            if figures.bins:
                x, y = [mean for _, _, mean in figures.bins], [accuracy for _, accuracy, _ in figures.bins]
                axes.plot(x, y, "o-", color=COLOURS[i], markersize=3.5, label=f"{when}, ECE {figures.ece:.3f}")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("mean stated confidence of a bin")
        axes.set_ylabel("right answers in it")
        if any(figures.bins for _, figures in curves):
            axes.legend()

    rows = tuple((when, *each) for when, figures in curves for each in figures.bins)
    return Plot(
        f"reliability-{name}",
        f"Reliability of what is stated: {name}",
        "Bins of equal mass; on the dotted line the statement is a probability.",
        ("when", "answers", "accuracy", "mean stated"),
        rows,
        draw,
    )
