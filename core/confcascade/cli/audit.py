"""``confcascade audit``."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from confcascade.audit.file import AuditFile
    from confcascade.audit.state import AuditState, AuditTest

_PROMISES = {
    "agreement": "answers that differ from the largest model's",
    "accuracy": "accuracy lost against the largest model",
}


def audit(
    state: Annotated[Path, typer.Argument(help="The file that a cascade with `audit` writes.", dir_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="All figures, as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw how the evidence grew, as a PNG; needs matplotlib.", dir_okay=False)
    ] = None,
) -> None:
    """Is the certificate still holding? Looks at an audit's state; asks no model.

    Ends with 0 if no promise is known to be broken, 1 after an alarm, 2 on an error. Example:

        confcascade audit audit.sqlite --plot evidence.png
    """
    from rich.console import Console
    from rich.text import Text

    from confcascade.audit.file import AuditFile

    file = AuditFile(state)
    now = file.state()
    if plot is not None:
        plot.write_bytes(_png(file, now))
    if as_json:
        typer.echo(json.dumps(now.as_dict(), indent=2))
    else:
        console = Console()
        for line in _verdict(now):
            console.print(Text(line, style="bold"), soft_wrap=True)
        console.print(_table(now))
        for line in _notes(now):
            console.print(Text(line, style="dim"), soft_wrap=True)
    if now.alarms:
        raise typer.Exit(1)


def _verdict(state: AuditState) -> list[str]:
    if not state.tests:
        return ["Nothing is promised, so nothing can be broken: the audit measures only."]
    lines = []
    for name, test in state.tests.items():
        what = f"{_PROMISES[name]}: at most {test.bound:.2%} of all queries"
        if test.alarm_at is not None:
            lines.append(f"ALARM since {_when(test.alarm_at)}. Promised: {what}. It no longer holds.")
        elif test.unlabelled:
            lines.append(f"Promised: {what}. To go on, the test takes labels (disagreements: {test.unlabelled:,}).")
        elif not test.n:
            lines.append(f"Promised: {what}. Nothing has been seen yet.")
        else:
            lines.append(f"Promised: {what}. Nothing speaks against it by now.")
    return lines


def _table(state: AuditState) -> Table:
    from rich.table import Table

    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("cascade", f"{' -> '.join(state.models)}, policy {state.policy_id}")
    table.add_row("since", _when(state.since))
    table.add_row("queries", f"{state.queries:,}")
    table.add_row("of them kept below the last stage", _of(state.kept, state.queries))
    table.add_row("drawn and counted", f"{state.n:,}")
    table.add_row("of them audited", _of(state.audited, state.n))
    table.add_row(f"answers that differ by '{state.equivalence}'", f"{state.disagreements:,}")
    if state.disagreement is not None:
        figures = f"{state.disagreement:.2%} ({state.low:.2%} to {state.high:.2%})"
        table.add_row("share of all queries that differ", figures)
    for name, test in state.tests.items():
        table.add_row(f"evidence against '{name}'", _evidence(test, state.false_alarms))
        if test.unlabelled:
            table.add_row("disagreements without a label", f"{test.unlabelled:,}")
    table.add_row("dropped: too many waiting, or budget spent", f"{state.dropped:,}")
    table.add_row("skipped: tools, structured output, last model failed", f"{state.skipped:,}")
    table.add_row("failed: no answer, or none that can be compared", f"{state.failed:,}")
    table.add_row("spent on audits", "not known: the last stage has no prices" if state.usd is None else _usd(state))
    return table


def _notes(state: AuditState) -> list[str]:
    notes = [
        "The interval holds with 95% at all times at once, if the share does not change. An alarm is raised, ever, "
        f"with at most {state.false_alarms:.2%} while a promise holds."
    ]
    if state.certificate is not None:
        from confcascade.guarantee import Certificate

        notes += ["", "The certificate:", *Certificate.model_validate(state.certificate).describe().splitlines()]
    return notes


def _evidence(test: AuditTest, false_alarms: float) -> str:
    limit = 1 / false_alarms
    near = max(0.0, test.log_e / math.log(limit))
    return f"{test.e_value:.3g} of {limit:g} ({near:.0%} of the way to an alarm, after {test.n:,} queries)"


def _png(file: AuditFile, state: AuditState) -> bytes:
    import io

    from confcascade.errors import ConfigurationError, require

    histories = {name: history for name in state.tests if (history := file.history(name))}
    if not histories:
        raise ConfigurationError(f"There is nothing to plot in '{file.path}': no test has counted a query yet.")
    figure = require("matplotlib.figure", "plots").Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, history in histories.items():
        axes.plot([at for at, _ in history], [log_e / math.log(10) for _, log_e in history], label=name)
    limit = -math.log10(state.false_alarms)
    axes.axhline(limit, color="#b5534a", linestyle="--", label=f"alarm: {1 / state.false_alarms:g}")
    axes.set(xlabel="drawn queries", ylabel="evidence against the promise, log10")
    axes.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def _usd(state: AuditState) -> str:
    return f"${state.usd:,.4f}"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
