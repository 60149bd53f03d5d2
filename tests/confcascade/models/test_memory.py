"""Who has weights in memory when: by models that only say so."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time

import pytest
from confcascade import ConfigurationError, MemoryBound
from confcascade.models import memory

GIB = 2**30


class Weights:
    """Of one GiB; notes what is done with it."""

    def __init__(self, name, log, *, size=GIB, open_prefills=0, error=None):
        self.name = name
        self.size = size
        self.open_prefills = open_prefills
        self.error = error
        self._log = log

    def load(self):
        if self.error is not None:
            raise self.error
        self._log.append(f"+{self.name}")

    def unload(self):
        self._log.append(f"-{self.name}")


@pytest.fixture
def log():
    return []


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Turns and waits of hundredths of a second."""
    monkeypatch.setattr(memory, "_TURN_S", 0.2)
    monkeypatch.setattr(memory, "_IDLE_S", 0.01)
    monkeypatch.setattr(memory, "_PREFILL_S", 0.3)
    monkeypatch.setattr(memory, "_LOOK_S", 0.005)


def ask(bound, weights, **options):
    """Ask once, wait, and leave."""
    room = bound.acquire(weights, **options)
    room.result(5)
    bound.release(weights, room)


def test_weights_are_loaded_when_needed_and_stay(log):
    bound, a = MemoryBound(), Weights("a", log)
    assert bound.loaded == ()
    ask(bound, a)
    ask(bound, a)
    assert (log, bound.loaded) == (["+a"], ("a",))


def test_what_was_used_longest_ago_goes_first(log):
    bound = MemoryBound(2)
    a, b, c = (Weights(name, log) for name in "abc")
    for each in (a, b, a, c, b):
        ask(bound, each)
    assert log == ["+a", "+b", "-b", "+c", "-a", "+b"]
    assert bound.loaded == ("c", "b")


def test_as_many_go_as_must(log):
    bound = MemoryBound(3)
    for each in (Weights("a", log), b := Weights("b", log), c := Weights("c", log, size=3 * GIB)):
        ask(bound, each)
    assert log[-2:] == ["-b", "+c"]
    assert "-a" not in log or log.index("-a") < log.index("+c")
    assert bound.loaded == ("c",)
    assert b.size < c.size


def test_nothing_goes_while_it_computes(log):
    """However long its turn is over."""
    bound, a, b = MemoryBound(1), Weights("a", log), Weights("b", log)
    computing = bound.acquire(a)
    computing.result(5)
    waiting = bound.acquire(b)
    time.sleep(0.4)
    assert not waiting.done()
    assert log == ["+a"]
    bound.release(a, computing)
    waiting.result(5)
    assert log == ["+a", "-a", "+b"]


def test_in_its_turn_a_model_goes_on_taking_questions_and_then_gives_way(log):
    """Two that are asked without a pause change places once a turn, not once a question."""
    bound, a, b = MemoryBound(1), Weights("a", log), Weights("b", log)
    asked = {"a": 0, "b": 0}
    until = time.monotonic() + 1.5

    def loop(weights):
        while time.monotonic() < until:
            room = bound.acquire(weights)
            room.result(5)
            time.sleep(0.002)
            bound.release(weights, room)
            asked[weights.name] += 1

    threads = [threading.Thread(target=loop, args=[each]) for each in (a, b) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    loads = sum(each.startswith("+") for each in log)
    assert min(asked.values()) > 20
    assert 3 <= loads <= 10  # of 0.2 seconds each


def test_who_waits_gets_what_was_asked_before_others_again(log):
    """First come, first served, also between what has to be loaded."""
    bound = MemoryBound(1)
    a, b, c = (Weights(name, log) for name in "abc")
    computing = bound.acquire(a)
    computing.result(5)
    rooms = [(each, bound.acquire(each)) for each in (c, b)]
    bound.release(a, computing)
    for each, room in rooms:
        room.result(5)
        bound.release(each, room)
    assert log == ["+a", "-a", "+c", "-c", "+b"]


def test_prompts_that_were_read_keep_weights_for_a_while_only(log):
    """Nobody may go on from them for ever, as one that waits for the other model cannot."""
    bound, a, b = MemoryBound(1), Weights("a", log, open_prefills=1), Weights("b", log)
    ask(bound, a)
    began = time.monotonic()
    ask(bound, b)
    assert 0.25 <= time.monotonic() - began < 3


def test_what_goes_on_from_a_prompt_goes_first(log):
    """Although the model takes no new questions."""
    bound, a, b = MemoryBound(1), Weights("a", log, open_prefills=1), Weights("b", log)
    computing = bound.acquire(a)
    computing.result(5)
    time.sleep(0.25)
    waiting = bound.acquire(b)
    new, continued = bound.acquire(a), bound.acquire(a, goes_on=True)
    assert continued.done()
    assert not new.done()
    a.open_prefills = 0
    for room in (continued, computing):
        bound.release(a, room)
    waiting.result(5)
    bound.release(b, waiting)
    new.result(5)
    assert log == ["+a", "-a", "+b", "-b", "+a"]


def test_who_waits_no_more_loads_nothing(log):
    bound, a, b = MemoryBound(1), Weights("a", log), Weights("b", log)
    computing = bound.acquire(a)
    computing.result(5)
    waiting = bound.acquire(b)
    bound.release(b, waiting)
    assert waiting.cancelled()
    bound.release(a, computing)
    time.sleep(0.1)
    ask(bound, a)
    assert log == ["+a"]


def test_an_error_is_that_of_all_who_wait_and_the_next_tries_again(log):
    bound, a = MemoryBound(1), Weights("a", log, error=OSError("cut off"))
    rooms = [bound.acquire(a) for _ in range(3)]
    for room in rooms:
        assert str(room.exception(5)) == "cut off"
        bound.release(a, room)
    a.error = None
    ask(bound, a)
    assert log == ["+a"]


def test_what_nobody_has_any_more_takes_no_room(log):
    bound, a, b = MemoryBound(1), Weights("a", log), Weights("b", log)
    ask(bound, a)
    del a
    gc.collect()
    ask(bound, b)
    assert log == ["+a", "+b"]


def test_what_could_never_be_loaded_is_refused():
    large = Weights("large", [], size=2 * GIB)
    with pytest.raises(ConfigurationError, match=r"'large' takes 2.00 GiB, more than the bound of 1.5 GiB"):
        MemoryBound(1.5).check_fits(large)
    MemoryBound(2).check_fits(large)
    MemoryBound().check_fits(large)


@pytest.mark.parametrize("gib", [0, -1, math.nan, "8", True])
def test_a_bound_is_a_number_above_0(gib):
    with pytest.raises(ConfigurationError, match="number of GiB above 0"):
        MemoryBound(gib)


def test_a_bound_that_is_too_narrow_is_told_once(log, caplog):
    bound, a, b = MemoryBound(1), Weights("a", log), Weights("b", log)
    with caplog.at_level(logging.WARNING, logger="confcascade"):
        for _ in range(8):
            ask(bound, a)
            ask(bound, b)
    (told,) = caplog.messages
    assert told.startswith("Model 'a' was loaded again 5 times")
    assert "1 GiB" in told
