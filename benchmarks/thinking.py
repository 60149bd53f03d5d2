"""A cascade of efforts: a local model's quick answer, and the same weights, thinking, where it is unsure.

    python benchmarks/thinking.py MODEL [--questions 24] [--most 96 40] [--shares 0.25 0.5 0.75]

MODEL is a folder, for `TransformersModel`, or a GGUF file, for `LlamaCppModel`. Its chat template is replaced by one
that shows how to think (two solved examples) and opens the thoughts, ``<think>``, if ``enable_thinking`` is set;
without, it shows the examples' answers only. So any instruction model can be tried, also one that was not trained to
think. The questions are word problems of one or two steps, drawn by a seed.

Each effort answers each question once. The cascades are asked for real, and get the same answers again.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confcascade import Cascade, LlamaCppModel, Outcome, Stage, TokenProbability, TransformersModel
from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill
from confcascade.cost import Architecture
from confcascade.models.base import InThreads
from confcascade.testing import ScriptedModel
from confcascade.types import Prefilled, Response
from sklearn.metrics import roc_auc_score

QUICK = 12  # most tokens of a quick answer
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


class Remembering(InThreads):
    """A model whose answers are made once, and given again to the same question."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._known: dict[str, Response] = {}

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def capability(self) -> Capability:
        return self._model.capability

    @property
    def architecture(self) -> Architecture | None:
        return self._model.architecture

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return self._model.prefill(asks)

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        questions = [each.request.messages[-1].content for each in asks]
        fresh = [i for i, question in enumerate(questions) if question not in self._known]
        if fresh:
            for i, made in zip(fresh, self._model.generate([asks[i] for i in fresh]), strict=True):
                if isinstance(made, Exception):
                    raise made
                self._known[questions[i]] = made
        return [self._known[question] for question in questions]

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        return self._model.stream(ask)


def efforts(path: Path, most: Sequence[int], folder: str) -> tuple[LanguageModel, list[LanguageModel]]:
    """The model, quick, and thinking, once for each limit; a GGUF file is copied to `folder` with the template."""
    thinks = {"enable_thinking": True}
    if path.suffix == ".gguf":
        copied = Path(folder) / path.name
        with_template(path, copied)
        # each reads the file's weights from the same pages of memory
        quick = LlamaCppModel(copied, name="quick", max_new_tokens=QUICK)
        return quick, [
            LlamaCppModel(copied, name="thinking", max_new_tokens=each, template_options=thinks) for each in most
        ]
    local = TransformersModel.from_pretrained(path, name="quick", max_new_tokens=QUICK)
    local.tokenizer.chat_template = TEMPLATE
    return local, [local.with_options(name="thinking", template_options=thinks, max_new_tokens=each) for each in most]


def with_template(path: Path, copied: Path) -> None:
    """Copy a GGUF file, with `TEMPLATE` for its chat template."""
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(copied, reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    changed = {gguf.Keys.Tokenizer.CHAT_TEMPLATE: MetadataDetails(gguf.GGUFValueType.STRING, TEMPLATE)}
    copy_with_new_metadata(reader, writer, changed, [])


def ask(stages: Sequence[Stage], asked: Sequence[Question]) -> list[Outcome | Exception]:
    return list(Cascade(stages).run_batch([each.text for each in asked], return_exceptions=True))


def scored(outcomes: Sequence[Outcome | Exception], grades: Sequence[bool]) -> tuple[list[float], list[bool]]:
    """P(T) of the first attempts that have one, and whether each was right."""
    found = [
        (score.value, grade)
        for outcome, grade in zip(outcomes, grades, strict=True)
        if not isinstance(outcome, Exception)
        and (score := outcome.record.attempts[0].scores.get("p_t")) is not None
        and score.value is not None
    ]
    return [value for value, _ in found], [grade for _, grade in found]


def auroc(outcomes: Sequence[Outcome | Exception], grades: Sequence[bool]) -> str:
    """Of the P(T) of answers that none but one model gave."""
    values, judged = scored(outcomes, grades)
    return "-" if len(set(judged)) < 2 else f"{roc_auc_score(judged, values):.2f}"


def row(what: str, grades: Sequence[bool], told: str, outcomes: Sequence[Outcome | Exception]) -> str:
    done = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    tokens = np.mean([outcome.record.usage.output_tokens for outcome in done])
    teraflops = sum(outcome.record.cost.flops or 0.0 for outcome in done) / 1e12
    mute = sum("thoughts" in attempt.reason for outcome in done for attempt in outcome.record.attempts)
    cells = [what, f"{sum(grades)} of {len(grades)}", mute, told, f"{tokens:.1f}", f"{teraflops:.3g}"]
    return f"| {' | '.join(map(str, cells))} |"


def main(
    path: str | Path, count: int = 24, most: Sequence[int] = (96,), shares: Sequence[float] = (0.25, 0.5, 0.75)
) -> list[str]:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    asked = questions(count)
    # before a stage that says nothing: each attempt is judged, and what cannot be kept counts as wrong
    nobody = Stage(ScriptedModel("nobody", lambda _: ""))

    def alone(model: LanguageModel) -> tuple[list[Outcome | Exception], list[bool]]:
        outcomes = ask([Stage(model, [TokenProbability()], {"p_t": "always"}), nobody], asked)
        return outcomes, [right(question, outcome) for question, outcome in zip(asked, outcomes, strict=True)]

    say("| asked | right | no answer behind its thoughts | AUROC of P(T) | tokens a question | TFLOP |")
    say("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        first, others = efforts(Path(path).expanduser(), most, folder)
        quick = Remembering(first)
        outcomes, grades = alone(quick)
        say(row("quick only", grades, auroc(outcomes, grades), outcomes))
        values, _ = scored(outcomes, grades)
        for limit, other in zip(most, others, strict=True):
            thinking = Remembering(other)
            outcomes, grades = alone(thinking)
            say(row(f"thinking only, at most {limit} tokens", grades, auroc(outcomes, grades), outcomes))
            for share in shares if values else ():  # none, if every quick answer was cut off
                threshold = float(np.quantile(values, share))
                outcomes = ask([Stage(quick, [TokenProbability()], {"p_t": threshold}), Stage(thinking)], asked)
                grades = [right(question, outcome) for question, outcome in zip(asked, outcomes, strict=True)]
                say(row(f"quick, thinking (at most {limit}) below {threshold:.3f}", grades, "-", outcomes))
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument(
        "--most", type=int, nargs="+", default=[96], help="Most tokens of thoughts and answer together."
    )
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="Of questions that escalate."
    )
    given = parser.parse_args()
    main(given.model, given.questions, given.most, given.shares)
