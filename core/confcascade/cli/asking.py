"""What commands that ask models for long share: a grader, Ctrl-C, and how they end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.asks import LanguageModel
    from confcascade.cascade_file import CascadeFile
    from confcascade.graders import Grader
    from confcascade.graders.example import Example

__all__ = ["EXIT", "grader_for", "model_for", "stopping"]

EXIT = {"complete": 0, "failing": 1, "budget": 3, "stopped": 130}


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


def model_for(file: CascadeFile | None, name: str | None) -> LanguageModel:
    """The model of a cascade file, loaded as that says, or of a string such as "local:NAME"."""
    from confcascade.models import from_string

    return from_string(name or "") if file is None else file.model(name)


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
