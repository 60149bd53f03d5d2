"""The text of a cascade file: its data, and the line that each key stands in."""

from __future__ import annotations

import contextlib
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic_core import ErrorDetails

from confcascade.errors import ConfigurationError

__all__ = ["Source"]

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """Where a cascade comes from, for errors that say where to look.

    Attributes:
        path: The file; None for a cascade that was made in Python.
        text: Its content.
        data: That, read.
    """

    path: Path | None = None
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a YAML or TOML file.

        Raises:
            ConfigurationError: If it cannot be read, is neither, or holds no keys.
        """
        if path.suffix not in (".yaml", ".yml", ".toml"):
            raise ConfigurationError(f"A cascade file ends in .yaml, .yml or .toml. Got '{path}'.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"The cascade file '{path}' cannot be read: {why}.") from error
        data = _toml(path, text) if path.suffix == ".toml" else _Yaml(path, text).data
        if not isinstance(data, dict) or not data:
            raise ConfigurationError(
                f"{path}: a cascade file holds keys such as `models` or `stages`. Got {_kind(data)}."
            )
        return cls(path, text, data)

    @property
    def folder(self) -> Path:
        """What relative paths in the file are relative to."""
        return Path() if self.path is None else self.path.parent

    def where(self, keys: KeyPath = ()) -> str:
        """The place of a key in words: "cascade.yaml, line 3, `stages[0].model`"."""
        parts = ["A cascade" if self.path is None else str(self.path)]
        if keys and self.path is not None:
            parts.append(f"line {self.line(keys)}")
        if keys:
            parts.append(f"`{_dotted(keys)}`")
        return ", ".join(parts)

    def line(self, keys: KeyPath) -> int:
        """The line of a key, from 1; of one that is not in the file, the line of what it is missing from."""
        while keys and keys not in self._lines:
            keys = keys[:-1]
        return self._lines.get(keys, 1)

    @contextlib.contextmanager
    def at(self, keys: KeyPath = ()) -> Iterator[None]:
        """Say in any `ConfigurationError` of the block which key of the file it is about."""
        try:
            yield
        except ConfigurationError as error:
            raise type(error)(f"{self.where(keys)}: {error}") from error

    def problem(self, error: ErrorDetails) -> tuple[int, str]:
        """What pydantic finds wrong: the line of the file, and in words the place and what is wrong there."""
        keys: KeyPath = ()
        node: Any = self.data
        for key in error["loc"]:
            inside = isinstance(node, Mapping) and key in node
            if inside or (isinstance(node, list) and isinstance(key, int) and key < len(node)):
                keys, node = (*keys, key), node[key]  # anything else is a tag of a union, or a key that is missing
        if error["type"] == "missing":
            keys, told = (*keys, error["loc"][-1]), "is missing"
        elif error["type"] == "cascade_file":
            keys, told = (*keys, *error["ctx"]["keys"]), error["ctx"]["problem"]
        else:
            told = error["msg"].replace("Input should be", "must be")
            told += f". Got {node!r}" if error["type"] == "literal_error" else ""
        return self.line(keys), f"{self.where(keys)}: {told}" + ("" if told.endswith("?") else ".")

    @cached_property
    def _lines(self) -> Mapping[KeyPath, int]:
        if self.path is None:
            return {}
        return _toml_lines(self.text) if self.path.suffix == ".toml" else _Yaml(self.path, self.text).lines


def _dotted(keys: KeyPath) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _kind(data: Any) -> str:
    return "nothing" if not data else f"a {'list' if isinstance(data, list) else type(data).__name__}"


# ---------------------------------------------------------------------- YAML


class _Yaml:
    """A YAML document: `data` as ``yaml.safe_load`` gives it, and `lines` by key.

    PyYAML takes the last of equal keys in silence, and knows no line of what it has read; hence the nodes.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._path = path
        self._open: set[int] = set()
        self._flat: set[int] = set()
        try:
            self._loader = yaml.SafeLoader(text)
            node = self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            # the cause would show the line itself
            raise ConfigurationError(f"{path}, line {line}: not valid YAML: {error.problem}.") from None
        except yaml.YAMLError as error:  # a character that YAML does not know
            raise ConfigurationError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from error
        self.data = None if node is None else self._read(node, ())

    def _read(self, node: yaml.Node, keys: KeyPath) -> Any:
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if id(node) in self._open:
            raise ConfigurationError(f"{self._at(node)}: an alias must not contain itself.")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._read(each, (*keys, i)) for i, each in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, keys)
            return self._loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            why = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            raise ConfigurationError(f"{self._at(node)}: not a value that a cascade file can hold: {why}.") from error
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath) -> dict[str, Any]:
        if id(node) not in self._flat:  # an alias comes here again, with the merged keys before its own
            self._flat.add(id(node))
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise ConfigurationError(f"{self._at(key)}: the key `{key.value}` is there twice.")
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            self._loader.flatten_mapping(node)  # "<<: *defaults"
        read = {}
        for key, value in node.value:
            name = self._loader.construct_object(key)
            if not isinstance(name, str):
                raise ConfigurationError(f'{self._at(key)}: a key must be text; write "{key.value}" with quotes.')
            self.lines[(*keys, name)] = key.start_mark.line + 1
            read[name] = self._read(value, (*keys, name))
        return read

    def _at(self, node: yaml.Node) -> str:
        return f"{self._path}, line {node.start_mark.line + 1}"


# ---------------------------------------------------------------------- TOML


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}.") from error


# what may have to be closed for the beginning of a document to be one
_CLOSINGS = ["".join(closing) for length in range(5) for closing in itertools.product("]}", repeat=length)]


def _toml_lines(text: str) -> dict[KeyPath, int]:
    """The line of each key of a valid document.

    `tomllib` tells no lines, but it judges beginnings: after each line, the keys of the document so far are those up to
    this line. Inside an array the beginning needs its brackets closed; no more than one way to close them is valid.
    """
    lines: dict[KeyPath, int] = {(): 1}
    rows = text.split("\n")
    begun = 1  # the first line since the last valid beginning: a text of several lines is there where it begins
    for count in range(1, len(rows) + 1):
        beginning = "\n".join(rows[:count]) + "\n"
        for closing in _CLOSINGS:
            with contextlib.suppress(tomllib.TOMLDecodeError):
                for keys in _paths(tomllib.loads(beginning + closing)):
                    lines.setdefault(keys, begun)
                begun = count + 1
                break
    return lines


def _paths(data: Any, keys: KeyPath = ()) -> Iterator[KeyPath]:
    yield keys
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _paths(value, (*keys, key))
