"""Table 15 without P(IK), on recorded answers of Llama-3.1: 8B -> 70B on 7,032 questions of MMLU.

    python benchmarks/mmlu_llama31.py --data DIR

DIR holds ``mmlu_test_even_logits.csv.gz``: the logits of A to D that the models gave, made from
github.com/alecwangcq/llm-calibration (results/cali_8B and cali_70B, even-numbered test questions). No model runs.

P(T) is the largest of the four letters' probabilities, normalised over the four, for the recording holds no others: it
lies above the paper's, which is over the whole vocabulary, so at the same threshold more is kept here. Costs are 2N for
a query, N = 8 and 70 billion. The thresholds are the paper's own; nothing was chosen on these questions.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Architecture, Cascade, Stage, TokenProbability
from confcascade.bench.metrics.frontier import frontier, gap_closed, oracle, random_routing
from confcascade.bench.metrics.ranking import aurc, auroc, brier, calibration_error, drop_points, drop_relative
from confcascade.bench.metrics.significance import discordant, mcnemar, paired_difference
from confcascade.bench.questions import paper_test_size
from confcascade.bench.recording import Columns, PlaybackModel, Row
from confcascade.bench.recording.importers import read_choice_logits
from confcascade.bench.replay import PolicyStage, Replay, replay, sweep
from confcascade.bench.replay.replay import DECISIONS, NOT_ASKED
from confcascade.errors import require
from confcascade.graders.grade import is_right
from rich.console import Console
from rich.table import Table

SMALL, LARGE = "llama-3.1-8b-instruct", "llama-3.1-70b-instruct"
SIZES = {SMALL: Architecture(8 * 10**9, 0, 0), LARGE: Architecture(70 * 10**9, 0, 0)}  # equation 6 has no context
THRESHOLDS = (0.5, 0.7, 0.9, 0.95)
# Table 15, "w/o P(IK)": accuracy and reduction in percent (its relative drop follows from the accuracies)
PRINTED = {0.5: (74.55, 74.24), 0.7: (79.23, 56.19), 0.9: (82.31, 38.15), 0.95: (83.50, 29.69)}
FILE = "mmlu_test_even_logits.csv.gz"


def policy(threshold: float) -> list[PolicyStage]:
    """8B, and 70B where its P(T) is below the threshold."""
    return [PolicyStage(SMALL, {"p_t": threshold}), PolicyStage(LARGE)]


def split_sizes(questions: Sequence[str]) -> int:
    """How many test questions the paper's split has: a tenth of each subject's, rounded up.

    Of a subject's n questions the even-numbered are here, ceil(n / 2) of them, e say. A tenth of n, rounded up, is the
    same whether n is 2e or 2e - 1, for an odd number is no multiple of ten.
    """
    subjects = Counter(question.split("/")[0] for question in questions)
    return sum(paper_test_size(2 * even) for even in subjects.values())


def disagreements(played: Replay, records: Sequence[dict[str, Any]]) -> int:
    """How many questions a live run answered by another stage, with other decisions, or at another cost."""
    wrong = 0
    for i, record in enumerate(records):
        attempts = [DECISIONS[attempt["decision"]] for attempt in record["attempts"]]
        expected = [decision for decision in played.decision[i] if decision != NOT_ASKED]
        same = record["stage"] == played.stage[i] and attempts == expected
        same &= math.isclose(record["cost"]["flops"], played.cost.flops[i])
        same &= math.isclose(record["cost_answering_stage"]["flops"], played.cost_answering_stage.flops[i])
        wrong += not same
    return wrong


def live_runs(rows: Sequence[Row]) -> dict[str, Callable[[float, Sequence[str]], list[dict[str, Any]]]]:
    """Ways to run the cascade live over the recorded models: the core's, LangChain's and LlamaIndex's."""
    from langchain_confcascade import ConfidenceCascadeLLM as LangChainCascade
    from llamaindex_confcascade import ConfidenceCascadeLLM as LlamaIndexCascade

    small, large = (PlaybackModel(model, rows, architecture=SIZES[model]) for model in (SMALL, LARGE))

    def stages(threshold: float) -> list[Stage]:
        return [Stage(small, [TokenProbability("ABCD")], {"p_t": threshold}), Stage(large)]

    def core(threshold: float, questions: Sequence[str]) -> list[dict[str, Any]]:
        return [outcome.record.as_dict() for outcome in Cascade(stages(threshold)).run_batch(questions)]

    def langchain(threshold: float, questions: Sequence[str]) -> list[dict[str, Any]]:
        messages = LangChainCascade(stages=stages(threshold)).batch(list(questions))
        return [message.response_metadata["confcascade"] for message in messages]

    def llamaindex(threshold: float, questions: Sequence[str]) -> list[dict[str, Any]]:
        llm = LlamaIndexCascade(stages=stages(threshold))
        return [llm.complete(question).additional_kwargs["confcascade"] for question in questions]

    return {"core": core, "LangChain": langchain, "LlamaIndex": llamaindex}


