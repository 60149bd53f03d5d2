"""Between LangChain's messages and the core's values, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from confcascade import (
    Chunk,
    ConfigurationError,
    Generate,
    Message,
    ModelError,
    Request,
    Response,
    Token,
    Usage,
    Watcher,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import UsageMetadata

__all__ = ["Reading", "chunk_from", "request_from", "response_from", "shown", "tokens_from", "usage_metadata"]


def request_from(
    messages: Sequence[BaseMessage], stop: Sequence[str] | str | None, parameters: Mapping[str, Any]
) -> Request:
    """What `_generate` and its like are given, as the core takes it; `parameters` go to every stage alike.

    Raises:
        ConfigurationError: If there is no message, or `model` is among the parameters.
    """
    if "model" in parameters:
        raise ConfigurationError("`model` cannot be given per call: a cascade's models are its stages.")
    options = {key: value for key, value in parameters.items() if key != "stream"}
    return Request(
        messages=tuple([Message(_role(message), _text(message)) for message in messages]),
        max_tokens=options.pop("max_tokens", None),
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        temperature=options.pop("temperature", None),
        options=options,
        native=list(messages),
    )


def _text(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else str(message.text)


def _role(message: BaseMessage) -> str:
    match message:
        case SystemMessage():
            return "system"
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case ChatMessage():
            return message.role
    return "tool"


def usage_metadata(usage: Usage) -> UsageMetadata | None:
    """The same in LangChain's words; None if no model told any."""
    if usage.estimated and not usage.total_tokens:
        return None
    return UsageMetadata(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=usage.total_tokens
    )


def shown(chunk: Chunk) -> AIMessageChunk | None:
    """What a stream shows of a stage's chunk: content and tool calls, but none of the stage's accounts."""
    native = chunk.native
    if not isinstance(native, AIMessage):
        return AIMessageChunk(content=chunk.text) if chunk.text else None
    native = chunk_from(native)
    if not (native.content or native.tool_call_chunks or native.additional_kwargs):
        return None
    # how its content is to be read stays with it; LangChain merges these two
    kept = {
        key: value for key, value in native.response_metadata.items() if key in ("model_provider", "output_version")
    }
    changes = {"id": None, "usage_metadata": None, "response_metadata": kept, "chunk_position": None}
    return native.model_copy(update=changes)


class Reading:
    """A streamed answer as it comes in."""

    def __init__(self, ask: Generate) -> None:
        self.ended = False
        self._watcher = Watcher(ask)
        self._name = ask.model.name
        self._chunks: list[AIMessageChunk] = []
        self._tokens: list[Token] | None = None

    @property
    def begun(self) -> bool:
        return bool(self._chunks)

    def add(self, message: AIMessage | None) -> Iterator[Chunk]:
        """Take the next piece, or None at the end."""
        if message is None:
            self.ended = True
            return
        chunk = chunk_from(message)
        self._chunks.append(chunk)
        tokens = tokens_from(chunk.response_metadata)
        if tokens is not None:
            self._tokens = self._tokens or []
            self._tokens += tokens
            if tokens:
                self._watcher.see(self._tokens)
        self.ended = self._watcher.verdict == "abort"
        yield Chunk(_text(chunk), tokens or (), released=self._watcher.verdict == "release", native=chunk)

    def response(self) -> Response:
        if not self._chunks:
            raise ModelError(f"The stream of model '{self._name}' ended before it began.")
        response = response_from(self._chunks[0] + self._chunks[1:])
        response = response.replace(tokens=None if self._tokens is None else tuple(self._tokens))
        if self._watcher.verdict != "abort":
            return response
        # closed before the server told all: what was seen is what is known
        seen = max(response.usage.output_tokens, len(response.tokens or ()))
        usage = Usage(response.usage.input_tokens, seen, estimated=True)
        return response.replace(usage=usage, finish_reason="aborted")


def chunk_from(message: AIMessage) -> AIMessageChunk:
    """A message as a chunk: a model that does not stream gives its one message."""
    if isinstance(message, AIMessageChunk):
        return message
    fields = ("content", "additional_kwargs", "response_metadata", "tool_calls", "invalid_tool_calls", "usage_metadata")
    return AIMessageChunk(**{field: getattr(message, field) for field in fields})


def response_from(message: BaseMessage) -> Response:
    """A stage's answer, with the message itself in it.

    Raises:
        ModelError: If it is no AIMessage.
    """
    message = message_chunk_to_message(message)
    if not isinstance(message, AIMessage):
        raise ModelError(f"A chat model must answer with an AIMessage. Got {type(message).__name__}.")
    metadata = message.response_metadata
    reason = next((metadata[key] for key in ("finish_reason", "stop_reason", "done_reason") if metadata.get(key)), None)
    usage = message.usage_metadata
    return Response(
        text=_text(message),
        tokens=tokens_from(metadata),
        usage=Usage(usage["input_tokens"], usage["output_tokens"]) if usage else Usage(estimated=True),
        finish_reason="tool_calls" if message.tool_calls else reason,
        native=message,
    )


def tokens_from(metadata: Mapping[str, Any]) -> tuple[Token, ...] | None:
    """The visible tokens of an answer; end-of-text entries, which have no text or no bytes, are left out.

    Reads ``{"content": [{token, logprob, top_logprobs}]}`` (OpenAI), the list alone (Ollama) and
    ``{"tokens": [...], "token_logprobs": [...]}`` (Together). None if there are none, or of another form.
    """
    logprobs = metadata.get("logprobs")
    entries: Any = logprobs
    if isinstance(logprobs, Mapping):
        entries = logprobs.get("content")
        if "token_logprobs" in logprobs:
            pairs = zip(logprobs.get("tokens") or (), logprobs["token_logprobs"] or (), strict=False)
            entries = [{"token": token, "logprob": logprob} for token, logprob in pairs]
    if not isinstance(entries, list):
        return None
    try:
        return tuple(
            [
                Token(entry["token"], min(0.0, entry["logprob"]), _top(entry.get("top_logprobs") or ()))
                for entry in entries
                if entry["token"] != "" and entry.get("bytes") != []
            ]
        )
    except (AttributeError, KeyError, TypeError):  # looked at, hundreds of entries would take longer than to read
        return None


def _top(alternatives: Iterable[Any]) -> tuple[tuple[str, float], ...]:
    return tuple([(other["token"], min(0.0, other["logprob"])) for other in alternatives if _is_entry(other)])


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "token" in entry and isinstance(entry.get("logprob"), int | float)
