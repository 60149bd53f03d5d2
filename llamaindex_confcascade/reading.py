"""What came back from a LlamaIndex LLM, whole or streamed, as the core's `Response`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confcascade import ToolCall, Usage
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
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ThinkingBlock, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.made import is_plain, text_of
from llamaindex_confcascade.tools import read_calls, refusal

__all__ = ["Reading", "response_from"]

_MAPPINGS, _SEQUENCES = (dict, Mapping), (list, Sequence)  # what comes first is found first


def _get(thing: Any, key: str) -> Any:
    """Of a mapping or an object; None if it has no such thing."""
    return thing.get(key) if isinstance(thing, _MAPPINGS) else getattr(thing, key, None)


def _raw(response: ChatResponse) -> Any:
    """The provider's answer, also where a cascade hands it on."""
    raw = response.raw
    return raw["native"] if isinstance(raw, dict) and raw.keys() == {"usage", "native"} else raw


def _choice(response: ChatResponse) -> Any:
    choices = _get(_raw(response), "choices")
    return choices[0] if choices and isinstance(choices, _SEQUENCES) else None


def _logprobs(response: ChatResponse, choice: Any) -> Any:
    """The raw answer's, or LlamaIndex's: among these, alternatives only, the chosen token may be missing."""
    told = _get(choice, "logprobs")
    if told is None:
        told = _responses_logprobs(_raw(response))
    if told is not None or not response.logprobs:
        return told
    return [{"token": top[0].token, "logprob": top[0].logprob, "top_logprobs": top} for top in response.logprobs if top]


def _responses_logprobs(raw: Any) -> Any:
    """Of OpenAI's Responses: in an event of a stream that adds text, or in the parts of a whole answer's messages."""
    if _get(raw, "type") == "response.output_text.delta":
        return _get(raw, "logprobs")
    items = _get(raw, "output")
    parts = [part for item in (items if isinstance(items, list) else ()) for part in _get(item, "content") or ()]
    told = [entry for part in parts for entry in _get(part, "logprobs") or ()]
    return told or None


_TOTALS = {"prompt_tokens", "completion_tokens", "total_tokens"}


def _usage(response: ChatResponse) -> Usage | None:
    told, beside = response.raw, response.additional_kwargs
    for place, key in ((told, "usage"), (told, "usage_metadata"), (beside, None), (beside, "usage")):
        counts = place if key is None else _get(place, key)
        if counts and (usage := _counted(counts)) is not None:  # nearly every piece of a stream has none
            return usage
    return None


def _counted(counts: Any) -> Usage | None:
    if type(counts) is dict and counts.keys() <= _TOTALS:  # nothing is told apart
        return _totals(counts.get("prompt_tokens"), counts.get("completion_tokens"))
    read = _first(counts, "prompt_tokens", "input_tokens", "prompt_token_count")
    written = _first(counts, "completion_tokens", "output_tokens", "candidates_token_count")
    if read is None and written is None:
        return None
    of_input = _get(counts, "prompt_tokens_details") or _get(counts, "input_tokens_details")
    of_output = _get(counts, "completion_tokens_details") or _get(counts, "output_tokens_details")
    cached = _first(counts, "cache_read_input_tokens"), _first(counts, "cache_creation_input_tokens")  # Anthropic's
    thoughts = _first(counts, "thoughts_token_count")  # Gemini's
    return Usage(
        (read or 0) + sum(each or 0 for each in cached),  # which Anthropic counts beside the others
        (written or 0) + (thoughts or 0),  # and so does Gemini
        estimated=read is None or written is None,
        input_details=_known(
            cache_read=cached[0] or _first(of_input, "cached_tokens") or _first(counts, "cached_content_token_count"),
            cache_creation=cached[1],
            audio=_first(of_input, "audio_tokens"),
        ),
        output_details=_known(
            reasoning=thoughts or _first(of_output, "reasoning_tokens"), audio=_first(of_output, "audio_tokens")
        ),
    )


def _totals(read: Any, written: Any) -> Usage | None:
    known = isinstance(read, int), isinstance(written, int)
    return Usage(read if known[0] else 0, written if known[1] else 0, not all(known)) if any(known) else None


def _first(counts: Any, *keys: str) -> int | None:
    for key in keys:
        if isinstance(count := _get(counts, key), int):
            return count
    return None


