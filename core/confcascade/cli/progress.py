"""How far collecting has come: a bar for each model, or a line every ten seconds where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.bench.collecting.collect import Collected
    from confcascade.bench.recording.row import Row

__all__ = ["LINE_EVERY_S", "Remaining", "Shown", "bars", "duration", "errors_told", "usd_told"]

LINE_EVERY_S = 10.0  # where there is no terminal to draw bars on
_RECENT = 50  # rows by which the rate is told
_SILENT_S = 60.0  # without a row, after which that is said
_SILENT_GAPS = 5  # of the usual wait for a row, likewise


class Remaining:
    """How long it will take yet, by the latest rows, and longer the longer none comes.

    Args:
        clock: Seconds.

    >>> now = [0.0]
    >>> remaining = Remaining(clock=lambda: now[0])
    >>> now[0] = 10.0; remaining.came(); remaining.seconds(left=3)
    30.0
    >>> now[0] = 50.0; remaining.seconds(left=3), remaining.silent_s
    (150.0, 0.0)
    >>> now[0] = 100.0; remaining.silent_s
    90.0
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times = deque([clock()], maxlen=_RECENT + 1)

    def came(self) -> None:
        """A row has come."""
        self._times.append(self._clock())

    @property
    def per_second(self) -> float:
        """Rows, of late; 0 before there is one."""
        elapsed = self._clock() - self._times[0]  # the wait since the latest row counts
        return (len(self._times) - 1) / elapsed if elapsed > 0 else 0.0

    def seconds(self, left: int) -> float | None:
        """For so many rows more; None while no rate is known."""
        rate = self.per_second
        return left / rate if rate else None

    @property
    def silent_s(self) -> float:
        """Seconds since the latest row, where that is far longer than usual; else 0."""
        waited = self._clock() - self._times[-1]
        gap = (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)
        return waited if waited > max(_SILENT_S, _SILENT_GAPS * gap) else 0.0

    def told(self, left: int) -> str:
        """In words: "0.3/s, about 5 min left"."""
        parts = [_rate(self.per_second)] if self.per_second else []
        if (seconds := self.seconds(left)) is not None and left:
            parts.append(f"about {duration(seconds)} left")
        if self.silent_s:
            parts.append(f"no row for {duration(self.silent_s)}")
        return ", ".join(parts)


class Shown:
    """Progress: a bar for each model, or a line every ten seconds where there is no terminal.

    Args:
        console: Where.
        every_s: Seconds from line to line, or from one estimate beside the bars to the next.
    """

    def __init__(self, console: Console, *, every_s: float | None = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[how]}"),
            TextColumn("{task.fields[more]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._every_s = every_s or (1.0 if console.is_terminal else LINE_EVERY_S)
        self._tasks: dict[str, Any] = {}
        self._remaining: dict[str, Remaining] = {}
        self._all = Remaining()
        self._state: Collected | None = None
        self._over = threading.Event()
        self._ticks = threading.Thread(target=self._tick, name="confcascade-progress", daemon=True)

    def __enter__(self) -> Shown:
        self._bars.start()
        self._ticks.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticks.join()
        self._bars.stop()

    def __call__(self, state: Collected, row: Row | None) -> None:
        if row is None:
            self._begin(state)
            return
        self._all.came()
        self._remaining[row.model].came()
        tally = state.tallies[row.model]
        more = f"{usd_told(tally.usd)}  {errors_told(tally.errors)}".strip()
        how = self._remaining[row.model].told(tally.wanted - tally.n)
        self._bars.update(self._tasks[row.model], completed=tally.n, how=how, more=more)

    def _begin(self, state: Collected) -> None:
        self._all = Remaining()
        for model, tally in state.tallies.items():
            self._remaining[model] = Remaining()
            self._tasks[model] = self._bars.add_task(
                model, total=tally.wanted, completed=tally.n, how="", more=errors_told(tally.errors)
            )
        if not self._console.is_terminal:
            self._line(state, f"{state.left} to ask")
        self._state = state

    def _tick(self) -> None:
        """While rows come, and while none does."""
        while not self._over.wait(self._every_s):
            if (state := self._state) is None:
                continue
            if not self._console.is_terminal:
                self._line(state, self._all.told(state.left))
                continue
            for model, tally in state.tallies.items():
                self._bars.update(self._tasks[model], how=self._remaining[model].told(tally.wanted - tally.n))

    def _line(self, state: Collected, how: str) -> None:
        done, wanted = (sum(getattr(tally, name) for tally in state.tallies.values()) for name in ("n", "wanted"))
        errors = sum(tally.errors for tally in state.tallies.values())
        parts = [f"{done}/{wanted} rows", how, usd_told(state.spent_usd), errors_told(errors)]
        self._console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)


def usd_told(usd: float | None) -> str:
    """Dollars, to four digits below one; nothing where they are not known."""
    return "" if usd is None else f"${usd:.4f}" if usd < 1 else f"${usd:.2f}"


def errors_told(errors: int) -> str:
    """How many; nothing where there is none."""
    return f"{errors} error{'' if errors == 1 else 's'}" if errors else ""


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever is read at a glance."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{per_second * 60:.2g}/min"


@contextmanager
def bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is done, or a line every ten seconds where there is no terminal.

    Gives what is called with the thing, how much of it is done, and how much there is.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    tasks: dict[str, Any] = {}
    told = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown_bars:

        def shown(what: str, done: int, of: int) -> None:
            nonlocal told
            if what not in tasks:
                tasks[what] = shown_bars.add_task(what, total=of, completed=done)
            shown_bars.update(tasks[what], completed=done)
            if not console.is_terminal and time.monotonic() - told >= LINE_EVERY_S:
                told = time.monotonic()
                left = shown_bars.tasks[tasks[what]].time_remaining
                console.print(f"{what}: {done}/{of}" + ("" if left is None else f", about {left:.0f} s left"))

        yield shown
