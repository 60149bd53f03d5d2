"""Confidence cascades as a LangChain chat model."""

from langchain_confcascade.chat_model import ConfidenceCascadeLLM

__all__ = ["ConfidenceCascadeLLM"]
