"""For authors of models, signals and integrations: what is asked and answered, measured and read.

Whoever only uses a cascade needs none of it. `confcascade.testing` checks what is built with it.
"""

from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill, Progress, Session
from confcascade.attempts import OnError, OnExhausted
from confcascade.building import build_stages
from confcascade.errors import kept_of
from confcascade.models.base import Watcher
from confcascade.models.calls import CallParameters, Refusals
from confcascade.models.logprobs import whole_tokens
from confcascade.models.remote import (
    Remote,
    as_stream,
    estimated_usage,
    in_threads,
    openai_usage,
    settings_digest,
    thoughts_apart,
)
from confcascade.models.stream import Piece, StreamReader
from confcascade.signals import Evidence, Measurement, Signal, Threshold
from confcascade.stepwise_cascade import Mode, cascade_of
from confcascade.tools import CUT, CheckedTool, forced_call, misfit, parse_problem
from confcascade.types import Prefilled, Response, Stated, Token
from confcascade.unusable import OnCut

__all__ = [
    "CUT",
    "CallParameters",
    "Capability",
    "CheckedTool",
    "Chunk",
    "Evidence",
    "Generate",
    "LanguageModel",
    "Measurement",
    "Mode",
    "OnCut",
    "OnError",
    "OnExhausted",
    "Piece",
    "Prefill",
    "Prefilled",
    "Progress",
    "Refusals",
    "Remote",
    "Response",
    "Session",
    "Signal",
    "Stated",
    "StreamReader",
    "Threshold",
    "Token",
    "Watcher",
    "as_stream",
    "build_stages",
    "cascade_of",
    "estimated_usage",
    "forced_call",
    "in_threads",
    "kept_of",
    "misfit",
    "openai_usage",
    "parse_problem",
    "settings_digest",
    "thoughts_apart",
    "whole_tokens",
]
