"""Learning from a user's own questions what a model knows: P(IK) probes.

`examples` takes labelled questions from a recording, `states` reads what the model's blocks make of them and keeps it,
`probes` compares probes, chooses one and judges it, `verdict` and `probe_plots` tell how good it is, and `folder`
makes a folder of it all.

Not imported by `confcascade` itself: this package needs numpy and pydantic at once, scikit-learn where used.
"""

from confcascade.bench.training.examples import Asked, ProbeExamples, labelled
from confcascade.bench.training.probes import Candidate, CurvePoint, TrainedProbe, train_probe
from confcascade.bench.training.states import StateCache, read_states

__all__ = [
    "Asked",
    "Candidate",
    "CurvePoint",
    "ProbeExamples",
    "StateCache",
    "TrainedProbe",
    "labelled",
    "read_states",
    "train_probe",
]
