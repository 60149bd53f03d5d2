"""The tables of a report, once, for the terminal, the page and files alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from confcascade.bench.evaluation.evaluate import Evaluation
from confcascade.bench.evaluation.policy_figures import Interval, PolicyFigures
from confcascade.bench.replay.costs import UNIT_NAMES, UNITS
from confcascade.signals import Threshold

__all__ = ["Head", "Table", "cost", "percent", "signed", "tables"]


@dataclass(frozen=True)
class Head:
    """The head of a column.

    Attributes:
        title: In words.
        kind: How its values are told, one of `FORMATS`.
        terminal: Its title in a terminal, which has no room for all columns; None if it is left out there.
    """

    title: str
    kind: str
    terminal: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        name: Of its file.
        title: In words.
        header: Of each column.
        rows: Raw values: numbers, texts, `Interval`s, None where unknown.
        note: What to know when reading it.
    """

    name: str
    title: str
    header: tuple[Head, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def cells(self) -> list[list[str]]:
        """As one reads them."""
        return [[_cell(value, head.kind) for value, head in zip(row, self.header, strict=True)] for row in self.rows]

    def csv(self) -> str:
        """Unrounded; an interval takes three columns."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        wide = [any(isinstance(row[i], Interval) for row in self.rows) for i in range(len(self.header))]
        writer.writerow(
            [
                each
                for head, has in zip(self.header, wide, strict=True)
                for each in ([head.title, f"{head.title}: low", f"{head.title}: high"] if has else [head.title])
            ]
        )
        for row in self.rows:
            line: list[Any] = []
            for value, has in zip(row, wide, strict=True):
                if not has:
                    line.append(value)
                elif isinstance(value, Interval):
                    line += [value.value, value.low, value.high]
                else:
                    line += [value, None, None]
            writer.writerow(line)
        return out.getvalue()

    def rich(self, rows: int | None = None) -> RichTable:
        """For the terminal: its columns, the first `rows` rows, and intervals of differences alone."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        for head in self.header:
            if head.terminal is None:
                continue
            if head.kind == "text":
                table.add_column(head.terminal, overflow="fold", min_width=14 if head.terminal else 0)
            else:  # intervals alone may take two lines
                table.add_column(head.terminal, justify="right", no_wrap=head.kind != "points")
        for row in self.rows[:rows]:
            cells = []
            for value, head in zip(row, self.header, strict=True):
                if head.terminal is not None:
                    brief = isinstance(value, Interval) and head.kind != "points"
                    cells.append(Text(_cell(value.value if brief else value, head.kind)))  # names are not markup
            table.add_row(*cells)
        return table


def _interval(value: Any, show: Callable[[float], str]) -> str:
    if isinstance(value, Interval):
        return f"{show(value.value)} ({show(value.low)} to {show(value.high)})"
    return show(value)


def percent(share: float) -> str:
    """A share, readable."""
    return f"{100 * share:.1f} %".replace("-", "−")


def signed(value: float) -> str:
    """Points or percent, gained or lost."""
    return f"{value:+.2f}".replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00")


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{value:,}",
    "share": lambda value: _interval(value, percent),
    "points": lambda value: _interval(value, signed),
    "percent": lambda value: f"{signed(value)} %",
    "p": lambda value: f"{value:.2g}",
    "number": lambda value: f"{value:.3f}".replace("-", "−"),
    "flops": lambda value: cost(value, "flops"),
    "usd": lambda value: cost(value, "usd"),
    "tokens": lambda value: cost(value, "tokens"),
    "seconds": lambda value: cost(value, "seconds"),
}


def _cell(value: Any, kind: str) -> str:
    return "–" if value is None else FORMATS[kind](value)


def cost(value: float, unit: str) -> str:
    """A mean cost of a question, readable."""
    if unit == "flops":
        for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
            if value >= size:
                return f"{value / size:.4g} {prefix}FLOP"
        return f"{value:.4g} FLOP"
    if unit == "usd":
        return f"${value:.3g}" if value >= 0.01 else f"{1000 * value:.3g} m$"
    return f"{value:.4g}" + (" s" if unit == "seconds" else "")


def tables(evaluation: Evaluation) -> list[Table]:
    """All of them, the most important first."""
    made = [_policies(evaluation), _baselines(evaluation), _stages(evaluation), _costs(evaluation)]
    made += [_answers(evaluation), _signals(evaluation), _curves(evaluation)]
    if evaluation.groups:
        made.append(_groups(evaluation))
    return [table for table in made if table.rows]


