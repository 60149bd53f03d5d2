"""Training a model to state its confidence: COREA's idea, and a supervised baseline."""

from __future__ import annotations

from confcascade.bench.training.verbalized.questions import Questions
from confcascade.bench.training.verbalized.reinforced import Reinforced
from confcascade.bench.training.verbalized.rollouts import Sampling
from confcascade.bench.training.verbalized.supervised import Supervised
from confcascade.bench.training.verbalized.training import TrainedVerbalized, train_verbalized

__all__ = ["Questions", "Reinforced", "Sampling", "Supervised", "TrainedVerbalized", "train_verbalized"]
