"""Files of records: JSON Lines, JSON, CSV and tab-separated, gzipped or not, each record with the line it begins on."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from confcascade.errors import ConfigurationError

__all__ = ["KINDS", "cells", "kind", "lines", "readable", "records", "table"]

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
T = TypeVar("T")
_FIELD_LIMIT = threading.Lock()  # held while it is another
_LONGEST_CELL = 2**31 - 1  # that a C long holds everywhere
_UTF8 = "utf-8-sig"  # with or without a byte order mark
_SAID: set[Path] = set()  # files of which it was said that they are not in UTF-8


def readable(path: Path) -> bool:
    """Whether a file's name says that it holds records."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return bool(suffixes) and suffixes[-1] in KINDS


def kind(path: Path) -> str:
    """One of "jsonl", "json", "csv" and "tsv", by the name of the file.

    Raises:
        ConfigurationError: If its name ends in none of them.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in KINDS:
        raise ConfigurationError(f"'{path}' must end in {', '.join(KINDS)}, or one of them with .gz.")
    return KINDS[suffixes[-1]]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """As text without a byte order mark, which Excel writes; what cannot be read is a `ConfigurationError`."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as raw:
            encoding = _encoding(raw.read(len(codecs.BOM_UTF8)))
            if encoding == _UTF8 and kind(path) in ("csv", "tsv") and not _is_utf8(raw):
                encoding = _excels(path)
        with opener(path, "rt", newline="", encoding=encoding) as file:
            yield file
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"'{path}' is not text in UTF-8 (from byte {error.start}): save it as UTF-8, in Excel as "
            '"CSV UTF-8 (comma delimited)".'
        ) from error
    except (OSError, zlib.error, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigurationError(f"'{path}' cannot be read: {why}.") from error


def _encoding(begin: bytes) -> str:
    """By the byte order mark, where there is one, or by the NUL that each ASCII character has in UTF-16."""
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if begin[:1] == b"\0" or begin[1:2] == b"\0":
        return "utf-16-be" if begin[:1] == b"\0" else "utf-16-le"
    return _UTF8


def _is_utf8(raw: Any) -> bool:
    raw.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := raw.read(1 << 20):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _excels(path: Path) -> str:
    """The encoding in which Excel writes a table, in western Europe and America, if it is not asked for UTF-8."""
    if path not in _SAID:
        _SAID.add(path)
        warnings.warn(
            f"'{path}' is not in UTF-8, and is read as Windows-1252, as Excel writes it. If letters with accents look "
            "wrong, save it as UTF-8.",
            stacklevel=2,
        )
    return "cp1252"


def cells(reader: Iterator[T]) -> Iterator[T]:
    """The rows of a reader of the module `csv`, whose cells may be as long as they are.

    The module refuses more than 131,072 characters, a page of context, and knows one limit for all of a process: it is
    raised for the reading of a row, and put back.

    Raises:
        csv.Error: If a row cannot be read.
    """
    while True:
        with _FIELD_LIMIT:
            before = csv.field_size_limit(_LONGEST_CELL)
            try:
                row = next(reader)
            except StopIteration:
                return
            finally:
                csv.field_size_limit(before)
        yield row


def table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV or tab-separated file, its header included and blank lines left out."""
    with _opened(path) as file:
        delimiter, begins = ("\t", 1) if kind(path) == "tsv" else _delimiter(file)
        skipped = begins - 1
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows = cells(reader)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise ConfigurationError(f"The row from line {begins} of '{path}' cannot be read: {error}.") from error
            if any(cell.strip() for cell in row):
                yield begins, row
            begins = skipped + reader.line_num + 1  # a quoted cell may run over several lines


def _delimiter(file: TextIO) -> tuple[str, int]:
    """What is between the cells of a CSV file, and the line that its header begins on; `file` then stands there.

    A semicolon is, where Excel has it (where the comma is for decimals), or a tab. Excel's own line ``sep=;`` says so.
    """
    first = file.readline(_LONGEST_CELL)
    if told := re.fullmatch(r"sep=(.)\s*", first):
        return told[1], 2
    file.seek(0)

    def cells_by(delimiter: str) -> int:
        return len(next(csv.reader([first], delimiter=delimiter), []))

    if cells_by(",") < 2 and (others := [each for each in ";\t" if cells_by(each) > 1]):
        return others[0], 1
    return ",", 1


def lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file with one JSON value on each line."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise ConfigurationError(f"Line {number} of '{path}' is no JSON: {error}.") from error


def records(path: Path, part: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record as a mapping, with the words for where it is: "line 3".

    JSON Lines and tables are read one record at a time; a JSON file is read whole.

    Args:
        path: The file.
        part: Of a JSON file that holds several lists: the key of the one that is wanted.

    Raises:
        ConfigurationError: If the file cannot be read, or a record is no mapping.
    """
    if part is not None and kind(path) != "json":
        raise ConfigurationError(f"'{path}' has no parts, so there is no part '{part}' in it.")
    found: Iterator[tuple[str, Any]]
    if kind(path) == "jsonl":
        found = ((f"line {number}", value) for number, value in lines(path))
    elif kind(path) == "json":
        found = ((f"item {number}", value) for number, value in enumerate(_array(path, part), start=1))
    else:
        found = _rows(path)
    for where, value in found:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"In {where} of '{path}' there must be a JSON object. Got {type(value).__name__}.")
        yield where, value


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    rows = table(path)
    _, header = next(rows, (0, []))
    names = [name.strip() for name in header]
    if twice := {name for name in names if name and names.count(name) > 1}:
        raise ConfigurationError(f"'{path}' has more than one column '{min(twice)}'.")
    for number, row in rows:
        if len(row) != len(names):
            raise ConfigurationError(
                f"Line {number} of '{path}' has {len(row)} cells, its header {len(names)}; "
                "a cell with a comma in it (or a semicolon, where those are between cells) needs quotation marks."
            )
        yield f"line {number}", dict(zip(names, row, strict=True))


def _array(path: Path, part: str | None) -> Sequence[Any]:
    with _opened(path) as file:
        try:
            value = json.load(file)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"'{path}' is no JSON: {error}.") from error
    if isinstance(value, list):
        if part is not None:
            raise ConfigurationError(f"'{path}' is one list, so there is no part '{part}' in it.")
        return value
    lists = {key: items for key, items in value.items() if isinstance(items, list)} if isinstance(value, dict) else {}
    if part is None and len(lists) == 1:
        return next(iter(lists.values()))
    if part in lists:
        return lists[part]
    if not lists:
        raise ConfigurationError(f"'{path}' must hold a list of JSON objects, or an object of such lists.")
    wanted = "say which as `part`" if part is None else f"'{part}' is none of them"
    raise ConfigurationError(f"'{path}' holds several lists, {', '.join(lists)}: {wanted}.")
