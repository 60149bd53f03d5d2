"""``confcascade check``."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from confcascade.cli.progress import LINE_EVERY_S, duration
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from confcascade.bench.questions.prompts import Prompt
    from confcascade.cascade_file import CascadeFile
    from confcascade.diagnosis import Diagnosis, StageDiagnosis
    from confcascade.diagnosis.probing import Judged
    from confcascade.types import Cost, Usage

_COLOURS = {"fails": "red", "warning": "yellow", "note": "dim"}
_UNKNOWN = "cost unknown"
# what a user reads of the calls
_CALLS = {
    "prefill": "a pass over the prompt",
    "whole": "an answer",
    "thinking": "an answer at its own limit",
    "streamed": "a streamed answer",
    "cut": "an answer of one token",
    "continued": "the rest of an answer",
    "tools": "a tool call",
    "choices": "two answers at once",
}


def check(
    cascade: Annotated[Path, typer.Argument(help="The cascade file, YAML or TOML.", exists=True, dir_okay=False)],
    policy: Annotated[
        Path | None,
        typer.Option(help="A fitted policy, instead of the file's thresholds.", exists=True, dir_okay=False),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="With a policy of thresholds for each group of questions: which group.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="Ask this, put as the file's prompt says, with the limit that answers have live."),
    ] = None,
    typical: Annotated[
        str, typer.Option(metavar="READ,WRITTEN", help="Tokens of a typical query, for what it will cost.")
    ] = "500,100",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Ask each stage of a cascade a few tokens: what it can do, and what the cascade will therefore do.

    Each stage gets up to eight short calls: an answer of three words, whole and streamed, one that is cut after a
    token, a tool call, two answers at once; where the model can, a pass over the prompt, and the rest of an answer that
    was begun; and an answer at its own limit if it thinks. What comes back is judged by the stage's own signals.

    \b
    Warnings say what would go wrong in silence, such as
      - log-probabilities that are missing, constant, all zero, or of another text
      - a temperature that is left to the server, which then samples
      - thoughts before an answer of one letter, or that use up the limit
      - answers that were cut off and do not say so, limits that do not hold
      - usage that is not reported, so that costs are guesses

    \b
        confcascade check cascade.yaml
        confcascade check cascade.yaml --typical 2000,300 --question "Who is he?"

    Ends with the code 0, warnings or not, with 1 if a stage cannot work (its server is down, the key is wrong, the
    model unknown, or no answer of it can ever be kept), with 2 if the file cannot be a cascade.
    """
    from confcascade.cascade import Cascade
    from confcascade.cascade_file import CascadeFile
    from confcascade.diagnosis import diagnose
    from confcascade.graders.example import Example

    usage = _tokens(typical)
    read = CascadeFile.load(cascade)
    prompt = _prompt(read)
    messages = None if question is None else prompt.messages(Example(question))
    decides = policy is not None or read.policy is not None or _has_thresholds(read)
    deciding = partial(read.cascade, policy=policy, group=group, prompt_version=prompt.version)
    asked = deciding() if decides else read.make_stages()
    names = [stage.model.name for stage in (asked.stages if isinstance(asked, Cascade) else asked)]
    with _progress(names) as on_call:
        found = diagnose(asked, question=messages, typical=usage, on_call=on_call)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), ensure_ascii=False, indent=1))
    else:
        _show(Console(), found)
    raise typer.Exit(0 if found.works else 1)


def _has_thresholds(read: CascadeFile) -> bool:
    """Whether each stage but the last has them, which a file for collecting need not."""
    *judged, _ = read.signal_entries.items()
    return all(signals and {each.name for each in signals} <= set(read.thresholds[model]) for model, signals in judged)


def _tokens(text: str) -> Usage:
    from confcascade.types import Usage

    try:
        read, written = map(int, text.split(","))
    except ValueError:
        read = written = -1
    if read < 0 or written < 0:
        raise ConfigurationError(f"--typical takes two numbers of tokens, read and written: 500,100. Got '{text}'.")
    return Usage(read, written)


def _prompt(read: CascadeFile) -> Prompt:
    from confcascade.bench.questions.prompts import prompt_from

    with read.at("prompt") if read.prompt is not None else contextlib.nullcontext():
        return prompt_from(read.prompt or "plain")


# ---------------------------------------------------------------------- while it is asked


