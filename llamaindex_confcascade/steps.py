"""Streams whose every step runs with a context variable set, whoever reads them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["asteps_with", "holding", "steps_with"]

T = TypeVar("T")
V = TypeVar("V")

_END: Any = object()


@contextmanager
def holding(variable: ContextVar[V], value: V) -> Iterator[None]:
    """Sets `variable` to `value` for a block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def steps_with(variable: ContextVar[V], value: V, items: Generator[T, None, None]) -> Generator[T, None, None]:
    """`items`, with `variable` set for each step and for the closing; in between, the reader's own value holds."""
    try:
        while True:
            token = variable.set(value)
            try:
                item = next(items, _END)
            finally:
                variable.reset(token)
            if item is _END:
                return
            yield item
    finally:
        with holding(variable, value):
            items.close()


async def asteps_with(variable: ContextVar[V], value: V, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`steps_with`, asynchronously."""
    try:
        while True:
            token = variable.set(value)
            try:
                item = await anext(items, _END)
            finally:
                variable.reset(token)
            if item is _END:
                return
            yield item
    finally:
        with holding(variable, value):
            await items.aclose()
