"""A user's own function as a grader."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, ClassVar

from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import REFUSAL, Grader

__all__ = ["Function"]


class Function(Grader):
    """What `function` says of (example, answer): whether it is right, how right from 0 to 1, or a `Grade`.

    None means that it could not be graded, and so does an exception, which becomes the reason: an answer that was paid
    for is kept, and can be graded again. It is called for every answer, empty ones and examples without references
    included. Answers that do not know are found as in other graders, unless it gives a `Grade`, which stands as it is.

    Args:
        function: Of two arguments, not asynchronous.
        refusal: See `Grader`.

    Raises:
        ConfigurationError: If it cannot be called so; later, if it gives anything else.
    """

    name: ClassVar[str] = "function"

    def __init__(
        self, function: Callable[[Example, str], bool | float | Grade | None], *, refusal: str = REFUSAL
    ) -> None:
        super().__init__(refusal=refusal)
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"A grader's function must be a plain one of (example, answer). Got {function!r}.")
        self._function = function

    def __repr__(self) -> str:
        return f"Function({_name(self._function)})"

    def grade(self, example: Example, answer: str) -> Grade:
        return self.compare(example, answer)

    def compare(self, example: Example, answer: str) -> Grade:
        refused = self.refuses(answer)
        try:
            said: Any = self._function(example, answer)
        except Exception as error:
            return Grade(None, refused, reason=f"{_name(self._function)} failed: {type(error).__name__}: {error}")
        if isinstance(said, Grade):
            return said
        if said is None:
            return Grade(None, refused, reason=f"{_name(self._function)} gave no grade")
        if getattr(said, "ndim", None) == 0:  # NumPy's bool is no number to Python
            said = said.item()
        if isinstance(said, Real) and 0 <= float(said) <= 1:
            return Grade(float(said), refused)
        raise ConfigurationError(
            f"The grader {_name(self._function)} must give True or False, a number from 0 to 1, a Grade or None. "
            f"Got {said!r}."
        )

    def identity(self) -> Mapping[str, Any]:
        try:
            source = hashlib.sha256(inspect.getsource(self._function).encode()).hexdigest()[:12]
        except (OSError, TypeError):  # it was made at run time, or in another language
            source = None
        return {**super().identity(), "function": _name(self._function), "source_digest": source}


def _name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") and hasattr(function, "__module__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
