"""Stated confidence by reinforcement learning on a bundled model: before, taught, supervised, reinforced.

    python benchmarks/corea.py prepare OUT
    python benchmarks/corea.py train OUT --seed 0 --method grpo
    python benchmarks/corea.py train OUT --seed 0 --method supervised
    python benchmarks/corea.py report OUT --write docs/papers/corea

`prepare` writes questions of the bundled models' made-up world: facts and strangers to learn on, others that judge in
the domain, choices and passages that judge out of it, and some of all four to calibrate with. `train` runs the shipped
command, ``confcascade train-verbalized``, with the settings fixed here; each takes minutes on two cores.
`report` reads the recordings that it leaves, and asks the untrained model once more for P(T) and P(IK).

Compared on the very same questions: what the model states once it has learned the form, after learning from how often
sampled answers are right (supervised), and after reinforcement; and calibrated P(T) and P(IK) of the untrained model.
"Calibrated" is as `confcascade fit` does it, on the questions set aside for that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Stage
from confcascade.bench.collecting import collect
from confcascade.bench.metrics.ranking import auroc, auroc_interval, calibration_error
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording import read_rows
from confcascade.calibration import fit_calibrator
from confcascade.demo import answer_probability, bundled_model, bundled_probe
from confcascade.demo.world import World
from confcascade.graders import NormalizedMatch
from confcascade.graders.example import Example

SIZE = "medium"
INSTRUCTION = "Sure?"
TOKENS = 48
DOMAINS = {"in": ("facts", "refusals"), "out": ("letters", "reading")}
SETTINGS: dict[str, list[str]] = {
    "grpo": "--reward group-distance --steps 300 --questions 8 --rate 5e-4 --epochs 5 --answers 4".split(),
    "supervised": "--epochs 4 --answers 8".split(),
}
COMMON = ["--lora", "0", "--group", "16", "--rows", "128", "--supervised-rate", "1e-3"]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def prepare(out: Path, train: Annotated[int, typer.Option(help="Of each task, to learn on.")] = 1200) -> None:
    """Write the questions."""
    out.mkdir(parents=True, exist_ok=True)
    world = World()
    _write(out / "train.jsonl", world, "fit", DOMAINS["in"], train)
    for name, tasks in DOMAINS.items():
        _write(out / f"{name}.jsonl", world, "test", tasks, 500)
        _write(out / f"{name}-calibration.jsonl", world, "calibration", tasks, 500)


def _write(path: Path, world: World, split: Any, tasks: Sequence[Any], per_task: int) -> None:
    rows = [
        {"question": each.prompt, "reference": each.reference, "group": each.task}
        for each in world.questions(split, tasks=tasks, per_task=per_task)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    typer.echo(f"{path}: {len(rows)}")


@app.command()
def train(
    out: Path,
    seed: Annotated[int, typer.Option()] = 0,
    method: Annotated[str, typer.Option(help="grpo or supervised.")] = "grpo",
) -> None:
    """Train once, by the shipped command."""
    sets = [name for domain in DOMAINS for name in (domain, f"{domain}-calibration")]
    command = [
        *(sys.executable, "-m", "confcascade", "train-verbalized", str(out / "train.jsonl")),
        *("--out", str(out / f"{method}-{seed}"), "--model", f"bundled:{SIZE}", "--grader", "normalized"),
        *("--instruction", INSTRUCTION, "--max-tokens", str(TOKENS), "--method", method, "--seed", str(seed)),
        *COMMON,
        *SETTINGS[method],
        *(part for name in sets for part in ("--also", f"{name}={out / f'{name}.jsonl'}")),
    ]
    begun = time.monotonic()
    subprocess.run(command, check=True)
    path = out / f"{method}-{seed}" / "seconds.json"
    if not path.exists():
        path.write_text(json.dumps(round(time.monotonic() - begun)))


# ---------------------------------------------------------------------- the report

Scored = tuple[np.ndarray, np.ndarray]  # right, score (-1 where there is none), in the order of the questions


def _scored(path: Path, signal: str, order: Sequence[str]) -> Scored:
    rows = {row.question: row for row in read_rows(path)}
    right = np.array([(rows[each].grade or 0.0) >= 0.5 for each in order])
    found = [rows[each].scores[signal].value if signal in rows[each].scores else None for each in order]
    return right, np.array([-1.0 if value is None else value for value in found])


def _ids(path: Path) -> list[str]:
    return list(dict.fromkeys(Example(json.loads(line)["question"]).id for line in path.read_text().splitlines()))


def _calibrated(test: Scored, other: Scored) -> np.ndarray:
    """The test's scores as `fit` calibrates them, by the other's; -1 stays."""
    known = other[1] >= 0
    fitted = fit_calibrator({"score": other[1][known]}, other[0][known], {"score": (0.0, 1.0)})
    return np.array([-1.0 if each < 0 else fitted.confidence({"score": float(each)}) for each in test[1]])


def _untrained(out: Path) -> Path:
    """The model as it is, with P(T) and P(IK): its answers to all that judges."""
    folder = out / "untrained"
    folder.mkdir(exist_ok=True)
    stage = Stage(bundled_model(SIZE), [bundled_probe(SIZE), answer_probability()])
    for domain in DOMAINS:
        for name in (domain, f"{domain}-calibration"):
            rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
            examples = [Example(row["question"], references=(row["reference"],)) for row in rows]
            collect(
                examples, [stage], folder / f"{name}.jsonl",
                prompt=PROMPTS["plain"], grader=NormalizedMatch(), max_tokens=TOKENS,
            )  # fmt: skip
    return folder


def _ways(out: Path) -> Iterator[tuple[str, str, Path, str]]:
    """What is compared: its kind, its name, its recordings, and the signal in them."""
    for signal in ("p_t", "p_ik"):
        yield signal, {"p_t": "P(T), untrained", "p_ik": "P(IK), untrained"}[signal], out / "untrained", signal
    runs = sorted(path for path in out.glob("grpo-*") if (path / "model" / "stated.json").exists())
    for run in runs:
        yield "taught", f"stated, taught the form, seed {run.name[5:]}", run / "recordings" / "taught", "stated"
    for run in sorted(path for path in out.glob("supervised-*") if (path / "model" / "stated.json").exists()):
        yield "supervised", f"stated, supervised, seed {run.name[11:]}", run / "recordings" / "after", "stated"
    for run in runs:
        yield "grpo", f"stated, reinforced, seed {run.name[5:]}", run / "recordings" / "after", "stated"


@app.command()
def report(
    out: Path, write: Annotated[Path | None, typer.Option(help="Folder for the table and the figure.")] = None
) -> None:
    """Compare what has been trained."""
    _untrained(out)
    lines, figures = [], {}
    for domain, tasks in DOMAINS.items():
        order = _ids(out / f"{domain}.jsonl")
        found: dict[str, tuple[str, Scored, np.ndarray]] = {}
        for kind, name, folder, signal in _ways(out):
            test = _scored(folder / f"{domain}.jsonl", signal, order)
            # calibrated in the domain that it learned in, as a user would who does not know what comes
            known = _scored(folder / "in-calibration.jsonl", signal, _ids(out / "in-calibration.jsonl"))
            found[name] = (kind, test, _calibrated(test, known))
        lines += [f"**{' and '.join(tasks)}** ({len(order)} questions):", "", *_table(found), "", *_against(found), ""]
        figures[domain] = found
    text = "\n".join(lines)
    typer.echo(text)
    if write is not None:
        write.mkdir(parents=True, exist_ok=True)
        (write / "bundled.md").write_text(text.rstrip() + "\n")
        _plot(figures, write / "bundled.png")


def _table(found: dict[str, tuple[str, Scored, np.ndarray]]) -> Iterator[str]:
    yield "| confidence | scored | right | AUROC (95 %) | ECE | ECE, calibrated |"
    yield "|---|---|---|---|---|---|"
    for name, (_, (right, score), calibrated) in found.items():
        known = score >= 0
        area, (low, high) = auroc(right, score), auroc_interval(right, score) or (0.0, 1.0)
        eces = (calibration_error(right[known], each[known]) for each in (score, calibrated))
        yield (
            f"| {name} | {known.mean():.0%} | {right.mean():.1%} | {area:.3f} ({low:.3f} to {high:.3f}) "
            f"| {' | '.join(f'{each:.3f}' for each in eces)} |"
        )


def _against(found: dict[str, tuple[str, Scored, np.ndarray]]) -> Iterator[str]:
    """The difference of each reinforced seed's AUROC to the best of each other kind, by a paired bootstrap."""
    names = {"taught": "taught the form", "supervised": "supervised", "p_t": "P(T)", "p_ik": "P(IK)"}
    yield "| seed | " + " | ".join(f"AUROC less that of {name}, best seed" for name in names.values()) + " |"
    yield "|---|" + "---|" * len(names)
    for name, (kind, mine, _) in found.items():
        if kind == "grpo":
            cells = []
            for other in names:
                rivals = [scored for k, scored, _ in found.values() if k == other]
                if rivals:
                    best = max(rivals, key=lambda scored: auroc(*scored) or 0.0)
                    cells.append("{:+.3f} ({:+.3f} to {:+.3f})".format(*_difference(mine, best)))
                else:
                    cells.append("-")
            yield f"| {name.rpartition(' ')[2]} | {' | '.join(cells)} |"


