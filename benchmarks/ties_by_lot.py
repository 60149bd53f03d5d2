"""What a lot among equal scores is worth: the saving that is promised with ties whole, and with ties broken.

    python benchmarks/ties_by_lot.py --data DIR

Recordings whose scores are few values (stated confidences of SciQ, BoolQ and MMLU-Pro, P(True) of GSM8K), and made-up
ones, are taken for the traffic itself: questions are drawn with replacement, the path of a lone signal
(`fixed_thresholds`) is tested by `passes` from its safe end, and what the last policy that passed loses and saves over
all of the traffic is its true loss and saving. Every draw deals new lots, so what is shown is the mean over lots, too.
Questions of the traffic have a lot each, however often they are drawn. Costs are operations where sizes are known,
list prices for GSM8K, else a ratio that is told. Prints Markdown.
"""

from __future__ import annotations

import csv
import functools
import gzip
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade.bench.fitting import material_of
from confcascade.bench.fitting.candidates import fixed_thresholds
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.guarantee import Promise, passes
from confcascade.signals.ties_by_lot import drawn
from fit_recorded import SOURCES
from numpy.typing import NDArray
from scipy.stats import binom

Figures = NDArray[np.float64]
# dataset, small and large model, cost of the small one as a share of the large one's
STATED = (
    ("sciq_test", "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct", 8 / 70),
    ("boolq_valid", "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct", 8 / 70),
    ("boolq_valid", "claude-3-haiku-20240307", "claude-sonnet-4-20250514", 1 / 12),
    ("boolq_valid", "gemini-2.5-flash", "gemini-2.5-pro", 1 / 4),
    ("boolq_valid", "deepseek-v3", "deepseek-r1", 1 / 2),
)
PAIRS = (("MMLU-Pro", "verbalized", 0, 2), ("MMLU-Pro", "verbalized", 1, 2), ("GSM8K", "p_true", 0, 3),
         ("GSM8K", "p_true", 2, 3))  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Questions with what two models do on them.

    Attributes:
        name: Of data and models.
        scores: Of the small model, in [0, 1], or -1 where there is none; shape (questions,).
        lost: The large model's grade less the small one's.
        small: Cost of the small model.
        large: Of the large one.
        settings: Questions of a draw, and the drop that is promised.
    """

    name: str
    scores: Figures
    lost: Figures
    small: Figures
    large: Figures
    settings: tuple[tuple[int, float], ...]

    @property
    def commonest(self) -> float:
        """Share of the questions that have the commonest score."""
        return float(np.unique(self.scores, return_counts=True)[1].max() / len(self.scores))


def stated(data: Path) -> Iterator[Traffic]:
    rows: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    with gzip.open(data / "stated_vs_token/sciq_boolq.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["dataset"], row["model"]), {})[row["question"]] = row
    for dataset, small, large, ratio in STATED:
        ours, theirs = rows[dataset, small], rows[dataset, large]
        both = sorted(set(ours) & set(theirs))
        said = [float(ours[each]["stated_confidence"] or "nan") for each in both]
        lost = np.array([float(theirs[each]["correct"]) - float(ours[each]["correct"]) for each in both])
        cost = np.ones(len(both))
        name = f"{dataset.partition('_')[0]}, stated, {small} → {large}"
        yield Traffic(name, np.nan_to_num(said, nan=-1.0), lost, ratio * cost, cost, ((1000, 0.02), (3000, 0.01)))


def recorded(data: Path) -> Iterator[Traffic]:
    for which, signal, i, j in PAIRS:
        source = next(each for each in SOURCES if which in each.name)
        small, large = source.models[i], source.models[j]
        columns = material_of([row for row in source.rows(data) if row.model in source.models], models=source.models
                              ).columns  # fmt: skip
        bill = Costing.of(columns, source.models, source.architectures, source.prices)
        ours, theirs = (bill.each(columns, [PolicyStage(model)]) for model in (small, large))
        grades = np.nan_to_num(columns.grades)
        lost = grades[:, columns.index(large)] - grades[:, columns.index(small)]
        scores = np.nan_to_num(columns.signal(small, signal).values, nan=-1.0)
        settings = ((1000, 0.05), (3000, 0.02)) if which == "MMLU-Pro" else ((300, 0.02), (1000, 0.01))
        yield Traffic(f"{which}, {signal}, {small} → {large}", scores, lost, ours, theirs, settings)


def made_up() -> Iterator[Traffic]:
    """A fine score, which tells right from wrong, rounded; and one that is 1 above a border."""
    rng = np.random.default_rng(0)
    ease = rng.normal(size=20_000)
    fine = 1 / (1 + np.exp(-2 * ease - 1))
    right = rng.random(len(fine)) < 0.1 + 0.88 * fine
    lost = (rng.random(len(fine)) < 0.1 + 0.86 * np.sqrt(fine)).astype(float) - right
    cost, settings = np.ones(len(fine)), ((1000, 0.02), (3000, 0.01))
    for name, scores in {
        "as it is": fine,
        "in twentieths": np.round(fine * 20) / 20,
        "in tenths": np.round(fine * 10) / 10,
        "1 from 0.8 on": np.where(fine >= 0.8, 1.0, fine),
    }.items():
        yield Traffic(f"made up, {name}", scores, lost, 0.1 * cost, cost, settings)


@functools.cache
def _passes(harms: int, benefits: int, n: int, drop: float) -> bool:
    losses = np.zeros(n)
    losses[:harms], losses[harms : harms + benefits] = 1, -1
    return passes(losses, Promise(drop), "score")


def certified(traffic: Traffic, scores: Figures, rows: NDArray[np.intp], drop: float) -> float | None:
    """The last threshold of the path that passes on a draw; None if the first fails."""
    own, lost = scores[rows], traffic.lost[rows]
    order = np.argsort(-own, kind="stable")
    harms, benefits = (np.append(0, np.cumsum(each)) for each in (lost[order] > 0, lost[order] < 0))
    best = None
    for threshold in fixed_thresholds(own[own >= 0]):
        kept = int((own >= threshold).sum())
        if not _passes(int(harms[kept]), int(benefits[kept]), len(rows), drop):
            break
        best = threshold
    return best


def true(traffic: Traffic, scores: Figures, threshold: float | None) -> tuple[float, float]:
    """Loss and saving of a threshold over all of the traffic; of none or of one that saves nothing 0, twice."""
    kept = np.zeros(len(scores), bool) if threshold is None else scores >= threshold
    saved = 1 - (traffic.small.mean() + traffic.large[~kept].sum() / len(kept)) / traffic.large.mean()
    return (float(traffic.lost[kept].sum() / len(kept)), float(saved)) if saved > 0 else (0.0, 0.0)


def hindsight(traffic: Traffic, scores: Figures, drop: float) -> float:
    """The most that any threshold saves which truly keeps the target."""
    found = (true(traffic, scores, each) for each in fixed_thresholds(scores[scores >= 0]))
    return max((saved for lost, saved in found if lost <= drop), default=0.0)


def figures(traffic: Traffic, n: int, drop: float, draws: int, *, lots: bool) -> str:
    """Cells of a row: hindsight, saved, draws of which nothing was promised, draws that broke the promise."""
    saved, nothing, broken = 0.0, 0, 0
    for seed in range(draws):
        rng = np.random.default_rng([seed, n])
        rows, scores = rng.integers(len(traffic.lost), size=n), traffic.scores
        if lots:
            scores = np.where(scores >= 0, drawn(scores, rng.random(len(scores))), -1.0)
        lost, its = true(traffic, scores, certified(traffic, scores, rows, drop))
        saved, nothing, broken = saved + its / draws, nothing + (its == 0), broken + (lost > drop)
    scores = traffic.scores
    if lots:
        scores = np.where(scores >= 0, drawn(scores, np.random.default_rng(0).random(len(scores))), -1.0)
    return f"{hindsight(traffic, scores, drop):.1%} | {saved:.1%} | {nothing} | {broken}"


def main(
    data: Annotated[Path, typer.Option(help="Folder of the recordings.", exists=True, file_okay=False)],
    draws: Annotated[int, typer.Option(min=1)] = 500,
    only: Annotated[str, typer.Option(help="Rows whose name holds this.")] = "",
) -> None:
    begun = time.perf_counter()
    most = int(binom.ppf(0.98, draws, 0.05))
    print(f"{draws} draws a row, 95 % confidence. A procedure that breaks its promise in 5 % of draws breaks more than")
    print(f"{most} of them once in fifty times.\n")
    ways = " | ".join(f"hindsight, {way} | saved | nothing | broken" for way in ("ties whole", "by lot"))
    print(f"| traffic | questions | drop | commonest score | {ways} |")
    print(f"|---|{'---:|' * 11}")
    for traffic in (*stated(data), *recorded(data), *made_up()):
        for n, drop in traffic.settings if only in traffic.name else ():
            cells = " | ".join(figures(traffic, n, drop, draws, lots=lots) for lots in (False, True))
            print(f"| {traffic.name} | {n:,} | {100 * drop:g} | {traffic.commonest:.0%} | {cells} |", flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
