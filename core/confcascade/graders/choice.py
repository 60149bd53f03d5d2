"""The letter of a choice, out of what models write when they are asked for one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import Grader
from confcascade.graders.texts import normalized
from confcascade.letters import read_letter

__all__ = ["ChoiceLetter"]

# forms in which the text of a choice is recognised: to the letter, but for case, but for punctuation
_SAME = (str.strip, lambda each: " ".join(each.split()).casefold().rstrip("."), normalized)


class ChoiceLetter(Grader):
    """Right if the letter of the answer is the reference's.

    It is read from what stands after the last "Answer:" or "answer is", else from the whole: "B", "(B)", "B.",
    "B) Paris", "Option B", "B is right, because ...", or the text of a choice and nothing else. A letter goes before a
    choice whose text is that letter, for letters are what was asked for (`confcascade.letters`, by which P(T) of labels
    finds the letter, too). An answer in which none or more than one can be read ("A or B", a list of all choices, a
    letter beside another choice's text) is wrong, with the reason.

    An example without `Example.choices`, whose question holds them, may be answered with any letter.
    """

    name: ClassVar[str] = "choice"

    def grade(self, example: Example, answer: str) -> Grade:
        grade = super().grade(example, answer)
        # "Cannot be determined" may be one of the choices
        return grade if grade.predicted is None else replace(grade, refused=False)

    def compare(self, example: Example, answer: str) -> Grade:
        wanted = {read_letter(text, example.choices, same=_SAME).label for text in example.references} - {None}
        read = read_letter(answer, example.choices, same=_SAME)
        if not wanted:
            return Grade(None, predicted=read.label, reason="no letter can be read in the reference")
        return Grade(float(read.label in wanted), predicted=read.label, reason=read.problem)
