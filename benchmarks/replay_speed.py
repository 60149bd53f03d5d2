"""How long replay takes: policies times questions, three models, two signals each; and how that grows.

    python benchmarks/replay_speed.py

Made-up scores: the time does not depend on them. Peak memory is that of the whole process.
"""

from __future__ import annotations

import resource
import time
from typing import Annotated, Literal

import numpy as np
import typer
from confcascade import Architecture
from confcascade.bench.recording import Columns
from confcascade.bench.recording.columns import Column, Upper
from confcascade.bench.replay import PolicyStage, sweep
from rich.console import Console
from rich.table import Table

MODELS = {"3B": Architecture(3, 1, 1), "8B": Architecture(8, 1, 1), "70B": Architecture(70, 1, 1)}


def made_up(questions: int, early: bool, seed: int = 0) -> Columns:
    """A recording without rows, whose scores tell right from wrong a little; `early` drafts end at one of 4 tokens."""
    rng = np.random.default_rng(seed)
    shape = questions, len(MODELS)
    hardness = rng.random((questions, 1))
    right = rng.random(shape) > hardness * np.array([0.7, 0.5, 0.3])
    signals = {}
    for m, model in enumerate(MODELS):
        for name, phase in (("p_ik", "pre"), ("p_t", "post")):
            values = np.clip(0.3 * right[:, m] + 0.7 * rng.random(questions), 0, 1)
            upper = None
            if early and phase == "post":
                bounds = values[:, None] * np.array([1.5, 1.3, 1.1, 1.0])
                tokens = np.tile([1, 3, 7, 12], questions)
                upper = Upper(np.arange(0, 4 * questions + 1, 4), tokens, bounds.ravel())
            signals[model, name] = Column(values, phase, phase == "pre", upper)
    return Columns(
        questions=tuple(map(str, range(questions))),
        models=tuple(MODELS),
        groups=np.full(questions, ""),
        recorded=np.ones(shape, bool),
        grades=right.astype(float),
        usable=np.ones(shape, bool),
        said=np.ones(shape, bool),
        failed=np.zeros(shape, bool),
        refused=np.zeros(shape, bool),
        input_tokens=rng.integers(50, 500, shape),
        output_tokens=np.full(shape, 16),
        gate_input_tokens=np.zeros(shape, dtype=np.int64),
        gate_output_tokens=np.zeros(shape, dtype=np.int64),
        flops=np.full(shape, np.nan),
        usd=np.full(shape, np.nan),
        told_tokens=np.full(shape, 16),
        before_answer=np.zeros(shape, dtype=np.int64),
        latency_s=rng.random(shape),
        prefill_s=np.zeros(shape),
        signals=signals,
    )


def policies(count: int, seed: int = 1) -> list[list[PolicyStage]]:
    """Chains of all three with thresholds of their own."""
    return [
        [
            PolicyStage("3B", {"p_ik": a, "p_t": b}),
            PolicyStage("8B", {"p_ik": c, "p_t": d}),
            PolicyStage("70B"),
        ]
        for a, b, c, d in np.random.default_rng(seed).random((count, 4)).tolist()
    ]


def main(
    policies_: Annotated[int, typer.Option("--policies")] = 10_000,
    questions: Annotated[int, typer.Option()] = 14_000,
    growth: Annotated[
        Literal["yes", "no"], typer.Option(help="also 100 policies on up to a million questions")
    ] = "yes",
) -> None:
    table = Table("policies", "questions", "drafts end early", "seconds", "peak memory, MB")
    runs = [(policies_, questions, False), (policies_, questions, True)]
    if growth == "yes":
        runs += [(100, n, False) for n in (10_000, 100_000, 1_000_000)]
    for count, n, early in runs:
        columns, played = made_up(n, early), policies(count)
        begun = time.perf_counter()
        sweep(columns, played, architectures=MODELS)
        took = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        table.add_row(f"{count:,}", f"{n:,}", "yes" if early else "no", f"{took:.2f}", f"{peak:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
