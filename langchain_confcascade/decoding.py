"""How a chat model is told to decode: what its class calls the settings, and which of them its client takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confcascade import ConfigurationError, Decoding
from confcascade.extending import is_openais
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.base import RunnableBindingBase

__all__ = ["ClientSettings", "own_settings"]

# what classes call the settings of decoding
_NAMES = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "seed": ("seed",),
}


def own_settings(chat: BaseChatModel, layers: Sequence[RunnableBindingBase[Any, Any]]) -> dict[str, Any]:
    """How a model is set to decode, where it says: what its class leaves unset, its provider decides."""
    bound = {key: value for layer in reversed(layers) for key, value in layer.kwargs.items()}
    fields = {**(getattr(chat, "model_kwargs", None) or {}), **vars(chat)}
    told = {**{key: value for key, value in fields.items() if value is not None}, **bound}
    return {name: next((told[key] for key in keys if key in told), None) for name, keys in _NAMES.items()}


class ClientSettings:
    """Settings as the client of a chat model takes them.

    OpenAI's client fails of a keyword that OpenAI's API does not have. Other servers behind it have them; for these,
    they go into its ``extra_body``.

    Args:
        chat: The model.
        layers: What is bound to it, the outermost first.
    """

    def __init__(self, chat: BaseChatModel, layers: Sequence[RunnableBindingBase[Any, Any]]) -> None:
        self._chat = chat
        self._layers = layers
        names = {cls.__name__ for cls in type(chat).__mro__}
        self._strange: tuple[str, ...] = ()
        if "BaseChatOpenAI" in names:
            responses_api = chat._use_responses_api({})  # type: ignore[attr-defined]
            self._strange = ("top_k", "seed") if responses_api else ("top_k",)
        self._azure = "AzureChatOpenAI" in names

    def check(self, model: str, decoding: Decoding) -> None:
        """Raise `ConfigurationError` if a stage's setting is none of the provider's, before each call fails of it."""
        strange = [name for name in self._strange if name in decoding.settings]
        if strange and self._is_openais:
            raise ConfigurationError(
                f"Stage '{model}' asks for {strange[0]}={decoding.settings[strange[0]]}, which the API of OpenAI that "
                f"it calls does not have. Leave it out of its `decoding`; top_p limits sampling there."
            )

    def for_the_client(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, what the client does not know in the body."""
        strange = {name: given[name] for name in self._strange if name in given}
        if not strange:
            return dict(given)
        own = self._chat._default_params  # type: ignore[attr-defined]
        bodies = [each.get("extra_body") for each in (given, *(layer.kwargs for layer in self._layers), own)]
        body: Mapping[str, Any] = next((each for each in bodies if each is not None), {})
        return {**{key: value for key, value in given.items() if key not in strange}, "extra_body": {**strange, **body}}

    @property
    def _is_openais(self) -> bool:
        client = getattr(self._chat, "root_client", None) or getattr(self._chat, "root_async_client", None)
        url = getattr(client, "base_url", None) or getattr(self._chat, "openai_api_base", None)
        return self._azure or is_openais(None if url is None else str(url))
