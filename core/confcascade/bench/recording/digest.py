"""The digest by which a policy and a report name what they were made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from confcascade.errors import ConfigurationError

__all__ = ["begin_file", "digest"]

_BLOCK = 1 << 20


def digest(data: str | Path, files: Sequence[Path] | None = None) -> str:
    """The sha256 of a file, or of the names, sizes and contents of the files in a folder.

    Args:
        data: The file or folder.
        files: Which of them, in their order; by default all.

    Raises:
        ConfigurationError: If it is not there.
    """
    path = Path(data)
    if not path.exists():
        raise ConfigurationError(f"'{path}' is not there.")
    found = hashlib.sha256()
    if files is None:
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        begin_file(found, path, file)
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                found.update(block)
    return found.hexdigest()


def begin_file(found: hashlib._Hash, data: Path, file: Path) -> None:
    """What is hashed before the contents of one of the files of `data`: nothing, if it is the only one."""
    if file != data:
        found.update(f"{file.relative_to(data).as_posix()}\0{file.stat().st_size}\0".encode())
