"""What signals that are learnt from texts alone tell of right and wrong answers, beside P(T) and P(True), and cost.

    python benchmarks/learned_signals.py --data DIR

DIR holds recorded answers of real models, one folder a data set (those that are missing are left out):

- ``ik_labels``: Natural Questions, whether three models know the answer (github.com/anonymizedconf/FacLens);
- ``mmlu`` and ``mmlu_llama31_logits``: MMLU and the logits of A to D of Llama-3.1 8B and 70B
  (github.com/alecwangcq/llm-calibration);
- ``cascade_chains``: solutions of GSM8K with P(True) (github.com/mzelling/rational-llm-cascades);
- ``gsm8k``: solutions of GSM8K by models of 6 and 175 billion parameters (github.com/openai/grade-school-math).

No model runs. Every row is scored by a signal that was fitted without it and its like (five folds, grouped by the
question's text). The AUROC is the chance that a right answer scores higher than a wrong one; intervals are of the
bootstrap over questions, 95 %. Without ``--data``, the cost alone is measured.
"""

from __future__ import annotations

import gzip
import json
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import (
    Evidence,
    Generate,
    LanguageModel,
    LearnedScorer,
    Message,
    OpenAICompatibleModel,
    Request,
    Response,
    TextRouter,
)
from confcascade.demo import bundled_model
from confcascade.demo.world import World
from confcascade.evaluation import Row
from confcascade.evaluation.examples import is_right
from confcascade.evaluation.importers import read_chain, read_choice_logits
from overhead import WORDS, Clock, server
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True)
class Answered:
    """One model's answers to a data set's questions.

    Attributes:
        name: Of the data set and the model.
        questions: Their texts.
        right: Whether each was answered right.
        answers: The texts of the answers, where they were kept.
        recorded: Scores that came with them, by name.
    """

    name: str
    questions: Sequence[str]
    right: Sequence[bool]
    answers: Sequence[str] | None = None
    recorded: dict[str, Sequence[float]] = field(default_factory=dict)


# ---------------------------------------------------------------------- what there is


def records(path: Path) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def natural_questions(data: Path) -> Iterator[Answered]:
    asked = records(data / "ik_labels" / "nq.jsonl.gz")
    for model in asked[0]["knows"]:
        yield Answered(f"NQ, {model}", [q["text"] for q in asked], [bool(q["knows"][model]) for q in asked])


def mmlu(data: Path) -> Iterator[Answered]:
    asked = {q["id"]: q for q in records(data / "mmlu" / "mmlu_test_even.jsonl.gz")}
    rows = list(read_choice_logits(data / "mmlu_llama31_logits" / "mmlu_test_even_logits.csv.gz"))
    for model in ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct"):
        own = [row for row in rows if row.model == model]
        texts = ["\n".join([asked[row.question]["question"], *asked[row.question]["choices"]]) for row in own]
        yield Answered(f"MMLU, {model}", texts, right(own), recorded={"P(T)": scores(own, "p_t")})


def chain(data: Path) -> Iterator[Answered]:
    rows = list(read_chain(data / "cascade_chains" / "gsm8k_qwen_oai_dev.jsonl.gz"))
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        questions = [row.prompt or "" for row in own]
        answers = [row.answer for row in own]
        yield Answered(f"GSM8K, {model}", questions, right(own), answers, {"P(True)": scores(own, "p_true")})


def solutions(data: Path) -> Iterator[Answered]:
    asked = records(data / "gsm8k" / "example_model_solutions.jsonl.gz")
    for model in ("6b_finetuning", "175b_verification"):
        answers = [q[model]["solution"] for q in asked]
        is_right = [q[model]["is_correct"] for q in asked]
        yield Answered(f"GSM8K, {model}", [q["question"] for q in asked], is_right, answers)


SETS: dict[str, Callable[[Path], Iterator[Answered]]] = {
    "ik_labels": natural_questions,
    "mmlu_llama31_logits": mmlu,
    "cascade_chains": chain,
    "gsm8k": solutions,
}


def right(rows: Sequence[Row]) -> list[bool]:
    return [is_right(row.grade) for row in rows]


def scores(rows: Sequence[Row], name: str) -> list[float]:
    return [row.scores[name].value or 0.0 for row in rows]


# ---------------------------------------------------------------------- how well they tell


