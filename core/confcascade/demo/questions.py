"""The questions that ``confcascade demo --models`` asks: short, of many kinds, and graded by code.

They are this project's own and under its licence. ``questions.jsonl`` holds them in the form that ``confcascade
collect`` reads. Kinds and difficulties are spread evenly over the file, so that the first of them are a sample.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from confcascade.bench.questions import read_examples
from confcascade.graders.choice import ChoiceLetter
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade, is_right
from confcascade.graders.grader import Grader
from confcascade.graders.numeric import Numeric

__all__ = ["QUESTIONS", "ShortAnswer", "shipped_questions"]

QUESTIONS = Path(__file__).parent / "questions.jsonl"
_LONGEST = 25  # words of a sentence around a short answer; more is a list, or a guess at everything


def shipped_questions() -> list[Example]:
    """All of them, in the order of the file."""
    return list(read_examples(QUESTIONS))


class ShortAnswer(Grader):
    """Right if the answer gives a reference, alone or in a sentence.

    Of a question with choices, it is read as `ChoiceLetter` reads it. A number is read as `Numeric` does, of the whole
    or of its first line, behind which small models go on talking. A word must stand in the answer as a whole word,
    whatever its case; an answer of more than 25 words is no short answer.

    >>> ShortAnswer().grade(Example("Which city?", references=("Paris",)), "It is Paris.").value
    1.0
    """

    name: ClassVar[str] = "short"

    def compare(self, example: Example, answer: str) -> Grade:
        if example.choices:
            return ChoiceLetter().compare(example, answer)
        numbers = tuple(each for each in example.references if each.isdecimal())
        said = _words(answer)
        if len(said) <= _LONGEST:
            for reference in example.references:
                if reference not in numbers and _within(_words(reference), said):
                    return Grade(1.0, predicted=reference)
        if numbers:
            asked = Example(example.question, references=numbers)
            first_line = Numeric().compare(asked, answer.strip().partition("\n")[0])
            return first_line if is_right(first_line.value) else Numeric().compare(asked, answer)
        return Grade(0.0)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _within(words: list[str], said: list[str]) -> bool:
    return any(said[i : i + len(words)] == words for i in range(len(said) - len(words) + 1))
