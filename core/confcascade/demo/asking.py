"""A shipped question, asked of a cascade, and every draft of an answer to it graded."""

from __future__ import annotations

from dataclasses import dataclass

from confcascade.attempts import Outcome
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.cascade import Cascade
from confcascade.demo.questions import ShortAnswer
from confcascade.errors import ConfcascadeError, ModelError
from confcascade.graders.example import Example
from confcascade.graders.grade import is_right
from confcascade.signals.token_probability import TokenProbability
from confcascade.trace import Attempt
from confcascade.types import Cost, Response

__all__ = ["P_T", "Answered", "answer", "known_cost"]

P_T = TokenProbability().name  # by which the cascade decides


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

    @property
    def cost(self) -> Cost:
        """Of every model that ran; what a call cost that failed nobody tells, and it counts as nothing."""
        return sum((known_cost(attempt) for attempt in self.outcome.record.attempts), start=Cost())


def known_cost(attempt: Attempt) -> Cost:
    """An attempt's cost; of one that failed only the seconds."""
    return attempt.cost if attempt.error is None else Cost(seconds=attempt.cost.seconds)


def answer(cascade: Cascade, example: Example) -> Answered:
    """Ask the cascade one question, greedily.

    Raises:
        CascadeExhaustedError: If the last model fails, behind others.
        ModelError: If the only model fails.
    """
    try:
        outcome = cascade.run(PROMPTS["plain"].messages(example), temperature=0.0)
    except ConfcascadeError:
        raise
    except Exception as error:  # a model's own may be of any type; its text is for whoever runs the demo
        raise ModelError(f"Model '{cascade.stages[-1].model.name}' failed. {type(error).__name__}: {error}") from error
    return Answered(example, outcome, tuple(_is_right(example, response) for response in outcome.responses))


def _is_right(example: Example, response: Response | None) -> bool:
    return response is not None and is_right(ShortAnswer().grade(example, response.answer).value)
