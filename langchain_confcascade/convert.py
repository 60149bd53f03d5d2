"""From LangChain's messages to the core's values, and questions of the core as messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from confcascade import ConfigurationError, Message, ModelError, Request, ToolCall, Usage
from confcascade.extending import (
    CUT,
    Chunk,
    Generate,
    Piece,
    Response,
    StreamReader,
    Token,
    estimated_usage,
    in_turn,
    thoughts_apart,
    whole_tokens,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
    message_chunk_to_message,
)
from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel

from langchain_confcascade.structured import Structured
from langchain_confcascade.tools import plain_tool

__all__ = [
    "PER_CALL",
    "Asked",
    "Reading",
    "asked_messages",
    "changed",
    "chunk_from",
    "copied",
    "messages_from",
    "request_from",
    "response_from",
    "shown_content",
]

T = TypeVar("T", bound=BaseMessage)
# what an instance of a pydantic class is made of
_set_values, _set_told, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
PER_CALL = ("stage", "threshold")  # parameters of a call that are the cascade's
_LOGPROBS = ("logprobs", "logprobs_result")  # where messages carry them; the second is Vertex's
# types of content blocks, of LangChain and of providers
_MEDIA = set("audio document file image image_url input_audio input_file input_image media video".split())


class Asked(list[BaseMessage]):
    """The messages of a query.

    Attributes:
        seen: The same as the core sees them; a request with others asks for more than these.
        ended: How it ended, from then until its attempts are reported: what `Cascade` hands to ``on_ended``.
    """

    seen: tuple[Message, ...] | None = None
    ended: Any = None  # an `Outcome`, or its like for a query that failed or was left


def request_from(
    messages: Sequence[BaseMessage], stop: Sequence[str] | str | None, parameters: Mapping[str, Any]
) -> Request:
    """What `_generate` and its like are given, as the core takes it.

    Of `parameters`, ``stage`` and ``threshold`` are the cascade's; all others go to every stage alike.

    Raises:
        ConfigurationError: If there is no message, or `model` is among the parameters.
    """
    if "model" in parameters:
        raise ConfigurationError("`model` cannot be given per call: a cascade's models are its stages.")
    asked = Asked(messages)
    asked.seen = tuple([_message(message) for message in messages])
    media = any(map(_holds_media, messages))
    if not (parameters or stop):
        return Request(asked.seen, media=media, native=asked)
    options = {key: value for key, value in parameters.items() if key != "stream"}
    chosen = {key: options.pop(key) for key in PER_CALL if key in options}
    tools = tuple(plain_tool(tool) for tool in options.pop("tools", None) or ())
    structured: Structured | None = options.pop("structured_output", None)
    return Request(
        messages=asked.seen,
        max_tokens=options.pop("max_tokens", None),
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        temperature=options.pop("temperature", None),
        tools=tools,
        tool_choice=options.pop("tool_choice", None) if tools else None,
        output=None if structured is None else structured.output,
        options=options,
        media=media,
        native=asked,
        **chosen,
    )


def _holds_media(message: BaseMessage) -> bool:
    return isinstance(message.content, list) and any(
        isinstance(block, dict) and block.get("type") in _MEDIA for block in message.content
    )


def _message(message: BaseMessage) -> Message:
    role = _role(type(message))
    if role in ("user", "system"):
        return Message(role, _text(message))
    return Message(
        role or message.role,  # type: ignore[attr-defined]  # a ChatMessage says its own
        _text(message),
        _calls(message) if isinstance(message, AIMessage) else (),
        message.tool_call_id if isinstance(message, ToolMessage) else None,
    )


def _text(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else str(message.text)


def _calls(message: AIMessage) -> tuple[ToolCall, ...]:
    told = message.tool_calls
    return tuple(ToolCall(call["name"], call["args"], call.get("id")) for call in told) if told else ()


@lru_cache(maxsize=128)
def _role(kind: type[BaseMessage]) -> str:
    """Of messages of a class, once for each: pydantic's classes take long to say whose instance a message is.

    Returns:
        "" for a `ChatMessage`, which says it itself.
    """
    for cls, role in ((SystemMessage, "system"), (HumanMessage, "user"), (AIMessage, "assistant"), (ChatMessage, "")):
        if issubclass(kind, cls):
            return role
    return "tool"


def copied(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Messages that a stage may edit: neither the caller's nor another stage's change with them."""
    return [_copied(message) for message in messages]


def _copied(message: BaseMessage) -> BaseMessage:
    changes: dict[str, Any] = {"additional_kwargs": dict(message.additional_kwargs)}
    if isinstance(message.content, list):
        changes["content"] = [dict(block) if isinstance(block, dict) else block for block in message.content]
    return changed(message, changes)


