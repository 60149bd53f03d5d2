"""``confcascade ask``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from confcascade.errors import ConfcascadeError, ConfigurationError
from confcascade.trace import Attempt, Record, Step, trace
from confcascade.types import Cost, Message

if TYPE_CHECKING:
    from confcascade.attempts import Outcome
    from confcascade.cascade import Cascade


def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from the standard input.")],
    cascade: Annotated[Path | None, typer.Option(help="The cascade file, YAML or TOML.", dir_okay=False)] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A fitted policy, in the place of the file's thresholds.", exists=True, dir_okay=False),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="With a policy of thresholds for each group of questions: which group.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message, in the place of the prompt's own.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="How the question is put: a prompt's name; by default the file's, or plain.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(help="A file with the text to answer from.", exists=True, dir_okay=False)
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="An answer to choose from; repeat, for A, B and so on.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="What the question is about, for prompts that say so.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="0 is greedy; by default the file's or the policy's, else greedy."),
    ] = None,
    stream: Annotated[bool, typer.Option(help="Show the answer as it is written.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer and its record as JSON.")] = False,
) -> None:
    """Ask one question through a cascade file: the answer, who gave it, and why.

    The least that a cascade file needs, here of the bundled models:

    \b
        models:
          - bundled:small
          - bundled:large
        threshold: 0.9

    Kept as cascade.yaml:

    \b
        confcascade ask "What is the capital of Velmar?" --cascade cascade.yaml

    Ends with the code 0, with 1 if no model could answer, with 2 if the cascade cannot work.
    """
    if cascade is None:
        raise ConfigurationError(
            "Which cascade? Give --cascade FILE; the least that the file needs are two `models` and a `threshold`. "
            "`confcascade ask --help` shows one."
        )
    from confcascade.bench.questions.prompts import prompt_from
    from confcascade.cascade_file import CascadeFile
    from confcascade.graders.example import Example
    from confcascade.stepwise_cascade import StepwiseCascade

    console = Console()
    read = CascadeFile.load(cascade)
    text = None if context is None else _text(context)
    example = Example(_question(question), choices=tuple(choice or ()), context=text, group=subject)
    with read.at("prompt") if prompt is None and read.prompt is not None else contextlib.nullcontext():
        put = prompt_from(prompt or read.prompt or "plain")
    try:
        messages = list(put.messages(example))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} Here --subject, --choice and --context give such values.") from error
    if system is not None:
        messages = [Message("system", system), *(message for message in messages if message.role != "system")]
    # with a system message of its own the prompt is another, whose version nobody knows
    answering = read.cascade(policy=policy, group=group, prompt_version=put.version if system is None else None)
    parameters = {"max_tokens": max_tokens, "temperature": temperature}
    with trace() as asked:
        try:
            outcome = _answer(answering, messages, parameters, show=stream and not as_json)
        except Exception as error:  # a model's own may be of any type
            _failed(console, error, asked.records[-1].attempts if asked.records else (), as_json)
            raise typer.Exit(1) from error
    if as_json:
        _print_json({"answer": outcome.text, "record": outcome.record.as_dict()})
        return
    if not stream:
        typer.echo(outcome.text)
    # the large model alone answers what is not written in turn, such as an image
    in_turn = isinstance(answering, StepwiseCascade) and bool(outcome.record.steps)
    _explain(console, outcome.record, len(answering.stages), in_turn=in_turn)


def _question(given: str) -> str:
    question = sys.stdin.read().rstrip("\n") if given == "-" else given
    if not question.strip():
        raise ConfigurationError("The question is empty.")
    return question


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The context '{path}' cannot be read: it is not UTF-8.") from error


def _answer(cascade: Cascade, messages: Sequence[Message], parameters: Mapping[str, Any], show: bool) -> Outcome:
    from confcascade.attempts import Outcome

    if not show:
        return cascade.run(messages, **parameters)
    for item in cascade.stream(messages, **parameters):
        if isinstance(item, Outcome):
            typer.echo()
            return item
        typer.echo(item.text, nl=False)
    raise AssertionError("a stream ends with its outcome")


def _print_json(told: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(told, ensure_ascii=False, indent=1))


# ---------------------------------------------------------------------- what happened


def _explain(console: Console, record: Record, stages: int, *, in_turn: bool) -> None:
    console.print(_attempts(record.attempts))
    if record.steps:
        console.print(_steps(record.steps))
    if in_turn:
        _explain_turns(console, record)
        return
    of = f"[bold]{escape(str(record.answered_by))}[/], model {(record.stage or 0) + 1} of {stages}"
    console.print(
        f"Answered by {of}"
        + (", an answer that had been rejected: every later model failed" if record.degraded else "")
    )
    console.print(f"Cost, every model that ran: {_cost(record.cost)}")
    console.print(f"      answering stage only: {_cost(record.cost_answering_stage)}")


def _explain_turns(console: Console, record: Record) -> None:
    kept = Counter(step.author for step in record.steps if step.kept)
    wrote = ", ".join(f"[bold]{escape(author)}[/] {count}" for author, count in kept.items())
    console.print(
        f"Steps of the answer: {wrote}"
        + ("; the larger model failed, and the smaller one wrote the rest" if record.degraded else "")
    )
    console.print(f"Cost, every model that ran: {_cost(record.cost)}")
    console.print(f"      what was kept only:   {_cost(record.cost_answering_stage)}")


def _failed(console: Console, error: Exception, attempts: Sequence[Attempt], as_json: bool) -> None:
    """No model answered: why, and what was tried. What the error says is for whoever asked, at their own terminal."""
    told = str(error) if isinstance(error, ConfcascadeError) else f"{type(error).__name__}: {error}"
    if as_json:
        _print_json({"answer": None, "error": told, "attempts": [attempt.as_dict() for attempt in attempts]})
        return
    if attempts:
        console.print(_attempts(attempts))
    Console(stderr=True).print(f"[bold red]No answer:[/] {escape(told)}", highlight=False, soft_wrap=True)


def _attempts(attempts: Sequence[Attempt]) -> Table:
    table = Table("model", "decision", "why", "tokens", "cost", "seconds")
    for attempt in attempts:
        table.add_row(
            escape(attempt.model),
            attempt.decision,
            escape(attempt.reason),
            f"{attempt.usage.input_tokens} + {attempt.usage.output_tokens}"
            + (" est." if attempt.usage.estimated else ""),
            _work(attempt.cost),
            f"{attempt.latency_s:.2f}",
        )
    return table


def _steps(steps: Sequence[Step]) -> Table:
    """Who wrote which step, and why; one that was thrown away stands before the one in its place."""
    table = Table("step", "by", "", "why", "tokens")
    for step in steps:
        redone = "" if step.kept else "[yellow]thrown away[/]"
        table.add_row(str(step.index + 1), escape(step.author), redone, escape(step.reason), str(step.tokens))
    return table


def _work(cost: Cost) -> str:
    """Dollars and compute, as far as they are known."""
    known = [] if cost.usd is None else [f"${cost.usd:.6f}"]
    if cost.flops is not None:
        known.append(f"{cost.flops / 1e6:.1f} MFLOP" if cost.flops < 1e9 else f"{cost.flops / 1e9:.1f} GFLOP")
    return ", ".join(known) or "unknown"


def _cost(cost: Cost) -> str:
    return f"{cost.tokens} tokens, {_work(cost)}, {cost.seconds:.2f} s"
