"""Scripted LLMs that call tools and give structured output: one of another provider's form, one OpenAI's over HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.openai import OpenAI
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

    def entries(self, tells_call_tokens: bool = True) -> list[dict[str, Any]]:
        written = self.text
        if tells_call_tokens:
            written += "".join(f'\n{{"name": "{name}", "arguments": {args}}}' for name, args in self.calls)
        probability = self.p if callable(self.p) else lambda _: self.p
        return [
            {"token": token, "logprob": math.log(probability(token)), "bytes": list(token.encode()), "top_logprobs": []}
            for token in re.findall(r"\s*\w+|\s*\W", written)
        ]

    @property
    def finish_reason(self) -> str:
        return "length" if self.cut else "tool_calls" if self.calls else "stop"


def said_by(script: Any, messages: Any) -> Said:
    said = script(messages) if callable(script) else script
    return said if isinstance(said, Said) else Said(said)


class CallingLLM(FunctionCallingLLM):
    """Says what its script says to the messages; takes tools as {"name": ..., "input": schema} and nothing else."""

    name: str
    script: Any = Field(exclude=True)
    calls_tools: bool = True
    logprobs: bool | None = None
    tells_call_tokens: bool = True
    seen: list[dict[str, Any]] = Field(default_factory=list, exclude=True)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.name, is_chat_model=True, is_function_calling_model=self.calls_tools)

    def _prepare_chat_with_tools(
        self,
        tools: Any,
        user_msg: Any = None,
        chat_history: Any = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        del verbose
        told = [{"name": tool.metadata.name, "input": tool.metadata.get_parameters_dict()} for tool in tools]
        messages = [*(chat_history or []), *([user_msg] if user_msg else [])]
        more = {"force": tool_required, "parallel": allow_parallel_tool_calls}
        return {"messages": messages, "functions": told, **more, **kwargs}

    def get_tool_calls_from_response(self, response: Any, error_on_no_tool_call: bool = True, **_: Any) -> Any:
        from llamaindex_confcascade.tools import selections

        calls = selections(response.message)
        if not calls and error_on_no_tool_call:
            raise ValueError("no call")
        return calls

    def _whole(self, messages: Any, options: dict[str, Any]) -> ChatResponse:
        self.seen.append({"messages": list(messages), **options})
        assert "tools" not in options, "tools of another provider's form"
        said = said_by(self.script, messages)
        if said.error is not None:
            raise said.error
        blocks: list[Any] = [TextBlock(text=said.text)] if said.text else []
        blocks += [
            ToolCallBlock(tool_call_id=f"call_{i}", tool_name=name, tool_kwargs=_read(arguments))
            for i, (name, arguments) in enumerate(said.calls)
        ]
        entries = said.entries(self.tells_call_tokens) if options.get("logprobs") else []
        raw = {
            "choices": [{"finish_reason": said.finish_reason, "logprobs": {"content": entries} if entries else None}],
            "usage": {"prompt_tokens": 5, "completion_tokens": max(1, len(said.entries()))},
        }
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), raw=raw)

    def _pieces(self, messages: Any, options: dict[str, Any]) -> list[ChatResponse]:
        """One of each word, and one of the calls."""
        whole, text, pieces = self._whole(messages, options), "", []
        for word in re.findall(r"\s*\S+", whole.message.content or ""):
            text += word
            message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
            pieces.append(ChatResponse(message=message, delta=word))
        (choice,) = whole.raw["choices"]
        pieces.append(ChatResponse(message=whole.message, delta=""))
        # log-probabilities with the first piece, the accounts by themselves
        pieces[0].raw = {"choices": [{"logprobs": choice["logprobs"]}]}
        accounts = {"choices": [{"finish_reason": choice["finish_reason"]}], "usage": whole.raw["usage"]}
        return [*pieces, ChatResponse(message=whole.message, delta="", raw=accounts)]

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._whole(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        return self._whole(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
        def pieces() -> ChatResponseGen:
            yield from self._pieces(messages, kwargs)

        return pieces()

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        async def pieces() -> ChatResponseAsyncGen:
            for piece in self._pieces(messages, kwargs):
                await asyncio.sleep(0)
                yield piece

        return pieces()

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    stream_complete = acomplete = astream_complete = complete


class HuggingFaceLLM(CustomLLM):
    """As LlamaIndex's, as far as is read here; its package is not among the tests' requirements.

    Its prompts are the real one's, but that the real `stream_complete` ignores `completion_to_prompt`.
    """

    model_name: str = "bundled"
    context_window: int = 1000
    is_chat_model: bool = False
    max_new_tokens: int = 64
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)
    stopping_ids: list[int] = Field(default_factory=list)
    _model: Any = PrivateAttr()
    _tokenizer: Any = PrivateAttr()

    def __init__(self, model: Any, tokenizer: Any, messages_to_prompt: Any = None, **fields: Any) -> None:
        super().__init__(messages_to_prompt=messages_to_prompt or self._tokenizer_messages_to_prompt, **fields)
        self._model = model
        self._tokenizer = tokenizer

    def _tokenizer_messages_to_prompt(self, messages: Any) -> str:
        told = [{"role": message.role.value, "content": message.content} for message in messages]
        prompt: str = self._tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        return prompt

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            model_name=self.model_name,
            context_window=self.context_window,
            num_output=self.max_new_tokens,
            is_chat_model=self.is_chat_model,
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        if not formatted:
            prompt = self.query_wrapper_prompt.format(query_str=prompt) if self.query_wrapper_prompt else prompt
            prompt = self.completion_to_prompt(prompt) if self.completion_to_prompt else prompt
        inputs = self._tokenizer(prompt, return_tensors="pt")
        tokens = self._model.generate(**inputs, max_new_tokens=self.max_new_tokens, **self.generate_kwargs)
        written = tokens[0][inputs["input_ids"].size(1) :]
        text = self._tokenizer.decode(written, skip_special_tokens=True)
        return CompletionResponse(text=text, raw={"model_output": tokens})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponseGen:
        def pieces() -> CompletionResponseGen:
            whole = self.complete(prompt, formatted=formatted)
            whole.delta = whole.text
            yield whole

        return pieces()


@pytest.fixture
def local_llm() -> Callable[..., HuggingFaceLLM]:
    """A `HuggingFaceLLM` of a local model's weights."""

    def make(model: Any, **parameters: Any) -> HuggingFaceLLM:
        return HuggingFaceLLM(model.model, model.tokenizer, **parameters)

    return make