def asked_messages(request: Request) -> list[BaseMessage]:
    """What a stage is asked: the caller's own messages, with what a signal of the stage adds to them."""
    if request.native is None:
        return messages_from(request.messages)
    asked = copied(request.native)
    seen = getattr(request.native, "seen", None)
    if seen is None or seen is request.messages:
        return asked
    for message, was, now in zip(asked, seen, request.messages, strict=False):
        if was.content != now.content:
            before, _, after = now.content.partition(was.content) if was.content else (now.content, "", "")
            message.content = _with(message.content, before, after)
    return [*asked, *messages_from(request.messages[len(seen) :])]


def _with(content: str | list[Any], before: str, after: str) -> str | list[Any]:
    """The content of a message with a text before it and one behind."""
    if isinstance(content, str):
        return before + content + after
    return [
        *([{"type": "text", "text": before}] if before else []),
        *content,
        *([{"type": "text", "text": after}] if after else []),
    ]


def shown_content(content: str | list[Any], text: str) -> str | list[Any]:
    """The content of a stage's message with another text in the place of its own."""
    if isinstance(content, str):
        return text
    others = [block for block in content if not (isinstance(block, str) or block.get("type") == "text")]
    return [*others, {"type": "text", "text": text}]


def messages_from(messages: Sequence[Message]) -> list[BaseMessage]:
    """The core's messages as LangChain's, with their tool calls and results."""
    return convert_to_messages(
        [
            {
                "role": message.role,
                "content": message.content,
                "tool_calls": [
                    {"name": call.name, "args": dict(call.arguments), "id": call.id, "type": "tool_call"}
                    for call in message.tool_calls
                ],
                "tool_call_id": message.tool_call_id,
            }
            for message in messages
        ]
    )


class Reading(StreamReader):
    """A streamed answer as it comes in.

    Args:
        keeps_logprobs: Whether log-probabilities stay on its chunks.
        repeated: As of `StreamReader`.
        so_far: Whether the usage of a chunk is that of all so far; else theirs add up.
    """

    def __init__(
        self, ask: Generate, *, keeps_logprobs: bool = True, repeated: bool | None = None, so_far: bool = False
    ) -> None:
        super().__init__(ask, repeated=repeated)
        self._repeated, self._so_far = repeated, so_far
        self._latest: UsageMetadata | None = None
        self._over = False
        self._keeps_logprobs = keeps_logprobs
        self._chunks: list[AIMessageChunk] = []

    @property
    def begun(self) -> bool:
        return bool(self._chunks)

    @property
    def ended(self) -> bool:
        """Whether nothing more is read, or nothing more comes."""
        return self._over or super().ended

    def take(self, message: AIMessage | None) -> Iterator[Chunk]:
        """The next piece, or None at the end."""
        if message is None:
            self._over = True
            if self._repeated:
                yield from self.add(Piece(finish_reason="stop"))  # what was held back
            return
        told, chunk = _logprobs(message), chunk_from(message)
        if not self._keeps_logprobs:
            chunk = _without_logprobs(chunk)
        if self._so_far:
            self._latest = chunk.usage_metadata or self._latest
        self._chunks.append(chunk)
        calls = bool(chunk.tool_call_chunks or chunk.tool_calls)
        piece = Piece(_text(chunk), _thoughts(chunk), told, calls, native=chunk)
        shown = False
        for each in self.add(piece):
            shown = True
            yield each
        if not shown:  # without text it may carry what only the framework reads: accounts, or what its provider adds
            yield Chunk("", native=chunk, released=self.released)

    def response(self) -> Response:
        if not self._chunks:
            raise ModelError(f"The stream of model '{self._ask.model.name}' ended before it began.")
        response = _response(self._chunks[0] + self._chunks[1:])
        if in_turn(self._ask):  # without what was repeated, and what followed behind the step
            response = response.replace(text=self.text)
        if self._so_far:
            response = response.replace(usage=_usage(self._latest))
        elif self.closed and len(self._chunks) > 1:  # what adds up was not all told
            response = response.replace(usage=replace(response.usage, estimated=True))
        return _with_usage(self.finished(response), self._ask)


def chunk_from(message: AIMessage) -> AIMessageChunk:
    """A message as a chunk: a model that does not stream gives its one message."""
    if isinstance(message, AIMessageChunk):
        return message
    fields = ("content", "additional_kwargs", "response_metadata", "tool_calls", "invalid_tool_calls", "usage_metadata")
    return AIMessageChunk(**{field: getattr(message, field) for field in fields})


