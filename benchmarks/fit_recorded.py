"""Promised and realised, on recorded answers of real models: fit on one half of the questions, look at the other.

    python benchmarks/fit_recorded.py --data DIR

Twenty random halves of each recording, by a hash of each draw: no row chooses a threshold and is reported on. On
the half for fitting `confcascade.bench.fitting` calibrates, chooses and certifies; on the other half the policy is
replayed. Beside it stand naive tuning (the cheapest threshold of one signal that keeps the target on the whole half
for fitting) and the oracle (the cheapest that keeps it on the other half, which nobody can know). DIR holds the files
that are named in `SOURCES`. No model runs. Prints Markdown.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade import Architecture, Prices
from confcascade.bench.fitting import FitData, Fitted, agreement, fit, material_of, realised, split_by_key
from confcascade.bench.fitting.proof import losses
from confcascade.bench.recording import Row
from confcascade.bench.recording.importers import read_chain, read_choice_logits, read_choice_softmax, read_verbalized
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.graders import ChoiceLetter, Grader, Numeric
from confcascade.guarantee import Equivalence, Promise
from numpy.typing import NDArray

HALVES = {"calibrate": 0.25, "choose": 0.25, "certify": 0.5}  # the first two for fitting, the last for looking
BILLION = 10**9


def mmlu(data: Path) -> Iterator[Row]:
    """Llama 3.1 on MMLU, with the questions' texts, some of which occur twice."""
    with gzip.open(data / "mmlu/mmlu_test_even.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = {each["id"]: each["question"] + " " + " ".join(each["choices"]) for each in map(json.loads, file)}
    for row in read_choice_logits(data / "mmlu_llama31_logits/mmlu_test_even_logits.csv.gz"):
        yield row.model_copy(update={"prompt": texts[row.question]})


@dataclass(frozen=True)
class Source:
    """A recording and what is promised of it.

    Attributes:
        name: Of models and questions.
        rows: Of the recording, from the folder.
        models: Smallest first.
        sizes: Parameters in billions, by model; empty where prices count.
        prices: Dollars per million tokens.
        drops: To promise.
        grader: By which answers are compared; None where none are recorded.
    """

    name: str
    rows: Callable[[Path], Iterable[Row]]
    models: tuple[str, ...]
    sizes: tuple[float, ...] = ()
    prices: Mapping[str, Prices] = field(default_factory=dict)
    drops: tuple[float, ...] = (0.02, 0.05)
    grader: Grader | None = None

    @property
    def architectures(self) -> dict[str, Architecture]:
        return {
            m: Architecture(int(n * BILLION), 0, 0) for m, n in zip(self.models, self.sizes, strict=bool(self.sizes))
        }


def arc(data: Path) -> Iterator[Row]:
    return read_choice_softmax(data / "softmax_confidence/arc.csv.gz")


def pro(data: Path) -> Iterator[Row]:
    return read_verbalized(data / "verbalized_mmlu_pro/llama_even.csv.gz")


def gsm(data: Path) -> Iterator[Row]:
    return read_chain(data / "cascade_chains/gsm8k_qwen_oai_dev.jsonl.gz")


LLAMAS = "Llama-3.2-3B-Instruct-Turbo", "Meta-Llama-3.1-8B-Instruct-Turbo", "Meta-Llama-3.1-70B-Instruct-Turbo"
CHAIN = "gpt-4o-mini", "qwen2.5-32b-coder-instruct", "qwen2.5-72b-instruct", "gpt-4o"
LISTED = (Prices(0.15, 0.60), Prices(0.90, 0.90), Prices(0.90, 0.90), Prices(2.50, 10.0))
SOURCES = (
    Source(
        "MMLU, Llama 3.1 8B → 70B",
        mmlu,
        ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct"),
        (8, 70),
        drops=(0.01, 0.02, 0.05),
        grader=ChoiceLetter(),
    ),
    Source("ARC, Llama 3 8B → 70B", arc, ("Llama3-8b", "Llama3-70b"), (8, 70)),
    Source("ARC, Yi 6B → 34B", arc, ("Yi-6b", "Yi-34b"), (6, 34)),
    Source("ARC, Llama 2 7B → 13B → 70B", arc, ("Llama-7b", "Llama-13b", "Llama-70b"), (7, 13, 70)),
    Source("MMLU-Pro, 3B → 8B → 70B", pro, LLAMAS, (3, 8, 70)),
    Source(
        "GSM8K, GPT-4o mini → Qwen 32B → 72B → GPT-4o",
        gsm,
        CHAIN,
        prices=dict(zip(CHAIN, LISTED, strict=True)),
        drops=(0.05, 0.1),
        grader=Numeric(),
    ),
)


@dataclass
class Summary:
    """Over the halves of one source, at one target."""

    splits: int = 0
    nothing: int = 0
    violations: int = 0
    naive_violations: int = 0
    loss: list[float] = field(default_factory=list)
    drop: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    oracle: list[float] = field(default_factory=list)
    naive: list[float] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)


