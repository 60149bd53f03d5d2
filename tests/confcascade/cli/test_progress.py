"""The time left follows the rows, and grows while none comes."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from confcascade.bench.collecting.collect import Collected, Tally
from confcascade.cli.progress import Remaining, Shown, duration
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_grows_when_nothing_comes():
    """38 rows in six minutes, and then none for ten: what was said to take 7 minutes will take longer."""
    clock = Clock()
    remaining = Remaining(clock=clock)
    for _ in range(38):
        clock.now += 10
        remaining.came()
    assert remaining.told(42) == "0.1/s, about 7 min left"

    clock.now += 600

    assert remaining.told(42) == "2.3/min, about 18 min left, no row for 10 min"


def test_the_latest_rows_count():
    """A server that has become ten times faster."""
    clock = Clock()
    remaining = Remaining(clock=clock)
    for seconds in [10] * 60 + [1] * 60:
        clock.now += seconds
        remaining.came()

    assert remaining.seconds(60) == pytest.approx(60)


@given(waits=st.lists(st.floats(0.001, 100), min_size=1, max_size=80), more=st.floats(0, 1000))
def test_it_never_shrinks_while_one_waits(waits, more):
    clock = Clock()
    remaining = Remaining(clock=clock)
    for wait in waits:
        clock.now += wait
        remaining.came()
    before = remaining.seconds(5)

    clock.now += more

    assert remaining.seconds(5) >= before


def test_nothing_is_said_before_there_is_a_rate():
    assert Remaining(clock=Clock()).told(5) == ""


def test_lines_come_while_no_row_does():
    """Where there is no terminal: the user sees that it waits."""
    console = Console(file=io.StringIO(), width=120)
    state = Collected(tallies={"m": Tally(wanted=3)})
    with Shown(console, every_s=0.01) as shown:
        shown(state, None)
        state.tallies["m"].n = 1
        shown(state, SimpleNamespace(model="m"))
        time.sleep(0.2)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "0/3 rows, 3 to ask"
    assert sum(line.startswith("1/3 rows, ") and line.endswith(" left") for line in lines) > 1


@pytest.mark.parametrize(("seconds", "told"), [(0, "0 s"), (89, "89 s"), (300, "5 min"), (7200, "2.0 h")])
def test_a_duration_is_read_at_a_glance(seconds, told):
    assert duration(seconds) == told
