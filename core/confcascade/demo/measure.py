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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confcascade.asks import Generate
from confcascade.cascade import Cascade
from confcascade.cost import forward_flops
from confcascade.demo import SIZES, WEIGHTS, answer_probability, bundled_model, bundled_probe, bundled_stages
from confcascade.demo.world import TASKS, Question, Split, World
from confcascade.models.transformers import TransformersModel
from confcascade.signals import Evidence
from confcascade.signals.knowledge_probe import KnowledgeProbe, resolve_layer
from confcascade.types import Message, Request, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEPTH = 1.0  # on the validation part of a probe for the smallest model, 0.75 was worse
QUESTIONS: dict[Split, int] = {"fit": 600, "calibration": 250, "test": 500}  # most per task
TOLERANCE = 0.005  # accuracy that may be given up on the calibration split


@dataclass(frozen=True)
class Measured:
    """One model's answers to a list of questions; every array has one entry per question."""

    correct: NDArray[np.bool_]
    refused: NDArray[np.bool_]  # whether it said that it does not know
    p_t: NDArray[np.float64]
    hidden: NDArray[np.float32]  # (questions, hidden_size)
    flops: NDArray[np.float64]
    prompt_flops: NDArray[np.float64]  # of reading the question alone: what a P(IK) rejection costs


def request(question: Question) -> Request:
    return Request(Message.parse(question.prompt))


def ask_all(model: TransformersModel, questions: Sequence[Question]) -> Measured:
    """Let `model` answer all questions, in batches of similar length."""
    import numpy as np

    from confcascade.demo.world import UNKNOWN

    signal = answer_probability()
    n, size = len(questions), model.capability.batch_size
    found = Measured(
        correct=np.zeros(n, bool),
        refused=np.zeros(n, bool),
        p_t=np.zeros(n),
        hidden=np.zeros((n, model.capability.hidden_size), np.float32),
        flops=np.zeros(n),
        prompt_flops=np.zeros(n),
    )
    order = sorted(range(n), key=lambda i: len(questions[i].prompt))
    layer = resolve_layer(DEPTH, model.capability.layers)
    for start in range(0, n, size):
        rows = order[start : start + size]
        asked = [request(questions[i]) for i in rows]
        found.hidden[rows] = model.hidden_states(asked, layer)
        for i, one, answer in zip(rows, asked, model.generate([Generate(model, one) for one in asked]), strict=True):
            if isinstance(answer, Exception):
                raise answer
            found.correct[i] = questions[i].is_correct(answer.text)
            found.refused[i] = answer.text.startswith(UNKNOWN)
            found.p_t[i] = signal.score(Evidence(one, None, answer.tokens, answer)).value if answer.tokens else 0.0
            found.flops[i] = forward_flops(model.architecture, answer.usage)
            found.prompt_flops[i] = forward_flops(model.architecture, Usage(answer.usage.input_tokens, 0))
    return found


def of_task(questions: Sequence[Question], task: str) -> list[int]:
    return [i for i, question in enumerate(questions) if question.task == task]


def model_figures(questions: Sequence[Question], measured: Measured, p_ik: NDArray[np.float64]) -> dict[str, Any]:
    """Accuracy, and AUROC of P(T) and P(IK) within each task."""
    from confcascade.evaluation.metrics import auroc

    def rounded(area: float | None) -> float | None:
        return None if area is None else round(area, 3)

    figures: dict[str, Any] = {}
    for task in TASKS:
        rows = of_task(questions, task)
        figures[task] = {
            "n": len(rows),
            "accuracy": round(float(measured.correct[rows].mean()), 4),
            "refused": round(float(measured.refused[rows].mean()), 4),
            "auroc_p_t": rounded(auroc(measured.correct[rows], measured.p_t[rows])),
            "auroc_p_ik": rounded(auroc(measured.correct[rows], p_ik[rows])),
        }
    return figures


# ---------------------------------------------------------------------- choosing a cascade


