"""The command line: a module for each command."""

from __future__ import annotations

import errno
import warnings
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from confcascade.cli.ask import ask
from confcascade.cli.audit import audit
from confcascade.cli.check import check
from confcascade.cli.collect import collect
from confcascade.cli.convert import convert
from confcascade.cli.demo import demo
from confcascade.cli.evaluate import evaluate
from confcascade.cli.fit import fit
from confcascade.cli.fit_mixture import fit_mixture
from confcascade.cli.hints import with_options
from confcascade.cli.train_probe import train_probe
from confcascade.cli.train_verbalized import train_verbalized
from confcascade.errors import ConfcascadeError

_FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    name="confcascade",
    help="Confidence cascades: small models answer what they know, larger ones the rest.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's tables cut the names of options off in 80 columns
    pretty_exceptions_show_locals=False,
)
for _command in (demo, ask, check, collect, convert, fit, evaluate, train_probe, train_verbalized, fit_mixture, audit):
    # told whole in the list, where typer would cut it off
    app.command(short_help=(_command.__doc__ or "").partition("\n")[0])(_command)


@app.callback()
def _root() -> None:
    """Confidence cascades: small models answer what they know, larger ones the rest."""


def _told(message: Warning | str, *_: Any) -> None:
    """A warning is a sentence to the user; where in our code it was raised tells them nothing."""
    Console(stderr=True).print(f"[bold yellow]Warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point: errors made on purpose are one line, not a traceback."""
    warnings.showwarning = _told  # type: ignore[assignment]
    try:
        app()
    except ConfcascadeError as error:
        # escaped: "confcascade[openai]" is no markup
        Console(stderr=True).print(
            f"[bold red]Error:[/] {escape(with_options(str(error)))}", highlight=False, soft_wrap=True
        )
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f", writing '{error.filename}'" if error.filename else ""
        told = f"The disk is full{where}. What was kept before stays; make room, and run the same command again."
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(told)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error