def response_from(message: BaseMessage, ask: Generate, *, keeps_logprobs: bool = True) -> Response:
    """A stage's answer to `ask`, with the message in it, without its log-probabilities unless they are to be kept.

    Raises:
        ModelError: If it is not an AIMessage.
    """
    tokens, unscored = whole_tokens(_logprobs(message), ask.top_logprobs)
    return _with_usage(_response(message if keeps_logprobs else _without_logprobs(message), tokens, unscored), ask)


def _logprobs(message: BaseMessage) -> Any:
    metadata = message.response_metadata
    return metadata.get(_LOGPROBS[0]) or metadata.get(_LOGPROBS[1]) or None


def _without_logprobs(message: T) -> T:
    """A copy as it would be without them: they weigh a dozen times the text, and are read by now."""
    metadata = {key: value for key, value in message.response_metadata.items() if key not in _LOGPROBS}
    changes: dict[str, Any] = {"response_metadata": metadata}
    if isinstance(message.content, list):
        changes["content"] = [
            {key: value for key, value in block.items() if key != "logprobs"} if isinstance(block, dict) else block
            for block in message.content
        ]
    return changed(message, changes)


def changed(message: T, changes: Mapping[str, Any]) -> T:
    """A copy with other values in some fields, as `model_copy` makes it in three times the time."""
    if message.__pydantic_private__ is not None:
        return message.model_copy(update=dict(changes))
    kind, extra = type(message), message.__pydantic_extra__
    other = kind.__new__(kind)
    _set_values(other, {**vars(message), **changes})
    _set_told(other, message.model_fields_set | changes.keys())
    _set_extra(other, None if extra is None else dict(extra))
    _set_private(other, None)
    return other


def _thoughts(message: BaseMessage) -> str:
    return thoughts_apart(message.additional_kwargs, message.content)


def _response(message: BaseMessage, tokens: tuple[Token, ...] | None = None, unscored: str | None = None) -> Response:
    """What a message says; of a stream, its tokens are still to be told."""
    problem = _unread_call(message)
    if type(message) is not AIMessage and isinstance(message, AIMessageChunk):
        message = message_chunk_to_message(message)
    if not isinstance(message, AIMessage):
        raise ModelError(f"A chat model must answer with an AIMessage. Got {type(message).__name__}.")
    metadata = message.response_metadata
    reason = metadata.get("finish_reason") or metadata.get("stop_reason") or metadata.get("done_reason") or None
    called = message.tool_calls or message.invalid_tool_calls
    return Response(
        text=_text(message),
        tokens=tokens,
        unscored=unscored,
        usage=_usage(message.usage_metadata),
        # one that cannot be read is a call all the same: the last stage's is shown, as it would be alone
        finish_reason="tool_calls" if called and reason not in CUT else reason,
        tool_calls=_calls(message),
        problem=problem,
        native=message,
        thoughts=_thoughts(message),
    )


def _usage(told: UsageMetadata | None) -> Usage:
    if told and told.get("total_cost") == 0:  # what LangChain writes on an answer out of a cache
        return Usage()
    if not told or not (told["input_tokens"] or told["output_tokens"]):
        return Usage(estimated=True)
    return Usage(
        told["input_tokens"],
        told["output_tokens"],
        input_details=_details(told.get("input_token_details")),
        output_details=_details(told.get("output_token_details")),
    )


def _details(told: Mapping[str, Any] | None) -> dict[str, int]:
    return {name: count for name, count in told.items() if isinstance(count, int)} if told else {}


def _with_usage(response: Response, ask: Generate) -> Response:
    """Estimated, where the server does not report it; of a prompt with images it stays unknown."""
    if not response.usage.estimated or response.usage.total_tokens or ask.request.media:
        return response
    calls = "".join(f"{call.name}{json.dumps(dict(call.arguments), default=str)}" for call in response.tool_calls)
    usage = estimated_usage(ask, response.thoughts + response.text + calls, response.tokens)
    return response.replace(usage=usage)


def _unread_call(message: BaseMessage) -> str | None:
    """Says if a tool call could not be read, which streams forgive: they complete what was cut off."""
    if type(message) is not AIMessage and isinstance(message, AIMessageChunk):
        readable = all(_is_object(chunk["args"] or "{}") for chunk in message.tool_call_chunks)
    else:
        readable = not (isinstance(message, AIMessage) and message.invalid_tool_calls)
    return None if readable else "the arguments of a tool call are not a JSON object"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except ValueError:
        return False
