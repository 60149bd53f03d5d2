"""Whether the promise over a grid of whole cascades is kept, and what it gives away: many drawn data sets, truth known.

    python benchmarks/grid_certificate.py --draws 500

A made-up world: a question's ease, shared by all; a large model; and six configurations of a cascade that decides step
by step, from the highest threshold to the lowest, each with an answer of its own to every question. Their luck with a
question is correlated, the more the nearer their thresholds, as answers are that share their first steps. In every
draw `certify_grid` tests them as `collect` would have recorded them, and what it certifies is judged by the true loss.
Beside it stand the best configuration that truly keeps the target, and naive tuning: the cheapest that keeps it on the
same questions. Prints Markdown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from confcascade.bench.fitting import FitData, certify_grid
from confcascade.bench.recording import Columns
from confcascade.guarantee import Equivalence, Promise, TestName
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.float64]

THRESHOLDS = (0.95, 0.9, 0.8, 0.65, 0.5, 0.3)
GRID = tuple(f"small+large@{each:g}" for each in THRESHOLDS)
COSTS = (0.97, 0.90, 0.80, 0.68, 0.55, 0.42)  # of the large model's alone, every model that ran
LARGE = 0.75  # its accuracy
CORRELATION = 0.97  # between the luck of neighbours of the grid
REFERENCE = 200_000
SAME = Equivalence("the world's own")

# what each configuration truly loses, in points
WORLDS: dict[str, tuple[float, ...]] = {
    "all lose exactly the target": (2, 2, 2, 2, 2, 2),
    "all lose a little more": (2.2,) * 6,
    "the first is safe, the others lose the target": (0, 2, 2, 2, 2, 2),
    "losses grow": (0, 0.1, 0.3, 0.8, 2.2, 5),
    "losses grow late": (0, 0, 0.1, 0.2, 0.6, 2.5),
    "one in the middle loses too much": (0, 0.2, 3, 0.3, 0.5, 1),
    "some are better than the large model": (-0.5, -1, -1.5, -1, 0.5, 3),
}
MAX_DROP = 0.02


@dataclass(frozen=True)
class World:
    """What is tested, on how many questions, with labels or by agreement."""

    name: str
    n: int
    labels: bool = True
    test: TestName | None = None

    @property
    def promise(self) -> Promise:
        return Promise(MAX_DROP, equivalence=None if self.labels else SAME)

    @property
    def losses(self) -> Array:
        """True losses against the large model; by agreement the same shares of disagreement, none below 0."""
        lost = np.array(WORLDS[self.name]) / 100
        return lost if self.labels else np.maximum(lost, 0)


def luck(n: int, rng: np.random.Generator) -> Array:
    """Of the large model and the grid, standard normal, shape (1 + configurations, n): an autoregression over it."""
    steps = rng.normal(size=(1 + len(GRID), n))
    for j in range(1, len(steps)):
        steps[j] = CORRELATION * steps[j - 1] + np.sqrt(1 - CORRELATION**2) * steps[j]
    return steps


def draw(world: World, n: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether answers are right, and whether they are the large model's, shape (1 + configurations, n)."""
    ease, noise = rng.normal(size=n), luck(n, rng)
    if not world.labels:
        # questions differ in how easily their answers do
        each = np.minimum(1, world.losses[:, None] * np.exp(ease - 0.5))
        differs = ndtr(noise[1:]) < each
        return np.ones((7, n), dtype=bool), np.vstack([np.ones((1, n), dtype=bool), ~differs])
    # right where ease and luck are good enough: unit variance, so that the accuracies are exact
    seen = np.sqrt(0.6) * ease + np.sqrt(0.4) * noise
    accuracies = np.concatenate([[LARGE], LARGE - world.losses])
    right = seen < ndtri(accuracies)[:, None]
    return right, np.ones_like(right)


