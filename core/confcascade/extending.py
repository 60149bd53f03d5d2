"""For authors of models, signals and integrations: what is asked and answered, measured and read.

Whoever only uses a cascade needs none of it. `confcascade.testing` checks what is built with it.
"""

from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill, Progress, Session
from confcascade.attempts import OnError, OnExhausted
from confcascade.building import build_stages
from confcascade.errors import kept_of
from confcascade.models.base import Watcher
from confcascade.models.calls import CallParameters, Refusals, is_openais
from confcascade.models.continuing import (
    Continues,
    body_fields,
    carried_problem,
    check_one_text,
    final_fields,
    in_turn,
    is_repeated,
)
from confcascade.models.logprobs import LEAST_LISTED, whole_tokens
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
    "LEAST_LISTED",
    "CallParameters",
    "Capability",
    "CheckedTool",
    "Chunk",
    "Continues",
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
    "body_fields",
    "build_stages",
    "carried_problem",
    "cascade_of",
    "check_one_text",
    "estimated_usage",
    "final_fields",
    "forced_call",
    "in_threads",
    "in_turn",
    "is_openais",
    "is_repeated",
    "kept_of",
    "misfit",
    "openai_usage",
    "parse_problem",
    "settings_digest",
    "thoughts_apart",
    "whole_tokens",
]
