"""The command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from confcascade.errors import ConfcascadeError

app = typer.Typer(
    name="confcascade",
    help="Confidence cascades: small models answer what they know, larger ones the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _root() -> None:
    """Confidence cascades: small models answer what they know, larger ones the rest."""


@app.command()
def demo(
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="A model string; repeat, smallest first: --models local:Qwen/Qwen3-0.6B --models openai:gpt-4o. "
            "By default the bundled models."
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="With --models: keep an answer whose P(T) is at least this.")] = 0.9,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions per task in the comparison.")] = 60,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG of accuracy over compute.", dir_okay=False)] = None,
) -> None:
    """Watch a chain and a query engine answer through a cascade: who answered, why, and what it saved.

    Needs no network with the bundled models. Example:

        confcascade demo --plot demo.png
    """
    from confcascade.demo.show import show

    show(models or (), threshold, questions, plot)


def main() -> None:
    """The entry point: errors made on purpose are one line, not a traceback."""
    try:
        app()
    except ConfcascadeError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {error}", highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
