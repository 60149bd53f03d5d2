"""A scripted chat model that calls tools and gives structured output as providers do."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

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
