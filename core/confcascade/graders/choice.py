"""The letter of a choice, out of what models write when they are asked for one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

from confcascade.graders.example import LETTERS, Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import Grader, conclusion
from confcascade.graders.texts import normalized

__all__ = ["ChoiceLetter"]

_MARKUP = re.compile(r"\\(?:boxed|text|mathbf|mathrm)\b|[*`$\\{}\"“”]")
_LEAD = r"^(?i:(?:the |my )?(?:correct |right |best )?(?:option|choice|letter|answer)(?: is)?\b[:\s]*)?"
_ALONE = re.compile(rf"{_LEAD}[(\[]?\s*([A-Za-z])\s*[)\]]?[.:,;!]?$")
# "(B) Paris", "B. Paris", "B - Paris", "B is right": something sets the letter apart from words such as A and I
_LEADING = re.compile(rf"{_LEAD}(?:[(\[]([A-Z])[)\]]|([A-Z])\s*[).:,;\n–—]|([A-Z]) -|([A-Z]) (?:is|because|since)\b)")
# a second letter right after the first, joined to it further on, or at the beginning of the next line
_SECOND = re.compile(
    r"^\W*(?:(?:or|and|nor)\b\W*)?([A-Z])(?:\s*$|\s*[).:,/\]]| or\b| and\b)"
    r"|\b(?:or|and)\s+[(\[]?([A-Z])[).:\]]"
    r"|^[^\n]*\n[ \t]*[(\[]?([A-Z])[).:\]]"
)
_NONE = "no letter can be read"


class ChoiceLetter(Grader):
    """Right if the letter of the answer is the reference's.

    It is read from what stands after the last "Answer:" or "answer is", else from the whole: "B", "(B)", "B.",
    "B) Paris", "Option B", "B is right, because ...", or the text of a choice and nothing else. A letter goes before a
    choice whose text is that letter, for letters are what was asked for. An answer in which none or more than one can
    be read ("A or B", a list of all choices, a letter beside another choice's text) is wrong, with the reason.

    An example without `Example.choices`, whose question holds them, may be answered with any letter.
    """

    name: ClassVar[str] = "choice"

    def grade(self, example: Example, answer: str) -> Grade:
        grade = super().grade(example, answer)
        # "Cannot be determined" may be one of the choices
        return grade if grade.predicted is None else replace(grade, refused=False)

    def compare(self, example: Example, answer: str) -> Grade:
        wanted = {letter for letter, _ in (read_letter(text, example.choices) for text in example.references) if letter}
        predicted, problem = read_letter(answer, example.choices)
        if not wanted:
            return Grade(None, predicted=predicted, reason="no letter can be read in the reference")
        return Grade(float(predicted in wanted), predicted=predicted, reason=problem)


def read_letter(answer: str, choices: tuple[str, ...] = ()) -> tuple[str | None, str]:
    """The letter of an answer and "", or None and why there is none."""
    concluded, whole = conclusion(answer), answer.strip()
    exact = [letter for letter, choice in zip(LETTERS, choices, strict=False) if choice.strip() == whole]
    if concluded != whole and len(exact) == 1:  # a choice may itself hold "the answer is"
        return exact[0], ""
    letter, problem = _read(concluded, choices)
    if problem == _NONE and concluded != whole:
        return _read(whole, choices)
    return letter, problem


def _read(text: str, choices: tuple[str, ...]) -> tuple[str | None, str]:
    letters = LETTERS[: len(choices)] if choices else LETTERS
    said = _MARKUP.sub("", text).strip()
    if alone := _ALONE.match(said):
        return _known(alone[1].upper(), letters)
    named = _named(text, choices)
    if len(named) == 1:
        return named[0], ""
    if named:
        return None, f"the choices {', '.join(named)} have the same text"
    if leading := _LEADING.match(said):
        letter, rest = next(filter(None, leading.groups())), said[leading.end() :]
        if (second := _SECOND.search(rest)) and next(filter(None, second.groups())) != letter:
            return None, "more than one letter can be read"
        named = _named(rest, choices)
        if named and letter not in named:
            return None, f"the letter {letter} stands beside the text of another choice"
        return _known(letter, letters)
    *_, last_line = ["", *said.splitlines()]
    if alone := _ALONE.match(last_line.strip()):
        return _known(alone[1].upper(), letters)
    return None, _NONE


def _known(letter: str, letters: str) -> tuple[str | None, str]:
    return (
        (letter, "") if letter in letters else (None, f"the letter {letter} is none of {letters[0]} to {letters[-1]}")
    )


def _named(text: str, choices: tuple[str, ...]) -> list[str]:
    """The letters of the choices whose text this is: to the letter, else but for case, else but for punctuation."""
    for same in (str.strip, lambda each: " ".join(each.split()).casefold().rstrip("."), normalized):
        if wanted := same(text):
            found = [LETTERS[i] for i, choice in enumerate(choices) if same(choice) == wanted]
            if found:
                return found
    return []