def recorded(right: NDArray[np.bool_], rng: np.random.Generator) -> tuple[FitData, dict[tuple[str, str], float]]:
    """As a recording would be read, the large model last, and what every answer has cost."""
    names, n = (*GRID, "large"), right.shape[1]
    shape, ids = (n, len(names)), tuple(f"q{i}" for i in range(n))
    whole, counts = np.ones(shape, dtype=bool), np.full(shape, 100)
    columns = Columns(
        questions=ids,
        models=names,
        groups=np.full(n, ""),
        recorded=whole,
        grades=np.roll(right, -1, axis=0).T.astype(float),
        usable=whole,
        said=whole,
        failed=~whole,
        refused=~whole,
        input_tokens=counts,
        output_tokens=counts,
        gate_input_tokens=np.zeros_like(counts),
        gate_output_tokens=np.zeros_like(counts),
        told_tokens=counts,
        before_answer=np.zeros(shape, dtype=np.int64),
        latency_s=np.full(shape, np.nan),
        prefill_s=np.full(shape, np.nan),
        flops=np.full(shape, np.nan),
        usd=np.full(shape, np.nan),
        signals={},
    )
    length = rng.gamma(4, 0.25, size=(n, 1)) * rng.gamma(20, 0.05, size=shape)
    spent = length * np.array([*COSTS, 1.0])
    costs = {(ids[i], names[j]): float(spent[i, j]) for i in range(n) for j in range(len(names))}
    return FitData(columns, names, tuple(each.encode() for each in ids), "id"), costs


@dataclass(frozen=True)
class Summary:
    """Over all draws: how often the promise was broken, nothing was certified, and mean savings."""

    world: World
    draws: int
    violations: int
    any_violations: int
    nothing: int
    saved: float
    oracle: float
    hindsight: float
    naive_violations: int


def simulate(world: World, draws: int, seed: int = 0) -> Summary:
    rng, truth = np.random.default_rng([seed, world.n]), world.losses
    # at the target exactly the promise would hold by a hair: whatever certifies it counts as broken
    broken = {name for name, loss in zip(GRID, truth, strict=True) if loss > MAX_DROP - 1e-9}
    saving = {name: 1 - cost for name, cost in zip(GRID, COSTS, strict=True)}
    violations = several = nothing = naive = 0
    saved, seen = 0.0, 0.0
    for _ in range(draws):
        right, same = draw(world, world.n, rng)
        material, costs = recorded(right, rng)
        told = np.roll(same, -1, axis=0).T if not world.labels else None
        found = certify_grid(
            material, GRID, world.promise, costs=costs, unit="flops", same=told, test=world.test, plan=False
        )
        several += any(each.name in broken for each in found.table if each.passed)
        if found.chosen is None:
            nothing += 1
        else:
            violations += found.chosen.name in broken
            saved += saving[found.chosen.name]
        if found.hindsight is not None:
            naive += found.hindsight.name in broken
            seen += saving[found.hindsight.name]
    oracle = max([saving[name] for name in GRID if name not in broken], default=0.0)
    return Summary(world, draws, violations, several, nothing, saved / draws, oracle, seen / draws, naive)


def main(
    draws: Annotated[int, typer.Option(help="Data sets of each world.")] = 500,
    sizes: Annotated[str, typer.Option(help="Questions, with commas.")] = "500,2000",
) -> None:
    """Print the table."""
    began = time.time()
    print("| world | promised of | test | n | chosen breaks | any breaks | nothing | saved | best truly |", end="")
    print(" best in hindsight | hindsight breaks |")
    print("|---|---|---|", "---:|" * 8, sep="")
    for n in map(int, sizes.split(",")):
        for labels, test in ((True, "score"), (False, "harms")):
            for name in WORLDS:
                if not labels and min(WORLDS[name]) < 0:
                    continue
                row = simulate(World(name, n, labels, test), draws)  # type: ignore[arg-type]
                cells = [
                    name,
                    "accuracy" if labels else "agreement",
                    test,
                    f"{n:,}",
                    f"{row.violations / draws:.1%}",
                    f"{row.any_violations / draws:.1%}",
                    f"{row.nothing / draws:.1%}",
                    f"{row.saved:.1%}",
                    f"{row.oracle:.0%}",
                    f"{row.hindsight:.1%}",
                    f"{row.naive_violations / draws:.1%}",
                ]
                print("|", " | ".join(cells), "|", flush=True)
    print(f"\n{draws} draws each, {time.time() - began:.0f} s.")


if __name__ == "__main__":
    typer.run(main)
