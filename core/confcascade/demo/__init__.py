"""The bundled models: three tiny Llamas of a made-up world, with real weights, a real tokenizer and real confidence.

They are loaded by the code that loads any model. `world` holds what they were taught, `lessons` is that as tokens,
`train` made them, `measure` trained their probes and chose the demo's thresholds, `show` is what ``confcascade demo``
prints of them. `own_models` is what it prints of the user's models, which `loading` checks and loads: their answers to
`questions`, asked by `asking`, compared by `comparison` and `thresholds`, and summed up by `conclusion`.
"""

from __future__ import annotations

import json
from typing import Any

from confcascade.models.bundled import SIZES, WEIGHTS, bundled_folder, bundled_model
from confcascade.signals.knowledge_probe import KnowledgeProbe
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import Stage

__all__ = ["SIZES", "WEIGHTS", "bundled_model", "bundled_probe", "bundled_stages"]


def bundled_probe(size: str) -> KnowledgeProbe:
    """The P(IK) probe of a bundled model."""
    return KnowledgeProbe.load(bundled_folder(size) / "probe")


def answer_probability() -> TokenProbability:
    """P(T) as the demo uses it: the least probable token, so that a doomed draft ends at it."""
    return TokenProbability(aggregate="min")


def policy() -> dict[str, Any]:
    """The demo's cascade, as `measure` chose it on the calibration split: stages with their thresholds."""
    chosen: dict[str, Any] = json.loads((WEIGHTS / "policy.json").read_text())
    return chosen


def bundled_stages() -> list[Stage]:
    """The demo's cascade: bundled models with P(IK) and P(T), and thresholds chosen on the calibration split."""
    *gated, last = policy()["stages"]
    stages = [
        Stage(bundled_model(each["model"]), [bundled_probe(each["model"]), answer_probability()], each["thresholds"])
        for each in gated
    ]
    return [*stages, Stage(bundled_model(last["model"]))]
