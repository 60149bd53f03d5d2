"""Where the time of an accepted call goes, by room."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def wrapper_profile(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("wrapper_profile")


def test_every_call_is_profiled_by_room(wrapper_profile):
    for direct, cascade in wrapper_profile.calls().values():
        alone, ours = wrapper_profile.by_room(direct, 5), wrapper_profile.by_room(cascade, 5)
        assert alone["the framework"] > 0
        assert alone.get("core", 0.0) == 0
        assert ours["core"] > 0
        assert ours["integration"] > 0


def test_what_is_of_no_room_counts_for_its_caller(wrapper_profile):
    """A builtin has no file; this one lies in a folder of benchmarks."""
    found = wrapper_profile.by_room(lambda: sum(range(100_000)), 5)
    assert found.keys() == {"the client"}
    assert found["the client"] > 100  # microseconds, nearly all of them the builtin's


def test_the_ways_in_take_turns_and_all_are_measured(wrapper_profile):
    for tried in wrapper_profile.ways_in().values():
        times = wrapper_profile.spent(tried, 2, 2)
        assert [len(each) for each in times] == [2] * len(tried)
        for call in tried:
            assert call() is not None
    began = time.process_time()
    ((first, second),) = wrapper_profile.spent((lambda: sum(range(100_000)),), 2, 1)
    assert 0 < first + second <= (time.process_time() - began) * 1e6


def test_the_steps_of_a_call_add_up_to_it(wrapper_profile):
    """And nothing stays of the clocks."""
    asked = wrapper_profile.calls()
    for kind, its in wrapper_profile.STEPS.items():
        found = wrapper_profile.by_step(asked[kind][1], kind, 5)
        assert found.keys() == {wrapper_profile.AROUND, *(step for *_, step in its)}
        assert min(found.values()) > 0
        for module, owner, name, _ in its:
            place = importlib.import_module(module)
            clocked = vars(getattr(place, owner) if owner else place)[name]
            assert "by_step" not in getattr(clocked, "fget", clocked).__code__.co_qualname
