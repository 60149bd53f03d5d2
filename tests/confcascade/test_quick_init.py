"""Frozen dataclasses with another ``__init__``: nothing else about them changes."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any

import pytest
from confcascade.quick_init import quick_init


@dataclass(frozen=True)
class _Plain:
    name: str
    count: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("`count` must be at least 0.")


@quick_init
@dataclass(frozen=True)
class Quick:
    name: str
    count: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("`count` must be at least 0.")


@quick_init
@dataclass(frozen=True)
class _Further(Quick):
    more: str = "more"


@pytest.mark.parametrize("how", [(("a",), {}), (("a", 2), {}), ((), {"name": "a", "count": 3, "notes": {"b": 1}})])
def test_it_is_made_as_a_dataclass_is(how: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    plain, quick = _Plain(*how[0], **how[1]), Quick(*how[0], **how[1])
    assert vars(plain) == vars(quick)
    assert list(vars(plain)) == list(vars(quick))
    assert repr(quick) == repr(plain).replace("_Plain", "Quick")


def test_its_signature_is_that_of_the_fields() -> None:
    told = inspect.signature(Quick)
    assert list(told.parameters) == ["name", "count", "notes"]
    assert told.parameters["count"].default == 0


def test_every_instance_has_a_default_of_its_own() -> None:
    first, second = Quick("a"), Quick("a")
    assert first == second
    assert first.notes is not second.notes


def test_it_is_frozen_replaced_compared_hashed_and_pickled_as_before() -> None:
    quick = Quick("a", 1, {"b": 2})
    with pytest.raises(FrozenInstanceError):
        quick.count = 2  # type: ignore[misc]
    assert replace(quick, count=2) == Quick("a", 2, {"b": 2})
    assert pickle.loads(pickle.dumps(quick)) == quick
    assert _Further("a", more="b").more == "b"


def test_what_it_checks_of_itself_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Quick("a", -1)
    with pytest.raises(ValueError, match="at least 0"):
        _Further("a", -1)


def test_a_missing_or_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="name"):
        Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        Quick("a", other=1)  # type: ignore[call-arg]


def test_what_it_cannot_make_is_refused() -> None:
    with pytest.raises(TypeError, match="__dict__"):
        quick_init(dataclass(frozen=True, slots=True)(type("Slots", (), {"__annotations__": {"a": int}})))
    with pytest.raises(TypeError, match="positional"):
        quick_init(dataclass(frozen=True, kw_only=True)(type("Keywords", (), {"__annotations__": {"a": int}})))
