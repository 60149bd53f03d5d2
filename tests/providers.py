"""A server that behaves as one provider or engine does, by the table in docs/checking-a-cascade.md."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from werkzeug import Request as Received
from werkzeug import Response as Sent

__all__ = ["BEHAVIOURS", "Provider"]

ANSWER = (("red", 0.9), (",", 0.99), (" green", 0.6), (",", 0.99), (" blue", 0.7))
THOUGHTS = tuple((word, 0.999) for word in "The user wants three colours , so I name some .".split())
CALL = (('{"name": "note_colour", "arguments": {"colour": "', 0.999), ("blue", 0.8), ('"}}', 0.999))

Logprobs = Literal[
    "real", "none", "empty", "zeros", "some zeros", "constant", "nines", "refused", "whole only", "others streamed"
]
Thoughts = Literal["no", "apart", "apart, own list", "apart, not listed", "in the text", "hidden"]


@dataclass
class Provider:
    """Answers every request as one kind of server does.

    Attributes:
        logprobs: What it reports.
        listed: Most alternatives at each token.
        thoughts: Whether it thinks, and where the thoughts are; "apart" ones are in the list of log-probabilities.
        usage: Whether it reports the usage: never, of whole answers only, or always.
        refuses: Parameters that it does not take (400).
        finish: By the reason that others give, its own.
        obeys: Whether a limit holds.
        tools: What comes of a request with tools: a call with or without log-probabilities, a text, or an error.
        several: Whether `n` answers come.
        answer: What it says.
        status: Of every answer.
        hangs_s: It takes so long for each.
        page: A web page, in the place of every answer.
        least: A limit below this, in tokens, is a bad request.
    """

    logprobs: Logprobs = "real"
    listed: int = 20
    thoughts: Thoughts = "no"
    usage: Literal["no", "whole", "yes"] = "yes"
    refuses: tuple[str, ...] = ()
    finish: dict[str, str | None] = field(default_factory=dict)
    obeys: bool = True
    tools: Literal["scored", "unscored", "text", "refused"] = "unscored"
    several: bool = True
    answer: tuple[tuple[str, float], ...] = ANSWER
    status: int = 200
    hangs_s: float = 0.0
    page: str = ""
    least: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def respond(self, received: Received) -> Sent:
        body = received.get_json()
        self.bodies.append(body)
        time.sleep(self.hangs_s)
        if self.page:
            return Sent(self.page, content_type="text/html")
        if self.status != 200:
            return _error(self.status, "no", {401: "invalid_api_key", 404: "model_not_found"}.get(self.status))
        if (body.get("max_tokens") or self.least) < self.least:
            return _error(400, "Could not finish the message because the output limit was reached.", None)
        for name in self.refuses:
            if body.get(name) is not None and body[name] is not False:
                return _error(400, f"Unsupported parameter: '{name}' is not supported with this model.", None, name)
        if self.logprobs == "refused" and body.get("logprobs"):
            return _error(403, "You are not allowed to request logprobs from this model", None)
        if body.get("tools") and self.tools == "refused":
            return _error(400, "tool_choice is not supported", None, "tool_choice")
        return self._streamed(body) if body.get("stream") else self._whole(body)

    def _said(self, body: dict[str, Any]) -> tuple[list[Any], list[Any], str | None]:
        """The thoughts and the answer as far as the limit goes, and why it ends."""
        thoughts = [] if self.thoughts == "no" else list(THOUGHTS)
        if self.thoughts == "in the text":
            thoughts = [("<think>", 1.0), *thoughts, ("</think>", 1.0), ("\n\n", 1.0)]
        calls = bool(body.get("tools")) and self.tools != "text"
        answer = list(CALL if calls else self.answer)
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        reason = "tool_calls" if calls else "stop"
        if limit and self.obeys and limit < len(thoughts) + len(answer):
            thoughts, answer = thoughts[:limit], answer[: max(0, limit - len(thoughts))]
            reason = "length"
        return thoughts, answer, self.finish.get(reason, reason)

    def _entries(self, body: dict[str, Any], said: list[Any]) -> list[dict[str, Any]]:
        odd = {"zeros": 0.0, "constant": -0.25, "nines": -9999.0}
        top = min(self.listed, body.get("top_logprobs") or 0)

        def listed(word: str, p: float) -> dict[str, Any]:
            streamed = self.logprobs == "others streamed" and body.get("stream")
            logprob = odd.get(self.logprobs, math.log(p / 2 if streamed else p))
            if self.logprobs == "some zeros":
                logprob = 0.0 if p > 0.95 else -9999.0
            others = -9999.0 if "zeros" in self.logprobs else -9.5
            alternatives = [
                {"token": word, "logprob": logprob},
                *({"token": f"x{i}", "logprob": others} for i in range(top - 1)),
            ]
            return {"token": word, "logprob": logprob, "bytes": list(word.encode()), "top_logprobs": alternatives[:top]}

        return [listed(word, p) for word, p in said]

    def _lists(self, body: dict[str, Any], thoughts: list[Any], answer: list[Any]) -> Any:
        whole_only = self.logprobs == "whole only" and body.get("stream")
        silent = body.get("tools") and self.tools == "unscored"
        if not body.get("logprobs") or self.logprobs == "none" or whole_only or silent:
            return None
        if self.logprobs == "empty":
            return {"content": []}
        apart = {"reasoning_content": self._entries(body, thoughts)} if self.thoughts == "apart, own list" else {}
        told = answer if self.thoughts in ("apart, own list", "apart, not listed", "hidden") else [*thoughts, *answer]
        return {"content": self._entries(body, told)} | apart

    def _message(self, body: dict[str, Any], thoughts: list[Any], answer: list[Any]) -> dict[str, Any]:
        told = {"role": "assistant", "content": _text(answer)}
        if self.thoughts == "in the text":
            told["content"] = _text(thoughts) + told["content"]
        elif self.thoughts.startswith("apart") and thoughts:
            told["reasoning_content"] = _text(thoughts)
        if body.get("tools") and self.tools != "text" and answer == list(CALL):
            function = {"name": "note_colour", "arguments": '{"colour": "blue"}'}
            return told | {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}
        return told

    def _counts(self, body: dict[str, Any], thoughts: list[Any], answer: list[Any]) -> dict[str, Any] | None:
        if self.usage == "no" or (self.usage == "whole" and body.get("stream")):
            return None
        written = len(thoughts) + len(answer)
        told = {"prompt_tokens": 20, "completion_tokens": written, "total_tokens": 20 + written}
        return told | ({"completion_tokens_details": {"reasoning_tokens": len(thoughts)}} if thoughts else {})

    def _whole(self, body: dict[str, Any]) -> Sent:
        thoughts, answer, finish = self._said(body)
        choice = {
            "message": self._message(body, thoughts, answer),
            "logprobs": self._lists(body, thoughts, answer),
            "finish_reason": finish,
        }
        choices = [{"index": i, **choice} for i in range(body.get("n") or 1 if self.several else 1)]
        return _json(_envelope("chat.completion", choices=choices, usage=self._counts(body, thoughts, answer)))

    def _streamed(self, body: dict[str, Any]) -> Sent:
        thoughts, answer, finish = self._said(body)

        def events() -> Iterator[str]:
            for is_thought, said in ((True, thoughts), (False, answer)):
                for each in said:
                    key = "reasoning_content" if is_thought and self.thoughts.startswith("apart") else "content"
                    hidden = is_thought and self.thoughts == "hidden"
                    lists = self._lists(body, [each] if is_thought else [], [] if is_thought else [each])
                    choice = {"index": 0, "delta": {} if hidden else {key: each[0]}, "logprobs": lists}
                    yield _event(choices=[{**choice, "finish_reason": None}])
            yield _event(choices=[{"index": 0, "delta": {}, "finish_reason": finish}])
            if (counts := self._counts(body, thoughts, answer)) and (body.get("stream_options") or {}).get(
                "include_usage"
            ):
                yield _event(choices=[], usage=counts)
            yield "data: [DONE]\n\n"

        return Sent(events(), content_type="text/event-stream")


def _text(said: list[Any]) -> str:
    return "".join(word for word, _ in said)


def _envelope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "1", "object": kind, "created": 0, "model": "m-2026-11", **fields}


def _event(**fields: Any) -> str:
    return f"data: {json.dumps(_envelope('chat.completion.chunk', **fields))}\n\n"


def _json(told: Any, status: int = 200) -> Sent:
    return Sent(json.dumps(told), status, content_type="application/json")


def _error(status: int, message: str, code: str | None, param: str | None = None) -> Sent:
    error = {"message": message, "type": "invalid_request_error", "code": code, "param": param}
    return _json({"error": error}, status)


BEHAVIOURS: dict[str, dict[str, Any]] = {
    "OpenAI": {},
    "OpenAI, reasoning": {"refuses": ("max_tokens", "temperature", "logprobs"), "thoughts": "hidden"},
    "Anthropic": {"logprobs": "none"},
    "Gemini": {"refuses": ("logprobs",)},
    "a model that may not": {"logprobs": "refused"},
    "DeepSeek V3.2": {"logprobs": "zeros"},
    "DeepSeek V4": {"thoughts": "apart, own list"},
    "LM Studio": {"logprobs": "empty"},
    "vLLM, thinking": {"thoughts": "apart", "tools": "scored"},
    "no parser, thinking": {"thoughts": "in the text"},
    "-9999 everywhere": {"logprobs": "nines"},
    "constants": {"logprobs": "constant"},
    "none when streamed": {"logprobs": "whole only"},
    "others when streamed": {"logprobs": "others streamed"},
    "no streams": {"refuses": ("stream",)},
    "no reasons": {"finish": {"stop": None}},
    "no usage in streams": {"usage": "whole"},
    "no usage": {"usage": "no"},
    "odd reasons": {"finish": {"stop": "finished"}},
    "cuts look whole": {"finish": {"length": "stop"}},
    "no limit holds": {"obeys": False},
    "one answer a call": {"several": False},
    "no tools": {"tools": "refused"},
    "text instead of a call": {"tools": "text"},
    "wrong key": {"status": 401},
    "unknown model": {"status": 404},
    "broken": {"status": 500},
    "OpenAI, tool calls scored": {"tools": "scored"},
    "OpenRouter, which drops what a model does not take": {"logprobs": "none", "tools": "text", "several": False},
    "Ollama, a cloud model": {"logprobs": "none", "thoughts": "apart"},
    "DeepSeek V3.2, without alternatives": {"logprobs": "zeros", "listed": 0},
    "DeepSeek V3.2, 0 or -9999": {"logprobs": "some zeros", "listed": 0},
    "thoughts apart, not listed": {"thoughts": "apart, not listed"},
    "max_tokens refused": {"refuses": ("max_tokens",)},
    "temperature refused": {"refuses": ("temperature",)},
    "no small limits": {"least": 100},
    "filtered": {"finish": {"stop": "content_filter"}},
    "a web page": {"page": "<!doctype html><title>Sign in</title>"},
    "hangs": {"hangs_s": 0.6},
}
