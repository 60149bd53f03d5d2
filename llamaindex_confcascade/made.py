"""LlamaIndex's values made of what is known to fit, without pydantic's looking at it again: that takes longer than all
else that is done to an answer."""

from __future__ import annotations

from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel

__all__ = ["copied", "made"]

M = TypeVar("M", bound=BaseModel)

# what an instance of a pydantic class is made of
_set_values, _set_told, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def made(kind: type[M], **values: Any) -> M:
    """An instance of a class without private attributes and fields beyond its own, as `model_construct` makes it.

    Args:
        kind: The class.
        values: Of all its fields, in their order, as they would be after validation.
    """
    instance = kind.__new__(kind)
    _set_values(instance, values)
    _set_told(instance, set(values))
    _set_extra(instance, None)
    _set_private(instance, None)
    return instance


def copied(message: ChatMessage) -> ChatMessage:
    """A message that may be changed without the other: its lists and mappings are copies, its blocks are the same."""
    changes = {"blocks": list(message.blocks), "additional_kwargs": dict(message.additional_kwargs)}
    if message.__pydantic_private__ is not None or message.__pydantic_extra__ is not None:
        return message.model_copy(update=changes)
    fresh = made(type(message), **{**vars(message), **changes})
    _set_told(fresh, message.model_fields_set | changes.keys())
    return fresh
