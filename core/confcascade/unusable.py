"""Why an answer cannot be kept, decided from its structure and never from its words.

The reasons name tools, keys and rules, but no values: records must not repeat what a model said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Literal

from confcascade.letters import conclusion, named_by
from confcascade.tools import CUT, LEFT_CALL, arguments_problem, forced_call, json_problem, response_schema
from confcascade.types import OutputSchema, Request, Response

__all__ = ["FILTERED", "OnCut", "begins_call", "problem_of", "why_unusable"]

OnCut = Literal["escalate", "keep"]

# what providers say of an answer that they, and not the model, ended: OpenAI, Azure, Gemini, Bedrock, Anthropic
FILTERED = frozenset(
    "content_filter content_filtered guardrail_intervened refusal safety recitation blocklist prohibited_content spii "
    "image_safety".split()
)
# what begins a tool call that a server has left in the text
_CALL = r"""(?x)<tool_calls?>|<function=|<function\ name=|<function_calls?>|\[TOOL_CALLS\]|functools\[
    |<\|python_(?:tag|start)\|>|<\|tool_calls?\|>|<\|tool_calls?(?:_section)?_(?:begin|start)\|>|<\|tool_call>call:
    |<\|open\|>tools<\|sep\|>|<minimax:tool_call>|<｜DSML｜|<｜tool[▁_]calls[▁_]begin｜>|<seed:tool_call>
    |<\|channel\|>commentary\ to=|commentary\ ?to=functions\.|<\|start\|>assistant\ to=
    |<\|START_ACTION\|>|<\|action_start\|>
    |<start_function_call>|<longcat_tool_call>|<dots_function_call>"""
_FENCED = re.compile(r"\s*```(?:json|tool_call|tool_code)?\s*(.*?)\s*(?:```\s*)?", re.DOTALL)
_PERIODS = 4  # repeats at the end of a cut-off answer by which it is known to go round in circles
_LONGEST = 400  # characters of what is repeated


def why_unusable(
    request: Request, response: Response, on_cut: OnCut = "escalate", *, labels: Collection[str] = ()
) -> str | None:
    """Why a draft cannot be kept as an answer to `request`, in one line; None if it can.

    Args:
        request: What was asked.
        response: The whole draft, its tokens parted (`confcascade.answers.parted`).
        on_cut: Whether a text that was cut off at its most tokens is kept: a larger model may come to an end.
        labels: Answers that are whole, wherever they end: those of a multiple choice that are asked for by one token.
    """
    if (problem := problem_of(request, response)) is not None:
        return problem
    reason = (response.finish_reason or "").lower()
    if reason in FILTERED:
        return "the provider filtered it"
    if response.calls_tools:
        return None
    cut = response.finish_reason in CUT
    if not response.answer.strip():
        if not response.thoughts:
            return "empty answer"
        return "it was cut off in its thoughts" if cut else "it has thoughts, and no answer"
    if request.tools and _calls_in_words(response.answer, {tool.name for tool in request.tools}):
        return LEFT_CALL
    if cut and on_cut == "escalate" and named_by(conclusion(response.answer), labels) is None:
        return "it was cut off at its most tokens"
    if cut and _is_periodic(response.answer):
        return "it repeats itself"
    return None


def problem_of(request: Request, response: Response) -> str | None:
    """Why a tool call or structured output cannot be used as `request` wants it, in one line; None if it can."""
    if response.finish_reason in CUT and (request.output is not None or response.tool_calls):
        return "it was cut off at its most tokens"  # some readers complete what is missing, others only see it missing
    if response.problem is not None:
        return response.problem
    if (why := _format_problem(request, response)) is not None:
        return why
    if not request.tools:
        return None
    tools = {tool.name: tool for tool in request.tools}
    for call in response.tool_calls:
        if call.name not in tools:
            return f"unknown tool {_short(call.name)}"
        if why := arguments_problem(tools[call.name], call.arguments):
            return f"the arguments of its call to {_short(call.name)} do not fit: {why}"
    forced = forced_call(request)
    if forced is None or any(forced in ("", call.name) for call in response.tool_calls):
        return None
    return f"no call to {_short(forced)}, which was wanted" if forced else "no tool call, where one was wanted"


def _format_problem(request: Request, response: Response) -> str | None:
    """What is wrong with an answer that was asked for in a ``response_format``."""
    schema = response_schema(request)
    if schema is None or response.calls_tools or not response.answer.strip():
        return None
    return json_problem(response.answer, OutputSchema("", schema))


def begins_call(token: str) -> bool:
    """Whether a single token is the mark with which some family's tool calls begin."""
    return any(re.fullmatch(_CALL, text) for text in (token, f"{token}call:"))  # Gemma 4's is followed by a word


def _calls_in_words(answer: str, tools: set[str]) -> bool:
    """Whether a text is, or ends with, a tool call in some family's form, or the JSON of one."""
    if re.search(_CALL, answer):
        return True
    fenced = _FENCED.fullmatch(answer)
    try:
        told: Any = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    calls = told.get("tool_calls", told) if isinstance(told, dict) else told
    calls = calls if isinstance(calls, list) else [calls]
    return bool(calls) and all(_is_call(call, tools) for call in calls)


def _is_call(told: Any, tools: set[str]) -> bool:
    if isinstance(told, dict) and isinstance(told.get("function"), dict):  # OpenAI's form
        told = told["function"]
    if not isinstance(told, dict) or not {"arguments", "parameters", "args", "input"} & set(told):
        return False
    name = told.get("name") or told.get("tool") or told.get("function")
    return isinstance(name, str) and name in tools


def _is_periodic(text: str) -> bool:
    """Whether the end of a text repeats itself at least `_PERIODS` times, and covers more than a few characters."""
    tail = text.rstrip()[-_LONGEST * _PERIODS :]
    for period in range(1, len(tail) // _PERIODS + 1):
        unit = tail[-period:]
        least = max(_PERIODS, -(-16 // period))  # "..." or "1000" is no circle
        if tail.endswith(unit * least):
            return True
    return False


def _short(name: str) -> str:
    return repr(name if len(name) <= 64 else name[:61] + "...")
