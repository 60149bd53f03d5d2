"""What a call to an OpenAI-compatible server says: the request in the server's names, and a model's own options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from confcascade.models.calls import OF_ONE_CALL
from confcascade.tools import forced_call
from confcascade.types import Message, Request

__all__ = ["Body", "deciding", "options_problem", "unsupported_problem"]

# set by each call, never by options
_OWN = ["model", "messages", "n", "stream", "stream_options", "logprobs", "top_logprobs"]
_OWN += ["tools", "tool_choice", "response_format"]
_OF_THE_CLIENT = {"extra_headers", "extra_query", "timeout"}


def options_problem(options: Any) -> str | None:
    """Why these cannot be the options of a model; None if they can."""
    if not isinstance(options, Mapping):
        got = "None: leave it out if there are none" if options is None else type(options).__name__
        return f'must be a mapping, such as {{"reasoning_effort": "low"}}. Got {got}'
    if not all(isinstance(name, str) for name in options):
        return "must have the names of parameters as keys"
    own = [f"`{name}`" for name in _OWN if name in options]
    return f"cannot set {', '.join(own)}, which each call sets" if own else None


def unsupported_problem(unsupported: Any, known: Collection[str]) -> str | None:
    """Why this cannot be what a server is said to refuse, of all that is `known`; None if it can."""
    if isinstance(unsupported, str) or not isinstance(unsupported, Collection):
        got = "None: leave it out if there is none" if unsupported is None else repr(unsupported)
        return f'must be a list, such as ["logprobs"]. Got {got}'
    strange = [each for each in unsupported if not isinstance(each, str) or each not in known]
    return f"may name {', '.join(known)}. Got {', '.join(sorted(map(str, strange)))}" if strange else None


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that may decide an answer: not who asks, how long is waited, and headers, which may hold a key."""
    return {key: value for key, value in options.items() if key not in _OF_THE_CLIENT | OF_ONE_CALL - {"seed"}}


@dataclass
class Body:
    """The parameters of a call.

    Attributes:
        given: As they are sent.
        asked: What the server may refuse, by what it is for: "max_tokens", "temperature".
        instead: What takes the place of some of `asked`.
    """

    given: dict[str, Any]
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    instead: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, request: Request, options: Mapping[str, Any]) -> Body:
        """The body for a request; what it says itself comes before the model's `options`.

        A limit is sent as ``max_completion_tokens`` if the options use that name, else as ``max_tokens``.
        """
        settings = {**options, **request.options}
        for name in ("extra_body", "extra_headers", "extra_query"):
            if settings.get(name) is not None:
                settings[name] = {**(options.get(name) or {}), **(request.options.get(name) or {})}
        limit, temperature = settings.pop("max_tokens", None), settings.pop("temperature", None)
        limit = limit if request.max_tokens is None else request.max_tokens
        temperature = temperature if request.temperature is None else request.temperature
        body = cls({"model": model, "messages": [_message(message) for message in request.messages]})
        if request.max_tokens is not None and "max_completion_tokens" in settings:
            settings["max_completion_tokens"] = limit
        elif limit is not None:
            body.asked["max_tokens"] = {"max_tokens": limit}
            body.instead["max_tokens"] = {"max_completion_tokens": limit}
        if temperature is not None:
            body.asked["temperature"] = {"temperature": temperature}
        body.given |= _for_the_client(settings) | _constraints(request)
        if request.stop:
            body.given["stop"] = list(request.stop)
        return body


def _for_the_client(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the client knows as parameters, and all else in its ``extra_body``."""
    known = {key: value for key, value in settings.items() if key in _known_to_the_client()}
    others = {key: value for key, value in settings.items() if key not in known}
    return known | ({"extra_body": {**others, **(known.get("extra_body") or {})}} if others else {})


@cache
def _known_to_the_client() -> frozenset[str]:
    from openai.resources.chat.completions import Completions

    return frozenset(inspect.signature(Completions.create).parameters)


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


def _constraints(request: Request) -> dict[str, Any]:
    """Tools and structured output, as the server takes them."""
    told: dict[str, Any] = {}
    if request.tools:
        told["tools"] = [
            tool.native
            if tool.parameters is None and isinstance(tool.native, Mapping)  # a provider's own
            else {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters or {"type": "object", "properties": {}},
                },
            }
            for tool in request.tools
        ]
        forced = forced_call(request)
        if forced == "":
            told["tool_choice"] = "required"
        elif forced is not None:
            told["tool_choice"] = {"type": "function", "function": {"name": forced}}
        elif request.tool_choice:
            told["tool_choice"] = request.tool_choice
    if request.output is not None:
        schema = {"name": request.output.name, "schema": request.output.schema}
        told["response_format"] = {"type": "json_schema", "json_schema": schema}
    return told
