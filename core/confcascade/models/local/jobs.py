"""Asks that wait to be answered by a local model, and how callers of every kind wait for them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from confcascade.asks import Chunk, Generate, Prefill
from confcascade.models.base import Waiting
from confcascade.models.local.generation import GrowingAnswer
from confcascade.models.local.prompts import Prompt
from confcascade.models.local.runner import ModelRunner
from confcascade.types import Prefilled

__all__ = ["Job", "Submit", "aresults", "astreamed", "results", "streamed"]


@dataclass(eq=False)
class Job:
    """One ask, and whoever waits for its answer.

    Attributes:
        runner: Of the model that is asked.
        ask: It.
        given: The ask as it came.
        waiting: Of the call that it is part of, if any of its asks may be left.
        future: The answer's; cancelled by somebody who does not want it any more.
        emit: Takes the chunks of an answer that is streamed.
        prompt: Once it has been rendered.
        row: The answer, once it grows.
        alone: It was in a pass that failed, and shares no other.
        shown: Whether a chunk has been emitted.
    """

    runner: ModelRunner
    ask: Prefill | Generate
    given: Prefill | Generate
    waiting: Waiting | None
    future: Future[Any] = field(default_factory=Future)
    emit: Callable[[Chunk], None] | None = None
    prompt: Prompt | None = None
    row: GrowingAnswer | None = None
    alone: bool = False
    shown: bool = False

    @property
    def continues(self) -> bool:
        """Whether it goes on from a prompt that has been read."""
        return isinstance(self.ask, Generate) and self.ask.prefilled is not None

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        if self.future.cancelled():
            return False
        return self.waiting is None or not self.waiting.is_left or self.waiting.wants(self.given)

    def end(self, value: Any) -> None:
        """Hand over a value, or an error as a value."""
        try:
            self.future.set_result(value)
        except InvalidStateError:  # cancelled
            if isinstance(value, Prefilled):
                value.close()


Submit: TypeAlias = Callable[[Job], None]  # lets a job wait its turn; returns at once


def results(jobs: Sequence[Job], submit: Submit) -> list[Any]:
    """The answers to jobs, in their order."""
    with _wanting(jobs):
        for job in jobs:
            submit(job)
        return [job.future.result() for job in jobs]


async def aresults(jobs: Sequence[Job], submit: Submit) -> list[Any]:
    """`results`, without blocking the event loop."""
    with _wanting(jobs):
        futures = []
        for job in jobs:
            submit(job)
            futures.append(asyncio.wrap_future(job.future))
        return [await future for future in futures]


def streamed(job: Job, submit: Submit) -> Iterator[Any]:
    """The chunks of one answer, and last the answer."""
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    job.emit = items.put
    job.future.add_done_callback(lambda _: items.put(_END))
    with _wanting([job]):
        submit(job)
        while (item := items.get()) is not _END:
            yield item
        yield _raised(job.future.result())


async def astreamed(job: Job, submit: Submit) -> AsyncIterator[Any]:
    """`streamed`, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[Any] = asyncio.Queue()

    def put(item: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(items.put_nowait, item)

    job.emit = put
    job.future.add_done_callback(lambda _: put(_END))
    with _wanting([job]):
        submit(job)
        while (item := await items.get()) is not _END:
            yield item
        yield _raised(job.future.result())


_END = object()


@contextmanager
def _wanting(jobs: Sequence[Job]) -> Iterator[None]:
    """Wait for jobs; if that is left early, they end, and nothing that they hold is kept."""
    try:
        yield
    except BaseException:
        for job in jobs:
            if not job.future.cancel() and isinstance(value := job.future.result(), Prefilled):
                value.close()
        raise


def _raised(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value