def _every(evaluation: Evaluation) -> Sequence[PolicyFigures]:
    return (evaluation.policy, *evaluation.beside, *evaluation.alone)


def _policies(evaluation: Evaluation) -> Table:
    return Table(
        "policies",
        "What it gets right, and what it saves",
        (
            Head("policy", "text", "policy"),
            Head("accuracy (95 %)", "share", "accuracy"),
            Head("points against the largest (95 %)", "points", "points against\nthe largest (95 %)"),
            Head("relative", "percent"),
            Head("McNemar p", "p", "McNemar p"),
            Head("harms", "count"),
            Head("benefits", "count"),
            Head("saved, all stages (95 %)", "share", "saved"),
            Head("saved, answering stage", "share", "saved,\nanswering\nstage"),
            Head("gap to oracle closed", "number"),
        ),
        tuple(
            (
                p.name,
                p.accuracy,
                p.drop_points,
                p.drop_relative,
                p.mcnemar_p,
                p.harms,
                p.benefits,
                p.saved_interval or p.saved[evaluation.unit],
                p.saved_answering_stage[evaluation.unit],
                p.gap_closed if p not in evaluation.alone else None,
            )
            for p in _every(evaluation)
        ),
        f"Saved: share of the largest model's {UNIT_NAMES[evaluation.unit]}. All stages charges every model that ran; "
        "answering stage, the papers' accounting, hides the models that were asked in vain. Harms are questions that "
        "the largest model alone gets right, benefits those that it alone gets wrong.",
    )


def _baselines(evaluation: Evaluation) -> Table:
    own = getattr(evaluation.policy.cost, evaluation.unit)
    alone = getattr(evaluation.largest.cost, evaluation.unit)

    def share(value: float | None) -> float | None:
        return None if value is None or not alone else value / alone

    return Table(
        "baselines",
        "Beside it, at its cost",
        (
            Head("what", "text", "what"),
            Head("accuracy", "share", "accuracy"),
            Head("cost, of the largest model's", "share", "cost, of\nlargest's"),
            Head("area under cost–accuracy", "number"),
            Head("QNC", "share", "QNC"),
            Head("", "text", ""),
        ),
        (
            (evaluation.policy.name, evaluation.policy.accuracy.value, share(own), None, None, "the policy"),
            *((b.name, b.accuracy, share(b.cost), b.area, b.neutral_cost, b.reason) for b in evaluation.baselines),
        ),
        "Those with thresholds of their own take the best for that cost, in hindsight. TextRouter and every router by "
        "a score choose before anything is generated: they ask one model only. QNC is the least cost, of the "
        "largest model's, for its accuracy.",
    )


def _stages(evaluation: Evaluation) -> Table:
    policy, rows = evaluation.policy, []
    for model, answered in policy.answered.items():
        told = _thresholds(policy, model)
        rows.append((model, told, answered, policy.retention[model], evaluation.break_even.get(model)))
    return Table(
        "stages",
        "Who answered",
        (
            Head("model", "text", "model"),
            Head("keeps where", "text", "keeps where"),
            Head("of all questions", "share", "answered"),
            Head("retention", "share", "retention"),
            Head("needed to break even", "share", "break even"),
        ),
        tuple(rows),
        "Retention is the share of the questions that reached the model. Before the last model alone, a model saves "
        "something from its cost divided by the last one's.",
    )


def _thresholds(policy: PolicyFigures, model: str) -> str:
    own = policy.thresholds[model]
    if not own:
        return "always"
    return ", ".join(f"{name} {_reached(value)}" for name, value in own.items())


def _reached(threshold: Threshold) -> str:
    if isinstance(threshold, Mapping):
        return " or ".join(f"{_reached(each)} for {label!r}" for label, each in threshold.items())
    return f"≥ {threshold:g}" if isinstance(threshold, int | float) else str(threshold)


