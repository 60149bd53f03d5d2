"""What ``confcascade demo`` prints: a chain, a query engine and a comparison, all through a cascade of real models."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from confcascade.attempts import Outcome
from confcascade.bench.metrics.significance import mcnemar
from confcascade.building import build_stages
from confcascade.cascade import Cascade
from confcascade.demo import bundled_stages
from confcascade.demo.world import TASKS, Question, Task, World
from confcascade.errors import ConfigurationError, require
from confcascade.stage import Stage
from confcascade.trace import Record, trace

__all__ = ["show"]

WIDE = 110  # columns of a terminal from which a table can be read
NARROWEST = 12  # of its cells
DOCUMENTS = Path(__file__).parent / "documents"
# what real models can know too: the made-up world's facts are known to the bundled models alone
ABILITIES: tuple[Task, ...] = ("sums", "reading")


def show(models: Sequence[str] = (), threshold: float = 0.9, questions: int = 60, plot: Path | None = None) -> None:
    """Run the demo.

    Args:
        models: Model strings, smallest first; by default the bundled models with their probes and chosen thresholds.
        threshold: Of P(T), with `models`.
        questions: How many per task the comparison asks.
        plot: Where to write a PNG of accuracy over compute.
    """
    started = time.perf_counter()
    console = Console()
    _quiet()
    if models:
        stages = list(build_stages(models=models, threshold=threshold))
    else:
        torch = require("torch", "demo")
        torch.set_num_threads(1)  # such small models are slower on more
        stages = bundled_stages()
    if len(stages) < 2:
        raise ConfigurationError("A cascade needs at least two models. Give --models twice or more, smallest first.")
    world = World()
    tasks: tuple[Task, ...] = ABILITIES if models else TASKS
    console.print(
        f"[bold]A cascade of {len(stages)} models:[/] {' -> '.join(stage.model.name for stage in stages)}"
        + ("" if models else "  (bundled; trained from scratch on a made-up world, see docs/bundled-models.md)")
    )
    _gates(console, stages)
    asked = [q for task in tasks for q in world.questions("test", (task,), per_task=2, seed=11)]
    _chain(console, stages, asked)
    _query_engine(console, stages)
    _comparison(console, stages, world.questions("test", tasks, per_task=questions, seed=5), plot)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


def _quiet() -> None:
    """Keep the libraries' own messages out of the tables."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    for name in ("transformers", "llama_index"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return
    disable_progress_bar()


def _gates(console: Console, stages: Sequence[Stage]) -> None:
    for stage in stages[:-1]:
        rules = " and ".join(f"{name} >= {threshold}" for name, threshold in stage.thresholds.items())
        console.print(f"  {stage.model.name} answers if {rules}")
    console.print(f"  {stages[-1].model.name} answers the rest\n")


# ---------------------------------------------------------------------- rows that tell what happened


def _print_answers(console: Console, title: str, answers: Sequence[Mapping[str, str]]) -> None:
    """What was asked and what happened: a table where there is room for one, otherwise a line for each thing.

    Args:
        console: Its width decides.
        title: Above them.
        answers: What to tell of each, by its name, in rich's markup; all have the same names.
    """
    if console.width >= WIDE:
        table = Table(title=title, title_justify="left", title_style="bold", expand=False)
        for column in answers[0]:
            table.add_column(column, min_width=NARROWEST, overflow="fold")
        for answer in answers:
            table.add_row(*answer.values())
        console.print(table)
        return
    console.print(f"[bold]{title}[/]")
    for answer in answers:
        lines = Table.grid(padding=(0, 2))
        lines.add_column(style="dim", no_wrap=True)
        lines.add_column(overflow="fold")
        for name, value in answer.items():
            lines.add_row(name, value)
        console.print(lines)
        console.print()


def _told(record: Record, question: str, answer: str, *, right: bool, reference: str) -> dict[str, str]:
    verdict = "[green]right[/]" if right else f"[red]wrong[/], it is {escape(reference)}"
    scores = [f"{attempt.model}: {attempt.reason}" for attempt in record.attempts if attempt.scores]
    return {
        "question": escape(question),
        "answer": f"{escape(answer)} ({verdict})",
        "answered by": escape(str(record.answered_by)),
        "scores": escape("; ".join(scores) or record.attempts[-1].reason),
        "compute": _compute(record),
    }


def _compute(record: Record) -> str:
    """The query's compute: every model that ran, and the part of the answering stage."""
    flops, answering = record.cost.flops, record.cost_answering_stage.flops
    if flops is None or answering is None:
        return f"{record.cost.tokens} tokens"
    return f"{flops / 1e6:.1f} MFLOP" + ("" if len(record.attempts) == 1 else f" ({answering / 1e6:.1f} answering)")


# ---------------------------------------------------------------------- (a) a LangChain chain


def _chain(console: Console, stages: Sequence[Stage], asked: Sequence[Question]) -> None:
    require("langchain_core", "langchain")
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    from langchain_confcascade import ConfidenceCascadeLLM

    llm = ConfidenceCascadeLLM(stages=list(stages))
    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | llm | StrOutputParser()
    answers = []
    for question in asked:
        with trace() as t:
            answer = chain.invoke({"question": question.prompt})
        right = question.is_correct(answer)
        answers.append(_told(t.records[0], question.prompt, answer, right=right, reference=question.reference))
    _print_answers(console, "LangChain: prompt | llm | StrOutputParser()", answers)


