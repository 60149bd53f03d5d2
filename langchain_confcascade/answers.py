"""From what a cascade did to LangChain's messages: the answer, and the accounts of all that were asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from confcascade import Cost, Outcome, Record, Usage
from confcascade.extending import Chunk, Token
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata

from langchain_confcascade.convert import changed, chunk_from, shown_content
from langchain_confcascade.structured import CARRIED

__all__ = ["chunks_of", "message_of", "out_of_a_cache", "usage_metadata"]


def message_of(outcome: Outcome, *, keeps_logprobs: bool = False) -> AIMessage:
    """The answer with its accounts.

    Args:
        outcome: Of the cascade.
        keeps_logprobs: Put the log-probabilities of its tokens on it, in OpenAI's form, where they are known.
    """
    native = outcome.response.native
    message = (
        native
        if isinstance(native, AIMessage)
        else AIMessage(
            outcome.text,
            tool_calls=_tool_calls(outcome),
            additional_kwargs=_thoughts(outcome.response.thoughts_apart),
        )
    )
    if outcome.response.altered:  # the stage's own message is as the model wrote it
        message = changed(message, {"content": shown_content(message.content, outcome.text)})
    # a copy, for a cache or a fake may give the same message again; without id, LangChain gives it the run's
    return changed(message, {"id": None, **_accounts(outcome, keeps_logprobs)})


def chunks_of(item: Chunk | Outcome, *, keeps_logprobs: bool = False) -> Iterator[AIMessageChunk]:
    """What a stream shows: pieces of the answer, and last, with all accounts, its end."""
    if isinstance(item, Outcome):
        accounts = _accounts(item, keeps_logprobs)
        yield AIMessageChunk(content="", chunk_position="last", **_end(item), **accounts)
    elif (message := _shown(item)) is not None:
        yield message


def out_of_a_cache(message: AIMessage) -> AIMessage:
    """An answer that was given before: its record says so, and this call cost nothing.

    The attempts stay as they were made.
    """
    record = message.response_metadata.get("confcascade")
    if not isinstance(record, dict):
        return message
    free = Cost().as_dict()
    changes = {"cached": True, "usage": Usage().as_dict(), "cost": free, "cost_answering_stage": dict(free)}
    return changed(message, {"response_metadata": message.response_metadata | {"confcascade": record | changes}})


def usage_metadata(record: Record) -> UsageMetadata | None:
    """What every attempt used, in LangChain's words; None if no model reported any."""
    told = [attempt.usage for attempt in record.attempts]
    if any(usage.estimated for usage in told) and not any(u.total_tokens and not u.estimated for u in told):
        return None
    usage = record.usage
    metadata = UsageMetadata(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=usage.total_tokens
    )
    if usage.input_details:
        metadata["input_token_details"] = InputTokenDetails(**usage.input_details)  # type: ignore[typeddict-item]
    if usage.output_details:
        metadata["output_token_details"] = OutputTokenDetails(**usage.output_details)  # type: ignore[typeddict-item]
    return metadata


def _accounts(outcome: Outcome, keeps_logprobs: bool) -> dict[str, Any]:
    """``usage_metadata`` and ``response_metadata``: of a stream, exactly one chunk may carry them."""
    response, record = outcome.response, outcome.record
    metadata: dict[str, Any] = {}
    if isinstance(response.native, AIMessage):
        metadata |= response.native.response_metadata  # untouched: each provider has its own words
    elif response.finish_reason is not None:
        metadata["finish_reason"] = response.finish_reason
    if keeps_logprobs and response.tokens is not None:
        metadata["logprobs"] = {"content": list(map(_entry, response.tokens))}
    metadata |= {"model_name": f"confcascade-{record.policy_id}", "confcascade": record.as_dict()}
    return {"usage_metadata": usage_metadata(record), "response_metadata": metadata}


def _shown(chunk: Chunk) -> AIMessageChunk | None:
    """What a stream shows of a stage's chunk: content and tool calls, but none of the stage's accounts."""
    native = chunk.native
    if not isinstance(native, AIMessage):
        shown = chunk.text or chunk.thoughts
        return AIMessageChunk(content=chunk.text, additional_kwargs=_thoughts(chunk.thoughts)) if shown else None
    native = chunk_from(native)
    # structured output is shown once, at the end: LangChain would merge two
    shown_kwargs = {key: value for key, value in native.additional_kwargs.items() if key not in CARRIED}
    if not (native.content or native.tool_call_chunks or shown_kwargs):
        return None
    # how its content is to be read stays with it; LangChain merges these two
    kept = {
        key: value for key, value in native.response_metadata.items() if key in ("model_provider", "output_version")
    }
    changes = {"id": None, "usage_metadata": None, "response_metadata": kept, "chunk_position": None}
    return changed(native, changes | {"additional_kwargs": shown_kwargs})


def _thoughts(thoughts: str) -> dict[str, Any]:
    """Those of a core model, where LangChain's own integrations put them."""
    return {"reasoning_content": thoughts} if thoughts else {}


def _tool_calls(outcome: Outcome) -> list[Any]:
    """Those of the answer, in LangChain's form."""
    calls = outcome.response.tool_calls
    return [{"name": call.name, "args": dict(call.arguments), "id": call.id} for call in calls]


def _end(outcome: Outcome) -> dict[str, Any]:
    """What only the end of a stream can tell: structured output, and the tool calls of core models."""
    native = outcome.response.native
    if isinstance(native, AIMessage):
        return {
            "additional_kwargs": {
                key: native.additional_kwargs[key] for key in CARRIED if key in native.additional_kwargs
            }
        }
    return {
        "tool_call_chunks": [
            {"name": call["name"], "args": json.dumps(call["args"]), "id": call["id"], "index": i}
            for i, call in enumerate(_tool_calls(outcome))
        ]
    }


def _entry(token: Token) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob} for text, logprob in token.top]
    return {"token": token.text, "logprob": token.logprob, "top_logprobs": top}
