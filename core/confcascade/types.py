"""The values that pass between flows, models and signals. Standard library only; nothing here knows a framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from confcascade.errors import ConfigurationError
from confcascade.quick_init import quick_init
from confcascade.thoughts import part

__all__ = [
    "Cost",
    "Message",
    "OutputSchema",
    "Position",
    "Prefilled",
    "Request",
    "Response",
    "Stated",
    "ThoughtToken",
    "Token",
    "Tool",
    "ToolCall",
    "Usage",
    "WrittenTokens",
]


@dataclass(frozen=True)
class Tool:
    """A tool that a model may call.

    Attributes:
        name: By which it is called.
        parameters: JSON Schema of its arguments; None if unknown, as of a provider's own tools: then all fit.
        description: For the model to read.
        native: The framework's own tool, or the provider's own form, carried through untouched.
    """

    name: str
    parameters: Mapping[str, Any] | None = None
    description: str = ""
    native: Any = None


@quick_init
@dataclass(frozen=True)
class ToolCall:
    """A model's call of a tool; ``id`` is the provider's, which the tool's result refers to."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class OutputSchema:
    """What structured output must fit.

    Attributes:
        name: Of the schema.
        schema: A JSON Schema.
        check: Rules that a JSON Schema cannot say (validators of a pydantic class): given a text that fits the schema,
            why it cannot be used, in one line without its content, or None.
        instructions: What asks for it in words, where a model can be asked in no other way: added to the last message,
            and `check` alone judges the answer. Without, such a model escalates the request.
        native: The framework's own way to ask for it, carried through untouched.
    """

    name: str
    schema: Mapping[str, Any]
    check: Callable[[str], str | None] | None = None
    instructions: str | None = None
    native: Any = None


