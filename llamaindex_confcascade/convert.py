"""Between LlamaIndex's messages and responses and the core's values, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confcascade import ConfigurationError, Message, Outcome, Request, ToolCall, Usage
from confcascade.extending import Chunk, Response, Token
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    DocumentBlock,
    ImageBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    VideoBlock,
)

from llamaindex_confcascade.asking import Asked
from llamaindex_confcascade.made import copied, made
from llamaindex_confcascade.retrieval import retrieved_scores
from llamaindex_confcascade.structured import BoundSchema, Parsed
from llamaindex_confcascade.tools import call_blocks, plain_tool, read_calls, tool_messages

__all__ = ["chunk_of", "completion_of", "request_from", "response_of"]

_MEDIA = (AudioBlock, DocumentBlock, ImageBlock, VideoBlock)
_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def request_from(asked: Asked, kwargs: Mapping[str, Any]) -> Request:
    """What a cascade is asked: messages, how they were asked, and the parameters of the call.

    `stage` and `threshold` among these are the cascade's own; all others are handed to the stages.

    Raises:
        ConfigurationError: If they are not messages of LlamaIndex's.
    """
    if wrong := next((message for message in asked if not isinstance(message, ChatMessage)), None):
        raise ConfigurationError(
            f'`messages` must be a list of ChatMessage, such as [ChatMessage(role="user", content="...")]. Got a '
            f"list of {type(wrong).__name__}. A text goes into `complete`."
        )
    options = {**(asked.template.parameters if asked.template else {}), **kwargs}
    stop = options.pop("stop", None) or ()
    tools = tuple(plain_tool(tool) for tool in options.pop("tools", None) or ())
    wanted = options.get("response_format")
    if isinstance(wanted, BoundSchema):
        del options["response_format"]
    return Request(
        tuple(_plain(message) for message in asked),
        tools=tools,
        tool_choice=options.pop("tool_choice", None) if tools else None,
        output=wanted.output if isinstance(wanted, BoundSchema) else None,
        max_tokens=options.pop("max_tokens", None),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        temperature=options.pop("temperature", None),
        stage=options.pop("stage", None),
        threshold=options.pop("threshold", None),
        options=options,
        retrieved=retrieved_scores(),
        media=any(
            type(block) is not TextBlock and isinstance(block, _MEDIA) for each in asked for block in each.blocks
        ),
        native=asked,
    )


def _plain(message: ChatMessage) -> Message:
    return Message(
        _ROLES.get(message.role, "user"),
        message.content or "",
        read_calls(message)[0],
        message.additional_kwargs.get("tool_call_id") if _ROLES.get(message.role) == "tool" else None,
    )


def response_of(outcome: Outcome, delta: str | None = None) -> ChatResponse:
    usage, tokens = outcome.record.usage, outcome.response.tokens
    counts = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    in_detail = {name: told for name, told in _details(usage).items() if told}
    native = _native(outcome.response)
    raw = outcome.response.native if native is None else native.raw
    response = made(
        ChatResponse,
        message=_message(
            native,
            outcome.text,
            outcome.response.tool_calls,
            outcome.response.thoughts_apart,
            altered=outcome.response.altered,
        ),
        raw={"usage": counts | in_detail} | ({} if raw is None else {"native": raw}),
        delta=delta,
        logprobs=None if tokens is None else [_logprobs(token) for token in tokens],
        # not on the message: from there it would leak into prompts and memories
        additional_kwargs={
            **(native.additional_kwargs if native is not None else {}),
            **counts,
            "confcascade": outcome.record.as_dict(),
        },
    )
    return native.carried_by(response) if isinstance(native, Parsed) else response


def _details(usage: Usage) -> dict[str, dict[str, int]]:
    """Under OpenAI's names, by which tracers know them."""
    names = {"cache_read": "cached_tokens", "reasoning": "reasoning_tokens", "audio": "audio_tokens"}
    return {
        name: {names.get(key, f"{key}_tokens"): count for key, count in details.items()}
        for name, details in (
            ("prompt_tokens_details", usage.input_details),
            ("completion_tokens_details", usage.output_details),
        )
    }


def chunk_of(chunk: Chunk, text: str) -> ChatResponse:
    """A piece of an answer, with what the stage's own piece says beside its text: thoughts, the provider's event."""
    native = _native(chunk)
    return made(
        ChatResponse,
        message=_message(native, text),
        raw=None if native is None else native.raw,
        delta=chunk.text,
        logprobs=None,
        additional_kwargs=_thinking(chunk.thoughts) if native is None else dict(native.additional_kwargs),
    )


def _thinking(thoughts: str) -> dict[str, Any]:
    """Those of a core model's chunk, where LlamaIndex's own LLMs put them."""
    return {"thinking_delta": thoughts} if thoughts else {}


def _native(answer: Response | Chunk) -> ChatResponse | None:
    """What the stage itself returned, if it is a LlamaIndex LLM."""
    return answer.native if isinstance(answer.native, ChatResponse) else None


def _message(
    native: ChatResponse | None,
    text: str,
    calls: Sequence[ToolCall] = (),
    thoughts: str = "",
    *,
    altered: bool = False,
) -> ChatMessage:
    """A copy of the stage's message, if it is LlamaIndex's: some LLMs return shared objects."""
    if native is None:
        thought = [ThinkingBlock(content=thoughts)] if thoughts else []
        blocks = [*thought, *([TextBlock(text=text)] if text or not calls else []), *call_blocks(calls)]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=tool_messages(calls))
    message = copied(native.message)
    if (message.content or "") != text and (altered or all(isinstance(block, TextBlock) for block in message.blocks)):
        # some streams repeat the increment where the whole belongs, or the message is as the model wrote it
        others = [block for block in message.blocks if not isinstance(block, TextBlock)]
        message.blocks = [*others, TextBlock(text=text)]
    return message


def _logprobs(token: Token) -> list[LogProb]:
    """The chosen token and its alternatives."""
    told = [(token.text, token.logprob)]
    if token.top:
        told += [other for other in token.top if other[0] != token.text]
    return [
        made(LogProb, token=text, logprob=logprob, bytes=list(text.encode("utf-8", "surrogatepass")))
        for text, logprob in told
    ]


def completion_of(chat: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=chat.message.content or "",
        additional_kwargs={**chat.message.additional_kwargs, **chat.additional_kwargs},
        raw=chat.raw,
        logprobs=chat.logprobs,
        delta=chat.delta,
    )
