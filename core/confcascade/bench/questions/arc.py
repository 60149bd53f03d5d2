"""ARC (Clark et al. 2018): science questions, as AI2 published them and as rows of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.bench.questions.fields import listed, text
from confcascade.graders.example import LETTERS, Example

__all__ = ["claims", "example"]


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are ARC's: question, answerKey."""
    return {"question", "answerKey"} <= set(record)


def example(record: Mapping[str, Any]) -> Example:
    """An example of a record: ``question.stem`` and ``question.choices``, or ``question`` and ``choices`` with lists.

    Some questions label their choices 1 to 4; they become A to D.

    Raises:
        ValueError, TypeError: If it cannot be read, or no choice has the label of the answer.
    """
    asked = record["question"]
    if isinstance(asked, Mapping):
        question, pairs = text(asked, "stem"), asked.get("choices")
        if not isinstance(pairs, list) or not all(isinstance(pair, Mapping) for pair in pairs):
            raise ValueError('`question.choices` must be a list of objects such as {"text": "wind", "label": "A"}')
        labels, texts = (tuple(text(pair, key) or "" for pair in pairs) for key in ("label", "text"))
    else:
        question, given = text(record, "question"), record.get("choices")
        if not isinstance(given, Mapping) or not {"text", "label"} <= set(given):
            raise ValueError('`choices` must be an object such as {"text": ["wind", "rain"], "label": ["A", "B"]}')
        labels, texts = listed(given, "label"), listed(given, "text")
    if question is None:
        raise ValueError("it has no text of a question")
    if len(labels) != len(texts) or len(set(labels)) < len(labels):
        raise ValueError("its choices need one label each, all different")
    key = (text(record, "answerKey") or "").strip()
    if key not in labels:
        raise ValueError(f"its `answerKey` {key!r} is none of the labels {', '.join(labels)}")
    return Example(
        question=question, choices=texts, references=(LETTERS[labels.index(key)],), id=text(record, "id") or ""
    )
