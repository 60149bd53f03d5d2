"""What models behind an API have in common, whichever client speaks to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

from confcascade.asks import Ask, Chunk, Generate, LanguageModel, Prefill
from confcascade.errors import ConfigurationError, ModelError
from confcascade.types import Prefilled, Response, Token, Usage

__all__ = [
    "Remote",
    "as_stream",
    "check_continues",
    "estimated_usage",
    "in_threads",
    "openai_usage",
    "settings_digest",
    "thoughts_apart",
]

T = TypeVar("T")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class Remote:
    """Half of a `LanguageModel`: one call for each ask, no hidden states, and what may end early is streamed.

    The other half is the subclass's: `answer` and `aanswer` for one ask whose answer comes whole, `stream` and
    `astream` for one that comes in pieces (only those can be ended early).
    """

    answer: Callable[[Generate], Response]
    aanswer: Callable[[Generate], Coroutine[Any, Any, Response]]
    stream: Callable[[Generate], Iterator[Chunk | Response]]
    astream: Callable[[Generate], AsyncIterator[Chunk | Response]]

    @property
    def name(self) -> str:
        raise NotImplementedError

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        del asks
        raise ModelError(f"Model '{self.name}' is behind an API: its hidden states cannot be seen.")

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return self.prefill(asks)

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return [_last(list(self.stream(ask))) if _comes_in_pieces(ask) else self.answer(ask) for ask in asks]

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        if len(asks) != 1:
            return [one for (one,) in await asyncio.gather(*(self.agenerate([ask]) for ask in asks))]
        (ask,) = asks  # as ever, but for batches of one's own making: no task is needed
        if _comes_in_pieces(ask):
            return [_last([item async for item in self.astream(ask)])]
        return [await self.aanswer(ask)]


def _comes_in_pieces(ask: Generate) -> bool:
    """Whether it may end early, or continues an answer: llama.cpp's chat endpoint repeats that in one that is whole."""
    check_continues(ask)
    return ask.watch is not None or bool(ask.until or ask.request.written)


def check_continues(ask: Ask) -> None:
    """Refuse to begin an answer anew that has been begun, or to write on behind a step.

    Raises:
        ConfigurationError: If that is asked of a model that cannot continue answers.
    """
    asked = ask.request.written or (isinstance(ask, Generate) and ask.until)
    if asked and not ask.model.capability.continues:
        raise ConfigurationError(
            f"Model '{ask.model.name}' cannot continue an answer that has been begun. Use `TransformersModel` or "
            '`LlamaCppModel`, or `OpenAICompatibleModel(..., continues=...)` with a server that can: "llama.cpp", '
            '"continue_final_message" for vLLM and SGLang, "prefix" for Mistral and DeepSeek\'s beta, "trailing" for '
            "one that continues a last message of the assistant by itself, as many models of OpenRouter do. OpenAI's "
            "own models cannot."
        )


def as_stream(response: Response, *, live: bool) -> Iterator[Chunk | Response]:
    """A whole answer as the one piece of a stream."""
    calls = bool(response.tool_calls)
    yield Chunk(response.text, response.tokens or (), released=live, calls_tool=calls, native=response.native)
    yield response


def _last(items: list[Chunk | Response]) -> Response:
    response = items[-1]
    assert isinstance(response, Response)
    return response


def thoughts_apart(fields: Any, content: Any = None) -> str:
    """Thoughts that a server tells apart from the text: of a message, or of what a piece of a stream adds to one.

    Args:
        fields: A mapping or an object with ``reasoning_content`` (SGLang, llama.cpp, DeepSeek), ``reasoning`` (vLLM,
            Ollama's OpenAI door, OpenRouter) or ``thinking`` (Ollama).
        content: The message's; blocks of the types "thinking" and "reasoning" are thoughts (Mistral, Anthropic).
    """
    known = fields if isinstance(fields, dict) or not isinstance(fields, Mapping) else dict(fields)
    for key in _THOUGHTS if known else ():
        told = known.get(key) if isinstance(known, dict) else getattr(known, key, None)
        if isinstance(told, str) and told:
            return told
    return "".join(map(_thought, content)) if isinstance(content, list) else ""


def _thought(block: Any) -> str:
    block = block if isinstance(block, Mapping) else getattr(block, "__dict__", {})
    if block.get("type") not in ("thinking", "reasoning"):
        return ""
    told = block.get("thinking") or block.get("reasoning") or block.get("text") or ""
    parts = told if isinstance(told, list) else [told]
    return "".join(str(each.get("text", "")) if isinstance(each, Mapping) else str(each) for each in parts)


def settings_digest(model: LanguageModel, settings: str = "") -> str:
    """Twelve hexadecimal digits by which caches tell models of one name apart, none of which can be read from them.

    Args:
        model: Known by its fingerprint, if it has one, and its repr, if that is its own: an address says nothing.
        settings: What else decides its answers.
    """
    shown = "" if type(model).__repr__ is object.__repr__ else repr(model)
    told = json.dumps([model.name, getattr(model, "fingerprint", None), shown, settings])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def estimated_usage(ask: Ask, text: str, tokens: Sequence[Token] | None) -> Usage:
    """Four characters a token, where the server does not tell; an answer's tokens are counted if they are known."""
    prompt = sum(len(message.content) for message in ask.request.messages) + len(ask.request.written)
    return Usage(math.ceil(prompt / 4), math.ceil(len(text) / 4) if tokens is None else len(tokens), estimated=True)


def openai_usage(counts: Any) -> Usage:
    """What a server reports of its tokens in a chat completion, by OpenAI's names."""
    read = {"cache_read": "cached_tokens", "cache_creation": "cache_write_tokens", "audio": "audio_tokens"}
    written = {"reasoning": "reasoning_tokens", "audio": "audio_tokens"}
    return Usage(
        counts.prompt_tokens,
        counts.completion_tokens,
        input_details=_details(getattr(counts, "prompt_tokens_details", None), read),
        output_details=_details(getattr(counts, "completion_tokens_details", None), written),
    )


def _details(reported: Any, names: Mapping[str, str]) -> dict[str, int]:
    """By our names, the counts that are reported."""
    counts = {ours: getattr(reported, theirs, None) for ours, theirs in names.items()}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


async def in_threads(items: Iterator[T]) -> AsyncIterator[T]:
    """Take each item in a thread, all of them in one copy of the caller's context: async for a model that has none."""
    context, loop, end = copy_context(), asyncio.get_running_loop(), object()

    def step() -> Any:
        return next(items, end)

    while (item := await loop.run_in_executor(None, context.run, step)) is not end:
        yield item
