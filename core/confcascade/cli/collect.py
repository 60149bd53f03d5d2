"""``confcascade collect``."""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.table import Table

    from confcascade.cascade_file import CascadeFile
    from confcascade.evaluation.collect import AskAll, Collected, Tally
    from confcascade.evaluation.examples import Example
    from confcascade.evaluation.graders import Grader
    from confcascade.evaluation.recordings import Row

EXIT = {"complete": 0, "failing": 1, "budget": 3, "stopped": 130}
_LINE_EVERY_S = 10.0  # where there is no terminal to draw bars on


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
    data_format: Annotated[str, typer.Option("--format", help="auto, own, mmlu, gpqa, popqa, gsm8k or arc.")] = "auto",
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
    max_concurrency: Annotated[int, typer.Option(min=1, help="Most calls to APIs at a time.")] = 16,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 is greedy. By default an API's own; local models are greedy.")
    ] = None,
    retry_errors: Annotated[bool, typer.Option(help="Ask again where the recording has an error.")] = False,
    text: Annotated[bool, typer.Option(help="Keep prompts, references, answers and their tokens.")] = True,
    engine: Annotated[
        Literal["here", "ray"],
        typer.Option(help="Who asks: this process, or the workers of the Ray cluster that RAY_ADDRESS names."),
    ] = "here",
) -> None:
    """Ask every model of a cascade every question, once, and record answers, grades, signals, tokens and times.

    The recording is what thresholds are chosen from and cascades are judged on, without asking anyone again. A row is
    kept as soon as it is there: after Ctrl-C, a crash or a kill, the same command goes on where it was. Models behind
    APIs are asked at the pace that the file's `rate_limit` allows, and again after errors that pass.

    Ends with 0 when all is asked, 3 at the cap of --max-usd, 130 after Ctrl-C, and 1 if a model fails time after time.

    An example with the bundled models, without a network:

        printf 'models:\\n- bundled:small\\n- bundled:large\\n' > cascade.yaml

        echo '{"question": "Compute 13+48.", "reference": "61"}' > questions.jsonl

        confcascade collect questions.jsonl -o rec.jsonl --cascade cascade.yaml --grader numeric
    """
    from confcascade.cascade_file import CascadeFile
    from confcascade.evaluation.collect import collect as collect_all
    from confcascade.evaluation.collect import recorded_stages, sample
    from confcascade.evaluation.datasets import read_examples
    from confcascade.evaluation.prompts import prompt_from
    from confcascade.evaluation.provenance import Noted, bind, identity_of
    from confcascade.evaluation.recordings import RecordingWriter

    console = Console(stderr=True)
    file = CascadeFile.load(cascade)
    examples = list(read_examples(data, data_format, part=part))
    if limit is not None:
        examples = sample(examples, limit)
    judged = _grader(grader, examples)
    with file.at("prompt") if prompt is None and file.prompt is not None else contextlib.nullcontext():
        asked = prompt_from(prompt or file.prompt or "plain")
    given = {"max_tokens": max_tokens, "temperature": temperature}
    parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    stages = recorded_stages(file.stages())
    out.parent.mkdir(parents=True, exist_ok=True)
    with RecordingWriter(out) as writer:
        identity = identity_of(data, stages, asked, judged, parameters, part=part)
        run = {"command": ["confcascade", *sys.argv[1:]], "cascade_file": file.digest, "limit": limit}
        bind(out, identity, run, Noted.of(stages), prompt=asked)
        with _stopping(console) as stop, _Shown(console) as shown:
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
                stop=stop,
                progress=shown,
                ask_all=_engine(engine, file, grader),
                **parameters,
            )
    _report(collected, _following(out, cascade, file), max_usd)
    raise typer.Exit(EXIT[collected.ended])


def _engine(name: str, file: CascadeFile, grader: str | None) -> AskAll:
    from confcascade.evaluation.collect import collect_rows

    if name == "here":
        return collect_rows
    from confcascade.evaluation.graders import grader_from_string
    from confcascade.evaluation.ray_collect import on_ray

    return on_ray(file, functools.partial(grader_from_string, grader or "choice"))


