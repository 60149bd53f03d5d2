"""The profile of a cascade: what holds for all of its stages, for whoever plans by it (middleware, `create_agent`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confcascade.extending import LanguageModel
from langchain_core.language_models import ModelProfile

from langchain_confcascade.model import LangChainModel

__all__ = ["profile_of"]

# of which every stage must have enough
_LIMITS = ("max_input_tokens", "max_output_tokens")
# what is sent to every stage as it is: one that does not take it would refuse, or escalate, each query
_OF_ALL = ("structured_output", "temperature", "tool_call_streaming", "mid_conversation_system_messages")
# of the last stage, which answers what the others cannot: they are skipped, or their refusal escalates
_OF_LAST = (
    "tool_calling",
    "tool_choice",
    "attachment",
    *(f"{kind}_{way}" for kind in ("text", "image", "audio", "video") for way in ("inputs", "outputs")),
    *("image_url_inputs", "pdf_inputs", "image_tool_message", "pdf_tool_message"),
)


def profile_of(models: Sequence[LanguageModel], *, in_turn: bool = False) -> ModelProfile | None:
    """What is known of a cascade over `models`, smallest first; None if nothing is.

    Where they write `in_turn`, the last one alone gives structured output. Limits are the smallest that are known.
    What names or describes one of several models (its name, its release, how it reasons) is left out, and so is what
    not all of them say.
    """
    told = [_profile(model) for model in models]
    if len(told) == 1:
        return ModelProfile(**told[0]) if told[0] else None  # type: ignore[typeddict-item]
    profile: dict[str, Any] = {key: told[-1][key] for key in _OF_LAST if key in told[-1]}
    for key in _LIMITS:
        if known := [each[key] for each in told if isinstance(each.get(key), int)]:
            profile[key] = min(known)
    for key in _OF_ALL:
        if all(key in each for each in told):
            profile[key] = all(each[key] is True for each in told)
    if in_turn and "structured_output" in told[-1]:
        profile["structured_output"] = told[-1]["structured_output"]
    return ModelProfile(**profile) if profile else None  # type: ignore[typeddict-item]


def _profile(model: LanguageModel) -> Mapping[str, Any]:
    if isinstance(model, LangChainModel):
        return model.chat.profile or {}
    capability = model.capability
    told = {"structured_output": capability.structured, "tool_calling": capability.tools}
    window = capability.context_window
    return told if window is None else told | {"max_input_tokens": window}
