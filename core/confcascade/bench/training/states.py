"""What a model's blocks make of prompts, read once and kept: hidden states at several depths of one forward pass.

They are kept in shards, safetensors files that are written whole and never touched again, so that reading goes on where
it was killed, and another kind of probe can be trained without the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from confcascade.asks import LanguageModel, Prefill
from confcascade.errors import ConfigurationError
from confcascade.signals.knowledge_probe import fingerprint_of
from confcascade.types import Prefilled, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StateCache", "key_of", "read_states"]

FORMAT = 1
_SHARD_ROWS = 1024  # and at the latest
_SHARD_S = 20.0  # seconds of reading, which is what a kill can lose
_AT_ONCE = 16  # calls of a server
_OF_THE_PROMPT = (400, 413, 422)  # what a server answers to one that it cannot read, because it is too long, say


def key_of(request: Request) -> str:
    """By which a prompt's states are kept: a hash of its messages."""
    told = json.dumps([(message.role, message.content) for message in request.messages])
    return hashlib.sha256(told.encode()).hexdigest()[:24]


class StateCache:
    """Hidden states of one model's prompts, in a folder; one writer at a time.

    Args:
        folder: Made if missing; shards that lie there are gone on with.
        model: Whose states they are.
        layers: Blocks, counted from 1.

    Attributes:
        layers: Blocks, counted from 1, in the order of the states' second axis.

    Raises:
        ConfigurationError: If the folder holds states of another model or other blocks, or a damaged file.
    """

    def __init__(self, folder: str | Path, model: LanguageModel, layers: Sequence[int]) -> None:
        self.folder = Path(folder)
        self.layers = tuple(layers)
        self._size = model.capability.hidden_size
        self._places: dict[str, tuple[Path, int]] = {}
        identity = {"format": FORMAT, "model": fingerprint_of(model), "layers": list(layers), "size": self._size}
        if model.capability.engine:
            identity |= {"engine": model.capability.engine, "normalised": model.capability.normalised}
        self._bind(identity)
        for path in sorted(self.folder.glob("*.safetensors")):
            self._places.update({key: (path, row) for row, key in enumerate(self._keys(path))})

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def append(self, keys: Sequence[str], states: NDArray[np.float32]) -> None:
        """Keep states of shape (n, layers, hidden_size) as a shard; it is there whole, or not at all."""
        from safetensors.numpy import save_file

        named = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        path = self.folder / f"{named}.safetensors"
        beside = path.with_suffix(f".{os.getpid()}.new")
        save_file({"states": np.ascontiguousarray(states)}, beside, {"keys": json.dumps(list(keys))})
        os.replace(beside, path)
        self._places.update({key: (path, row) for row, key in enumerate(keys)})

    def read(self, keys: Sequence[str], layer: int) -> NDArray[np.float32]:
        """The states after block `layer`, shape (n, hidden_size), in the order of `keys`."""
        from safetensors import safe_open

        found = np.empty((len(keys), self._size), np.float32)
        at: dict[Path, list[tuple[int, int]]] = {}
        for i, key in enumerate(keys):
            path, row = self._places[key]
            at.setdefault(path, []).append((i, row))
        for path, places in at.items():
            with safe_open(path, framework="numpy") as shard:
                states = shard.get_slice("states")[:, self.layers.index(layer), :]
            here, there = zip(*places, strict=True)
            found[list(here)] = states[list(there)]
        return found

    def _bind(self, identity: Mapping[str, Any]) -> None:
        path = self.folder / "states.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(identity) + "\n")
            return
        try:
            known = json.loads(path.read_text())
        except ValueError:
            known = None
        if known != identity:
            raise ConfigurationError(
                f"'{self.folder}' holds hidden states of another model or other depths. Train into another folder, or "
                "remove that one."
            )

    @staticmethod
    def _keys(path: Path) -> list[str]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as shard:
                keys: list[str] = json.loads(shard.metadata()["keys"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"'{path}' holds no hidden states; remove it, and they are read again.") from error
        return keys


def read_states(
    model: LanguageModel,
    requests: Sequence[Request],
    cache: StateCache,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, str]:
    """Have `model` read the prompts whose states the cache lacks, all blocks in one pass, longest prompts first.

    A server is asked for several at a time.

    Args:
        model: With hidden states.
        requests: Prompts.
        cache: Where states are kept.
        progress: Called with how many prompts are read, and how many there are.
        stop: Once set, what was read is kept and no more is read.

    Returns:
        Why states are missing, by `key_of` a prompt: those the model could not read, or whose states are not finite.

    Raises:
        Exception: The model's, if it fails whatever it is asked to read; what was read is kept.
    """
    wanted = {key_of(request): request for request in requests}
    todo = [key for key in wanted if key not in cache]
    todo.sort(key=lambda key: -sum(len(message.content) for message in wanted[key].messages))
    problems: dict[str, str] = {}
    shard: dict[str, NDArray[np.float32]] = {}
    done, began = len(wanted) - len(todo), time.monotonic()

    def keep() -> None:
        nonlocal began
        if shard:
            cache.append(list(shard), np.stack(list(shard.values())))
        shard.clear()
        began = time.monotonic()

    size = _AT_ONCE if model.capability.engine else max(1, model.capability.batch_size)
    try:
        for start in range(0, len(todo), size):
            if stop is not None and stop.is_set():
                break
            keys = todo[start : start + size]
            answers = _answers(model, [Prefill(model, wanted[key], cache.layers) for key in keys])
            for key, answer in zip(keys, answers, strict=True):
                if not isinstance(answer, Prefilled):
                    problems[key] = f"{type(answer).__name__}: {answer}"
                    continue
                if missing := [layer for layer in cache.layers if layer not in answer.hidden_states]:
                    problems[key] = f"the hidden state of block {missing[0]} was not given"
                    continue
                states = np.stack([np.asarray(answer.hidden_states[layer], np.float32) for layer in cache.layers])
                answer.close()
                if np.isfinite(states).all():
                    shard[key] = states
                else:  # an overflow in half precision, say
                    problems[key] = "its hidden states are not finite"
            done += len(keys)
            if len(shard) >= _SHARD_ROWS or time.monotonic() - began >= _SHARD_S:
                keep()
            if progress is not None:
                progress(done, len(wanted))
    finally:  # where the model fails, too
        keep()
    return problems


def _answers(model: LanguageModel, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
    """What the model makes of the prompts: in one pass, or of a server, each in a call of its own, side by side."""
    if not model.capability.engine:
        return model.prefill(asks)

    def one(ask: Prefill) -> Prefilled | Exception:
        try:
            (answer,) = model.prefill([ask])
        except Exception as error:
            return error
        return answer

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="confcascade") as pool:
        answers = list(pool.map(one, asks))
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if len(errors) == len(answers) and not any(getattr(e, "status_code", None) in _OF_THE_PROMPT for e in errors):
        raise errors[0]
    return answers
