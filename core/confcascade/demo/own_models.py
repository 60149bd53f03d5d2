"""What ``confcascade demo --models`` shows: shipped questions, asked live through a cascade of one's own models."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from confcascade.asks import LanguageModel
from confcascade.building import build_stages
from confcascade.cascade import Cascade
from confcascade.cost import Prices
from confcascade.demo.asking import P_T, Answered, answer, known_cost
from confcascade.demo.comparison import Comparison, Contender, amount, ready_to_plot
from confcascade.demo.conclusion import caution, drafts_of, next_steps, verdict
from confcascade.demo.loading import check_models, load_models, quiet, size_of
from confcascade.demo.questions import shipped_questions
from confcascade.demo.thresholds import LISTED, AtThreshold, at_thresholds, thresholds_table
from confcascade.errors import ConfigurationError
from confcascade.graders.example import LETTERS, Example
from confcascade.stage import Stage
from confcascade.types import Cost

__all__ = ["ask_all", "short_names", "show_conclusion", "show_own_models", "stages_of"]

# of a console: for the time in which it is open, what is called with what is done, how much of it, and of how much
Progress: TypeAlias = Callable[[Console], AbstractContextManager[Callable[[str, int, int], None]]]

WIDEST = 120  # columns, beyond which a line is hard to follow
_LONGEST = 160  # characters shown of an answer: some go on and on
# the quantisation and the kind of training that a file's name ends with
_ENDING = re.compile(r"([-_.](instruct|it|chat))?([-_.](i?q\d\w*|f16|f32|bf16))?$", re.IGNORECASE)


def show_own_models(
    models: Sequence[str],
    threshold: float,
    *,
    questions: int | None = None,
    prices: Mapping[str, Prices] | None = None,
    plot: Path | None = None,
    progress: Progress,
) -> None:
    """Ask a cascade of the models the shipped questions one by one, then say what it saved and what it lost.

    Args:
        models: Model strings, smallest first.
        threshold: Of P(T).
        questions: How many are asked at most; by default all.
        prices: Dollars per million tokens, by the models' names.
        plot: Where to write a PNG of accuracy over cost.
        progress: A bar for what is asked after the cascade.

    Raises:
        ConfigurationError: If the models cannot be a cascade, or prices are of none of them.
        CascadeExhaustedError: If the last model fails.
    """
    started = time.perf_counter()
    console = Console()
    console = Console(width=min(console.width, WIDEST))
    quiet()
    check_models(models)
    ready_to_plot(plot)
    stages = stages_of(load_models(models, console), threshold, prices or {})
    answered, compared = ask_all(console, stages, shipped_questions()[:questions], progress)
    curve = show_conclusion(console, stages, answered, compared)
    console.print(f"{caution(len(answered))}\n", highlight=False)
    console.print(escape(next_steps(models, threshold)), highlight=False, soft_wrap=True)
    if plot is not None:
        compared.plot(plot, [(row.share, row.right / len(answered), f"{row.threshold:g}") for row in curve])
        console.print(f"Plot written to {plot}")
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


def stages_of(models: Sequence[LanguageModel], threshold: float, prices: Mapping[str, Prices]) -> list[Stage]:
    """A cascade by P(T), with prices.

    Raises:
        ConfigurationError: If prices are of no model, or not of all, or the last model's are 0.
    """
    stages = build_stages(models=models, threshold=threshold)
    names = [stage.model.name for stage in stages]
    if unknown := sorted(set(prices) - set(names)):
        raise ConfigurationError(f"There are prices for '{unknown[0]}'; the models are {', '.join(names)}.")
    if prices and (unpriced := [name for name in names if name not in prices]):
        raise ConfigurationError(
            f"Costs in dollars need the prices of every model; those of '{unpriced[0]}' are missing. A model that "
            "costs nothing has the price 0."
        )
    if prices and prices[names[-1]].input_usd == prices[names[-1]].output_usd == 0:
        raise ConfigurationError(f"'{names[-1]}' is the last model and costs nothing, so a cascade can save nothing.")
    return [replace(stage, prices=prices.get(stage.model.name)) for stage in stages]


def ask_all(
    console: Console, stages: Sequence[Stage], examples: Sequence[Example], progress: Progress
) -> tuple[list[Answered], Comparison]:
    """Ask the cascade question by question, and show each as it is answered; then what its largest model was spared.

    Raises:
        ModelError, CascadeExhaustedError: If the last model fails.
    """
    names = short_names([stage.model.name for stage in stages])
    _print_stages(console, stages, names)
    rows, cascade = _Rows(console, names), Cascade(stages)
    answered = []
    for number, example in enumerate(examples, start=1):
        answered.append(answer(cascade, example))
        rows.print(f"{number}/{len(examples)}", answered[-1])
    largest = _largest_alone(console, stages, names[-1], answered, progress)
    in_dollars = stages[-1].prices is not None
    return answered, _compared(answered, largest, names, in_dollars=in_dollars)


def show_conclusion(
    console: Console, stages: Sequence[Stage], answered: Sequence[Answered], compared: Comparison
) -> list[AtThreshold]:
    """The cascade compared with one model only, in a table and in words; of two models, other thresholds, too."""
    *smaller, last = short_names([stage.model.name for stage in stages])
    spent = amount(compared.largest.spent(compared.unit), compared.unit)
    console.print(compared.table(f"{len(answered)} questions"))
    console.print(f"{compared.unit_name} relative to {escape(last)} alone, {spent}.\n", highlight=False)
    for stage, name in enumerate(smaller):
        console.print(escape(drafts_of(answered, stage, name)), highlight=False)
    console.print(f"\n[bold]{escape(verdict(compared, models=len(stages)))}[/]\n", highlight=False)
    curve = _curve(compared, answered, stages[0].thresholds[P_T]) if len(stages) == 2 else []
    if curve:
        console.print(thresholds_table(curve, smaller[0]))
        console.print("A threshold that was chosen by looking back promises nothing.\n")
    return curve


def short_names(names: Sequence[str]) -> list[str]:
    """Names without quantisation and "Instruct" at their ends, where they still differ without.

    >>> short_names(["SmolLM2-135M-Instruct.Q4_1", "Qwen2.5-0.5B-Instruct.Q4_K_M"])
    ['SmolLM2-135M', 'Qwen2.5-0.5B']
    """
    short = [_ENDING.sub("", name) or name for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


# ---------------------------------------------------------------------- what is printed of each question


def _print_stages(console: Console, stages: Sequence[Stage], names: Sequence[str]) -> None:
    console.print(f"\n[bold]A cascade of {len(stages)} models[/]")
    table = Table.grid(padding=(0, 2))
    for stage, name in zip(stages, names, strict=True):
        rule = " and ".join(f"{signal} >= {threshold}" for signal, threshold in stage.thresholds.items())
        does = f"keeps its answer if {rule}, else escalates" if rule else "answers the rest"
        table.add_row(f"  {escape(name)}", size_of(stage.model.architecture), does)
    console.print(table)
    console.print("  [dim]p_t: the model's own probability of its answer, exp(mean log-probability of its tokens)[/]\n")


class _Rows:
    """Prints a question, and a line for each model that was asked: answer, right or wrong, why, and what it cost."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._names = names

    def print(self, number: str, answered: Answered) -> None:
        """One question."""
        letters = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, answered.example.choices, strict=False)]
        question = "\n".join([answered.example.question, *([", ".join(letters)] if letters else [])])
        asked = Table.grid(padding=(0, 2))
        asked.add_row(f"[dim]{number}[/]", escape(question))
        self._console.print(asked, highlight=False)
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=1)
        table.add_column(width=max(map(len, self._names)), overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        table.add_column(width=5)
        table.add_column(width=18, overflow="fold")
        table.add_column(width=10, justify="right")
        attempts = answered.outcome.record.attempts
        for attempt, response, right in zip(attempts, answered.outcome.responses, answered.right, strict=True):
            colour = "green" if right else "red"
            table.add_row(
                "",
                escape(self._names[attempt.stage]),
                escape(attempt.reason if response is None else _shortened(response.answer)),
                "" if response is None else f"[{colour}]{'right' if right else 'wrong'}[/]",
                "no answer" if response is None else escape(attempt.reason),
                "" if attempt.error is not None else _cost(attempt.cost),
                style="" if attempt.decision == "accept" else "dim",
            )
        if not answered.right[-1]:
            table.add_row("", "", f"[dim]it is {escape(answered.example.references[0])}[/]")
        self._console.print(table)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _cost(cost: Cost) -> str:
    if cost.usd is not None:
        return amount(cost.usd, "usd")
    return amount(cost.tokens, "tokens") if cost.flops is None else amount(cost.flops, "flops")


# ---------------------------------------------------------------------- beside one model alone


def _largest_alone(
    console: Console,
    stages: Sequence[Stage],
    name: str,
    answered: Sequence[Answered],
    progress: Progress,
) -> Contender:
    """The largest model's answers to all questions: those that it gave in the cascade, and the others, asked now."""
    last = len(stages) - 1
    spared = [each for each in answered if each.outcome.stage != last]
    given = {}
    if spared:
        questions = f"{len(spared)} questions" if len(spared) > 1 else "question"
        console.print(f"\nFor comparison, {escape(name)} answers the {questions} that it was spared.")
        alone = Cascade(stages[-1:])
        with progress(console) as told:
            for done, each in enumerate(spared, start=1):
                given[each.example.id] = answer(alone, each.example)
                told(name, done, len(spared))
    console.print()
    own = [given.get(each.example.id, each) for each in answered]
    costs = tuple(each.outcome.record.cost_answering_stage for each in own)
    return Contender(name, tuple(each.right[-1] for each in own), costs, costs)


def _curve(compared: Comparison, answered: Sequence[Answered], threshold: Any) -> list[AtThreshold]:
    """The cascade at usual thresholds and at the one that was given, where the smaller model has scores."""
    drafts = [each.outcome.record.attempts[0].scores.get(P_T) for each in answered]
    scores = [None if score is None else score.value for score in drafts]
    if all(score is None for score in scores):
        return []
    return at_thresholds(compared, scores, sorted({*LISTED, threshold}))


def _compared(
    answered: Sequence[Answered], largest: Contender, names: Sequence[str], *, in_dollars: bool
) -> Comparison:
    first = tuple(known_cost(each.outcome.record.attempts[0]) for each in answered)
    smallest = Contender(names[0], tuple(each.right[0] for each in answered), first, first)
    cascade = Contender(
        "cascade",
        tuple(each.right[-1] for each in answered),
        tuple(each.cost for each in answered),
        tuple(each.outcome.record.cost_answering_stage for each in answered),
    )
    return Comparison.of(smallest, cascade, largest, in_dollars=in_dollars)
