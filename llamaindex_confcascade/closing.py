"""Streams that are left before their end, closed together with the HTTP responses that they read.

A generator that is closed lets go of what it reads, and most of it closes itself by that. The `Stream` of openai's
client, and of others of its make, does not: it and its own generator hold each other, so its response stays open until
Python's garbage collector finds the two. The server writes on until then, and a collector that comes by while the
thread holds the connection pool's lock closes the response there, waiting for that lock for ever.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from types import CellType
from typing import Any

__all__ = ["aclose", "close"]


def close(items: Iterator[Any]) -> None:
    """Close a stream, and the responses that it still reads."""
    clients = _clients_of(items)
    if callable(method := getattr(items, "close", None)):  # a user's own may be any iterator
        method()
    for client in clients:
        client.close()


async def aclose(items: AsyncIterator[Any] | None) -> None:
    """`close`, of an asynchronous stream; None is one that never began."""
    clients = _clients_of(items)
    if callable(method := getattr(items, "aclose", None)):
        await method()
    for client in clients:
        await client.close()


def _clients_of(items: Any) -> list[Any]:
    """The streams of clients that a suspended stream reads from, and whose responses are open.

    What a generator iterates over lies on its stack, which only the collector's own view of it shows. Looking there
    takes microseconds; nothing is collected.
    """
    found, seen, left = [], set[int](), [items]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if getattr(getattr(each, "response", None), "is_closed", None) is False and hasattr(each, "close"):
            found.append(each)
        else:
            held = [*gc.get_referents(each), *getattr(each, "__dict__", {}).values()]
            left += (one for one in held if isinstance(one, CellType | Iterator | AsyncIterator))
    return found
