"""One thread for each device, in which local models compute whatever anybody asks of them.

Threads of their own would fight for the same cores. Here, asks that come one by one, from threads and from tasks of
event loops, wait in one place, and so can share passes.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, ClassVar, Protocol, TypeVar

from confcascade.errors import ModelError

__all__ = ["Work", "Worker", "in_own_thread"]

_log = logging.getLogger("confcascade")
T = TypeVar("T")
_IDLE_S = 60.0  # after so long without work, the thread ends


def in_own_thread(function: Callable[[], T]) -> T:
    """What a function returns, called in a thread that ends with it.

    PyTorch keeps a pool of threads for each thread that has ever computed, and while there are two of them, both wait
    at their barriers in another way: a model loaded in the main thread answered at two thirds of its speed.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="loading a local model", daemon=True)
    thread.start()
    try:
        return future.result()
    finally:
        thread.join()


class Work(Protocol):
    """What a worker does for one model, step by step."""

    def take(self, job: Any) -> None:
        """One more job."""

    def step(self) -> bool:
        """One pass of the model, or less. Returns whether something is left to do."""

    def fail(self, error: BaseException) -> None:
        """End all that is left to do with an error."""


class Worker:
    """Takes turns among the works that have something to do, one step each.

    Threads are made when there is something to do, and end when there has been nothing for a minute.
    """

    _of: ClassVar[dict[str, Worker]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, device: str) -> None:
        self._device = device
        self._changed = threading.Condition()
        self._inbox: deque[tuple[Work, Any]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._intra_op: int | None = None

    @classmethod
    def of(cls, device: Any) -> Worker:
        """That of a device."""
        with cls._lock:
            return cls._of.setdefault(str(device), cls(str(device)))

    def submit(self, work: Work, job: Any) -> None:
        """Let `work` take a job; returns at once.

        Raises:
            ModelError: From the worker's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise ModelError("A local model was asked from within a local model's pass, such as from a watch.")
        self._copy_thread_count()
        with self._changed:
            self._inbox.append((work, job))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"local models on {self._device}", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _copy_thread_count(self) -> None:
        """Compute with as many threads as whoever asks: PyTorch keeps that number for each thread."""
        import torch

        self._intra_op = torch.get_num_threads()

    def _run(self) -> None:
        works: dict[int, Work] = {}
        while self._take_jobs(works):
            for key in list(works):
                if not _step(works[key]):
                    del works[key]

    def _take_jobs(self, works: dict[int, Work]) -> bool:
        """Hand out what has come; waits if there is nothing else to do. False if the thread is to end."""
        import torch

        with self._changed:
            while not self._inbox and not works and not self._stopping:
                if not self._changed.wait(_IDLE_S) and not self._inbox:
                    self._thread = None
                    return False
            if self._stopping:
                return False
            jobs, self._inbox = self._inbox, deque()
        if self._intra_op is not None and torch.get_num_threads() != self._intra_op:
            torch.set_num_threads(self._intra_op)
        for work, job in jobs:
            works[id(work)] = work
            work.take(job)
        return True

    def stop(self) -> None:
        """End after the step under way: a thread that computes while the interpreter goes down would crash it."""
        with self._changed:
            self._stopping = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @classmethod
    def _stop_all(cls) -> None:
        for worker in cls._of.values():
            worker.stop()

    @classmethod
    def _forked(cls) -> None:
        """A child process has none of the threads."""
        cls._lock = threading.Lock()
        cls._of.clear()


def _step(work: Work) -> bool:
    """A step; whether another is to follow."""
    try:
        return work.step()
    except BaseException as error:  # whoever waits must not wait for ever
        _log.exception("A local model's step failed.")
        work.fail(error)
        return False


atexit.register(Worker._stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Worker._forked)
