"""The hidden state of a prompt's last token, as a server gives it beside an answer.

- SGLang, started with ``--enable-return-hidden-states``, takes ``return_hidden_states: "last"`` (since v0.5.17,
  sgl-project/sglang#30177) and gives, in ``choices[0].hidden_states``, the last block's state at the position that it
  computed last, as a list of numbers: behind the final norm, for it is what the output layer reads. Of an answer of one
  token that position is the prompt's last token; of a longer one it is not.
- vLLM, started with the speculative method ``extract_hidden_states`` and the ``ExampleHiddenStatesConnector``, writes a
  safetensors file for every request and names it in ``kv_transfer_params["hidden_states_path"]``: ``hidden_states`` of
  shape (tokens of the prompt, blocks, hidden size), before any final norm, and ``token_ids`` of shape (tokens,). A
  block's id is its number counted from 1. While a file is being written, a lock is held on the file beside it that ends
  in ``.lock`` (its ``docs/features/speculative_decoding/extract_hidden_states.md`` and the connector's own reader).
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, get_args

from confcascade.asks import Capability
from confcascade.cost import Architecture
from confcascade.errors import ModelError, kept_of, status_of
from confcascade.types import Request, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "ServedStates", "engine_problem"]

Engine: TypeAlias = Literal["sglang", "vllm"]

_SUFFIX = ".safetensors"
_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16
_LONGEST_HEADER = 1 << 20  # bytes; those of two tensors take 200
_PAUSE_S = 0.002
_MOST_UNWRITTEN = 1000
_REFUSED = (400, 422)
_OF_STATES = re.compile(r"hidden[_ -]?states", re.I)


def engine_problem(engine: Any, layers: Any, folder: Any, architecture: Architecture | None) -> tuple[str, str] | None:
    """Which setting cannot be how a server gives hidden states, and why; None if all can.

    Args:
        engine: "sglang" or "vllm", or None.
        layers: Of vLLM, the ids of blocks that it was started with.
        folder: Of vLLM, where its files are seen.
        architecture: Of the model, which tells how many blocks it has, and their dimension.
    """
    if engine is None:
        for name, value in (("states_layers", layers), ("states_folder", folder)):
            if value:
                return name, 'goes with `hidden_states="vllm"`'
        return None
    if engine not in get_args(Engine):
        return "hidden_states", f'must be "sglang", "vllm" or None. Got {engine!r}'
    if architecture is None:
        return "hidden_states", (
            "needs `architecture=Architecture(parameters, layers, hidden_size)`: how many blocks the model has, and "
            "the dimension of their states. Its config.json says both"
        )
    if engine == "sglang":
        for name, value in (("states_layers", layers), ("states_folder", folder)):
            if value:
                return name, "goes with vLLM: SGLang gives the last block's state only, and in its answer"
        return None
    numbers = isinstance(layers, Sequence) and not isinstance(layers, str)
    whole = numbers and all(isinstance(each, int) and not isinstance(each, bool) for each in layers)
    if not whole or not layers or len(set(layers)) < len(layers):
        return "states_layers", (
            "must list the blocks that vLLM was started with, in the order of its eagle_aux_hidden_state_layer_ids: "
            f"[12, 18, 24]. Got {layers!r}"
        )
    if not all(1 <= each <= architecture.layers for each in layers):
        return "states_layers", f"must lie between 1 and the model's {architecture.layers} blocks. Got {list(layers)}"
    if not folder:
        return "states_folder", (
            "must be the folder of vLLM's shared_storage_path as this machine sees it: the states come as files in it"
        )
    return None


@dataclass(frozen=True)
class ServedStates:
    """How the server of one model gives hidden states.

    Attributes:
        engine: The kind of server.
        blocks: How many the model has.
        size: Dimension of a state.
        layers: Blocks whose states it gives, counted from 1, in its order.
        folder: Of vLLM: where its files are seen on this machine.
    """

    engine: Engine
    blocks: int
    size: int
    layers: tuple[int, ...]
    folder: Path | None = None
    _unwritten: deque[Path] = field(
        default_factory=lambda: deque(maxlen=_MOST_UNWRITTEN), init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls, engine: Engine, architecture: Architecture, layers: Sequence[int], folder: str | Path | None
    ) -> ServedStates:
        """Of settings without an `engine_problem`."""
        given = tuple(layers) if engine == "vllm" else (architecture.layers,)
        place = None if folder is None else Path(folder).expanduser()
        return cls(engine, architecture.layers, architecture.hidden_size, given, place)

    @property
    def normalised(self) -> bool:
        """Whether the last block's state comes behind the model's final norm."""
        return self.engine == "sglang"

    def added_to(self, capability: Capability) -> Capability:
        """What a model can that has them."""
        return replace(
            capability,
            layers=self.blocks,
            hidden_size=self.size,
            engine=self.engine,
            served_layers=self.layers,
            normalised=self.normalised,
            states_with_answer=self.engine == "vllm",
        )

    def missing(self, wanted: Sequence[int]) -> str | None:
        """Why it does not give the states of these blocks; None if it does."""
        if set(wanted) <= set(self.layers):
            return None
        which = "the last one" if self.engine == "sglang" else "its `states_layers`"
        given = ", ".join(map(str, self.layers))
        return f"gives the hidden states of block {given}, {which}. Got {', '.join(map(str, wanted))}."

    def asked(self, request: Request) -> Request:
        """A request for one token, so that the state comes with the answer."""
        if self.engine == "vllm":  # which was started to give them with every answer
            return request
        return replace(request, options={**request.options, "return_hidden_states": "last"})

    def read(self, completion: Any, usage: Usage, model: str, patience_s: float) -> dict[int, Any]:
        """The states of a prompt's last token, by block: float32 arrays of shape (hidden_size,).

        Args:
            completion: An answer as the client gives it, of SGLang of one token.
            usage: Of the call.
            model: Its name, for errors.
            patience_s: Longest wait for a file.

        Returns:
            None of them where the server gave none: no value takes its place.

        Raises:
            ModelError: If what it gave has another shape, or a file cannot be read on this machine.
        """
        if self.engine == "sglang":
            return self._of_answer(completion, model)
        if (path := self._path(completion, model)) is None:
            return {}
        return self._of_file(path, None if usage.estimated else usage.input_tokens, model, patience_s)

    @contextmanager
    def explained(self, model: str) -> Iterator[None]:
        """A refusal of what `asked` asks for, inside, says what to do."""
        try:
            yield
        except Exception as error:
            if status_of(error) not in _REFUSED or not _OF_STATES.search(str(error)):
                raise
            raise ModelError(
                f"The server of model '{model}' refuses to give hidden states ({kept_of(error)}). Start SGLang of "
                "v0.5.17 or later with --enable-return-hidden-states."
            ) from error

    def forget(self, completion: Any) -> None:
        """Remove what vLLM wrote about an answer whose states nobody asked for, if the answer names it."""
        if self.engine != "vllm":
            return
        with suppress(ModelError):
            if (path := self._path(completion, "")) is not None:
                self._unwritten.append(path)
        for _ in range(len(self._unwritten)):
            with suppress(IndexError):  # another thread took it
                path = self._unwritten.popleft()
                if not _remove(path):  # it is written only now: it is removed with a later answer's
                    self._unwritten.append(path)

    # ------------------------------------------------------------------ SGLang

    def _of_answer(self, completion: Any, model: str) -> dict[int, Any]:
        import numpy as np

        given = getattr(completion.choices[0], "hidden_states", None)
        if given is None or given == []:
            return {}
        try:
            state = np.asarray(given, dtype=np.float32)
        except (TypeError, ValueError):
            state = np.empty(0, np.float32)
        if state.shape != (self.size,):
            shape = state.shape if state.size else "values that are not numbers"
            raise ModelError(
                f"The server of model '{model}' gave a hidden state of shape {shape}, and `architecture` says "
                f"({self.size},). Is `architecture.hidden_size` right, and SGLang of v0.5.17 at least (earlier ones do "
                'not take `return_hidden_states: "last"`)? With speculative decoding it gives several states as one.'
            )
        return {self.blocks: state} if state.any() else {}

    # ------------------------------------------------------------------ vLLM

    def _path(self, completion: Any, model: str) -> Path | None:
        """The file that an answer names, in the folder that is known: a server cannot name any other place."""
        told = getattr(completion, "kv_transfer_params", None)
        path = told.get("hidden_states_path") if isinstance(told, Mapping) else None
        if path is None:
            return None
        name = PurePosixPath(path).name if isinstance(path, str) else ""
        if self.folder is None or not name.endswith(_SUFFIX):
            raise ModelError(f"The server of model '{model}' names no {_SUFFIX} file with hidden states. Got {path!r}.")
        return self.folder / name

    def _of_file(self, path: Path, prompt_tokens: int | None, model: str, patience_s: float) -> dict[int, Any]:
        try:
            with _written(path, patience_s) as file:
                shape, row = _last_row(file)
        except FileNotFoundError:
            raise ModelError(
                f"vLLM wrote the hidden states of model '{model}' to '{path.name}', which is not in '{self.folder}'. "
                "`states_folder` must be its shared_storage_path as this machine sees it: on another machine, mount it."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(
                f"The hidden states of model '{model}' in '{path}' cannot be read ({type(error).__name__}: {error})."
            ) from error
        finally:
            _remove(path)
        tokens, *rest = shape
        if tuple(rest) != (len(self.layers), self.size):
            raise ModelError(
                f"vLLM gave hidden states of shape {tuple(shape)} of model '{model}'; (tokens, {len(self.layers)}, "
                f"{self.size}) was expected. `states_layers` must be its eagle_aux_hidden_state_layer_ids, and "
                "`architecture.hidden_size` that of the model."
            )
        if prompt_tokens is not None and tokens != prompt_tokens:
            raise ModelError(
                f"vLLM gave hidden states of {tokens} tokens of model '{model}', and the prompt has {prompt_tokens}: "
                "the last of them is not the prompt's last. Start it with --no-enable-chunked-prefill, and without "
                "include_output_tokens."
            )
        return {layer: state for layer, state in zip(self.layers, row, strict=True) if state.any()}


@contextmanager
def _written(path: Path, patience_s: float) -> Iterator[BinaryIO]:
    """The file, once it is there whole: its writer holds a lock until then, or it grows until then.

    Raises:
        FileNotFoundError: If it is not there in time.
        TimeoutError: If it is not whole in time.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            if not _is_locked(path) and time.monotonic() >= until:
                raise
        else:
            with file:
                if not _is_locked(path) and _is_whole(file):
                    yield file
                    return
        if time.monotonic() >= until:
            raise TimeoutError(f"it was not written within {patience_s:g} s")
        time.sleep(_PAUSE_S)


