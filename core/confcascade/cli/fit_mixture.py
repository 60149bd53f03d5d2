"""``confcascade fit-mixture``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from confcascade.cli.asking import EXIT, model_for, stopping
from confcascade.cli.options import DataFormat, Limit, LocalModel, PromptOrFiles
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import threading

    from confcascade.asks import LanguageModel
    from confcascade.signals.step_mixture import StepMixture
    from confcascade.stepwise import Steps
    from confcascade.types import Message

CHUNK = 32  # questions: so many are asked again, at most, after a kill
BINS = 24
WIDTH = 50  # of the longest bar


def fit_mixture(
    data: Annotated[
        Path,
        typer.Argument(
            help="Questions like those to come, and none of those to be judged; no references.", exists=True
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The mixture.", dir_okay=False)] = Path("mixture.json"),
    model: LocalModel = None,
    cascade: Annotated[
        Path | None,
        typer.Option(
            help="A cascade file with `mode: stepwise`, which says how the model is loaded and asked, and what a step "
            "is. By default its first model is meant.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    data_format: DataFormat = "auto",
    prompt: PromptOrFiles = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="What ends a step, \\n for a new line. By default the cascade file's, else a blank line."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer. By default the cascade file's `decoding`.")
    ] = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the starts of the fit.")] = 0,
) -> None:
    """Learn what the steps of a model look like when it is sure, for the signal `lookback`: no labels are needed.

    The model answers the questions by itself, step by step. How confident it is of a step is the mean of its greatest
    logits there; a mixture of two normal distributions tells the sure steps from the others, and is kept. A few hundred
    steps are needed. After Ctrl-C, a crash or a kill, the same command goes on where it was.

    Ends with 0 when there is a mixture, 130 after Ctrl-C, and 1, and writes none, where the steps are of one kind only:
    it then says what to use instead.

    An example:

        confcascade fit-mixture questions.jsonl -o mixture.json --model bundled:small --delimiter '\\n'

    It is then a signal of a cascade file: `signals: [{type: lookback, mixture: mixture.json}]`.
    """
    from confcascade.bench.questions import read_examples
    from confcascade.bench.questions.prompts import prompt_from
    from confcascade.bench.questions.splitting import sample
    from confcascade.bench.recording.digest import digest
    from confcascade.cascade_file import CascadeFile
    from confcascade.signals.step_mixture import StepMixture
    from confcascade.stepwise import Steps

    file = None if cascade is None else CascadeFile.load(cascade)
    if file is None and model is None:
        raise ConfigurationError("Whose steps? Give --model local:NAME or bundled:SIZE, or --cascade FILE.")
    examples = list(read_examples(data, data_format))
    if limit is not None:
        examples = sample(examples, limit)
    asked = prompt_from(prompt or (file.prompt if file is not None and file.prompt else "plain"))
    steps = Steps() if file is None or file.steps is None else file.steps.load()
    if delimiter is not None:
        steps = Steps(delimiter=delimiter.replace("\\n", "\n"), max_steps=steps.max_steps)
    small = model_for(file, model)
    settings = {} if file is None else dict(file.decodings[small.name].settings)
    if max_tokens is not None:
        settings["max_tokens"] = max_tokens
    console = Console(stderr=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    begun = {
        "data": digest(data),
        "prompt": asked.version,
        "model": getattr(small, "fingerprint", None) or small.name,
        "delimiter": steps.delimiter,
        "settings": settings,
    }
    with stopping(console) as stop:
        queries = {each.id: tuple(asked.messages(each)) for each in examples}
        values = _confidences(console, Path(f"{out}.steps.jsonl"), begun, small, queries, steps, settings, stop)
    if values is None:
        console.print("Stopped. The same command goes on where it was.")
        raise typer.Exit(EXIT["stopped"])
    told = Console()
    told.print(f"{len(values):,} steps of {len(examples):,} answers of {small.name}.", highlight=False, markup=False)
    try:
        mixture = StepMixture.fit(values, model=small, seed=seed)
    except ConfigurationError as error:
        told.print(_histogram(values, None), highlight=False, markup=False)
        told.print(f"No mixture: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    told.print(_histogram(values, mixture), highlight=False, markup=False)
    for kind, weight, mean, deviation in zip(
        ("Unsure", "Sure"), mixture.weights, mixture.means, mixture.deviations, strict=True
    ):
        told.print(f"{kind}: {weight:.0%} of the steps, around {mean:.4g}, deviation {deviation:.3g}.", highlight=False)
    told.print(f"Apart: {mixture.separation:.1f} deviations of the broader.", highlight=False)
    mixture.save(out)
    told.print(f"\nMixture: {out}", highlight=False, markup=False, soft_wrap=True)


def _confidences(
    console: Console,
    kept: Path,
    begun: dict[str, Any],
    model: LanguageModel,
    queries: dict[str, tuple[Message, ...]],
    steps: Steps,
    settings: dict[str, Any],
    stop: threading.Event,
) -> list[float] | None:
    """Of the steps of all queries, those of earlier runs read back; None if it was stopped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from confcascade.step_traces import step_confidences
    from confcascade.types import Request

    known = _read(kept, begun)
    done = {name for names, _ in known for name in names}
    values = [value for names, found in known if set(names) <= set(queries) for value in found]
    left = [name for name in queries if name not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        kept.open("w", encoding="utf-8") as file,
        Progress(*columns, console=console, disable=not console.is_terminal) as bars,
    ):
        file.writelines(json.dumps(line) + "\n" for line in [begun, *known])
        file.flush()
        task = bars.add_task("Answering", total=len(queries), completed=len(queries) - len(left))
        for at in range(0, len(left), CHUNK):
            if stop.is_set():
                return None
            names = left[at : at + CHUNK]
            found = step_confidences(
                model,
                [Request(queries[name]) for name in names],
                steps=steps,
                on_result=lambda *_: bars.advance(task),
                **settings,
            )
            file.write(json.dumps([names, found]) + "\n")
            file.flush()
            values += found
            if not console.is_terminal:
                console.print(f"Answered {len(queries) - len(left) + at + len(names)}/{len(queries)}", highlight=False)
    return values


def _read(kept: Path, begun: dict[str, Any]) -> list[tuple[list[str], list[float]]]:
    """What earlier runs have found, if they asked alike; a line that a kill cut off is left out."""
    if not kept.exists():
        return []
    found = []
    lines = kept.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if i == 0 and told != json.loads(json.dumps(begun)):
            raise ConfigurationError(
                f"'{kept}' holds steps that were collected otherwise (other questions, another model, prompt, "
                "delimiter or settings). Delete it, or write to another --out."
            )
        if i:
            found.append((told[0], told[1]))
    return found


def _histogram(values: Sequence[float], mixture: StepMixture | None) -> str:
    """A bar for each range of confidences; with a mixture, the probability that a step there is a sure one."""
    import numpy as np

    counts, edges = np.histogram(values, bins=BINS)
    lines = []
    for count, low, high in zip(counts.tolist(), edges, edges[1:], strict=False):
        bar = "#" * round(WIDTH * count / max(1, int(counts.max())))
        sure = "" if mixture is None else f"  {mixture.posterior((low + high) / 2):5.2f}"
        lines.append(f"{low:8.2f}{sure}  {bar.ljust(WIDTH)}  {count:,}")
    head = "    from  " + ("" if mixture is None else " sure  ") + "steps"
    return "\n".join([head, *lines])
