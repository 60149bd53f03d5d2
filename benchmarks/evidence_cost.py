"""What it costs to find the answer among an answer's tokens: CPU time of an accepted call, beside another version.

    python benchmarks/evidence_cost.py --before ../other-checkout/core

A scripted model answers at once, so all that is measured is the cascade: plain answers of 16 and 300 tokens, and one of
a single word behind 2,000 tokens of thoughts, asked whole and streamed. Without `--before` there are no ratios. Each
version runs in processes of its own, in turns; medians are shown, and the quartiles of the ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ANSWERS = {
    "16 tokens": ("", " ".join(["word"] * 16)),
    "300 tokens": ("", " ".join(["word"] * 300)),
    "2,000 tokens of thoughts": ("<think> " + " ".join(["hm"] * 2_000) + " </think> ", "Lyon"),
}
CALLS = 40


def measure() -> None:
    """CPU seconds of a call, by answer and way; prints JSON."""
    from confcascade import Cascade, Stage, TokenProbability
    from confcascade.testing import ScriptedModel

    took: dict[str, float] = {}
    for name, (thoughts, answer) in ANSWERS.items():
        small, large = ScriptedModel("small", {"q": (thoughts + answer, 0.99)}), ScriptedModel("large")
        cascade = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(large)])
        for way, ask in {
            "whole": lambda c=cascade: c.run("q"),
            "streamed": lambda c=cascade: list(c.stream("q")),
        }.items():
            ask()
            begun = time.process_time()
            for _ in range(CALLS):
                ask()
            took[f"{name}, {way}"] = (time.process_time() - begun) / CALLS
    print(json.dumps(took))


def measured(core: Path | None) -> dict[str, float]:
    """Of one version, in a process of its own."""
    environment = os.environ if core is None else os.environ | {"PYTHONPATH": str(core)}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def main(
    before: Annotated[Path | None, typer.Option(help="The `core` folder of the version to compare with.")] = None,
    turns: Annotated[int, typer.Option(min=1)] = 9,
    only_measure: Annotated[bool, typer.Option("--measure", hidden=True)] = False,
) -> None:
    """Measure both versions in turns."""
    if only_measure:
        measure()
        return
    now, then = [], []
    for _ in range(turns):
        now.append(measured(None))
        then.append(measured(before) if before is not None else {})
    table = Table("answer", "ms a call", "before", "ratio (quartiles)")
    for name in now[0]:
        mine = statistics.median(turn[name] for turn in now) * 1e3
        if before is None:
            table.add_row(name, f"{mine:.3f}")
            continue
        ratios = sorted(turn[name] / old[name] for turn, old in zip(now, then, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        theirs = statistics.median(turn[name] for turn in then) * 1e3
        table.add_row(name, f"{mine:.3f}", f"{theirs:.3f}", f"×{middle:.2f} ({low:.2f} to {high:.2f})")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
