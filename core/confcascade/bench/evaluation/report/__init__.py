"""A report of an evaluation: one page that needs nothing but itself, and a file for each plot, table and figure."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from confcascade.bench.evaluation.evaluate import Evaluation
from confcascade.bench.evaluation.report.page import page
from confcascade.bench.evaluation.report.plots import plots as all_plots
from confcascade.bench.evaluation.report.tables import Table, tables
from confcascade.bench.evaluation.report.words import headline, verdict
from confcascade.bench.recording.reading import part_paths

__all__ = ["Table", "headline", "made_of", "tables", "verdict", "write_report"]

PACKAGES = ("confcascade", "numpy", "scipy", "scikit-learn", "matplotlib")


def write_report(evaluation: Evaluation, folder: str | Path, made: Mapping[str, str], *, plots: bool = True) -> Path:
    """Write ``index.html``, ``figures.json``, and each table (CSV) and plot (PNG and CSV).

    Args:
        evaluation: To be told.
        folder: Made if missing; files of the same names are written over.
        made: How the report was made, of `made_of`.
        plots: Whether to draw.

    Returns:
        The page.

    Raises:
        MissingExtraError: If plots are wanted and matplotlib is not installed; nothing is written then.
    """
    drawn = all_plots(evaluation) if plots else []
    told = tables(evaluation)
    folder = Path(folder)
    text = page(evaluation, told, drawn, made)
    folder.mkdir(parents=True, exist_ok=True)
    for table in told:
        (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    for plot in drawn:
        (folder / f"{plot.name}.png").write_bytes(plot.png())
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([plot.header, *plot.rows])
        (folder / f"plot_{plot.name}.csv").write_text(out.getvalue(), encoding="utf-8")
    figures = {"made": dict(made), "verdict": [headline(evaluation), *verdict(evaluation)], **evaluation.as_dict()}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    index = folder / "index.html"
    index.write_text(text, encoding="utf-8")
    return index


def made_of(recording: str | Path, command: str, **further: str) -> dict[str, str]:
    """How a report was made: the command, the recording with its SHA-256, versions, and the time.

    Args:
        recording: Its file, or the folder of its parts, which are hashed one after the other.
        command: As it was typed.
        further: What else to tell.
    """
    digest = sha256()
    for path in part_paths(recording):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    versions = [
        f"python {platform.python_version()}",
        *(f"{name} {told}" for name in PACKAGES if (told := _version(name))),
    ]
    return {
        "command": command,
        "recording": Path(recording).name,
        "sha256 of the recording": digest.hexdigest(),
        **further,
        "versions": ", ".join(versions),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
