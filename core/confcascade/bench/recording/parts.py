"""A recording in several files, each with all the rows of some questions: larger than memory, it is read in parts."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from confcascade.bench.recording.parquet import write_parquet
from confcascade.bench.recording.reading import read_rows
from confcascade.bench.recording.row import Row
from confcascade.errors import ConfigurationError

__all__ = ["write_parts"]


def write_parts(rows: Iterable[Row], folder: str | Path, count: int) -> int:
    """Write a recording as a folder of Parquet files, whatever its size and the order of its rows.

    A question's rows go into the same file, by the CRC-32 of its id. They pass through temporary files beside it, so
    that no more than some thousand rows are in memory.

    Args:
        rows: The recording.
        folder: Made; there must be none.
        count: Of files, at least 1. A sweep holds one file's numbers at a time.

    Returns:
        How many rows there were.

    Raises:
        ConfigurationError: If the folder is there, or `count` is below 1.
        MissingExtraError: Without pyarrow.
    """
    folder = Path(folder)
    if count < 1:
        raise ConfigurationError(f"A recording needs at least 1 part. Got {count}.")
    if folder.exists():
        raise ConfigurationError(f"'{folder}' is there already; parts are written to a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as beside:
        lines = [Path(beside) / f"{number}.jsonl" for number in range(count)]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in lines]
            for row in rows:
                files[zlib.crc32(row.question.encode()) % count].write(row.line())
        whole = Path(beside) / "parts"
        whole.mkdir()
        written = [path for path in lines if path.stat().st_size]
        total = sum(
            write_parquet(read_rows(path), whole / f"part-{number:04d}.parquet") for number, path in enumerate(written)
        )
        whole.rename(folder)
    return total
