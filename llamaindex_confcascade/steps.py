"""Streams each of whose steps runs in a context of their own, or with one variable set, whoever reads them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

__all__ = ["ain_this_context", "asteps_with", "holding", "in_this_context", "steps_with"]

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


def steps_with(
    variable: ContextVar[V], value: V, items: Generator[T, None, None], over: Callable[[], object] = lambda: None
) -> Generator[T, None, None]:
    """`items`, with `variable` set for each step and for the closing; in between, the reader's own value holds.

    `over` is called once they are closed.
    """
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
        try:
            with holding(variable, value):
                items.close()
        finally:
            over()


async def asteps_with(
    variable: ContextVar[V], value: V, items: AsyncGenerator[T, None], over: Callable[[], object] = lambda: None
) -> AsyncGenerator[T, None]:
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
        try:
            with holding(variable, value):
                await items.aclose()
        finally:
            over()


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