def _grader(name: str | None, examples: list[Example]) -> Grader:
    from confcascade.errors import ConfigurationError
    from confcascade.evaluation.graders import grader_from_string

    if name is None and not all(example.choices for example in examples):
        raise ConfigurationError(
            "Name a grader with --grader, for not every question has choices: such as normalized (the same text), "
            "contains (one of the references is in it) or numeric."
        )
    return grader_from_string(name or "choice")


@contextlib.contextmanager
def _stopping(console: Console) -> Iterator[threading.Event]:
    """Ctrl-C, or being asked to end, lets what is under way end first; a second Ctrl-C does not."""
    stop = threading.Event()
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def restore() -> None:
        for number, handler in before:
            signal.signal(number, handler)

    def handle(*_: Any) -> None:
        stop.set()
        restore()
        console.print("Ending: what is under way is finished and kept. Again, and it is dropped.")

    for number, _ in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


class _Shown:
    """Progress: a bar for each model, or a line every ten seconds where there is no terminal."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._began = self._told = time.monotonic()
        self._at_first: dict[str, int] = {}

    def __enter__(self) -> _Shown:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, state: Collected, row: Row | None) -> None:
        if row is None:
            self._begin(state)
            return
        elapsed = max(1e-9, time.monotonic() - self._began)
        if self._console.is_terminal:
            tally = state.tallies[row.model]
            self._bars.update(
                self._tasks[row.model],
                completed=tally.n,
                rate=f"{(tally.n - self._at_first[row.model]) / elapsed:.1f}/s",
                more=f"{_usd(tally.usd)}  {_errors(tally.errors)}".strip(),
            )
        elif time.monotonic() - self._told >= _LINE_EVERY_S:
            self._told = time.monotonic()
            rate = state.rows / elapsed
            self._line(state, f"{rate:.1f}/s, about {_duration(state.left / rate)} left")

    def _begin(self, state: Collected) -> None:
        self._began = self._told = time.monotonic()
        self._at_first = {model: tally.n for model, tally in state.tallies.items()}
        for model, tally in state.tallies.items():
            self._tasks[model] = self._bars.add_task(
                model, total=tally.wanted, completed=tally.n, rate="", more=_errors(tally.errors)
            )
        if not self._console.is_terminal:
            self._line(state, f"{state.left} to ask")

    def _line(self, state: Collected, how: str) -> None:
        done, wanted = (sum(getattr(tally, name) for tally in state.tallies.values()) for name in ("n", "wanted"))
        errors = sum(tally.errors for tally in state.tallies.values())
        parts = [f"{done}/{wanted} rows", how, _usd(state.spent_usd), _errors(errors)]
        self._console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)


def _usd(usd: float | None) -> str:
    return "" if usd is None else f"${usd:.4f}" if usd < 1 else f"${usd:.2f}"


def _errors(errors: int) -> str:
    return f"{errors} error{'' if errors == 1 else 's'}" if errors else ""


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _report(collected: Collected, following: str, max_usd: float | None) -> None:
    console = Console()
    console.print(_table(collected.tallies))
    others = {model: used for model, used in collected.used.items() if model not in collected.tallies}
    for model, used in others.items():  # a judge, say
        console.print(f"{model}, asked by the grader or a signal: {used.total_tokens:,} tokens.", highlight=False)
    said = {
        "complete": "",
        "stopped": f"Stopped with {collected.left} rows to go.",
        "budget": f"The next call might have gone beyond ${max_usd}: {_usd(collected.spent_usd)} are spent, "
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
            told = f"{model}: {_errors(tally.errors)}, at last {tally.last_error}"
            console.print(told, highlight=False, soft_wrap=True, markup=False)
    if any(tally.errors for tally in collected.tallies.values()):
        console.print("Rows with errors are asked again with --retry-errors.", highlight=False)
    if not said and all(tally.graded for tally in collected.tallies.values()):
        console.print(f"Next: {following}", highlight=False, soft_wrap=True, markup=False)


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
            "usd": _usd(tally.usd),
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
    """The command that evaluates the recording: by the file's thresholds, or by some, where it has none."""
    given = list(file.thresholds.values())[:-1]
    told = ["confcascade", "evaluate", str(out)]
    if all(given):
        return shlex.join([*told, "--cascade", str(cascade)])
    names = dict.fromkeys(signal.name for stage in file.stages()[:-1] for signal in stage.signals)
    return shlex.join([*told, *(part for name in names for part in ("--threshold", f"{name}=0.9"))])
