"""A promise for one of a few whole cascades, each of which has answered every question itself.

Another threshold of a cascade that decides step by step makes another answer, so nothing can be replayed: each
configuration of a grid is recorded as a model of its own, beside the large model. Grid, order and test are fixed before
the answers are looked at, and all the questions are the proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.fitting.policy_file import made_from
from confcascade.bench.fitting.proof import losses
from confcascade.bench.metrics.significance import savings
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.costs import UNITS
from confcascade.bench.replay.policy import PolicyStage
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.guarantee import (
    Certificate,
    Examined,
    Promise,
    TestName,
    certify,
    examine,
    examples_needed_like,
    fewest_examples,
    suited_test,
)
from confcascade.policy import FittedStage, Policy, Saving, Stepwise

__all__ = ["Configuration", "GridFit", "certify_grid"]


@dataclass(frozen=True)
class Configuration:
    """One configuration of a grid, and what was seen of it.

    Attributes:
        name: As the recording has it.
        examined: Its losses against the large model, and their bound, each as if it were the only one tested.
        passed: Whether it passed; None where the order ended before it, and nothing is promised whatever its bound.
        saved: Share of the large model's cost that it saves; below 0 where it costs more.
    """

    name: str
    examined: Examined
    passed: bool | None
    saved: float


@dataclass(frozen=True)
class GridFit:
    """What can be promised of a grid.

    Attributes:
        largest: The model that it is promised against.
        largest_cost: Its mean cost of a question.
        unit: Of costs.
        table: Every configuration, in the order of the tests.
        chosen: The cheapest that passed; None if none did, or none saves anything.
        certificate: Of the chosen one.
        interval: Of the share that the chosen one saves, 95 %, its choice among those that passed included.
        hindsight: The cheapest that lost no more than the target on these very questions: what knowing their answers
            would have chosen, and no promise; None if none did.
        why: In words, why nothing is chosen; "" if something is.
        more: How many more questions would do for the first of the order that saves anything, with a chance of 80 %;
            None if no number is known that would, or nothing is lacking.
        notes: What a reader should know.
    """

    largest: str
    largest_cost: float
    unit: str
    table: tuple[Configuration, ...]
    chosen: Configuration | None
    certificate: Certificate | None
    interval: tuple[float, float] | None
    hindsight: Configuration | None
    why: str
    more: int | None
    notes: tuple[str, ...]

    def policy(self, material: FitData, stages: Sequence[FittedStage], steps: Stepwise) -> Policy:
        """The chosen configuration as ``policy.json`` keeps it.

        Args:
            material: What it was fitted on.
            stages: The small model with the signal and the threshold of the chosen configuration, and the large model.
            steps: How it decides within an answer; the configuration's name is put in.

        Raises:
            ConfigurationError: If nothing is promised.
        """
        if self.chosen is None or self.certificate is None or self.interval is None:
            raise ConfigurationError(f"There is no policy, for nothing can be promised: {self.why}.")
        low, high = self.interval
        return Policy(
            models=[stage.model for stage in stages],
            stages=list(stages),
            certificates=[self.certificate],
            saving=Saving(
                unit=self.unit,  # type: ignore[arg-type]
                cost=self.chosen.examined.cost,
                largest=self.largest_cost,
                share=self.chosen.saved,
                low=low,
                high=high,
            ),
            made_from=made_from(material),
            stepwise=steps.model_copy(update={"configuration": self.chosen.name}),
        )

    def describe(self) -> str:
        """What is promised or why nothing is, what it saves beside the best in hindsight, and the table."""
        lines = []
        if self.chosen is None or self.certificate is None or self.interval is None:
            lines.append(f"Nothing can be promised: {self.why}. Ask {self.largest} alone.")
            if self.more is not None:
                lines.append(f"About {self.more:,} more questions would do.")
        else:
            low, high = self.interval
            lines += [
                f"Chosen: {self.chosen.name}, which saves {self.chosen.saved:.1%} of the cost of {self.largest} alone "
                f"(95 % interval {low:.1%} to {high:.1%}; in {self.unit}, every model that ran).",
                self.certificate.describe(),
            ]
        if self.hindsight is not None:
            lines.append(
                f"In hindsight the best was {self.hindsight.name}, which saves {self.hindsight.saved:.1%} and lost "
                f"{100 * self.hindsight.examined.loss:.2f} points on these questions; that promises nothing of others."
            )
        verdicts = {True: "passed", False: "failed", None: "not tested"}
        rows = [("configuration", "questions", "lost", "gained", "difference", "bound", self.unit, "saved", "test")]
        for each in self.table:
            seen = each.examined
            counts = (f"{seen.n:,}", f"{seen.harms:,}", f"{seen.benefits:,}")
            shares = (f"{0 - seen.loss:+.2%}", f"{seen.bound:.2%}", f"{seen.cost:.4g}", f"{each.saved:.1%}")
            rows.append((each.name, *counts, *shares, verdicts[each.passed]))
        rows.append((self.largest, f"{self.table[0].examined.n:,}", *("",) * 4, f"{self.largest_cost:.4g}", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append("")
        for name, *cells, verdict in rows:
            told = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)]
            lines.append("  ".join([name.ljust(widths[0]), *told, verdict]).rstrip())
        return "\n".join([*lines, *self.notes])


def certify_grid(
    material: FitData,
    order: Sequence[str],
    promise: Promise,
    *,
    costs: Mapping[tuple[str, str], float] | None = None,
    unit: str | None = None,
    same: NDArray[np.bool_] | None = None,
    test: TestName | None = None,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    plan: bool = True,
) -> GridFit:
    """Test the configurations in the order given, up to the first that fails, and take the cheapest that passed.

    Each is tested at the promise's whole level: with probability at least its confidence every configuration that
    passes keeps the target, however many there are (fixed-sequence testing, see `confcascade.guarantee.certify`). For
    that, grid, order and test must not have been chosen by these answers.

    Args:
        material: Every configuration's answers and the large model's, which is the last of its models
            (`read_material(path, models=[*order, large])`).
        order: Names of configurations, the safest first: the highest threshold, down to the lowest.
        promise: Its target, confidence, and with an equivalence the rule by which answers are the same.
        costs: By question and name, what the answer has cost, every model that ran, prefills included; of the large
            model, too. By default the recording's own, which is right for `unit="seconds"`: tokens of two models make
            no sum.
        unit: Of costs: "flops", "usd", "tokens" or "seconds".
        same: With an equivalence, whether answers are the large model's (`agreement`).
        test: "score" by default, "harms" with an equivalence, "betting" where grades are not all 0 or 1.
        architectures: By name, where `costs` are not given.
        prices: Likewise.
        plan: Whether to look, where nothing passes, for how many more questions would do: a matter of seconds.

    Raises:
        ConfigurationError: If the promise has no target, a name is not in the recording or twice in the order, a cost
            is not known, or arguments contradict each other.
    """
    largest, columns = material.models[-1], material.columns
    names = _checked(order, material, promise, same)
    spent, counted = _costs(material, names, costs, unit, architectures, prices)
    lost = losses(columns, [[PolicyStage(name)] for name in names], largest, same)
    if not np.isfinite(lost).all():
        raise ConfigurationError("Not every answer of the grid is graded. Grade them, or promise agreement.")
    chosen_test = test or suited_test(lost, promise)
    means, alone = spent[:-1].mean(axis=1), float(spent[-1].mean())
    reached = certify(lost, means, promise, chosen_test).tested
    table = tuple(
        Configuration(
            name,
            reached[i] if i < len(reached) else examine(lost[i], float(means[i]), promise, chosen_test, index=i),
            reached[i].certified if i < len(reached) else None,
            float(1 - means[i] / alone),
        )
        for i, name in enumerate(names)
    )
    passed = [each for each in table if each.passed]
    best = min(passed, key=lambda each: each.examined.cost, default=None)
    within = [each for each in table if each.examined.loss <= promise.tested_drop]
    interval, why, more = None, "", None
    if best is None:
        why, more = _failed(table[0].examined, promise), _more(table, lost, promise) if plan else None
    else:
        rows = [each.examined.index for each in passed]
        _, *ends = savings(spent[rows], spent[-1], rows.index(best.examined.index))
        interval = ends[0], ends[1]
        if interval[1] < 0:
            why = (
                f"of the configurations that keep the promise the cheapest, {best.name}, costs more than {largest} "
                f"alone (saved {best.saved:.1%}, 95 % interval {interval[0]:.1%} to {interval[1]:.1%})"
            )
            best = None
    notes = [*material.notes]
    if best is not None and interval is not None and interval[0] < 0:
        notes.append(f"Whether this saves anything is not sure: its interval reaches below 0, to {interval[0]:.1%}.")
    return GridFit(
        largest=largest,
        largest_cost=alone,
        unit=counted,
        table=table,
        chosen=best,
        certificate=None if best is None else Certificate.of(best.examined, promise, repeated=material.repeated),
        interval=None if best is None else interval,
        hindsight=min(within, key=lambda each: each.examined.cost, default=None),
        why=why,
        more=more,
        notes=tuple(notes),
    )


def _checked(
    order: Sequence[str], material: FitData, promise: Promise, same: NDArray[np.bool_] | None
) -> tuple[str, ...]:
    """The order, if it can be tested."""
    names, largest = tuple(order), material.models[-1]
    if isinstance(order, str) or not names or len(set(names)) < len(names):
        raise ConfigurationError(f"`order` lists configurations, each once, the safest first. Got {order!r}.")
    for name in names:
        material.columns.index(name)
    if largest in names or not set(names) <= set(material.models):
        raise ConfigurationError(
            f"`order` lists configurations among the models that were read, {', '.join(material.models)}, without the "
            f"last, against which they are held. Got {', '.join(names)}."
        )
    if (promise.equivalence is None) != (same is None):
        raise ConfigurationError("An equivalence and the answers compared by it go together.")
    return names


def _costs(
    material: FitData,
    names: Sequence[str],
    costs: Mapping[tuple[str, str], float] | None,
    unit: str | None,
    architectures: Mapping[str, Architecture] | None,
    prices: Mapping[str, Prices] | None,
) -> tuple[NDArray[np.float64], str]:
    """What every answer has cost, the large model's in the last row, shape (names + 1, questions), and the unit."""
    columns, all_names = material.columns, [*names, material.models[-1]]
    if costs is None:
        bill = Costing.of(columns, all_names, architectures, prices, unit)
        if unit is None and bill.unit == "tokens":
            raise ConfigurationError(
                "What the configurations cost is not known: tokens of a small and a large model make no sum. Give "
                "`costs`, by question and name, or say `unit='seconds'`."
            )
        return np.array([bill.each(columns, [PolicyStage(name)]) for name in all_names]), bill.unit
    if unit not in UNITS:
        raise ConfigurationError(f"Say in which unit `costs` are, one of {', '.join(UNITS)}. Got {unit!r}.")
    table = [[costs.get((question, name), np.nan) for question in columns.questions] for name in all_names]
    spent = np.array(table, dtype=np.float64)
    unknown = np.argwhere(~(np.isfinite(spent) & (spent >= 0)))
    if len(unknown):
        i, j = unknown[0]
        raise ConfigurationError(
            f"The cost of {len(unknown):,} answers is not known, the first that of '{all_names[i]}' to question "
            f"'{columns.questions[j]}'. `costs` names every answer, also of models that failed."
        )
    if not spent[-1].sum() > 0:
        raise ConfigurationError(f"'{all_names[-1]}' costs nothing, so nothing can be saved.")
    return spent, unit


def _failed(first: Examined, promise: Promise) -> str:
    """Why the safest configuration did not pass, as a clause."""
    least = fewest_examples(promise)
    if first.n < least:
        return (
            f"{first.n:,} questions are there, and even a configuration that never loses an answer takes {least:,} to "
            f"promise {promise.max_drop:.2%} with {promise.confidence:g} confidence"
        )
    return (
        f"the safest configuration lost {first.harms:,} answers and gained {first.benefits:,} of {first.n:,}, so its "
        f"loss may be {first.bound:.2%}"
    )


def _more(table: Sequence[Configuration], lost: NDArray[np.float64], promise: Promise) -> int | None:
    """How many more questions the first that saves anything takes, and all before it, which must pass first."""
    needed = 0
    for each, its in zip(table, lost, strict=True):
        # one harm more than was seen: what has lost nothing yet is not known to lose nothing
        takes = examples_needed_like(np.append(its, 1.0), promise) or examples_needed_like(its, promise)
        if takes is None:
            return None
        needed = max(needed, takes)
        if each.saved > 0:
            return max(0, needed - len(its)) or None
    return None