def thresholds(source: Source, fitting: FitData) -> list[tuple[PolicyStage, ...]]:
    """Of every signal of every smaller model, before the largest: what naive tuning and the oracle choose among."""
    found = []
    for model in source.models[:-1]:
        for owner, name in fitting.columns.signals:
            if owner != model:
                continue
            values = fitting.columns.signals[owner, name].values
            for at in np.unique(np.nanquantile(values, np.linspace(0, 1, 101))).tolist():
                found.append((PolicyStage(model, {name: at}), PolicyStage(source.models[-1])))
    return found


def one(
    source: Source, material: FitData, same: NDArray[np.bool_] | None, drop: float, seed: int, summary: Summary
) -> None:
    halves = split_by_key(material.keys, seed=10_000 + seed, shares=HALVES)
    ours, theirs = np.sort(halves.ordering), halves.certify
    fitting, looking = material.take(ours), material.take(theirs)
    costs = {"architectures": source.architectures, "prices": source.prices}
    rule = None if same is None else Equivalence("the answers' rule")
    result = fit(
        fitting, Promise(drop, equivalence=rule), same=None if same is None else same[ours], seed=seed, **costs
    )
    summary.splits += 1
    loss = accuracy = saved = 0.0
    if isinstance(result, Fitted):
        held = None if same is None else same[theirs]
        came = realised(result.policy, looking, same=held, **costs)
        loss, saved = came.loss, came.saved
        accuracy = realised(result.policy, looking, **costs).loss
        summary.rules[result.rule] += 1
    else:
        summary.nothing += 1
    summary.violations += loss > drop
    summary.loss.append(loss)
    summary.drop.append(accuracy)
    summary.saved.append(saved)

    bill = Costing.of(material.columns, source.models, source.architectures, source.prices)
    tried = [*thresholds(source, fitting), (PolicyStage(source.models[-1]),)]
    judged = []
    for part, rows in ((fitting, ours), (looking, theirs)):
        lost = losses(part.columns, tried, source.models[-1], None if same is None else same[rows]).mean(axis=1)
        cost = bill.means(part.columns, tried)
        judged.append((lost, 1 - cost / cost[-1]))
    (lost, gain), (true, spared) = judged
    naive = int(np.argmax(np.where(lost <= drop, gain, -np.inf)))
    summary.naive.append(float(spared[naive]))
    summary.naive_violations += bool(true[naive] > drop)
    summary.oracle.append(float(np.max(spared[true <= drop])))


def row(source: Source, questions: int, form: str, drop: float, summary: Summary) -> str:
    n = summary.splits
    rules = ", ".join(f"{rule} {count}" for rule, count in summary.rules.most_common(2)) or "none"
    return (
        f"| {source.name} | {questions:,} | {form} | {100 * drop:g} | {100 * np.mean(summary.loss):.2f} "
        f"| {100 * np.max(summary.loss):.2f} | {100 * np.mean(summary.drop):.2f} | {summary.violations}/{n} "
        f"| {summary.nothing}/{n} | {np.mean(summary.saved):.1%} | {np.mean(summary.oracle):.1%} "
        f"| {np.mean(summary.naive):.1%} | {summary.naive_violations}/{n} | {rules} |"
    )


def main(
    data: Annotated[Path, typer.Option(help="Folder of the recordings.", exists=True, file_okay=False)],
    splits: Annotated[int, typer.Option(min=1, help="Random halves of each recording.")] = 20,
    only: Annotated[str, typer.Option(help="Sources whose name holds this.")] = "",
) -> None:
    begun = time.perf_counter()
    print(
        "| recording | questions | promised of | drop | loss, other half | worst | drop of accuracy | violations "
        "| nothing promised | saved | saved, oracle | saved, naive | violations, naive | rules that won |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for source in SOURCES:
        if only not in source.name:
            continue
        rows = [each for each in source.rows(data) if each.model in source.models]
        material = material_of(rows, models=source.models, texts=True)
        forms: list[tuple[str, NDArray[np.bool_] | None]] = [("accuracy", None)]
        if source.grader is not None:
            forms.append(("agreement", agreement(material, source.grader)))
        for form, same in forms:
            for drop in source.drops:
                summary = Summary()
                for seed in range(splits):
                    one(source, material, same, drop, seed, summary)
                print(row(source, len(material), form, drop, summary), flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
