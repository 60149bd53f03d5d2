"""A cascade of efforts: a local model's quick answer, and the same weights, thinking, where it is unsure.

    python benchmarks/thinking.py FOLDER [--questions 24] [--most 96]

FOLDER holds a causal language model for `TransformersModel.from_pretrained`. Its chat template is replaced by one that
shows how to think (two solved examples) and opens the thoughts, ``<think>``, if ``enable_thinking`` is set; without, it
shows the examples' answers only. So any instruction model can be tried, also one that was not trained to think.
The questions are word problems of one or two steps, drawn by a seed.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confcascade import Cascade, Outcome, Stage, TokenProbability, TransformersModel
from confcascade.testing import ScriptedModel
from sklearn.metrics import roc_auc_score

TEMPLATE = """\
{%- macro turn(role, text) %}<|im_start|>{{ role }}
{{ text }}<|im_end|>
{% endmacro -%}
{{ turn('user', 'Tom has 8 pens. Tom finds 5 more pens. How many pens does Tom have?') -}}
{{ turn('assistant', ('<think>\\n8 pens and 5 more are 8 + 5 = 13.\\n</think>\\n'
    if enable_thinking else '') + '13') -}}
{{ turn('user', 'Ann has 6 bags with 2 nuts each. Ann finds 7 more nuts. How many nuts does Ann have?') -}}
{{ turn('assistant', ('<think>\\n6 bags with 2 nuts are 6 * 2 = 12 nuts. With 7 more, 12 + 7 = 19.\\n</think>\\n'
    if enable_thinking else '') + '19') -}}
{%- for message in messages %}{{ turn(message['role'], message['content']) }}{% endfor -%}
<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}"""


@dataclass(frozen=True)
class Question:
    text: str
    answer: int


def questions(count: int, seed: int = 0) -> list[Question]:
    """Word problems with numbers of one digit: every other a + b, which needs no thoughts, the others a * b + c."""
    draw = random.Random(seed)
    things = ["boxes with {} cups", "bags with {} coins", "shelves with {} books", "trays with {} eggs"]
    found = []
    for i in range(count):
        a, b, c = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 9)
        held = draw.choice(things)
        noun = held.split()[-1]
        name = draw.choice(["Mia", "Ben", "Lea", "Sam"])
        has, answer = (f"{a} {held.format(b)} each", a * b + c) if i % 2 else (f"{a} {noun}", a + c)
        text = f"{name} has {has}. {name} finds {c} more {noun}. How many {noun} does {name} have?"
        found.append(Question(text, answer))
    return found


def right(question: Question, outcome: Outcome | Exception) -> bool:
    """Whether the last number of the answer is the question's."""
    if isinstance(outcome, Exception):
        return False
    numbers = re.findall(r"\d+", outcome.response.answer)
    return bool(numbers) and int(numbers[-1]) == question.answer


def ask(stages: Sequence[Stage], asked: Sequence[Question]) -> tuple[list[Outcome | Exception], float]:
    started = time.perf_counter()
    found = Cascade(stages).run_batch([each.text for each in asked], return_exceptions=True)
    return list(found), time.perf_counter() - started


def auroc(scores: Sequence[float], grades: Sequence[bool]) -> str:
    return "-" if len(set(grades)) < 2 else f"{roc_auc_score(grades, scores):.2f}"


def scored(outcomes: Sequence[Outcome | Exception], grades: Sequence[bool]) -> tuple[list[float], list[bool]]:
    """P(T) of the first attempts that have one, and whether each was right."""
    found = [
        (outcome.record.attempts[0].scores["p_t"].value, grade)
        for outcome, grade in zip(outcomes, grades, strict=True)
        if not isinstance(outcome, Exception) and outcome.record.attempts[0].scores
    ]
    return [value for value, _ in found if value is not None], [grade for value, grade in found if value is not None]


def row(
    what: str, asked: Sequence[Question], outcomes: Sequence[Outcome | Exception], seconds: float
) -> tuple[str, list[bool]]:
    grades = [right(question, outcome) for question, outcome in zip(asked, outcomes, strict=True)]
    done = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    tokens = np.mean([outcome.record.usage.output_tokens for outcome in done])
    teraflops = sum(outcome.record.cost.flops or 0.0 for outcome in done) / 1e12
    mute = sum("thoughts" in attempt.reason for outcome in done for attempt in outcome.record.attempts)
    values, judged = scored(done, [g for g, o in zip(grades, outcomes, strict=True) if not isinstance(o, Exception)])
    told = auroc(values, judged) if values else "-"
    cells = [what, f"{sum(grades)} of {len(grades)}", mute, told, f"{tokens:.1f}", f"{teraflops:.3g}", f"{seconds:.0f}"]
    return f"| {' | '.join(map(str, cells))} |", grades


def main(folder: str | Path, count: int = 24, most: int = 96, shares: Sequence[float] = (0.5,)) -> list[str]:
    quick = TransformersModel.from_pretrained(folder, name="quick", max_new_tokens=12)
    quick.tokenizer.chat_template = TEMPLATE
    thinking = quick.with_options(name="thinking", template_options={"enable_thinking": True}, max_new_tokens=most)
    asked = questions(count)
    always = {"p_t": "always"}
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    for line in (
        "| asked | right | no answer behind its thoughts | AUROC of P(T) | tokens a question | TFLOP | seconds |",
        "|---|---|---|---|---|---|---|",
    ):
        say(line)
    alone: dict[str, list[Outcome | Exception]] = {}
    grades: dict[str, list[bool]] = {}
    for model in (quick, thinking):
        # before a stage that says nothing: each attempt is judged, and what cannot be kept counts as wrong
        nobody = ScriptedModel("nobody", lambda _: "")
        alone[model.name], seconds = ask([Stage(model, [TokenProbability()], always), Stage(nobody)], asked)
        line, grades[model.name] = row(f"{model.name} only", asked, alone[model.name], seconds)
        say(line)
    values, _ = scored(alone["quick"], grades["quick"])
    for share in shares if values else ():  # none, if every quick answer was cut off
        threshold = float(np.quantile(values, share))
        found, seconds = ask([Stage(quick, [TokenProbability()], {"p_t": threshold}), Stage(thinking)], asked)
        line, _ = row(f"quick, thinking below {threshold:.3f}", asked, found, seconds)
        say(line)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--most", type=int, default=96, help="Most tokens of thoughts and answer together.")
    given = parser.parse_args()
    main(given.folder, given.questions, given.most)