def _known(**counts: int | None) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _calls(response: ChatResponse, native: LLM) -> tuple[tuple[ToolCall, ...], str | None]:
    """The tool calls of an answer, and why one could not be read."""
    calls, problem = read_calls(response.message)
    if calls or problem or not response.message.additional_kwargs.get("tool_calls"):
        return calls, problem
    told = []
    if isinstance(native, FunctionCallingLLM):  # they may be of a form that only the LLM itself can read
        told = native.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    calls = tuple(ToolCall(call.tool_name, call.tool_kwargs, call.tool_id or None) for call in told)
    return calls, None if calls else "its tool calls cannot be read"


def _finish_reason(choice: Any) -> str | None:
    reason = _get(choice, "finish_reason")
    return None if reason is None else str(reason)


def _thoughts(response: ChatResponse, choice: Any) -> str:
    """Of a whole answer, those that are told apart: in blocks, or as the raw answer has them."""
    message = response.message
    if not is_plain(message):
        blocks = [block.content or "" for block in message.blocks if isinstance(block, ThinkingBlock)]
        if thought := "".join(blocks):
            return thought
    return thoughts_apart(_get(choice, "message"))


def _read(
    response: ChatResponse,
    ask: Generate,
    native: LLM,
    *,
    text: str,
    finish_reason: str | None,
    thoughts: str,
    usage: Usage,
    tokens: tuple[Token, ...] | None = None,
    unscored: str | None = None,
) -> Response:
    """An answer; of a stream, its tokens are still to be told."""
    calls, problem = _calls(response, native)
    problem = problem or (refusal(calls, ask.request.tools) if calls else None)
    called = bool(calls or problem)
    return Response(
        text=text,
        finish_reason="tool_calls" if called and finish_reason not in CUT else finish_reason,
        tool_calls=calls,
        problem=problem,
        native=response,
        thoughts=thoughts,
        usage=usage,
        tokens=tokens,
        unscored=unscored,
    )


def response_from(response: ChatResponse, ask: Generate, native: LLM) -> Response:
    """A whole answer to `ask`; `native` is the LLM that gave it."""
    text, choice = text_of(response.message), _choice(response)
    tokens, unscored = whole_tokens(_logprobs(response, choice), ask.top_logprobs)
    thoughts = _thoughts(response, choice)
    return _read(
        response,
        ask,
        native,
        text=text,
        finish_reason=_finish_reason(choice) or "stop",
        thoughts=thoughts,
        usage=_usage(response) or estimated_usage(ask, thoughts + text, tokens),
        tokens=tokens,
        unscored=unscored,
    )


class Reading(StreamReader):
    """A streamed answer as it comes in.

    Args:
        native: The LLM.
        must_finish: An answer without a reason for its end was cut off. (Some servers never send one, so what is shown
            as it comes is handed on, as it would be by the LLM alone.)
        repeated: As of `StreamReader`.
        so_far: Whether the usage of a piece is that of all so far; else that of a stream that is left is not all.
    """

    def __init__(
        self, ask: Generate, native: LLM, must_finish: bool, *, repeated: bool | None = None, so_far: bool = False
    ) -> None:
        super().__init__(ask, repeated=repeated)
        self._so_far = so_far
        self._came = 0  # characters
        self._native = native
        self._must_finish = must_finish
        self._usage: Usage | None = None
        self._last = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=""))

    def take(self, response: ChatResponse) -> Iterator[Chunk]:
        """The next piece."""
        calls = _is_call(response)
        if calls or not _is_call(self._last):
            self._last = response  # some tell the calls in the middle only, and the accounts at the end
        self._usage = _usage(response) or self._usage
        whole = text_of(response.message)
        text = whole[self._came :] if response.delta is None else response.delta
        self._came += len(text)
        choice = _choice(response)
        thoughts = response.additional_kwargs.get("thinking_delta") or thoughts_apart(_get(choice, "delta"))
        yield from self.add(Piece(text, thoughts, _logprobs(response, choice), calls, _finish_reason(choice), response))

    def response(self) -> Response:
        usage = self._usage or estimated_usage(self._ask, self.thoughts + self.text, self.tokens)
        if self.closed and not self._so_far:
            usage = replace(usage, estimated=True)
        # what is shown of a whole answer is the LLM's own; of a step, nobody would know that it is not whole
        must_finish = self._must_finish and (in_turn(self._ask) or not self.released)
        reason = self.finish_reason or "stop"
        last, told = self._last, _thoughts(self._last, _choice(self._last))
        read = _read(last, self._ask, self._native, text=self.text, finish_reason=reason, thoughts=told, usage=usage)
        return self.finished(read, must_finish=must_finish)


def _is_call(response: ChatResponse) -> bool:
    message = response.message
    beside = message.additional_kwargs.get("tool_calls")
    return bool(beside) or (not is_plain(message) and any(isinstance(block, ToolCallBlock) for block in message.blocks))
