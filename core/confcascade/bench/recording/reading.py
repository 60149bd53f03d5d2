"""Recordings read back, as rows or as columns: JSON Lines, Parquet, or a folder of such files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from confcascade.bench.recording.columns import Columns, Gathering
from confcascade.bench.recording.digest import begin_file, digest
from confcascade.bench.recording.parquet import gather_parquet, read_parquet
from confcascade.bench.recording.row import Row
from confcascade.errors import ConfigurationError

__all__ = ["Recording", "is_recording", "part_paths", "read_columns", "read_rows"]


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
        raise ConfigurationError(
            f"'{path}' is not a recording: neither a file nor a folder of .parquet or .jsonl files."
        )
    return found


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a recording, one at a time, whatever its size.

    An unfinished last line is left out: its writer was killed, or is still writing.

    Args:
        path: JSON Lines, Parquet if it ends with ".parquet", or a folder of such files.

    Raises:
        ConfigurationError: If there is none, or, naming the line, if one is no row.
    """
    return Recording(path).rows()


class Recording:
    """A recording that is read once: its rows pass by whoever looks at them, and its bytes are hashed on the way.

    Args:
        path: As for `read_rows`.

    Attributes:
        path: As given.

    Raises:
        ConfigurationError: If there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._parts = part_paths(path)
        self._digest: str | None = None

    def rows(self) -> Iterator[Row]:
        """As `read_rows`. After the last of them, `digest` is known."""
        found = hashlib.sha256()
        for part in self._parts:
            begin_file(found, self.path, part)
            with part.open("rb") as file:
                if part.suffix == ".parquet":
                    while block := file.read(1 << 20):
                        found.update(block)
                    file.seek(0)
                    yield from read_parquet(part, file)
                else:
                    yield from _read_lines(part, file, found)
        self._digest = found.hexdigest()

    @property
    def digest(self) -> str:
        """The sha256 of the file, or of the names, sizes and contents of its parts; hashed anew after no whole pass."""
        if self._digest is None:
            self._digest = digest(self.path, self._parts)
        return self._digest


def _read_lines(path: Path, file: BinaryIO, found: hashlib._Hash) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        found.update(line)
        if not line.endswith(b"\n"):
            return
        try:
            yield Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ConfigurationError(
                f"Line {number} of '{path}' is not a row of a recording: {where}{first['msg']}."
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
