"""TruthfulQA (Lin et al. 2021), as rows of the hub: one true choice among others, or answers to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.evaluation.datasets.fields import indexed, listed, reordered, text
from confcascade.evaluation.examples import Example

__all__ = ["claims", "example"]


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are those of either configuration: mc1_targets, or best_answer and correct_answers."""
    return "question" in record and ("mc1_targets" in record or {"best_answer", "correct_answers"} <= set(record))


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row: of ``mc1_targets`` the choices, one of them right; otherwise the answers that are right.

    The right choice comes first in the published rows: they are `reordered`.

    Raises:
        ValueError, TypeError: If it cannot be read, or not one choice is right.
    """
    question = text(record, "question")
    if question is None:
        raise ValueError("it has no `question`")
    if (targets := record.get("mc1_targets")) is None:
        told = (text(record, "best_answer") or "", *listed(record, "correct_answers"))
        return Example(
            question=question,
            references=tuple(dict.fromkeys(each for each in told if each.strip())),
            group=text(record, "category"),
            id=text(record, "id") or "",
        )
    if not isinstance(targets, Mapping) or not isinstance(targets.get("labels"), list):
        raise TypeError('`mc1_targets` must be an object such as {"choices": ["Yes", "No"], "labels": [1, 0]}')
    choices, labels = listed(targets, "choices"), targets["labels"]
    if len(labels) != len(choices) or labels.count(1) != 1:
        raise ValueError("`mc1_targets` needs one label for each choice, and exactly one of them 1")
    right = choices[labels.index(1)]
    if choices.count(right) > 1:
        raise ValueError("its right choice is also one of the wrong ones")
    choices = reordered(question, choices)
    return Example(
        question=question,
        choices=choices,
        references=(indexed(choices.index(right), choices),),
        id=text(record, "id") or "",
    )
