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
from llamaindex_confcascade.late import late_response
from llamaindex_confcascade.made import copied, is_plain, made, made_all, text_of
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
    wrong = [message for message in asked if not isinstance(message, ChatMessage)]
    if wrong:
        raise ConfigurationError(
            f'`messages` must be a list of ChatMessage, such as [ChatMessage(role="user", content="...")]. Got a '
            f"list of {type(wrong[0]).__name__}. A text goes into `complete`."
        )
    options = {**(asked.template.parameters if asked.template else {}), **kwargs}
    messages = tuple([_plain(message) for message in asked])
    media = any(map(_holds_media, asked))
    if not options:
        return Request(messages, retrieved=retrieved_scores(), media=media, native=asked)
    stop = options.pop("stop", None) or ()
    tools = tuple(plain_tool(tool) for tool in options.pop("tools", None) or ())
    wanted = options.get("response_format")
    if isinstance(wanted, BoundSchema):
        del options["response_format"]
    return Request(
        messages,
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
        media=media,
        native=asked,
    )


def _holds_media(message: ChatMessage) -> bool:
    return not is_plain(message) and any(isinstance(block, _MEDIA) for block in message.blocks)


def _plain(message: ChatMessage) -> Message:
    role = _ROLES.get(message.role, "user")
    return Message(
        role,
        text_of(message),
        read_calls(message)[0],
        message.additional_kwargs.get("tool_call_id") if role == "tool" else None,
    )


def response_of(outcome: Outcome, delta: str | None = None) -> ChatResponse:
    record, tokens = outcome.record, outcome.response.tokens
    usage = record.usage
    counts = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    in_detail = _details(usage) if usage.input_details or usage.output_details else {}
    native = _native(outcome.response)
    raw = outcome.response.native if native is None else native.raw
    told = counts if native is None else native.additional_kwargs | counts

    def late() -> tuple[list[list[LogProb]] | None, dict[str, Any]]:
        # the record is not on the message: from there it would leak into prompts and memories
        return None if tokens is None else _logprobs(tokens), {**told, "confcascade": record.as_dict()}

    message = _message(
        native,
        outcome.text,
        outcome.response.tool_calls,
        outcome.response.thoughts_apart,
        altered=outcome.response.altered,
    )
    accounts = {"usage": counts | in_detail}
    response = late_response(message, accounts if raw is None else {**accounts, "native": raw}, delta, late)
    return native.carried_by(response) if isinstance(native, Parsed) else response


def _details(usage: Usage) -> dict[str, dict[str, int]]:
    """Those that are told, under OpenAI's names, by which tracers know them."""
    names = {"cache_read": "cached_tokens", "reasoning": "reasoning_tokens", "audio": "audio_tokens"}
    return {
        name: {names.get(key, f"{key}_tokens"): count for key, count in details.items()}
        for name, details in (
            ("prompt_tokens_details", usage.input_details),
            ("completion_tokens_details", usage.output_details),
        )
        if details
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
    message.model_fields_set.update(("blocks", "additional_kwargs"))
    if text_of(message) != text and (altered or all(isinstance(block, TextBlock) for block in message.blocks)):
        # some streams repeat the increment where the whole belongs, or the message is as the model wrote it
        others = [block for block in message.blocks if not isinstance(block, TextBlock)]
        message.blocks = [*others, TextBlock(text=text)]
    return message


def _logprobs(tokens: Sequence[Token]) -> list[list[LogProb]]:
    """Of each token: it, and its alternatives."""
    if not any(token.top for token in tokens):
        return [[each] for each in _made_logprobs([(token.text, token.logprob) for token in tokens])]
    return [
        _made_logprobs([(token.text, token.logprob), *(other for other in token.top if other[0] != token.text)])
        for token in tokens
    ]


def _made_logprobs(told: Sequence[tuple[str, float]]) -> list[LogProb]:
    return made_all(
        LogProb,
        [
            {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}
            for text, logprob in told
        ],
    )


def completion_of(chat: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=chat.message.content or "",
        additional_kwargs={**chat.message.additional_kwargs, **chat.additional_kwargs},
        raw=chat.raw,
        logprobs=chat.logprobs,
        delta=chat.delta,
    )
