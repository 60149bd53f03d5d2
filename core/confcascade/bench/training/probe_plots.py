"""The plots of a probe: its reliability, its learning curve, and the AUROC by depth."""

from __future__ import annotations

from typing import Any

from confcascade.bench.evaluation.report.plots import COLOURS, Plot
from confcascade.bench.training.probes import TrainedProbe

__all__ = ["probe_plots"]


def probe_plots(trained: TrainedProbe) -> list[Plot]:
    """Reliability on the test part; the other two on the validation part.

    Raises:
        MissingExtraError: When one is drawn, if matplotlib is not installed.
    """
    return [_reliability(trained), _learning_curve(trained), _depths(trained)]


def _reliability(trained: TrainedProbe) -> Plot:
    test = trained.test

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=axes.ink, linestyle=":", linewidth=1)
        x, y = [mean for _, _, mean in test.bins], [accuracy for _, accuracy, _ in test.bins]
        axes.plot(x, y, "o-", color=COLOURS[0], markersize=3.5, label=f"P(IK), ECE {test.ece:.3f}")
        axes.axhline(test.base_rate, color=COLOURS[1], linewidth=1, linestyle="--", label="base rate")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("mean P(IK) of a bin")
        axes.set_ylabel("right answers in it")
        axes.legend()

    return Plot(
        "reliability",
        "Reliability of P(IK)",
        "Bins of equal mass of the test part; on the dotted line P(IK) is a probability.",
        ("questions", "accuracy", "mean P(IK)"),
        test.bins,
        draw,
    )


def _learning_curve(trained: TrainedProbe) -> Plot:
    curve = trained.curve

    def draw(axes: Any) -> None:
        x = [point.examples for point in curve]
        low, high = [point.low for point in curve], [point.high for point in curve]
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="95 % interval")
        axes.plot(x, [point.auroc for point in curve], "o-", color=COLOURS[0], markersize=3.5, label="validation AUROC")
        axes.axhline(0.5, color=axes.ink, linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks(x, [str(examples) for examples in x])
        axes.minorticks_off()
        axes.set_xlabel("examples to learn from")
        axes.set_ylabel("AUROC")
        axes.legend()

    return Plot(
        "learning_curve",
        "Learning curve",
        "What fewer examples would have given.",
        ("examples", "AUROC", "low", "high"),
        tuple((point.examples, point.auroc, point.low, point.high) for point in curve),
        draw,
    )


def _depths(trained: TrainedProbe) -> Plot:
    kinds = dict.fromkeys(candidate.kind for candidate in trained.candidates)

    def draw(axes: Any) -> None:
        for i, kind in enumerate(kinds):
            points = [(each.layer, each.auroc) for each in trained.candidates if each.kind == kind]
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[i], markersize=3.5, label=kind)
        axes.plot([trained.chosen.layer], [trained.chosen.auroc], "*", color=COLOURS[3], markersize=12, label="chosen")
        axes.axhline(0.5, color=axes.ink, linestyle=":", linewidth=1)
        axes.set_xticks(sorted({each.layer for each in trained.candidates}))
        axes.set_xlabel("block whose output is read")
        axes.set_ylabel("validation AUROC")
        axes.legend()

    return Plot(
        "auroc_by_depth",
        "AUROC by depth",
        "On the validation part, which also chose.",
        ("kind", "block", "AUROC"),
        tuple((each.kind, each.layer, each.auroc) for each in trained.candidates),
        draw,
    )
