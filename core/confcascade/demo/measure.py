"""Measure the bundled models and choose the demo's cascade: ``python -m confcascade.demo.measure``.

1. Ask every model every question once, and keep its answer, its P(T), its tokens and its hidden state.
2. Train each model's P(IK) probe on the split "fit", facts in every wording.
3. Choose stages and thresholds on the split "calibration": the cheapest within half a point of the largest model.
4. Run that cascade, live, on the split "test", and write every figure to ``weights/figures.json``.

No question, fact or stranger that is asked about is shared by two splits (a passage may mention others), and no test
question has a hand in steps 2 and 3. Overwrites the probes, the policy and the figures beside the weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confcascade.asks import Generate
from confcascade.cascade import Cascade
from confcascade.cost import Architecture
from confcascade.demo import answer_probability, bundled_probe, bundled_stages
from confcascade.demo.world import TASKS, Question, Split, World
from confcascade.models.bundled import SIZES, WEIGHTS, bundled_model
from confcascade.models.local import TransformersModel
from confcascade.signals import Evidence
from confcascade.signals.knowledge_probe import KnowledgeProbe, resolve_layer
from confcascade.types import Message, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from confcascade.bench.recording import Columns, Row
    from confcascade.bench.replay import PolicyStage, Replay

DEPTH = 1.0  # on the validation part of a probe for the smallest model, 0.75 was worse
QUESTIONS: dict[Split, int] = {"fit": 600, "calibration": 250, "test": 500}  # most per task
TOLERANCE = 0.005  # accuracy that may be given up on the calibration split


@dataclass(frozen=True)
class Measured:
    """One model's answers to a list of questions, and its hidden states, of shape (questions, hidden_size)."""

    rows: tuple[Row, ...]
    hidden: NDArray[np.float32]


def request(question: Question) -> Request:
    return Request(Message.parse(question.prompt))


def ask_all(model: TransformersModel, questions: Sequence[Question]) -> Measured:
    """Let `model` answer all questions, in batches of similar length."""
    import numpy as np

    from confcascade.bench.recording import Row, score_of
    from confcascade.demo.world import UNKNOWN

    signal = answer_probability()
    n, size = len(questions), model.capability.batch_size
    hidden = np.zeros((n, model.capability.hidden_size), np.float32)
    found: dict[int, Row] = {}
    order = sorted(range(n), key=lambda i: len(questions[i].prompt))
    layer = resolve_layer(DEPTH, model.capability.layers)
    for start in range(0, n, size):
        batch = order[start : start + size]
        asked = [request(questions[i]) for i in batch]
        hidden[batch] = model.hidden_states(asked, layer)
        for i, one, answer in zip(batch, asked, model.generate([Generate(model, one) for one in asked]), strict=True):
            if isinstance(answer, Exception):
                raise answer
            found[i] = Row(
                question=str(i),
                model=model.name,
                group=questions[i].task,
                answer=answer.text,
                grade=float(questions[i].is_correct(answer.text)),
                refused=answer.text.startswith(UNKNOWN),
                finish_reason=answer.finish_reason,
                tokens=answer.tokens,
                scores={signal.name: score_of(signal, Evidence(one, None, answer.tokens, answer))},
                usage=answer.usage,
            )
    return Measured(tuple(found[i] for i in range(n)), hidden)


def recording(measured: Mapping[str, Measured], p_ik: Mapping[str, NDArray[np.float64]]) -> Columns:
    """The answers of all models, with P(T) and P(IK)."""
    from confcascade.bench.recording import Columns, RecordedScore

    def rows() -> Iterator[Row]:
        for size, answers in measured.items():
            for row, known in zip(answers.rows, p_ik[size].tolist(), strict=True):
                probed = RecordedScore(value=known, phase="pre", prefill=True, depth=DEPTH)
                yield row.model_copy(update={"scores": {"p_ik": probed, **row.scores}})

    return Columns.of(rows())


def of_task(questions: Sequence[Question], task: str) -> list[int]:
    return [i for i, question in enumerate(questions) if question.task == task]


