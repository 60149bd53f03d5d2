"""The questions that a model learns to state its confidence on: in parts, and how they are put and graded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confcascade.bench.questions.prompts import Prompt
from confcascade.bench.questions.splitting import split
from confcascade.bench.training.rewards import Right
from confcascade.errors import ConfigurationError
from confcascade.graders import Grader
from confcascade.graders.example import Example
from confcascade.signals.verbalized import Verbalized
from confcascade.types import Request

__all__ = ["SHARES", "Questions"]

SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
LEAST = {"training": 16, "validation": 10, "test": 10}


@dataclass(frozen=True)
class Questions:
    """Questions in three parts, with all that it takes to ask and to judge.

    Attributes:
        training: Learned from.
        validation: Choose which of the weights met while training are kept.
        test: Judge, once before and once after.
        others: Further sets that only judge, by name: questions of another domain, say.
        prompt: How a question is put.
        grader: Judges an answer.
        signal: Asks for the confidence, in one step.
        max_tokens: Most tokens of an answer with its statement.
    """

    training: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    prompt: Prompt
    grader: Grader
    signal: Verbalized
    max_tokens: int = 256
    others: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    @classmethod
    def of(cls, examples: Iterable[Example], *, seed: int = 0, **how: Any) -> Questions:
        """Put into parts by a hash of their texts, so that a text is never in two of them.

        Args:
            examples: With references.
            seed: Of the split.
            **how: The other attributes.

        Raises:
            ConfigurationError: If there are too few, or one has no reference.
        """
        known = {example.id: example for example in examples}
        if without := [example.id for example in known.values() if not example.references]:
            raise ConfigurationError(
                f"{len(without)} of {len(known)} questions have no reference, such as '{without[0]}': whether an "
                "answer to them is right, nobody knows."
            )
        parts = split(known.values(), SHARES, seed=seed)
        if any(len(parts[part]) < least for part, least in LEAST.items()):
            counts = ", ".join(f"{len(found)} for {part}" for part, found in parts.items())
            raise ConfigurationError(
                f"There are too few questions: {counts}, of {len(known)}; it takes {LEAST['training']} for training "
                f"and {LEAST['validation']} for each of the others."
            )
        training, validation, test = (tuple(parts[part]) for part in SHARES)
        return cls(training, validation, test, **how)

    def request(self, example: Example) -> Request:
        """The question, without a word about confidence."""
        return Request(self.prompt.messages(example), max_tokens=self.max_tokens)

    def asked(self, example: Example) -> Request:
        """The question with the instruction to state a confidence."""
        return self.signal.asks(self.request(example))

    def grade(self, example: Example, answer: str) -> float:
        """How right an answer is, from 0 to 1; one that the grader cannot read is wrong."""
        value = self.grader.grade(example, answer).value
        return 0.0 if value is None else value

    @property
    def right(self) -> Right:
        """For the rewards: grades an answer to the training question whose id stands in the column ``id``."""
        known = {example.id: example for example in self.training}
        return lambda answer, columns: self.grade(known[columns["id"]], answer)
