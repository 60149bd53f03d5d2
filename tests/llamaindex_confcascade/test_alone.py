"""A cascade of one stage against its LLM alone: what the LLM is asked and answers, piece by piece, and its errors.

Every row is a kind of LLM, every column a method. This file expects only that the two agree: the LLM alone is asked
first, then a cascade of it.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from confcascade import ConfigurationError, Message, Request, Usage
from confcascade.extending import Generate
from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
)
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, SelectorPromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import BaseOutputParser
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.model import LlamaIndexModel
from llamaindex_confcascade.reading import response_from

QUESTION = "Where is the Eiffel tower?"
ANSWER = "It is in Paris."


class Place(BaseModel):
    """A place."""

    name: str


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


# ---------------------------------------------------------------------- what answers


class Server:
    """Chats and completions of OpenAI's form, with usage details; keeps what it was asked. "thinker" thinks aloud."""

    def __init__(self, httpserver: HTTPServer) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        self.url = httpserver.url_for("/v1")
        for path in ("/v1/chat/completions", "/v1/completions"):
            httpserver.expect_request(path, method="POST").respond_with_handler(self._respond)

    def llm(self, cls: type[OpenAI] = OpenAILike, model: str = "gpt-4o-mini", **fields: Any) -> Any:
        return cls(model=model, api_base=self.url, api_key="sk-none", max_retries=0, **fields)

    def _respond(self, http: HTTPRequest) -> HTTPResponse:
        body, chats = json.loads(http.get_data()), http.path.endswith("chat/completions")
        streams = body.get("stream", False)
        # whether an LLM that streams wants its usage is asked for by a cascade, and changes no answer
        self.bodies.append((http.path, {key: value for key, value in body.items() if key != "stream_options"}))
        if self.status != 200:
            return HTTPResponse(json.dumps({"error": {"message": "no", "code": "none"}}), self.status)
        tool = body.get("tools", [{}])[0].get("function", {}).get("name")
        wants_json = tool == "Place" or "response_format" in body or "JSON" in json.dumps(body)
        text = '{"name": "Paris"}' if wants_json else ANSWER
        calls = []
        if tool:
            arguments = '{"name": "Paris"}' if tool == "Place" else '{"a": 1, "b": 2}'
            calls = [{"id": "call_0", "type": "function", "function": {"name": tool, "arguments": arguments}}]
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": 5,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
        common = {"id": "x", "created": 0, "model": body["model"]}
        thoughts = {"reasoning_content": "A tower."} if body["model"] == "thinker" else {}
        if not streams:
            message = {"role": "assistant", "content": None if calls else text, "tool_calls": calls or None, **thoughts}
            said = {"message": message} if chats else {"text": text}
            logprobs = self._logprobs(text) if body.get("logprobs") and chats else None
            choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "logprobs": logprobs, **said}
            kind = "chat.completion" if chats else "text_completion"
            whole = {**common, "object": kind, "choices": [choice], "usage": usage}
            return HTTPResponse(json.dumps(whole), content_type="application/json")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": each} for each in ("A", " tower.") if thoughts]
        if calls:
            deltas += [{"tool_calls": [{"index": 0, **calls[0]}]}]
        else:
            deltas += [{"content": each} for each in (text[:4], text[4:9], text[9:])]
        if not chats:
            deltas = [{"text": delta["content"]} for delta in deltas if delta.get("content")]
        events = [{"index": 0, **({"delta": delta} if chats else delta), "finish_reason": None} for delta in deltas]
        if body.get("logprobs") and chats and not calls:
            for event in events:
                event["logprobs"] = self._logprobs(event["delta"].get("content"))
        end = {"delta": {}} if chats else {"text": ""}
        events.append({"index": 0, **end, "finish_reason": "tool_calls" if calls else "stop"})
        kind = "chat.completion.chunk" if chats else "text_completion"
        pieces = [{**common, "object": kind, "choices": [event]} for event in events]
        pieces.append({**common, "object": kind, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
        return HTTPResponse("".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")

    @staticmethod
    def _logprobs(text: str | None) -> Any:
        entry = {"token": text, "logprob": -0.01, "bytes": None, "top_logprobs": []}
        return {"content": [entry] if text else []}


class Fake(LLM):
    """Chats; its class lacks some methods."""

    asked: list[Any] = Field(default_factory=list, exclude=True)
    lacks: str = ""  # whatever method's name begins so

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="fake", is_chat_model=True)

    def _told(self, method: str, messages: Any, kwargs: Any) -> list[ChatResponse]:
        if self.lacks and method in self.lacks.split():
            raise NotImplementedError(method)
        self.asked.append((messages, kwargs))
        pieces = ["It ", "is in ", "Paris."]
        return [
            ChatResponse(
                message=ChatMessage(role="assistant", content="".join(pieces[: i + 1])),
                delta=piece,
                raw={"piece": i},
                additional_kwargs={"thinking_delta": "hm"} if i == 0 else {},
            )
            for i, piece in enumerate(pieces)
        ]

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._told("chat", messages, kwargs)[-1]

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._told("achat", messages, kwargs)[-1]

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return iter(self._told("stream_chat", messages, kwargs))

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        told = self._told("astream_chat", messages, kwargs)

        async def pieces() -> AsyncIterator[ChatResponse]:
            for piece in told:
                yield piece

        return pieces()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return await achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)


class Delegating(Fake):
    """Hands everything to another LLM, as a router, a fallback or a cache does."""

    inner: LLM

    @property
    def metadata(self) -> LLMMetadata:
        return self.inner.metadata

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self.inner.chat(messages, **kwargs)

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return await self.inner.achat(messages, **kwargs)

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return self.inner.stream_chat(messages, **kwargs)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return await self.inner.astream_chat(messages, **kwargs)


class Logged(OpenAILike):
    """With a decorator of the user's own above LlamaIndex's."""

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return super().chat([*messages, ChatMessage(content="Be brief.")], **kwargs)


class Custom(CustomLLM):
    """As LlamaIndex's documentation has users write it; tells log-probabilities in LlamaIndex's form."""

    asked: list[Any] = Field(default_factory=list, exclude=True)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="custom")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.asked.append((prompt, formatted, kwargs))
        logprobs = [[LogProb(token=ANSWER, logprob=-0.01)]]
        text = '{"name": "Paris"}' if "JSON" in prompt else ANSWER
        return CompletionResponse(text=text, logprobs=logprobs, raw={"of": "custom"}, additional_kwargs={"more": 1})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        self.asked.append((prompt, formatted, kwargs))

        def pieces() -> Iterator[CompletionResponse]:
            for end in (5, len(ANSWER)):
                delta = ANSWER[0 if end == 5 else 5 : end]
                logprobs = [[LogProb(token=delta, logprob=-0.01)]]
                yield CompletionResponse(text=ANSWER[:end], delta=delta, raw={"end": end}, logprobs=logprobs)

        return pieces()  # type: ignore[return-value]