@contextlib.contextmanager
def _progress(names: Sequence[str]) -> Iterator[Any]:
    """On a terminal, what is asked right now; elsewhere a line every ten seconds, if it takes so long."""
    console = Console(stderr=True)
    over = threading.Event()
    now, began = [""], time.monotonic()

    def tick() -> None:
        while not over.wait(LINE_EVERY_S):
            console.print(f"{now[0]}, {duration(time.monotonic() - began)}", highlight=False, soft_wrap=True)

    if console.is_terminal:
        with console.status("") as status:
            yield lambda stage, what: status.update(escape(_asking(names, stage, what)))
        return
    ticking = threading.Thread(target=tick, name="confcascade-progress", daemon=True)
    ticking.start()
    try:
        yield lambda stage, what: now.__setitem__(0, _asking(names, stage, what))
    finally:
        over.set()
        ticking.join()


def _asking(names: Sequence[str], stage: int, what: str) -> str:
    return f"Asking {names[stage]} ({stage + 1} of {len(names)}) for {_CALLS.get(what, what)}"


# ---------------------------------------------------------------------- what came


def _show(console: Console, found: Diagnosis) -> None:
    for index in range(len(found.stages)):
        _show_stage(console, found, index)
    read, written = found.typical.input_tokens, found.typical.output_tokens
    console.print(f"One query is taken to be {read} tokens read and {written} written (--typical).", highlight=False)
    if found.works and (share := found.break_even) is not None:
        small, large = (stage.model for stage in found.stages)
        pays = (
            f"Such queries cost less than '{large}' alone once '{small}' keeps {share:.1%} of them."
            if share < 1
            else f"Asking '{small}' first costs as much as '{large}' alone: this cascade cannot save anything."
        )
        console.print(escape(pays), highlight=False)


def _show_stage(console: Console, found: Diagnosis, index: int) -> None:
    stage = found.stages[index]
    warned = [finding.level for finding in stage.findings].count("warning")
    works = f"[green]works[/]{f', [yellow]{warned} warning' + 's' * (warned > 1) + '[/]' if warned else ''}"
    place = f"{index + 1} of {len(found.stages)}"
    console.print(f"[bold]{escape(stage.model)}[/], {place}: {works if stage.works else '[red]cannot work[/]'}")
    rows = [(name, ability.how) for name, ability in stage.abilities.items()]
    rows += [(f"score {name}", _score(judged)) for name, judged in stage.scores.items()]
    rows += [("this check", _spent(stage)), ("one query", _typical(found, index)), ("so it", stage.then)]
    _show_rows(console, rows)
    for finding in stage.findings:
        _show_rows(console, [(finding.level, finding.text)], _COLOURS[finding.level])
    console.print()


def _show_rows(console: Console, rows: Sequence[tuple[str, str]], colour: str = "none") -> None:
    """Names and what is said of each, none of it cut: a model's name may be longer than the line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style=colour)
    grid.add_column(overflow="fold")
    for name, told in rows:
        grid.add_row(escape(name), escape(told))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False), highlight=False)


def _score(judged: Judged) -> str:
    if judged.value is None:
        return "none"
    passes = {None: "", True: ", which passes", False: ", which does not pass"}
    return f"{judged.value:.3g}{passes[judged.passed]}"


def _spent(stage: StageDiagnosis) -> str:
    usage = stage.usage
    if not usage.total_tokens:
        return f"no tokens, {stage.cost.seconds:.1f} s"
    guessed = " (estimated)" if usage.estimated else ""
    tokens = f"{usage.input_tokens} tokens read, {usage.output_tokens} written{guessed}"
    return f"{tokens}, {_worth(stage.cost)}, {stage.cost.seconds:.1f} s"


def _typical(found: Diagnosis, index: int) -> str:
    alone, together = _worth(found.stages[index].typical), _worth(found.answered_by(index))
    return f"{alone}, with the stages before it {together}" if index and alone != _UNKNOWN else alone


def _worth(cost: Cost) -> str:
    """In dollars where they are known, else in operations."""
    if cost.usd is not None:
        return f"${cost.usd:.6f}"
    if cost.flops is None:
        return _UNKNOWN
    return f"{cost.flops / 1e6:.1f} MFLOP" if cost.flops < 1e9 else f"{cost.flops / 1e9:.1f} GFLOP"