# ---------------------------------------------------------------------- (b) a LlamaIndex query engine


def _query_engine(console: Console, stages: Sequence[Stage]) -> None:
    require("llama_index.core", "llamaindex")
    retrievers = require("llama_index.retrievers.bm25", "demo")
    from llama_index.core import PromptTemplate
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.schema import TextNode

    from llamaindex_confcascade import ConfidenceCascadeLLM

    nodes = [TextNode(text=path.read_text().strip(), id_=path.stem) for path in sorted(DOCUMENTS.glob("*.txt"))]
    engine = RetrieverQueryEngine.from_args(
        retrievers.BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=1),
        llm=ConfidenceCascadeLLM(stages=list(stages)),
        text_qa_template=PromptTemplate("Context: {context_str}\nQuestion: {query_str}\nAnswer:"),
    )
    title = f"LlamaIndex: a query engine over {len(nodes)} documents, BM25, about people and firms that no model knows"
    answers = []
    for line in (DOCUMENTS / "questions.tsv").read_text().splitlines():
        question, reference = line.split("\t")
        with trace() as t:
            response = engine.query(question)
        answer = str(response).strip()
        right = answer.rstrip(".") == reference
        source = ", ".join(node.node.node_id for node in response.source_nodes)
        told = _told(t.records[0], question, answer, right=right, reference=reference)
        answers.append({"question": told.pop("question"), "document": escape(source), **told})
    _print_answers(console, title, answers)


# ---------------------------------------------------------------------- (c) a comparison on held-out questions


def _comparison(console: Console, stages: Sequence[Stage], questions: Sequence[Question], plot: Path | None) -> None:
    import numpy as np

    smallest, largest = stages[0], stages[-1]
    prompts = [question.prompt for question in questions]
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("{task.fields[who]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        step = progress.add_task("asking", total=3 * len(questions), who="")

        def play(stages: Sequence[Stage], who: str) -> list[Outcome]:
            progress.update(step, who=who)
            return Cascade(list(stages)).run_batch(prompts, on_result=lambda *_: progress.advance(step))

        alone = {stage.model.name: play([Stage(stage.model)], stage.model.name) for stage in (smallest, largest)}
        cascaded = play(stages, "the cascade")
    rows = {**alone, "cascade": cascaded}
    right = {
        name: np.array([q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)])
        for name, outcomes in rows.items()
    }
    total = Table(title=f"{len(questions)} held-out questions", title_justify="left", title_style="bold")
    for column in ("who", "accuracy", "every model that ran", "answering stage only", "seconds"):
        total.add_column(column, justify="left" if column == "who" else "right")
    in_flops = all(o.record.cost.flops is not None for outcomes in rows.values() for o in outcomes)
    units = "Compute (FLOPs)" if in_flops else "Tokens"
    whole = _spent(rows[largest.model.name], in_flops, every=True)
    for name, outcomes in rows.items():
        every, answering = (_spent(outcomes, in_flops, every=which) for which in (True, False))
        total.add_row(
            name,
            f"{right[name].mean():.1%}",
            f"{every / whole:.1%}",
            f"{answering / whole:.1%}",
            f"{sum(o.record.cost.seconds for o in outcomes):.1f}",
        )
    console.print(total)
    shares = {stage.model.name: sum(o.record.answered_by == stage.model.name for o in cascaded) for stage in stages}
    console.print(
        f"{units} relative to {largest.model.name} alone. Answered by: "
        + ", ".join(f"{name} {n / len(questions):.0%}" for name, n in shares.items())
        + f". McNemar's exact p, cascade against {largest.model.name}: "
        f"{mcnemar(right['cascade'], right[largest.model.name]):.2f}\n"
    )
    if plot is not None:
        _plot(plot, stages, rows, right, in_flops)
        console.print(f"Plot written to {plot}")


def _spent(outcomes: Sequence[Outcome], in_flops: bool, every: bool) -> float:
    """Total compute of the outcomes, of every model that ran or of those that answered: FLOPs, or else tokens."""
    costs = [outcome.record.cost if every else outcome.record.cost_answering_stage for outcome in outcomes]
    return float(sum((cost.flops or 0.0) if in_flops else cost.tokens for cost in costs))


def _plot(path: Path, stages: Sequence[Stage], rows: Any, right: Any, in_flops: bool) -> None:
    require("matplotlib", "plots")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whole = _spent(rows[stages[-1].model.name], in_flops, every=True)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, outcomes in rows.items():
        every, answering = (_spent(outcomes, in_flops, every=which) / whole for which in (True, False))
        (point,) = axes.plot([100 * every], [100 * right[name].mean()], "o", markersize=9, label=name)
        if answering != every:
            axes.plot([100 * answering], [100 * right[name].mean()], "o", color=point.get_color(), fillstyle="none",
                      label=f"{name}, answering stage only (the papers' accounting)")  # fmt: skip
    axes.axhline(100 * right[stages[-1].model.name].mean() - 1, linestyle=":", linewidth=1, color="gray")
    axes.set(
        xlabel=f"{'compute' if in_flops else 'tokens'}, % of {stages[-1].model.name} alone",
        ylabel="accuracy, %",
        title="Accuracy over compute",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
