"""``confcascade demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