class Spying:
    """A tokenizer that keeps the prompts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[str] = []

    def __call__(self, text: str, **options: Any) -> Any:
        self.prompts.append(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


# ---------------------------------------------------------------------- the rows


@dataclass
class Row:
    """A kind of LLM.

    Attributes:
        llm: One of them.
        asked: What it has been asked so far, in a form that can be compared.
        whole: Its streams come in other pieces in a cascade: only what they add up to is compared.
        objects: It streams objects that are not whole, and a cascade the whole one.
    """

    llm: LLM
    asked: Callable[[], list[Any]]
    whole: bool = False
    objects: bool = False


@dataclass
class Bench:
    server: Server
    local_llm: Any
    monkeypatch: Any
    rows: dict[str, Callable[[Bench], Row]] = field(default_factory=dict)

    def http(self, llm: LLM) -> Row:
        return Row(llm, lambda: self.server.bodies)


def to_prompt(prompt: str) -> str:
    return f"<s>{prompt}"


def messages_to_prompt(messages: Any) -> str:
    return "|".join(message.content for message in messages)


def patched(bench: Bench) -> Row:
    """The class's method is replaced after a cascade of it has been asked."""
    llm = bench.server.llm(OpenAI)
    ConfidenceCascadeLLM(models=[llm]).chat([ChatMessage(content="before")])
    original = OpenAI.chat

    def chat(self: Any, messages: Any, **kwargs: Any) -> ChatResponse:
        return original(self, [*messages, ChatMessage(content="patched")], **kwargs)  # type: ignore[no-any-return]

    bench.monkeypatch.setattr(OpenAI, "chat", chat)
    return bench.http(llm)


