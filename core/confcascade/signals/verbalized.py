"""Confidence that the model states in words: the signal for models that tell no log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from confcascade.answers import without
from confcascade.asks import Flow, Generate, LanguageModel, ask
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.stated import statement_in, statement_of
from confcascade.signals.stated_guesses import guesses_in
from confcascade.thoughts import answer_at
from confcascade.tools import response_schema
from confcascade.types import Message, Request, Response, Stated

__all__ = ["CARD", "GUESSES", "INSTRUCTION", "SECOND_TURN", "Style", "Verbalized", "statement"]

Style = Literal["one-step", "two-step", "top-k"]
CARD = "stated.json"  # beside the weights of a model that was trained to state its confidence

INSTRUCTION = (
    "End with the probability that your answer is correct, between 0.0 and 1.0, on a line of its own and in this form: "
    "<confidence>PROBABILITY</confidence>"
)
# Tian et al. 2023 (arXiv 2305.14975), "Verb. 2S", its second turn
SECOND_TURN = (
    "Provide the probability that your guess is correct. Give ONLY the probability, no other words or explanation.\n\n"
    "For example:\n\nProbability: <the probability between 0.0 and 1.0 that your guess is correct, without any extra "
    "commentary whatsoever; just the probability!>"
)
# the same, "Verb. 1S top-k"
GUESSES = (
    "Provide your {k} best guesses and the probability that each is correct (0.0 to 1.0) for the following question. "
    "Give ONLY the guesses and probabilities, no other words or explanation. For example:\n\n"
    "G1: <first most likely guess, as short as possible; not a complete sentence, just the guess!>\n\n"
    "P1: <the probability between 0.0 and 1.0 that G1 is correct, without any extra commentary whatsoever; just the "
    "probability!>\n...\n"
    "G{k}: <{k}-th most likely guess, as short as possible; not a complete sentence, just the guess!>\n\n"
    "P{k}: <the probability between 0.0 and 1.0 that G{k} is correct, without any extra commentary whatsoever; just "
    "the probability!>\n\nThe question is: "
)
_GUESSES = 4
_TURN_TOKENS = 64  # of a second turn, of a model that does not think
_OF_ANSWERS = ("response_format", "parallel_tool_calls", "logit_bias")  # parameters that a second turn goes without


def statement(confidence: float) -> str:
    """What `INSTRUCTION` asks for, behind an answer.

    Args:
        confidence: In [0, 1]; rounded to hundredths.
    """
    return f"\n<confidence>{confidence:.2f}</confidence>"


class Verbalized(Signal):
    """The probability of being right that the model states in words, in [0, 1].

    Needs text alone, so it serves models that tell no log-probabilities. It is the weakest of the signals: models say
    0.9 of almost everything, so look at its health on your own questions, and calibrate it (`fit`); and whoever writes
    part of the prompt can make a model say that it is sure, so it is best beside another signal.

    The model is asked in one of three ways:

    - "one-step": the request is followed by an instruction to end with the confidence. The statement is taken off the
      answer that is shown, graded and judged by other signals.
    - "two-step": once it has answered, a second turn asks for the probability and nothing else; its tokens and time are
      charged to the attempt.
    - "top-k": it is asked for `k` short guesses with their probabilities. The first is the answer, and its probability
      the score. For questions with short answers.

    An answer that may call tools or must fit a schema has no room for a confidence: it is asked for in a second turn,
    whatever the style. Only the stage that has the signal is asked so, and never the last.

    What cannot be read as one number is no score, and escalates (`confcascade.signals.stated_values`). Confidences in
    thoughts do not count. Answers that are asked for a confidence in one step are judged, and shown, only when they are
    whole.

    Args:
        style: See above.
        k: Guesses, with "top-k" only; 4 by default.
        instruction: What asks for the confidence in one step, for a model that was trained on other words.
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If these do not go together.

    Source: the prompts of "two-step" and "top-k" are those of Tian et al. 2023, arXiv 2305.14975.
    """

    phase: ClassVar[Literal["pre", "post"]] = "post"
    told = True

    def __init__(
        self, style: Style = "one-step", *, k: int | None = None, instruction: str | None = None, name: str = "stated"
    ) -> None:
        if style not in get_args(Style):
            raise ConfigurationError(
                f"`style` of Verbalized must be one of {', '.join(get_args(Style))}. Got {style!r}."
            )
        if k is not None and (style != "top-k" or isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise ConfigurationError(f'`k` of Verbalized must be at least 1, and goes with style="top-k". Got {k!r}.')
        if instruction is not None and (style != "one-step" or not instruction.strip()):
            raise ConfigurationError('`instruction` of Verbalized must not be empty, and goes with style="one-step".')
        self.style = style
        self.k = (k or _GUESSES) if style == "top-k" else None
        self.instruction = (instruction or INSTRUCTION) if style == "one-step" else None
        self.rewords, self.follows_up = style != "two-step", style == "two-step"
        self.name = name

    @classmethod
    def load(cls, folder: str | Path, *, name: str = "stated") -> Verbalized:
        """For a model that ``confcascade train-verbalized`` trained: asked in the words that it was trained on.

        Args:
            folder: Of its weights, in which its card lies.
            name: Key of thresholds and records.

        Raises:
            ConfigurationError: If no card is there, or it cannot be read.
        """
        path = Path(folder).expanduser() / CARD
        try:
            instruction = json.loads(path.read_text(encoding="utf-8"))["instruction"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"'{path}' is not the card of a model that was trained to state its confidence ({error}). Give the "
                "folder `model` that `confcascade train-verbalized` wrote."
            ) from error
        return cls(instruction=instruction, name=name)

    def __repr__(self) -> str:
        return f"Verbalized({self.style!r}{'' if self.k is None else f', k={self.k}'})"

    def identity(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {"signal": "Verbalized", "style": self.style}
        if self.k is not None:
            told["k"] = self.k
        if self.instruction is not None:
            told["instruction"] = self.instruction
        return told

    def check(self, model: LanguageModel) -> None:
        del model  # any has texts

    # ------------------------------------------------------------------ within the answer

    def asks(self, request: Request) -> Request:
        if not self._within(request):
            return request
        at = _last_of_user(request)
        message = request.messages[at]
        if self.k is not None:
            content = GUESSES.format(k=self.k) + message.content
        else:
            content = f"{message.content}\n\n{self.instruction}"
        messages = (*request.messages[:at], replace(message, content=content), *request.messages[at + 1 :])
        return replace(request, messages=messages)

    def reads(self, request: Request, response: Response) -> Response:
        if not self._within(request):
            return response
        begin = answer_at(response.text)
        answer = response.text[begin:]
        if self.k is not None:
            found = guesses_in(answer)
            if found is None:
                return response.replace(stated=Stated())
            first, last = found.first
            spans = [span for span in ((0, first), (last, len(answer))) if span[0] < span[1]]
            stated = Stated(found.values, "guesses")
        else:
            told = statement_in(answer)
            if told is None:
                return response.replace(stated=Stated())
            spans, stated = list(told.cut), Stated((told.value,), told.form)
        shorter = without(response, [(begin + first, begin + last) for first, last in spans])
        return shorter.replace(stated=stated)

    def _within(self, request: Request) -> bool:
        """Whether the answer itself is to state it."""
        free = not request.judged_whole and response_schema(request) is None
        return self.rewords and free and _last_of_user(request) >= 0

    def score(self, evidence: Evidence) -> Measurement:
        response = evidence.response
        if response is None:
            raise SignalUnavailableError("there is no answer yet")
        if response.stated is None:
            raise SignalUnavailableError("the model was not asked for its confidence")
        return _measured(response.stated)

    # ------------------------------------------------------------------ in a second turn

    def judge(self, evidence: Evidence) -> Flow[Measurement]:
        response = evidence.response
        if response is None or self._within(evidence.request):
            return self.score(evidence)
        if response.finish_reason == "aborted":
            raise SignalUnavailableError("the draft was ended before it was whole")
        if evidence.model is None:
            raise SignalUnavailableError("there is no model to ask")
        second = _second_turn(evidence.request, response)
        answer = yield from ask(Generate(evidence.model, second, logprobs=False, aside=True))
        reply = answer.unwrap().answer
        told = statement_of(reply) if reply.strip() else None
        return _measured(Stated() if told is None else Stated((told.value,), told.form))


def _measured(stated: Stated) -> Measurement:
    if not stated.form:
        raise SignalUnavailableError("the model stated no confidence")
    first = stated.values[0] if stated.values else None
    if first is None:
        raise SignalUnavailableError("the confidence that the model stated cannot be read as one number")
    details: dict[str, Any] = {"form": stated.form}
    if len(stated.values) > 1:
        details["others"] = list(stated.values[1:])
    return Measurement(first, details)


def _last_of_user(request: Request) -> int:
    """The index of the last message of the user's; -1 if there is none."""
    return max((i for i, message in enumerate(request.messages) if message.role == "user"), default=-1)


