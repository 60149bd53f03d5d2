"""``confcascade train-verbalized``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from confcascade.cli.asking import EXIT, grader_for, model_for, stopping
from confcascade.cli.options import DataFormat, GraderOfAll, Limit, LocalModel, PromptOrFiles, pair
from confcascade.cli.progress import bars
from confcascade.errors import ConfigurationError, require

if TYPE_CHECKING:
    from confcascade.bench.training.verbalized import TrainedVerbalized
    from confcascade.graders.example import Example
    from confcascade.models.local import TransformersModel


def train_verbalized(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|REC",
            help="Questions with references (a file, or a folder of files); or a recording that keeps prompts and "
            "references, whose questions are then asked.",
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder. What is there is gone on with.", file_okay=False)],
    model: LocalModel = None,
    cascade: Annotated[
        Path | None,
        typer.Option(
            help="A cascade file, which says how the model is loaded (its precision, say) and asked.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    data_format: DataFormat = "auto",
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE: further questions that only judge, before and after, such as another domain's. "
            "Can be repeated."
        ),
    ] = None,
    prompt: PromptOrFiles = None,
    grader: GraderOfAll = None,
    instruction: Annotated[
        str | None, typer.Option(help="What asks for the confidence; by default as `Verbalized` does.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer with its statement.")] = 256,
    method: Annotated[
        Literal["grpo", "supervised"],
        typer.Option(help="Reinforcement learning; or only learning from how often sampled answers are right."),
    ] = "grpo",
    reward: Annotated[
        Literal["brier", "log", "group-distance"],
        typer.Option(help="What pays the statement: a proper rule against each answer, or COREA's."),
    ] = "brier",
    steps: Annotated[int, typer.Option(min=1, help="Updates by reinforcement.")] = 300,
    group: Annotated[int, typer.Option(min=2, help="Answers that are sampled to a question.")] = 16,
    questions: Annotated[int, typer.Option(min=1, help="Questions of an update.")] = 8,
    rows: Annotated[
        int, typer.Option(min=1, help="Answers of a pass: fewer take less memory. Divides group x questions.")
    ] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate of reinforcement, falling to 0.")] = 2e-5,
    beta: Annotated[float, typer.Option(min=0, help="Weight of a KL penalty; 0 for none.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of sampled answers, above 0.")] = 1.0,
    epochs: Annotated[
        float | None,
        typer.Option(help="Of the supervised part. By default 1 with grpo, to learn the form, and 3 otherwise."),
    ] = None,
    answers: Annotated[
        int | None,
        typer.Option(min=1, help="Of each question, for the supervised part. By default 2 with grpo, 4 otherwise."),
    ] = None,
    supervised_rate: Annotated[float, typer.Option(help="Learning rate of the supervised part.")] = 2e-4,
    texts: Annotated[
        int, typer.Option(min=1, help="Texts of an update of the supervised part: fewer, where questions are few.")
    ] = 64,
    lora: Annotated[int, typer.Option(min=0, help="Rank of the LoRA; 0 trains all weights, of a small model.")] = 16,
    every: Annotated[int, typer.Option(min=1, help="Steps between validations and checkpoints.")] = 50,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the samples and the training.")] = 0,
    plots: Annotated[bool, typer.Option(help="Draw plots; needs matplotlib.")] = True,
) -> None:
    """Train a local model to state how sure it is of its answers, and to be right about it.

    The model answers 80 % of the questions several times each; from its own answers, each followed by the share that
    was right, it learns to state a confidence. Then it answers and states under reinforcement learning (GRPO): it is
    paid for right answers, for the form, and for statements that come true. The weights that earn most on 10 % of the
    questions are kept, and judged on the last 10 %, before and after, beside P(T) of the same answers. After Ctrl-C, a
    crash or a kill, the same command goes on where it was.

    OUT/model is the adapter (with --lora 0 the model) with a card, OUT/recordings what `evaluate` and `fit` read,
    OUT/log.jsonl every step. Needs `pip install confcascade[train]`, and a GPU for models of more than some hundred
    million parameters.

    Ends with 0 when there is a model, also where its statements cannot route, which it says; 130 after Ctrl-C.

    An example:

        confcascade train-verbalized questions.jsonl -o stated --model local:Qwen/Qwen2.5-0.5B-Instruct --grader numeric

    In a cascade file it is then: `model: local:stated/model`, `signals: [{type: verbalized, trained: stated/model}]`.
    """
    for package in ("trl", "datasets", *(("peft",) if lora else ())):
        require(package, "train")  # now, and not after hours of sampling
    if plots:
        require("matplotlib", "plots")
    from confcascade.bench.questions.prompts import prompt_from
    from confcascade.bench.questions.splitting import sample
    from confcascade.bench.recording.digest import digest
    from confcascade.bench.training.verbalized import Questions, Reinforced, Sampling, Supervised
    from confcascade.bench.training.verbalized import train_verbalized as train
    from confcascade.bench.training.verbalized.folder import write_card
    from confcascade.bench.training.verbalized.training import FORMAT
    from confcascade.cascade_file import CascadeFile
    from confcascade.signals.verbalized import Verbalized

    file = None if cascade is None else CascadeFile.load(cascade)
    if file is None and model is None:
        raise ConfigurationError("Which model? Give --model local:NAME or bundled:SIZE, or --cascade FILE.")
    examples = _examples(source, data_format)
    others = dict(pair(each, "--also", lambda path: _examples(Path(path), data_format)) for each in also or ())
    if "test" in others:
        raise ConfigurationError("--also takes any name but 'test', which the last 10 % of the questions have.")
    if limit is not None:
        examples = sample(examples, limit)
    signal = Verbalized(instruction=instruction)
    asked = Questions.of(
        examples,
        seed=seed,
        prompt=prompt_from(prompt or (file.prompt if file is not None and file.prompt else "plain")),
        grader=grader_for(grader, [*examples, *(each for found in others.values() for each in found)]),
        signal=signal,
        others=others,
        max_tokens=max_tokens,
    )
    sampling = Sampling(group, temperature, rows)
    reinforced = Reinforced(reward, steps, questions, rate, beta)
    default = FORMAT if method == "grpo" else Supervised()
    supervised = Supervised(
        default.epochs if epochs is None else epochs,
        default.answers if answers is None else answers,
        supervised_rate,
        texts,
    )
    settings = {
        "method": method,
        "sampling": vars(sampling),
        "reinforced": vars(reinforced),
        "supervised": vars(supervised),
        "lora": lora,
        "every": every,
        "seed": seed,
        "limit": limit,
        "max_tokens": max_tokens,
        "instruction": signal.instruction,
        "prompt": asked.prompt.name,
        "grader": grader,
    }
    out.mkdir(parents=True, exist_ok=True)
    said = None if cascade is None else digest(cascade)
    _bind(out, {"model": model, "cascade": said, "data": digest(source), **settings})
    trained_model, base = _model(file, model)
    console = Console(stderr=True)
    with stopping(console) as stop, bars(console) as progress:
        trained = train(
            trained_model,
            asked,
            out,
            method=method,
            sampling=sampling,
            reinforced=reinforced,
            supervised=supervised,
            rank=lora,
            base=base,
            every=every,
            seed=seed,
            progress=progress,
            stop=stop,
        )
    if trained is None:
        console.print("Stopped. The same command goes on where it was.")
        raise typer.Exit(EXIT["stopped"])
    write_card(
        trained,
        out,
        signal=signal,
        source=source,
        settings=settings,
        command=["confcascade", *sys.argv[1:]],
        plots=plots,
    )
    _show(trained, out)


def _examples(source: Path, data_format: str) -> list[Example]:
    """The questions of a data set, or those that a recording keeps."""
    from confcascade.bench.questions import read_examples
    from confcascade.bench.recording.reading import is_recording, read_rows
    from confcascade.bench.training.examples import only_message
    from confcascade.graders.example import Example

    if not is_recording(source):
        return list(read_examples(source, data_format))
    found = {}
    for row in read_rows(source):
        if (asked := only_message(row)) is None or row.reference is None:
            raise ConfigurationError(
                f"The recording '{source}' keeps no references or no prompts, or its prompts have system messages. "
                "Give the questions that it was collected from."
            )
        found[row.question] = Example(asked, references=(row.reference,), group=row.group, id=row.question)
    return list(found.values())


def _bind(out: Path, settings: dict[str, Any]) -> None:
    """A folder is gone on with by the same settings only."""
    import json

    path = out / "settings.json"
    told = json.dumps(settings, indent=1, default=str) + "\n"
    if path.exists() and (known := path.read_text(encoding="utf-8")) != told:
        before, now = json.loads(known), json.loads(told)
        other = ", ".join(sorted(key for key in {*before, *now} if before.get(key) != now.get(key)))
        raise ConfigurationError(
            f"'{out}' was begun with other settings ({other}). Take them again to go on, or another folder."
        )
    path.write_text(told, encoding="utf-8")


def _model(file: Any, name: str | None) -> tuple[TransformersModel, str]:
    """The model, and where its weights came from."""
    from confcascade.models.local import TransformersModel

    found = model_for(file, name)
    if not isinstance(found, TransformersModel):
        raise ConfigurationError(f"Only local models can be trained: local:NAME or bundled:SIZE. Got '{name}'.")
    return found, str(getattr(found.model, "name_or_path", "") or "")


def _show(trained: TrainedVerbalized, out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from confcascade.bench.training.verbalized.folder import card_table, verdict

    console = Console()
    table = Table("questions", "score", "answers with it", "right", "ECE", "AUROC (95 %)")
    for row in card_table(trained):
        table.add_row(*row)
    console.print(table)
    for i, line in enumerate(verdict(trained)):
        console.print(Text(line, style="" if i else "bold"))
    console.print(f"Model: {out / 'model'}", highlight=False, markup=False, soft_wrap=True)
