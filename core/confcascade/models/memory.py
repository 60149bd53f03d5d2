"""A bound on the memory that the weights of local models take together, and who has them in memory when."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from confcascade.errors import ConfigurationError

__all__ = ["MemoryBound", "Weights", "gib"]

_log = logging.getLogger("confcascade")
_TURN_S = 2.0  # what a model is sure of once it is loaded, or as long as its loading took, if that is longer
_IDLE_S = 0.05  # after so long without a question, it gives way before its turn is over
_PREFILL_S = 1.0  # after so long, prompts that it has read and nobody goes on from no longer keep it
_LOOK_S = 0.02  # how often it is looked whether somebody who waits can have what he waits for
_OFTEN = 5  # loads of what was taken off before, after which a warning says that the bound is too narrow


class Weights(Protocol):
    """What a model takes memory for."""

    name: str
    size: int  # bytes; an estimate before it was loaded

    def load(self) -> None:
        """Bring them into memory."""

    def unload(self) -> None:
        """Free the memory."""

    @property
    def open_prefills(self) -> int:
        """How many prompts have been read that somebody may go on from."""


@dataclass
class _Loaded:
    """Weights that are in memory."""

    since: float
    turn_s: float
    users: int = 0
    used: float = field(default_factory=time.monotonic)  # last


class MemoryBound:
    """Most memory for the weights of the models that are made with it, which are loaded when somebody asks them.

    Where a model does not fit beside those in memory, weights are taken off first: those whose last question is
    longest ago, of models that are at rest. A model that computes keeps its weights until it has answered whoever asked
    it before somebody began to wait; a model that others wait for takes no new questions once its turn is over, of two
    seconds or as long as its loading took. So nobody waits for ever, and loading takes at most about half of the time.

    What the models read and write, their KV caches, comes on top, as do the beginnings of prompts that each keeps while
    it is loaded (`prefix_cache_mb`).

    Args:
        gib: In GiB; by default there is no bound.

    Raises:
        ConfigurationError: If that is not a number above 0.
    """

    def __init__(self, gib: float = math.inf) -> None:
        if isinstance(gib, bool) or not isinstance(gib, int | float) or not gib > 0:
            raise ConfigurationError(f"A bound on memory must be a number of GiB above 0. Got {gib!r}.")
        self.gib = gib
        self._most = gib * 2**30
        self._changed = threading.Condition()
        self._in_memory: WeakKeyDictionary[Weights, _Loaded] = WeakKeyDictionary()  # of models that are still there
        self._waiting: dict[Weights, list[Future[None]]] = {}  # in the order in which their first came
        self._loader: threading.Thread | None = None
        self._unloads: WeakKeyDictionary[Weights, int] = WeakKeyDictionary()  # how often
        self._warned = False

    def __repr__(self) -> str:
        return f"MemoryBound({self.gib:g})"

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the models in memory, the one that was asked last at the end."""
        with self._changed:
            return tuple(weights.name for weights, _ in sorted(self._in_memory.items(), key=lambda each: each[1].used))

    def check_fits(self, weights: Weights) -> None:
        """Refuse what could never be loaded.

        Raises:
            ConfigurationError: If it does not fit into the bound.
        """
        if weights.size > self._most:
            raise ConfigurationError(
                f"Model '{weights.name}' takes {gib(weights.size)}, more than the bound of {self.gib:g} GiB. Raise the "
                "bound, or load it in fewer bits."
            )

    def acquire(self, weights: Weights, *, goes_on: bool = False) -> Future[None]:
        """Have weights in memory, from when the result is there until it is given to `release`.

        Args:
            weights: Whose.
            goes_on: Whether it is to go on from a prompt that the model has read.

        Returns:
            None, or the error of loading.
        """
        room: Future[None] = Future()
        with self._changed:
            loaded = self._in_memory.get(weights)
            if loaded is None or not (goes_on or self._is_open(weights, loaded)):
                self._waiting.setdefault(weights, []).append(room)
                if self._loader is None or not self._loader.is_alive():
                    self._loader = threading.Thread(target=self._load_and_unload, name="loads local models")
                    self._loader.start()
                self._changed.notify()
                return room
            self._begin(loaded)
        room.set_result(None)
        return room

    def release(self, weights: Weights, room: Future[None]) -> None:
        """Need weights no more, or wait for them no more."""
        if room.cancel() or room.exception() is not None:
            return
        with self._changed:
            if (loaded := self._in_memory.get(weights)) is not None:
                loaded.users -= 1
                loaded.used = time.monotonic()
            self._changed.notify()

    @staticmethod
    def _begin(loaded: _Loaded) -> None:
        loaded.users += 1
        loaded.used = time.monotonic()

    # ------------------------------------------------------------------ who has to wait, and who gives way

    def _is_open(self, weights: Weights, loaded: _Loaded) -> bool:
        """Whether new questions are taken: nobody waits for the room, or its turn is not over."""
        wanted = next((each for each in self._waiting if each not in self._in_memory), None)
        return wanted is None or not _is_over(loaded) or weights not in self._to_unload(wanted)

    def _to_unload(self, wanted: Weights) -> list[Weights]:
        """What is to be taken off before it is loaded: what is at rest, and was used longest ago, before all else."""
        in_memory = list(self._in_memory.items())
        missing = wanted.size + sum(each.size for each, _ in in_memory) - self._most
        found = []
        for weights, _ in sorted(in_memory, key=lambda each: (not self._is_at_rest(*each), each[1].used)):
            if missing <= 0:
                break
            found.append(weights)
            missing -= weights.size
        return found

    def _is_at_rest(self, weights: Weights, loaded: _Loaded) -> bool:
        """Whether it may be taken off. What was read stays valid without the weights, and so cannot keep them long."""
        idle_s = time.monotonic() - loaded.used
        if loaded.users or (idle_s < _PREFILL_S and weights.open_prefills):
            return False
        return idle_s >= _IDLE_S or _is_over(loaded)

    # ------------------------------------------------------------------ the keeper

    def _load_and_unload(self) -> None:
        """Load and take off, as long as somebody waits."""
        while True:
            with self._changed:
                while (plan := self._plan()) is None:
                    if not self._waiting:
                        self._loader = None
                        return
                    self._changed.wait(_LOOK_S)
                wanted, to_unload = plan
                for weights in to_unload:
                    del self._in_memory[weights]
            error = None
            for weights in to_unload:
                self._unload(weights, wanted)
            if wanted not in self._in_memory:
                error = self._load(wanted)
            for room in self._admitted(wanted):
                if error is None:
                    room.set_result(None)
                else:
                    room.set_exception(error)

    def _plan(self) -> tuple[Weights, list[Weights]] | None:
        """Who gets what they wait for, and what is taken off before; None if everybody has to wait."""
        for weights, rooms in list(self._waiting.items()):
            if all(room.cancelled() for room in rooms):
                del self._waiting[weights]
        for weights in self._waiting:
            if (loaded := self._in_memory.get(weights)) is not None and self._is_open(weights, loaded):
                return weights, []
        wanted = next((each for each in self._waiting if each not in self._in_memory), None)
        if wanted is None:
            return None
        to_unload = self._to_unload(wanted)
        ready = all(self._is_at_rest(each, self._in_memory[each]) for each in to_unload)
        return (wanted, to_unload) if ready else None

    def _unload(self, weights: Weights, wanted: Weights) -> None:
        _log.info("Model '%s' is taken out of memory, for '%s'.", weights.name, wanted.name)
        weights.unload()
        self._unloads[weights] = self._unloads.get(weights, 0) + 1

    def _load(self, weights: Weights) -> Exception | None:
        began = time.monotonic()
        try:
            weights.load()
        except Exception as error:
            return error
        took_s = time.monotonic() - began
        with self._changed:
            self._in_memory[weights] = _Loaded(time.monotonic(), max(_TURN_S, took_s))
        if self._unloads.get(weights, 0) >= _OFTEN and not self._warned:
            self._warned = True
            _log.warning(
                "Model '%s' was loaded again %d times: the models that are asked in turn do not fit into %g GiB "
                "together. Each load of it takes %.1f seconds.",
                weights.name,
                self._unloads[weights],
                self.gib,
                took_s,
            )
        return None

    def _admitted(self, weights: Weights) -> Iterator[Future[None]]:
        """Those that wait for weights, as far as they still do."""
        with self._changed:
            rooms = [room for room in self._waiting.pop(weights, ()) if room.set_running_or_notify_cancel()]
            if (loaded := self._in_memory.get(weights)) is not None:
                for _ in rooms:
                    self._begin(loaded)
        yield from rooms


def gib(size: int) -> str:
    """Bytes, in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _is_over(loaded: _Loaded) -> bool:
    return time.monotonic() - loaded.since >= loaded.turn_s
