"""GPQA (Rein et al. 2023): a CSV file with the right answer and three wrong ones, in an order that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.evaluation.datasets.fields import reordered, text
from confcascade.evaluation.examples import LETTERS, Example

__all__ = ["claims", "example"]

ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its columns are GPQA's."""
    return {"Question", *ANSWERS} <= set(record)


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row; the group is its ``High-level domain``, else its ``Subdomain``.

    The published file does not letter its choices, and has the right one first: they are `reordered`.

    Raises:
        ValueError, TypeError: If a cell is empty, or two choices are the same.
    """
    cells = {column: (text(record, column) or "").strip() for column in ("Question", *ANSWERS)}
    if empty := [column for column, cell in cells.items() if not cell]:
        raise ValueError(f"`{empty[0]}` is empty")
    question, right = cells["Question"], cells["Correct Answer"]
    choices = reordered(question, [cells[column] for column in ANSWERS])
    if choices.count(right) > 1:
        raise ValueError("its right answer is also one of the wrong ones")
    return Example(
        question=question,
        choices=choices,
        references=(LETTERS[choices.index(right)],),
        group=text(record, "High-level domain", "Subdomain"),
        id=text(record, "Record ID") or "",
    )
