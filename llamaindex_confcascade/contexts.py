"""Streams that keep the context in which they were asked for: its traces, checks and spans."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import aclosing
from contextvars import copy_context
from typing import TypeVar

__all__ = ["ain_this_context", "in_this_context"]

T = TypeVar("T")


def in_this_context(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """`items`, each step of it run in a copy of the context of this call, whoever consumes them."""
    context = copy_context()

    def run() -> Generator[T, None, None]:
        try:
            while (item := context.run(next, items, None)) is not None:
                yield item
        finally:
            context.run(items.close)

    return run()


def ain_this_context(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """`in_this_context` for an asynchronous generator: whoever consumes it keeps a context of their own."""
    context, unset = copy_context(), object()

    async def run() -> AsyncIterator[T]:
        async with aclosing(items):  # type: ignore[type-var]  # an async generator
            while True:
                # for this step alone: it is the consumer's task that takes it
                changed = [(var, var.set(value)) for var, value in context.items() if var.get(unset) is not value]
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                finally:
                    for var, token in changed:
                        var.reset(token)
                yield item

    return run()
