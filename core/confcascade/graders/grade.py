"""How right an answer is, and from where it counts as right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


__all__ = ["RIGHT", "Grade", "is_right"]

RIGHT = 0.5  # the least grade of a right answer, wherever only right or wrong counts


@dataclass(frozen=True)
class Grade:
    """What a grader makes of an answer.

    Attributes:
        value: How right it is, from 0 to 1; None if it could not be graded.
        refused: It says that it does not know; counted apart from a wrong answer.
        predicted: The answer as the grader read it (a letter, a number); None where it reads none.
        reason: Why it could not be graded, or how a judge saw it.
    """

    value: float | None
    refused: bool = False
    predicted: str | None = None
    reason: str = ""


@overload
def is_right(grade: float | None) -> bool: ...


@overload
def is_right(grade: NDArray[np.floating[Any]]) -> NDArray[np.bool_]: ...


def is_right(grade: Any) -> Any:
    """Whether a grade, from 0 to 1, is that of a right answer: at least `RIGHT`.

    Every figure that knows only right and wrong decides by this, and so do fits, audits and probes: of two answers, it
    says whether a grader takes them for the same. No grade, None or NaN, is not that of a right answer.

    Args:
        grade: One, or an array of them.

    >>> is_right(0.75), is_right(0.25)
    (True, False)
    """
    return grade is not None and grade >= RIGHT
