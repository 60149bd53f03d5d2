"""Tools: bound to the cascade once, and to each stage's model, in its own provider's form, when it is called."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from confcascade import Request, Tool
from confcascade.extending import CheckedTool, misfit
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ValidationError

__all__ = ["BoundTool", "binding_options", "bound_tool", "can_call_tools", "plain_tool"]


class BoundTool(dict[str, Any]):
    """A tool in OpenAI's form, for whatever reads a binding (traces, caches, LangGraph), and in its own for stages.

    Attributes:
        native: The tool as it was given, but that a mapping is copied, for it may change.
    """

    native: Any


def bound_tool(tool: Any) -> BoundTool:
    """Keep a tool for every provider; one of a provider's own stays as it is.

    Raises:
        ValueError: If LangChain cannot read it.
    """
    if isinstance(tool, BoundTool):
        return tool
    providers_own = isinstance(tool, Mapping) and tool.get("type") not in (None, "function", "object")
    bound = BoundTool(tool if providers_own else convert_to_openai_tool(tool))
    bound.native = copy.deepcopy(tool) if isinstance(tool, Mapping) else tool
    return bound


def plain_tool(tool: Any) -> Tool:
    """A tool, bound or given with a call, as the core sees it."""
    bound = bound_tool(tool)
    function = bound.get("function") or bound
    native = bound.native
    checks = isinstance(native, BaseTool) or (isinstance(native, type) and issubclass(native, BaseModel))
    parameters = function.get("parameters")
    return CheckedTool(
        name=function.get("name") or bound.get("type") or "",
        parameters=parameters,
        description=function.get("description") or "",
        native=native,
        check=partial(_refusal, native, parameters) if checks else None,
    )


def _refusal(native: Any, parameters: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> str | None:
    """Why a tool's own `args_schema`, or a pydantic class, refuses the arguments of a call, without their values.

    It may convert some, which the JSON Schema `parameters` would refuse. That decides where there is no such class.
    """
    schema = _own_schema(native)
    unfit = None if parameters is None else misfit(arguments, parameters)
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):  # a JSON Schema, or a class of pydantic 1
        return unfit
    try:
        schema.model_validate(dict(arguments))
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = next(iter(told["loc"]), None)
        return unfit or (f"'{where}': {told['type']}" if where in schema.model_fields else told["type"])
    except Exception as error:  # of a validator of the user's own
        return unfit or type(error).__name__
    return None


def _own_schema(native: Any) -> Any:
    """The class that validates what a model may give, which is not what is injected; or a JSON Schema."""
    if not isinstance(native, BaseTool):
        return native
    asked: Any = native.tool_call_schema
    whole: Any = native.args_schema
    if all(isinstance(each, type) and issubclass(each, BaseModel) for each in (asked, whole)):
        # a subset of its fields has lost its validators
        return whole if whole.model_fields.keys() == asked.model_fields.keys() else asked
    return asked


def can_call_tools(chat: BaseChatModel) -> bool:
    """Whether a chat model can be given tools."""
    if type(chat).bind_tools is BaseChatModel.bind_tools:
        return False
    # over a pipeline of its own process it takes tools, and ignores them
    pipeline = type(getattr(chat, "llm", None)).__name__ == "HuggingFacePipeline"
    return not (pipeline and any(cls.__name__ == "ChatHuggingFace" for cls in type(chat).__mro__))


def binding_options(chat: BaseChatModel, request: Request) -> dict[str, Any]:
    """What goes to a model's `bind_tools` besides the tools: the choice, and those options that it has a word for."""
    own = inspect.signature(chat.bind_tools).parameters
    options = {key: value for key, value in request.options.items() if key in own}
    return options if request.tool_choice is None else options | {"tool_choice": request.tool_choice}
