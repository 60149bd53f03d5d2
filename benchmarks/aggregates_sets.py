"""The question sets of `aggregates`, and the recording of real answers with alternatives for every token.

A set is a short instruction, examples and a grader. The instruction is the system's turn, so that a server which keeps
the prompt's beginning in its cache reads it once.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from confcascade import Message, Request
from confcascade.asks import Flow
from confcascade.bench.recording import RecordingWriter, Row
from confcascade.drivers import run, run_many
from confcascade.extending import Generate, LanguageModel, Response
from confcascade.graders import LETTERS, ChoiceLetter, ContainsAny, Example, Function, Grader, Numeric

ALTERNATIVES = 5  # what every server tells


@dataclass(frozen=True)
class QuestionSet:
    """Questions with how they are asked and graded.

    Attributes:
        name: Of the set.
        kind: Of its answers: "short", "reasoning" or "code".
        instruction: The system's turn.
        max_tokens: Most tokens of an answer.
        grader: Tells right answers.
        examples: In the order in which they are asked.
    """

    name: str
    kind: str
    instruction: str
    max_tokens: int
    grader: Grader
    examples: Sequence[Example] = field(repr=False)

    def request(self, example: Example) -> Request:
        """Greedy, of course: P(T) is to speak of the answer that the model holds for the best."""
        listed = "".join(f"\n- {choice}" for choice in example.choices)
        messages = (Message("system", self.instruction), Message("user", example.question + listed))
        return Request(messages, max_tokens=self.max_tokens, temperature=0.0)


# ---------------------------------------------------------------------- the sets


def gsm8k(
    data: Path,
    name: str = "gsm8k",
    instruction: str = "Solve the problem step by step, in few words. End with a line 'Answer: <number>'.",
) -> QuestionSet:
    """Sums in words (Cobbe et al. 2021, MIT): test questions, worked step by step."""
    rows = _lines(data / "gsm8k" / "test.jsonl.gz")
    return QuestionSet(
        name,
        "reasoning",
        instruction,
        320,
        Numeric(),
        _mixed(Example(row["question"], references=(row["answer"].rpartition("####")[2].strip(),)) for row in rows),
    )


def gsm8k_steps(data: Path) -> QuestionSet:
    """The same for models that take "in few words" for leave to skip the steps, and then guess."""
    return gsm8k(
        data,
        "gsm8k-steps",
        "Work the problem out first: one numbered step a line, each with its sum. "
        "Only then end with a line 'Answer: <number>'.",
    )


def popqa(data: Path) -> QuestionSet:
    """Open facts (Mallen et al. 2023, MIT), those of the most viewed subjects first: small models know few others."""
    rows = sorted(_lines(data / "popqa" / "popqa_a.jsonl.gz"), key=lambda row: (-row["s_pop"], row["id"]))
    distinct = {row["question"]: row for row in reversed(rows)}  # the same words may ask for another
    return QuestionSet(
        "popqa",
        "short",
        "Answer with the name alone, in a few words, without a sentence.",
        24,
        ContainsAny(),
        [
            Example(row["question"], references=tuple(row["possible_answers"]))
            for row in rows
            if distinct[row["question"]] is row
        ],
    )


def arc(data: Path) -> QuestionSet:
    """Questions of science at school (ARC-Challenge, CC BY-SA 4.0), the right choice to be repeated: short phrases."""
    with gzip.open(data / "arc_challenge" / "arc_challenge.json.gz", "rt") as file:
        rows = json.load(file)["test"]
    examples = []
    for row in rows:
        letters = list(row["choices"])
        reference = LETTERS[letters.index(row["answer"])]
        examples.append(Example(row["question"], tuple(row["choices"].values()), (reference,)))
    return QuestionSet(
        "arc",
        "short",
        "Answer with the text of the right choice alone, word for word.",
        48,
        ChoiceLetter(),
        _mixed(examples),
    )


def mbpp(data: Path) -> QuestionSet:
    """Small Python functions (MBPP, sanitized, Austin et al. 2021, CC BY 4.0), right if all tests pass."""
    rows = json.loads((data / "mbpp" / "sanitized-mbpp.json").read_text())
    tests: dict[str, str] = {}
    examples = []
    for row in rows:
        example = Example(f"{row['prompt']}\n\nIt must pass this test:\n{row['test_list'][0]}")
        tests[example.id] = "\n".join([*row["test_imports"], *row["test_list"]])
        examples.append(example)
    return QuestionSet(
        "mbpp",
        "code",
        "Write the Python function that is asked for. Reply with the code alone: no explanation, no example.",
        256,
        Function(lambda example, answer: passes(answer, tests[example.id])),
        _mixed(examples),
    )


SETS: Mapping[str, Callable[[Path], QuestionSet]] = {
    "gsm8k": gsm8k,
    "gsm8k-steps": gsm8k_steps,
    "popqa": popqa,
    "arc": arc,
    "mbpp": mbpp,
}


def passes(answer: str, tests: str, *, seconds: float = 5.0) -> bool:
    """Whether the code of an answer passes `tests`, in a process of its own with little time and memory.

    That keeps runaways off, and would not keep out code that means harm: use models and questions that you trust.
    """
    fenced = re.search(r"```(?:python|py)?\s*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    code = fenced[1] if fenced else answer

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", f"{code}\n\n{tests}\n"],
            input=b"",
            capture_output=True,
            timeout=4 * seconds,  # of the clock, for a busy machine
            preexec_fn=limit,
            check=False,
        )
    except (subprocess.TimeoutExpired, ValueError):  # a null byte in the code
        return False
    return ended.returncode == 0


def _lines(path: Path) -> list[Any]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def _mixed(examples: Any) -> list[Example]:
    """Each once, in the order of a hash of its text: any first part is a fair sample."""
    distinct = {example.id: example for example in examples}
    return sorted(distinct.values(), key=lambda example: sha256(example.question.encode()).digest())


# ---------------------------------------------------------------------- collecting


def record(
    asked: QuestionSet, model: LanguageModel, path: Path, *, questions: int, concurrency: int
) -> Iterator[tuple[int, int]]:
    """Ask what the recording at `path` lacks; yields how many rows are there, of how many.

    `collect` of the library keeps the first token's alternatives alone, which is all that a cascade needs: here all
    are kept. A row is written as it comes, so a run that was killed goes on where it was.
    """
    examples = asked.examples[:questions]
    with RecordingWriter(path) as writer:
        left = [each for each in examples if (f"{asked.name}/{each.id}", model.name) not in writer.keys]
        done = len(examples) - len(left)
        yield done, len(examples)
        flows = [_flow(model, asked.request(example)) for example in left]
        for i, response in run_many(flows, concurrency):
            if isinstance(response, Exception):
                raise response
            example = left[i]
            grade = run(asked.grader.judge(example, response.text))
            writer.append(
                Row(
                    question=f"{asked.name}/{example.id}",
                    model=model.name,
                    group=asked.name,
                    answer=response.text,
                    grade=grade.value,
                    refused=grade.refused,
                    predicted=grade.predicted,
                    finish_reason=response.finish_reason,
                    tokens=response.tokens,
                    usage=response.usage,
                )
            )
            done += 1
            yield done, len(examples)


def _flow(model: LanguageModel, request: Request) -> Flow[Response]:
    (answer,) = yield (Generate(model, request, top_logprobs=ALTERNATIVES),)
    response: Response = answer.unwrap()
    return response
