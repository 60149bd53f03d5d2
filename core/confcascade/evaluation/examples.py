"""A question with what a grader needs to judge an answer to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LETTERS", "RIGHT", "Example", "Grade", "is_right"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RIGHT = 0.5  # the least grade of a right answer, wherever only right or wrong counts


@dataclass(frozen=True)
class Example:
    """One question of a data set.

    Attributes:
        question: As a user would ask it.
        choices: To choose from, in the order of their letters A, B, C, ...; empty for an open question.
        references: Answers that are right; of a question with choices the letter alone. Empty if none is known.
        context: A text to answer from.
        group: What the figures are also told by (a subject, say).
        id: Its key in a recording; made from the question, its choices and its context where none is given, so that
            the same question has the same id in every file.
    """

    question: str
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    context: str | None = None
    group: str | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ConfigurationError("An example's `question` is empty.")
        if len(self.choices) > len(LETTERS):
            raise ConfigurationError(f"At most {len(LETTERS)} choices can be lettered. Got {len(self.choices)}.")
        if not self.id:
            text = json.dumps([self.question, self.choices, self.context])
            object.__setattr__(self, "id", hashlib.sha256(text.encode()).hexdigest()[:16])


@dataclass(frozen=True)
class Grade:
    """What a grader makes of an answer.

    Attributes:
        value: How right it is, from 0 to 1; None if it could not be graded.
        refused: It says that it does not know; counted apart from a wrong answer.
        predicted: The answer as the grader read it (a letter, a number); None where it reads none.
        reason: Why it could not be graded, or how a judge saw it.
    """

    value: float | None
    refused: bool = False
    predicted: str | None = None
    reason: str = ""


@overload
def is_right(grade: float | None) -> bool: ...
@overload
def is_right(grade: NDArray[np.floating[Any]]) -> NDArray[np.bool_]: ...
def is_right(grade: Any) -> Any:
    """Whether a grade, from 0 to 1, is that of a right answer: at least `RIGHT`.

    Every figure that knows only right and wrong decides by this, and so do fits, audits and probes: of two answers, it
    says whether a grader takes them for the same. No grade, None or NaN, is not that of a right answer.

    Args:
        grade: One, or an array of them.

    >>> is_right(0.75), is_right(0.25)
    (True, False)
    """
    return grade is not None and grade >= RIGHT
