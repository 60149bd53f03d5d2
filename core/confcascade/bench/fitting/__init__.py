"""From a recording to a policy with a promise: calibrate, choose, certify.

`material` reads a recording and refuses what nothing can be promised of, `splitting` divides its questions,
`candidates` makes policies, `proof` orders and tests them, `fit` puts these together. `refusals` says what can have no
promise, `results` what a fit gives, `policy_file` writes and reads the policy, `not_certified` plans what it would take
if there is none. `rivals` is what asks one model only, to stand beside a cascade. `describe` says what came of it,
`realised` looks at a policy on other questions.

`grid` certifies one of a few whole cascades of which each has answered every question itself; `recorded_grid` reads
such a grid of thresholds from a recording and makes the policy. `targets` fits for what is not accuracy: precision,
recall and F1 of a class, the price of errors, cost and latency.
"""

from confcascade.bench.fitting.describe import describe_fit
from confcascade.bench.fitting.fit import fit
from confcascade.bench.fitting.grid import Configuration, GridFit, certify_grid
from confcascade.bench.fitting.material import FitData, FitNotes, agreement, material_of, read_material
from confcascade.bench.fitting.played import QueryLimits
from confcascade.bench.fitting.policy_file import Described, replayable
from confcascade.bench.fitting.realised import Realised, realised
from confcascade.bench.fitting.recorded_grid import RecordedGrid, stepwise_models
from confcascade.bench.fitting.results import Fitted, NotCertified
from confcascade.bench.fitting.splitting import FitSplit, split_by_key
from confcascade.bench.fitting.targets import TargetsFit, Wanted, fit_targets

__all__ = [
    "Configuration",
    "Described",
    "FitData",
    "FitNotes",
    "FitSplit",
    "Fitted",
    "GridFit",
    "NotCertified",
    "QueryLimits",
    "Realised",
    "RecordedGrid",
    "TargetsFit",
    "Wanted",
    "agreement",
    "certify_grid",
    "describe_fit",
    "fit",
    "fit_targets",
    "material_of",
    "read_material",
    "realised",
    "replayable",
    "split_by_key",
    "stepwise_models",
]
