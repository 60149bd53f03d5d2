"""``confcascade train-probe``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from confcascade.cli.asking import EXIT, grader_for, model_for, stopping
from confcascade.cli.options import DataFormat, GraderOfAll, Limit, LocalModel, PromptOrFiles
from confcascade.cli.progress import Shown, bars
from confcascade.errors import ConfigurationError, require

if TYPE_CHECKING:
    import threading

    from confcascade.asks import LanguageModel
    from confcascade.bench.questions.prompts import Prompt
    from confcascade.bench.training import TrainedProbe
    from confcascade.graders.example import Example


def train_probe(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|REC",
            help="Questions with references (a file, or a folder of files), which the model then answers; or a "
            "recording in which it has.",
            exists=True,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the probe. What is there is gone on with.", file_okay=False)
    ],
    model: LocalModel = None,
    cascade: Annotated[
        Path | None,
        typer.Option(help="A cascade file, which says how the model is loaded and asked.", exists=True, dir_okay=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="With a recording that keeps no prompts: the questions it was collected from.", exists=True),
    ] = None,
    data_format: DataFormat = "auto",
    prompt: PromptOrFiles = None,
    grader: GraderOfAll = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    depths: Annotated[
        str | None,
        typer.Option(
            help="Where hidden states are read, of the model's depth: the best is kept. By default "
            "0.4,0.5,0.6,0.75,1.0, or wherever a server gives them."
        ),
    ] = None,
    kind: Annotated[
        Literal["auto", "linear", "mlp"], typer.Option(help="A logistic regression, a network, or the better one.")
    ] = "auto",
    balanced: Annotated[bool, typer.Option(help="Right and wrong answers weigh the same in training.")] = False,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Keep a group's questions in one part (wordings of one fact, say).")
    ] = False,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the networks.")] = 0,
    plots: Annotated[bool, typer.Option(help="Draw plots; needs matplotlib.")] = True,
) -> None:
    """Train P(IK): a probe of what a model knows, judged before it writes a word.

    The model is a local one, or one of a cascade file whose server gives hidden states (`hidden_states: vllm`, say).

    The model answers the questions and a grader judges the answers, unless a recording has them; then the model reads
    each prompt once more, and its hidden states at several depths are kept. Probes of every depth and kind are trained
    on 80 % of the questions, one is chosen on 10 %, and judged on the last 10 %, which nothing was chosen on. After
    Ctrl-C, a crash or a kill, the same command goes on where it was.

    Ends with 0 when there is a probe, also where it cannot route, which it says; 130 after Ctrl-C, and 1 if the model
    fails time after time.

    An example:

        confcascade train-probe questions.jsonl -o probes/small --model bundled:small --grader normalized

    It is then a signal of a cascade file: `signals: [{type: p_ik, probe: probes/small}]`.
    """
    from confcascade.bench.questions import read_examples
    from confcascade.bench.questions.prompts import prompt_from
    from confcascade.bench.recording.reading import is_recording, read_rows
    from confcascade.bench.training import StateCache, labelled
    from confcascade.bench.training import train_probe as train
    from confcascade.bench.training.folder import write_probe
    from confcascade.bench.training.probes import layers_of
    from confcascade.cascade_file import CascadeFile

    if plots:
        require("matplotlib", "plots")  # now, and not after the work
    at = None if depths is None else _depths(depths)
    file = None if cascade is None else CascadeFile.load(cascade)
    if file is None and model is None:
        raise ConfigurationError("Whose probe? Give --model local:NAME or bundled:SIZE, or --cascade FILE.")
    recorded = is_recording(source)
    if data is not None and not recorded:
        raise ConfigurationError("--data goes with a recording; the questions of a data set stand in it.")
    if recorded and (grader or max_tokens):
        raise ConfigurationError("A recording has its grades: --grader and --max-tokens go with questions alone.")
    if recorded and prompt is not None and data is None:
        raise ConfigurationError("A recording says how it was asked: --prompt goes with --data, or with questions.")
    asked = prompt_from(prompt or (file.prompt if file is not None and file.prompt else "plain"))
    told = data if recorded else source
    examples = None if told is None else list(read_examples(told, data_format))
    judged = None if recorded else grader_for(grader, examples or [])
    probed = model_for(file, model)
    layers = layers_of(probed, at)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with stopping(console) as stop:
        recording = source
        if judged is not None:
            recording = out / "recording.jsonl"
            _collect(console, recording, source, examples or [], probed, asked, judged, limit, max_tokens, stop)
        material = labelled(
            read_rows(recording), probed, examples=examples, prompt=asked, by_group=by_group, limit=limit
        )
        cache = StateCache(out / "states", probed, layers)
        with bars(console) as progress:
            trained = train(
                probed,
                material,
                cache,
                kinds=("linear", "mlp") if kind == "auto" else (kind,),
                balanced=balanced,
                seed=seed,
                progress=progress,
                stop=stop,
            )
    if trained is None:
        console.print("Stopped. The same command goes on where it was.")
        raise typer.Exit(EXIT["stopped"])
    command = ["confcascade", *sys.argv[1:]]
    write_probe(trained, out, source=source, material=material, command=command, plots=plots)
    _show(trained, out)


def _depths(text: str) -> list[float | int]:
    """Depths between 0 and 1 with a point, or blocks as whole numbers."""
    try:
        return [float(part) if "." in part else int(part) for part in map(str.strip, text.split(","))]
    except ValueError as error:
        raise ConfigurationError(
            f"--depths takes numbers such as 0.5,0.75,1.0 (of the depth), or 12,24 (blocks). Got '{text}'."
        ) from error


def _collect(
    console: Console,
    recording: Path,
    source: Path,
    examples: list[Example],
    model: LanguageModel,
    prompt: Prompt,
    grader: Any,
    limit: int | None,
    max_tokens: int | None,
    stop: threading.Event,
) -> None:
    """The model answers, into a recording beside the probe; what is there is gone on with."""
    from confcascade.bench.collecting.collect import collect, with_default_signals
    from confcascade.bench.questions.splitting import sample
    from confcascade.bench.recording.provenance import Noted, bind, identity_of
    from confcascade.bench.recording.writer import RecordingWriter
    from confcascade.signals.token_probability import TokenProbability
    from confcascade.stage import Stage

    stages = with_default_signals([Stage(model, [TokenProbability()])])
    parameters: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    chosen = examples if limit is None else sample(examples, limit)
    with RecordingWriter(recording) as writer:
        identity = identity_of(source, stages, prompt, grader, parameters)
        run = {"command": ["confcascade", *sys.argv[1:]], "limit": limit}
        bind(recording, identity, run, Noted.of(stages), prompt=prompt)
        with Shown(console) as shown:
            collected = collect(
                chosen, stages, writer, prompt=prompt, grader=grader, stop=stop, progress=shown, **parameters
            )
    if collected.ended != "complete":
        why = f"{collected.problem}. " if collected.problem else "Stopped. "
        console.print(f"{why}The same command goes on where it was.", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT[collected.ended])


def _show(trained: TrainedProbe, out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from confcascade.bench.training.verdict import verdict

    console = Console()
    table = Table("block", "kind", "validation AUROC", "", title="Tried")
    for each in trained.candidates:
        table.add_row(str(each.layer), each.kind, f"{each.auroc:.3f}", "chosen" if each == trained.chosen else "")
    console.print(table)
    kept = Table("stay, of the highest P(IK)", "of them right", "of the others wrong", title="On the test part")
    for share, accuracy, wrong in trained.test.kept:
        kept.add_row(f"{share:.0%}", f"{accuracy:.1%}", "-" if wrong is None else f"{wrong:.1%}")
    console.print(kept)
    for i, line in enumerate(verdict(trained)):
        console.print(Text(line, style="" if i else "bold"))
    for reason, count in trained.left_out.items():
        console.print(Text(f"{count} left out: {reason}.", style="dim"))
    console.print(f"Probe: {out}", highlight=False, markup=False, soft_wrap=True)
