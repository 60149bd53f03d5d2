"""Whether the planner's sample sizes are those that simulation finds.

    python benchmarks/planner_simulation.py

For targets, discordance rates and net losses, `examples_needed` beside the least number of examples at which 80 % of
2,000 drawn samples are certified, by the same tests. Prints Markdown.
"""

from __future__ import annotations

import math
import time
from typing import Annotated

import numpy as np
import typer
from confcascade.guarantee import (
    Equivalence,
    Promise,
    attainable_drop,
    examples_needed,
    harm_bound,
    score_p_value,
)

# target, discordance, net loss
LABELS = [
    (0.01, 0.005, 0.0),
    (0.01, 0.016, 0.0),
    (0.01, 0.016, 0.0035),
    (0.02, 0.005, 0.0),
    (0.02, 0.016, 0.0035),
    (0.02, 0.04, 0.0),
    (0.05, 0.05, 0.0),
    (0.05, 0.05, 0.02),
    (0.05, 0.1, 0.02),
]
AGREEMENT = [(0.01, 0.003), (0.02, 0.01), (0.05, 0.02)]
SAME = Equivalence("the same text")


def certified(n: int, drop: float, discordance: float, net_loss: float, test: str, draws: int, seed: int) -> float:
    """The share of drawn samples on which the test passes, each count of harms and benefits being tested once."""
    rng = np.random.default_rng([seed, n])
    harm, benefit = (discordance + net_loss) / 2, (discordance - net_loss) / 2
    harms = rng.binomial(n, harm, draws)
    benefits = rng.binomial(n - harms, benefit / (1 - harm))
    pairs, counts = np.unique(np.stack([harms, benefits], axis=1), axis=0, return_counts=True)
    passed = 0
    for (b, c), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if test == "harms":
            passes = harm_bound(b, n, 0.05) <= drop
        else:
            passes = b - c < n * drop and score_p_value(b, c, n, drop) <= 0.05
        passed += count * passes
    return passed / draws


def simulated(drop: float, discordance: float, net_loss: float, test: str, near: int, draws: int) -> int | None:
    """The least number of a geometric row (steps of 3 %) with which 80 % are certified from there on, within 40 %."""
    row = [n for step in range(400) if near / 1.4 <= (n := math.ceil(50 * 1.03**step)) <= near * 1.4]
    powerful = [certified(n, drop, discordance, net_loss, test, draws, seed=1) >= 0.8 for n in row]
    return row[len(powerful) - powerful[::-1].index(False)] if powerful[-1] and not powerful[0] else None


def main(draws: Annotated[int, typer.Option(min=100)] = 2_000) -> None:
    begun = time.perf_counter()
    print(f"95 % confidence, power 80 %, {draws:,} samples for each size tried.\n")
    print("| promised of | drop | discordance | net loss | planner | simulation | difference | drop to hope for |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    rows = [("accuracy", *each) for each in LABELS] + [("agreement", drop, rate, rate) for drop, rate in AGREEMENT]
    for kind, drop, discordance, net_loss in rows:
        promise = Promise(drop, equivalence=None if kind == "accuracy" else SAME)
        planned = examples_needed(promise, discordance=discordance, net_loss=net_loss)
        assert planned is not None
        found = simulated(drop, discordance, net_loss, "score" if kind == "accuracy" else "harms", planned, draws)
        hope = attainable_drop(planned, promise, discordance=discordance, net_loss=net_loss)
        beside = "none within 40 % | " if found is None else f"{found:,} | {planned / found - 1:+.0%}"
        print(
            f"| {kind} | {drop:.0%} | {discordance:.1%} | {net_loss:.2%} | {planned:,} | {beside} | {hope:.2%} |",
            flush=True,
        )
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
