"""What of a cascade file is asked: its models, and a cascade that writes step by step as a model of its own.

Whole answers are recorded once, and replayed at any threshold. Another threshold of a cascade that decides step by step
makes another answer, so each is recorded by itself, and `confcascade.bench.fitting.grid` tests them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from confcascade.bench.collecting.collect import with_default_signals
from confcascade.cascade_file import CascadeFile
from confcascade.cascade_model import CascadeModel
from confcascade.signals import Threshold
from confcascade.stage import Stage
from confcascade.stepwise_cascade import StepwiseCascade

__all__ = ["grid_name", "stages_to_ask"]


def stages_to_ask(file: CascadeFile, thresholds: Sequence[Threshold] = ()) -> tuple[Stage, ...]:
    """The stages of a file for `collect`; of ``mode: stepwise``, the cascades between its two models.

    Args:
        file: Its models are loaded once.
        thresholds: Of a stepwise cascade's one signal: a cascade for each, in this order. Without, one of the file's
            own thresholds, if it has any.

    Raises:
        ConfigurationError: If there are thresholds and the cascade is not stepwise, or it cannot work.
    """
    if file.mode == "query" and not thresholds:
        return with_default_signals(file.make_stages())
    cascades = file.grid(thresholds)
    small, large = file.make_stages()
    if not cascades and small.thresholds:
        cascade = file.cascade()
        assert isinstance(cascade, StepwiseCascade)
        cascades = (cascade,)
    # what judges a step by the one before says nothing of a whole answer
    judges = [signal for signal in small.signals if not signal.between_steps]
    alone = replace(small, signals=judges, thresholds=dict.fromkeys([signal.name for signal in judges], "always"))
    asked = [Stage(CascadeModel(cascade, name=grid_name(cascade))) for cascade in cascades]
    return with_default_signals([alone, *asked, large])


def grid_name(cascade: StepwiseCascade) -> str:
    """What a recording calls a stepwise cascade: "small+large@0.9" where it has one threshold, else "small+large"."""
    small, large = cascade.stages
    names = f"{small.model.name}+{large.model.name}"
    told = [each if isinstance(each, str) else f"{each:.12g}" for each in small.thresholds.values()]
    return f"{names}@{told[0]}" if len(told) == 1 else names
