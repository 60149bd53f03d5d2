"""The format of confcascade itself: one question a record, with what is known about it under plain names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade.evaluation.datasets.fields import array, indexed, lettered, listed, text
from confcascade.evaluation.examples import LETTERS, Example

__all__ = ["claims", "example"]

# keys by which this format differs from every published one
MARKS = {"reference", "references", "reference_index", "group", "context", "choice_a"}
REFERENCES = ("reference", "references", "answer")


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are this format's, and could not be a published one's."""
    return "question" in record and (bool(MARKS & set(record)) or {"A", "B"} <= set(record))


def example(record: Mapping[str, Any]) -> Example:
    """An example of a record.

    Its keys: ``question``, and none or some of

    - ``choices``: a list of texts, or an object that names them by label; in a table a JSON list in one cell, or the
      columns ``choice_a``, ``choice_b``, ... or ``A``, ``B``, ...;
    - ``reference``, ``references`` or ``answer``, one of them: a text, a number, or several in a list (in a table a
      JSON list under ``references``). Of a question with choices the letter, the label or the choice's own text, never
      an index;
    - ``reference_index``: of a question with choices, the 0-based index instead;
    - ``context``, ``group``, ``id``.

    Other keys are ignored.

    Raises:
        ValueError, TypeError: If one of them cannot be read.
    """
    question = text(record, "question")
    if question is None:
        raise ValueError("it has no `question`")
    labels, choices = _choices(record)
    return Example(
        question=question,
        choices=choices,
        references=_references(record, choices, labels),
        context=text(record, "context"),
        group=text(record, "group"),
        id=text(record, "id") or "",
    )


def _choices(record: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Labels, where the data has its own, and texts."""
    given = record.get("choices")
    if isinstance(given, Mapping):
        return tuple(map(str, given)), tuple(text(given, label) or "" for label in given)
    if given not in (None, ""):
        return None, listed(record, "choices")
    columns = [f"choice_{letter.lower()}" for letter in LETTERS]
    if "choice_a" not in record and {"A", "B"} <= set(record):
        columns = list(LETTERS)
    texts = [text(record, column) or "" for column in columns]
    last = max((i for i, each in enumerate(texts) if each), default=-1)
    if "" in (texts := texts[: last + 1]):
        raise ValueError(f"`{columns[texts.index('')]}` is empty, but a later choice is not")
    return None, tuple(texts)


def _references(record: Mapping[str, Any], choices: tuple[str, ...], labels: tuple[str, ...] | None) -> tuple[str, ...]:
    given = [key for key in (*REFERENCES, "reference_index") if record.get(key) not in (None, "")]
    if len(given) > 1:
        raise ValueError(f"it has both `{given[0]}` and `{given[1]}`; one of them must tell what is right")
    if not given:
        return ()
    (key,) = given
    value = record[key]
    if key == "reference_index":
        if not choices or not str(value).strip().isdecimal():
            raise ValueError("`reference_index` must be a whole number, of a question with choices")
        return (indexed(int(value), choices),)
    several = key == "references" or isinstance(value, list)
    if (
        choices
        and labels is None
        and not all(isinstance(each, str) for each in (array(record, key) if several else [value]))
    ):
        raise ValueError(
            f"`{key}` is a number, and could be an index or a text: give the letter, or `reference_index` (from 0)"
        )
    references = listed(record, key) if several else (text(record, key) or "",)
    references = tuple(each for each in references if each.strip())
    return tuple(dict.fromkeys(lettered(each, choices, labels) for each in references)) if choices else references
