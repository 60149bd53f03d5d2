"""Confidence cascades for LlamaIndex: `ConfidenceCascadeLLM` stands wherever an LLM does."""

from confcascade import RetrievalScore

from llamaindex_confcascade.llm import ConfidenceCascadeLLM
from llamaindex_confcascade.measuring import Measured, MeasuredQuestion, ameasure, measure
from llamaindex_confcascade.model import LlamaIndexModel

__all__ = [
    "ConfidenceCascadeLLM",
    "LlamaIndexModel",
    "Measured",
    "MeasuredQuestion",
    "RetrievalScore",
    "ameasure",
    "measure",
]
