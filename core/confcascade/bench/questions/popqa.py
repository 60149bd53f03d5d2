"""PopQA (Mallen et al. 2023): questions about entities, each with all the names that its answer goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.bench.questions.fields import listed, text
from confcascade.graders.example import Example

__all__ = ["claims", "example"]


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are PopQA's: question, possible_answers."""
    return {"question", "possible_answers"} <= set(record)


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row; the group is the property that is asked for (``prop``, such as "occupation").

    Raises:
        ValueError, TypeError: If it cannot be read.
    """
    question = text(record, "question")
    if question is None:
        raise ValueError("it has no `question`")
    references = tuple(each for each in listed(record, "possible_answers") if each.strip())
    return Example(question=question, references=references, group=text(record, "prop"), id=text(record, "id") or "")