def area(right: Sequence[bool], score: Sequence[float], draws: int) -> str:
    """AUROC with its interval."""
    y, s = np.asarray(right), np.asarray(score)
    rng, found = np.random.default_rng(0), []
    while len(found) < draws:
        rows = rng.integers(len(y), size=len(y))
        if 0 < y[rows].sum() < len(rows):
            found.append(roc_auc_score(y[rows], s[rows]))
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{roc_auc_score(y, s):.2f} ({low:.2f}–{high:.2f})"


def judged(answered: Answered, draws: int) -> str:
    """A line of the table."""
    y, groups = answered.right, list(answered.questions)
    router = area(y, TextRouter.cross_predict(answered.questions, y, groups=groups).tolist(), draws)
    scorer = "–"
    if answered.answers is not None:
        p = LearnedScorer.cross_predict(answered.questions, answered.answers, y, groups=groups)
        scorer = area(y, p.tolist(), draws)
    recorded = ", ".join(f"{name} {area(y, s, draws)}" for name, s in answered.recorded.items()) or "–"
    return f"| {answered.name} | {len(y):,} | {np.mean(y):.1%} | {router} | {scorer} | {recorded} |"


# ---------------------------------------------------------------------- what they cost


def per_call_us(call: Callable[[], Any], calls: int, blocks: int = 5) -> float:
    """Microseconds of CPU of a call: the median over the blocks."""
    call()
    found = []
    for _ in range(blocks):
        clock = Clock()
        with clock:
            for _ in range(calls):
                call()
        found.append(clock.cpu_s / calls * 1e6)
    return statistics.median(found)


def fitted() -> tuple[TextRouter, LearnedScorer]:
    """On made-up texts: their cost is not a matter of what they know."""
    texts = [f"{word} {i}" for i in range(20) for word in WORDS]
    labels = np.arange(len(texts)) % 2 == 0
    return TextRouter.fit(texts, labels), LearnedScorer.fit(texts, texts, labels)


def costs(calls: int, words: Sequence[int]) -> Iterator[str]:
    """Lines of the table: a score's CPU beside that of a plain call.

    Of OpenAI's client to a server that answers at once, the least that any call can cost; and of the smallest bundled
    model.
    """
    signals = fitted()

    def line(name: str, model: LanguageModel, question: str, answer: str, blocks: int) -> str:
        request = Request((Message("user", question),))
        ask = Generate(model, request, logprobs=False)
        plain = per_call_us(lambda: model.generate([ask]), max(1, calls // 10), blocks)
        evidence = Evidence(request, response=Response(answer))
        spent = [per_call_us(lambda s=signal: s.score(evidence), calls) for signal in signals]
        shown = " | ".join(f"{us:,.0f} us (×{1 + us / plain:.2f})" for us in spent)
        return f"| {name} | {len(question.split()):,} | {len(answer.split()):,} | {plain:,.0f} us | {shown} |"

    small = bundled_model("small")
    question = next(iter(World().questions("test", ("sums",), per_task=1))).prompt
    (said,) = small.generate([Generate(small, Request((Message("user", question),)))])
    assert isinstance(said, Response)
    yield line("bundled, small", small, question, said.text, 3)
    with server() as (url, _):
        api = OpenAICompatibleModel("gpt-4o-mini", base_url=f"{url}/v1", api_key="none")
        for count in words:
            yield line("instant server", api, text(count), text(200), 5)


def text(words: int) -> str:
    """Of so many words, most of them met once."""
    return " ".join(f"{word}{i // len(WORDS)}" for i, word in enumerate(islice(cycle(WORDS), words)))


def main(
    data: Annotated[Path | None, typer.Option(help="The folder of the data sets.")] = None,
    draws: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    calls: Annotated[int, typer.Option(help="Of a block of the cost's measure.")] = 200,
) -> None:
    """Print both tables, in Markdown."""
    if data is not None:
        print("| data, model | questions | right | TextRouter | LearnedScorer | recorded with it |")
        print("|---|---:|---:|---:|---:|---:|")
        for folder, read in SETS.items():
            if (data / folder).exists():
                for answered in read(data):
                    print(judged(answered, draws), flush=True)
        print()
    print(f"CPU of a call, Python {platform.python_version()}:\n")
    print("| model | words of the question | of the answer | plain call | TextRouter | LearnedScorer |")
    print("|---|---:|---:|---:|---:|---:|")
    for line in costs(calls, (16, 1000, 4000)):
        print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
