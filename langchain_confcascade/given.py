"""What a user gives as models and stages, as the core takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from confcascade import ConfigurationError, Stage, from_string
from confcascade.extending import LanguageModel
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.base import RunnableBindingBase

from langchain_confcascade.model import LangChainModel

__all__ = ["loaded", "wrapped"]


def _named(item: Any) -> bool:
    return isinstance(item.model if isinstance(item, Stage) else item, str)


def loaded(given: Any) -> Any:
    """`models` or `stages` with models in the place of strings: a copy of the cascade must not load them again."""
    if isinstance(given, BaseChatModel | LanguageModel | Stage):
        raise ConfigurationError(
            f"`models` and `stages` must be lists, smallest first. Got one {type(given).__name__}."
        )
    if not isinstance(given, list | tuple) or not any(map(_named, given)):
        return given  # as it is, for the core to judge
    return [
        from_string(item)
        if isinstance(item, str)
        else replace(item, model=from_string(item.model))
        if isinstance(item, Stage) and isinstance(item.model, str)
        else item
        for item in given
    ]


def wrapped(model: Any) -> LanguageModel:
    """A model as the core knows models.

    Raises:
        ConfigurationError: If it is none of LangChain's, nor one of the core's.
    """
    if isinstance(model, BaseChatModel | RunnableBindingBase):
        return LangChainModel(model)
    if isinstance(model, LanguageModel):
        return model
    kind = type(model)
    if any(cls.__module__.startswith("llama_index.") for cls in kind.__mro__):
        raise ConfigurationError(
            f"{kind.__name__} is a model of LlamaIndex: use llamaindex_confcascade.ConfidenceCascadeLLM, "
            "or LangChain's class for the same model."
        )
    raise ConfigurationError(
        f"A stage's model must be a LangChain chat model, a LanguageModel or a string. Got {kind.__name__}."
    )
