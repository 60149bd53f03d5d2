"""The bundled models: three tiny Llamas of a made-up world, with real weights, a real tokenizer and real confidence.

They are loaded by the code that loads any model. `world` holds what they were taught, `lessons` is that as tokens,
`train` made them, `measure` trained their probes and chose the demo's thresholds, `show` is what ``confcascade demo``
prints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from confcascade.errors import ConfigurationError
from confcascade.flow import Stage
from confcascade.models.transformers import TransformersModel
from confcascade.signals.knowledge_probe import KnowledgeProbe
from confcascade.signals.token_probability import TokenProbability

__all__ = ["SIZES", "bundled_model", "bundled_probe", "bundled_stages"]

SIZES = ("small", "medium", "large")
WEIGHTS = Path(__file__).parent / "weights"


def bundled_model(size: str) -> TransformersModel:
    """The bundled model called "small", "medium" or "large"."""
    if size not in SIZES:
        raise ConfigurationError(f"The bundled models are {', '.join(SIZES)}. Got '{size}'.")
    return TransformersModel.from_pretrained(WEIGHTS / size, name=size, max_new_tokens=64, batch_size=64)


def bundled_probe(size: str) -> KnowledgeProbe:
    """The P(IK) probe of a bundled model."""
    return KnowledgeProbe.load(WEIGHTS / size / "probe")


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
