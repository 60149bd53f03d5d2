"""``confcascade convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confcascade.errors import ConfigurationError


def convert(
    source: Annotated[Path, typer.Argument(help="A recording: .jsonl, .parquet, or a folder of such files.")],
    target: Annotated[Path, typer.Argument(help="A new .jsonl or .parquet file; with --parts a new folder.")],
    parts: Annotated[
        int | None, typer.Option(min=1, help="Write so many Parquet files, for a recording larger than memory.")
    ] = None,
) -> None:
    """Write a recording as Parquet (or as JSON Lines again): the same rows, to the last digit.

    Examples:

        confcascade convert mmlu.jsonl mmlu.parquet

        confcascade convert mmlu.jsonl mmlu --parts 16
    """
    from rich.console import Console
    from rich.progress import track

    from confcascade.bench.recording import RecordingWriter, read_rows, write_parquet, write_parts

    if target.exists():
        raise ConfigurationError(f"'{target}' is there already; name a new one.")
    rows = track(read_rows(source), "rows", total=None, console=Console(stderr=True), transient=True)
    try:
        if parts is not None:
            count = write_parts(rows, target, parts)
        elif target.suffix == ".parquet":
            count = write_parquet(rows, target)
        elif target.suffix == ".jsonl":
            with RecordingWriter(target) as writer:
                count = 0
                for row in rows:
                    writer.append(row)
                    count += 1
        else:
            raise ConfigurationError(f"'{target}' must end with .parquet or .jsonl, or be a folder for --parts.")
    except OSError:  # a full disk, say: half a recording would stand in the way of the next try
        if target.is_file():
            target.unlink()
        raise
    print(f"{count:,} rows in {target}")
