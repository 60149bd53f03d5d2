"""``confcascade demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confcascade.errors import ConfigurationError


def demo(
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="A model string; repeat, smallest first: llamacpp:FILE.gguf, local:FILE.gguf, local:NAME of the hub, "
            "openai:NAME. By default the bundled models."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="With --models: keep an answer whose P(T) is at least this; by default 0.9.")
    ] = None,
    prices: Annotated[
        list[str] | None,
        typer.Option(help="With --models: MODEL=INPUT,OUTPUT, dollars per million tokens; repeat for each model."),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --models: ask at most so many, by default all. Without: how many per task are compared, by "
            "default 60.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG of accuracy over cost.", dir_okay=False)] = None,
) -> None:
    """Watch a cascade answer: who answered, why, right or wrong, and what it saved.

    Without --models, a chain and a query engine answer through the bundled models, which know a made-up world; nothing
    is downloaded.

        confcascade demo --plot demo.png

    With --models, your own models answer a few dozen short questions (sums, facts, words, Python, letters, choices),
    which come with the package and are graded by code. The models have to be trained to follow instructions.

    \b
        confcascade demo --models llamacpp:small.gguf --models llamacpp:large.gguf
        confcascade demo --models local:Qwen/Qwen3-0.6B --models openai:gpt-4o-mini
    """
    if models:
        from confcascade.cli.options import pair
        from confcascade.cli.options import prices as priced
        from confcascade.cli.progress import bars
        from confcascade.demo.own_models import show_own_models

        show_own_models(
            models,
            0.9 if threshold is None else threshold,
            questions=questions,
            prices=dict(pair(each, "--prices", priced) for each in prices or ()),
            plot=plot,
            progress=bars,
        )
        return
    if threshold is not None or prices:
        raise ConfigurationError("--threshold and --prices go with --models; the bundled models have thresholds.")
    from confcascade.demo.show import show

    show(questions or 60, plot)
