"""Measure a query engine on questions of one's own: how often it is right, what it costs, and which signal tells."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from confcascade import ConfigurationError, Cost, Record, Usage, trace

__all__ = ["Measured", "measure"]

R = TypeVar("R")


@dataclass(frozen=True)
class Measured:
    """What became of a set of questions.

    Attributes:
        right: For each question whether the answer was right.
        records: For each question the records of all cascades that were asked in it, in the order in which they ended.
    """

    right: tuple[bool, ...]
    records: tuple[tuple[Record, ...], ...]

    @property
    def accuracy(self) -> float:
        """The share of right answers, in [0, 1]."""
        return sum(self.right) / len(self.right)

    @property
    def cost(self) -> Cost:
        """Every model that ran, for all questions; models outside of cascades are not in it."""
        return sum((record.cost for records in self.records for record in records), Cost())

    @property
    def usage(self) -> Usage:
        """Tokens of every attempt that was paid for, for all questions."""
        return sum((record.usage for records in self.records for record in records), Usage())

    def scores(self, signal: str, policy_id: str | None = None) -> list[tuple[float, bool]]:
        """A signal's scores of the attempts whose answers were kept, each with whether the question was answered right.

        Measure with the threshold "always": a threshold that passes answers on leaves only the high scores here.
        Attempts that could not be scored are left out.

        Args:
            signal: Its name, such as "p_t".
            policy_id: Of the one cascade to look at, where an engine asks several.
        """
        return [
            (score.value, right)
            for right, records in zip(self.right, self.records, strict=True)
            for record in records
            if policy_id in (None, record.policy_id)
            for attempt in record.attempts
            if attempt.stage == record.stage and (score := attempt.scores.get(signal)) and score.value is not None
        ]

    def auroc(self, signal: str, policy_id: str | None = None) -> float | None:
        """How well a signal tells right answers from wrong ones: the area under its ROC curve, in [0, 1].

        It is the chance that a right answer scores higher than a wrong one: 0.5 tells nothing, 1 tells all.

        Args:
            signal: Its name, such as "p_t".
            policy_id: Of the one cascade to look at, where an engine asks several.

        Returns:
            None if the answers that it scored were all right or all wrong.
        """
        from confcascade.bench.metrics.ranking import auroc

        scored = self.scores(signal, policy_id)
        return auroc([right for _, right in scored], [value for value, _ in scored])


def measure(
    ask: Callable[[str], Any], questions: Iterable[tuple[str, R]], is_right: Callable[[str, R], bool]
) -> Measured:
    """Ask every question once.

    Args:
        ask: What answers, such as a query engine's ``query``; the text of its answer is what ``str`` makes of it.
        questions: Pairs of a question and its reference.
        is_right: Whether the text of an answer is right, given the question's reference.

    Raises:
        ConfigurationError: If there is no question, or `ask` is asynchronous.
    """
    right, records = [], []
    for question, reference in questions:
        with trace() as t:
            found = ask(question)
            if inspect.isawaitable(found):
                raise ConfigurationError(
                    "`ask` must answer when it is called: give `engine.query`, not `engine.aquery`."
                )
            answer = str(found)  # a streamed response ends here
        right.append(bool(is_right(answer, reference)))
        records.append(tuple(t.records))
    if not right:
        raise ConfigurationError("`questions` must hold at least one pair of a question and its reference. Got none.")
    return Measured(tuple(right), tuple(records))
