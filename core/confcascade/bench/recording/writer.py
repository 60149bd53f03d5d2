"""What models answered, one row for each question and model, as JSON Lines that survive a kill.

A file is only ever appended to. A row is one line, written by one call, and counts once its newline is there: a
reader drops an unfinished last line, a writer cuts it off before it adds another.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from confcascade.bench.recording.reading import read_rows
from confcascade.bench.recording.row import Row
from confcascade.errors import ConfigurationError

__all__ = ["RecordingWriter"]


class RecordingWriter:
    """Appends rows to a recording; one writer at a time.

    A row is handed to the operating system by the time `append` returns, so killing the process loses none. The disk
    is told to keep them (fsync) at most every `sync_every_s` seconds, and by `close`: what a power cut can lose.

    Args:
        path: The file; made if missing. An unfinished last line is cut off.
        sync_every_s: Seconds between two fsyncs; 0 makes one for every row.

    Attributes:
        keys: (question, model) of every row in the file, so that a collect that was killed goes on where it was.

    Raises:
        ConfigurationError: If the file is not a recording or a Parquet file, or another writer has it open.
    """

    def __init__(self, path: str | Path, *, sync_every_s: float = 1.0) -> None:
        self.path = Path(path)
        if self.path.suffix == ".parquet":
            raise ConfigurationError(
                f"'{path}' cannot be appended to: Parquet is written whole. Record to a .jsonl file, and convert it."
            )
        self._sync_every_s = sync_every_s
        self._synced = time.monotonic()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._fd, self.path)
            self.keys = {row.key for row in read_rows(self.path)}  # first: what is not a recording is left as it is
            _cut_unfinished_line(self._fd, self.path)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, row: Row) -> None:
        """Add a row.

        Raises:
            OSError: If it could not be written whole (a full disk, say); what was written of it is taken away.
        """
        line = row.line()
        end = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)  # all or, of a full disk, a part: it raises only if nothing was written
        if written != len(line):
            os.ftruncate(self._fd, end)
            problem = f"Only {written} of the {len(line)} bytes of a row could be written"
            raise OSError(errno.ENOSPC, problem, str(self.path))
        self.keys.add(row.key)
        if time.monotonic() - self._synced >= self._sync_every_s:
            self.sync()

    def sync(self) -> None:
        """Have the disk keep all rows, come what may."""
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def close(self) -> None:
        """`sync`, and let others write."""
        if self._fd >= 0:
            try:
                self.sync()
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(fd: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: there, keeping to one writer is the user's part
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigurationError(f"'{path}' is being written by another process or writer.") from error


def _cut_unfinished_line(fd: int, path: Path) -> None:
    end = size = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - 65_536)
        os.lseek(fd, begin, os.SEEK_SET)
        newline = os.read(fd, end - begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.lseek(fd, end, os.SEEK_SET)
        if not _begins_a_row(os.read(fd, size - end)):
            raise ConfigurationError(f"'{path}' is not a recording, and is left as it is. Record to another file.")
        os.ftruncate(fd, end)


def _begins_a_row(line: bytes) -> bool:
    """Whether a line without a newline may be what a kill has left of a row, and not somebody's only line."""
    try:
        Row.model_validate_json(line)
    except ValidationError as error:
        begun, first = line[:64].replace(b" ", b""), b'{"question":'
        broken = error.errors()[0]["type"] == "json_invalid"
        return broken and (begun.startswith(first) or first.startswith(begun))
    return True
