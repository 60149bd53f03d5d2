"""What commands that ask models for long share: a grader, Ctrl-C, progress, and how they end."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.bench.collecting.collect import Collected
    from confcascade.bench.recording.row import Row
    from confcascade.graders import Grader
    from confcascade.graders.example import Example

__all__ = ["EXIT", "LINE_EVERY_S", "Shown", "errors_told", "grader_for", "stopping", "usd_told"]

EXIT = {"complete": 0, "failing": 1, "budget": 3, "stopped": 130}
LINE_EVERY_S = 10.0  # where there is no terminal to draw bars on


def grader_for(name: str | None, examples: list[Example]) -> Grader:
    """The grader of this name; without one that of choices, which all `examples` must then have.

    Raises:
        ConfigurationError: If they have not, or there is no such grader.
    """
    from confcascade.errors import ConfigurationError
    from confcascade.graders import grader_from_string

    if name is None and not all(example.choices for example in examples):
        raise ConfigurationError(
            "Name a grader with --grader, for not every question has choices: such as normalized (the same text), "
            "contains (one of the references is in it) or numeric."
        )
    return grader_from_string(name or "choice")


@contextlib.contextmanager
def stopping(console: Console) -> Iterator[threading.Event]:
    """Ctrl-C, or being asked to end, lets what is under way end first; a second Ctrl-C does not."""
    stop = threading.Event()
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def restore() -> None:
        for number, handler in before:
            signal.signal(number, handler)

    def handle(*_: Any) -> None:
        stop.set()
        restore()
        console.print("Ending: what is under way is finished and kept. Again, and it is dropped.")

    for number, _ in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


class Shown:
    """Progress: a bar for each model, or a line every ten seconds where there is no terminal."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._began = self._told = time.monotonic()
        self._at_first: dict[str, int] = {}

    def __enter__(self) -> Shown:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, state: Collected, row: Row | None) -> None:
        if row is None:
            self._begin(state)
            return
        elapsed = max(1e-9, time.monotonic() - self._began)
        if self._console.is_terminal:
            tally = state.tallies[row.model]
            self._bars.update(
                self._tasks[row.model],
                completed=tally.n,
                rate=f"{(tally.n - self._at_first[row.model]) / elapsed:.1f}/s",
                more=f"{usd_told(tally.usd)}  {errors_told(tally.errors)}".strip(),
            )
        elif time.monotonic() - self._told >= LINE_EVERY_S:
            self._told = time.monotonic()
            rate = state.rows / elapsed
            self._line(state, f"{rate:.1f}/s, about {_duration(state.left / rate)} left")

    def _begin(self, state: Collected) -> None:
        self._began = self._told = time.monotonic()
        self._at_first = {model: tally.n for model, tally in state.tallies.items()}
        for model, tally in state.tallies.items():
            self._tasks[model] = self._bars.add_task(
                model, total=tally.wanted, completed=tally.n, rate="", more=errors_told(tally.errors)
            )
        if not self._console.is_terminal:
            self._line(state, f"{state.left} to ask")

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


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
