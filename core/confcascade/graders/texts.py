"""Graders that compare texts: as they are, normalised as SQuAD does, or contained as PopQA does."""

from __future__ import annotations

import re
import string
from typing import ClassVar

from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import Grader
from confcascade.letters import conclusion

__all__ = ["ContainsAny", "ExactMatch", "NormalizedMatch", "normalized"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """In small letters, without ASCII punctuation, English articles and needless white space.

    Source: ``normalize_answer`` of SQuAD's evaluation script (Rajpurkar et al. 2016).

    >>> normalized("The  Eiffel-Tower!")
    'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


class ExactMatch(Grader):
    """Right if the answer is a reference, to the letter; of a worked answer, what stands after "Answer:".

    White space around it, and a full stop at its end, do not count.
    """

    name: ClassVar[str] = "exact"

    def compare(self, example: Example, answer: str) -> Grade:
        predicted = _bare(answer)
        return Grade(float(predicted in map(_bare, example.references)), predicted=predicted)


class NormalizedMatch(Grader):
    """Right if the answer is a reference once both are `normalized`; of a worked answer, what stands after "Answer:".

    Texts of which nothing is left (the film "A", the number "-") are compared as they are; SQuAD's script would hold
    them all for the same.
    """

    name: ClassVar[str] = "normalized"

    def compare(self, example: Example, answer: str) -> Grade:
        predicted = _key(answer)
        return Grade(float(predicted in map(_key, example.references)), predicted=predicted)


class ContainsAny(Grader):
    """Right if the answer contains a reference: as it is, in small letters, or with the first letter alone capital.

    That is the published rule, over the whole answer and not to the word: "art" is found in "party". It is generous to
    long answers. As for equivalence, a larger model's answer must stand in the other whole: `NormalizedMatch` or an
    `LLMJudge` serve better.

    Source: ``run_model.py`` of github.com/AlexTMallen/adaptive-retrieval (PopQA, Mallen et al. 2023).
    """

    name: ClassVar[str] = "contains"

    def compare(self, example: Example, answer: str) -> Grade:
        for reference in example.references:
            if any(form in answer for form in (reference, reference.lower(), reference.capitalize())):
                return Grade(1.0, predicted=reference)
        return Grade(0.0)


def _bare(text: str) -> str:
    return conclusion(text).removesuffix(".").rstrip()


def _key(text: str) -> str:
    concluded = conclusion(text)
    return normalized(concluded) or concluded
