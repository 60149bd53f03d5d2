"""GGUF files, as far as their heads say: what is in them, without reading a weight.

The package `gguf` parses a vocabulary of 50,000 words one numpy array at a time, which takes seconds; this reads what
is needed here in milliseconds, and needs no package.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError

__all__ = ["GgufFile", "find_gguf", "is_gguf", "model_name"]

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_PART = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})", re.DOTALL)
_SAMPLE = 1024  # bytes of every tensor


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int  # how its numbers are written, by GGML's number of the type
    offset: int  # from the beginning of its file

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class GgufFile:
    """The head of a GGUF file.

    Args:
        path: The file; of a model in several parts, the first.

    Attributes:
        metadata: Numbers and strings by their keys; of arrays of strings only the length.
        tensors: Name, shape (the fastest dimension first, as in the file) and offset of each, in all parts.

    Raises:
        ConfigurationError: If there is no such file, it is no GGUF, it is cut off, or a part of it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.parts = _parts(self.path)
        self.metadata: dict[str, Any] = {}
        self.tensors: list[_Tensor] = []
        self._digest = hashlib.sha256()
        for part in self.parts:
            self._read(part)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigurationError(f"There is no GGUF file '{path}'.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ConfigurationError(
                    f"'{path}' is not a GGUF file: it does not begin with the letters GGUF. "
                    "A few kilobytes of text may be a Git LFS pointer or an error page: download it again."
                )
            try:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                    self._parse(blob)
            except (struct.error, ValueError, UnicodeDecodeError, IndexError, OverflowError) as error:
                raise ConfigurationError(
                    f"The GGUF file '{path}' is cut off or damaged ({path.stat().st_size:,} bytes). Download it again."
                ) from error

    def _parse(self, blob: mmap.mmap) -> None:
        reader = _Reader(blob)
        version, count, entries = reader.take("IQQ")
        if version not in (2, 3):
            raise ValueError(version)
        metadata = {}
        for _ in range(entries):
            key = reader.string()
            metadata[key] = reader.value(*reader.take("I"))
        heads = []
        for _ in range(count):
            name = reader.string()
            (dimensions,) = reader.take("I")
            shape = reader.take(f"{dimensions}Q")
            heads.append((name, shape, *reader.take("IQ")))
        aligned = metadata.get("general.alignment", 32)
        start = -(-reader.at // aligned) * aligned
        tensors = [_Tensor(name, shape, kind, start + offset) for name, shape, kind, offset in heads]
        if tensors and max(tensor.offset for tensor in tensors) >= len(blob):
            raise ValueError("the last tensor lies behind the end")
        # what the file says, its size, and a little of each tensor: another quantisation is another model
        self._digest.update(blob[: reader.at] + str(len(blob)).encode())
        for tensor in tensors:
            self._digest.update(blob[tensor.offset : tensor.offset + _SAMPLE])
        self.metadata = {**metadata, **self.metadata}  # the first part has them all
        self.tensors += tensors

    @property
    def architecture_name(self) -> str:
        """llama.cpp's word for it, such as "qwen2"; empty if the file has none."""
        return str(self.metadata.get("general.architecture", ""))

    def of_model(self, key: str, default: Any = None) -> Any:
        """A number of the model, such as "block_count"."""
        return self.metadata.get(f"{self.architecture_name}.{key}", default)

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for."""
        found = self.of_model("context_length")
        return found if isinstance(found, int) else None

    @property
    def chat_template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template") or None

    @cached_property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.stat().st_size for part in self.parts)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the head, the size and the beginning of each tensor, wherever the file lies."""
        return self._digest.hexdigest()[:12]

    @property
    def architecture(self) -> Architecture | None:
        """The numbers that decide its compute; None if the file does not have them.

        Embeddings that are looked up are not counted, and of experts as many as a token uses.
        """
        layers, hidden = self.of_model("block_count"), self.of_model("embedding_length")
        if not (isinstance(layers, int) and isinstance(hidden, int)):
            return None
        names = {tensor.name for tensor in self.tensors}
        looked_up = {"per_layer_token_embd.weight", "rope_freqs.weight"}
        if "output.weight" in names:  # else the embedding is the output, too
            looked_up.add("token_embd.weight")
        experts, used = self.of_model("expert_count", 0), self.of_model("expert_used_count", 0)
        parameters = 0
        for tensor in self.tensors:
            if tensor.name not in looked_up:
                routed = bool(experts) and "_exps." in tensor.name
                parameters += tensor.size * used // experts if routed else tensor.size
        return Architecture(parameters, layers, hidden)


class _Reader:
    """Takes numbers and strings off a file, one after another."""

    def __init__(self, blob: mmap.mmap) -> None:
        self._blob = blob
        self.at = 4

    def take(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        taken = struct.unpack_from(form, self._blob, self.at)
        self.at += struct.calcsize(form)
        return taken

    def string(self) -> str:
        (length,) = self.take("Q")
        if self.at + length > len(self._blob):
            raise ValueError("a string ends behind the file")
        text = self._blob[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(kind)
        of, count = self.take("IQ")
        if of in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[of]}")
            if self.at + count * size > len(self._blob):
                raise ValueError("an array ends behind the file")
            return self.take(f"{count}{_SCALARS[of]}")
        if of == _STRING:
            for _ in range(count):
                (length,) = struct.unpack_from("<Q", self._blob, self.at)
                self.at += 8 + length
        else:
            for _ in range(count):
                self.value(of)
        return count


# ---------------------------------------------------------------------- where they lie


def is_gguf(place: str | Path) -> bool:
    """Whether this names a GGUF file, which need not exist."""
    return str(place).lower().endswith(".gguf")


def model_name(place: str | Path) -> str:
    """A model's name by its folder's, or its GGUF file's without the ending, and which part of how many it is."""
    name = Path(place).name
    if not is_gguf(place):
        return name
    part = _PART.fullmatch(name[: -len(".gguf")])
    return part["stem"] if part else name[: -len(".gguf")]


def find_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no ``config.json``; None if it has one, or no GGUF.

    Raises:
        ConfigurationError: If the folder has several models.
    """
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    files = sorted(path for path in folder.iterdir() if is_gguf(path) and not path.name.startswith("mmproj"))
    models = {model_name(path): path for path in reversed(files)}  # of parts, the first
    if len(models) > 1:
        names = ", ".join(sorted(path.name for path in models.values()))
        raise ConfigurationError(f"The folder '{folder}' has {len(models)} GGUF models: {names}. Name one of them.")
    return next(iter(models.values()), None)


def _parts(path: Path) -> list[Path]:
    """All files of a model, the first first."""
    split = _PART.fullmatch(path.stem)
    if split is None or not is_gguf(path):
        return [path]
    count = int(split["parts"])
    parts = [path.with_name(f"{split['stem']}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ConfigurationError(
            f"Of the model '{split['stem']}' in {count} GGUF files, {len(missing)} are not in '{path.parent}': "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Download them, too."
        )
    return parts