def model_figures(columns: Columns, size: str) -> dict[str, Any]:
    """One model's accuracy, and AUROC of P(T) and P(IK) within each task."""
    import numpy as np

    from confcascade.bench.metrics.ranking import auroc
    from confcascade.graders.grade import is_right

    j = columns.index(size)
    correct, refused = is_right(columns.grades[:, j]), columns.refused[:, j]
    # an empty answer has no P(T), and whatever the threshold it is passed on
    p_t = np.nan_to_num(columns.signal(size, "p_t").values, nan=0.0)
    p_ik = columns.signal(size, "p_ik").values

    def rounded(area: float | None) -> float | None:
        return None if area is None else round(area, 3)

    figures: dict[str, Any] = {}
    for task in TASKS:
        rows = columns.groups == task
        figures[task] = {
            "n": int(rows.sum()),
            "accuracy": round(float(correct[rows].mean()), 4),
            "refused": round(float(refused[rows].mean()), 4),
            "auroc_p_t": rounded(auroc(correct[rows], p_t[rows])),
            "auroc_p_ik": rounded(auroc(correct[rows], p_ik[rows])),
        }
    return figures


# ---------------------------------------------------------------------- choosing a cascade


def candidates() -> Iterable[tuple[float, float]]:
    """Pairs of thresholds on P(IK) and P(T)."""
    return itertools.product(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99),
    )


def policies() -> list[list[PolicyStage]]:
    """The largest model alone, every pair with it, and the whole chain; thresholds from lax to strict."""
    from confcascade.bench.replay import PolicyStage

    stages = {
        size: [PolicyStage(size, {"p_ik": knows, "p_t": likely}) for knows, likely in candidates()]
        for size in SIZES[:-1]
    }
    gated = [(), *((stage,) for each in stages.values() for stage in each), *itertools.product(*stages.values())]
    return [[*each, PolicyStage(SIZES[-1])] for each in gated]


def choose(columns: Columns, architectures: Mapping[str, Architecture]) -> dict[str, Any]:
    """The cheapest cascade, drafts charged as they end, that is within `TOLERANCE` of the largest model.

    Of equally cheap ones, which keep the same answers, the one with the strictest thresholds.
    """
    import numpy as np

    from confcascade.bench.replay import sweep

    tried = policies()
    swept = sweep(columns, tried, architectures=architectures)
    flops = np.where(swept.accuracy >= swept.accuracy[0] - TOLERANCE, swept.cost.flops, np.inf)
    *gated, last = tried[np.flatnonzero(flops <= flops.min() * (1 + 1e-9))[-1]]  # sums differ in their last digits
    stages: list[dict[str, Any]] = [{"model": stage.model, "thresholds": dict(stage.thresholds)} for stage in gated]
    return {"chosen_on": "calibration", "tolerance": TOLERANCE, "stages": [*stages, {"model": last.model}]}


# ---------------------------------------------------------------------- comparing with the largest model


def compare(questions: Sequence[Question], outcomes: Sequence[Any], largest: Replay) -> dict[str, Any]:
    """The live cascade beside the largest model alone, per task and in all, in both accountings."""
    import numpy as np

    from confcascade.bench.metrics.significance import mcnemar, paired_difference, saving
    from confcascade.graders.grade import is_right

    correct = np.array([q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)])
    every = np.array([o.record.cost.flops for o in outcomes])
    answering = np.array([o.record.cost_answering_stage.flops for o in outcomes])
    answered_by = np.array([o.record.answered_by for o in outcomes])
    alone, flops = is_right(largest.grade), largest.cost.flops
    table = {}
    for task in (*TASKS, "all"):
        rows = list(range(len(questions))) if task == "all" else of_task(questions, task)
        difference, low, high = paired_difference(correct[rows], alone[rows])
        saved, saved_low, saved_high = saving(every[rows], flops[rows])
        table[task] = {
            "n": len(rows),
            "accuracy_largest": round(float(alone[rows].mean()), 4),
            "accuracy_cascade": round(float(correct[rows].mean()), 4),
            "difference_points": [round(100 * x, 2) for x in (difference, low, high)],
            "mcnemar_p": round(mcnemar(correct[rows], alone[rows]), 4),
            "flops_saved_percent": [round(100 * x, 1) for x in (saved, saved_low, saved_high)],
            "flops_saved_percent_answering_stage_only": round(
                100 * float(1 - answering[rows].sum() / flops[rows].sum()), 1
            ),
            "answered_by": {
                name: round(float((answered_by[rows] == name).mean()), 3) for name in dict.fromkeys(answered_by)
            },
        }
    return table