def table_15(columns: Columns) -> Table:
    """The four thresholds, beside the paper's."""
    table = Table(
        "P(T) at least",
        "accuracy, %",
        "points",
        "95 % interval",
        "relative, %",
        "McNemar p (harms/benefits)",
        "kept by 8B",
        "saved, all stages",
        "saved, answering stage",
        "gap to oracle closed",
        "paper: accuracy, saved",
        title=f"8B -> 70B without P(IK), {len(columns):,} questions",
    )
    small, large = (columns.grades[:, columns.index(model)] for model in (SMALL, LARGE))
    grades = np.column_stack([small, large])
    costs = np.tile([2.0 * SIZES[model].parameters for model in (SMALL, LARGE)], (len(columns), 1))
    alone = costs[0, 1]
    for threshold in THRESHOLDS:
        played = replay(columns, policy(threshold), architectures=SIZES)
        accuracy, right = float(played.grade.mean()), is_right(played.grade)
        spent, answering = float(played.cost.flops.mean()), float(played.cost_answering_stage.flops.mean())
        _, low, high = paired_difference(played.grade, large)
        harms, benefits = discordant(right, is_right(large))
        printed, saved = PRINTED[threshold]
        table.add_row(
            f"{threshold:g}",
            f"{100 * accuracy:.2f}",
            f"{drop_points(accuracy, large.mean()):+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            f"{drop_relative(accuracy, large.mean()):+.2f}",
            f"{mcnemar(right, is_right(large)):.2g} ({harms}/{benefits})",
            f"{played.retention[0]:.1%}",
            f"{1 - spent / alone:.1%}",
            f"{1 - answering / alone:.1%}",
            f"{gap_closed(spent, accuracy, grades, costs):.2f}",
            f"{printed:.2f}, {saved:.2f}",
        )
    return table


