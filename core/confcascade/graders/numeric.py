"""Numbers, as GSM8K grades them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import REFUSAL, Grader
from confcascade.letters import conclusion

__all__ = ["Numeric", "number"]

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)(?P<sign>[-−]?[$€£]?[-−]?)\s?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<power>[eE][+-]?[0-9]{1,3}(?![A-Za-z0-9_]))?(?:\s?/\s?(?P<divisor>[0-9]+)(?![0-9.,]*[0-9/]))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_MOST_DIGITS = 400  # nobody's answer, and Python refuses to read some thousands


def number(text: str) -> Fraction | None:
    """The number that a text comes to: the one after its last "####", else the last of its `conclusion`.

    Thousands may be set apart with commas, a currency may stand before the number and a unit behind it; "1/2" is a
    half, and so is LaTeX's. "1,5" is two numbers; words for numbers are not read, and a per cent sign is a unit.

    >>> number("So she makes 9 * 2 = <<9*2=18>>$18 every day.")
    Fraction(18, 1)
    >>> number("#### 1,080.50")
    Fraction(2161, 2)
    """
    text = _FRACTION.sub(r" \1/\2 ", text)
    _, mark, marked = text.rpartition("####")
    found = list(_NUMBER.finditer(marked if mark else conclusion(text)))
    if not found:
        return None
    last = found[0 if mark else -1]
    divisor = last["divisor"] or "1"
    if len(last["digits"]) > _MOST_DIGITS or len(divisor) > _MOST_DIGITS or not int(divisor):
        return None
    value = Fraction(last["digits"].replace(",", "") + (last["power"] or "")) / int(divisor)
    before = last.string[: last.start()].rstrip()[-1:]
    subtracted = before.isdecimal() or before in (")", "]", "%")  # 16 -3 is 13, not a negative number beside 16
    return -value if set(last["sign"]) & {"-", "−"} and not subtracted else value


class Numeric(Grader):
    """Right if the answer comes to a reference's number; see `number`.

    Args:
        tolerance: Greatest difference between two numbers that count as the same, 0 or more.
        refusal: See `Grader`.
    """

    name: ClassVar[str] = "numeric"

    def __init__(self, *, tolerance: float = 0.0, refusal: str = REFUSAL) -> None:
        super().__init__(refusal=refusal)
        if not 0 <= tolerance < float("inf"):
            raise ConfigurationError(f"`tolerance` must be a finite number of at least 0. Got {tolerance}.")
        self._tolerance = Fraction(str(tolerance))

    def compare(self, example: Example, answer: str) -> Grade:
        wanted = [value for value in map(number, example.references) if value is not None]
        predicted = number(answer)
        shown = None if predicted is None else _shown(predicted)
        if not wanted:
            return Grade(None, predicted=shown, reason="there is no number in the reference")
        if predicted is None:
            return Grade(0.0, reason="there is no number in the answer")
        return Grade(float(any(abs(predicted - value) <= self._tolerance for value in wanted)), predicted=shown)

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "tolerance": float(self._tolerance)}


def _shown(value: Fraction) -> str:
    """Plainly: "18" for 18.0, too."""
    if value.denominator == 1 and abs(value) < 10**20:  # beyond, an exponent is shorter
        return str(value.numerator)
    return str((Decimal(value.numerator) / Decimal(value.denominator)).normalize())
