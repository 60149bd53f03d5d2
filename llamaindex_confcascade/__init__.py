"""Confidence cascades for LlamaIndex: `ConfidenceCascadeLLM` stands wherever an LLM does."""

from confcascade import RetrievalScore

from llamaindex_confcascade.llm import ConfidenceCascadeLLM

__all__ = ["ConfidenceCascadeLLM", "RetrievalScore"]
