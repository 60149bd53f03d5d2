"""The experiment of "Confidence-Driven Multi-Scale Model Selection", whole and live, on the bundled models.

    python benchmarks/confidence_driven.py --out FOLDER

Trains P(IK) probes for the small and the medium model, asks four sets of questions (`confidence_driven_sets`) through
every pair and the triple, with and without P(IK), at thresholds 0.5, 0.7, 0.9 and 0.95, each a live
`Cascade.run_batch`, and writes into FOLDER: figures.json, runs.csv, tables.md and two plots. The same threshold holds
for P(IK) and P(T), as the paper seems to do. Nothing is chosen on the questions that are reported on; probes learn from
another split.

Beside it, each model is asked each question once, and every run is replayed from that recording: the two must agree,
but for scores next to a threshold, or the command ends with an error.

Of multiple choice P(T) is raw, over the whole vocabulary. Costs are FLOPs of each token with its context; dollars are
what the paper's Table 12 would charge for as many tokens, small as 3B, medium as 8B, large as 70B.
"""

from __future__ import annotations

import csv
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Architecture, Cascade, Stage, TransformersModel
from confcascade.bench.metrics.ranking import auroc, macro_scores
from confcascade.bench.recording import Columns, Row
from confcascade.bench.replay import replay
from confcascade.demo import bundled_probe
from confcascade.demo.measure import request
from confcascade.demo.world import World
from confcascade.graders.grade import is_right
from confcascade.models.bundled import SIZES, bundled_model
from confidence_driven_plots import Sweeps, all_swept, areas, draw
from confidence_driven_runs import (
    POLICIES,
    PRICES,
    THRESHOLDS,
    Answers,
    Probes,
    differing,
    near,
    quality,
    record,
    run_figures,
)
from confidence_driven_sets import QuestionSet, lessons, question_sets, train_probe
from confidence_driven_tables import markdown
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

PROMPT = (  # Table 7, as printed
    "The following are multiple choice questions about {subject}. Please determine the correct answer in the format "
    '"Answer: <answer>", where <answer> is A, B, C or D.\n Question: {question}\n Choices: {choices}\n Answer:'
)


# ---------------------------------------------------------------------- probes and P(T)


def probe_figures(name: str, right: NDArray[np.bool_], p_ik: NDArray[np.float64]) -> dict[str, Any]:
    """Table 14's columns, with what always saying the same would reach; and what passes at the paper's threshold."""
    predicted = p_ik >= 0.5
    return {
        "learnt": name,
        "n": len(right),
        "accuracy": round(float((predicted == right).mean()), 4),
        "majority": round(float(max(right.mean(), 1 - right.mean())), 4),
        "macro_f1": round(macro_scores(list(map(str, predicted)), list(map(str, right)))[2], 4),
        "auroc": None if (area := auroc(right, p_ik)) is None else round(area, 4),
        "passing": {f"{t:g}": [int((p_ik >= t).sum()), int(right[p_ik >= t].sum())] for t in THRESHOLDS},
    }


def normalised_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """How P(T) over the whole vocabulary differs from P(T) over the labels alone, of the models that are gated."""
    scores = [row.scores["p_t"] for row in rows if "p_t" in row.scores]
    raw, mass = np.array(  # an answer that is no label has no score
        [(score.value, score.details["label_mass"]) for score in scores if score.value is not None]
    ).T
    return {
        "answers": len(raw),
        "least_label_mass": round(float(mass.min()), 4),
        "mean_label_mass": round(float(mass.mean()), 4),
        "decided_otherwise": {f"{t:g}": int(((raw >= t) != (raw / mass >= t)).sum()) for t in THRESHOLDS},
    }


# ---------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Experiment:
    """Figures, JSON-ready; each set's recording as arrays; every threshold replayed; and the models' sizes."""

    figures: dict[str, Any]
    recordings: dict[str, Columns]
    sweeps: Sweeps
    architectures: dict[str, Architecture]


