"""A scripted chat model that calls tools and gives structured output as providers do, and a scripted provider."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse


@dataclass(frozen=True)
class Said:
    """One answer: text, calls as (name, arguments as written), probability of its tokens; or an error."""

    text: str = ""
    calls: Sequence[tuple[str, str]] = ()
    p: float | Callable[[str], float] = 0.99
    cut: bool = False
    error: Exception | None = None


class CallingModel(BaseChatModel):
    """Says what its script says to the messages; lists the tokens of its calls among its log-probabilities.

    With `named_inputs`, tools go to it as {"name": ..., "input": schema}, and it understands no other form.
    """

    model: str
    script: Callable[[list[BaseMessage]], Any]
    named_inputs: bool = False
    tells_call_tokens: bool = True
    logprobs: bool | None = None
    seen: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "calling"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        told = [convert_to_openai_tool(tool) if not _own(tool) else tool for tool in tools]
        if self.named_inputs:
            told = [
                {"name": tool["function"]["name"], "input": tool["function"]["parameters"]}
                if "function" in tool
                else tool
                for tool in told
            ]
            tool_choice = tool_choice and {"force": tool_choice}
        return self.bind(tools=told, **({"tool_choice": tool_choice} if tool_choice else {}), **kwargs)

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Runnable[Any, Any]:
        method = kwargs.get("method", "function_calling")
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        llm = self.bind(response_format=method)
        is_class = isinstance(schema, type) and issubclass(schema, BaseModel)
        parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        parse = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        raw = RunnableMap(raw=llm) | parse.with_fallbacks([failed], exception_key="parsing_error")
        return raw if include_raw else llm | parser

    def _said(self, messages: list[BaseMessage], stop: Any, options: dict[str, Any]) -> Said:
        self.seen.append({"messages": list(messages), "stop": stop, **options})
        for tool in options.get("tools", ()):
            assert _own(tool) or ("input" in tool) == self.named_inputs, "tools of another provider's form"
        said = self.script(messages)
        said = Said(said) if isinstance(said, str) else said
        if said.error is not None:
            raise said.error
        return said

    def _entries(self, said: Said) -> list[dict[str, Any]]:
        written = said.text
        if self.tells_call_tokens:
            written += "".join(f'\n{{"name": "{name}", "arguments": {args}}}' for name, args in said.calls)
        probability = said.p if callable(said.p) else lambda _: said.p
        return [
            {"token": token, "logprob": math.log(probability(token)), "bytes": list(token.encode()), "top_logprobs": []}
            for token in re.findall(r"\s*\w+|\s*\W", written)
        ]

    def _account(self, said: Said, options: dict[str, Any]) -> dict[str, Any]:
        count = max(1, len(self._entries(said)))
        metadata: dict[str, Any] = {"model_name": self.model, "finish_reason": "tool_calls" if said.calls else "stop"}
        if said.cut:
            metadata["finish_reason"] = "length"
        if options.get("logprobs"):
            metadata["logprobs"] = {"content": self._entries(said)}
        usage = UsageMetadata(input_tokens=5, output_tokens=count, total_tokens=5 + count)
        return {"response_metadata": metadata, "usage_metadata": usage}

    def _generate(self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any) -> ChatResult:
        kwargs.pop("run_manager", None)
        said = self._said(messages, stop, kwargs)
        calls, invalid = [], []
        for i, (name, args) in enumerate(said.calls):
            raw = {"function": {"name": name, "arguments": args}, "id": f"call_{i}"}
            try:
                calls.append(parse_tool_call(raw))
            except Exception as error:
                invalid.append(make_invalid_tool_call(raw, str(error)))
        message = AIMessage(said.text, tool_calls=calls, invalid_tool_calls=invalid, **self._account(said, kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        kwargs.pop("run_manager", None)
        said = self._said(messages, stop, kwargs)
        for word in re.findall(r"\s*\S+", said.text):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        for i, (name, args) in enumerate(said.calls):
            pieces = [(name, f"call_{i}", ""), (None, None, args[:4]), (None, None, args[4:])]
            for piece_name, piece_id, piece in pieces:
                chunk = tool_call_chunk(name=piece_name, args=piece, id=piece_id, index=i)
                yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[chunk]))
        last = AIMessageChunk("", chunk_position="last", **self._account(said, kwargs))
        yield ChatGenerationChunk(message=last)

    async def _agenerate(self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages, stop, **kwargs)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, **kwargs):
            await asyncio.sleep(0)
            yield chunk


def _own(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "web_search"


@pytest.fixture
def said() -> type[Said]:
    return Said


@pytest.fixture
def calling() -> Callable[..., CallingModel]:
    """A model by its name and what it says: a text, a `Said`, or a function of the messages."""

    def model(name: str, script: Any, **parameters: Any) -> CallingModel:
        return CallingModel(model=name, script=script if callable(script) else lambda _: script, **parameters)

    return model


# ---------------------------------------------------------------------- a provider, behind real clients


@dataclass
class Provider:
    """A server with OpenAI's doors for chat and responses, which says `text` to whatever it is asked.

    Attributes:
        asked: The bodies of all requests, as they came.
        thoughts: Told in ``reasoning_content``, as DeepSeek does.
        call: A tool call: name and arguments as written.
        usage: Of chat; None reports none.
        pause_s: Before a whole answer of chat, and before each word of a stream.
        status: Of an error in the place of an answer, whose body is `error`.
    """

    url: str = ""
    text: str = "It is Paris"
    thoughts: str = ""
    call: tuple[str, str] | None = None
    p: float = 0.9
    finish: str | None = None
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 90},
            "completion_tokens_details": {"reasoning_tokens": 45},
        }
    )
    pause_s: float = 0.0
    status: int = 200
    error: dict[str, Any] = field(default_factory=lambda: {"message": "no", "type": "error", "code": "no"})
    asked: list[dict[str, Any]] = field(default_factory=list)

    def serve(self, server: HTTPServer) -> Provider:
        # a path of its own: langchain-openai shares asynchronous clients by address, over event loops
        self.url = server.url_for(f"/{uuid.uuid4().hex}/v1")
        path = "/" + self.url.split("/", 3)[3]
        server.expect_request(f"{path}/chat/completions").respond_with_handler(self._chat)
        server.expect_request(f"{path}/responses").respond_with_handler(self._responses)
        return self

    def settings(self, **more: Any) -> dict[str, Any]:
        """Of a `ChatOpenAI` that asks it."""
        # clients of their own, which read no certificates: half of a test's time
        clients = {
            "http_client": httpx.Client(verify=False, timeout=60),
            "http_async_client": httpx.AsyncClient(verify=False, timeout=60),
        }
        return {"model": "tiny", "base_url": self.url, "api_key": "none", "max_retries": 0, **clients, **more}

    def _asked(self, request: HTTPRequest) -> dict[str, Any]:
        asked: dict[str, Any] = json.loads(request.data)
        self.asked.append(asked)
        return asked

    def _error(self) -> HTTPResponse:
        return HTTPResponse(json.dumps({"error": self.error}), self.status, content_type="application/json")

    @property
    def _words(self) -> list[str]:
        return re.findall(r"\s*\S+", self.text)

    @property
    def _finish(self) -> str:
        return self.finish or ("tool_calls" if self.call else "stop")

    def _entries(self, asked: dict[str, Any], words: list[str]) -> dict[str, Any] | None:
        if not asked.get("logprobs"):
            return None
        top = [
            {"token": f" other{i}", "logprob": -3.0 - i, "bytes": None} for i in range(asked.get("top_logprobs") or 0)
        ]
        entries = [
            {"token": word, "logprob": math.log(self.p), "bytes": list(word.encode()), "top_logprobs": top}
            for word in words
        ]
        return {"content": entries}

    def _chat(self, request: HTTPRequest) -> HTTPResponse:
        asked = self._asked(request)
        if self.status != 200:
            return self._error()
        if asked.get("stream"):
            return HTTPResponse(self._events(asked), content_type="text/event-stream")
        time.sleep(self.pause_s)
        message: dict[str, Any] = {"role": "assistant", "content": None if self.call else self.text}
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        if self.call:
            function = {"name": self.call[0], "arguments": self.call[1]}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        logprobs = self._entries(asked, [] if self.call else self._words)
        choice = {"index": 0, "message": message, "finish_reason": self._finish, "logprobs": logprobs}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny-2026", "choices": [choice]}
        if self.usage:
            body["usage"] = self.usage
        return HTTPResponse(json.dumps(body), content_type="application/json")

    def _events(self, asked: dict[str, Any]) -> Iterator[str]:
        def event(delta: dict[str, Any], **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": None} | more
            return said(choices=[choice])

        def said(**fields: Any) -> str:
            body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "tiny-2026", **fields}
            return f"data: {json.dumps(body)}\n\n"

        yield event({"role": "assistant", "content": ""})
        for word in re.findall(r"\s*\S+", self.thoughts):
            yield event({"reasoning_content": word})
        if self.call:
            name, arguments = self.call
            first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
            yield event({"tool_calls": [first]})
            yield event({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})
        else:
            for word in self._words:
                time.sleep(self.pause_s)
                yield event({"content": word}, logprobs=self._entries(asked, [word]))
        yield event({}, finish_reason=self._finish)
        if self.usage and asked.get("stream_options", {}).get("include_usage"):
            yield said(choices=[], usage=self.usage)
        yield "data: [DONE]\n\n"

    def _responses(self, request: HTTPRequest) -> HTTPResponse:
        asked = self._asked(request)
        if self.status != 200:
            return self._error()
        if self.call:
            item: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "status": "completed"}
            item |= {"name": self.call[0], "arguments": self.call[1]}
        else:
            part = {"type": "output_text", "text": self.text, "annotations": []}
            item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
        response = {
            "id": "resp_1",
            "object": "response",
            "created_at": 0,
            "model": "tiny-2026",
            "status": "completed",
            "output": [item],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 100,
                "output_tokens": 50,
                "total_tokens": 150,
                "input_tokens_details": {"cached_tokens": 90},
                "output_tokens_details": {"reasoning_tokens": 45},
            },
        }
        if not asked.get("stream"):
            return HTTPResponse(json.dumps(response), content_type="application/json")
        return HTTPResponse(self._response_events(response, item), content_type="text/event-stream")

    def _response_events(self, response: dict[str, Any], item: dict[str, Any]) -> Iterator[str]:
        def event(kind: str, **fields: Any) -> str:
            return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 0, **fields})}\n\n"

        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        yield event("response.created", response=begun)
        if item["type"] == "function_call":
            yield event("response.output_item.added", output_index=0, item={**item, "arguments": ""})
            where = {"output_index": 0, "item_id": "fc_1"}
            yield event("response.function_call_arguments.delta", delta=item["arguments"], **where)
            yield event("response.function_call_arguments.done", arguments=item["arguments"], **where)
        else:
            yield event("response.output_item.added", output_index=0, item={**item, "content": []})
            where = {"output_index": 0, "item_id": "msg_1", "content_index": 0}
            empty = {"type": "output_text", "text": "", "annotations": []}
            yield event("response.content_part.added", part=empty, **where)
            for word in self._words:
                yield event("response.output_text.delta", delta=word, logprobs=[], **where)
            yield event("response.output_text.done", text=self.text, logprobs=[], **where)
        yield event("response.output_item.done", output_index=0, item=item)
        yield event("response.completed", response=response)


@pytest.fixture
def provider(httpserver: HTTPServer) -> Callable[..., Provider]:
    """A provider on this machine, by what it says."""

    def make(**says: Any) -> Provider:
        return Provider(**says).serve(httpserver)

    return make