def local(bench: Bench, **fields: Any) -> Row:
    from confcascade.models.bundled import bundled_model

    small = bundled_model("small")
    llm = bench.local_llm(small, max_new_tokens=8, **fields)
    tokenizer = copy.deepcopy(small.tokenizer)
    # the LLM alone would write the first token twice, a cascade does not
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "").replace("{{bos_token}}", "")
    spying = llm._tokenizer = Spying(tokenizer)
    return Row(llm, lambda: list(spying.prompts), whole=True)


def structured(bench: Bench) -> Row:
    llm = bench.server.llm(is_chat_model=True, is_function_calling_model=True).as_structured_llm(Place)
    return Row(llm, lambda: bench.server.bodies, objects=True)


def fake(bench: Bench, **fields: Any) -> Row:
    llm = Fake(**fields)
    return Row(llm, lambda: llm.asked)


def custom(bench: Bench, **fields: Any) -> Row:
    llm = Custom(**fields)
    return Row(llm, lambda: llm.asked)


ROWS: dict[str, Callable[[Bench], Row]] = {
    "OpenAI": lambda b: b.http(b.server.llm(OpenAI)),
    "OpenAILike, which completes": lambda b: b.http(b.server.llm(max_tokens=9)),
    "OpenAILike with prompts of the user's": lambda b: b.http(
        b.server.llm(max_tokens=9, completion_to_prompt=to_prompt, messages_to_prompt=messages_to_prompt)
    ),
    "OpenAILike that calls tools": lambda b: b.http(b.server.llm(is_chat_model=True, is_function_calling_model=True)),
    "OpenAILike of a schema": lambda b: b.http(b.server.llm(is_chat_model=True, should_use_structured_outputs=True)),
    "OpenAILike that thinks": lambda b: b.http(b.server.llm(model="thinker", is_chat_model=True)),
    "with a system prompt": lambda b: b.http(b.server.llm(is_chat_model=True, system_prompt="Answer in French.")),
    "completes, with a system prompt": lambda b: b.http(
        b.server.llm(
            max_tokens=9, system_prompt="Answer in French.", query_wrapper_prompt=PromptTemplate("[{query_str}]")
        )
    ),
    "delegates": lambda b: b.http(Delegating(inner=b.server.llm(OpenAI))),
    "decorated": lambda b: b.http(b.server.llm(Logged, is_chat_model=True)),
    "structured": structured,
    "patched late": patched,
    "a cascade": lambda b: b.http(ConfidenceCascadeLLM(models=[b.server.llm(OpenAI)])),
    "sync only": lambda b: fake(b, lacks="achat astream_chat"),
    "async only": lambda b: fake(b, lacks="chat stream_chat"),
    "streams only": lambda b: fake(b, lacks="chat achat"),
    "CustomLLM": custom,
    "CustomLLM with a prompt of the user's": lambda b: custom(b, completion_to_prompt=to_prompt),
    "HuggingFaceLLM": local,
    "HuggingFaceLLM with prompts of the user's": lambda b: local(b, completion_to_prompt=to_prompt),
    "HuggingFaceLLM that chats": lambda b: local(b, is_chat_model=True, system_prompt="Answer in French."),
}


# ---------------------------------------------------------------------- the columns


def selected() -> SelectorPromptTemplate:
    """A new one: LlamaIndex's programs change theirs."""
    chats = ChatPromptTemplate([ChatMessage(role="system", content="Chat."), ChatMessage(content="{q}")])
    return SelectorPromptTemplate(PromptTemplate("Q: {q}"), [(lambda llm: llm.metadata.is_chat_model, chats)])


