"""What a user gives as models and stages, as the core takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from confcascade import ConfigurationError
from confcascade.extending import LanguageModel
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.huggingface import HuggingFaceModel
from llamaindex_confcascade.model import LlamaIndexModel

__all__ = ["wrapping"]


def wrapping() -> Callable[[Any], Any]:
    """What makes a model of each stage in turn: `_wrapped`, with different names for models of one name."""
    seen: Counter[str] = Counter()

    def wrap(model: Any) -> Any:
        made = _wrapped(model)
        if not isinstance(made, LanguageModel):  # for the core to judge
            return made
        name = made.name
        seen[name] += 1
        # a record says by name who answered; a name that the user chose stays
        if seen[name] > 1 and made is not model:
            return _wrapped(model, name=f"{name} ({seen[name]})")
        return made

    return wrap


def _wrapped(model: Any, name: str = "") -> Any:
    """A model as the core knows models; `name` replaces the LLM's own.

    Raises:
        ConfigurationError: If it is one of LangChain's.
    """
    if isinstance(model, LLM):
        return HuggingFaceModel(model, name) if HuggingFaceModel.takes(model) else LlamaIndexModel(model, name)
    origins = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if not isinstance(model, LanguageModel) and any(origin.startswith("langchain") for origin in origins):
        raise ConfigurationError(
            f"{type(model).__name__} is a model of LangChain; use langchain_confcascade.ConfidenceCascadeLLM, "
            "or give its LlamaIndex counterpart."
        )
    return model
