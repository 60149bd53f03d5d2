"""Arrays in, figures out: how well scores rank answers, whether a difference is one, what no policy can beat.

`ranking` has AUROC, calibration and risk curves, `significance` tests and intervals, `frontier` cost against accuracy,
`health` says whether a signal can route. None of them knows of recordings.
"""

from confcascade.bench.metrics.health import SignalHealth, auroc_lower_bound, signal_health

__all__ = ["SignalHealth", "auroc_lower_bound", "signal_health"]