def _difference(mine: Scored, other: Scored, draws: int = 2000) -> tuple[float, float, float]:
    """Of two AUROCs on the same questions, with the 95 % interval of draws of questions."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        at = rng.integers(0, len(mine[0]), len(mine[0]))
        areas = [auroc(right[at], score[at]) for right, score in (mine, other)]
        if None not in areas:
            drawn.append(areas[0] - areas[1])  # type: ignore[operator]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return (auroc(*mine) or 0.0) - (auroc(*other) or 0.0), float(low), float(high)


def _plot(figures: dict[str, dict[str, tuple[str, Scored, np.ndarray]]], path: Path) -> None:
    """Reliability, and accuracy of what is kept over how much is kept."""
    import matplotlib

    matplotlib.use("Agg")
    from confcascade.bench.metrics.ranking import reliability, risk_coverage
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(figures), figsize=(10, 8))
    kinds = {"taught": "C1", "supervised": "C2", "grpo": "C0", "p_t": "C3", "p_ik": "C4"}
    for column, (domain, found) in enumerate(figures.items()):
        for name, (kind, (right, score), _) in found.items():
            known = score >= 0
            label = name.partition(", seed")[0] if name.endswith(("0", "untrained")) else None
            bins = reliability(right[known], score[known])
            axes[0][column].plot(bins[:, 2], bins[:, 1], "o-", color=kinds[kind], markersize=3, alpha=0.7, label=label)
            kept = np.arange(1, len(right) + 1) / len(right)
            accuracy = 1 - risk_coverage(right, score)
            axes[1][column].plot(kept, accuracy, color=kinds[kind], alpha=0.7, label=label)
        axes[0][column].plot([0, 1], [0, 1], ":", color="grey")
        axes[0][column].set_title(f"{domain} of the domain: {' and '.join(DOMAINS[domain])}", fontsize=9)
        axes[0][column].set_xlabel("confidence")
        axes[0][column].set_ylabel("right answers")
        axes[1][column].set_xlabel("share of the answers kept")
        axes[1][column].set_ylabel("right answers among them")
        axes[1][column].set_xlim(0.05, 1)
        axes[0][column].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    app()