def _costs(evaluation: Evaluation) -> Table:
    header = [Head("policy", "text")]
    units = [unit for unit in UNITS if getattr(evaluation.largest.cost, unit) is not None]
    for unit in units:
        name = UNIT_NAMES[unit]
        header += [
            Head(f"{name}, all stages", unit),
            Head("saved", "share"),
            Head(f"{name}, answering stage", unit),
            Head("saved", "share"),
        ]
    rows = []
    for p in _every(evaluation):
        row: list[Any] = [p.name]
        for unit in units:
            row += [getattr(p.cost, unit), p.saved[unit]]
            row += [getattr(p.cost_answering_stage, unit), p.saved_answering_stage[unit]]
        rows.append(tuple(row))
    return Table("costs", "Mean cost of a question, in both accountings", tuple(header), tuple(rows))


def _answers(evaluation: Evaluation) -> Table:
    return Table(
        "answers",
        "Answers",
        (
            Head("policy", "text"),
            Head("hallucination rate", "share"),
            Head("says it does not know", "share"),
            Head("macro precision", "number"),
            Head("macro recall", "number"),
            Head("macro F1", "number"),
            Head("no answer", "share"),
        ),
        tuple(
            (
                p.name,
                p.hallucination_rate,
                p.refused,
                p.macro_precision,
                p.macro_recall,
                p.macro_f1,
                p.unanswered,
            )
            for p in _every(evaluation)
        ),
        "Hallucination rate: answered wrongly, “I don't know” left out. Macro figures are means over answer letters, "
        "and are there where answers and references are letters.",
    )


def _signals(evaluation: Evaluation) -> Table:
    return Table(
        "signals",
        "How well each signal tells right answers from wrong ones",
        (
            Head("model", "text", "model"),
            Head("signal", "text", "signal"),
            Head("judges", "text"),
            Head("scored", "count"),
            Head("missing", "count"),
            Head("AUROC", "number", "AUROC"),
            Head("AURC", "number", "AURC"),
            Head("excess AURC", "number"),
            Head("Brier", "number", "Brier"),
            Head("ECE", "number", "ECE"),
            Head("", "text", ""),
        ),
        tuple(
            (
                s.model,
                s.signal,
                "before" if s.phase == "pre" else "the answer",
                s.scored,
                s.missing,
                s.auroc,
                s.aurc,
                s.excess_aurc,
                s.brier,
                s.ece,
                s.hint,
            )
            for s in evaluation.signals
        ),
        "AUROC: 0.5 is a coin. AURC: less is better; the excess is that above a perfect order. Brier and ECE (15 bins "
        "of equal mass) take a score for a probability, and are only there where all scores lie in [0, 1].",
    )


def _curves(evaluation: Evaluation) -> Table:
    return Table(
        "curves",
        "What each signal could reach at its best thresholds",
        (
            Head("signal", "text"),
            Head("models", "text"),
            Head("area under cost–accuracy", "number"),
            Head("QNC", "share"),
        ),
        tuple((c.signal, " → ".join(c.models), c.area, c.neutral_cost) for c in evaluation.curves),
        "The same threshold at every stage; single models and mixtures with them included; all in hindsight.",
    )


def _groups(evaluation: Evaluation) -> Table:
    answered = [Head(f"answered by {model}", "share") for model in evaluation.models]
    alone = [Head(f"{model} alone", "share") for model in (evaluation.models[0], evaluation.models[-1])]
    return Table(
        "groups",
        "By group",
        (
            Head("group", "text", "group"),
            Head("n", "count", "n"),
            Head("accuracy (95 %)", "share", "accuracy"),
            *alone,
            Head("points against the largest (95 %)", "points", "points against\nthe largest (95 %)"),
            Head("McNemar p", "p"),  # the interval beside it says as much, and 80 columns have no room for both
            Head("harms", "count"),
            Head("benefits", "count"),
            Head("saved, all stages", "share", "saved"),
            Head("hallucination rate", "share"),
            *answered,
            Head("", "text", ""),
        ),
        tuple(
            (
                g.name,
                g.policy.questions,
                g.policy.accuracy,
                g.alone[evaluation.models[0]],
                g.alone[evaluation.models[-1]],
                g.policy.drop_points,
                g.policy.mcnemar_p,
                g.policy.harms,
                g.policy.benefits,
                g.policy.saved[evaluation.unit],
                g.policy.hallucination_rate,
                *(g.policy.answered[model] for model in evaluation.models),
                "few: mostly chance" if g.few else "",
            )
            for g in evaluation.groups
        ),
        "Of many groups some differ by chance alone: one in twenty of these intervals misses its truth.",
    )
