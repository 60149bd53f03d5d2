"""The report as one page that needs nothing but itself.

Whatever comes from a recording, names and texts alike, is untrusted: it is escaped here, and the page forbids scripts
and every outside resource besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from confcascade.bench.evaluation.evaluate import Evaluation, HarmfulKeep
from confcascade.bench.evaluation.report.plots import Plot
from confcascade.bench.evaluation.report.tables import Table
from confcascade.bench.evaluation.report.words import headline, verdict
from confcascade.bench.recording.row import NOT_KEPT

__all__ = ["page"]

TEMPLATE = Path(__file__).parent / "page.html"
TEXT_AT_MOST = 4_000  # characters of a prompt or an answer


def page(evaluation: Evaluation, tables: Sequence[Table], plots: Sequence[Plot], made: Mapping[str, str]) -> str:
    """HTML.

    Args:
        evaluation: What it tells.
        tables: Of `tables`.
        plots: Of `plots`; may be none.
        made: How and of what the report was made, for its foot.
    """
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(evaluation.policy.name),
        headline=escape(headline(evaluation)),
        verdict=_paragraphs(verdict(evaluation)),
        notes=_section("Before you believe it", _paragraphs(evaluation.notes)) if evaluation.notes else "",
        plots=_section("Plots", f'<div class="plots">{"".join(map(_figure, plots))}</div>') if plots else "",
        tables="".join(_section(table.title, _table(table)) for table in tables),
        harmful=_section("The most harmful keeps", _harmful(evaluation)),
        made="\n".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in made.items()),
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}\n"


def _paragraphs(lines: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines)


def _figure(plot: Plot) -> str:
    note = f"<figcaption>{escape(plot.note)}</figcaption>" if plot.note else ""
    return f'<figure aria-label="{escape(plot.title)}"><h3>{escape(plot.title)}</h3>{plot.svg()}{note}</figure>'


def _table(table: Table) -> str:
    kinds = [' class="text"' if head.kind == "text" else "" for head in table.header]

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    head = row([escape(head.title) for head in table.header], "th")
    body = "".join(row([_two_lines(escape(cell)) for cell in cells], "td") for cells in table.cells())
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>{note}'


def _two_lines(cell: str) -> str:
    """An interval stands below its figure."""
    figure, bracket, interval = cell.partition(" (")
    return f"{figure}<small>({interval}</small>" if bracket and " to " in interval else cell


# ---------------------------------------------------------------------- texts


def _harmful(evaluation: Evaluation) -> str:
    if not evaluation.harmful:
        return _paragraphs(["No answer was kept that the largest model has better."])
    lines = ["Kept, though the largest model alone has a better answer; the surest first."]
    if all(keep.prompt is None for keep in evaluation.harmful):
        lines.append("The recording keeps no prompts.")
    return _paragraphs(lines) + "".join(_keep(keep, evaluation.models[-1]) for keep in evaluation.harmful)


def _keep(keep: HarmfulKeep, largest: str) -> str:
    scores = ", ".join(
        f"{name} {'missing' if value is None else f'{value:.4g}'}" for name, value in keep.scores.items()
    )
    group = f" · {keep.group}" if keep.group else ""
    parts = [
        ("asked", keep.prompt),
        ("right", keep.reference),
        (f"{keep.model} (kept, grade {keep.grade:g})", keep.answer),
        (f"{largest} (grade {keep.largest_grade:g})", keep.largest_answer),
    ]
    texts = "".join(
        f"<p>{escape(name)}</p><pre>{escape(_cut(text))}</pre>"
        for name, text in parts
        if text is not None and text != NOT_KEPT
    )
    return f"<details><summary>{escape(f'{keep.question}{group} · {keep.model}: {scores}')}</summary>{texts}</details>"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_AT_MOST else f"{text[:TEXT_AT_MOST]} … ({len(text):,} characters)"
