"""What ``confcascade demo`` prints: a chain, a query engine and a comparison, all through the bundled models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from confcascade.attempts import Outcome
from confcascade.bench.metrics.significance import mcnemar
from confcascade.cascade import Cascade
from confcascade.demo import bundled_stages
from confcascade.demo.comparison import Comparison, Contender, amount, ready_to_plot
from confcascade.demo.loading import quiet, show_bars
from confcascade.demo.world import TASKS, Question, World
from confcascade.errors import require
from confcascade.stage import Stage
from confcascade.trace import Record, trace

__all__ = ["show"]

WIDE = 110  # columns of a terminal from which a table can be read
NARROWEST = 12  # of its cells
DOCUMENTS = Path(__file__).parent / "documents"


def show(questions: int = 60, plot: Path | None = None) -> None:
    """Run the demo of the bundled models, with their probes and chosen thresholds.

    Args:
        questions: How many per task the comparison asks.
        plot: Where to write a PNG of accuracy over compute.
    """
    started = time.perf_counter()
    console = Console()
    quiet()
    ready_to_plot(plot)
    show_bars(False)
    torch = require("torch", "demo")
    torch.set_num_threads(1)  # such small models are slower on more
    stages = bundled_stages()
    world = World()
    console.print(
        f"[bold]A cascade of {len(stages)} models:[/] {' -> '.join(stage.model.name for stage in stages)}"
        "  (bundled; trained from scratch on a made-up world, see docs/bundled-models.md)"
    )
    _gates(console, stages)
    asked = [q for task in TASKS for q in world.questions("test", (task,), per_task=2, seed=11)]
    _chain(console, stages, asked)
    _query_engine(console, stages)
    _comparison(console, stages, world.questions("test", TASKS, per_task=questions, seed=5), plot)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


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
    return amount(flops, "flops") + ("" if len(record.attempts) == 1 else f" ({amount(answering, 'flops')} answering)")


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
    smallest, largest = stages[0], stages[-1]
    prompts = [question.prompt for question in questions]
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("{task.fields[who]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        step = progress.add_task("asking", total=3 * len(questions), who="")

        def play(stages: Sequence[Stage], who: str) -> tuple[Contender, list[Outcome]]:
            progress.update(step, who=who)
            outcomes = Cascade(list(stages)).run_batch(prompts, on_result=lambda *_: progress.advance(step))
            right = [q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)]
            return Contender.of(who, right, outcomes), outcomes

        alone = [play([Stage(stage.model)], stage.model.name)[0] for stage in (smallest, largest)]
        cascade, outcomes = play(stages, "cascade")
    compared = Comparison.of(alone[0], cascade, alone[1])
    console.print(compared.table(f"{len(questions)} held-out questions"))
    shares = {stage.model.name: sum(o.record.answered_by == stage.model.name for o in outcomes) for stage in stages}
    console.print(
        f"{compared.unit_name} relative to {largest.model.name} alone. Answered by: "
        + ", ".join(f"{name} {n / len(questions):.0%}" for name, n in shares.items())
        + f". McNemar's exact p, cascade against {largest.model.name}: "
        f"{mcnemar(np.array(cascade.right), np.array(compared.largest.right)):.2f}\n"
    )
    if plot is not None:
        compared.plot(plot)
        console.print(f"Plot written to {plot}")
