"""Any policy over a recording, as array arithmetic: the decisions and costs of the live cascade, without a call.

`policy` is what is replayed, `stage_columns` says what its stages read, `prepared` makes them ready, `replay` plays one
policy or sweeps over many, `derived` adds what calibrators make of recorded scores, `costs` has the units, `costing`
says which of them counts, `ray` spreads a sweep over a cluster.
"""

from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.costs import UNITS, Costs
from confcascade.bench.replay.derived import with_confidence, with_gain
from confcascade.bench.replay.policy import PolicyStage, models_in_order, stages_from_thresholds
from confcascade.bench.replay.replay import Replay, Sweep, replay, sweep

__all__ = [
    "UNITS",
    "Costing",
    "Costs",
    "PolicyStage",
    "Replay",
    "Sweep",
    "models_in_order",
    "replay",
    "stages_from_thresholds",
    "sweep",
    "with_confidence",
    "with_gain",
]