@quick_init
@dataclass(frozen=True)
class Message:
    """One turn of a conversation: ``role`` is "system", "user", "assistant" or "tool".

    An assistant's turn may carry ``tool_calls``, and a tool's the ``tool_call_id`` of the call that it answers.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @classmethod
    def parse(cls, messages: str | Message | Iterable[Any]) -> tuple[Message, ...]:
        """Messages from one or several strings, `Message` objects or ``{"role": ..., "content": ...}`` mappings.

        Among several, a ``(role, content)`` pair is one message, too.

        Raises:
            ConfigurationError: If there is none, or one is of another form.
        """
        if isinstance(messages, str | Message | Mapping) or not isinstance(messages, Iterable):
            return (cls._parse_one(messages),)
        parsed = tuple(map(cls._parse_one, messages))
        if not parsed:
            raise ConfigurationError("A cascade needs at least one message to answer; `messages` is empty.")
        return parsed

    @classmethod
    def _parse_one(cls, message: Any) -> Message:
        if isinstance(message, Message):
            return message
        if isinstance(message, str):
            return cls("user", message)
        calls: tuple[ToolCall, ...] = ()
        answered: str | None = None
        if isinstance(message, Mapping):
            role, content = message.get("role"), message.get("content")
            content = "" if content is None else content  # a turn that only calls tools
            calls = tuple(map(cls._parse_call, message.get("tool_calls") or ()))
            answered = message.get("tool_call_id")
        elif isinstance(message, Sequence) and len(message) == 2:
            role, content = message
        else:
            role = content = None
        if isinstance(role, str) and isinstance(content, str):
            return cls(role, content, calls, answered)
        raise ConfigurationError(
            "A message must be a Message, a string, a (role, content) pair or a mapping with `role` and `content`, "
            f"its content a string. Got {type(message).__name__}"
            + (f" with content of type {type(content).__name__}." if isinstance(role, str) else ".")
        )

    @staticmethod
    def _parse_call(call: Any) -> ToolCall:
        try:  # OpenAI's form
            function = call["function"]
            arguments = json.loads(function["arguments"] or "{}")
            return ToolCall(function["name"], arguments, call.get("id"))
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigurationError(
                'The `tool_calls` of a message must be of the form {"id": ..., "function": {"name": ..., '
                '"arguments": "{...}"}}, the arguments a JSON object.'
            ) from error


@dataclass(frozen=True)
class WrittenTokens:
    """A text as a local model wrote it.

    Attributes:
        vocabulary: Identifies the tokenizer, and how the prompt has begun the answer.
        ids: Of its tokens.
    """

    vocabulary: str
    ids: tuple[int, ...]

    def __add__(self, other: WrittenTokens) -> WrittenTokens:
        return WrittenTokens(self.vocabulary, self.ids + other.ids)


@quick_init
@dataclass(frozen=True)
class Request:
    """What is asked of every stage alike.

    Attributes:
        messages: The conversation, oldest first.
        max_tokens: Most tokens to generate; None leaves it to the model.
        stop: Strings that end the answer and are not part of it.
        temperature: 0 or None means greedy for models of our own; None leaves an API model's default.
        options: Further per-call parameters, handed to the model as they are.
        tools: Those that may be called; a stage whose model cannot call tools escalates such a request.
        tool_choice: "auto" (or None), "none", "any" (or "required"), the name of a tool, or a provider's own form.
        output: What the answer must fit, if it is to be structured output.
        retrieved: Scores of the passages that were retrieved for this query (None for a passage without one), higher =
            more relevant; None if nothing was retrieved. What `RetrievalScore` reads; models do not.
        media: Whether the framework's own messages hold more than text, such as images; a stage whose model takes only
            text escalates such a request.
        native: The framework's own messages, carried through untouched for the framework's own models.
        stage: The one stage that is to answer, by its model's name or its index; None for the cascade.
        threshold: What replaces the thresholds of the stages for this query: a value for the one signal of each, or
            values by signal; None for their own.
        begun: With what the answer is begun for a model that reads the prompt in this process ("Answer:"): it writes
            what follows, and this is not part of its answer. The cascade sets it, where a signal of the stage wants it.
        written: What has been written of the answer, thoughts and their marks included: the model writes what follows,
            and only that is in its response. For models with `Capability.continues`.
        written_tokens: The same in tokens, where all who wrote it have the same ones. A model that has them, too, reads
            them and not the text, which may hide a blank or be taken apart otherwise.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    tool_choice: Any = None
    output: OutputSchema | None = None
    retrieved: tuple[float | None, ...] | None = None
    media: bool = False
    native: Any = None
    stage: str | int | None = None
    threshold: Any = None  # Threshold | Mapping[str, Threshold]
    begun: str = ""
    written: str = ""
    written_tokens: WrittenTokens | None = None

    @property
    def judged_whole(self) -> bool:
        """Whether only a whole answer can be judged: it may be a tool call, or must fit a schema."""
        return bool(self.tools) or self.output is not None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ConfigurationError("A cascade needs at least one message to answer; `messages` is empty.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigurationError(f"`max_tokens` must be at least 1, or None for no limit. Got {self.max_tokens}.")
        if isinstance(self.stop, str):
            raise ConfigurationError(f"`stop` must be a sequence of strings, such as [{self.stop!r}]. Got a string.")
        if self.tools and self.output is not None:
            raise ConfigurationError("A request can carry either `tools` or `output`. Got both.")


@quick_init
@dataclass(frozen=True)
class Token:
    """A generated token (end-of-text tokens are left out).

    Attributes:
        text: What it adds to the answer; empty while a character is incomplete.
        logprob: Natural logarithm of its probability under the model, before temperature and truncation.
        top: The most probable alternatives at its position, as (text, log-probability), where asked for.
        max_logit: The greatest raw logit at its position, whichever token had it; None where the model does not tell
            it, as no API does.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    max_logit: float | None = None


@dataclass(frozen=True)
class Position:
    """What a model expects at a place in a text, before anything is written there.

    Attributes:
        entropy: Of the next token's distribution, in nats.
        max_logit: The greatest raw logit; None where only log-probabilities are known.
    """

    entropy: float
    max_logit: float | None = None


@quick_init
@dataclass(frozen=True)
class ThoughtToken(Token):
    """One that the server lists with the thoughts, apart from those of the answer."""


@quick_init
@dataclass(frozen=True)
class Usage:
    """Tokens paid for.

    Attributes:
        input_tokens: Of the prompt, those from a cache included.
        output_tokens: Of the answer, thoughts included.
        estimated: Whether the provider did not report them (an aborted stream, say).
        input_details: What of the input tokens is counted apart, under LangChain's names: "cache_read",
            "cache_creation", "audio". Empty where the provider reports nothing of it.
        output_details: The same of the output tokens: "reasoning", "audio".
    """

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    input_details: Mapping[str, int] = field(default_factory=dict)
    output_details: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_tokens(self) -> int:
        """Input and output tokens."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.estimated or other.estimated,
            _sum(self.input_details, other.input_details),
            _sum(self.output_details, other.output_details),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; details only where there are any."""
        told: dict[str, Any] = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "estimated": self.estimated,
        }
        if self.input_details:
            told["input_details"] = dict(self.input_details)
        if self.output_details:
            told["output_details"] = dict(self.output_details)
        return told


def _sum(a: Mapping[str, int], b: Mapping[str, int]) -> Mapping[str, int]:
    if not (a and b):
        return a or b
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}


@quick_init
@dataclass(frozen=True)
class Cost:
    """A cost; None where it is not known (no architecture, no prices), never zero in its place."""

    flops: float | None = 0.0
    tokens: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        def plus(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        return Cost(
            plus(self.flops, other.flops),
            self.tokens + other.tokens,
            plus(self.usd, other.usd),
            self.seconds + other.seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


@quick_init
@dataclass(frozen=True)
class Prefilled:
    """What one forward pass over the prompt gives, before anything is decoded.

    Attributes:
        usage: The prompt's tokens, and those that a call of its own had to write.
        hidden_states: Hidden state of the last prompt token by layer: float32 arrays of shape (hidden_size,).
        label_logprobs: Log-probability that the answer begins with each declared label, " A" and "A" pooled.
        tokens: Those of `Request.written` that were read now, with the log-probabilities that this model gives them,
            where asked for. It may not have written them itself.
        following: What is expected next, where asked for.
        state: The model's own, to continue from (a KV cache). The driver frees it with `close`.
        depth: The share of the model's blocks that were run, in (0, 1], where the ask's gate ended the pass behind them
            (`Prefill.gate`): there are no `label_logprobs`, no `following` and no `state` then, and only hidden states
            up to there. None of a pass that went on to its end.
        apart: Whether it was a call of its own: the answer reads the prompt again, and both are paid for.
    """

    usage: Usage
    hidden_states: Mapping[int, Any] = field(default_factory=dict)
    label_logprobs: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    following: Position | None = None
    state: Any = None
    depth: float | None = None
    apart: bool = False

    def close(self) -> None:
        """Free the state; the measured values stay."""
        if self.state is not None:
            self.state.close()


@dataclass(frozen=True)
class Stated:
    """What a model stated of its own confidence, where a signal had asked it to, and read it.

    Attributes:
        values: In [0, 1], of its answer first and then of other guesses; None where it cannot be read.
        form: In which words, as of `confcascade.signals.stated.Statement`, or "guesses"; "" if it stated nothing.
    """

    values: tuple[float | None, ...] = ()
    form: str = ""


@quick_init
@dataclass(frozen=True)
class Response:
    """A model's answer.

    Attributes:
        text: What the user sees.
        tokens: The answer's tokens with log-probabilities, or None where the model tells none. As a model gives a
            response, all tokens that it tells, in their order: `confcascade.answers.parted` takes the others out.
        usage: Tokens paid for, those of the prompt included.
        finish_reason: "stop", "length", "tool_calls", "aborted" or a provider's own word.
        tool_calls: The calls in it that could be read.
        problem: Why it cannot be used, in one line without its content, as far as the model's adapter can tell (a call
            that could not be read, output that does not validate); None if it can.
        native: The framework's own response object, carried through untouched.
        thoughts: What the model thought before it answered, as far as it is told, apart from the text or in it.
        thought_tokens: The tokens before those of the answer: of the thoughts, of their marks, blanks.
        unscored: Why there are no `tokens`, where the model told some.
        cost: What it has cost, where several models wrote it; None where its one model's architecture and prices say.
        steps: Who wrote which part of it, where several models did: `confcascade.trace.Step` objects.
        written_tokens: Its tokens, for a model that goes on with it; None where the model does not tell them.
        stated: The model's confidence in its own words, which a signal of the stage had asked for. It is taken off
            `text` and `tokens`; `native` has it still.
        corrected: The label that the model gave, where another stands in its place (`TokenProbability(corrects=True)`).
            There are no `tokens` then; `native` has the model's own answer.
        hidden_states: As of `Prefilled`, where they were asked for with the answer (`Generate.layers`).
    """

    text: str
    tokens: tuple[Token, ...] | None = None
    usage: Usage = Usage()
    finish_reason: str | None = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    problem: str | None = None
    native: Any = None
    thoughts: str = ""
    thought_tokens: tuple[Token, ...] | None = None
    unscored: str | None = None
    cost: Cost | None = None
    steps: tuple[Any, ...] = ()
    written_tokens: WrittenTokens | None = None
    stated: Stated | None = None
    corrected: str | None = None
    hidden_states: Mapping[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def altered(self) -> bool:
        """Whether the text is no longer the model's own (`stated`, `corrected`); `native` has that still."""
        return self.stated is not None or self.corrected is not None

    @property
    def answer(self) -> str:
        """The text without thoughts in it: what is scored and graded."""
        return part(self.text).answer

    @property
    def thoughts_apart(self) -> str:
        """The thoughts, where they are not in the text as well."""
        return self.thoughts if self.thoughts and self.answer == self.text else ""

    @property
    def is_empty(self) -> bool:
        """Whether there is no answer: no text behind the thoughts and no tool call."""
        return not self.answer.strip() and not self.calls_tools

    @property
    def calls_tools(self) -> bool:
        """Whether it calls a tool, be it in a way that cannot be read."""
        return bool(self.tool_calls) or self.finish_reason == "tool_calls"

    def replace(self, **changes: Any) -> Response:
        """A copy with other values in some fields."""
        return replace(self, **changes)
