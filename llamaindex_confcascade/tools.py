"""Tools and their calls, between LlamaIndex and the core."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confcascade import Request, Tool, ToolCall
from confcascade.extending import forced_call, misfit
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from llama_index.core.tools.types import BaseTool

from llamaindex_confcascade.made import is_plain

__all__ = [
    "BoundTool",
    "bound_tool",
    "call_blocks",
    "can_call_tools",
    "keep_first_call",
    "plain_tool",
    "prepared",
    "read_calls",
    "refusal",
    "selections",
    "tool_messages",
]


class BoundTool(dict[str, Any]):
    """A tool in OpenAI's form, for whatever reads a call's parameters (events, handlers), and in its own for stages.

    Attributes:
        native: The tool as it was given.
    """

    native: Any


def bound_tool(tool: BaseTool) -> BoundTool:
    """Keep a tool for every provider."""
    bound = BoundTool(tool.metadata.to_openai_tool(skip_length_check=True))
    bound.native = tool
    return bound


def plain_tool(tool: Any) -> Tool:
    """A tool of a call's parameters as the core sees it; a mapping is of OpenAI's form, or a provider's own."""
    bound = bound_tool(tool) if isinstance(tool, BaseTool) else tool
    function = bound.get("function") or bound
    return Tool(
        name=function.get("name") or bound.get("type") or "",
        parameters=function.get("parameters"),
        description=function.get("description") or "",
        native=getattr(bound, "native", bound),
    )


def can_call_tools(llm: LLM) -> bool | None:
    """Whether an LLM can be given tools; None if it cannot be told now (some ask their server)."""
    try:
        return isinstance(llm, FunctionCallingLLM) and llm.metadata.is_function_calling_model
    except Exception:
        return None


def prepared(llm: LLM, request: Request, messages: list[ChatMessage]) -> tuple[list[ChatMessage], dict[str, Any]]:
    """What the LLM's `chat` is given for a request with tools, prepared by the LLM itself."""
    options = dict(request.options)
    if not isinstance(llm, FunctionCallingLLM) or not all(isinstance(tool.native, BaseTool) for tool in request.tools):
        # given in a provider's form: handed on as they came
        choice = {} if request.tool_choice is None else {"tool_choice": request.tool_choice}
        return messages, options | {"tools": [_mapping(tool) for tool in request.tools]} | choice
    if request.tool_choice not in (None, "auto", "any", "required"):
        options["tool_choice"] = request.tool_choice
    call = llm._prepare_chat_with_tools_compat(
        [tool.native for tool in request.tools],
        chat_history=messages,
        allow_parallel_tool_calls=options.pop("parallel_tool_calls", False),
        tool_required=forced_call(request) is not None,
        **options,
    )
    return call.pop("messages"), call


def _mapping(tool: Tool) -> Any:
    return bound_tool(tool.native) if isinstance(tool.native, BaseTool) else tool.native


# ---------------------------------------------------------------------- calls


def read_calls(message: ChatMessage) -> tuple[tuple[ToolCall, ...], str | None]:
    """The calls in a message, and why one of them could not be read; None if all could."""
    if "tool_calls" not in message.additional_kwargs and is_plain(message):
        return (), None
    calls, problem = [], None
    for key, name, told in _told(message):
        arguments = told
        if isinstance(told, str):
            try:
                arguments = json.loads(told or "{}", strict=False)
            except ValueError:
                arguments = None
        if isinstance(arguments, Mapping):
            calls.append(ToolCall(name, arguments, key))
        else:
            problem = "the arguments of a tool call are not a JSON object"
    return tuple(calls), problem


def refusal(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> str | None:
    """Why a tool's own pydantic class refuses the arguments of a call, without their values; None if none does.

    It may have rules that a JSON Schema cannot say. What it would coerce is for the schema to judge: LlamaIndex calls
    the function with the arguments as they came.
    """
    called = {tool.name: tool for tool in tools}
    for call in calls:
        tool = called.get(call.name)
        wanted = getattr(getattr(tool and tool.native, "metadata", None), "fn_schema", None)
        if wanted is None or tool is None or misfit(call.arguments, tool.parameters):
            continue  # the core sees what does not fit the schema
        try:
            wanted.model_validate(dict(call.arguments))
        except ValidationError as error:
            told = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = next((repr(key) for key in told["loc"][:1] if key in wanted.model_fields), "the whole")
            return f"the arguments of its call to {call.name!r} do not validate ({where}: {told['type']})"
    return None


def selections(message: ChatMessage) -> list[ToolSelection]:
    """The calls in a message as LlamaIndex's agents take them, also those of which only a part is there yet."""
    found = []
    for key, name, told in _told(message):
        arguments = told
        if isinstance(told, str):
            try:
                arguments = parse_partial_json(told)
            except ValueError:
                arguments = None
        arguments = dict(arguments) if isinstance(arguments, Mapping) else {}
        found.append(ToolSelection(tool_id=key or "", tool_name=name, tool_kwargs=arguments))
    return found


def keep_first_call(message: ChatMessage) -> None:
    """Drop all calls of `message` but the first."""
    calls = [i for i, block in enumerate(message.blocks) if isinstance(block, ToolCallBlock)]
    message.blocks = [block for i, block in enumerate(message.blocks) if i not in calls[1:]]
    if isinstance(beside := message.additional_kwargs.get("tool_calls"), list):
        message.additional_kwargs["tool_calls"] = beside[:1]


def _told(message: ChatMessage) -> Iterator[tuple[str | None, str, Any]]:
    """Id, name and arguments of each call, from a message's blocks, or from OpenAI's form beside them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    for block in blocks:
        yield block.tool_call_id, block.tool_name, block.tool_kwargs
    beside = message.additional_kwargs.get("tool_calls")
    for call in beside if not blocks and isinstance(beside, Sequence) else ():
        function = _get(call, "function")
        if isinstance(name := _get(function, "name"), str):
            yield _get(call, "id"), name, _get(function, "arguments") or {}


def _get(thing: Any, key: str) -> Any:
    return thing.get(key) if isinstance(thing, Mapping) else getattr(thing, key, None)


def call_blocks(calls: Sequence[ToolCall]) -> list[ToolCallBlock]:
    """The core's calls as LlamaIndex's."""
    return [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments)) for call in calls
    ]


def tool_messages(calls: Sequence[ToolCall]) -> dict[str, Any]:
    """What a message says of its calls beside its blocks: OpenAI's form, which LlamaIndex's programs look for."""
    if not calls:
        return {}
    told = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]
    return {"tool_calls": told}
