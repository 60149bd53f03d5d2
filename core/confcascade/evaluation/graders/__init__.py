"""How right an answer is: by its letter, its text, its number, its fields, a function of yours, or a model's judgement.

`grader` is the contract, with what counts as "I don't know"; one module a family; `names` makes them from text;
`agreement` asks them whether two answers are the same.
"""

from confcascade.evaluation.graders.agreement import Agreement
from confcascade.evaluation.graders.choice import ChoiceLetter
from confcascade.evaluation.graders.function import Function
from confcascade.evaluation.graders.grader import REFUSAL, Grader
from confcascade.evaluation.graders.judge import JUDGE_TEMPLATE, LLMJudge
from confcascade.evaluation.graders.names import grader_from_string
from confcascade.evaluation.graders.numeric import Numeric
from confcascade.evaluation.graders.structured import Structured
from confcascade.evaluation.graders.texts import ContainsAny, ExactMatch, NormalizedMatch

__all__ = [
    "JUDGE_TEMPLATE",
    "REFUSAL",
    "Agreement",
    "ChoiceLetter",
    "ContainsAny",
    "ExactMatch",
    "Function",
    "Grader",
    "LLMJudge",
    "NormalizedMatch",
    "Numeric",
    "Structured",
    "grader_from_string",
]
