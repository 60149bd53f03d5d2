"""What ``confcascade demo --models`` shows: shipped questions, asked live through a cascade of the user's own models."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from confcascade.building import build_stages
from confcascade.cascade import Cascade
from confcascade.cost import Prices
from confcascade.demo.asking import Answered, answer
from confcascade.demo.comparison import Comparison, Contender, amount
from confcascade.demo.conclusion import drafts_of, next_steps, verdict
from confcascade.demo.loading import check_models, load_models, quiet, size_of
from confcascade.demo.questions import shipped_questions
from confcascade.demo.thresholds import LISTED, AtThreshold, at_thresholds, thresholds_table
from confcascade.errors import ConfigurationError
from confcascade.graders.example import LETTERS
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import Stage
from confcascade.types import Cost

__all__ = ["short_names", "show_own_models"]

WIDEST = 120  # columns, beyond which a line is hard to follow
P_T = TokenProbability().name
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
    progress: Callable[[Console], AbstractContextManager[Callable[[str, int, int], None]]],
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
    stages = _stages(load_models(models, console), threshold, prices or {})
    examples = shipped_questions()[:questions]
    names = short_names([stage.model.name for stage in stages])
    _print_stages(console, stages, names)
    rows = _Rows(console, names)
    cascade, answered = Cascade(stages), []
    for number, example in enumerate(examples, start=1):
        answered.append(answer(cascade, example))
        rows.print(f"{number}/{len(examples)}", answered[-1])
    largest = _largest_alone(console, stages, names[-1], answered, progress)
    compared = _compared(answered, largest, names, in_dollars=bool(prices))
    console.print(compared.table(f"{len(answered)} questions"))
    console.print(
        f"{compared.unit_name} relative to {escape(names[-1])} alone, {amount(largest.spent(compared.unit), compared.unit)}.\n",
        highlight=False,
    )
    for stage, name in enumerate(names[:-1]):
        console.print(escape(drafts_of(answered, stage, name)), highlight=False)
    console.print(f"\n[bold]{escape(verdict(compared, models=len(stages)))}[/]\n", highlight=False)
    curve = _curve(compared, answered, threshold) if len(stages) == 2 else []
    if curve:
        console.print(thresholds_table(curve, names[0]))
        console.print("A threshold that was chosen by looking back promises nothing.\n")
    console.print(escape(next_steps(len(answered), models, threshold)), highlight=False, soft_wrap=True)
    if plot is not None:
        compared.plot(plot, [(row.share, row.right / len(answered), f"{row.threshold:g}") for row in curve])
        console.print(f"Plot written to {plot}")
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


def _stages(models: Sequence[object], threshold: float, prices: Mapping[str, Prices]) -> list[Stage]:
    stages = build_stages(models=models, threshold=threshold)
    names = [stage.model.name for stage in stages]
    if unknown := sorted(set(prices) - set(names)):
        raise ConfigurationError(f"There are prices for '{unknown[0]}'; the models are {', '.join(names)}.")
    if prices and (unpriced := [name for name in names if name not in prices]):
        raise ConfigurationError(
            f"Costs in dollars need the prices of every model; those of '{unpriced[0]}' are missing. "
            f"A model of your own may cost nothing: --prices {unpriced[0]}=0"
        )
    return [replace(stage, prices=prices.get(stage.model.name)) for stage in stages]


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
        table.add_column(width=16, overflow="fold")
        table.add_column(width=10, justify="right")
        attempts = answered.outcome.record.attempts
        for attempt, response, right in zip(attempts, answered.outcome.responses, answered.right, strict=True):
            colour = "green" if right else "red"
            table.add_row(
                "",
                escape(self._names[attempt.stage]),
                "" if response is None else escape(_shortened(response.answer)),
                "" if response is None else f"[{colour}]{'right' if right else 'wrong'}[/]",
                escape(attempt.reason),
                _cost(attempt.cost),
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
    progress: Callable[[Console], AbstractContextManager[Callable[[str, int, int], None]]],
) -> Contender:
    """The largest model's answers to all questions: those that it gave in the cascade, and the others, asked now."""
    last = len(stages) - 1
    spared = [each for each in answered if each.outcome.stage != last]
    given = {}
    if spared:
        console.print(f"\nFor comparison, {escape(name)} answers the {len(spared)} questions that it was spared.")
        alone = Cascade(stages[-1:])
        with progress(console) as told:
            for done, each in enumerate(spared, start=1):
                given[each.example.id] = answer(alone, each.example)
                told(name, done, len(spared))
    console.print()
    own = [given.get(each.example.id, each) for each in answered]
    costs = tuple(each.outcome.record.cost_answering_stage for each in own)
    return Contender(name, tuple(each.right[-1] for each in own), costs, costs)


def _curve(compared: Comparison, answered: Sequence[Answered], threshold: float) -> list[AtThreshold]:
    """The cascade at usual thresholds and at the one that was given, where the smaller model has scores."""
    drafts = [each.outcome.record.attempts[0].scores.get(P_T) for each in answered]
    scores = [None if score is None else score.value for score in drafts]
    if all(score is None for score in scores):
        return []
    return at_thresholds(compared, scores, sorted({*LISTED, threshold}))


def _compared(
    answered: Sequence[Answered], largest: Contender, names: Sequence[str], *, in_dollars: bool
) -> Comparison:
    first = tuple(each.outcome.record.attempts[0].cost for each in answered)
    smallest = Contender(names[0], tuple(each.right[0] for each in answered), first, first)
    cascade = Contender.of("cascade", [each.right[-1] for each in answered], [each.outcome for each in answered])
    return Comparison.of(smallest, cascade, largest, in_dollars=in_dollars)
