"""What an OpenAI-compatible server sends, read: an answer that comes whole, one that is streamed, or neither."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confcascade.asks import Chunk, Generate
from confcascade.errors import ModelError, kept_of
from confcascade.models.continuing import Overlap, check_one_text, stopped_at
from confcascade.models.logprobs import whole_tokens
from confcascade.models.remote import estimated_usage, openai_usage, thoughts_apart
from confcascade.models.stream import Piece, StreamReader
from confcascade.tools import json_problem
from confcascade.types import Response, Token, ToolCall, Usage

__all__ = ["Reading", "check_sent", "is_json", "read"]


class _Calls:
    """The tool calls of an answer, whole or in pieces.

    Attributes:
        problem: Why one could not be read; None if all could.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._pieces: dict[int, dict[str, str]] = {}

    def add(self, told: Any) -> None:
        for position, piece in enumerate(told or ()):
            # pieces are told with an index, whole calls without
            call = self._pieces.setdefault(getattr(piece, "index", position), {"id": "", "name": "", "arguments": ""})
            call["id"] = call["id"] or piece.id or ""
            if getattr(piece, "function", None) is not None:
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""

    def read(self) -> tuple[ToolCall, ...]:
        calls = []
        for piece in self._pieces.values():
            try:
                arguments = json.loads(piece["arguments"] or "{}", strict=False)
            except ValueError:
                arguments = None
            if isinstance(arguments, dict):
                calls.append(ToolCall(piece["name"], arguments, piece["id"] or None))
            else:
                self.problem = "the arguments of a tool call are not a JSON object"
        return tuple(calls)


def _usage(usage: Any, ask: Generate, text: str, tokens: Sequence[Token] | None) -> Usage:
    if usage is None:
        return estimated_usage(ask, text, tokens)
    return openai_usage(usage)


def _content(told: Any) -> tuple[str, str]:
    """The text and the thoughts of a message, or of what a piece of a stream adds to one, or of a completed text."""
    if isinstance(told, str):
        return told, ""
    content = told.content or ""
    thoughts = thoughts_apart(told, content)
    if isinstance(content, str):
        return content, thoughts
    blocks = [block if isinstance(block, dict) else vars(block) for block in content]
    spoken = (block for block in blocks if block.get("type") not in ("thinking", "reasoning"))
    return "".join(block.get("text") or "" for block in spoken), thoughts


class _ToldError(Exception):
    """What a server says of an error in the body of an answer, under the names that errors of clients have."""

    def __init__(self, told: Any) -> None:
        told = told if isinstance(told, Mapping) else {}
        code, kind = told.get("code"), told.get("type")
        super().__init__()
        self.status_code = code if isinstance(code, int) else None
        self.code = kind if code is None or isinstance(code, int) else code
        self.param = told.get("param")


def _no_completion(sent: Any, ask: Generate) -> ModelError:
    """Says what a server sent instead of an answer, without its text.

    Args:
        sent: As it came: parsed, if it was JSON.
        ask: What was asked.
    """
    if isinstance(sent, Mapping) and sent.get("error"):
        facts = kept_of(_ToldError(sent["error"])).removeprefix(_ToldError.__name__)
        return ModelError(f"The server of model '{ask.model.name}' answered with an error{facts}.")
    if isinstance(sent, Mapping) and "choices" in sent:
        return ModelError(f"Model '{ask.model.name}' answered without a choice.")
    what = "JSON of another form"
    if isinstance(sent, str):
        what = "a web page" if sent.lstrip().startswith("<") else "plain text"
    return ModelError(
        f"The server of model '{ask.model.name}' sent {what} instead of a chat completion. "
        "Is its `base_url` right? It often ends in /v1."
    )


def _content_type(events: Any) -> str:
    return str(events.response.headers.get("content-type", "")).lower()


def is_json(events: Any) -> bool:
    """Whether a server sent one object where events were asked for; it can be read again once it was read whole."""
    return "json" in _content_type(events)