def replay(
    stages: Sequence[Measured], p_ik: Sequence[NDArray[np.float64]], thresholds: Sequence[tuple[float, float]]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Correctness and FLOPs (every model that ran) of a cascade; (P(IK), P(T)) thresholds for all stages but the last.

    Drafts are charged whole here; the live cascade ends doomed ones early and costs a little less.
    """
    import numpy as np

    n = len(stages[0].correct)
    open_, correct, flops = np.ones(n, bool), np.zeros(n, bool), np.zeros(n)
    for measured, known, (knows, likely) in zip(stages, p_ik, thresholds, strict=False):
        gate = known >= knows
        keep = open_ & gate & (measured.p_t >= likely)
        flops += open_ * np.where(gate, measured.flops, measured.prompt_flops)
        correct |= keep & measured.correct
        open_ &= ~keep
    correct |= open_ & stages[-1].correct
    flops += open_ * stages[-1].flops
    return correct, flops


def candidates() -> Iterable[tuple[float, float]]:
    """Pairs of thresholds on P(IK) and P(T)."""
    return itertools.product(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99),
    )


def choose(measured: dict[str, Measured], p_ik: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """The cheapest cascade that is within `TOLERANCE` of the largest model: every pair with it, and the whole chain.

    Of equally cheap ones, which keep the same answers, the one with the strictest thresholds.
    """
    largest = measured[SIZES[-1]]
    least = largest.correct.mean() - TOLERANCE
    best: tuple[float, tuple[str, ...], list[tuple[float, float]]] = (float(largest.flops.mean()), SIZES[-1:], [])
    pairs: dict[str, list[tuple[float, float]]] = {}
    for size in SIZES[:-1]:
        scored = []
        for thresholds in candidates():
            correct, flops = replay([measured[size], largest], [p_ik[size]], [thresholds])
            scored.append((float(flops.mean()), thresholds, float(correct.mean())))
            if correct.mean() >= least and flops.mean() <= best[0]:
                best = float(flops.mean()), (size, SIZES[-1]), [thresholds]
        # for the chain: this stage's undominated thresholds
        pairs[size] = [
            t for f, t, c in scored if not any(f2 <= f and c2 >= c and (f2, c2) != (f, c) for f2, _, c2 in scored)
        ]
    for both in itertools.product(*pairs.values()):
        correct, flops = replay([measured[size] for size in SIZES], [p_ik[size] for size in SIZES[:-1]], both)
        if correct.mean() >= least and flops.mean() <= best[0]:
            best = float(flops.mean()), SIZES, list(both)
    _, names, chosen = best
    stages: list[dict[str, Any]] = [
        {"model": name, "thresholds": {"p_ik": knows, "p_t": likely}}
        for name, (knows, likely) in zip(names, chosen, strict=False)
    ]
    return {"chosen_on": "calibration", "tolerance": TOLERANCE, "stages": [*stages, {"model": names[-1]}]}


# ---------------------------------------------------------------------- comparing with the largest model


def compare(questions: Sequence[Question], outcomes: Sequence[Any], largest: Measured) -> dict[str, Any]:
    """The live cascade beside the largest model, per task and in all, in both accountings."""
    import numpy as np

    from confcascade.evaluation.significance import mcnemar, paired_difference, saving

    correct = np.array([q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)])
    every = np.array([o.record.cost.flops for o in outcomes])
    answering = np.array([o.record.cost_answering_stage.flops for o in outcomes])
    answered_by = np.array([o.record.answered_by for o in outcomes])
    table = {}
    for task in (*TASKS, "all"):
        rows = list(range(len(questions))) if task == "all" else of_task(questions, task)
        difference, low, high = paired_difference(correct[rows], largest.correct[rows])
        saved, saved_low, saved_high = saving(every[rows], largest.flops[rows])
        table[task] = {
            "n": len(rows),
            "accuracy_largest": round(float(largest.correct[rows].mean()), 4),
            "accuracy_cascade": round(float(correct[rows].mean()), 4),
            "difference_points": [round(100 * x, 2) for x in (difference, low, high)],
            "mcnemar_p": round(mcnemar(correct[rows], largest.correct[rows]), 4),
            "flops_saved_percent": [round(100 * x, 1) for x in (saved, saved_low, saved_high)],
            "flops_saved_percent_answering_stage_only": round(
                100 * float(1 - answering[rows].sum() / largest.flops[rows].sum()), 1
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

    torch.set_num_threads(1)  # such small models are slower on more
    world = World()
    with Progress(transient=True) as progress:
        step = progress.add_task("asking", total=3 * len(SIZES) + 1)
        questions = {split: world.questions(split, per_task=n) for split, n in QUESTIONS.items()}
        questions["fit"] = [q for q in questions["fit"] if q.task != "facts"] + world.facts_in_every_wording("fit")
        measured: dict[str, dict[str, Measured]] = {split: {} for split in QUESTIONS}
        p_ik: dict[str, dict[str, NDArray[np.float64]]] = {split: {} for split in QUESTIONS}
        for size in SIZES:
            model = bundled_model(size)
            for split in QUESTIONS:
                measured[split][size] = ask_all(model, questions[split])
                progress.advance(step)
            fit = measured["fit"][size]
            probe = KnowledgeProbe.fit(
                model,
                fit.hidden,
                fit.correct.tolist(),
                layer=DEPTH,
                groups=[question.key for question in questions["fit"]],
            )
            probe.save(WEIGHTS / size / "probe")
            for split in QUESTIONS:
                p_ik[split][size] = bundled_probe(size).predict(measured[split][size].hidden)
        policy = choose(measured["calibration"], p_ik["calibration"])
        (WEIGHTS / "policy.json").write_text(json.dumps(policy, indent=1) + "\n")
        test = questions["test"]
        outcomes = Cascade(bundled_stages()).run_batch([question.prompt for question in test])
        progress.advance(step)
    figures = {
        "command": "python -m confcascade.demo.measure",
        "questions": {split: len(asked) for split, asked in questions.items()},
        "models": {size: model_figures(test, measured["test"][size], p_ik["test"][size]) for size in SIZES},
        "policy": policy["stages"],
        "cascade": compare(test, outcomes, measured["test"][SIZES[-1]]),
    }
    (WEIGHTS / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(tables(figures))


if __name__ == "__main__":
    main()
