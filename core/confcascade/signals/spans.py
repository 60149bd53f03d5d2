"""Which tokens of an answer say something: of tool calls and objects the values, for braces, quotes and keys follow
from a schema, and would make any of them look sure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from confcascade.answers import solid
from confcascade.errors import SignalUnavailableError
from confcascade.thoughts import blanked
from confcascade.tools import forced_call, response_schema
from confcascade.types import Request, Response, Token, ToolCall

__all__ = ["call_tokens", "thought_tokens", "value_tokens", "wants_object"]

# a value: a string that is no key, without its quotes, a number, a literal, or what is empty
_VALUE = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*)"(?P<key>\s*:)?'
    r"|(?P<other>-?\d[\d.eE+-]*|true|false|null|\[\s*\]|\{\s*\})"
)
# what may stand behind the last call: what closes it, marks, the end of the text
_CLOSED = re.compile(r"""(?:[\]\[{}()<>;,."'`|]|<[^<>]*>|\[/?[A-Z_]+\])*""")
_DECODER = json.JSONDecoder(strict=False)
_NEXT_KEY = re.compile(r'\s*,\s*"\w+"\s*:\s*"')

Span = tuple[int, int]


def thought_tokens(response: Response) -> Sequence[Token]:
    """The tokens of an answer's thoughts, without marks and blanks; never empty.

    Raises:
        SignalUnavailableError: If there are none, or the model tells no log-probabilities of them.
    """
    before = response.thought_tokens or ()
    text = blanked("".join(token.text for token in before))
    ends = accumulate(len(token.text) for token in before)
    tokens = [token for token, end in zip(before, ends, strict=True) if text[end - len(token.text) : end].strip()]
    if not tokens or not response.thoughts:
        raise SignalUnavailableError(
            "the model returned no log-probabilities of its thoughts" if response.thoughts else "there are no thoughts"
        )
    return tokens


def wants_object(request: Request) -> bool:
    """Whether the request asks for structured output, whatever the way."""
    return request.output is not None or response_schema(request) is not None


def value_tokens(tokens: Sequence[Token]) -> Sequence[Token]:
    """The tokens of the values of a JSON answer; of one without values, all of the JSON.

    Raises:
        SignalUnavailableError: If there is no JSON.
    """
    text = "".join(token.text for token in tokens)
    for brace in re.compile(r"[{\[]").finditer(text):
        try:
            _, end = _DECODER.raw_decode(text, brace.start())
        except ValueError:
            continue
        except RecursionError:  # it is not closed
            break
        whole = brace.start(), end
        return _overlapping(tokens, _values(text, whole) or [whole])
    raise SignalUnavailableError("the structured output cannot be found among the tokens of the answer")


def call_tokens(request: Request, response: Response) -> Sequence[Token]:
    """The tokens of the names and argument values of an answer's tool calls; never empty.

    Calls are searched from the right: a model that thinks may rehearse them before. A name that the request gave is no
    choice of the model's, and does not count.

    Raises:
        SignalUnavailableError: If the model tells none, or writes its calls otherwise than in JSON.
    """
    tokens = response.tokens or ()
    text = "".join(token.text for token in tokens)
    if not text.strip() or (response.answer.strip() and solid(text) == solid(response.answer)):
        raise SignalUnavailableError("the model returned no log-probabilities of its tool calls")
    forced = forced_call(request)
    if forced == "" and len(request.tools) == 1:
        forced = request.tools[0].name
    spans: list[Span] = []
    limit = len(text)
    for call in reversed(response.tool_calls):
        given = request.output is not None or forced == call.name
        found, start, end = _call(text, call, limit, given)
        between = solid(text[end:limit]).removesuffix(solid(response.answer))  # some say something after their calls
        if limit == len(text) and not _CLOSED.fullmatch(between):
            raise SignalUnavailableError(
                "the model returned no log-probabilities of its tool calls"
            )  # but a rehearsal's
        spans += found
        limit = start
    return _overlapping(tokens, spans)


def _call(text: str, call: ToolCall, limit: int, given: bool) -> tuple[list[Span], int, int]:
    """Where the last such call before `limit` has its name and values, where it begins and where it ends."""
    name = re.compile(rf"(?<!\w){re.escape(call.name)}(?!\w)")
    for first, last in _objects(text, call.arguments, limit):
        # the nearest before its arguments; some write the name after them
        names = list(name.finditer(text, 0, first))
        key = _NEXT_KEY.match(text, last, limit)
        behind = name.match(text, key.end(), limit) if key else None
        if behind is None and not names:
            behind = name.search(text, last, limit)
        if behind is not None:
            names = [behind]
        if not names and not given:
            continue
        values = _values(text, (first, last))
        begin, end = (first, last) if not names else (min(first, names[-1].start()), max(last, names[-1].end()))
        if given:
            return values or [(first, last)], begin, end
        return [names[-1].span(), *values], begin, end
    raise SignalUnavailableError("the tool calls cannot be found among the tokens of the answer")


def _objects(text: str, wanted: Any, limit: int) -> Iterator[Span]:
    """Where in `text`, up to `limit`, a JSON object equal to `wanted` is, the last first."""
    at = text.rfind("{", 0, limit)
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, end = None, limit + 1
        if end <= limit and value == wanted:
            yield at, end
        at = text.rfind("{", 0, at)


def _values(text: str, within: Span) -> list[Span]:
    first, last = within
    found = []
    for match in _VALUE.finditer(text, first + 1, last):
        if match["key"] is None:
            start, end = match.span() if match["text"] is None else match.span("text")
            found.append((start, max(end, start + 1)))  # of an empty text, the quote that closes it
    return found


def _overlapping(tokens: Sequence[Token], spans: Sequence[Span]) -> Sequence[Token]:
    judged, end = [], 0
    for token in tokens:
        begin, end = end, end + len(token.text)
        if any(begin < last and first < end for first, last in spans):
            judged.append(token)
    if not judged:
        raise SignalUnavailableError("there are no tokens to judge")
    return judged