# ---------------------------------------------------------------------- telling


def tables(figures: dict[str, Any]) -> str:
    """The figures as the Markdown tables of ``docs/bundled-models.md``."""

    def row(*cells: Any) -> str:
        return "| " + " | ".join("–" if cell is None else str(cell) for cell in cells) + " |"

    lines = [
        row("task", "n", *(f"{size}: accuracy" for size in SIZES), *(f"{size}: AUROC P(T) / P(IK)" for size in SIZES))
    ]
    lines.append("|" + "---|" * (2 + 2 * len(SIZES)))
    for task in TASKS:
        each = [figures["models"][size][task] for size in SIZES]
        scores = [
            " / ".join("–" if m[key] is None else f"{m[key]:.2f}" for key in ("auroc_p_t", "auroc_p_ik")) for m in each
        ]
        lines.append(row(task, each[0]["n"], *(f"{m['accuracy']:.1%}" for m in each), *scores))
    lines += ["", row("stage", "P(IK) at least", "P(T) at least"), "|---|---|---|"]
    for stage in figures["policy"]:
        thresholds = stage.get("thresholds", {})
        lines.append(row(stage["model"], thresholds.get("p_ik"), thresholds.get("p_t")))
    header = (
        "task",
        "n",
        "large alone",
        "cascade",
        "difference, points (95 %)",
        "McNemar p",
        "compute saved (95 %)",
        "answering stage only",
    )
    lines += ["", row(*header), "|" + "---|" * len(header)]
    for task, each in figures["cascade"].items():
        (mean, low, high), (saved, saved_low, saved_high) = each["difference_points"], each["flops_saved_percent"]
        lines.append(
            row(
                task,
                each["n"],
                f"{each['accuracy_largest']:.1%}",
                f"{each['accuracy_cascade']:.1%}",
                f"{mean:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{each['mcnemar_p']:.3f}",
                f"{saved:.1f} % ({saved_low:.1f} to {saved_high:.1f})",
                f"{each['flops_saved_percent_answering_stage_only']:.1f} %",
            )
        )
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    import torch
    from rich.progress import Progress

    from confcascade.bench.replay import PolicyStage, replay
    from confcascade.graders.grade import is_right

    torch.set_num_threads(1)  # such small models are slower on more
    world = World()
    with Progress(transient=True) as progress:
        step = progress.add_task("asking", total=3 * len(SIZES) + 1)
        questions = {split: world.questions(split, per_task=n) for split, n in QUESTIONS.items()}
        questions["fit"] = [q for q in questions["fit"] if q.task != "facts"] + world.facts_in_every_wording("fit")
        measured: dict[str, dict[str, Measured]] = {split: {} for split in QUESTIONS}
        p_ik: dict[str, dict[str, NDArray[np.float64]]] = {split: {} for split in QUESTIONS}
        architectures = {}
        for size in SIZES:
            model = bundled_model(size)
            architectures[size] = model.architecture
            for split in QUESTIONS:
                measured[split][size] = ask_all(model, questions[split])
                progress.advance(step)
            fit = measured["fit"][size]
            probe = KnowledgeProbe.fit(
                model,
                fit.hidden,
                [is_right(row.grade) for row in fit.rows],
                layer=DEPTH,
                groups=[question.key for question in questions["fit"]],
            )
            probe.save(WEIGHTS / size / "probe")
            for split in QUESTIONS:
                p_ik[split][size] = bundled_probe(size).predict(measured[split][size].hidden)
        policy = choose(recording(measured["calibration"], p_ik["calibration"]), architectures)
        (WEIGHTS / "policy.json").write_text(json.dumps(policy, indent=1) + "\n")
        outcomes = Cascade(bundled_stages()).run_batch([question.prompt for question in questions["test"]])
        progress.advance(step)
    test = recording(measured["test"], p_ik["test"])
    largest = replay(test, [PolicyStage(SIZES[-1])], architectures=architectures)
    figures = {
        "command": "python -m confcascade.demo.measure",
        "questions": {split: len(asked) for split, asked in questions.items()},
        "models": {size: model_figures(test, size) for size in SIZES},
        "policy": policy["stages"],
        "cascade": compare(questions["test"], outcomes, largest),
    }
    (WEIGHTS / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(tables(figures))


if __name__ == "__main__":
    main()