def plot(columns: Columns, path: Path) -> None:
    """Accuracy and saving over the threshold, and accuracy over cost with the blind choice and the oracle."""
    pyplot = require("matplotlib.pyplot", "plots")
    pyplot.switch_backend("agg")
    thresholds = np.linspace(0.25, 1, 151)
    swept = sweep(columns, [policy(t) for t in thresholds.tolist()], architectures=SIZES)
    grades = np.column_stack([columns.grades[:, columns.index(model)] for model in (SMALL, LARGE)])
    costs = np.tile([2.0 * SIZES[model].parameters for model in (SMALL, LARGE)], (len(columns), 1))
    alone = costs[0, 1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")

    left.plot(thresholds, 100 * swept.accuracy, color="C0", label="accuracy")
    for name, grade, style in (("70B alone", grades[:, 1], "--"), ("8B alone", grades[:, 0], ":")):
        left.axhline(100 * grade.mean(), color="C0", linestyle=style, linewidth=1, label=name)
    for t in THRESHOLDS:
        left.axvline(t, color="0.85", linewidth=1, zorder=0)
    left.set(
        xlabel="threshold on P(T), normalised over A-D", ylabel="accuracy, %", title="Sensitivity to the threshold"
    )
    saved = left.twinx()
    saved.plot(thresholds, 100 * (1 - swept.cost.flops / alone), color="C1", label="saved, all stages")
    answering = 100 * (1 - swept.cost_answering_stage.flops / alone)
    saved.plot(thresholds, answering, color="C1", linestyle="--", label="saved, answering stage alone")
    saved.axhline(0, color="C1", linewidth=0.5)
    saved.set_ylabel("operations saved, %")
    handles = [*left.get_legend_handles_labels()[0], *saved.get_legend_handles_labels()[0]]
    left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8)

    share = swept.cost.flops / alone
    right.plot(100 * share, 100 * swept.accuracy, color="C0", label="cascade on P(T)")
    marked = [int(np.abs(thresholds - t).argmin()) for t in THRESHOLDS]
    right.plot(100 * share[marked], 100 * swept.accuracy[marked], "o", color="C0", markersize=4)
    for t, i in zip(THRESHOLDS, marked, strict=True):
        right.annotate(
            f"{t:g}", (100 * share[i], 100 * swept.accuracy[i]), (4, -10), textcoords="offset points", fontsize=8
        )
    for name, curve, style in (
        ("blind choice of one model", random_routing(grades, costs), "--"),
        ("oracle", oracle(grades, costs), ":"),
    ):
        right.plot(100 * curve.cost / alone, 100 * curve.accuracy, color="0.4", linestyle=style, label=name)
    right.set(xlabel="operations, % of 70B alone (all stages)", ylabel="accuracy, %", title="Cost and accuracy")
    right.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(
    data: Annotated[Path, typer.Option(help=f"folder of {FILE}", exists=True, file_okay=False)],
    png: Annotated[Path, typer.Option("--plot", help="where the plot goes")] = Path("mmlu_llama31.png"),
    live: Annotated[bool, typer.Option(help="also run the cascade live, three ways, on every question")] = True,
) -> None:
    console = Console(width=max(Console().width, 132))  # narrower, figures would be cut
    if not (data / FILE).exists():
        raise typer.BadParameter(f"There is no {FILE} in {data}.", param_hint="--data")
    rows = [row for row in read_choice_logits(data / FILE) if row.model in (SMALL, LARGE)]
    columns = Columns.of(rows).complete()
    console.print(table_15(columns))
    for model in (SMALL, LARGE):
        right, p_t = columns.grades[:, columns.index(model)], columns.signal(model, "p_t").values
        console.print(
            f"{model}: accuracy {right.mean():.2%}; P(T): AUROC {auroc(right, p_t):.3f}, AURC {aurc(right, p_t):.3f}, "
            f"Brier {brier(right, p_t):.3f}, ECE {calibration_error(right, p_t):.3f} (15 bins of equal mass)"
        )
    policies = [policy(t) for t in np.linspace(0.25, 1, 151).tolist()]
    swept = sweep(columns, [*policies, [PolicyStage(SMALL)], [PolicyStage(LARGE)]], architectures=SIZES)
    curve = frontier(swept.cost.flops, swept.accuracy)
    neutral = curve.cost_of(columns.grades[:, columns.index(LARGE)].mean()) / (2 * SIZES[LARGE].parameters)
    console.print(
        f"Least cost of the 70B's accuracy, by any threshold or model, in hindsight: {neutral:.1%} of its own"
    )
    console.print(f"The paper's split, ceil(n/10) of each subject's questions: {split_sizes(columns.questions):,}")
    plot(columns, png)
    console.print(f"Plot: {png}")
    if live:
        for name, run in live_runs(rows).items():
            begun = time.perf_counter()
            wrong = [
                disagreements(replay(columns, policy(t), architectures=SIZES), run(t, columns.questions))
                for t in THRESHOLDS
            ]
            took = time.perf_counter() - begun
            told = ", ".join(f"{n} at {t:g}" for t, n in zip(THRESHOLDS, wrong, strict=True))
            console.print(
                f"Live through {name}: of {len(columns):,} questions otherwise than replayed: {told} ({took:.0f} s)"
            )
            if any(wrong):
                sys.exit(1)
    digest = sha256((data / FILE).read_bytes()).hexdigest()[:16]
    console.print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, confcascade {version('confcascade')}, Python "
        f"{platform.python_version()}, numpy {np.__version__}; {FILE} sha256 {digest}"
    )


if __name__ == "__main__":
    typer.run(main)