TOOL = FunctionTool.from_defaults(add)
MESSAGES = [ChatMessage(role="system", content="Be kind."), ChatMessage(content=QUESTION)]

COLUMNS: dict[str, Callable[[Any], Any]] = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: llm.achat(MESSAGES),
    "stream_chat": lambda llm: llm.stream_chat(MESSAGES),
    "astream_chat": lambda llm: llm.astream_chat(MESSAGES),
    "complete": lambda llm: llm.complete(QUESTION),
    "complete, formatted": lambda llm: llm.complete(QUESTION, formatted=True),
    "acomplete": lambda llm: llm.acomplete(QUESTION),
    "stream_complete": lambda llm: llm.stream_complete(QUESTION),
    "astream_complete": lambda llm: llm.astream_complete(QUESTION),
    "predict": lambda llm: llm.predict(selected(), q=QUESTION),
    "apredict": lambda llm: llm.apredict(selected(), q=QUESTION),
    "stream": lambda llm: llm.stream(selected(), q=QUESTION),
    "structured_predict": lambda llm: llm.structured_predict(Place, selected(), q=QUESTION),
    "astructured_predict": lambda llm: llm.astructured_predict(Place, selected(), q=QUESTION),
    "chat_with_tools": lambda llm: llm.chat_with_tools([TOOL], user_msg=QUESTION),
    "stream_chat_with_tools": lambda llm: llm.stream_chat_with_tools([TOOL], user_msg=QUESTION),
}
_COUNTS = {"prompt_tokens", "completion_tokens", "total_tokens"}


@dataclass
class Heard:
    """What a method gave."""

    asked: list[Any]
    pieces: list[Any]
    last: dict[str, Any]
    error: Exception | None = None


async def heard(row: Row, llm: LLM, column: str) -> Heard:
    before = len(row.asked())
    given: list[Any] = []
    error = None
    try:
        found: Any = COLUMNS[column](llm)
        found = await found if inspect.isawaitable(found) else found
        if hasattr(found, "__aiter__"):
            given = [item async for item in found]
        elif hasattr(found, "__next__"):
            given = list(found)
        else:
            given = [found]
    except Exception as raised:
        error = raised
    asked = [_shown(each) for each in row.asked()[before:]]
    if error is not None:
        return Heard(asked, [], {"is": None}, error)
    if row.objects:
        pieces = []
    elif "stream" not in column or row.whole:
        pieces = ["".join(filter(None, (getattr(item, "delta", item) for item in given)))] if "stream" in column else []
    else:
        pieces = [_piece(item) for item in given if _says(item)]
    if "stream" in column and isinstance(given[-1], str):
        return Heard(asked, pieces, {})  # words, and of a cascade's none at the end
    return Heard(asked, pieces, _last(given[-1], row))


def _shown(asked: Any) -> Any:
    """What an LLM was asked, as text: its objects are copies."""
    return json.dumps(asked, default=lambda value: value.model_dump(mode="json"))


def _says(item: Any) -> bool:
    return bool(getattr(item, "delta", item) or getattr(item, "additional_kwargs", {}).get("thinking_delta"))


def _piece(item: Any) -> Any:
    if not isinstance(item, ChatResponse | CompletionResponse):
        return item
    kwargs = {key: value for key, value in item.additional_kwargs.items() if key not in _COUNTS | {"confcascade"}}
    return item.delta, kwargs, item.raw


