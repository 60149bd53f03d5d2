"""Models that answer the asks of a cascade, and how a string becomes one."""

from __future__ import annotations

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError
from confcascade.models.gguf import is_gguf

__all__ = ["from_string"]


def from_string(model: str) -> LanguageModel:
    """A model from its kind and its name.

    ``"local:PLACE"`` (a folder, a GGUF file, a PEFT adapter's folder, or a name on the hub), ``"llamacpp:FILE.gguf"``,
    ``"openai:NAME"`` or ``"bundled:SIZE"``.

    Raises:
        ConfigurationError: For any other string.
        MissingExtraError: If the extra that brings it is not installed.
    """
    provider, _, name = model.partition(":")
    if name and provider == "local":
        from confcascade.models.local import TransformersModel

        return TransformersModel.from_pretrained(name)
    if name and provider == "llamacpp":
        from confcascade.models.llamacpp import LlamaCppModel

        return LlamaCppModel(name)
    if name and provider == "openai":
        from confcascade.models.openai import OpenAICompatibleModel

        return OpenAICompatibleModel(name)
    if name and provider == "bundled":
        from confcascade.models.bundled import bundled_model

        return bundled_model(name)
    hint = f' Did you mean "llamacpp:{model}" or "local:{model}"?' if is_gguf(model) else ""
    raise ConfigurationError(
        'A model string must be "bundled:SIZE", "local:FOLDER_OR_NAME", "llamacpp:FILE.gguf" or "openai:NAME". '
        f'Got "{model}".{hint} Any other model is passed as an object of its framework.'
    )