def _read(arguments: str) -> Any:
    """As clients of most providers do: a mapping, or what was written where it cannot be read."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


class OpenAIServer:
    """Answers for each model what its script says to the messages, as OpenAI's chat completions; keeps the requests."""

    def __init__(self, httpserver: HTTPServer) -> None:
        self.url = httpserver.url_for("/v1")
        self.scripts: dict[str, Any] = {}
        self.bodies: list[dict[str, Any]] = []
        httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self._respond)

    def llm(self, model: str, script: Any, cls: type[OpenAI] = OpenAI, **parameters: Any) -> OpenAI:
        """LlamaIndex's own class, whose server says what `script` says."""
        self.scripts[model] = script
        return cls(model=model, api_base=self.url, api_key="sk-secret", max_retries=0, **parameters)

    def asked(self, model: str) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["model"] == model]

    def _respond(self, http: HTTPRequest) -> HTTPResponse:
        body = json.loads(http.get_data())
        self.bodies.append(body)
        said = said_by(self.scripts[body["model"]], body["messages"])
        if said.error is not None:
            return HTTPResponse(json.dumps({"error": {"message": str(said.error)}}), 400)
        calls = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(said.calls)
        ]
        logprobs = {"content": said.entries()} if body.get("logprobs") else None
        count = max(1, len(said.entries()))
        usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
        common = {"id": "x", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": said.text or None, "tool_calls": calls or None}
            choice = {"index": 0, "finish_reason": said.finish_reason, "message": message, "logprobs": logprobs}
            data = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
            return HTTPResponse(json.dumps(data), content_type="application/json")
        deltas: list[dict[str, Any]] = [{"content": word} for word in re.findall(r"\s*\S+", said.text)]
        for i, call in enumerate(calls):
            arguments = call["function"]["arguments"]
            first = {"name": call["function"]["name"], "arguments": arguments[:4]}
            deltas.append({"tool_calls": [{"index": i, "id": call["id"], "type": "function", "function": first}]})
            deltas.append({"tool_calls": [{"index": i, "function": {"arguments": arguments[4:]}}]})
        events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        last = {"index": 0, "delta": {}, "finish_reason": said.finish_reason, "logprobs": None}
        if events:  # all of them with the first piece: what adds up to the answer does so at the end
            events[0]["choices"][0]["logprobs"] = logprobs
        events += [{"choices": [last]}, {"choices": [], "usage": usage}]
        lines = [f"data: {json.dumps({**common, 'object': 'chat.completion.chunk', **event})}\n\n" for event in events]
        return HTTPResponse("".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")


@pytest.fixture
def said() -> type[Said]:
    return Said


@pytest.fixture
def openai_server(httpserver: HTTPServer) -> OpenAIServer:
    return OpenAIServer(httpserver)


@pytest.fixture
def calling() -> Callable[..., CallingLLM]:
    """An LLM by its name and what it says: a text, a `Said`, or a function of the messages."""

    def make(name: str, script: Any, **parameters: Any) -> CallingLLM:
        return CallingLLM(name=name, script=script, **parameters)

    return make


@pytest.fixture(params=["OpenAI", "another provider"])
def pair(request: pytest.FixtureRequest, openai_server: OpenAIServer) -> Callable[[Any, Any], list[Any]]:
    """Two LLMs that say what the scripts say: OpenAI's behind a server, or such as take another form of tools."""

    def make(small: Any, large: Any) -> list[Any]:
        if request.param == "OpenAI":
            return [openai_server.llm("gpt-4o-mini", small), openai_server.llm("gpt-4o", large)]
        return [CallingLLM(name="gpt-4o-mini", script=small), CallingLLM(name="gpt-4o", script=large)]

    return make


class Events(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        self.seen.append(event)


class Spans(SimpleSpanHandler):
    """Keeps what was said, too."""

    results: dict[str, Any] = Field(default_factory=dict)
    asked: dict[str, Any] = Field(default_factory=dict)

    def span_enter(self, id_: str, bound_args: Any, **kwargs: Any) -> None:
        self.asked[id_] = bound_args.arguments
        super().span_enter(id_, bound_args, **kwargs)

    def span_exit(self, id_: str, bound_args: Any, result: Any = None, **kwargs: Any) -> None:
        self.results[id_] = result
        super().span_exit(id_, bound_args, result=result, **kwargs)

    @property
    def all(self) -> list[Any]:
        return self.completed_spans + self.dropped_spans

    @property
    def attempts(self) -> list[Any]:
        return sorted(
            (span for span in self.all if ".attempt-" in span.id_), key=lambda span: span.tags["confcascade_stage"]
        )


@pytest.fixture
def events() -> Iterator[Events]:
    handler, dispatcher = Events(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Iterator[Spans]:
    handler, dispatcher = Spans(), get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)
