"""How an LLM is told to decode: what its class calls the settings, and which of them come through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcascade import ConfigurationError, Decoding
from confcascade.extending import is_openais
from llama_index.core.llms.llm import LLM

__all__ = ["ClientSettings", "own_settings"]

# what LLMs call the settings of decoding
_NAMES = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_completion_tokens", "num_predict", "max_new_tokens"),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "seed": ("seed",),
}


def own_settings(llm: LLM) -> dict[str, Any]:
    """How an LLM is set to decode, where it says."""
    fields = {**vars(llm), **_additional(llm)}
    told = {key: value for key, value in fields.items() if value is not None}
    return {name: next((told[key] for key in keys if key in told), None) for name, keys in _NAMES.items()}


def _additional(llm: LLM) -> Mapping[str, Any]:
    return getattr(llm, "additional_kwargs", None) or {}


class ClientSettings:
    """Settings as the client of an LLM takes them.

    OpenAI's client fails of a keyword that OpenAI's API does not have. Other servers behind it have them; for these,
    they go into its ``extra_body``.

    Args:
        llm: It.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        ancestors = {cls.__name__ for cls in type(llm).__mro__}
        self._responses = "OpenAIResponses" in ancestors
        self._openai = not ancestors.isdisjoint({"OpenAI", "OpenAILike"})
        self._azure = "AzureOpenAI" in ancestors
        self._strange = ("top_k", "seed") if self._responses else ("top_k",) if self._openai else ()

    def check(self, model: str, decoding: Decoding) -> None:
        """Raise `ConfigurationError` if a setting of a stage does not come through.

        That is, if it is none of the provider's, so each call would fail of it; or if the LLM's own is sent instead.
        """
        settings = decoding.settings
        strange = [name for name in self._strange if name in settings]
        if strange and self._is_openais:
            raise ConfigurationError(
                f"Stage '{model}' asks for {strange[0]}={settings[strange[0]]}, which the API of OpenAI that it calls "
                f"does not have. Leave it out of its `decoding`; top_p limits sampling there."
            )
        for name, value in settings.items() if self._openai else ():
            own = self._sent_instead(name, value)
            if own is not None:
                raise ConfigurationError(
                    f"Stage '{model}' asks for {name}={value}, and its LLM has {own}, which LlamaIndex sends instead "
                    "of what a call asks for. Take it out of the LLM, or out of the stage's `decoding`."
                )

    def _sent_instead(self, name: str, value: Any) -> str | None:
        """What LlamaIndex's OpenAI puts over a call's own setting: its `additional_kwargs`, and its `max_tokens`."""
        additional = _additional(self._llm)
        for key in _NAMES[name]:
            if key in additional and (key != name or name in self._strange or additional[key] != value):
                return f"{key}={additional[key]} in its `additional_kwargs`"
        if name in self._strange and (additional.get("extra_body") or {name: value}).get(name) != value:
            return "an `extra_body` in its `additional_kwargs`"
        limit = getattr(self._llm, "max_tokens", None)
        return f"max_tokens={limit}" if name == "max_tokens" and limit not in (None, value) else None

    def for_the_client(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, under the client's names, and what it does not know in the body."""
        if not self._strange:
            return dict(given)
        sent = {key: value for key, value in given.items() if key not in self._strange}
        if self._responses and "max_tokens" in sent:
            sent = {"max_output_tokens": sent.pop("max_tokens"), **sent}
        if strange := {name: given[name] for name in self._strange if name in given}:
            sent["extra_body"] = {**strange, **(_additional(self._llm).get("extra_body") or {}), **_body(given)}
        return sent

    @property
    def _is_openais(self) -> bool:
        url = getattr(self._llm, "api_base", None)
        return self._azure or is_openais(None if url is None else str(url))


def _body(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return given.get("extra_body") or {}
