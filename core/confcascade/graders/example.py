"""A question with what a grader needs to judge an answer to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from confcascade.errors import ConfigurationError
from confcascade.letters import LETTERS

__all__ = ["LETTERS", "Example"]


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
