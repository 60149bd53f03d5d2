"""A pass over prompts that goes no further than needed: rows that are ended leave it between two blocks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from confcascade.asks import Gate

__all__ = ["RowArguments", "StoppablePass"]

Path: TypeAlias = tuple[int | str, ...]  # into a block's arguments: a position or a name, then keys of what lies there


class RowArguments:
    """Watches how this thread's pass over several rows calls a model's blocks.

    Args:
        blocks: In the order in which they should be called.
        rows: Their number; nothing else in the trial may have it as its first dimension.

    Attributes:
        paths: Of each block, the arguments whose first dimension is the rows.
    """

    def __init__(self, blocks: Sequence[Any], rows: int) -> None:
        self.paths: list[frozenset[Path]] = [frozenset()] * len(blocks)
        self._blocks = blocks
        self._rows = rows
        self._called: list[int] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> RowArguments:
        self._handles = [
            block.register_forward_pre_hook(self._hook(i), with_kwargs=True) for i, block in enumerate(self._blocks)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def in_turn(self) -> bool:
        """Whether each block was called once, one after the other: so what is known behind one is known for good."""
        return self._called == list(range(len(self._blocks)))

    def _hook(self, index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if threading.get_ident() == self._thread:
                self._called.append(index)
                found = _tensors(_by_path(args, kwargs))
                self.paths[index] = frozenset(path for path, tensor in found if _rows_of(tensor) == self._rows)

        return hook


class _Ended(BaseException):  # not an Exception, which a model's code may catch
    """Leaves a pass that no row needs any more."""


class StoppablePass:
    """Keeps the last token's outputs of some blocks in this thread's pass, and ends it for rows whose gates say so.

    Rows that are ended are taken out of whatever later blocks are given, and out of the cache; where that cannot be
    done, the pass ends once all of them are. Inside a ``with``, which the end of the whole pass leaves quietly.

    Args:
        blocks: All of the model's.
        layers: Of each row, whose outputs are wanted, counted from 1.
        gates: Of each row, None if it goes to the end in any case.
        paths: Where blocks are given rows (`RowArguments.paths`); None if rows cannot be taken out.

    Attributes:
        states: Of each row, by layer, a float32 array of shape (hidden_size,).
        rows: Those that are still in the pass, in their order: at its end those that logits and cache have.
        ended: Of each row that is not, or of all at once, the layer behind which it ended.
    """

    def __init__(
        self,
        blocks: Sequence[Any],
        layers: Sequence[Sequence[int]],
        gates: Sequence[Gate | None],
        paths: Sequence[frozenset[Path]] | None,
    ) -> None:
        self.states: list[dict[int, Any]] = [{} for _ in layers]
        self.rows = list(range(len(layers)))
        self.ended: dict[int, int] = {}
        self._blocks = blocks
        self._layers = layers
        self._gates = gates
        self._paths = paths
        self._failed: set[int] = set()
        self._given: dict[int, tuple[Any, Any]] = {}  # by id: what the model gives to every block, and its rows
        self._thread = threading.get_ident()

    def __enter__(self) -> StoppablePass:
        self._handles = [
            self._blocks[layer - 1].register_forward_hook(self._behind(layer), with_kwargs=True)
            for layer in sorted({layer for wanted in self._layers for layer in wanted})
        ]
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        for handle in self._handles:
            handle.remove()
        self._given.clear()
        return isinstance(error, _Ended)

    def _behind(self, layer: int) -> Any:
        import torch

        def hook(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
            if threading.get_ident() != self._thread:  # other threads may be running the same model
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            last = hidden[:, -1].detach().float().cpu().numpy().copy()  # not a view that would keep the whole
            for row, state in zip(self.rows, last, strict=True):
                self._see(row, layer, state)
            stay = [place for place, row in enumerate(self.rows) if row not in self._failed]
            if not stay:
                self.ended |= dict.fromkeys(self.rows, layer)
                self.rows = []
                raise _Ended
            if self._paths is None or len(stay) == len(self.rows):
                return None
            for cache in _caches(args, kwargs):
                cache.reorder_cache(torch.tensor(stay, device=hidden.device))
            return self._take_out(stay, layer, output)

        return hook

    def _see(self, row: int, layer: int, state: Any) -> None:
        if layer not in self._layers[row]:
            return
        self.states[row][layer] = state
        gate = self._gates[row]
        if gate is not None and row not in self._failed and not gate(dict(self.states[row])):
            self._failed.add(row)

    # ------------------------------------------------------------------ rows that leave

    def _take_out(self, stay: list[int], layer: int, output: Any) -> Any:
        """Go on with only the rows at these places; returns the block's output of them."""
        first, before = not self.ended, len(self.rows)
        self.ended |= {row: layer for row in self.rows if row in self._failed}
        self.rows = [self.rows[place] for place in stay]
        self._given.clear()
        if first:
            self._handles += [
                block.register_forward_pre_hook(self._before(index), with_kwargs=True)
                for index, block in enumerate(self._blocks)
                if index >= layer
            ]
        return _mapped(output, lambda _, tensor: tensor[stay] if _rows_of(tensor) == before else tensor)

    def _before(self, index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != self._thread:
                return None
            assert self._paths is not None
            paths = self._paths[index]
            told = _mapped(_by_path(args, kwargs), lambda path, tensor: self._kept(tensor) if path in paths else tensor)
            return tuple(told[place] for place in range(len(args))), {name: told[name] for name in kwargs}

        return hook

    def _kept(self, tensor: Any) -> Any:
        """The rows that are still in the pass, of a tensor that has one for each that it began with."""
        if _rows_of(tensor) != len(self._layers):
            return tensor
        if id(tensor) not in self._given:
            self._given[id(tensor)] = tensor, tensor[self.rows]  # held, so that no other gets its id
        return self._given[id(tensor)][1]


def _by_path(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int | str, Any]:
    return dict([*enumerate(args), *kwargs.items()])


def _rows_of(tensor: Any) -> int:
    return int(tensor.shape[0]) if tensor.dim() else 0


def _tensors(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """All tensors in nested tuples, lists and mappings, with where they lie."""
    found: list[tuple[Path, Any]] = []

    def note(at: Path, tensor: Any) -> Any:
        found.append((at, tensor))
        return tensor

    _mapped(value, note, path)
    return found


def _mapped(value: Any, change: Any, path: Path = ()) -> Any:
    """The same with other tensors: `change` of where each lies, and of it."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(path, value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(each, change, (*path, i)) for i, each in enumerate(value))
    if type(value) is dict:
        return {key: _mapped(each, change, (*path, key)) for key, each in value.items()}
    return value


def _caches(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What a block is given that can select rows: the cache, by whatever name, once."""
    held = {id(value): value for value in (*args, *kwargs.values()) if hasattr(value, "reorder_cache")}
    return list(held.values())