def _last(item: Any, row: Row) -> dict[str, Any]:
    """Of a response, what must be alike, and which usage it tells."""
    if not isinstance(item, ChatResponse | CompletionResponse):
        return {"is": item}
    raw = item.raw
    is_ours = isinstance(raw, dict) and set(raw) <= {"usage", "native"} and "confcascade" in item.additional_kwargs
    usage = raw["usage"] if is_ours else getattr(raw, "usage", None)
    while isinstance(raw, dict) and set(raw) <= {"usage", "native"}:  # a cascade's, or a cascade's in a cascade
        raw = raw.get("native")
    usage = usage if isinstance(usage, dict | None) else usage.model_dump(exclude_none=True)
    kwargs = {key: value for key, value in item.additional_kwargs.items() if key not in _COUNTS | {"confcascade"}}
    kwargs.pop("thinking_delta", None)  # of the last piece
    told = {"text": item.message.content if isinstance(item, ChatResponse) else item.text, "kwargs": kwargs}
    if isinstance(item, ChatResponse):
        told["blocks"] = [block for block in item.message.blocks if block.block_type != "text"]
        told["of the message"] = item.message.additional_kwargs
    return told | {"usage": usage, "raw": None if row.whole else raw}


def cases() -> Iterator[Any]:
    default = {
        "chat",
        "astream_chat",
        "complete",
        "stream_complete",
        "predict",
        "structured_predict",
        "chat_with_tools",
    }
    slow_rows = {"a cascade", "decorated", "OpenAILike of a schema"}
    for row in ROWS:
        for column in COLUMNS:
            is_fast = column in default and row not in slow_rows and not (row.startswith("Hugging") and "_" in column)
            yield pytest.param(row, column, marks=[] if is_fast else pytest.mark.slow, id=f"{row}-{column}")


