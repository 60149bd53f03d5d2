"""SQuAD (Rajpurkar et al. 2016, 2018), as rows of the hub: a passage, a question, and the answers in the passage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.evaluation.datasets.fields import listed, text
from confcascade.evaluation.examples import Example

__all__ = ["claims", "example"]


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are SQuAD's: question, context, and answers with a text."""
    answers = record.get("answers")
    return {"question", "context"} <= set(record) and isinstance(answers, Mapping) and "text" in answers


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row; its references are the answers, and its group the title.

    A question of SQuAD 2.0 that the passage does not answer has no reference, so its answers are not graded.

    Raises:
        ValueError, TypeError: If it cannot be read.
    """
    question = text(record, "question")
    if question is None:
        raise ValueError("it has no `question`")
    return Example(
        question=question,
        references=tuple(dict.fromkeys(listed(record["answers"], "text"))),
        context=text(record, "context"),
        group=text(record, "title"),
        id=text(record, "id") or "",
    )
