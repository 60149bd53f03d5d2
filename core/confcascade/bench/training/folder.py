"""A trained probe as a folder: the probe, the figures of its training, and its plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from confcascade.bench.recording.digest import digest
from confcascade.bench.recording.provenance import versions
from confcascade.bench.recording.reading import Recording, is_recording
from confcascade.bench.training.examples import ProbeExamples
from confcascade.bench.training.probes import SHARES, TrainedProbe
from confcascade.bench.training.verdict import can_route, verdict
from confcascade.graders.grade import RIGHT

__all__ = ["write_probe"]

FORMAT = 1
_PACKAGES = ("confcascade", "numpy", "scikit-learn", "torch", "transformers")


def write_probe(
    trained: TrainedProbe,
    folder: str | Path,
    *,
    source: str | Path,
    material: ProbeExamples,
    command: Sequence[str],
    plots: bool = True,
) -> dict[str, Any]:
    """Write ``probe.json``, ``probe.safetensors``, ``training.json`` and, if wanted, the plots as PNG.

    Args:
        trained: By `train_probe`.
        folder: Made if missing.
        source: The recording or data set that it was trained on, whose hash is kept.
        material: What was learned from.
        command: That made it.
        plots: Whether to draw; needs matplotlib.

    Returns:
        What stands in ``training.json``.

    Raises:
        MissingExtraError: If plots are wanted and matplotlib is not installed.
    """
    from confcascade.bench.training.probe_plots import probe_plots

    path = Path(folder)
    trained.probe.save(path)
    card = asdict(trained.probe.card)
    sha256 = Recording(source).digest if is_recording(source) else digest(source)
    told = {
        "format": FORMAT,
        "verdict": verdict(trained),
        "can_route": can_route(trained),
        "probe": card,
        "chosen": asdict(trained.chosen),
        "candidates": [asdict(each) for each in trained.candidates],
        "learning_curve": [asdict(each) for each in trained.curve],
        "test": asdict(trained.test),
        "split": {"by": trained.split_by, "seed": card["seed"], "shares": SHARES},
        "right_from_grade": RIGHT,
        "grades_between_0_and_1": material.partly,
        "left_out": dict(trained.left_out),
        "data": {
            "name": Path(source).name,
            "sha256": sha256,
        },
        "command": list(command),
        "versions": versions(_PACKAGES),
    }
    (path / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if plots:
        for plot in probe_plots(trained):
            (path / f"{plot.name}.png").write_bytes(plot.png())
    return told
