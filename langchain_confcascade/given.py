"""What a user gives as models and stages, as the core takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from confcascade import ConfigurationError, Stage, from_string
from confcascade.extending import LanguageModel
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.base import RunnableBindingBase

from langchain_confcascade.model import LangChainModel

__all__ = ["loaded", "wrapping"]

_CORES = ("openai:", "local:", "llamacpp:", "bundled:")


def _named(item: Any) -> bool:
    return isinstance(item.model if isinstance(item, Stage) else item, str)


def loaded(given: Any) -> Any:
    """`models` or `stages` with models instead of strings: a copy of the cascade must not load them again."""
    if isinstance(given, BaseChatModel | LanguageModel | Stage):
        raise ConfigurationError(
            f"`models` and `stages` must be lists, smallest first. Got one {type(given).__name__}."
        )
    if not isinstance(given, list | tuple) or not any(map(_named, given)):
        return given  # as it is, for the core to judge
    return [
        _of_string(item)
        if isinstance(item, str)
        else replace(item, model=_of_string(item.model))
        if isinstance(item, Stage) and isinstance(item.model, str)
        else item
        for item in given
    ]


def _of_string(model: str) -> Any:
    """The core's models by its own prefixes, all others as LangChain's `init_chat_model` reads them."""
    if not model or model.startswith(_CORES):
        return from_string(model)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise ConfigurationError(
            f'"{model}" names a model in LangChain\'s way, which the package `langchain` reads: pip install langchain. '
            f"Without it, a string must begin with {', '.join(_CORES)}."
        ) from error
    try:
        return init_chat_model(model)
    except ImportError as error:  # which names the package and its pip command
        raise ConfigurationError(f'"{model}" cannot be loaded: {error}') from error
    except ValueError as error:
        if type(error) is not ValueError:  # of the model's own class
            raise
        raise ConfigurationError(
            f"A model string must begin with {', '.join(_CORES)}, or be one that LangChain's `init_chat_model` reads, "
            f'such as "anthropic:claude-haiku-4-5". Got "{model}".'
        ) from error


def wrapping() -> Callable[[Any], LanguageModel]:
    """What makes a model of each stage in turn: `wrapped`, with different names for models of one name."""
    seen: Counter[str] = Counter()

    def wrap(model: Any) -> LanguageModel:
        made = wrapped(model)
        name = made.name
        seen[name] += 1
        # a record says by name who answered; a name that the user chose stays
        if seen[name] > 1 and isinstance(made, LangChainModel) and made is not model:
            return LangChainModel(made.native, name=f"{name} ({seen[name]})")
        return made

    return wrap


def wrapped(model: Any) -> LanguageModel:
    """A model as the core knows models.

    Raises:
        ConfigurationError: If it is neither one of LangChain's nor one of the core's.
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
        "A stage's model must be a LangChain chat model (`bind` and `with_retry` too), a LanguageModel or a string "
        f'such as "anthropic:claude-haiku-4-5", as `init_chat_model` takes them. Got {kind.__name__}.'
    )
