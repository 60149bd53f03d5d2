"""Confidence cascades as a LangChain chat model."""

from langchain_confcascade.chat_model import ConfidenceCascadeLLM
from langchain_confcascade.model import LangChainModel

__all__ = ["ConfidenceCascadeLLM", "LangChainModel"]
