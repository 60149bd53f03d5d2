"""A report of an evaluation: one page that needs nothing but itself, and a file for each plot, table and figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from confcascade.bench.evaluation.evaluate import Evaluation
from confcascade.bench.evaluation.report.page import page
from confcascade.bench.evaluation.report.plots import plots as all_plots
from confcascade.bench.evaluation.report.tables import Table, tables
from confcascade.bench.evaluation.report.words import headline, verdict
from confcascade.bench.recording.provenance import versions
from confcascade.bench.recording.reading import Recording

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


def made_of(recording: Recording, command: str, **further: str) -> dict[str, str]:
    """How a report was made: the command, the recording with its SHA-256, versions, and the time.

    Args:
        recording: With the digest by which a policy names it, too.
        command: As it was typed.
        further: What else to tell.
    """
    return {
        "command": command,
        "recording": recording.path.name,
        "sha256 of the recording": recording.digest,
        **further,
        "versions": ", ".join(f"{name} {version}" for name, version in versions(PACKAGES).items()),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