def _is_locked(path: Path) -> bool:
    """Whether the writer of a file holds the lock beside it."""
    try:
        import fcntl
    except ImportError:  # a system without such locks: the file's length tells
        return False
    try:
        with open(f"{path}.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none
        return False
    return False


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_HEADER:
        raise ValueError("it is not a safetensors file")
    return json.loads(file.read(length)), 8 + length


def _is_whole(file: BinaryIO) -> bool:
    """Whether all bytes that the header promises are there; a header that is not there yet promises more."""
    try:
        tensors, begin = _header(file)
    except (struct.error, json.JSONDecodeError):
        return False
    ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    return bool(os.fstat(file.fileno()).st_size >= begin + max(ends, default=0))


def _last_row(file: BinaryIO) -> tuple[list[int], NDArray[np.float32]]:
    """The shape of ``hidden_states`` and, of its last token, the states of shape (blocks, hidden_size).

    Only these bytes are read. Also those of bfloat16, which NumPy, and so its side of safetensors, does not know.
    """
    import numpy as np

    tensors, begin = _header(file)
    told = tensors["hidden_states"]
    shape, kind = [int(each) for each in told["shape"]], _KINDS[told["dtype"]]
    if len(shape) != 3 or not all(shape):
        return [*shape, *[0] * (3 - len(shape))], np.empty((0, 0), np.float32)
    _, blocks, size = shape
    length = blocks * size * np.dtype(kind).itemsize
    file.seek(begin + told["data_offsets"][1] - length)
    row = np.frombuffer(file.read(length), kind).reshape(blocks, size)
    if told["dtype"] == "BF16":  # the upper half of a float32
        return shape, (row.astype(np.uint32) << 16).view(np.float32)
    return shape, row.astype(np.float32)


def _remove(path: Path) -> bool:
    """Remove a file and its lock, as vLLM's clients are to; returns whether it is not worth another try."""
    if _is_locked(path):
        return False
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError:  # the folder cannot be written
        return True
    with suppress(OSError):
        path.with_name(f"{path.name}.lock").unlink()
    return True
