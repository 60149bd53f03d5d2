"""The plots of an evaluation, each drawn twice: a PNG for paper, and an SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confcascade.bench.evaluation.curves import CurveFigures
from confcascade.bench.evaluation.evaluate import Evaluation
from confcascade.bench.evaluation.signal_figures import SignalFigures
from confcascade.bench.replay.costs import UNIT_NAMES
from confcascade.errors import require

__all__ = ["Plot", "plots"]

# legible on white and on near-black alike
COLOURS = ("#2f7ec7", "#d9762b", "#2a9d6f", "#c2487a", "#8a6fc8", "#a88a1a", "#4aa3a2", "#b5534a")
INK, FAINT = "#333333", "#bbbbbb"
# stand in an SVG for colours of the page; no other element has them
PAGE_INK, PAGE_FAINT = "#010203", "#040506"
WIDTH, HEIGHT = 4.4, 3.4  # inches: of a phone's width, where an SVG's letters then keep their size
ROWS_AT_MOST = 30  # groups in the plot of who answered


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: Of its files.
        title: In words.
        note: What it shows.
        header: Of `rows`.
        rows: The figures behind it.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    _draw: Callable[[Any], None]
    _height: float = HEIGHT

    def png(self) -> bytes:
        """Dark on white."""
        out = io.BytesIO()
        self._figure(INK, FAINT).savefig(out, format="png", dpi=200, facecolor="white")
        return out.getvalue()

    def svg(self) -> str:
        """An element of a page that defines the colours ``--ink`` and ``--faint``; transparent."""
        out = io.StringIO()
        matplotlib = require("matplotlib", "plots")
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name, "font.family": "sans-serif"}):
            figure = self._figure(PAGE_INK, PAGE_FAINT)
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # several plots stand on one page: their parts need names of their own
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        text = text.replace(PAGE_INK, "var(--ink)").replace(PAGE_FAINT, "var(--faint)")
        return re.sub(
            r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" width="[^"]*"', r"<svg \1", text, count=1
        )

    def _figure(self, ink: str, faint: str) -> Any:
        matplotlib = require("matplotlib", "plots")
        figures = require("matplotlib.figure", "plots")
        colours = {
            "text.color": ink,
            "axes.edgecolor": faint,
            "axes.labelcolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "axes.labelsize": 9,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "legend.labelcolor": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": faint,
            "grid.linewidth": 0.4,
            "lines.linewidth": 1.5,
        }
        with matplotlib.rc_context(colours):
            figure = figures.Figure(figsize=(WIDTH, self._height), layout="constrained")
            axes = figure.add_subplot()
            axes.set_axisbelow(True)
            axes.ink, axes.faint = ink, faint
            self._draw(axes)
        return figure


def plots(evaluation: Evaluation) -> list[Plot]:
    """All of an evaluation's, the most important first.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require("matplotlib", "plots")
    made = []
    if len(evaluation.models) > 1:
        made.append(_cost_accuracy(evaluation))
        made += [_sensitivity(evaluation, curve) for curve in evaluation.sensitivity]
        made.append(_answered(evaluation))
    names = dict.fromkeys(signal.signal for signal in evaluation.signals if signal.scored)
    of_signal = {name: [s for s in evaluation.signals if s.signal == name and s.scored] for name in names}
    made += [_risk_coverage(name, signals) for name, signals in of_signal.items()]
    made += [
        _reliability(name, told) for name, signals in of_signal.items() if (told := [s for s in signals if s.bins])
    ]
    return made