@pytest.fixture
def bench(httpserver: HTTPServer, local_llm: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(Server(httpserver), local_llm, monkeypatch)


@pytest.mark.parametrize(("kind", "column"), cases())
async def test_one_stage_is_asked_and_answers_as_alone(bench: Bench, kind: str, column: str) -> None:
    if kind.startswith("Hugging"):
        pytest.importorskip("transformers")
    row = ROWS[kind](bench)
    if "tools" in column and not isinstance(row.llm, FunctionCallingLLM):
        pytest.skip("has no such method")

    alone = await heard(row, row.llm, column)
    cascade = await heard(row, ConfidenceCascadeLLM(models=[row.llm]), column)

    if isinstance(alone.error, NotImplementedError):
        return  # what its class lacks is done by its other methods
    if "tools" in column and not row.llm.metadata.is_function_calling_model:
        assert isinstance(cascade.error, ConfigurationError)  # LlamaIndex sends tools even so
        return
    if alone.error is not None:
        assert isinstance(cascade.error, type(alone.error)), cascade.error
        return
    assert cascade.error is None, cascade.error
    if not (row.objects and "stream" in column):
        assert cascade.asked[: len(alone.asked)] == alone.asked
    assert cascade.pieces == alone.pieces
    usage = cascade.last.pop("usage", None)
    if (told := alone.last.pop("usage", None)) is not None and "stream" not in column:
        assert usage == told
    if "stream" in column:  # the last piece alone may be one that tells nothing
        alone.last.pop("raw", None), cascade.last.pop("raw", None)
    assert cascade.last == alone.last


@pytest.mark.parametrize("column", ["chat", "astream_chat", "complete", "stream_complete", "predict"])
@pytest.mark.parametrize("kind", ["OpenAI", "OpenAILike, which completes", "delegates"])
async def test_one_stage_fails_as_alone(bench: Bench, kind: str, column: str) -> None:
    row = ROWS[kind](bench)
    bench.server.status = 429

    alone = await heard(row, row.llm, column)
    cascade = await heard(row, ConfidenceCascadeLLM(models=[row.llm]), column)

    assert alone.error is not None
    assert isinstance(cascade.error, type(alone.error))
    assert cascade.asked == alone.asked


# ---------------------------------------------------------------------- stages that differ


@pytest.mark.parametrize("column", ["chat", "complete", "predict", "stream_complete", "structured_predict"])
@pytest.mark.parametrize("chats", [True, False])
async def test_each_of_two_stages_is_asked_as_alone(bench: Bench, column: str, chats: bool) -> None:
    """One chats and one completes, whichever is the larger; each with a system prompt of its own."""
    small = bench.server.llm(model="small", max_tokens=9, is_chat_model=chats, system_prompt="Small.")
    large = bench.server.llm(model="large", max_tokens=9, is_chat_model=not chats, system_prompt="Large.")
    row = bench.http(large)

    alone = [await heard(row, llm, column) for llm in (small, large)]
    cascade = await heard(row, ConfidenceCascadeLLM(models=[small, large], threshold="never"), column)

    asked = [json.loads(each) for each in cascade.asked]
    for _, body in asked:  # of the stage that is judged
        body.pop("logprobs", None), body.pop("top_logprobs", None)
    asked = [each for i, each in enumerate(asked) if each not in asked[:i]]  # a streamed draft may be asked for anew
    wanted = [json.loads(body) for each in alone for body in each.asked]
    drop_stream = [(path, {**body, "stream": None}) for path, body in wanted]
    assert [(path, {**body, "stream": None}) for path, body in asked] == drop_stream
    if alone[1].error is None:
        assert cascade.last.get("text") == alone[1].last.get("text")
        assert cascade.last.get("is") == alone[1].last.get("is")


def test_what_the_cascade_is_given_replaces_what_its_stages_have(bench: Bench) -> None:
    llms = [
        bench.server.llm(model=name, is_chat_model=True, system_prompt=f"As {name}.") for name in ("small", "large")
    ]
    llm = ConfidenceCascadeLLM(models=llms, threshold="never", system_prompt="As one.", output_parser=Shouting())

    assert llm.predict(PromptTemplate("{q}"), q=QUESTION) == ANSWER.upper()
    for _, body in bench.server.bodies:
        assert [message["content"] for message in body["messages"]] == ["As one.", f"{QUESTION} Loud!"]


class Shouting(BaseOutputParser):
    def parse(self, output: str) -> Any:
        return output.upper()

    def format(self, query: str) -> str:
        return f"{query} Loud!"


def test_a_parser_of_a_stage_is_refused() -> None:
    """What `predict` returns is read by the parser of the LLM that is asked, which is the cascade."""
    with pytest.raises(ConfigurationError, match="stage 'fake' has an output_parser"):
        ConfidenceCascadeLLM(models=[Fake(output_parser=Shouting())])
    assert ConfidenceCascadeLLM(models=[Fake(output_parser=Shouting())], output_parser=Shouting())


# ---------------------------------------------------------------------- judged, whatever class they are of


METHODS = [
    "chat",
    "achat",
    "stream_chat",
    "astream_chat",
    "complete",
    "acomplete",
    "stream_complete",
    "astream_complete",
]


@pytest.mark.parametrize("column", METHODS)
@pytest.mark.parametrize("kind", ["CustomLLM", "delegates"])
async def test_llms_that_have_no_such_field_are_judged(bench: Bench, kind: str, column: str) -> None:
    if kind == "CustomLLM":
        llm: LLM = Custom()
    else:
        llm = Delegating(inner=bench.server.llm(OpenAI))
    found: Any = COLUMNS[column](ConfidenceCascadeLLM(models=[llm, Fake()], threshold=0.9))
    found = await found if inspect.isawaitable(found) else found
    if hasattr(found, "__aiter__"):
        found = [item async for item in found][-1]
    elif "stream" in column:
        found = list(found)[-1]

    record = found.additional_kwargs["confcascade"]
    assert (record["stage"], record["attempts"][0]["scores"]["p_t"]["value"]) == (0, pytest.approx(0.99, abs=0.001))


class Strict(Fake):
    """Hands its parameters to a client that does not know them all."""

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._client(messages, **kwargs)

    def _client(self, messages: Any, temperature: float = 0.0) -> ChatResponse:
        return super().chat(messages)


class Bare(Fake):
    """Takes nothing but messages."""

    def chat(self, messages: Any) -> ChatResponse:  # type: ignore[override]
        return super().chat(messages)


@pytest.mark.parametrize("cls", [Strict, Bare])
def test_an_llm_that_cannot_be_asked_for_log_probabilities_still_answers(cls: type[Fake]) -> None:
    llm = cls()
    record = ConfidenceCascadeLLM(models=[llm, Fake()], threshold=0.9).chat(MESSAGES).additional_kwargs["confcascade"]

    assert record["attempts"][0]["error"] is None
    assert record["attempts"][0]["scores"]["p_t"]["value"] is None
    assert len(llm.asked) == 1


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("Ollama", r"OpenAILike\(model=..., api_base=\"http://localhost:11434/v1\""), ("StructuredLLM", "on the cascade")],
)
def test_a_class_that_returns_none_is_refused_with_what_helps(name: str, remedy: str) -> None:
    llm = type(name, (Fake,), {"__module__": __name__})() if name == "Ollama" else Fake().as_structured_llm(Place)

    with pytest.raises(ConfigurationError, match=remedy):
        ConfidenceCascadeLLM(models=[llm, Fake()], threshold=0.9)
    assert ConfidenceCascadeLLM(models=[Fake(), llm], threshold=0.9)


