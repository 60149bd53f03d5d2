"""What every importer needs: files of lines, errors that name the line, and what stands for the unknown."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from confcascade.bench.questions.files import cells
from confcascade.bench.recording.row import RecordedScore, Row
from confcascade.errors import ConfigurationError
from confcascade.types import Usage

__all__ = ["ONE_TOKEN", "correctness", "count", "csv_rows", "finite", "json_rows", "probability", "score"]

ONE_TOKEN = Usage(input_tokens=1, estimated=True)


def csv_rows(path: str | Path, rows: Callable[[Mapping[str, str]], Iterable[Row]]) -> Iterator[Row]:
    """The rows that `rows` makes of each record of a CSV file with a header.

    Raises:
        ConfigurationError: Naming the line, if `rows` fails on it for what is or is not in it; or if the file is empty
            or cannot be read as such a file.
    """
    return _rows(path, lambda file: enumerate(cells(csv.DictReader(file)), start=2), rows)


def json_rows(path: str | Path, rows: Callable[[Any], Iterable[Row]]) -> Iterator[Row]:
    """As `csv_rows`, of a file with one JSON value on each line."""
    return _rows(path, lambda file: enumerate(file, start=1), lambda line: rows(json.loads(line)))


def _rows(
    path: str | Path,
    records: Callable[[TextIO], Iterable[tuple[int, Any]]],
    rows: Callable[[Any], Iterable[Row]],
) -> Iterator[Row]:
    opener = gzip.open if str(path).endswith(".gz") else open
    empty = True
    try:
        with opener(path, "rt", newline="", encoding="utf-8") as file:
            for number, record in records(file):
                try:
                    found = tuple(rows(record))
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise ConfigurationError(
                        f"Line {number} of '{path}' is not of the form of this importer: {_reason(error)}."
                    ) from error
                yield from found
                empty = False
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"'{path}' cannot be read: {error}.") from error
    if empty:
        raise ConfigurationError(f"'{path}' has no rows.")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return "".join(f"{part}: " for part in first["loc"]) + first["msg"]
    return str(error)


def probability(value: str | float) -> float:
    """A number in [0, 1].

    Raises:
        ValueError: If it is none; a percentage, say.
    """
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} does not lie in [0, 1]")
    return number


def finite(value: str | float) -> float:
    """A number.

    Raises:
        ValueError: If it is NaN or infinite.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def correctness(value: str) -> float:
    """The grade of an answer that is told as "1" (right) or "0" (wrong).

    Raises:
        ValueError: If it is neither.
    """
    if value not in ("0", "1"):
        raise ValueError(f"an answer is right (1) or wrong (0), not {value!r}")
    return float(value)


def count(value: str | int) -> int:
    """A number of tokens.

    Raises:
        ValueError: If it is no whole number, or below 0.
    """
    number = int(value)
    if number < 0:
        raise ValueError(f"{value!r} is not a number of tokens")
    return number


def score(value: str | float, missing: str | None = None) -> RecordedScore:
    """A probability judged by the answer; where `value` is empty and may be, none, because of `missing`.

    Raises:
        ValueError: If it is no probability.
    """
    if value == "" and missing is not None:
        return RecordedScore(value=None, details={"unavailable": missing})
    return RecordedScore(value=probability(value))