def check_sent(events: Any, ask: Generate) -> None:
    """Raise what was sent instead of a stream, where not a single event came."""
    kind, sent = _content_type(events), None
    if is_json(events):
        try:
            sent = json.loads(events.response.text)
        except ValueError:
            return
        if isinstance(sent, Mapping) and sent.get("choices"):
            raise ModelError(f"The server of model '{ask.model.name}' sent a whole answer instead of a stream.")
    elif kind.startswith(("text/html", "text/plain")):
        sent = "<" if "html" in kind else ""
    else:
        return
    raise _no_completion(sent, ask)


def _told_in(choice: Any, kind: str) -> Any:
    """The message in a choice, or what it adds to one (its "delta"), or the text that a completion has instead."""
    text = getattr(choice, "text", None)
    return text if isinstance(text, str) else getattr(choice, kind)


def read(completion: Any, ask: Generate, *, repeated: bool | None = None) -> Response:
    """An answer that came whole.

    Args:
        completion: As the client gives it.
        ask: What was asked.
        repeated: See `StreamReader`.

    Raises:
        ModelError: If it is none.
    """
    if not hasattr(completion, "choices"):
        raise _no_completion(completion, ask)
    if not completion.choices:
        raise _no_completion({"choices": None, "error": getattr(completion, "error", None)}, ask)
    choice = completion.choices[0]
    told = _told_in(choice, "message")
    if told is None:
        raise ModelError(f"Model '{ask.model.name}' answered without a message.")
    calls = _Calls()
    calls.add(getattr(told, "tool_calls", None))
    text, thoughts = _content(told)
    if repeated is not None:
        text = Overlap(ask.request.written, repeated=repeated).add(text, last=True)
    tokens, unscored = whole_tokens(choice.logprobs, ask.top_logprobs)
    usage = _usage(completion.usage, ask, thoughts + text, tokens)
    response = _checked(
        Response(text, tokens, usage, choice.finish_reason, thoughts=thoughts, unscored=unscored), calls, ask
    )
    return response.replace(native=completion)


def _checked(response: Response, calls: _Calls, ask: Generate) -> Response:
    """With its tool calls, and what is wrong with them or with its object."""
    check_one_text(ask, response)
    called, problem = calls.read(), calls.problem
    if ask.request.output is not None:
        problem = json_problem(response.answer, ask.request.output)
    return response.replace(tool_calls=called, problem=problem)


class Reading(StreamReader):
    """A streamed answer as it comes in."""

    def __init__(self, ask: Generate, *, repeated: bool | None = None) -> None:
        super().__init__(ask, repeated=repeated)
        self._says_where = repeated is not None or not ask.until  # it is stopped, or the stream is left
        self._usage: Any = None
        self._calls = _Calls()

    def take(self, event: Any) -> Iterator[Chunk]:
        """The next event."""
        self._usage = event.usage or self._usage
        if not event.choices:
            return
        choice = event.choices[0]
        told = _told_in(choice, "delta")
        text, thoughts = _content(told)
        calls = getattr(told, "tool_calls", None)
        self._calls.add(calls)
        self._says_where = self._says_where or stopped_at(event) is not None
        piece = Piece(text, thoughts, choice.logprobs, bool(calls), choice.finish_reason, event, stopped_at(event))
        yield from self.add(piece)

    def response(self) -> Response:
        """The whole, once all events have come."""
        if self.finish_reason == "stop" and not self._says_where:
            raise ModelError(
                f"The server of model '{self._ask.model.name}' does not say whether the end of a step or of the answer "
                'was met, as llama.cpp\'s does. Update it, or set `continues="trailing"`.'
            )
        usage = _usage(self._usage, self._ask, self.thoughts + self.text, self.tokens)
        response = self.finished(Response(self.text, None, usage, self.finish_reason), must_finish=True)
        return _checked(response, self._calls, self._ask)
