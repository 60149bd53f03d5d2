"""Whether two answers are the same, as a grader sees it."""

from __future__ import annotations

from confcascade.drivers import run
from confcascade.evaluation.examples import Example, is_right
from confcascade.evaluation.graders.grader import Grader
from confcascade.evaluation.graders.names import grader_from_string

__all__ = ["Agreement"]


class Agreement:
    """The rule by which an `Audit` compares answers: a grader's, with the largest model's answer for the reference.

    Args:
        grader: A grader, or its name, as `grader_from_string` takes it ("choice", "numeric:0.01").
        name: Of the rule, which a certificate's `equivalence` is compared with; by default the grader's.

    Raises:
        ConfigurationError: If there is no such grader.

    >>> same = Agreement("choice")
    >>> same.name, same("Which? A) a B) b", "(B)", "The answer is B."), same("Which?", "(B)", "A")
    ('choice', True, False)
    """

    def __init__(self, grader: Grader | str, *, name: str | None = None) -> None:
        self.grader = grader_from_string(grader) if isinstance(grader, str) else grader
        self.name = name or self.grader.name

    def __repr__(self) -> str:
        return f"Agreement({self.grader!r})"

    def __call__(self, question: str, answer: str, larger: str) -> bool | None:
        """Whether the grader takes `answer` for right if `larger` is (`is_right`); None if it cannot tell."""
        example = Example(question or "-", references=(larger,))
        value = run(self.grader.judge(example, answer)).value
        return None if value is None else is_right(value)
