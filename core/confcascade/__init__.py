"""Confidence cascades: small models answer what they know, larger ones the rest.

Importing this package is cheap: torch, transformers, scikit-learn and the frameworks come in where they are used. So
does the bench, which records answers, fits policies on them and judges them. What authors of models, signals and
integrations need is in `confcascade.extending`.
"""

import typing

from confcascade.attempts import Outcome
from confcascade.audit import Audit
from confcascade.audit.file import AuditFile
from confcascade.audit.state import AuditState
from confcascade.cascade import Batching, Cascade
from confcascade.cascade_model import CascadeModel
from confcascade.checks import checking
from confcascade.cost import Architecture, Prices
from confcascade.decoding import Decoding
from confcascade.diagnosis import Diagnosis, diagnose
from confcascade.errors import (
    CascadeExhaustedError,
    ConfcascadeError,
    ConfigurationError,
    MissingExtraError,
    ModelError,
    SignalUnavailableError,
    StreamBrokenError,
)
from confcascade.models import from_string
from confcascade.models.llamacpp import LlamaCppModel
from confcascade.models.local import TransformersModel
from confcascade.models.openai import OpenAICompatibleModel
from confcascade.models.planned import PlannedModel
from confcascade.signals.calibrated import Calibrated, ExpectedGain
from confcascade.signals.format_probability import FormatProbability
from confcascade.signals.glimpse import Glimpse
from confcascade.signals.knowledge_probe import KnowledgeProbe
from confcascade.signals.learned import LearnedScorer, TextRouter
from confcascade.signals.lookback import Lookback
from confcascade.signals.retrieval_score import RetrievalScore
from confcascade.signals.step_mixture import StepMixture
from confcascade.signals.ties_by_lot import TiesByLot
from confcascade.signals.token_probability import TokenProbability
from confcascade.signals.verbalized import Verbalized
from confcascade.signals.wording import Wording
from confcascade.stage import Stage
from confcascade.step_traces import step_confidences
from confcascade.stepwise import Steps
from confcascade.stepwise_cascade import StepwiseCascade
from confcascade.trace import Attempt, Record, Score, Step, Trace, trace
from confcascade.types import Cost, Message, OutputSchema, Request, Tool, ToolCall, Usage

if typing.TYPE_CHECKING:
    from confcascade.bench.collecting.collect import collect
    from confcascade.bench.evaluation.evaluate import evaluate
    from confcascade.bench.fitting.fit import fit
    from confcascade.cascade_file import CascadeFile
    from confcascade.graders import Example
    from confcascade.guarantee import Certificate, Promise
    from confcascade.policy import Policy

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "Attempt",
    "Audit",
    "AuditFile",
    "AuditState",
    "Batching",
    "Calibrated",
    "Cascade",
    "CascadeExhaustedError",
    "CascadeFile",
    "CascadeModel",
    "Certificate",
    "ConfcascadeError",
    "ConfigurationError",
    "Cost",
    "Decoding",
    "Diagnosis",
    "Example",
    "ExpectedGain",
    "FormatProbability",
    "Glimpse",
    "KnowledgeProbe",
    "LearnedScorer",
    "LlamaCppModel",
    "Lookback",
    "Message",
    "MissingExtraError",
    "ModelError",
    "OpenAICompatibleModel",
    "Outcome",
    "OutputSchema",
    "PlannedModel",
    "Policy",
    "Prices",
    "Promise",
    "Record",
    "Request",
    "RetrievalScore",
    "Score",
    "SignalUnavailableError",
    "Stage",
    "Step",
    "StepMixture",
    "Steps",
    "StepwiseCascade",
    "StreamBrokenError",
    "TextRouter",
    "TiesByLot",
    "TokenProbability",
    "Tool",
    "ToolCall",
    "Trace",
    "TransformersModel",
    "Usage",
    "Verbalized",
    "Wording",
    "__version__",
    "checking",
    "collect",
    "diagnose",
    "evaluate",
    "fit",
    "from_string",
    "step_confidences",
    "trace",
]

_LATE = {
    "CascadeFile": "confcascade.cascade_file",
    "Certificate": "confcascade.guarantee",
    "Example": "confcascade.graders",
    "Policy": "confcascade.policy",
    "Promise": "confcascade.guarantee",
    "collect": "confcascade.bench.collecting.collect",
    "evaluate": "confcascade.bench.evaluation.evaluate",
    "fit": "confcascade.bench.fitting.fit",
}  # they need numpy and pydantic


def __getattr__(name: str) -> typing.Any:
    """What comes in where it is used."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_LATE]
