"""How a question is put to a model: templates, the paper's own among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from confcascade.errors import ConfigurationError
from confcascade.graders.example import LETTERS, Example
from confcascade.types import Message

__all__ = ["PROMPTS", "Prompt", "prompt_from"]

FIELDS = ("question", "choices", "letters", "context", "subject")
RENDERING = 1  # of the values of fields; another number makes other versions of all prompts


@dataclass(frozen=True)
class Prompt:
    """A template of what a model is asked, with fields in braces (a brace of its own is written twice).

    - ``{question}``, which must be there in `user`;
    - ``{choices}``: one to a line, "A. ..." and so on;
    - ``{letters}`` of the choices: "A, B, C or D";
    - ``{context}``: the text to answer from;
    - ``{subject}``: the example's group, its underscores as spaces.

    A line that ends with a field which the example has no value for ("Choices: {choices}" of an open question) is left
    out. Anywhere else in a line, such a field is an error.

    Attributes:
        name: For reports.
        system: The system message; None or empty for none.
        user: The user's message.

    Raises:
        ConfigurationError: If a template has another field, or none for the question.

    >>> prompt = Prompt("brief", "Answer in one word.", "Text: {context}\\nQuestion: {question}")
    >>> [message.content for message in prompt.messages(Example("Who made the bell?"))]
    ['Answer in one word.', 'Question: Who made the bell?']
    """

    name: str
    system: str | None
    user: str

    def __post_init__(self) -> None:
        fields: dict[str, set[str | None]] = {}
        for part, text in (("system", self.system or ""), ("user", self.user)):
            if not isinstance(text, str):
                raise ConfigurationError(f"`{part}` of prompt '{self.name}' must be a text. Got {type(text).__name__}.")
            fields[part] = {name for _, name in _pieces(self.name, text)}
        if "question" not in fields["user"]:
            raise ConfigurationError(f"Prompt '{self.name}' does not ask: its `user` has no {{question}}.")

    def messages(self, example: Example) -> tuple[Message, ...]:
        """What to ask a model, in chat form.

        Raises:
            ConfigurationError: If the example lacks what a line needs that cannot be left out.
        """
        values = _values(example)
        turns = (("system", self.system or ""), ("user", self.user))
        rendered = [Message(role, _rendered(self.name, text, values, example.id)) for role, text in turns]
        return tuple(message for message in rendered if message.content)

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits of the templates' text: another text is another version."""
        text = json.dumps([RENDERING, self.system or "", self.user])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def prompt_from(value: str | Mapping[str, Any]) -> Prompt:
    """A prompt from the name of one of `PROMPTS`, or from a mapping with ``user``, and optionally ``system``, ``name``.

    Raises:
        ConfigurationError: If it is neither.
    """
    if isinstance(value, str):
        if value not in PROMPTS:
            raise ConfigurationError(
                f"There is no prompt '{value}', only {', '.join(PROMPTS)}. One of your own is a mapping of `user` "
                "and, if wanted, `system` to texts."
            )
        return PROMPTS[value]
    if not isinstance(value, Mapping) or "user" not in value or set(value) - {"name", "system", "user"}:
        given = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ConfigurationError(
            f"A prompt of your own has the keys `user` (needed), `system` and `name`, all texts. Got {given}."
        )
    return Prompt(str(value.get("name", "own")), value.get("system"), value["user"])


def _pieces(prompt: str, template: str) -> Iterator[tuple[str, str | None]]:
    """(text, field that follows it) of a template, as `str.format` reads it."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"Prompt '{prompt}' cannot be read: {error}. Write a brace that is not a field twice: {{{{ or }}}}."
        ) from error
    for text, name, form, conversion in pieces:
        if name is not None and (name not in FIELDS or form or conversion):
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise ConfigurationError(
                f"Prompt '{prompt}' has the field {{{name}}}{' with a format' if name in FIELDS else ''}; its fields "
                f"can be {known}, as they stand. Write a brace that is not a field twice."
            )
        yield text, name


def _values(example: Example) -> Mapping[str, str]:
    letters = LETTERS[: len(example.choices)]
    listed = ", ".join(letters[:-1]) + (f" or {letters[-1]}" if len(letters) > 1 else letters)
    return {
        "question": example.question,
        "choices": "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, example.choices, strict=True)),
        "letters": listed,
        "context": example.context or "",
        "subject": (example.group or "").replace("_", " "),
    }


def _rendered(prompt: str, template: str, values: Mapping[str, str], example: str) -> str:
    """The template with its values, which are not read as templates themselves."""
    lines: list[str] = []
    gap = False  # where a line was left out, blank lines around it become one, or none at the beginning and the end
    for line in template.split("\n"):
        pieces = list(_pieces(prompt, line))
        fields = [name for _, name in pieces if name]
        missing = [name for name in fields if not values[name]]
        if missing and missing == [pieces[-1][1]]:
            gap = True
        elif missing:
            raise ConfigurationError(
                f"Prompt '{prompt}' needs a value for {{{missing[0]}}}, and example '{example}' has none. "
                "Use another prompt, or leave such examples out."
            )
        elif line or not (gap and (not lines or not lines[-1])):
            lines.append("".join(text + (values[name] if name else "") for text, name in pieces))
            gap = gap and not line
    while gap and lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


PROMPTS: Mapping[str, Prompt] = {
    "plain": Prompt("plain", None, "{context}\n\n{question}\n{choices}"),
    # The paper's, for MMLU and GPQA (its Table 7).
    "multiple-choice": Prompt(
        "multiple-choice",
        None,
        "The following are multiple choice questions about {subject}. Please determine the correct answer in the "
        'format "Answer: <answer>", where <answer> is {letters}.\n Question: {question}\n Choices: {choices}\n Answer:',
    ),
    "open-ended": Prompt(
        "open-ended",
        "The following are questions about entity relationship. Please determine the correct answer in the format "
        '"Answer: <answer>".',
        "Question: {question}",
    ),
}
"""By name.

- "plain": the question alone, with its context before it and its choices after it. It asks for no format.
- "multiple-choice" and "open-ended" are those of "Confidence-Driven Multi-Scale Model Selection" (its Table 7 and
  Appendix F), to the letter, for questions with and without choices.

What the paper does not say, and what is done here:

- Which role its multiple-choice prompt has: it is the user's message here, and no system message is sent. The letter is
  then the first token of the reply, and `TokenProbability("ABCD")` its P(T).
- How choices are listed: "A. ..." and so on, one to a line. Whether the line breaks are followed by a space in earnest
  (Table 7 prints one): it is kept.
- What is asked of questions with more or fewer than four choices: their own letters stand in the place of "A, B, C or
  D".
- How it both begins the assistant's turn with "Answer:" in the open-ended prompt and measures how probable "Answer" is
  as the first token of that turn. Both at once are impossible, so the turn is not begun here; `FormatProbability`
  measures the latter.
"""