# ---------------------------------------------------------------------- nobody's messages are changed


class Vandal(Fake):
    """Edits what it is given, in every way that there is."""

    def _told(self, method: str, messages: Any, kwargs: Any) -> list[ChatResponse]:
        messages[0].blocks[0].text = "VANDALISED"
        messages[0].additional_kwargs["more"] = 1
        messages[-1].content = "VANDALISED"
        messages.append(ChatMessage(content="more"))
        return super()._told(method, messages, kwargs)


@pytest.mark.parametrize("column", METHODS)
async def test_a_stage_that_edits_its_messages_edits_its_own(column: str) -> None:
    before = [message.model_dump() for message in MESSAGES]
    large = Fake()
    found: Any = COLUMNS[column](ConfidenceCascadeLLM(models=[Vandal(), large], threshold="never"))
    found = await found if inspect.isawaitable(found) else found
    if hasattr(found, "__aiter__"):
        _ = [item async for item in found]
    elif "stream" in column:
        list(found)

    ((messages, _),) = large.asked
    assert [message.model_dump() for message in MESSAGES] == before
    assert [message.content for message in messages][-1] == QUESTION


# ---------------------------------------------------------------------- what comes through


def test_usage_details_come_through(bench: Bench) -> None:
    """Under OpenAI's names, by which tracers know them, and in the record."""
    llm = ConfidenceCascadeLLM(models=[bench.server.llm(OpenAI)])

    for response in (llm.chat(MESSAGES), list(llm.stream_chat(MESSAGES))[-1]):
        usage = response.additional_kwargs["confcascade"]["usage"]
        assert usage["input_details"] == {"cache_read": 4}
        assert usage["output_details"] == {"reasoning": 2}
        assert response.raw["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (
            {"usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 5}},  # Anthropic
            Usage(8, 2, input_details={"cache_read": 5}),
        ),
        (
            {"usage": {"input_tokens": 3, "output_tokens": 2, "cache_creation_input_tokens": 4}},
            Usage(7, 2, input_details={"cache_creation": 4}),
        ),
        (
            {"usage_metadata": {"prompt_token_count": 6, "candidates_token_count": 2, "thoughts_token_count": 3,
                                "cached_content_token_count": 4}},  # Gemini
            Usage(6, 5, input_details={"cache_read": 4}, output_details={"reasoning": 3}),
        ),
        (
            {"usage": {"input_tokens": 6, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1},
                       "output_tokens_details": {"reasoning_tokens": 1}}},  # OpenAI's Responses
            Usage(6, 2, input_details={"cache_read": 1}, output_details={"reasoning": 1}),
        ),
    ],
)  # fmt: skip
def test_usage_is_read_as_each_provider_counts_it(raw: dict[str, Any], usage: Usage) -> None:
    """Anthropic counts cached input beside the other, Gemini thoughts beside the answer."""
    request = Request((Message("user", QUESTION),))
    response = ChatResponse(message=ChatMessage(content=ANSWER), raw=raw)

    read = response_from(response, Generate(LlamaIndexModel(Fake()), request), Fake())

    assert read.usage == usage
