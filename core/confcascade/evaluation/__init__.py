"""Collect once, replay for ever: recorded answers, any cascade over them, and what it would have got right and cost.

`collect` asks every model every question, `recordings` keeps what they said, `columns` shows it as arrays, `replay`
decides on it as the live cascade would, `derived` adds what a calibrator makes of its scores, `health` tells which
scores can route, `recorded` plays it through the live cascade; `metrics` and `significance`
judge the result; `evaluate` gathers every figure of a policy beside its baselines, and `report` tells them.

Not imported by `confcascade` itself: this package needs numpy and pydantic at once, scipy and scikit-learn where used.
"""

from confcascade.evaluation.attempt import Asking
from confcascade.evaluation.collect import Collected, Tally, collect, collect_rows, sample
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.derived import with_confidence, with_gain
from confcascade.evaluation.health import SignalHealth, check_signals, signal_health
from confcascade.evaluation.parquet import write_parquet
from confcascade.evaluation.parts import write_parts
from confcascade.evaluation.recorded import RecordedModel, RecordedSignal
from confcascade.evaluation.recordings import (
    RecordedScore,
    RecordingWriter,
    Row,
    judged_score,
    part_paths,
    read_rows,
    recorded_score,
)
from confcascade.evaluation.replay import Costs, PolicyStage, Replay, Sweep, replay, sweep

__all__ = [
    "Asking",
    "Collected",
    "Columns",
    "Costs",
    "PolicyStage",
    "RecordedModel",
    "RecordedScore",
    "RecordedSignal",
    "RecordingWriter",
    "Replay",
    "Row",
    "SignalHealth",
    "Sweep",
    "Tally",
    "check_signals",
    "collect",
    "collect_rows",
    "judged_score",
    "part_paths",
    "read_rows",
    "recorded_score",
    "replay",
    "sample",
    "signal_health",
    "sweep",
    "with_confidence",
    "with_gain",
    "write_parquet",
    "write_parts",
]