def _below(axes: Any, columns: int) -> None:
    """A legend under the axes, where it hides nothing."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


# ---------------------------------------------------------------------- each plot


def _cost_accuracy(evaluation: Evaluation) -> Plot:
    unit = evaluation.unit
    alone = getattr(evaluation.largest.cost, unit)
    whole = [curve for curve in evaluation.curves if curve.models == evaluation.models]
    pairs = [curve for curve in evaluation.curves if curve.models != evaluation.models]
    points = [(p.name, getattr(p.cost, unit), p.accuracy.value) for p in (*evaluation.alone, *evaluation.beside)]
    ours = (evaluation.policy.name, getattr(evaluation.policy.cost, unit), evaluation.policy.accuracy.value)
    most = max(c for curve in evaluation.curves for c in curve.cost) if evaluation.curves else alone
    oracle = [*evaluation.oracle, (max(most, alone), evaluation.oracle[-1][1])]  # more costs, and is not better
    rows: list[tuple[Any, ...]] = [("oracle", "", "", c / alone, a) for c, a in evaluation.oracle]
    rows += [("drawn by lot", "", "", c / alone, a) for c, a in evaluation.blind]
    for curve in evaluation.curves:
        named = f"{curve.signal}: {' → '.join(curve.models)}"
        told = zip(curve.thresholds, curve.cost, curve.accuracy, strict=True)
        rows += [(named, curve.signal, t, c / alone, a) for t, c, a in told]
    rows += [(name, "", "", c / alone, a) for name, c, a in (ours, *points)]

    def draw(axes: Any) -> None:
        axes.plot(*_percent(oracle, alone), color=axes.ink, linestyle=":", linewidth=1.2, label="oracle")
        axes.plot(
            *_percent(evaluation.blind, alone),
            color=axes.ink,
            linestyle="--",
            linewidth=1.2,
            label="model drawn by lot",
        )
        colours = {curve.signal: COLOURS[i % len(COLOURS)] for i, curve in enumerate(whole)}
        for curve in pairs:
            if curve.signal in colours:
                axes.plot(
                    *_percent(zip(curve.cost, curve.accuracy, strict=True), alone),
                    color=colours[curve.signal],
                    linewidth=0.7,
                    alpha=0.6,
                )
        for curve in whole:
            axes.plot(
                *_percent(zip(curve.cost, curve.accuracy, strict=True), alone),
                color=colours[curve.signal],
                label=_short(curve.signal),
            )
        for p in evaluation.alone:
            x, y = 100 * getattr(p.cost, unit) / alone, 100 * p.accuracy.value
            axes.plot([x], [y], "s", color=axes.ink, markersize=4)
        axes.plot([100 * ours[1] / alone], [100 * ours[2]], "*", color=COLOURS[3], markersize=12, label="the policy")
        axes.plot([], [], "s", color=axes.ink, markersize=4, label="one model alone")
        axes.set_xlabel(f"{UNIT_NAMES[unit]}, % of the largest model's (all stages)")
        axes.set_ylabel("accuracy, %")
        _below(axes, 2)

    return Plot(
        "cost_accuracy",
        "Cost and accuracy",
        "Further left is cheaper, further up is better. A line varies one signal's threshold, the same at every stage"
        + ("; thin ones are of two of the models." if pairs else "."),
        ("curve", "signal", "threshold", "cost, of the largest model's", "accuracy"),
        tuple(rows),
        draw,
        3.9,
    )


def _percent(points: Any, alone: float) -> tuple[list[float], list[float]]:
    pairs = list(points)
    return [100 * cost / alone for cost, _ in pairs], [100 * accuracy for _, accuracy in pairs]


def _sensitivity(evaluation: Evaluation, curve: CurveFigures) -> Plot:
    alone = getattr(evaluation.largest.cost, evaluation.unit)
    saved = [1 - cost / alone for cost in curve.cost]
    hidden = [1 - cost / alone for cost in curve.cost_answering_stage]
    own = [
        float(value)
        for stage in evaluation.policy.thresholds.values()
        for name, value in stage.items()
        if name == curve.signal and isinstance(value, int | float)
    ]

    def draw(axes: Any) -> None:
        x = curve.thresholds
        axes.plot(x, [100 * a for a in curve.accuracy], color=COLOURS[0], label="accuracy")
        axes.axhline(
            100 * evaluation.largest.accuracy.value,
            color=COLOURS[0],
            linestyle=":",
            linewidth=1,
            label=f"{_short(evaluation.models[-1])} alone",
        )
        axes.plot(x, [100 * s for s in saved], color=COLOURS[1], label="saved, all stages")
        axes.plot(
            x, [100 * s for s in hidden], color=COLOURS[1], linestyle="--", linewidth=1, label="saved, answering stage"
        )
        for i, value in enumerate(dict.fromkeys(own)):
            label = None if i else "the policy's threshold"
            axes.axvline(value, color=COLOURS[3], linewidth=1, label=label)
        axes.set_xlabel(f"threshold on {curve.signal}")
        axes.set_ylabel("%")
        _below(axes, 2)

    return Plot(
        f"sensitivity_{_file(curve.signal)}",
        f"Sensitivity to the threshold on {curve.signal}",
        "What another threshold would give, the policy's other thresholds unchanged.",
        (
            "threshold",
            "accuracy",
            "saved, all stages",
            "saved, answering stage",
            *(f"answered by {m}" for m in curve.models),
        ),
        tuple(
            (t, a, s, h, *by)
            for t, a, s, h, by in zip(curve.thresholds, curve.accuracy, saved, hidden, curve.answered, strict=True)
        ),
        draw,
    )


def _answered(evaluation: Evaluation) -> Plot:
    shown = evaluation.groups[:ROWS_AT_MOST]
    bars = [("all questions", evaluation.policy.answered), *((g.name, g.policy.answered) for g in shown)]

    def draw(axes: Any) -> None:
        left = [0.0] * len(bars)
        for j, model in enumerate(evaluation.models):
            width = [100 * answered[model] for _, answered in bars]
            axes.barh(
                range(len(bars)), width, left=left, color=COLOURS[j % len(COLOURS)], height=0.7, label=_short(model)
            )
            left = [a + b for a, b in zip(left, width, strict=True)]
        axes.set_yticks(range(len(bars)), [_short(name, 30) for name, _ in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("answered by, % of the questions")
        _below(axes, 2)

    more = len(evaluation.groups) - len(shown)
    return Plot(
        "answered",
        "Who answered what",
        f"The {len(shown)} largest groups; {more} more stand in the table." if more > 0 else "",
        ("group", *evaluation.models),
        tuple((name, *(answered[model] for model in evaluation.models)) for name, answered in bars),
        draw,
        1.3 + 0.19 * len(bars),
    )


def _risk_coverage(name: str, signals: Sequence[SignalFigures]) -> Plot:
    def draw(axes: Any) -> None:
        for i, s in enumerate(signals):
            x, y = zip(*((100 * c, 100 * r) for c, r in s.risk_coverage), strict=True)
            axes.plot(x, y, color=COLOURS[i % len(COLOURS)], label=f"{_short(s.model)}, AURC {s.aurc:.3f}")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"answers kept, those of the highest {name} first, %")
        axes.set_ylabel("of them wrong, %")
        _below(axes, 1)

    return Plot(
        f"risk_coverage_{_file(name)}",
        f"Risk and coverage of {name}",
        "How many of the kept answers are wrong if only the surest are kept. A level line cannot route.",
        ("model", "coverage", "error rate"),
        tuple((s.model, c, r) for s in signals for c, r in s.risk_coverage),
        draw,
    )


def _reliability(name: str, signals: Sequence[SignalFigures]) -> Plot:
    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=axes.ink, linestyle=":", linewidth=1)
        for i, s in enumerate(signals):
            x, y = zip(*((score, accuracy) for _, accuracy, score in s.bins), strict=True)
            axes.plot(
                x, y, "o-", color=COLOURS[i % len(COLOURS)], markersize=3.5, label=f"{_short(s.model)}, ECE {s.ece:.3f}"
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(f"mean {name} of a bin")
        axes.set_ylabel("accuracy in it")
        _below(axes, 1)

    return Plot(
        f"reliability_{_file(name)}",
        f"Reliability of {name}",
        "Whether a score means what it says: 15 bins of equal mass; on the dotted line it is a probability.",
        ("model", "answers", "accuracy", "mean score"),
        tuple((s.model, *each) for s in signals for each in s.bins),
        draw,
    )


def _file(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)
