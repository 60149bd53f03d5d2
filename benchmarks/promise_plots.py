"""The three plots of the pages on thresholds, promises and examples.

    python benchmarks/promise_plots.py --out docs/thresholds

All are of the made-up world of `guarantee_simulation`, whose truth is known: two models, right on 73.6 % and 89.1 % of
the questions, and a score of AUROC 0.84.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade.errors import require
from confcascade.guarantee import Promise, certify, examples_needed, score_bound
from guarantee_simulation import draw, losses, play, policies, truth

INK, GOOD, BAD, LINE = "#333333", "#1b7837", "#b2182b", "#2166ac"
DRAWS, QUESTIONS = 60, 1500


def axes(plt: Any, x: str, y: str) -> tuple[Any, Any]:
    figure, axis = plt.subplots(figsize=(6.4, 3.8), dpi=90, layout="constrained")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def choosing(plt: Any, out: Path) -> None:
    """One sample: loss seen, its upper bound and the saving, by threshold."""
    drawn = draw(2, 2 * QUESTIONS, np.random.default_rng(1))
    tried = policies(drawn.score)
    stop, costs = play(tried, drawn.score)
    lost = losses(stop, drawn, labels=True)
    n = lost.shape[1]
    bounds = [score_bound(int((each > 0).sum()), int((each < 0).sum()), n, 0.05) for each in lost]
    saved = 100 * (1 - costs)
    figure, axis = axes(plt, "compute saved, %", "accuracy lost against the large model, points")
    shown = saved > 0
    axis.plot(saved[shown], 100 * lost.mean(axis=1)[shown], color=INK, label=f"seen on {n:,} questions")
    axis.plot(saved[shown], 100 * np.array(bounds)[shown], color=LINE, label="upper bound, 95 %, of each threshold")
    true = np.array([100 * truth(each, 2, True).loss for each in tried])
    axis.plot(saved[shown], true[shown], color=GOOD, linestyle=":", label="true")
    axis.axhline(2, color=BAD, linewidth=1, label="target")
    axis.set_ylim(-1, 8)
    axis.legend(frameon=False)
    figure.savefig(out / "choosing.png")
    plt.close(figure)


def promised(plt: Any, out: Path) -> None:
    """Many samples: what naive tuning and what `certify` chose, as they truly are."""
    promise, rng = Promise(0.02), np.random.default_rng(2)
    naive, certified = [], []
    for _ in range(DRAWS):
        ordering, proof = draw(2, 3 * QUESTIONS // 2, rng), draw(2, QUESTIONS, rng)
        tried = policies(ordering.score)
        stop, costs = play(tried, ordering.score)
        lost = losses(stop, ordering, labels=True)
        kept = np.flatnonzero(lost.mean(axis=1) <= promise.tested_drop)
        naive.append(truth(tried[kept[np.argmin(costs[kept])]], 2, True))
        stop, _ = play(tried, proof.score)
        again = losses(stop, proof, labels=True)
        chosen = certify(again, costs, promise, "score").chosen
        if chosen is not None:
            certified.append(truth(tried[chosen.index], 2, True))
    figure, axis = axes(plt, "compute saved, %", "accuracy truly lost, points")
    broken = sum(each.loss > promise.tested_drop for each in naive)
    failed = sum(each.loss > promise.tested_drop for each in certified)
    for found, colour, mark, told in (
        (naive, BAD, "x", f"best threshold on the same questions: {broken} of {DRAWS} break the target"),
        (certified, GOOD, "o", f"certified on others: {failed} of {len(certified)} do"),
    ):
        points = np.array([(100 * each.saved, 100 * each.loss) for each in found])
        axis.scatter(*points.T, color=colour, marker=mark, s=18, label=told, alpha=0.7)
    axis.axhline(2, color=INK, linewidth=1)
    axis.legend(frameon=False, loc="upper left")
    axis.set_ylim(0, 3.6)
    figure.savefig(out / "promised.png")
    plt.close(figure)


def examples(plt: Any, out: Path) -> None:
    """How many examples a target takes, by how often the two models differ on what is kept."""
    figure, axis = axes(plt, "promised: accuracy lost at most, points", "questions of the proof")
    drops = np.array([0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08])
    for discordance, colour in ((0.0, GOOD), (0.005, LINE), (0.02, INK), (0.05, BAD)):
        needed = [examples_needed(Promise(float(drop)), discordance=discordance) for drop in drops]
        known = [(100 * drop, count) for drop, count in zip(drops, needed, strict=True) if count is not None]
        axis.plot(*np.array(known).T, color=colour, marker="o", markersize=3, label=f"{100 * discordance:g} %")
    axis.set_yscale("log")
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    axis.set_xticks([], minor=True)
    axis.set_yticks([200, 1_000, 5_000, 20_000], ["200", "1,000", "5,000", "20,000"])
    axis.legend(frameon=False, title="questions on which\nright and wrong differ")
    figure.savefig(out / "examples.png")
    plt.close(figure)


def main(out: Annotated[Path, typer.Option(help="Folder of the plots.", file_okay=False)]) -> None:
    matplotlib = require("matplotlib", "plots")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", "plots")
    out.mkdir(parents=True, exist_ok=True)
    for plot in (choosing, promised, examples):
        plot(plt, out)


if __name__ == "__main__":
    typer.run(main)
