"""MMLU (Hendrycks et al. 2020): its CSV files without a header, a subject each, or rows with their subject."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from confcascade.bench.questions.fields import indexed, listed, text
from confcascade.bench.questions.files import kind, table
from confcascade.errors import ConfigurationError
from confcascade.graders.example import LETTERS, Example

__all__ = ["claims", "example", "headerless", "published", "rows", "subject_files"]

# as they are called in the published archive: abstract_algebra_test.csv
NAME = re.compile(r"(?P<subject>.+)_(?P<split>dev|val|test)\.csv(\.gz)?")


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are MMLU's: question, subject, choices, answer."""
    return {"question", "subject", "choices", "answer"} <= set(record)


def example(record: Mapping[str, Any]) -> Example:
    """An example of a row: the answer is a letter, or a 0-based index; the group is the subject.

    A row without an id gets one of its subject and content, for some questions stand under two subjects.

    Raises:
        ValueError, TypeError: If it cannot be read.
    """
    question, subject = text(record, "question"), text(record, "subject")
    if question is None:
        raise ValueError("it has no `question`")
    choices, answer = listed(record, "choices"), str(record["answer"]).strip()
    if answer.isdecimal():
        letter = indexed(int(answer), choices)
    elif len(answer) == 1 and answer in LETTERS[: len(choices)]:
        letter = answer
    else:
        raise ValueError(f"`answer` must be a letter or a 0-based index. Got {answer!r}")
    digest = hashlib.sha256(json.dumps([question, choices]).encode()).hexdigest()[:16]
    name = text(record, "id") or f"{subject}/{digest}"
    return Example(question=question, choices=choices, references=(letter,), group=subject, id=name)


def headerless(path: Path) -> bool:
    """Whether it is a published CSV file: it begins with a question, four choices and a letter, not with a header."""
    if kind(path) != "csv":
        return False
    _, first = next(table(path), (0, []))
    return len(first) == 6 and first[5] in ("A", "B", "C", "D") and first[0].strip().lower() != "question"


def rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a published CSV file as records, with ids such as "astronomy/test/0".

    Raises:
        ConfigurationError: If its name does not tell the subject, or a row has no six cells.
    """
    if (name := NAME.fullmatch(path.name)) is None:
        raise ConfigurationError(
            f"'{path}' is an MMLU file without a header, whose name must tell the subject and the split, "
            "as in astronomy_test.csv."
        )
    for index, (number, row) in enumerate(table(path)):
        if len(row) != 6:
            raise ConfigurationError(f"Line {number} of '{path}' must have six cells: question, A, B, C, D, answer.")
        yield (
            f"line {number}",
            {
                "id": f"{name['subject']}/{name['split']}/{index}",
                "subject": name["subject"],
                "question": row[0],
                "choices": row[1:5],
                "answer": row[5],
            },
        )


def published(folder: Path) -> bool:
    """Whether a folder holds files that are called as the published ones."""
    return any(NAME.fullmatch(path.name) for path in folder.iterdir())


def subject_files(folder: Path, part: str | None = None) -> list[Path]:
    """The files of one split in a folder, in the order of their names.

    Args:
        folder: Such as ``data/test`` of the published archive.
        part: "dev", "val" or "test", where the folder holds several splits.

    Raises:
        ConfigurationError: If there is none, or several splits and no `part`.
    """
    found = sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))
    splits = {path: match["split"] for path in found if (match := NAME.fullmatch(path.name))}
    if part is not None:
        found = [path for path in found if splits[path] == part]
    if not found:
        raise ConfigurationError(
            f"The folder '{folder}' has no files such as astronomy_{part or 'test'}.csv; of a folder, only MMLU's "
            "published CSV files can be read."
        )
    if part is None and len(set(splits.values())) > 1:
        raise ConfigurationError(
            f"'{folder}' holds several splits, {', '.join(sorted(set(splits.values())))}: say which as `part`."
        )
    return found
