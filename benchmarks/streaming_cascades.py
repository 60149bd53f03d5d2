"""Ours beside SUPG-IT and GAMCAL, on three public tables of "Streaming Model Cascades for Semantic SQL".

    python benchmarks/streaming_cascades.py

The task: answer every row of a table as a large model would ("the oracle"), asking it as seldom as possible; a small
model's probability of "true" is known for every row. Accuracy is agreement with the oracle over the whole table, an
asked row agreeing by definition; share is the part of the rows that the oracle was asked for any reason, all that was
asked to choose, to estimate or to prove included. Peers are read from ``peers.csv``, as their authors' code ran.

Ours is `confcascade.guarantee.answer_table`, at every ε of the grid below, which was fixed beforehand; promised with
95 % confidence: at most ε of the table's rows disagree. The truth is known, so beside it stand how often that was
broken, and what the best two cuts in hindsight need for the same accuracy.

Prints Markdown, and draws one figure.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade.errors import ConfigurationError, require
from confcascade.guarantee import answer_table
from numpy.typing import NDArray
from scipy.stats import binom

EPSILONS = (0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08, 0.10)
PROVED = (0.02, 0.04, 0.07)  # of which violations are counted over many draws
CONFIDENCE = 0.95
TOLERANCE = 0.005  # of accuracy, to be called GAMCAL's
SETS = {"MMLU_5K": "MMLU_5K.csv.gz", "BOOLQ": "BOOLQ_P0_12697.csv.gz", "SST2": "SST2_68221.csv.gz"}
HERE = Path(__file__).parent / "recordings" / "streaming_cascades"
RIVAL = ("GAMCAL", "alpha .6")
FIRST_DRAW = 10_000  # seeds of the draws that count violations; others than those of the figures


@dataclass(frozen=True)
class Table:
    """A set: the small model's probability of "true" and the oracle's answers, shape (rows,)."""

    name: str
    p: NDArray[np.float64]
    oracle: NDArray[np.bool_]

    def hindsight(self, disagreeing: float) -> float:
        """The least share that two cuts need if so many rows may disagree and every answer is known."""
        answers = self.oracle[np.argsort(self.p, kind="stable")]
        below = np.concatenate([[0], np.cumsum(answers)])  # wrong "no" by the number kept from below
        above = np.concatenate([[0], np.cumsum(~answers[::-1])])  # wrong "yes" by the number kept from above
        kept = np.flatnonzero(below <= disagreeing)
        others = np.searchsorted(above, disagreeing - below[kept], side="right") - 1
        return 1 - float((kept + np.minimum(others, len(answers) - kept)).max()) / len(answers)


@dataclass(frozen=True)
class Point:
    """A method at one setting: means over seeds or draws."""

    accuracy: float
    share: float
    checks: float
    broken: int
    draws: int


def read(data: Path, name: str) -> Table:
    """One of the sets.

    Raises:
        ConfigurationError: If its file is not there, or not such a file.
    """
    import pandas as pd

    path = data / SETS[name]
    if not path.exists():
        raise ConfigurationError(f"'{data}' has no file {SETS[name]}; the sets lie in {HERE}.")
    table = pd.read_csv(path)
    if list(table.columns) != ["proxy_pred_true_prob", "oracle_pred"] or table["oracle_pred"].dtype != bool:
        raise ConfigurationError(f"'{path}' must have the columns proxy_pred_true_prob and oracle_pred (True, False).")
    return Table(name, table["proxy_pred_true_prob"].to_numpy(np.float64), table["oracle_pred"].to_numpy())


def play(table: Table, epsilon: float, seeds: Sequence[int]) -> Point:
    """Ours at one ε, over seeds."""
    probabilities = np.column_stack([1 - table.p, table.p])
    oracle = table.oracle.astype(np.intp)
    figures, broken = [], 0
    for seed in seeds:
        made = answer_table(
            probabilities, oracle.__getitem__, max_disagreement=epsilon, confidence=CONFIDENCE, seed=seed
        )
        disagreeing = int((made.answers != oracle).sum())
        broken += disagreeing > epsilon * len(oracle)
        figures.append((1 - disagreeing / len(oracle), made.share, made.checks))
    accuracy, share, checks = np.mean(figures, axis=0)
    return Point(float(accuracy), float(share), float(checks), broken, len(seeds))


def peers(data: Path, name: str) -> list[dict[str, str]]:
    """What others reach on a set."""
    with (data / "peers.csv").open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["set"] == name]


def rival(data: Path, name: str) -> tuple[float, float]:
    """The accuracy and share to be reached."""
    (row,) = [row for row in peers(data, name) if (row["method"], row["setting"]) == RIVAL]
    return float(row["accuracy"]), float(row["share"])


def show(table: Table, data: Path, points: dict[float, Point]) -> None:
    n, agrees = len(table.p), ((table.p >= 0.5) == table.oracle).mean()
    print(f"\n### {table.name}: {n:,} rows, the small model agrees on {agrees:.3f}\n")
    print("| method | setting | certified | accuracy | share asked | checks in it | share in hindsight | broken |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for row in peers(data, table.name):
        accuracy = float(row["accuracy"])
        certified = f"δ = {row['delta']}" if row["certified"] == "yes" else "no"
        print(
            f"| {row['method']} | {row['setting']} | {certified} | {accuracy:.3f} | {float(row['share']):.3f} | "
            f"| {table.hindsight((1 - accuracy) * n):.3f} | |"
        )
    for epsilon, p in points.items():
        print(
            f"| ours | ε = {epsilon:g} | δ = {1 - CONFIDENCE:.2g} | {p.accuracy:.3f} | {p.share:.3f} | "
            f"{p.checks / n:.3f} | {table.hindsight((1 - p.accuracy) * n):.3f} | {p.broken} of {p.draws} |"
        )


def verdict(table: Table, data: Path, points: dict[float, Point]) -> str:
    """Whether one of ours is as accurate as the rival, with at most its share."""
    accuracy, share = rival(data, table.name)
    found = [(p.share, e, p.accuracy) for e, p in points.items() if p.accuracy >= accuracy - TOLERANCE]
    if not found:
        return f"{table.name}: no ε is as accurate as GAMCAL ({accuracy:.3f})."
    least, epsilon, reached = min(found)
    told = "at or below" if least <= share else "above"
    theirs = f"GAMCAL's {accuracy:.3f} @ {share:.3f}"
    return f"{table.name}: ε = {epsilon:g}, {reached:.3f} @ {least:.3f}, is {told} {theirs}."


def draw(tables: Sequence[Table], data: Path, figures: dict[str, dict[float, Point]], path: Path) -> None:
    """Accuracy over share, a panel for each set."""
    matplotlib = require("matplotlib", "plots")
    matplotlib.use("Agg")
    pyplot = require("matplotlib.pyplot", "plots")
    figure, axes = pyplot.subplots(1, len(tables), figsize=(4.2 * len(tables), 3.8), dpi=100, layout="constrained")
    for axis, table in zip(np.atleast_1d(axes), tables, strict=True):
        points = figures[table.name]
        errors = np.linspace(0, 0.1, 60)
        axis.plot(
            [table.hindsight(e * len(table.p)) for e in errors], 1 - errors, ":", color="#333333", label="in hindsight"
        )
        axis.plot(
            [p.share for p in points.values()],
            [p.accuracy for p in points.values()],
            "o-",
            color="#2166ac",
            label="ours, certified at 95 %",
        )
        for method, mark, color in (("SUPG-IT", "s", "#1b7837"), ("GAMCAL", "^", "#b2182b")):
            rows = [row for row in peers(data, table.name) if row["method"] == method]
            said = f"{method}, certified at 80 %" if rows[0]["certified"] == "yes" else f"{method}, not certified"
            axis.plot(
                [float(row["share"]) for row in rows],
                [float(row["accuracy"]) for row in rows],
                mark,
                color=color,
                label=said,
            )
        axis.set_title(table.name)
        axis.set_xlabel("share of rows the large model is asked")
        axis.set_ylim(0.9, 1.001)
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].set_ylabel("agreement with the large model")
    np.atleast_1d(axes)[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path)


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files and peers.csv")] = HERE,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each ε")] = 20,
    draws: Annotated[int, typer.Option(min=0, help="runs of some ε that count violations; 0 leaves them out")] = 500,
    plot: Annotated[Path, typer.Option(help="where the figure goes")] = Path("streaming_cascades.png"),
) -> None:
    """Ours beside SUPG-IT and GAMCAL on three public tables."""
    began = time.process_time()
    tables = [read(data, name) for name in SETS]
    figures = {table.name: {e: play(table, e, range(seeds)) for e in EPSILONS} for table in tables}
    for table in tables:
        show(table, data, figures[table.name])
    print()
    for table in tables:
        print(f"- {verdict(table, data, figures[table.name])}")
    draw(tables, data, figures, plot)
    if draws:
        most = int(binom.ppf(0.98, draws, 1 - CONFIDENCE))
        print(f"\nBroken promises of {draws} draws each; one that breaks 5 % has more than {most} in 2 % of cases:\n")
        print("| set | " + " | ".join(f"ε = {e:g}" for e in PROVED) + " |\n|---|" + "---:|" * len(PROVED))
        for table in tables:
            played = [play(table, e, range(FIRST_DRAW, FIRST_DRAW + draws)) for e in PROVED]
            told = [f"{p.broken} ({p.broken / draws:.1%})" for p in played]
            print(f"| {table.name} | {' | '.join(told)} |", flush=True)
    print(f"\nTook {time.process_time() - began:.0f} s of CPU time.")


if __name__ == "__main__":
    typer.run(main)
