"""A shipped question, asked of a cascade, and every draft of an answer to it graded."""

from __future__ import annotations

from dataclasses import dataclass

from confcascade.attempts import Outcome
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.cascade import Cascade
from confcascade.demo.questions import ShortAnswer
from confcascade.graders.example import Example
from confcascade.graders.grade import is_right
from confcascade.types import Response

__all__ = ["Answered", "answer"]


@dataclass(frozen=True)
class Answered:
    """A question and what became of it.

    Attributes:
        example: The question.
        outcome: Of the cascade.
        right: Of each attempt whether its answer was right; the last is the one that was kept.
    """

    example: Example
    outcome: Outcome
    right: tuple[bool, ...]


def answer(cascade: Cascade, example: Example) -> Answered:
    """Ask the cascade one question, greedily.

    Raises:
        CascadeExhaustedError: If the last model fails.
    """
    outcome = cascade.run(PROMPTS["plain"].messages(example), temperature=0.0)
    return Answered(example, outcome, tuple(_is_right(example, response) for response in outcome.responses))


def _is_right(example: Example, response: Response | None) -> bool:
    return response is not None and is_right(ShortAnswer().grade(example, response.answer).value)
