"""Does a plan by the large model help the small one, and is plan escalation (COPE) cheaper than escalation?

    python benchmarks/plan_escalation.py QUESTIONS SMALL LARGE -o REC.jsonl [--questions 24] [--minutes 10]

QUESTIONS is GSM8K (``test.jsonl.gz``), SMALL and LARGE are model strings such as ``local:FILE.gguf``. Five models
answer each question once: both alone, and the three of plan escalation, "small+small" (who plans + who answers),
"large+small" and "large+large". Answers, plans and costs go into a recording, so a run that was killed, or whose
minutes are over, goes on where it stopped. Then: accuracy and cost of each, paired against the model that answers
alone, and both cascades over a few thresholds of P(T), replayed.
"""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade import Example, PlannedModel, Stage, TokenProbability, TransformersModel, collect, from_string
from confcascade.asks import LanguageModel
from confcascade.bench.metrics.significance import discordant, mcnemar, mean_interval
from confcascade.bench.questions import read_examples
from confcascade.bench.questions.prompts import Prompt
from confcascade.bench.recording import read_columns
from confcascade.bench.replay import PolicyStage, replay
from confcascade.decoding import Decoding
from rich.console import Console
from rich.table import Table

PROMPT = Prompt(
    "steps", None, '{question}\nWork it out in a few short lines. Then write "#### " and the number, and stop.'
)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the small model's answers that a threshold keeps, in this recording


def main(
    questions_: Annotated[Path, typer.Argument(metavar="QUESTIONS")],
    small: Annotated[str, typer.Argument()],
    large: Annotated[str, typer.Argument()],
    out: Annotated[Path, typer.Option("-o", help="The recording.")],
    questions: Annotated[int, typer.Option(help="Drawn by a seed.")] = 24,
    answer_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 320,
    plan_tokens: Annotated[int, typer.Option(help="Most tokens of a plan.")] = 96,
    batch: Annotated[int, typer.Option(help="Questions of one forward pass.")] = 16,
    minutes: Annotated[float, typer.Option(help="Nothing new is begun after these.")] = 10.0,
    threads: Annotated[int, typer.Option(help="Of computation.")] = 1,
) -> None:
    import torch

    torch.set_num_threads(threads)
    examples = random.Random(0).sample(list(read_examples(questions_, "gsm8k")), questions)
    models = planned(_loaded(small, "small", batch), _loaded(large, "large", batch), plan_tokens)
    record(examples, models, out, answer_tokens=answer_tokens, minutes=minutes)
    report(out, models, Console(soft_wrap=True))


def planned(small: LanguageModel, large: LanguageModel, plan_tokens: int | None) -> list[LanguageModel]:
    """The two alone, and the three of plan escalation."""
    pairs = [(small, small), (large, small), (large, large)]
    return [small, large, *(PlannedModel(one, two, plan_tokens=plan_tokens) for one, two in pairs)]


def record(
    examples: list[Example], models: list[LanguageModel], out: Path, *, answer_tokens: int, minutes: float
) -> None:
    """Ask every model every question that the recording has not yet; should time run out, the most telling first."""
    stop = threading.Event()
    timer = threading.Timer(60 * minutes, stop.set)
    timer.daemon = True
    timer.start()
    decoding = Decoding(temperature=0, max_tokens=answer_tokens)
    first = [models[i] for i in (0, 3, 1, 2, 4)]
    stages = [Stage(model, [TokenProbability()], {"p_t": "always"}, decoding=decoding) for model in first]
    try:
        collect(examples, stages, out, prompt=PROMPT, grader="numeric", keep_thoughts=True, stop=stop)
    finally:
        timer.cancel()


def report(out: Path, models: list[LanguageModel], console: Console) -> None:
    """The tables, of the models that have been asked, and the questions that all of these have answered."""
    small, large, *staged = (model.name for model in models)
    columns = read_columns(out).complete()
    models = [model for model in models if model.name in columns.models]
    sizes = {model.name: model.architecture for model in models if model.architecture is not None}

    def played(*stages: PolicyStage) -> tuple[np.ndarray, np.ndarray]:
        found = replay(columns, list(stages), architectures=sizes)
        return found.grade, found.cost.flops

    grades = {model.name: played(PolicyStage(model.name)) for model in models}
    console.print(f"{len(columns)} questions; GFLOP of a question, every model that ran charged; 95 % intervals")
    table = Table("model", "right", "interval", "GFLOP", "tokens", "cut", "against alone: won, lost, p (McNemar)")
    for name, (right, flops) in grades.items():
        j = columns.index(name)
        alone = grades[small if name.endswith(small) else large][0]
        against = "" if name in (small, large) else _against(right, alone)
        mean, low, high = mean_interval(right)
        tokens = (columns.input_tokens + columns.output_tokens)[:, j].mean()
        cut = float(1 - columns.usable[:, j].mean())
        table.add_row(
            name, f"{mean:.1%}", f"{low:.1%} to {high:.1%}", f"{flops.mean() / 1e9:.0f}", f"{tokens:.0f}", f"{cut:.0%}",
            against,
        )  # fmt: skip
    console.print(table)

    table = Table("cascade", "threshold of p_t", "right", "GFLOP", "share of the large model's cost")
    chosen = np.quantile(columns.signal(small, "p_t").values, [1 - share for share in SHARES])
    cascades = [names for names in ([small, large], staged) if set(names) <= set(grades)]
    for names, threshold in itertools.product(cascades, chosen):
        right, flops = played(
            *(PolicyStage(name, {"p_t": float(threshold)}) for name in names[:-1]), PolicyStage(names[-1])
        )
        share = flops.mean() / grades[large][1].mean()
        table.add_row(
            " > ".join(names), f"{threshold:.3f}", f"{right.mean():.1%}", f"{flops.mean() / 1e9:.0f}", f"{share:.0%}"
        )
    console.print(table)
    if staged[2] in grades:
        plans = (grades[staged[2]][1] - grades[large][1]).mean() / 1e9
        console.print(f"Planning twice with the same planner costs at most {plans:.0f} GFLOP for a question.")


def _against(right: np.ndarray, alone: np.ndarray) -> str:
    lost, won = discordant(right > 0.5, alone > 0.5)
    return f"{won}, {lost}, {mcnemar(right > 0.5, alone > 0.5):.2g}"


def _loaded(model: str, name: str, batch: int) -> LanguageModel:
    kind, _, place = model.partition(":")
    if kind == "local":
        return TransformersModel.from_pretrained(place, name=name, dtype="bfloat16", batch_size=batch)
    return from_string(model)


if __name__ == "__main__":
    typer.run(main)
