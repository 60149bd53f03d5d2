"""Which signal tells wrong answers of a retrieval query from right ones: the retriever's scores, or P(T)?

    python benchmarks/retrieval_score.py

The bundled models answer questions about passages of the made-up world, which a BM25 retriever finds for them. Of some
questions the passage is not in the index, so that whatever is found cannot hold the answer: there a right answer is a
lucky guess. Every answer is kept, with its scores; the AUROC is the chance that a right answer scores higher than a
wrong one. Intervals are of the bootstrap over questions, 95 %.
"""

from __future__ import annotations

import logging
import random
import re
from typing import Annotated

import numpy as np
import typer
from confcascade import RetrievalScore, Stage, TokenProbability
from confcascade.demo.world import Question, Split, World
from confcascade.models.bundled import SIZES, bundled_model
from llama_index.core import PromptTemplate
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.retrievers.bm25 import BM25Retriever
from sklearn.metrics import roc_auc_score

from llamaindex_confcascade import ConfidenceCascadeLLM, Measured, measure

PROMPT = PromptTemplate("Context: {context_str}\nQuestion: {query_str}\nAnswer:")
SIGNALS = {
    "retrieval, top": RetrievalScore("top", name="retrieval, top"),
    "retrieval, mean of 2": RetrievalScore("mean", k=2, name="retrieval, mean of 2"),
    "retrieval, margin": RetrievalScore("margin", name="retrieval, margin"),
    "P(T), mean": TokenProbability(name="P(T), mean"),
    "P(T), min": TokenProbability(aggregate="min", name="P(T), min"),
    "P(T), product": TokenProbability(aggregate="product", name="P(T), product"),
}


def parts(question: Question) -> tuple[str, str]:
    """The passage and the question itself of a reading question."""
    found = re.fullmatch(r"Context: (.*)\nQuestion: (.*)\nAnswer:", question.prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def reading_questions(count: int) -> list[Question]:
    """Held-out ones, such that nobody is in two of their passages: the world tells something else of them in each.

    Of all splits: nothing is fitted here.
    """
    world, kept, met = World(), list[Question](), set[str]()
    splits: tuple[Split, ...] = ("fit", "calibration", "test")
    for question in (q for split in splits for q in world.questions(split, ("reading",), per_task=2 * count)):
        names = set(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", parts(question)[0]))
        if len(kept) < count and not names & met:
            kept.append(question)
            met |= names
    return kept


class _Best(BaseNodePostprocessor):
    """The two best are scored, the best is read."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return nodes[:1]


def measured(size: str, indexed: list[Question], asked: list[Question]) -> Measured:
    """A query engine over the passages of `indexed`, one to an answer, asked all of `asked`."""
    nodes = [TextNode(text=parts(question)[0], id_=str(i)) for i, question in enumerate(indexed)]
    stage = Stage(bundled_model(size), list(SIGNALS.values()), dict.fromkeys(SIGNALS, "always"))
    llm = ConfidenceCascadeLLM(stages=[stage, stage])  # the second is never asked: "always" keeps every answer
    retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=2)
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, text_qa_template=PROMPT, node_postprocessors=[_Best()])
    questions = [(parts(question)[1], question) for question in asked]
    return measure(engine.query, questions, lambda answer, question: question.is_correct(answer))


def interval(scored: list[tuple[float, bool]], draws: int = 1000) -> tuple[float, float]:
    """Of the AUROC, by the bootstrap."""
    values, right = (np.array(column) for column in zip(*scored, strict=True))
    rng, found = np.random.default_rng(0), []
    while len(found) < draws:
        rows = rng.integers(len(values), size=len(values))
        if 0 < right[rows].sum() < len(rows):
            found.append(roc_auc_score(right[rows], values[rows]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def main(
    questions: Annotated[int, typer.Option(help="Most questions to ask.")] = 300,
    missing: Annotated[float, typer.Option(help="Share whose passage is not in the index.")] = 0.3,
    sizes: Annotated[str, typer.Option(help="Which of the bundled models.")] = ",".join(SIZES),
) -> None:
    """Print the AUROC of every signal for every model, as a table in Markdown."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    asked = reading_questions(questions)
    random.Random(0).shuffle(asked)
    held = len(asked) - round(missing * len(asked))
    print(f"{len(asked)} questions, {held} passages in the index, {len(asked) - held} missing.\n")
    print("| model | right: passage there | passage missing |", " | ".join(SIGNALS), "|")
    print("|---|" + "---:|" * (2 + len(SIGNALS)))
    for size in sizes.split(","):
        found = measured(size, asked[:held], asked)
        cells = [f"{np.mean(found.right[:held]):.1%}", f"{np.mean(found.right[held:]):.1%}"]
        for signal in SIGNALS:
            low, high = interval(found.scores(signal))
            cells.append(f"{found.auroc(signal):.2f} ({low:.2f}–{high:.2f})")
        print(f"| {size} |", " | ".join(cells), "|")


if __name__ == "__main__":
    typer.run(main)
