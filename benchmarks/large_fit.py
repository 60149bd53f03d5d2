"""`confcascade fit` and `confcascade evaluate` on a recording of a million rows: seconds, CPU time and memory.

    python benchmarks/large_fit.py

Made-up answers of three models without tokens. Each command is a process of its own; memory is the most that it ever
held, and on a busy machine CPU time is the one to compare. The recording takes about 350 MB of disk, in a temporary
folder. With `--core FOLDER` the commands run from another checkout's `core` folder, so that two versions of confcascade
can be compared on the same rows.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

MODELS = {"3B": 0.6, "8B": 0.75, "70B": 0.9}  # with the share of answers that are right


def write(path: Path, questions: int) -> None:
    """JSON Lines, one row for each question and model, in the recording's own format."""
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(questions):
            for model, accuracy in MODELS.items():
                right = rng.random() < accuracy
                scores = {
                    "p_ik": {"value": 0.3 * right + 0.7 * rng.random(), "phase": "pre", "prefill": True},
                    "p_t": {"value": 0.3 * right + 0.7 * rng.random()},
                }
                row = {
                    "question": f"question {i}",
                    "model": model,
                    "group": f"subject {i % 57}",
                    "prompt": f"What is the answer to question {i}?",
                    "reference": "B",
                    "answer": "B" if right else "A",
                    "predicted": "B" if right else "A",
                    "grade": float(right),
                    "scores": scores,
                    "usage": {"input_tokens": rng.randrange(50, 500), "output_tokens": 12},
                    "latency_s": rng.random(),
                }
                file.write(json.dumps(row) + "\n")


def measured(arguments: list[str], core: Path | None) -> tuple[int, float, float, float]:
    """Exit status, seconds, seconds of CPU and MB of `confcascade` with these arguments."""
    environment = os.environ if core is None else os.environ | {"PYTHONPATH": str(core)}
    begun = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "confcascade.cli", *arguments], environment)
    _, status, usage = os.wait4(pid, 0)
    seconds, busy = time.perf_counter() - begun, usage.ru_utime + usage.ru_stime
    return os.waitstatus_to_exitcode(status), seconds, busy, usage.ru_maxrss / 1024


def main(
    questions: Annotated[int, typer.Option(help="A third of the rows.")] = 333_334,
    core: Annotated[list[Path], typer.Option(help="`core` folders to run from, in turns.")] = [],  # noqa: B006
    repeats: Annotated[int, typer.Option()] = 1,
) -> None:
    """Write the recording, then run both commands from each folder."""
    table = Table("command", "from", "s", "CPU s", "MB", "exit status")
    sizes = ["--parameters", "3B=3B,8B=8B,70B=70B"]
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.jsonl"
        write(recording, questions)
        policy = f"{folder}/policy.json"
        commands = {
            "fit": ["fit", str(recording), "-o", policy, "--max-drop", "0.02", *sizes],
            "evaluate": [
                "evaluate",
                str(recording),
                "--policy",
                policy,
                "-o",
                f"{folder}/report",
                *sizes,
            ],
        }
        for _ in range(repeats):
            for name, arguments in commands.items():
                for each in core or [None]:
                    status, seconds, busy, memory = measured(arguments, each)
                    figures = f"{seconds:.1f}", f"{busy:.1f}", f"{memory:,.0f}", str(status)
                    table.add_row(name, str(each or "here"), *figures)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
