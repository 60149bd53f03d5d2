"""``confcascade collect``."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from confcascade.cli.asking import EXIT, grader_for, stopping
from confcascade.cli.options import DataFormat, threshold
from confcascade.cli.progress import Shown, errors_told, usd_told
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from confcascade.bench.collecting.collect import AskAll, Collected, Tally
    from confcascade.cascade_file import CascadeFile
    from confcascade.signals import Threshold


def collect(
    data: Annotated[
        Path,
        typer.Argument(
            help="Questions: JSONL or CSV with `question` and, where there are, `choices`, "
            "`reference(s)`, `context`, `group`, `id`; or a published data set.",
            exists=True,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The recording, JSON Lines. If it is there, it is gone on with.")
    ],
    cascade: Annotated[
        Path, typer.Option(help="A cascade file: its models are asked, its signals scored.", exists=True)
    ],
    data_format: DataFormat = "auto",
    part: Annotated[str | None, typer.Option(help="Of a JSON file or a folder that holds several: test, say.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="plain, multiple-choice or open-ended. By default the cascade file's `prompt`, else plain."),
    ] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            help="choice, exact, normalized, contains, numeric, structured:MODULE:CLASS, judge:MODEL, or "
            "module:function of your own. By default choice, if every question has choices."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask so many questions, drawn by a hash: a larger number adds to them.")
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option(help="Begin no call that would bring the dollars spent beyond this.")
    ] = None,
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Most calls to APIs at a time; fewer to a server that answers fewer.")
    ] = 16,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer. By default the cascade file's `decoding`.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="By default the cascade file's `decoding`, else 0: greedy.")
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            help="Of a cascade with `mode: stepwise`: 0.9,0.7,0.5, each a model of its own in the recording, such as "
            "small+large@0.9. By default the file's threshold."
        ),
    ] = None,
    retry_errors: Annotated[bool, typer.Option(help="Ask again where the recording has an error.")] = False,
    text: Annotated[bool, typer.Option(help="Keep prompts, references, answers and their tokens.")] = True,
    keep_thoughts: Annotated[
        bool, typer.Option("--keep-thoughts", help="Keep what models thought before they answered, too.")
    ] = False,
    engine: Annotated[
        Literal["here", "ray"],
        typer.Option(help="Who asks: this process, or the workers of the Ray cluster that RAY_ADDRESS names."),
    ] = "here",
) -> None:
    """Ask every model of a cascade every question, once, and record answers, grades, signals, tokens and times.

    The recording is what thresholds are chosen from and cascades are judged on, without asking anyone again. A row is
    kept as soon as it is there: after Ctrl-C, a crash or a kill, the same command goes on where it was. Models behind
    APIs are asked at the pace that the file's `rate_limit` allows, as many at a time as their server answers, and again
    after errors that pass. Answers are greedy (temperature 0) unless the file's `decoding` says otherwise.

    A cascade with `mode: stepwise` is asked beside its two models, as a model of its own: another threshold makes other
    answers, so each of --thresholds is asked every question, too.

    Ends with 0 when all is asked, 3 at the cap of --max-usd, 130 after Ctrl-C, and 1 if a model fails time after time,
    or on every question.

    An example with the bundled models, without a network:

        printf 'models:\\n- bundled:small\\n- bundled:large\\n' > cascade.yaml

        echo '{"question": "Compute 13+48.", "reference": "61"}' > questions.jsonl

        confcascade collect questions.jsonl -o rec.jsonl --cascade cascade.yaml --grader numeric
    """
    from confcascade.bench.collecting.collect import collect as collect_all
    from confcascade.bench.collecting.grid import stages_to_ask
    from confcascade.bench.questions import read_examples
    from confcascade.bench.questions.prompts import prompt_from
    from confcascade.bench.questions.splitting import sample
    from confcascade.bench.recording.provenance import Noted, bind, identity_of
    from confcascade.bench.recording.writer import RecordingWriter
    from confcascade.cascade_file import CascadeFile
    from confcascade.decoding import asked_with

    console = Console(stderr=True)
    file = CascadeFile.load(cascade)
    examples = list(read_examples(data, data_format, part=part))
    if limit is not None:
        examples = sample(examples, limit)
    judged = grader_for(grader, examples)
    with file.at("prompt") if prompt is None and file.prompt is not None else contextlib.nullcontext():
        asked = prompt_from(prompt or file.prompt or "plain")
    given = {"max_tokens": max_tokens, "temperature": temperature}
    parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    grid = _grid(thresholds)
    stages = stages_to_ask(file, grid)
    out.parent.mkdir(parents=True, exist_ok=True)
    with RecordingWriter(out) as writer:
        identity = identity_of(data, stages, asked, judged, parameters, part=part)
        run = {"command": ["confcascade", *sys.argv[1:]], "cascade_file": file.digest, "limit": limit}
        bind(out, identity, run, Noted.of(stages), prompt=asked)
        with stopping(console) as stop, Shown(console) as shown:
            collected = collect_all(
                examples,
                stages,
                writer,
                prompt=asked,
                grader=judged,
                max_usd=max_usd,
                max_concurrency=max_concurrency,
                rate_limits=file.rate_limits,
                retry_errors=retry_errors,
                keep_text=text,
                keep_thoughts=keep_thoughts,
                stop=stop,
                progress=shown,
                ask_all=_engine(engine, file, grader, grid),
                **parameters,
            )
    how = {}
    for stage in stages:
        by_itself = {"temperature": 0.0} if stage.model.capability.local else {}  # a local model is greedy
        settings = by_itself | asked_with(stage.model, stage.decoding, parameters)
        refused = getattr(stage.model, "refused", ())  # its answers came about without
        how[stage.model.name] = {
            name: value for name, value in settings.items() if name != "temperature" or name not in refused
        }
    _report(collected, _following(out, cascade, file), max_usd, how)
    failed = any(tally.n and tally.errors == tally.n for tally in collected.tallies.values())
    raise typer.Exit(EXIT["failing" if failed and collected.ended == "complete" else collected.ended])


def _grid(told: str | None) -> list[Threshold]:
    """The thresholds of an option, each once."""
    if told is None:
        return []
    found: list[Threshold] = []
    for text in told.split(","):
        try:
            found.append(threshold(text.strip()))
        except ValueError as error:
            raise ConfigurationError(f"--thresholds '{told}': {error}.") from error
    if len(set(found)) < len(found):
        raise ConfigurationError(f"--thresholds '{told}' has one twice.")
    return found


def _engine(name: str, file: CascadeFile, grader: str | None, grid: Sequence[Threshold]) -> AskAll:
    from confcascade.bench.collecting.collect import collect_rows

    if name == "here":
        return collect_rows
    from confcascade.bench.collecting.ray import on_ray
    from confcascade.graders import grader_from_string

    return on_ray(file, functools.partial(grader_from_string, grader or "choice"), grid)


def _report(collected: Collected, following: str, max_usd: float | None, how: Mapping[str, Mapping[str, Any]]) -> None:
    console = Console()
    console.print(_table(collected.tallies))
    for told, models in _decoding(how).items():
        named = "" if len(models) == len(how) else f" ({', '.join(models)})"
        console.print(f"Answers{named}: {told}.", highlight=False, soft_wrap=True, markup=False)
    others = {model: used for model, used in collected.used.items() if model not in collected.tallies}
    for model, used in others.items():  # a judge, say
        console.print(f"{model}, asked by the grader or a signal: {used.total_tokens:,} tokens.", highlight=False)
    said = {
        "complete": "",
        "stopped": f"Stopped with {collected.left} rows to go.",
        "budget": f"The next call might have gone beyond ${max_usd}: {usd_told(collected.spent_usd)} are spent, "
        f"{collected.left} rows to go. Raise --max-usd to go on.",
        "failing": f"{collected.problem.rstrip('.')}. {collected.left} rows to go.",
    }[collected.ended]
    if said:
        console.print(said, highlight=False, soft_wrap=True, markup=False)
        if collected.ended != "budget" and collected.left:
            console.print("The same command goes on where it was.", highlight=False)
    for model, tally in collected.tallies.items():
        for name, count in tally.unscored.items():
            why = f", at last because {tally.why_unscored[name]}" if tally.why_unscored[name] else ""
            told = f"{model}: no {name} for {count} of {tally.n - tally.errors} answers{why}."
            console.print(told, highlight=False, soft_wrap=True, markup=False)
        if tally.errors and tally.last_error not in collected.problem:
            told = f"{model}: {errors_told(tally.errors)}, at last {tally.last_error}"
            console.print(told, highlight=False, soft_wrap=True, markup=False)
    for model, tally in collected.tallies.items():
        if tally.n and tally.errors == tally.n:
            told = (
                f"{model} answered no question, so this recording cannot be evaluated: see the error above. Try one "
                "question with `confcascade ask`, and look at its server, its key and the length of its prompts."
            )
            console.print(told, highlight=False, soft_wrap=True, markup=False)
    if any(tally.errors for tally in collected.tallies.values()):
        console.print("Rows with errors are asked again with --retry-errors.", highlight=False)
    if following and not said and all(tally.graded for tally in collected.tallies.values()):
        console.print(f"Next: {following}", highlight=False, soft_wrap=True, markup=False)


def _decoding(how: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """How answers came about, in words, and the models whose did."""
    from confcascade.decoding import Decoding

    told: dict[str, list[str]] = {}
    for model, settings in how.items():
        told.setdefault(Decoding(**settings).describe(), []).append(model)
    return told


def _table(tallies: Mapping[str, Tally]) -> Table:
    """What stands nowhere but as nothing (no dollars, no errors) has no column: names need the room."""
    from rich.table import Table

    rows = []
    for model, tally in tallies.items():
        answered = tally.n - tally.errors
        told = {
            "model": model,
            "asked": f"{tally.n}/{tally.wanted}",
            "accuracy": "-" if tally.accuracy is None else f"{tally.accuracy:.1%}",
            "refused": f"{tally.refused / answered:.1%}" if answered else "-",
            "no grade": str(answered - tally.graded or ""),
            "errors": str(tally.errors or ""),
            "tokens": f"{tally.usage.total_tokens:,}" + ("~" if tally.usage.estimated else ""),
            "usd": usd_told(tally.usd),
            "latency": "-" if tally.latency_s is None else f"{tally.latency_s * 1000:.0f} ms",
        }
        rows.append(told)
    shown = [name for name in rows[0] if any(told[name] for told in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in shown:
        first = name == "model"
        header = name.replace(" ", "\n")
        table.add_column(header, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for told in rows:
        table.add_row(*(escape(told[name]) for name in shown))
    return table


def _following(out: Path, cascade: Path, file: CascadeFile) -> str:
    """The command that evaluates the recording: by the file's thresholds, or by some, where it has none.

    Answers that were written step by step are not replayed.
    """
    if file.mode == "stepwise":
        return ""
    given = list(file.thresholds.values())[:-1]
    told = ["confcascade", "evaluate", str(out)]
    if all(given):
        return shlex.join([*told, "--cascade", str(cascade)])
    names = dict.fromkeys(signal.name for stage in file.make_stages()[:-1] for signal in stage.signals)
    return shlex.join([*told, *(part for name in names for part in ("--threshold", f"{name}=0.9"))])
