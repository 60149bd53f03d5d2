"""A file's format, its examples, and what is done about questions that come twice."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confcascade.bench.questions import arc, gpqa, gsm8k, mmlu, mmlu_pro, own, popqa, squad, truthfulqa
from confcascade.bench.questions.fields import UnclearError
from confcascade.bench.questions.files import KINDS, readable, records
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example

__all__ = ["FORMATS", "format_of", "read_examples"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Format:
    claims: Callable[[Mapping[str, Any]], bool]
    example: Callable[[Mapping[str, Any]], Example]


_READERS = {
    "own": _Format(own.claims, own.example),
    "mmlu": _Format(mmlu.claims, mmlu.example),
    "mmlu_pro": _Format(mmlu_pro.claims, mmlu_pro.example),
    "gpqa": _Format(gpqa.claims, gpqa.example),
    "popqa": _Format(popqa.claims, popqa.example),
    "gsm8k": _Format(gsm8k.claims, gsm8k.example),
    "arc": _Format(arc.claims, arc.example),
    "squad": _Format(squad.claims, squad.example),
    "truthfulqa": _Format(truthfulqa.claims, truthfulqa.example),
}
FORMATS = tuple(_READERS)


def format_of(path: str | Path, *, part: str | None = None) -> str:
    """Which of `FORMATS` a file has, by the keys of its first record.

    Raises:
        ConfigurationError: If they fit none, or more than one.
    """
    path = Path(path)
    if path.is_dir():
        if mmlu.published(path):
            return "mmlu"
        formats = {format_of(file, part=part) for file in _files(path)}
        if len(formats) > 1:
            raise ConfigurationError(
                f"The files in '{path}' are of the formats {', '.join(sorted(formats))}. Give each a folder of its own."
            )
        return formats.pop()
    if mmlu.headerless(path):
        return "mmlu"
    _, first = next(records(path, part), ("", None))
    if first is None:
        raise ConfigurationError(f"'{path}' has no rows.")
    fitting = [name for name, reader in _READERS.items() if reader.claims(first)]
    if not fitting and "question" in first:
        return "own"
    if len(fitting) == 1:
        return fitting[0]
    found = f"its keys are {', '.join(map(str, first))}"
    if fitting:
        raise ConfigurationError(
            f"'{path}' could be of the formats {', '.join(fitting)}: {found}. Name one as `format`."
        )
    raise ConfigurationError(
        f"'{path}' has no `question`: {found}. Rename one to `question`, or name the format: {', '.join(FORMATS)}."
    )


def read_examples(path: str | Path, format: str = "auto", *, part: str | None = None) -> Iterator[Example]:  # noqa: A002
    """The examples of a data set, one at a time; only a JSON file is held in memory whole.

    Ids are the keys of recordings, so each example has one of its own. A row that is there twice, word for word, is
    left out the second time, and a warning tells how many were.

    Args:
        path: A file that ends in .jsonl, .json, .csv or .tsv, or one of them with .gz; or a folder of such files, all
            of one format, read in the order of their names; or a folder of MMLU's files.
        format: One of `FORMATS`: "own" (see `questions.own.example`) or that of a published data set; "auto" tells it
            by the keys of the first record, and logs which (level INFO).
        part: Of a JSON file with several lists, the key of one; of a folder with several splits, its name.

    Raises:
        ConfigurationError: Naming the file and the line, if a row cannot be read or has the id of another.
    """
    path = Path(path)
    if format != "auto" and format not in _READERS:
        raise ConfigurationError(f"The format must be auto, {' or '.join(FORMATS)}. Got {format!r}.")
    if not path.exists():
        raise ConfigurationError(f"There is no file '{path}'.")
    chosen = format_of(path, part=part) if format == "auto" else format
    if format == "auto":
        _log.info("'%s' is read in the format %s.", path, chosen)
    return _unique(path, _examples(path, chosen, part))


def _examples(path: Path, chosen: str, part: str | None) -> Iterator[tuple[str, Path, Example]]:
    """Each example with the words for where it is, and its file."""
    reader = _READERS[chosen]
    if path.is_dir() and chosen == "mmlu" and mmlu.published(path):
        sources = [(file, mmlu.rows(file)) for file in mmlu.subject_files(path, part)]
    else:
        files = _files(path) if path.is_dir() else [path]
        bare = [chosen == "mmlu" and mmlu.headerless(file) for file in files]
        sources = [
            (file, mmlu.rows(file) if is_bare else records(file, part))
            for file, is_bare in zip(files, bare, strict=True)
        ]
    letters: bool | None = None  # whether the references are, once it matters
    for file, rows in sources:
        for where, record in rows:
            try:
                try:
                    found = reader.example(record)
                except UnclearError:
                    if letters is None:
                        every = (each for other, _ in sources for _, each in records(other, part))
                        letters = chosen == "own" and own.uses_letters(every)
                    if not letters:
                        raise
                    found = own.example(record, letters_only=True)
                yield where, file, found
            except KeyError as error:
                raise _misread(where, file, f"it has no `{error.args[0]}`", chosen) from error
            except (ValueError, TypeError) as error:
                raise _misread(where, file, str(error), chosen) from error


def _files(folder: Path) -> list[Path]:
    """The data files in a folder; what else lies there is passed over."""
    found = sorted(file for file in folder.iterdir() if file.is_file() and readable(file))
    if not found:
        raise ConfigurationError(f"The folder '{folder}' has no file that ends in {', '.join(KINDS)} (or with .gz).")
    return found


def _misread(where: str, file: Path, why: str, chosen: str) -> ConfigurationError:
    others = ", ".join(name for name in FORMATS if name != chosen)
    return ConfigurationError(
        f"{where[0].upper()}{where[1:]} of '{file}' cannot be read in the format {chosen}: {why.rstrip('.')}. "
        f"If the file is of another, name it as `format`: {others}."
    )


def _unique(path: Path, found: Iterator[tuple[str, Path, Example]]) -> Iterator[Example]:
    """The examples, also those that are there again, word for word; to know them takes some 300 bytes each."""
    seen: dict[str, tuple[str, Path, bytes]] = {}
    repeated = 0
    for where, file, example in found:
        told = [example.question, example.choices, example.references, example.context, example.group]
        content = hashlib.sha256(json.dumps(told).encode()).digest()[:12]
        if example.id not in seen:
            seen[example.id] = where, file, content
            yield example
            continue
        first, its_file, its_content = seen[example.id]
        if its_content != content:
            raise ConfigurationError(
                f"The question in {where} of '{file}' has the id '{example.id}' of the one in {first} of '{its_file}', "
                "and differs from it: give each an `id` of its own, or leave one out. Without ids, the same question "
                "is the same text, choices and context."
            )
        repeated += 1
        yield example
    if not seen:
        raise ConfigurationError(f"'{path}' has no rows.")
    if repeated:
        warnings.warn(
            f"{repeated} of {len(seen) + repeated} rows of '{path}' repeat an earlier one, word for word: the question "
            "is asked once, and counts as often as it is there.",
            stacklevel=2,
        )
