"""MMLU-Pro (Wang et al. 2024): up to ten options, and the letter of the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.evaluation.datasets.fields import indexed, listed, text
from confcascade.evaluation.examples import LETTERS, Example

__all__ = ["claims", "example"]


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are MMLU-Pro's: question, options, and answer or answer_index."""
    return {"question", "options"} <= set(record) and bool({"answer", "answer_index"} & set(record))


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row: ``answer`` is a letter, ``answer_index`` counts from 0; the group is the category.

    Raises:
        ValueError, TypeError: If it cannot be read, or the letter and the index name different options.
    """
    question = text(record, "question")
    if question is None:
        raise ValueError("it has no `question`")
    options = listed(record, "options")
    answer, index = text(record, "answer"), text(record, "answer_index")
    named = set()
    if answer is not None:
        if answer.strip() not in tuple(LETTERS[: len(options)]):
            raise ValueError(f"`answer` must be the letter of one of its {len(options)} options. Got {answer!r}")
        named.add(answer.strip())
    if index is not None:
        if not index.strip().isdecimal():
            raise ValueError(f"`answer_index` must be a whole number from 0. Got {index!r}")
        named.add(indexed(int(index), options))
    if len(named) != 1:
        raise ValueError(
            f"`answer` {answer!r} and `answer_index` {index} name different options"
            if named
            else "it has neither `answer` nor `answer_index`"
        )
    return Example(
        question=question,
        choices=options,
        references=(named.pop(),),
        group=text(record, "category"),
        id=text(record, "question_id", "id") or "",
    )
