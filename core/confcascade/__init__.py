"""Confidence cascades: small models answer what they know, larger ones the rest.

Importing this package is cheap, and so is every name of it: what a name needs comes in when the name is used. What
authors of models, signals and integrations need is in `confcascade.extending`.
"""

import typing

# at once, because the module has the name of a function in it
from confcascade.trace import Attempt, Record, Score, Step, Trace, trace

if typing.TYPE_CHECKING:
    from confcascade.attempts import Outcome
    from confcascade.audit import Audit
    from confcascade.audit.file import AuditFile
    from confcascade.audit.state import AuditState
    from confcascade.bench.collecting.collect import collect
    from confcascade.bench.evaluation.evaluate import evaluate
    from confcascade.bench.fitting.fit import fit
    from confcascade.cascade import Batching, Cascade
    from confcascade.cascade_file import CascadeFile
    from confcascade.cascade_model import CascadeModel
    from confcascade.checks import checking
    from confcascade.cost import Architecture, Prices
    from confcascade.decoding import Decoding
    from confcascade.diagnosis.diagnose import Diagnosis, diagnose
    from confcascade.errors import (
        CascadeExhaustedError,
        ConfcascadeError,
        ConfigurationError,
        MissingExtraError,
        ModelError,
        SignalUnavailableError,
        StreamBrokenError,
    )
    from confcascade.graders import Example
    from confcascade.guarantee import Certificate, Promise
    from confcascade.models import from_string
    from confcascade.models.llamacpp import LlamaCppModel
    from confcascade.models.local import OnDemandModel, TransformersModel
    from confcascade.models.memory import MemoryBound
    from confcascade.models.openai import OpenAICompatibleModel
    from confcascade.models.planned import PlannedModel
    from confcascade.policy import Policy
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
    from confcascade.types import Cost, Message, OutputSchema, Request, Tool, ToolCall, Usage

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
    "MemoryBound",
    "Message",
    "MissingExtraError",
    "ModelError",
    "OnDemandModel",
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

_HOMES = {
    "Architecture": "confcascade.cost",
    "Audit": "confcascade.audit",
    "AuditFile": "confcascade.audit.file",
    "AuditState": "confcascade.audit.state",
    "Batching": "confcascade.cascade",
    "Calibrated": "confcascade.signals.calibrated",
    "Cascade": "confcascade.cascade",
    "CascadeExhaustedError": "confcascade.errors",
    "CascadeFile": "confcascade.cascade_file",
    "CascadeModel": "confcascade.cascade_model",
    "Certificate": "confcascade.guarantee",
    "ConfcascadeError": "confcascade.errors",
    "ConfigurationError": "confcascade.errors",
    "Cost": "confcascade.types",
    "Decoding": "confcascade.decoding",
    "Diagnosis": "confcascade.diagnosis.diagnose",
    "Example": "confcascade.graders",
    "ExpectedGain": "confcascade.signals.calibrated",
    "FormatProbability": "confcascade.signals.format_probability",
    "Glimpse": "confcascade.signals.glimpse",
    "KnowledgeProbe": "confcascade.signals.knowledge_probe",
    "LearnedScorer": "confcascade.signals.learned",
    "LlamaCppModel": "confcascade.models.llamacpp",
    "Lookback": "confcascade.signals.lookback",
    "Message": "confcascade.types",
    "MemoryBound": "confcascade.models.memory",
    "MissingExtraError": "confcascade.errors",
    "ModelError": "confcascade.errors",
    "OnDemandModel": "confcascade.models.local",
    "OpenAICompatibleModel": "confcascade.models.openai",
    "Outcome": "confcascade.attempts",
    "OutputSchema": "confcascade.types",
    "PlannedModel": "confcascade.models.planned",
    "Policy": "confcascade.policy",
    "Prices": "confcascade.cost",
    "Promise": "confcascade.guarantee",
    "Request": "confcascade.types",
    "RetrievalScore": "confcascade.signals.retrieval_score",
    "SignalUnavailableError": "confcascade.errors",
    "Stage": "confcascade.stage",
    "StepMixture": "confcascade.signals.step_mixture",
    "Steps": "confcascade.stepwise",
    "StepwiseCascade": "confcascade.stepwise_cascade",
    "StreamBrokenError": "confcascade.errors",
    "TextRouter": "confcascade.signals.learned",
    "TiesByLot": "confcascade.signals.ties_by_lot",
    "TokenProbability": "confcascade.signals.token_probability",
    "Tool": "confcascade.types",
    "ToolCall": "confcascade.types",
    "TransformersModel": "confcascade.models.local",
    "Usage": "confcascade.types",
    "Verbalized": "confcascade.signals.verbalized",
    "Wording": "confcascade.signals.wording",
    "checking": "confcascade.checks",
    "collect": "confcascade.bench.collecting.collect",
    "diagnose": "confcascade.diagnosis.diagnose",
    "evaluate": "confcascade.bench.evaluation.evaluate",
    "fit": "confcascade.bench.fitting.fit",
    "from_string": "confcascade.models",
    "step_confidences": "confcascade.step_traces",
}  # where names come from that are not here yet


def __getattr__(name: str) -> typing.Any:
    """What comes in where it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
