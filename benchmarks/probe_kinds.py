"""Which probe knows best what a model knows: linear or not, from which block, with classes balanced or not.

    python benchmarks/probe_kinds.py OUT

Writes the bundled models' questions for fitting (facts in all wordings, sums, letters, reading, strangers) to OUT, runs
`confcascade train-probe` on them for each size, kind and seed, and prints the tables of docs/design/probes.md from the
``training.json`` of each run. Runs that are there are not made again. Questions on one fact or sum stay in one part.

What it does not tell: how probes of large models do, whose hidden states have a hundred times the dimensions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from confcascade.demo.world import World
from confcascade.models.bundled import SIZES

KINDS = ("linear", "mlp")
SEEDS = (0, 1)
DEPTHS = "0.5,0.75,1.0"


def write_questions(path: Path, per_task: int) -> None:
    """The questions on which the bundled probes were trained, each with what wordings of one fact share."""
    world = World()
    questions = [each for each in world.questions("fit", per_task=per_task) if each.task != "facts"]
    questions += world.facts_in_every_wording("fit")
    rows = {q.prompt: {"question": q.prompt, "reference": q.reference, "group": q.key} for q in questions}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


def run(folder: Path, source: Path, size: str, kind: str, balanced: bool, seed: int, depths: str) -> None:
    """One training, as a user would start it."""
    if (folder / "training.json").exists():
        return
    command = [sys.executable, "-m", "confcascade.cli", "train-probe", str(source), "-o", str(folder)]
    command += ["--model", f"bundled:{size}", "--by-group", "--kind", kind, "--seed", str(seed), "--depths", depths]
    command += ["--balanced" if balanced else "--no-balanced", "--no-plots"]
    if source.name == "questions.jsonl":
        command += ["--grader", "normalized"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run_all(out: Path, sizes: Sequence[str], seeds: Sequence[int], per_task: int, depths: str) -> None:
    """Every size, seed and kind, balanced and not; answers and hidden states are made once for each size."""
    out.mkdir(parents=True, exist_ok=True)
    questions = out / "questions.jsonl"
    if not questions.exists():
        write_questions(questions, per_task)
    for size in sizes:
        first: Path | None = None
        for seed, balanced, kind in itertools.product(seeds, (False, True), KINDS):
            folder = out / name(size, kind, balanced, seed)
            if first is not None and not (folder / "states").exists():  # they hang on neither seed nor kind
                shutil.copytree(first / "states", folder / "states")
            run(folder, questions if first is None else first / "recording.jsonl", size, kind, balanced, seed, depths)
            first = first or folder
            print(f"{folder.name} done", file=sys.stderr, flush=True)


def name(size: str, kind: str, balanced: bool, seed: int) -> str:
    return f"{size}-{kind}-{'balanced' if balanced else 'plain'}-{seed}"


# ---------------------------------------------------------------------- telling


def tables(out: Path, sizes: Sequence[str], seeds: Sequence[int]) -> str:
    """Means over the seeds, as Markdown; in brackets the least and the greatest."""

    def told(size: str, kind: str, balanced: bool = False) -> list[dict[str, Any]]:
        return [json.loads((out / name(size, kind, balanced, s) / "training.json").read_text()) for s in seeds]

    lines = [row("model", "right", "kind", "block: validation AUROC", "test AUROC", "Brier", "Brier of the base rate")]
    lines.append("|---" * 7 + "|")
    for size, kind in itertools.product(sizes, KINDS):
        runs = told(size, kind)
        blocks = [each["layer"] for each in runs[0]["candidates"]]
        by_block = [mean(each["candidates"][i]["auroc"] for each in runs) for i in range(len(blocks))]
        shown = ", ".join(f"{block}: {area:.3f}" for block, area in zip(blocks, by_block, strict=True))
        rate = f"{runs[0]['probe']['base_rate']:.1%}"
        tests = [each["test"] for each in runs]
        briers = (mean(each[key] for each in tests) for key in ("brier", "brier_base_rate"))
        lines.append(
            row(size, rate, kind, shown, spread(each["auroc"] for each in tests), *(f"{b:.3f}" for b in briers))
        )
    lines += ["", row("model", "kind", "test AUROC", "balanced", "Brier", "balanced"), "|---" * 6 + "|"]
    for size, kind in itertools.product(sizes, KINDS):
        plain, even = ([each["test"] for each in told(size, kind, balanced)] for balanced in (False, True))
        areas = (spread(each["auroc"] for each in runs) for runs in (plain, even))
        briers = (f"{mean(each['brier'] for each in runs):.3f}" for runs in (plain, even))
        lines.append(row(size, kind, *areas, *briers))
    lines += ["", row("model", "kind", "examples: validation AUROC"), "|---" * 3 + "|"]
    for size, kind in itertools.product(sizes, KINDS):
        curves = [each["learning_curve"] for each in told(size, kind)]
        points = [(mean(p["examples"] for p in at), mean(p["auroc"] for p in at)) for at in zip(*curves, strict=True)]
        lines.append(row(size, kind, ", ".join(f"{examples:.0f}: {area:.3f}" for examples, area in points)))
    return "\n".join(lines)


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: Iterable[float]) -> str:
    known = list(values)
    return f"{mean(known):.3f} ({min(known):.3f} to {max(known):.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--sizes", nargs="+", default=["small", "medium"], choices=SIZES)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--per-task", type=int, default=600, help="questions of each task but facts")
    parser.add_argument("--depths", default=DEPTHS)
    given = parser.parse_args(arguments)
    run_all(given.out, given.sizes, given.seeds, given.per_task, given.depths)
    print(tables(given.out, given.sizes, given.seeds))


if __name__ == "__main__":
    main()
