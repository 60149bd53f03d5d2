"""Models that answer the asks of a cascade, and how a string becomes one."""

from __future__ import annotations

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError

__all__ = ["from_string"]


def from_string(model: str) -> LanguageModel:
    """A model from ``"local:NAME"`` (a folder or a name on the hub), ``"openai:NAME"`` or ``"bundled:SIZE"``.

    Raises:
        ConfigurationError: For any other string.
        MissingExtraError: If the extra that brings it is not installed.
    """
    provider, _, name = model.partition(":")
    if name and provider == "local":
        from confcascade.models.local import TransformersModel

        return TransformersModel.from_pretrained(name)
    if name and provider == "openai":
        from confcascade.models.openai import OpenAICompatibleModel

        return OpenAICompatibleModel(name)
    if name and provider == "bundled":
        from confcascade.models.bundled import bundled_model

        return bundled_model(name)
    raise ConfigurationError(
        f'A model string must be "bundled:SIZE", "local:FOLDER_OR_NAME" or "openai:NAME". Got "{model}". '
        "Any other model is passed as an object of its framework."
    )
