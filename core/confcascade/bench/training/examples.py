"""What a probe learns from: questions as one model was asked them, each with whether its answer was right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from confcascade.asks import LanguageModel
from confcascade.bench.questions.prompts import Prompt
from confcascade.bench.questions.splitting import sample
from confcascade.bench.recording.row import Row
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.graders.grade import is_right
from confcascade.types import Message, Request

__all__ = ["Asked", "ProbeExamples", "labelled", "only_message"]


@dataclass(frozen=True)
class Asked:
    """One question to the model.

    Attributes:
        id: Of the question.
        request: As it was put.
        right: Whether the answer was right.
        kept_with: What must not be shared by the parts: the question's text, or its group.
    """

    id: str
    request: Request
    right: bool
    kept_with: str


@dataclass(frozen=True)
class ProbeExamples:
    """Questions to learn from.

    Attributes:
        asked: In the order of the recording.
        split_by: By which parts are told: "question", "prompt" or "group".
        left_out: How many were left out, by the reason.
        partly: How many grades were neither 0 nor 1.
    """

    asked: tuple[Asked, ...]
    split_by: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    partly: int = 0


def labelled(
    rows: Iterable[Row],
    model: LanguageModel,
    *,
    examples: Sequence[Example] | None = None,
    prompt: Prompt | None = None,
    by_group: bool = False,
    limit: int | None = None,
) -> ProbeExamples:
    """The questions of a recording that `model` answered, with its grades.

    Args:
        rows: Of the recording; those of other models are passed over.
        model: Whose probe is to be trained; rows by another build of it are refused.
        examples: The questions themselves, by their ids, where the recording keeps no prompts, or has system messages.
        prompt: How `examples` were put; needed with them.
        by_group: Keep the questions of a group in one part, where wordings of one fact share a group, say.
        limit: Take so many, drawn by a hash of their ids as `sample` does.

    Raises:
        ConfigurationError: If nothing can be learned from, or a prompt cannot be told.
    """
    known: dict[str, Row] = {}
    others: set[str] = set()
    for row in rows:
        if row.model == model.name:
            known[row.question] = row
        else:
            others.add(row.model)
    if not known:
        told = f"has {', '.join(sorted(others))}" if others else "is empty"
        raise ConfigurationError(f"The recording has no answers of model '{model.name}'; it {told}.")
    _check_builds(known.values(), model)
    by_id = None if examples is None else {example.id: example for example in examples}
    if by_id is not None and prompt is None:
        raise ConfigurationError("With `examples`, say by `prompt` how they were put.")
    left_out = {"the model failed": 0, "not graded": 0, "not in the data": 0}
    asked, partly = [], 0
    for row in known.values():
        example = None if by_id is None else by_id.get(row.question)
        if row.error is not None:
            left_out["the model failed"] += 1
        elif row.grade is None:
            left_out["not graded"] += 1
        elif by_id is not None and example is None:
            left_out["not in the data"] += 1
        else:
            partly += 0 < row.grade < 1
            messages = _messages(row, example, prompt)
            kept_with = _kept_with(row, example, messages, by_group)
            asked.append(Asked(row.question, Request(messages), is_right(row.grade), kept_with))
    if limit is not None:
        drawn = {each.id for each in sample((Example("?", id=each.id) for each in asked), limit)}
        asked = [each for each in asked if each.id in drawn]
    if not asked:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise ConfigurationError(
            f"No answer of model '{model.name}' can be learned from: {reasons}. A probe needs questions with "
            "references, and a grader that fits them."
        )
    split_by = "group" if by_group else "prompt" if by_id is None else "question"
    return ProbeExamples(tuple(asked), split_by, {reason: count for reason, count in left_out.items() if count}, partly)


def _check_builds(rows: Iterable[Row], model: LanguageModel) -> None:
    fingerprint = getattr(model, "fingerprint", None)
    for row in rows:
        if row.build is not None and row.build != fingerprint:
            raise ConfigurationError(
                f"Model '{model.name}' answered as the build {row.build}, and the model at hand is {fingerprint}: "
                "other weights, precision, quantisation or chat template know other things. Collect its answers again, "
                "or load the build that gave them."
            )


def _messages(row: Row, example: Example | None, prompt: Prompt | None) -> tuple[Message, ...]:
    """As the model was asked."""
    if example is not None and prompt is not None:
        if row.prompt_version not in (None, prompt.version):
            raise ConfigurationError(
                f"The recording was asked by the prompt {row.prompt_version}, and '{prompt.name}' is {prompt.version}. "
                "Name the prompt that it was collected with by `prompt=...`."
            )
        return prompt.messages(example)
    if row.prompt is None:
        raise ConfigurationError(
            "The recording keeps no prompts, which the model must read again. Give the questions by `examples=...`, "
            "and the prompt that they were put with by `prompt=...`."
        )
    if (asked := only_message(row)) is None:
        raise ConfigurationError(
            "The prompts of this recording have system messages, whose end their text does not tell. Give the "
            "questions by `examples=...`, and the prompt that they were put with by `prompt=...`."
        )
    return (Message("user", asked),)


def only_message(row: Row) -> str | None:
    """What the model was asked; None if that was not kept, or has a system message, whose end no text tells."""
    asked = row.prompt
    return None if asked is None or (asked.startswith("system: ") and "\n\nuser: " in asked) else asked


def _kept_with(row: Row, example: Example | None, messages: Sequence[Message], by_group: bool) -> str:
    if not by_group:
        return messages[-1].content if example is None else example.question
    group = row.group if example is None else example.group
    if group is None:
        raise ConfigurationError(
            f"Question '{row.question}' has no group, and the parts are to be told by groups. Give each a `group`, or "
            "leave out `by_group=True`."
        )
    return group
