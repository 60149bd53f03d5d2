"""How right an answer is: by its letter, its text, its number, its fields, a function of yours, or a model's judgement.

`example` is what is graded against, `grade` what comes of it and from where an answer counts as right; `grader` is the
contract, with what counts as "I don't know"; one module a family; `names` makes graders from text; `agreement` asks
them whether two answers are the same.
"""

from confcascade.graders.agreement import Agreement
from confcascade.graders.choice import ChoiceLetter
from confcascade.graders.example import LETTERS, Example
from confcascade.graders.function import Function
from confcascade.graders.grade import RIGHT, Grade, is_right
from confcascade.graders.grader import REFUSAL, Grader
from confcascade.graders.judge import JUDGE_TEMPLATE, LLMJudge
from confcascade.graders.names import grader_from_string
from confcascade.graders.numeric import Numeric
from confcascade.graders.structured import StructuredMatch
from confcascade.graders.texts import ContainsAny, ExactMatch, NormalizedMatch

__all__ = [
    "JUDGE_TEMPLATE",
    "LETTERS",
    "REFUSAL",
    "RIGHT",
    "Agreement",
    "ChoiceLetter",
    "ContainsAny",
    "ExactMatch",
    "Example",
    "Function",
    "Grade",
    "Grader",
    "LLMJudge",
    "NormalizedMatch",
    "Numeric",
    "StructuredMatch",
    "grader_from_string",
    "is_right",
]
