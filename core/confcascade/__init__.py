"""Confidence cascades: small models answer what they know, larger ones the rest.

Importing this package is cheap: torch, transformers, scikit-learn and the frameworks come in where they are used.
"""

from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill
from confcascade.audit import Audit
from confcascade.audit.file import AuditFile
from confcascade.audit.state import AuditState
from confcascade.cascade import Batching, Cascade, build_stages
from confcascade.cost import Architecture, Cost, Prices
from confcascade.errors import (
    CascadeExhaustedError,
    ConfcascadeError,
    ConfigurationError,
    MissingExtraError,
    ModelError,
    SignalUnavailableError,
    StreamBrokenError,
)
from confcascade.flow import OnError, OnExhausted, Outcome, Stage
from confcascade.models import from_string
from confcascade.models.base import Watcher
from confcascade.models.openai import OpenAICompatibleModel
from confcascade.models.transformers import TransformersModel
from confcascade.signals import Evidence, Measurement, Signal, Threshold
from confcascade.signals.calibrated import Calibrated, ExpectedGain
from confcascade.signals.format_probability import FormatProbability
from confcascade.signals.knowledge_probe import KnowledgeProbe
from confcascade.signals.learned import LearnedScorer, TextRouter
from confcascade.signals.retrieval_score import RetrievalScore
from confcascade.signals.token_probability import TokenProbability
from confcascade.trace import Attempt, Record, Score, Trace, trace
from confcascade.types import Message, OutputSchema, Prefilled, Request, Response, Token, Tool, ToolCall, Usage

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "Attempt",
    "Audit",
    "AuditFile",
    "AuditState",
    "Batching",
    "Calibrated",
    "Capability",
    "Cascade",
    "CascadeExhaustedError",
    "Chunk",
    "ConfcascadeError",
    "ConfigurationError",
    "Cost",
    "Evidence",
    "ExpectedGain",
    "FormatProbability",
    "Generate",
    "KnowledgeProbe",
    "LanguageModel",
    "LearnedScorer",
    "Measurement",
    "Message",
    "MissingExtraError",
    "ModelError",
    "OnError",
    "OnExhausted",
    "OpenAICompatibleModel",
    "Outcome",
    "OutputSchema",
    "Prefill",
    "Prefilled",
    "Prices",
    "Record",
    "Request",
    "Response",
    "RetrievalScore",
    "Score",
    "Signal",
    "SignalUnavailableError",
    "Stage",
    "StreamBrokenError",
    "TextRouter",
    "Threshold",
    "Token",
    "TokenProbability",
    "Tool",
    "ToolCall",
    "Trace",
    "TransformersModel",
    "Usage",
    "Watcher",
    "__version__",
    "build_stages",
    "from_string",
    "trace",
]