def _second_turn(request: Request, response: Response) -> Request:
    """What asks for the probability of an answer: the conversation with the answer, and the question.

    Without tools: calls of them are told in words, for a provider that reads them wants the tools as well.
    """
    said = response.answer if not response.tool_calls else _in_words(response.answer, response.tool_calls)
    history = list(request.messages)
    with_tools = any(message.tool_calls or message.role == "tool" for message in history)
    if with_tools and request.media:
        raise SignalUnavailableError("of a conversation with both images and tool calls no second turn can be asked")
    if with_tools:
        history = [_plain(message) for message in history]
    thinks = bool(response.thoughts or response.usage.output_details.get("reasoning"))
    limit = request.max_tokens if thinks else _TURN_TOKENS
    return Request(
        messages=(*history, Message("assistant", said), Message("user", SECOND_TURN)),
        max_tokens=limit,
        temperature=request.temperature,
        options={key: value for key, value in request.options.items() if key not in _OF_ANSWERS},
        media=request.media,
        native=None if with_tools else request.native,
    )


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"The tool returned: {message.content}")
    return Message(message.role, _in_words(message.content, message.tool_calls)) if message.tool_calls else message


def _in_words(text: str, calls: Any) -> str:
    told = [f"Call of {call.name} with {json.dumps(dict(call.arguments), ensure_ascii=False)}" for call in calls]
    return "\n".join([text, *told] if text.strip() else told)
