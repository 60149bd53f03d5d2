"""LlamaIndex's values made and read without what pydantic does for others: to look again at what is known to fit takes
longer than all else that is done to an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import repeat
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.bridge.pydantic import BaseModel

__all__ = ["copied", "is_plain", "made", "made_all", "text_of"]

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


def made_all(kind: type[M], values: Sequence[dict[str, Any]]) -> list[M]:
    """`made`, of many: the loops are not Python's."""
    instances = list(map(kind.__new__, repeat(kind, len(values))))
    _each(_set_values, instances, values)
    _each(_set_told, instances, map(set, values))
    _each(_set_extra, instances, repeat(None))
    _each(_set_private, instances, repeat(None))
    return instances


def _each(setter: Any, instances: Iterable[Any], values: Iterable[Any]) -> None:
    deque(map(setter, instances, values), maxlen=0)


def _same(one: M) -> M:
    """A shallow copy, as `model_copy` makes it."""
    kind = type(one)
    if one.__pydantic_private__ is not None or one.__pydantic_extra__ is not None or _copies_itself(kind):
        return one.model_copy()
    fresh = kind.__new__(kind)
    _set_values(fresh, one.__dict__.copy())
    _set_told(fresh, one.__pydantic_fields_set__.copy())
    _set_extra(fresh, None)
    _set_private(fresh, None)
    return fresh


@cache
def _copies_itself(kind: type[BaseModel]) -> bool:
    """Whether a class says itself how it is copied."""
    return kind.model_copy is not BaseModel.model_copy or kind.__copy__ is not BaseModel.__copy__


def copied(message: ChatMessage, *, blocks: bool = False) -> ChatMessage:
    """A message that may be changed without the other: its lists and mappings are copies.

    Args:
        message: It.
        blocks: Whether its blocks are copies, too.
    """
    fresh = _same(message)
    values = fresh.__dict__
    values["blocks"] = [_same(block) for block in message.blocks] if blocks else message.blocks.copy()
    values["additional_kwargs"] = dict(message.additional_kwargs)
    return fresh


def is_plain(message: ChatMessage) -> bool:
    """Whether it is nothing but text."""
    for block in message.blocks:  # noqa: SIM110  # as a generator it takes three times as long, several times a call
        if type(block) is not TextBlock:
            return False
    return True


def text_of(message: ChatMessage) -> str:
    """Its `content`; "" where that is None."""
    if type(message) is ChatMessage and len(message.blocks) == 1 and type(block := message.blocks[0]) is TextBlock:
        return block.text
    return message.content or ""
