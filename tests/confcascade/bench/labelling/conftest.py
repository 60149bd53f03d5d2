"""A recording with answers and scores but no grades, and who could grade it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from confcascade import Architecture, Usage
from confcascade.bench.fitting import FitData, material_of
from confcascade.bench.labelling import Label, LabelTask, Wanted, same_text
from confcascade.bench.recording import RecordedScore, Row

SIZES = {
    "small": Architecture(10**9, 0, 0),
    "medium": Architecture(4 * 10**9, 0, 0),
    "large": Architecture(3 * 10**10, 0, 0),
}
EASE = {"small": 0.3, "medium": 0.8, "large": 2.0}


def ungraded(n: int = 1500, models: Sequence[str] = ("small", "large"), seed: int = 0) -> list[Row]:
    """Right answers read "yes", wrong ones "no, says ..." and the model; the easier a question, the higher ``p_t``."""
    rng = np.random.default_rng(seed)
    ease = 1.6 * rng.normal(size=n)
    rows = []
    for model in models:
        seen = ease + EASE[model] + 0.5 * rng.normal(size=n)
        right = rng.random(n) < 1 / (1 + np.exp(-2.5 * seen))
        told = 1 / (1 + np.exp(-(seen + 0.7 * rng.normal(size=n))))
        rows += [
            Row(
                question=f"q{i}",
                model=model,
                prompt=f"What is {i}?",
                answer="yes" if right[i] else f"no, says {model}",
                scores={"p_t": RecordedScore(value=float(told[i]))},
                usage=Usage(20, 5),
                build=f"build of {model}",
                prompt_version="v1",
            )
            for i in range(n)
        ]
    return rows


def material(rows: Sequence[Row]) -> FitData:
    return material_of(rows, graded=False, texts=True, architectures=SIZES)


def task_of(rows: Sequence[Row], **options: object) -> LabelTask:
    data = material(rows)
    return LabelTask.of(data, same_text(data), architectures=SIZES, **options)  # type: ignore[arg-type]


def judged(wanted: Wanted) -> Mapping[str, float]:
    return wanted.grades([float(text == "yes") for text in wanted.answers])


@dataclass
class Teacher:
    """Knows all the answers, and leaves after some labels."""

    batch: int = 1
    most: float = float("inf")
    judge: Callable[[Wanted], Mapping[str, float] | None] = judged
    asked: list[str] = field(default_factory=list)

    def ask(self, wanted: Sequence[Wanted]) -> list[Label]:
        if len(self.asked) >= self.most:
            return []
        self.asked += [each.question for each in wanted]
        return [Label(each, self.judge(each), seconds=2.0, usd=0.25) for each in wanted]


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    return ungraded()


@pytest.fixture(scope="session")
def task(rows: list[Row]) -> LabelTask:
    return task_of(rows)
