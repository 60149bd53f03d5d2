"""The command line: a module for each command."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from confcascade.cli.ask import ask
from confcascade.cli.audit import audit
from confcascade.cli.collect import collect
from confcascade.cli.convert import convert
from confcascade.cli.demo import demo
from confcascade.cli.evaluate import evaluate
from confcascade.cli.train_probe import train_probe
from confcascade.errors import ConfcascadeError

app = typer.Typer(
    name="confcascade",
    help="Confidence cascades: small models answer what they know, larger ones the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(convert)
app.command()(demo)
app.command()(collect)
app.command()(ask)
app.command()(evaluate)
app.command()(audit)
app.command("train-probe")(train_probe)


@app.callback()
def _root() -> None:
    """Confidence cascades: small models answer what they know, larger ones the rest."""


def main() -> None:
    """The entry point: errors made on purpose are one line, not a traceback."""
    try:
        app()
    except ConfcascadeError as error:
        # escaped: "confcascade[openai]" is no markup
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error
