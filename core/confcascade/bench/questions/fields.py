"""What readers take out of a record: texts, choices, and the letter of the choice that is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from confcascade.graders.example import LETTERS

__all__ = ["UnclearError", "array", "indexed", "lettered", "listed", "reordered", "text"]


def text(record: Mapping[str, Any], *keys: str) -> str | None:
    """The value of the first of `keys` that has one, as text; None if none has.

    Raises:
        TypeError: If it is neither text nor a number.
    """
    for key in keys:
        value = record.get(key)
        if value is not None and value != "" and value == value:  # pandas writes NaN for a missing text
            return _text(key, value)
    return None


def array(record: Mapping[str, Any], key: str) -> list[Any]:
    """A list: a JSON array, or text that holds one, as in a table.

    Raises:
        TypeError: If it is none.
    """
    value = record[key]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list):
        raise TypeError(f'`{key}` must be a JSON list, such as ["Paris", "Lyon"]')
    return value


def listed(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The texts of an `array`.

    Raises:
        TypeError: If it is none, or holds other things than texts and numbers.
    """
    return tuple(_text(key, each) for each in array(record, key))


def indexed(index: int, choices: Sequence[str]) -> str:
    """The letter of the choice at a 0-based `index`.

    Raises:
        ValueError: If there is none.
    """
    if not 0 <= index < len(choices):
        raise ValueError(f"there is no choice at the index {index}; the first of {len(choices)} is 0")
    return LETTERS[index]


class UnclearError(ValueError):
    """A reference that names one choice by its letter, and another by its text."""


def lettered(
    reference: str, choices: Sequence[str], labels: Sequence[str] | None = None, *, letters_only: bool = False
) -> str:
    """The letter of the choice that `reference` names: by its label, or by its text.

    Args:
        reference: Such as "B", or "Paris".
        choices: Their texts, which need not differ.
        labels: What the data calls them; a reference that is one of these is no text. Without, they are the letters.
        letters_only: Whether a letter is a letter, whatever the text of another choice.

    Raises:
        ValueError: If it names none, or more than one; an `UnclearError` if a letter and a text.
    """
    wanted, letters = reference.strip(), LETTERS[: len(choices)]
    if labels is not None and wanted in labels:
        return letters[labels.index(wanted)]
    by_letter = {letter for letter in letters if letter == wanted.upper()} if labels is None else set()
    if letters_only and by_letter:
        return by_letter.pop()
    named = {letters[i] for i, choice in enumerate(choices) if choice.strip() == wanted}
    if len(named | by_letter) == 1:
        return (named | by_letter).pop()
    if by_letter:
        raise UnclearError(
            f"{reference!r} is the letter of one choice and the text of another "
            f"({', '.join(sorted(named | by_letter))}), and the file's references are not letters throughout: write "
            "letters in every row, or `reference_index` (from 0)"
        )
    if named:
        which = ", ".join(sorted(named))
        raise ValueError(f"{reference!r} could be any of the choices {which}: say which by `reference_index` (from 0)")
    raise ValueError(f"{reference!r} is none of the choices {', '.join(labels or letters)}, nor the text of one")


def reordered(question: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Choices whose right one comes first where they are published, in the order of a hash of question and choice.

    The same on every machine, in every year and whatever the order of the rows; the right one is as often A as D.
    """
    return tuple(sorted(choices, key=lambda choice: hashlib.sha256(f"{question}\0{choice}".encode()).digest()))


def _text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"`{key}` must be text or a number. Got {type(value).__name__}")
