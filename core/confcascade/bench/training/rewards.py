"""Rewards for stated confidences that come true: what reinforcement learning pays a model for its answer and its word.

Each is called as TRL's `GRPOTrainer` calls a reward function: by keyword, with ``prompts``, ``completions``,
``completion_ids`` and every column of the data set, and gives one number for each completion.  TRL adds up the rewards
of several.  Nothing here imports it.

The confidence is paid by one of three rules:

- `GroupDistance`, COREA's: minus the distance to the accuracy of all answers to the same question.
- `BrierReward` and `LogReward`, each against only this answer. They are proper: stating the true probability earns
  most.

The distance to whether only this answer is right is not offered: it earns most at 0 or 1, whatever the probability.

Sources: COREA, arXiv 2603.03752; RLCR, arXiv 2507.16806 (Brier); Rewarding Doubt, arXiv 2503.02623 (log, and its clip).
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from confcascade.errors import ConfigurationError
from confcascade.graders import Grader
from confcascade.graders.example import Example
from confcascade.signals.stated import statement_in
from confcascade.thoughts import answer_at

__all__ = [
    "BrierReward",
    "CorrectnessReward",
    "FormatReward",
    "Gather",
    "GroupDistance",
    "LogReward",
    "Right",
    "best_of_group",
    "graded_by",
    "read_completion",
]

Right: TypeAlias = Callable[[str, Mapping[str, Any]], float]
Gather: TypeAlias = Callable[[list[Any]], list[Any]]

_CLIP = 0.001  # of Rewarding Doubt


def read_completion(completion: Any) -> tuple[str, float | None]:
    """The answer of a completion, without thoughts and without its statement, and the confidence that it states.

    Args:
        completion: A text, or the messages of a conversation.

    >>> read_completion([{"role": "assistant", "content": "<think>6*7</think>42\\n<confidence>0.9</confidence>"}])
    ('42', 0.9)
    """
    text = completion if isinstance(completion, str) else str(completion[-1].get("content") or "")
    answer = text[answer_at(text) :]
    told = statement_in(answer)
    if told is None:
        return answer.strip(), None
    for begin, end in reversed(told.cut):
        answer = answer[:begin] + answer[end:]
    return answer.strip(), told.value


def graded_by(grader: Grader, *, references: str = "references", question: str = "question") -> Right:
    """How right an answer is, by a grader that asks no model.

    Args:
        grader: Such as of `grader_from_string`.
        references: The data set's column of right answers, a text or a list of them.
        question: That of the question as a user would ask it.
    """

    def right(answer: str, columns: Mapping[str, Any]) -> float:
        told = columns[references]
        known = (told,) if isinstance(told, str) else tuple(map(str, told))
        value = grader.grade(Example(str(columns.get(question) or "?"), references=known), answer).value
        return 0.0 if value is None else value

    return right


class Reward(ABC):
    """What one of the rules pays; `__name__` is under which TRL logs it."""

    __name__: str

    @abstractmethod
    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One number for each completion."""


class CorrectnessReward(Reward):
    """How right the answer is, from 0 to 1.

    Args:
        right: See `graded_by`.
    """

    __name__ = "correct"

    def __init__(self, right: Right) -> None:
        self.right = right

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        del prompts
        return [grade for grade, _ in _read(self.right, completions, columns)]


class FormatReward(Reward):
    """1 if the completion has an answer and a confidence that can be read as one number, else 0."""

    __name__ = "format"

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        del prompts, columns
        read = map(read_completion, completions)
        return [float(bool(answer) and stated is not None) for answer, stated in read]


class _Stated(Reward):
    """What a statement is paid against some target; one that cannot be read as much as the worst."""

    worst: ClassVar[float]

    def __init__(self, right: Right) -> None:
        self.right = right

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        read = _read(self.right, completions, columns)
        targets = self._targets(prompts, [grade for grade, _ in read])
        return [
            self.worst if stated is None else self.paid(stated, target)
            for (_, stated), target in zip(read, targets, strict=True)
        ]

    def _targets(self, prompts: Sequence[Any], grades: Sequence[float]) -> Sequence[float]:
        del prompts
        return grades

    @staticmethod
    @abstractmethod
    def paid(stated: float, target: float) -> float:
        """For a statement, in [0, 1], against its target, in [0, 1]."""


class BrierReward(_Stated):
    """-(stated - right)^2, from -1 to 0. Proper.

    Args:
        right: See `graded_by`.
    """

    __name__ = "brier"
    worst = -1.0

    @staticmethod
    def paid(stated: float, target: float) -> float:
        return -((stated - target) ** 2)


class LogReward(_Stated):
    """The logarithm of the probability that was stated of what came, the statement in [0.001, 0.999]: from -6.9 to 0.

    Proper within these bounds.

    Args:
        right: See `graded_by`.
    """

    __name__ = "log"
    worst = math.log(_CLIP)

    @staticmethod
    def paid(stated: float, target: float) -> float:
        p = min(max(stated, _CLIP), 1 - _CLIP)
        return target * math.log(p) + (1 - target) * math.log(1 - p)


class GroupDistance(_Stated):
    """-|stated - accuracy of the group|, from -1 to 0: the group are all completions of the same prompt.

    It earns most at the median of the group's accuracy, which is the true probability only as groups grow: see
    `best_of_group`.

    Args:
        right: See `graded_by`.
        gather: Joins the lists of all processes, for TRL may split a group among them:
            ``accelerate.utils.gather_object``. None with one process.
    """

    __name__ = "group_distance"
    worst = -1.0

    def __init__(self, right: Right, *, gather: Gather | None = None) -> None:
        super().__init__(right)
        self.gather = gather

    def _targets(self, prompts: Sequence[Any], grades: Sequence[float]) -> Sequence[float]:
        if len(prompts) != len(grades):
            raise ConfigurationError(f"There must be one prompt to each completion. Got {len(prompts)}, {len(grades)}.")
        keys = [prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True) for prompt in prompts]
        pairs = list(zip(keys, grades, strict=True))
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for key, grade in self.gather(pairs) if self.gather is not None else pairs:
            groups[key].append(grade)
        return [math.fsum(groups[key]) / len(groups[key]) for key in keys]

    @staticmethod
    def paid(stated: float, target: float) -> float:
        return -abs(stated - target)


def best_of_group(p: float, group: int) -> float:
    """The statement that `GroupDistance` pays most, where each of `group` answers is right with probability `p`.

    The median of the group's accuracy, Binomial(group, p) / group: of a group of four, 0 for every p below 0.159.

    Args:
        p: In [0, 1].
        group: Completions of a prompt, at least 1.

    >>> best_of_group(0.1, 4), best_of_group(0.1, 64)
    (0.0, 0.09375)
    """
    from scipy.stats import binom

    return float(binom.ppf(0.5, group, p)) / group if p > 0 else 0.0


def _read(right: Right, completions: Sequence[Any], columns: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    """The grade of each completion's answer, and what it states."""
    count = len(completions)
    rows = {name: values for name, values in columns.items() if isinstance(values, list) and len(values) == count}
    found = []
    for i, completion in enumerate(completions):
        answer, stated = read_completion(completion)
        found.append((right(answer, {name: values[i] for name, values in rows.items()}), stated))
    return found
