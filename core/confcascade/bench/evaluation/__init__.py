"""What a policy would have got right and cost on recorded answers, next to its baselines, as figures and as a report.

`gathered` is the recording as figures need it, `policy_figures` and `signal_figures` measure, `curves` and `baselines`
are what to compare with, `evaluate` puts them together, `report` writes them down.
"""

from confcascade.bench.evaluation.evaluate import Evaluation, Group, HarmfulKeep, evaluate
from confcascade.bench.evaluation.gathered import Gathered, gather
from confcascade.bench.evaluation.report import write_report
from confcascade.bench.evaluation.signal_figures import check_signals

__all__ = [
    "Evaluation",
    "Gathered",
    "Group",
    "HarmfulKeep",
    "check_signals",
    "evaluate",
    "gather",
    "write_report",
]
