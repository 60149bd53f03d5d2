"""A model that says whether another's answer is right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any, ClassVar

from confcascade import drivers
from confcascade.asks import Flow, Generate, LanguageModel, ask
from confcascade.errors import ConfigurationError
from confcascade.graders.example import LETTERS, Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import REFUSAL, Grader
from confcascade.models import from_string
from confcascade.types import Message, Request

__all__ = ["JUDGE_TEMPLATE", "LLMJudge"]

JUDGE_TEMPLATE = """\
You grade an answer to a question. It is right if it says the same as one of the reference answers, in whatever words.

Question: {question}
Reference answers: {references}
Answer to grade: {answer}

Is the answer right? Reply with "Verdict: yes" or "Verdict: no" and nothing else."""

FIELDS = ("question", "choices", "context", "references", "answer")

_VERDICT = re.compile(r"\bverdict\b\W*", re.IGNORECASE)
_YES_NO = re.compile(r"\W*(yes|no)\b(?!\W*(?:and|or|/)\W*(?:yes|no)\b)(?!/)", re.IGNORECASE)
_SHARE = re.compile(r"[^\w.\-−]*(0?\.[0-9]+|0|1(?:\.0+)?)(?=\s*(?:$|[,;)\n*]|\.(?![0-9])))")


class LLMJudge(Grader):
    """As right as a model says: "yes", "no", or a number from 0 to 1 after its last "Verdict", or where it begins.

    A verdict that cannot be read, or a model that fails, leaves the answer without a grade, with the reason. A judge is
    a model, too: it can be wrong, and be talked round by what it judges. Check it on answers that you have graded.

    Args:
        model: A `LanguageModel`, or a string such as ``"openai:gpt-4o"``. It is asked greedily, once an answer.
        template: What it is asked, with places for ``{answer}`` and any of ``{question}``, ``{choices}``,
            ``{context}`` and ``{references}``; braces that are meant are doubled.
        temperature: Of its reply; None leaves it to the model, for those that take none.
        refusal: See `Grader`.

    Raises:
        ConfigurationError: If the template has no place for the answer, or one for anything else.
    """

    name: ClassVar[str] = "judge"

    def __init__(
        self,
        model: LanguageModel | str,
        template: str = JUDGE_TEMPLATE,
        *,
        temperature: float | None = 0.0,
        refusal: str = REFUSAL,
    ) -> None:
        super().__init__(refusal=refusal)
        try:
            places = {place for _, place, _, _ in Formatter().parse(template) if place is not None}
        except ValueError as error:
            raise ConfigurationError(
                f"`template` cannot be read: {error}. Braces that are meant are doubled."
            ) from error
        if "answer" not in places or not places <= set(FIELDS):
            raise ConfigurationError(
                f"`template` must have a place for {{answer}}, and may have places for {', '.join(FIELDS)}. "
                f"Got {', '.join(sorted(places)) or 'none'}."
            )
        self._model = from_string(model) if isinstance(model, str) else model
        if not isinstance(self._model, LanguageModel):
            raise ConfigurationError(f"A judge must be a LanguageModel or a string. Got {type(model).__name__}.")
        self._template = template
        self._needs_reference = "references" in places
        self._temperature = temperature

    def __repr__(self) -> str:
        return f"LLMJudge({self._model.name!r})"

    def grade(self, example: Example, answer: str) -> Grade:
        """`judge`, asking the model here and now."""
        return drivers.run(self.judge(example, answer))

    def compare(self, example: Example, answer: str) -> Grade:
        return self.grade(example, answer)

    def judge(self, example: Example, answer: str) -> Flow[Grade]:
        """Ask the model; an empty answer is wrong without asking."""
        refused = self.refuses(answer)
        if self._needs_reference and not example.references:
            return Grade(None, refused, reason="the example has no reference")
        if not answer.strip():
            return Grade(0.0, refused, reason="the answer is empty")
        request = Request((Message("user", self.prompt(example, answer)),), temperature=self._temperature)
        replied = yield from ask(Generate(self._model, request, logprobs=False))
        if replied.error is not None:
            error = replied.error
            return Grade(None, refused, reason=f"the judge failed: {type(error).__name__}: {error}")
        reply = replied.unwrap().text
        value = read_verdict(reply)
        said = " ".join(reply.split())
        return Grade(
            value, refused, reason=f"the judge said: {said}" if value is not None else f"no verdict in: {said}"
        )

    def prompt(self, example: Example, answer: str) -> str:
        """What the model is asked."""
        return self._template.format(
            question=example.question,
            choices="\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False)),
            context=example.context or "",
            references=" / ".join(example.references),
            answer=answer,
        )

    def identity(self) -> Mapping[str, Any]:
        return {
            **super().identity(),
            "model": self._model.name,
            "fingerprint": getattr(self._model, "fingerprint", None),
            "template": self._template,
            "temperature": self._temperature,
        }


def read_verdict(reply: str) -> float | None:
    """1 for "yes", 0 for "no", a number from 0 to 1 as it is; None if it is none of them.

    >>> read_verdict("It names the same city. Verdict: yes"), read_verdict("0.75"), read_verdict("Yes and no.")
    (1.0, 0.75, None)
    """
    verdict = _VERDICT.split(reply)[-1]
    if told := _YES_NO.match(verdict):
        return float(told[1].lower() == "yes")
    if told := _SHARE.match(verdict):
        return float(told[1])
    return None
