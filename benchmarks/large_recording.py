"""A recording of a million questions to three models, read and swept whole and in parts: seconds and memory.

    python benchmarks/large_recording.py

Made-up answers without tokens. Each line is a process of its own; memory is the most that it ever held, of which
Python with numpy and pyarrow takes about 150 MB. The recording takes about 150 MB of disk, in a temporary folder.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from confcascade import Architecture, Usage
from confcascade.bench.recording import RecordedScore, Row, part_paths, read_columns, write_parts
from confcascade.bench.replay import PolicyStage, sweep
from rich.console import Console
from rich.table import Table

MODELS = {"3B": Architecture(3, 1, 1), "8B": Architecture(8, 1, 1), "70B": Architecture(70, 1, 1)}


def made_up(questions: int) -> Iterator[Row]:
    """Rows with P(IK), and a P(T) that could end each draft at one of three tokens."""
    rng = random.Random(0)
    for i in range(questions):
        for m, model in enumerate(MODELS):
            right = rng.random() < 0.6 + 0.15 * m
            known, likely = 0.3 * right + 0.7 * rng.random(), 0.3 * right + 0.7 * rng.random()
            upper = ((1, likely + 0.4), (3, likely + 0.1), (7, likely))
            yield Row.model_construct(  # made here, so there is nothing to validate
                question=f"question {i}",
                model=model,
                group=f"subject {i % 57}",
                answer="B" if right else "A",
                grade=float(right),
                tokens=None,
                labels={},
                scores={
                    "p_ik": RecordedScore.model_construct(value=known, phase="pre", prefill=True),
                    "p_t": RecordedScore.model_construct(value=likely, upper=upper),
                },
                usage=Usage(rng.randrange(50, 500), 12),
                latency_s=rng.random(),
                prefill_s=0.05,
            )


def measure(path: Path, parts: bool, policies: int) -> None:
    """Read and sweep; prints JSON."""
    chains = [
        [PolicyStage("3B", {"p_ik": a, "p_t": b}), PolicyStage("8B", {"p_ik": a, "p_t": b}), PolicyStage("70B")]
        for a, b in ([i / policies, 1 - i / policies] for i in range(policies))
    ]
    begun = time.perf_counter()
    if parts:
        swept = sweep(map(read_columns, part_paths(path)), chains, architectures=MODELS)
        read = None
    else:
        columns = read_columns(path)
        read = time.perf_counter() - begun
        swept = sweep(columns, chains, architectures=MODELS)
    took = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"read": read, "all": took, "peak": peak, "best": float(swept.accuracy.max())}))


def main(
    questions: Annotated[int, typer.Option()] = 1_000_000,
    parts: Annotated[int, typer.Option()] = 16,
    policies: Annotated[int, typer.Option()] = 100,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if one:
        kind, path = one.split(":", 1)
        measure(Path(path), kind == "parts", policies)
        return
    table = Table("recording", "read, s", "read and swept, s", "peak memory, MB", "best accuracy")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        begun = time.perf_counter()
        count = write_parts(made_up(questions), path, parts)
        size = sum(part.stat().st_size for part in path.iterdir()) / 1e6
        took = time.perf_counter() - begun
        Console().print(f"{count:,} rows made and written in {took:,.0f} s, {size:,.0f} MB in {parts} parts")
        for kind in ("whole", "parts"):
            command = [sys.executable, __file__, "--one", f"{kind}:{path}", "--policies", str(policies)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            read = "–" if found["read"] is None else f"{found['read']:.1f}"
            table.add_row(kind, read, f"{found['all']:.1f}", f"{found['peak']:,.0f}", f"{found['best']:.6f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
