"""What a grader is: it says how right an answer is, and apart from that whether it owns up to not knowing."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from confcascade.asks import Flow
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.letters import conclusion

__all__ = ["REFUSAL", "Grader"]

# An answer that begins so, and does not go on to answer all the same. Conservative: what it overlooks counts as wrong.
REFUSAL = (
    r"^\W*(?:(?:i'm|i am|we're|we are) )?(?:(?:very |really |so )?sorry|i apologi[sz]e|unfortunately)?"
    r"[,.!;:]*\s*(?:but )?(?:"
    r"(?:i |we )?(?:really |honestly |simply |just )?(?:do not|don't) (?:actually |really )?know\b"
    r"|(?:i |we )(?:really |honestly )?(?:have|'ve got) no (?:idea|clue)\b"
    r"|(?:i |we )(?:do not|don't) have (?:any |enough |sufficient |the )*(?:information|knowledge|data|context)\b"
    r"|(?:i |we )(?:can ?not|can't|could not|couldn't) (?:answer|say|tell|determine)\b"
    r"|(?:i |we )?(?:am |are |'m |'re )?(?:not able|unable) to (?:answer|say|tell|determine)\b"
    r"|(?:i |we )?(?:am |are |'m |'re )?not sure\W*$"
    r"|(?:no idea|not enough information|unknown|unanswerable|(?:it )?cannot be determined)\W*$"
    r")(?!.*\b(?:but|however|although|though|maybe|perhaps|probably|possibly|likely|approximately|roughly"
    r"|(?:could|might|may) be|i (?:think|believe|guess|assume|suspect)|my (?:best )?guess)\b)"
)


class Grader(ABC):
    """The contract of a grader.

    Args:
        refusal: A regular expression, searched for in an answer's `conclusion` with straight apostrophes and single
            white space, whatever the case: if it is found, the answer says that it does not know.

    Raises:
        ConfigurationError: If it is not a regular expression.
    """

    name: ClassVar[str]

    def __init__(self, *, refusal: str = REFUSAL) -> None:
        try:
            self._refusal = re.compile(refusal, re.IGNORECASE | re.DOTALL)
        except re.error as error:
            raise ConfigurationError(f"`refusal` must be a regular expression; {refusal!r} is not: {error}.") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def refuses(self, answer: str) -> bool:
        """Whether an answer says that it does not know, and no more."""
        said = " ".join(conclusion(answer).split()).replace("’", "'")
        return self._refusal.search(said) is not None

    def grade(self, example: Example, answer: str) -> Grade:
        """How right `answer` is.

        Where the references are a larger model's answers instead of known ones,
        ``grader.grade(replace(example, references=(other,)), answer)``, it is whether both say the same: references are
        read as answers are. A reference that says that it does not know is met by an answer that does.

        Returns:
            A grade; its value is None if there is no reference, or none that can be read. Refusing and being right do
            not exclude each other: PopQA's rule finds "Paris" in "I don't know much about Paris", too.
        """
        refused = self.refuses(answer)
        if not example.references:
            return Grade(None, refused, reason="the example has no reference")
        if refused and any(map(self.refuses, example.references)):
            return Grade(1.0, refused, reason="neither it nor the reference knows")
        if not answer.strip():
            return Grade(0.0, refused, reason="the answer is empty")
        return replace(self.compare(example, answer), refused=refused)

    @abstractmethod
    def compare(self, example: Example, answer: str) -> Grade:
        """What `grade` makes of an answer that is not empty, to an example with references."""

    def judge(self, example: Example, answer: str) -> Flow[Grade]:
        """`grade` as a flow; a grader that needs a model overrides this and asks it."""
        return self.grade(example, answer)
        yield ()  # makes this a generator

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready: all that decides its grades, for the provenance of a recording."""
        return {"grader": self.name, "refusal": self._refusal.pattern}
