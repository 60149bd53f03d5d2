"""What training leaves: the adapter or the model, the card that says how to ask it, and its plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from confcascade.bench.recording.digest import digest
from confcascade.bench.recording.provenance import versions
from confcascade.bench.training.verbalized.figures import ConfidenceFigures
from confcascade.bench.training.verbalized.plots import training_plots
from confcascade.bench.training.verbalized.questions import SHARES
from confcascade.bench.training.verbalized.training import Judged, TrainedVerbalized
from confcascade.signals.verbalized import CARD, Verbalized

__all__ = ["card_table", "verdict", "write_card"]

_PACKAGES = ("confcascade", "numpy", "peft", "torch", "transformers", "trl")


def write_card(
    trained: TrainedVerbalized,
    folder: Path,
    *,
    signal: Verbalized,
    source: Path,
    settings: Mapping[str, Any],
    command: Sequence[str],
    plots: bool = True,
) -> dict[str, Any]:
    """Write the card beside the weights, where `Verbalized.load` finds it, and the plots into ``folder / "plots"``.

    Args:
        trained: By `train_verbalized`, in the same folder.
        folder: Of the training.
        signal: That asked for the confidence.
        source: The questions, whose hash is kept.
        settings: All that the training was told.
        command: That made it.
        plots: Whether to draw; needs matplotlib.

    Returns:
        What stands on the card.

    Raises:
        MissingExtraError: If plots are wanted and matplotlib is not installed.
    """
    told = {
        "format": 1,
        "instruction": signal.instruction,
        "model": trained.model.name,
        "method": trained.method,
        "verdict": verdict(trained),
        "ended_early": trained.problem,
        "texts": trained.texts,
        "settings": dict(settings),
        "split": dict(SHARES),
        "before": {name: _told(judged) for name, judged in trained.before.items()},
        "taught": {name: _told(judged) for name, judged in trained.taught.items()},
        "after": {name: _told(judged) for name, judged in trained.after.items()},
        "data": {"name": source.name, "sha256": digest(source)},
        "command": list(command),
        "versions": versions(_PACKAGES),
    }
    text = json.dumps(told, indent=1) + "\n"
    (folder / "model" / CARD).write_text(text, encoding="utf-8")
    if plots:
        (folder / "plots").mkdir(exist_ok=True)
        for plot in training_plots(trained):
            (folder / "plots" / f"{plot.name}.png").write_bytes(plot.png())
    return told


def verdict(trained: TrainedVerbalized) -> list[str]:
    """A few sentences, the most important first."""
    before, after = trained.before["test"], trained.after["test"]
    stated, count = after.stated, f"{after.stated.n} test questions"
    if not stated.health.can_route:
        said = [f"What it states cannot route ({count}): {'; '.join(stated.health.reasons)}."]
    else:
        said = [f"What it states can route: AUROC {stated.auroc:.3f}, at least {stated.low:.3f} ({count})."]
    if stated.ece is not None:
        earlier = "" if before.stated.ece is None else f" ({before.stated.ece:.3f} before)"
        said.append(f"As a probability it is off by {stated.ece:.3f} on average{earlier}.")
    said.append(f"It answers {stated.accuracy:.1%} right, {before.stated.accuracy:.1%} before.")
    if after.p_t.auroc is not None and stated.auroc is not None and after.p_t.auroc > stated.auroc:
        said.append(
            f"P(T) of the same answers ranks them better: AUROC {after.p_t.auroc:.3f}. Where the model's "
            "log-probabilities can be had, route by them."
        )
    if trained.problem:
        said.append(f"Training was ended early: {trained.problem}. The best weights before that were kept.")
    return said


def card_table(trained: TrainedVerbalized) -> Iterator[tuple[str, ...]]:
    """Rows of set, when and what, answers with a score, accuracy, ECE, AUROC with its interval."""
    stages = [("before", trained.before), ("taught the form", trained.taught), ("after", trained.after)]
    for name in trained.after:
        for when, judged in ((when, each[name]) for when, each in stages if each):
            yield (name, f"stated, {when}", *_figures(judged.stated))
            yield (name, f"P(T), {when}", *_figures(judged.p_t))


def _figures(figures: ConfidenceFigures) -> tuple[str, str, str, str]:
    area = "-" if figures.auroc is None else f"{figures.auroc:.3f} ({figures.low:.3f} to {figures.high:.3f})"
    ece = "-" if figures.ece is None else f"{figures.ece:.3f}"
    return f"{figures.scored} of {figures.n}", f"{figures.accuracy:.1%}", ece, area


def _told(judged: Judged) -> dict[str, Any]:
    return {"stated": asdict(judged.stated), "p_t": asdict(judged.p_t)}
