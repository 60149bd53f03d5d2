"""Recordings read back, as rows or as columns: JSON Lines, Parquet, or a folder of such files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from confcascade.bench.recording.columns import Columns, Gathering
from confcascade.bench.recording.parquet import gather_parquet, read_parquet
from confcascade.bench.recording.row import Row
from confcascade.errors import ConfigurationError

__all__ = ["is_recording", "part_paths", "read_columns", "read_rows"]


def part_paths(path: str | Path) -> list[Path]:
    """The files of a recording, in the order of their names: those in a folder, or the one file.

    Raises:
        ConfigurationError: If there is none.
    """
    path = Path(path)
    found = (
        sorted(each for each in path.iterdir() if each.suffix in (".parquet", ".jsonl")) if path.is_dir() else [path]
    )
    if not found or not path.exists():
        raise ConfigurationError(f"'{path}' is no recording: neither a file nor a folder of .parquet or .jsonl files.")
    return found


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a recording, one at a time, whatever its size.

    An unfinished last line is left out: its writer was killed, or is still writing.

    Args:
        path: JSON Lines, Parquet if it ends with ".parquet", or a folder of such files.

    Raises:
        ConfigurationError: If there is none, or, naming the line, if one is no row.
    """
    for part in part_paths(path):
        if part.suffix == ".parquet":
            yield from read_parquet(part)
        else:
            yield from _read_lines(part)


def _read_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Row.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f"{part}: " for part in first["loc"])
                raise ConfigurationError(
                    f"Line {number} of '{path}' is no row of a recording: {where}{first['msg']}."
                ) from error


def is_recording(path: str | Path) -> bool:
    """Whether a file or folder begins with the row of a recording: where questions are welcome, too."""
    try:
        first = part_paths(path)[0]
    except ConfigurationError:
        return False
    if first.suffix == ".parquet":  # no questions are read from there
        return True
    with first.open("rb") as file:
        line = file.readline()
    try:
        Row.model_validate_json(line)
    except ValidationError:
        return False
    return True


def read_columns(path: str | Path) -> Columns:
    """The numbers of a recording: a file, or a folder of files.

    Texts pass by: only numbers are held, a few hundred bytes a row. Parquet is read by columns, which is quicker.

    Args:
        path: As for `read_rows`.

    Raises:
        ConfigurationError: As `read_rows` and `Columns.of`.
    """
    gathering = Gathering()
    for part in part_paths(path):
        if part.suffix == ".parquet":
            gather_parquet(part, gathering)
        else:
            for row in read_rows(part):
                gathering.add(row)
    return gathering.columns()