def experiment(
    sets: Sequence[QuestionSet],
    models: Mapping[str, TransformersModel],
    probes: Probes,
    told: Callable[[], object] = lambda: None,
) -> Experiment:
    """Every run of every set, live, and each once more from a recording.

    Args:
        sets: Of questions.
        models: By size.
        probes: By what they learnt from and model, "shipped" among them.
        told: Called after each model and each policy of a set.
    """
    alone: dict[str, Any] = {}
    runs, quality_of_probes, agreement = [], [], {"runs": 0, "answers": 0, "differing": 0, "near": 0}
    recordings: dict[str, Columns] = {}
    normalised = {}
    architectures = {size: model.architecture for size, model in models.items()}
    for asked in sets:
        requests = [request(question) for question in asked.questions]
        rows: list[Row] = []
        single: dict[str, Answers] = {}
        for size, model in models.items():
            gated = size != SIZES[-1]
            rows += record(model, asked, [probes[asked.probe, size], asked.p_t()] if gated else [])
            single[size] = Answers.of(asked.questions, Cascade([Stage(model, prices=PRICES[size])]).run_batch(requests))
            told()
        columns = recordings[asked.name] = Columns.of(rows)
        alone[asked.name] = {
            size: {
                **quality(asked, answers),
                "flops": round(float(answers.flops.mean())),
                "usd_per_1000": round(1e3 * float(answers.usd.mean()), 6),
            }
            for size, answers in single.items()
        }
        for size in SIZES[:-1]:
            right = is_right(columns.grades[:, columns.index(size)])
            shipped = probes["shipped", size]
            states = models[size].hidden_states(requests, shipped.card.layer)
            for name, p_ik in (
                (asked.probe, columns.signal(size, "p_ik").values),
                ("shipped", shipped.predict(states)),
            ):
                quality_of_probes.append({"set": asked.name, "model": size, **probe_figures(name, right, p_ik)})
        if asked.labels:
            normalised[asked.name] = normalised_figures(rows)
        for policy in POLICIES:
            outcomes = Cascade(policy.stages(asked, models, probes)).run_batch(requests)
            answers = Answers.of(asked.questions, outcomes)
            runs.append(run_figures(asked, policy, outcomes, answers, single))
            played = replay(columns, policy.replayed(), architectures=architectures)
            doubtful = near(columns, policy)
            agreement["runs"] += 1
            agreement["answers"] += int((~doubtful).sum())
            agreement["near"] += int(doubtful.sum())
            agreement["differing"] += int((differing(played, outcomes, answers) & ~doubtful).sum())
            told()
    sweeps = all_swept(recordings, architectures)
    figures = {
        "sets": {asked.name: {"n": len(asked.questions), "stands_for": asked.stands_for} for asked in sets},
        "alone": alone,
        "runs": runs,
        "probes": quality_of_probes,
        "areas": areas(recordings, sweeps, architectures),
        "normalised": normalised,
        "replay": agreement,
        "paper_prompt": paper_prompt(models, next(asked for asked in sets if asked.name == "letters")),
    }
    return Experiment(figures, recordings, sweeps, architectures)


def paper_prompt(models: Mapping[str, TransformersModel], asked: QuestionSet) -> dict[str, float]:
    """How often models are right that are asked in the words of Table 7."""
    found = {}
    for size, model in models.items():
        texts = []
        for question in asked.questions:
            first, choices = question.prompt.split("\n", 1)
            texts.append(PROMPT.format(subject="the world", question=first, choices=choices))
        outcomes = Cascade([Stage(model)]).run_batch(texts)
        right = [q.is_correct(outcome.text) for q, outcome in zip(asked.questions, outcomes, strict=True)]
        found[size] = round(float(np.mean(right)), 4)
    return found


def as_json(figures: Mapping[str, Any]) -> str:
    """One run, probe or other figure to a line."""

    def value(each: Any) -> str:
        if isinstance(each, list):
            return "[\n  " + ",\n  ".join(map(json.dumps, each)) + "\n ]"
        return json.dumps(each)

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {value(each)}" for key, each in figures.items()) + "\n}\n"


def write(found: Experiment, out: Path) -> None:
    """The folder: JSON, CSV, Markdown and plots."""
    (out / "figures.json").write_text(as_json(found.figures))
    (out / "tables.md").write_text(
        "\n\n".join(f"## {title}\n\n{table}" for title, table in markdown(found.figures).items()) + "\n"
    )
    flat = [
        {key: "/".join(map(str, value)) if isinstance(value, list) else value for key, value in run.items()}
        for run in found.figures["runs"]
    ]
    with (out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for run in flat for key in run)))
        writer.writeheader()
        writer.writerows(flat)
    draw(found.figures, found.recordings, found.sweeps, found.architectures, out)


def main(
    out: Annotated[Path, typer.Option(help="folder of tables and figures; made if missing")],
    most: Annotated[int | None, typer.Option(help="most questions of a kind; all by default")] = None,
) -> None:
    import torch

    torch.set_num_threads(1)  # such small models are slower on more
    console = Console(width=max(Console().width, 132))  # narrower, figures would be cut
    out.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    world = World()
    sets = question_sets(world, most)
    models = {size: bundled_model(size) for size in SIZES}
    learnt = lessons(world)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn(), console=console) as shown:
        step = shown.add_task("probes", total=2 * len(learnt) * (len(SIZES) - 1))
        probes = {("shipped", size): bundled_probe(size) for size in SIZES[:-1]}
        for (name, questions), size in product(learnt.items(), SIZES[:-1]):
            probes[name, size] = train_probe(models[size], questions, lambda: shown.advance(step))
        runs = shown.add_task("live runs", total=len(sets) * (len(POLICIES) + len(SIZES)))
        found = experiment(sets, models, probes, lambda: shown.advance(runs))
    figures = {
        "command": f"python benchmarks/confidence_driven.py --out FOLDER{'' if most is None else f' --most {most}'}",
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: version(name) for name in ("confcascade", "numpy", "torch", "transformers")}
        | {"python": platform.python_version()},
        "models": {size: model.fingerprint for size, model in models.items()},
        "learnt_from": {name: len(questions) for name, questions in learnt.items()},
        "cpu_seconds": round(time.process_time() - begun),
    }
    found = replace(found, figures=figures | found.figures)
    write(found, out)
    for table in markdown(found.figures).values():
        console.print(table, markup=False, highlight=False, soft_wrap=True)
        console.print()
    console.print(f"{out}: figures.json, runs.csv, tables.md, sensitivity.png, cost.png")
    console.print(f"{figures['cpu_seconds']} seconds of CPU")
    if found.figures["replay"]["differing"]:
        raise typer.Exit(1)  # a live run is not its replay


if __name__ == "__main__":
    typer.run(main)
