"""Several guesses of a text, each with the probability that it states: ``G1: Paris``, ``P1: 0.9``, ``G2: ...``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from confcascade.signals.stated_values import compiled, plain, value_at

__all__ = ["Guesses", "guesses_in"]

_GUESS = r"^[ \t>*_#-]*(?:G|Guess[ \t]*#?)(?P<number>\d+)[*_]*[ \t]*[:.)=][*_]*[ \t]*"
_CHANCE = r"[\s>*_#-]*(?:P|Prob(?:ability)?[ \t]*#?)(?P<number>\d+)[*_]*[ \t]*[:.)=]"


@dataclass(frozen=True)
class Guesses:
    """A list of guesses, each with its probability.

    Attributes:
        first: Where the first stands in the text, as (begin, end).
        values: What was stated of each, in their order; None where that cannot be read.
    """

    first: tuple[int, int]
    values: tuple[float | None, ...]


def guesses_in(answer: str) -> Guesses | None:
    """A list of guesses with their probabilities: ``G1: Paris``, ``P1: 0.9``, ``G2: ...``; None if there is no first.

    Args:
        answer: Without thoughts.

    >>> found = guesses_in("G1: Paris\\n\\nP1: 0.9\\n\\nG2: Lyon\\nP2: 5%")
    >>> found.values
    (0.9, 0.05)
    """
    text = plain(answer)
    begun = list(compiled(_GUESS, re.I | re.M).finditer(text))
    first = next((each for each in begun if int(each["number"]) == 1), None)
    if first is None:
        return None
    chances = {int(each["number"]): each for each in _chances(text, first.end())}
    ends = [each.start() for each in (*begun, *chances.values()) if each.start() > first.start()]
    begin, end = first.end(), min(ends, default=len(text))
    said = text[begin:end]
    begin += len(said) - len(said.lstrip(' \t\n*_`"'))
    end -= len(said) - len(said.rstrip(' \t\n*_`",;|-'))
    if begin >= end:
        return None
    count = max([1, *(int(each["number"]) for each in begun)])
    values = []
    for number in range(1, count + 1):
        at = chances.get(number)
        value = None if at is None else value_at(text, at.end())
        values.append(None if value is None else value[0])
    return Guesses((begin, end), tuple(values))


def _chances(text: str, at: int) -> Iterator[re.Match[str]]:
    """Where probabilities stand: on lines of their own, or behind their guess."""
    yield from compiled(rf"(?:(?<=\n)|(?<=\s)|(?<=[,;|])){_CHANCE}", re.I).finditer(text, at)
