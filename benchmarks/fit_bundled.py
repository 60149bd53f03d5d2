"""A fitted policy beside the usual 0.9 / 0.9, on the bundled models: compute saved at equal accuracy.

    python benchmarks/fit_bundled.py

Asks the three bundled models the questions of their made-up world, with P(IK) and P(T): those of the split
"calibration", of which `confcascade.bench.fitting` makes policies, and those of the split "test", on which they are
measured; no fact, story or stranger is asked about in both. Beside them P(IK) >= 0.9 and P(T) >= 0.9 at every stage,
the paper's, of every pair and of the chain. Costs are operations of every model that ran. Prints Markdown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import numpy as np
import typer
from confcascade import Architecture, Stage
from confcascade.bench.collecting import collect
from confcascade.bench.fitting import FitData, Fitted, fit, material_of, replayable
from confcascade.bench.fitting.describe import told
from confcascade.bench.fitting.proof import losses
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording import Columns, RecordingWriter, Row, read_rows
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.demo import answer_probability, bundled_probe
from confcascade.demo.world import World
from confcascade.graders import Grader, NormalizedMatch
from confcascade.graders.example import Example
from confcascade.guarantee import Promise
from confcascade.models.bundled import SIZES, bundled_model

DROPS = (0.01, 0.02, 0.03, 0.05)
TOKENS = 48


def asked(split: str, per_task: int) -> list[Example]:
    found = World().questions(split, per_task=per_task)  # type: ignore[arg-type]
    return [Example(each.prompt, references=(each.reference,), group=each.task) for each in found]


def grader() -> Grader:
    return NormalizedMatch()


def collected(folder: Path, split: str, per_task: int) -> list[Row]:
    """Every model asked every question, once; of a folder that holds the rows already, these."""
    stages = [Stage(bundled_model(size), [bundled_probe(size), answer_probability()]) for size in SIZES]
    path = folder / f"{split}.jsonl"
    with RecordingWriter(path) as writer:
        collect(asked(split, per_task), stages, writer, prompt=PROMPTS["plain"], grader=grader(), max_tokens=TOKENS)
    return list(read_rows(path))


def paper(models: Sequence[str]) -> list[tuple[PolicyStage, ...]]:
    chains = [*combinations(models, 2), tuple(models)]
    gate = {"p_ik": 0.9, "p_t": 0.9}
    return [(*(PolicyStage(model, gate) for model in chain[:-1]), PolicyStage(chain[-1])) for chain in chains]


def measured(material: FitData, policy: Sequence[PolicyStage], bill: Costing) -> tuple[float, float]:
    """Points of accuracy lost against the largest model, and the share of its compute that is saved."""
    largest = material.models[-1]
    (lost,) = losses(material.columns, [policy], largest, None)
    ours, theirs = bill.means(material.columns, [policy, [PolicyStage(largest)]])
    return 100 * float(lost.mean()), float(1 - ours / theirs)


def main(
    per_task: Annotated[int, typer.Option(min=10, help="Most questions of a task to fit on, and to test on.")] = 400,
    folder: Annotated[Path | None, typer.Option(help="Where recordings are kept; by default nowhere.")] = None,
) -> None:
    begun = time.perf_counter()
    place = folder or Path(mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Architecture] = {}
    for size in SIZES:
        architecture = bundled_model(size).architecture
        assert architecture is not None
        sizes[size] = architecture
    options = {"models": SIZES, "architectures": sizes}
    seen = material_of(collected(place, "calibration", per_task), **options)
    new = material_of(collected(place, "test", per_task), **options)
    bill = Costing.of(new.columns, SIZES, sizes)
    accuracy = [float(np.mean(new.columns.grades[:, new.columns.index(size)])) for size in SIZES]
    print(f"{len(seen):,} questions to fit on, {len(new):,} to test on; alone: ", end="")
    print(", ".join(f"{size} {share:.1%}" for size, share in zip(SIZES, accuracy, strict=True)), end="\n\n")
    print("| policy | drop, points | compute saved | at equal accuracy, fitted | its drop | compute saved |")
    print("|---|---:|---:|---|---:|---:|")
    known = budgeted(seen, sizes)
    for policy in paper(SIZES):
        drop, saved = measured(new, policy, bill)
        best = at_equal_accuracy(seen, policy, known, bill)
        name = f"0.9 / 0.9, {' → '.join(stage.model for stage in policy)}"
        if best is None:
            print(f"| {name} | {drop:.2f} | {saved:.1%} | none loses as little | | |")
            continue
        columns, stages = replayable(new.columns, best.policy)
        its_drop, its_saved = measured(with_columns(new, columns), stages, bill)
        print(f"| {name} | {drop:.2f} | {saved:.1%} | {told(stages)} | {its_drop:.2f} | {its_saved:.1%} |", flush=True)
    print("\n| promised, points | policy | drop on test | compute saved |\n|---:|---|---:|---:|")
    for promised in DROPS:
        result = fit(seen, Promise(promised), architectures=sizes)
        if not isinstance(result, Fitted):
            print(f"| {100 * promised:g} | nothing: {result.why} | | |")
            continue
        columns, stages = replayable(new.columns, result.policy)
        drop, saved = measured(with_columns(new, columns), stages, bill)
        print(f"| {100 * promised:g} | {told(stages)} | {drop:.2f} | {saved:.1%} |", flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s", file=sys.stderr)


def with_columns(material: FitData, columns: Columns) -> FitData:
    return replace(material, columns=columns)


def budgeted(seen: FitData, sizes: dict[str, Architecture]) -> list[tuple[float, float, Fitted]]:
    """What loses least at many costs: points lost and share saved on the questions to fit on, and the policy."""
    bill, found = Costing.of(seen.columns, SIZES, sizes), []
    for share in np.linspace(0.05, 0.95, 46).tolist():
        result = fit(seen, Promise(None), max_cost=share, architectures=sizes)
        if isinstance(result, Fitted):
            columns, stages = replayable(seen.columns, result.policy)
            found.append((*measured(with_columns(seen, columns), stages, bill), result))
    return found


def at_equal_accuracy(
    seen: FitData, policy: Sequence[PolicyStage], known: Sequence[tuple[float, float, Fitted]], bill: Costing
) -> Fitted | None:
    """The cheapest of the fitted policies that loses no more than a given one, all on the questions to fit on."""
    allowed, _ = measured(seen, policy, bill)
    fitting = [(saved, result) for drop, saved, result in known if drop <= allowed]
    return max(fitting, key=lambda each: each[0])[1] if fitting else None


if __name__ == "__main__":
    typer.run(main)
