"""Tool calls and structured output: what a request wants, and whether JSON fits a schema.

The reasons name tools, keys and rules, but no values: records must not repeat what a model said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from confcascade.types import OutputSchema, Request, Tool

__all__ = [
    "CUT",
    "LEFT_CALL",
    "CheckedTool",
    "arguments_problem",
    "forced_call",
    "in_words",
    "json_problem",
    "misfit",
    "parse_problem",
    "response_schema",
]

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}

# what providers say of an answer that reached its most tokens
CUT = ("length", "max_tokens", "MAX_TOKENS")
# why an answer is a call that nobody made
LEFT_CALL = "a tool call was left in its text"


@dataclass(frozen=True)
class CheckedTool(Tool):
    """A tool that knows better than its JSON Schema which arguments it runs with.

    Attributes:
        check: Given the arguments of a call, why the tool cannot run with them, in one line without their values, or
            None. It replaces the comparison with `parameters`: a tool that converts "3" to 3 itself accepts both.
    """

    check: Callable[[Mapping[str, Any]], str | None] | None = None


def arguments_problem(tool: Tool, arguments: Mapping[str, Any]) -> str | None:
    """Why `tool` cannot run with `arguments`, in one line without their values; None if it can."""
    if isinstance(tool, CheckedTool) and tool.check is not None:
        return tool.check(arguments)
    return None if tool.parameters is None else misfit(arguments, tool.parameters)


def forced_call(request: Request) -> str | None:
    """The tool that must be called; "" if it may be any; None if none must be."""
    choice = request.tool_choice
    if isinstance(choice, Mapping):  # OpenAI's forms, and Anthropic's
        function = choice.get("function")
        choice = (function if isinstance(function, Mapping) else choice).get("name") or choice.get("type")
    if choice is True or choice in ("any", "required"):
        return ""
    return choice if any(choice == tool.name for tool in request.tools) else None


def json_problem(text: str, output: OutputSchema) -> str | None:
    """Why `text` is not the structured output that is wanted, in one line; None if it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # thousands of brackets
        return "the structured output is not JSON"
    if why := misfit(value, output.schema):
        return f"the structured output does not fit: {why}"
    return None if output.check is None else output.check(text)


def response_schema(request: Request) -> Mapping[str, Any] | None:
    """The JSON Schema of what ``response_format`` asks for, a parameter of OpenAI's that clients hand on.

    Empty where any JSON will do; None where no JSON is asked for.
    """
    wanted = request.options.get("response_format")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        made = getattr(wanted, "model_json_schema", None)  # of a pydantic class
        return made() if made is not None else None
    if wanted.get("type") not in ("json_schema", "json_object"):
        return None
    told = wanted.get("json_schema")
    schema = told.get("schema") if isinstance(told, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def in_words(request: Request) -> Request:
    """`request` for a model that knows no structured output: asked for in the last message, if there are instructions.

    Such an answer is plain text to the model; `OutputSchema.check` judges it.
    """
    if request.output is None or request.output.instructions is None:
        return request
    *earlier, last = request.messages
    asking = replace(last, content=f"{last.content}\n\n{request.output.instructions}")
    return replace(request, messages=(*earlier, asking), output=None)


def parse_problem(error: BaseException, schema: Mapping[str, Any]) -> str:
    """Why structured output could not be read, in one line, from the `error` of what was to read it.

    Of a pydantic error, the field and the rule; its values are left out.
    """
    from pydantic import ValidationError

    invalid = error if isinstance(error, ValidationError) else error.__cause__
    if not isinstance(invalid, ValidationError):
        return f"the structured output cannot be read ({type(error).__name__})"
    told = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    where = next(iter(told["loc"]), None)
    place = f"'{where}': " if where in schema.get("properties", {}) else ""
    return f"the structured output does not validate ({place}{told['type']})"


def misfit(value: Any, schema: Any) -> str | None:
    """Why a JSON value does not fit a JSON Schema, in one line; None if it does.

    Keywords that are not known here (``format``, ``patternProperties``, ``if`` and the like) exclude nothing, and
    neither do references to other documents.

    >>> misfit({"a": "1"}, {"type": "object", "properties": {"a": {"type": "integer"}}})
    "'a' must be of type integer"
    """
    try:
        return next(_misfits(value, schema, schema, ""), None)
    except (TypeError, RecursionError):  # a keyword that cannot be read, or references in a circle
        return None


def _misfits(value: Any, schema: Any, root: Any, at: str) -> Iterator[str]:
    if schema is False:
        yield f"{_place(at)} is not allowed"
    if not isinstance(schema, Mapping):
        return
    schema = {key: rule for key, rule in schema.items() if rule is not None or key == "const"}
    if "$ref" in schema and (target := _resolved(schema["$ref"], root)) is not schema:
        yield from _misfits(value, target, root, at)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{_place(at)} must be of type {' or '.join(kinds)}"
        return
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        yield f"{_place(at)} is none of the allowed values"
    for part in schema.get("allOf", ()):
        yield from _misfits(value, part, root, at)
    for word in ("anyOf", "oneOf"):
        if word in schema and all(any(_misfits(value, part, root, at)) for part in schema[word]):
            yield f"{_place(at)} fits none of its alternatives"
    if isinstance(value, Mapping):
        yield from _object_misfits(value, schema, root, at)
    elif isinstance(value, list | tuple):
        yield from _range_misfits(len(value), schema, at, "minItems", "maxItems")
        for i, item in enumerate(value):
            yield from _misfits(item, schema.get("items", True), root, f"{at}[{i}]")
    elif isinstance(value, str):
        yield from _range_misfits(len(value), schema, at, "minLength", "maxLength")
        if not _matches(schema.get("pattern"), value):
            yield f"{_place(at)} does not match its pattern"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _range_misfits(value, schema, at, "minimum", "maximum")
        low: Any = schema.get("exclusiveMinimum")
        high: Any = schema.get("exclusiveMaximum")
        if (_is(low, "number") and value <= low) or (_is(high, "number") and value >= high):
            yield f"{_place(at)} is out of range"


def _object_misfits(value: Mapping[str, Any], schema: Mapping[str, Any], root: Any, at: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{_place(f'{at}.{key}')} is missing"
    for key, item in value.items():
        # a model's own key may be any text: only those of the schema are named
        rule, place = (
            (properties[key], f"{at}.{key}") if key in properties else (schema.get("additionalProperties", True), at)
        )
        if rule is False:
            yield f"{_place(at)} has a key that is not allowed"
        else:
            yield from _misfits(item, rule, root, place)


def _range_misfits(size: float, schema: Mapping[str, Any], at: str, least: str, most: str) -> Iterator[str]:
    if size < schema.get(least, size) or size > schema.get(most, size):
        yield f"{_place(at)} is out of range"


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    return kind not in _KINDS or isinstance(value, _KINDS[kind])


def _matches(pattern: Any, value: str) -> bool:
    try:
        return pattern is None or re.search(pattern, value) is not None
    except (re.error, TypeError):  # of another dialect
        return True


def _resolved(reference: Any, root: Any) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~"), True) if isinstance(found, Mapping) else True
    return found


def _place(at: str) -> str:
    return f"'{at.removeprefix('.')}'" if at else "the whole"
