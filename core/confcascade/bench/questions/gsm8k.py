"""GSM8K (Cobbe et al. 2021): word problems with a worked solution that ends in "#### 72"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.bench.questions.fields import text
from confcascade.graders.example import Example

__all__ = ["claims", "example"]

MARK = "####"


def claims(record: Mapping[str, Any]) -> bool:
    """Whether it is a question and a solution with a marked result."""
    return {"question", "answer"} <= set(record) and MARK in str(record["answer"]) and "choices" not in record


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row; its reference is the result alone, without thousands separators.

    Raises:
        ValueError, TypeError: If there is no question, or no marked result.
    """
    question, solution = text(record, "question"), text(record, "answer")
    if question is None or solution is None:
        raise ValueError("it needs a `question` and an `answer`")
    _, mark, result = solution.rpartition(MARK)
    if not mark or not result.strip():
        raise ValueError('its `answer` does not end in a result such as "#### 72"')
    return Example(question=question, references=(result.strip().replace(",", ""),), id=text(record, "id") or "")
