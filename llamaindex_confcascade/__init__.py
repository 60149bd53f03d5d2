"""Confidence cascades for LlamaIndex: `ConfidenceCascadeLLM` stands wherever an LLM does."""

from confcascade import RetrievalScore

from llamaindex_confcascade.llm import ConfidenceCascadeLLM
from llamaindex_confcascade.measuring import Measured, MeasuredQuestion, ameasure, measure

__all__ = ["ConfidenceCascadeLLM", "Measured", "MeasuredQuestion", "RetrievalScore", "ameasure", "measure"]
