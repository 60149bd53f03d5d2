"""What LlamaIndex's events, spans and callbacks tell of a cascade: one call, an attempt a span, and never a draft."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import llama_index.core
import pytest
from confcascade import CascadeExhaustedError, Prices, Stage, TokenProbability
from confcascade.testing import Reply, ScriptedModel
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.tools import FunctionTool

from llamaindex_confcascade import ConfidenceCascadeLLM

DRAFT, ANSWER = "Perhaps Lima", "It is Funafuti"


class Chat(LLM):
    """Says `says`, with log-probabilities and usage where OpenAI's class has them; decorated as integrations are."""

    says: Any = ANSWER
    p: float = 0.99
    name: str = "chat"
    logprobs: bool | None = None
    asked: list[str] = Field(default_factory=list)
    _client: Any = PrivateAttr(default=None)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.name, is_chat_model=True)

    def _pieces(self, way: str, options: Any) -> Iterator[ChatResponse]:
        self.asked.append(way)
        self._client = self._client or object()
        if isinstance(self.says, Exception):
            raise self.says
        text = ""
        for word in (words := self.says.split(" ")):
            delta = f" {word}" if text else word
            text += delta
            entry = {"token": delta, "logprob": math.log(self.p), "top_logprobs": []}
            raw: dict[str, Any] = {"choices": [{"logprobs": {"content": [entry]} if options.get("logprobs") else None}]}
            if len(text) == len(self.says):
                raw["usage"] = {"prompt_tokens": 10, "completion_tokens": len(words)}
            message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
            yield ChatResponse(message=message, delta=delta, raw=raw)

    def _whole(self, way: str, options: Any) -> ChatResponse:
        pieces = list(self._pieces(way, options))
        told = [piece.raw["choices"][0]["logprobs"] for piece in pieces]
        content = [entry for each in told if each for entry in each["content"]]
        raw = {"choices": [{"logprobs": {"content": content} if content else None}], "usage": pieces[-1].raw["usage"]}
        return ChatResponse(message=pieces[-1].message, raw=raw)

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._whole("chat", kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._whole("achat", kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
        return self._generator("stream_chat", kwargs)

    def _generator(self, way: str, options: Any) -> ChatResponseGen:
        yield from self._pieces(way, options)

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        async def pieces() -> ChatResponseAsyncGen:
            for piece in self._pieces("astream_chat", kwargs):
                yield piece

        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return await achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)


class Polite(Chat):
    """Decorated above a decorated method that it calls, as `OpenAILike` is."""

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return super().chat(messages, **kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return await super().achat(messages, **kwargs)


class Custom(CustomLLM):
    """Only completes, as `HuggingFaceLLM`; LlamaIndex's own code chats."""

    says: str = DRAFT

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="custom")

    @llm_completion_callback()
    def complete(self, *_: Any, **__: Any) -> CompletionResponse:
        return CompletionResponse(text=self.says)

    @llm_completion_callback()
    def stream_complete(self, *_: Any, **__: Any) -> CompletionResponseGen:
        yield CompletionResponse(text=self.says, delta=self.says)


SMALL = {
    "chat model": lambda **fields: Chat(name="small", says=DRAFT, p=0.3, **fields),
    "one above another": lambda **fields: Polite(name="small", says=DRAFT, p=0.3, **fields),
    "completion model": lambda **fields: Custom(**fields),
    "cascade": lambda **fields: ConfidenceCascadeLLM(
        models=[Chat(name="tiny", says="Lima", p=0.1, **fields), Chat(says=DRAFT, p=0.3)], threshold=0.8, **fields
    ),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Any:
    return SMALL[request.param]


def cascade(*models: Any, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), **{"threshold": 0.8} | parameters)


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


METHODS = [f"{a}{stream}{what}" for a in ("", "a") for stream in ("", "stream_") for what in ("chat", "complete")]


async def answered(llm: LLM, method: str) -> Any:
    """The answer of a method: a stream's last item."""
    given = getattr(llm, method)(user("q") if "chat" in method else "q")
    if method.startswith("a"):
        given = await given
        return [item async for item in given][-1] if "stream" in method else given
    return list(given)[-1] if "stream" in method else given


# ---------------------------------------------------------------------- events


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_is_one_pair_of_events(small: Any, method: str, events: Any) -> None:
    """Of the cascade; its stages, though LlamaIndex's own LLMs with decorators of their own, emit none."""
    await answered(cascade(small(), Chat()), method)

    starts = [event for event in events.seen if isinstance(event, LLMChatStartEvent | LLMCompletionStartEvent)]
    ends = [event for event in events.seen if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent)]
    assert [event.model_dict["class_name"] for event in starts] == ["ConfidenceCascadeLLM"]
    (end,) = ends
    assert end.response.additional_kwargs["confcascade"]["answered_by"] == "chat"
    assert end.span_id == starts[0].span_id


@pytest.mark.parametrize("method", METHODS)
async def test_no_event_shows_a_draft(small: Any, method: str, events: Any) -> None:
    """Whoever reads a stream from the events reads the answer alone."""
    await answered(cascade(small(), Chat()), method)

    assert events.seen
    assert "Lima" not in repr(events.seen)
    shown = [e.response for e in events.seen if isinstance(e, LLMChatInProgressEvent | LLMCompletionInProgressEvent)]
    assert "".join(response.delta for response in shown) == (ANSWER if "stream" in method else "")


# ---------------------------------------------------------------------- spans


@pytest.mark.parametrize("method", METHODS)
async def test_each_attempt_is_a_span_below_the_cascades(method: str, spans: Any) -> None:
    """With its part of the record, what was asked and what was said; nobody counts usage in what was said."""
    answer = await answered(cascade(Chat(name="small", says=DRAFT, p=0.3), Chat(name="large")), method)

    record = answer.additional_kwargs["confcascade"]
    (call,) = [span for span in spans.all if ".attempt-" not in span.id_]
    assert call.id_.startswith(f"ConfidenceCascadeLLM.{method}-")
    assert [span.parent_id for span in spans.attempts] == [call.id_] * 2
    for span, attempt in zip(spans.attempts, record["attempts"], strict=True):
        asked = spans.asked[span.id_]
        assert asked["messages"] == user("q")
        assert (asked["model"], asked["decision"], asked["reason"]) == tuple(
            attempt[key] for key in ("model", "decision", "reason")
        )
        told = {key: attempt[key] for key in ("stage", "model", "decision", "reason", "aborted", "latency_s")}
        told |= {"input_tokens": 10, "output_tokens": attempt["usage"]["output_tokens"]}
        assert {f"confcascade_{key}": value for key, value in told.items()}.items() <= span.tags.items()
        assert all(isinstance(value, str | bool | int | float) for value in span.tags.values())
    tags = spans.attempts[0].tags
    assert tags["confcascade_score_p_t"] == pytest.approx(0.3)
    assert (tags["confcascade_threshold_p_t"], tags["confcascade_passed_p_t"]) == (0.8, False)
    assert spans.asked[spans.attempts[0].id_]["scores"] == {"p_t": pytest.approx(0.3)}
    assert spans.asked[spans.attempts[0].id_]["answer"] == DRAFT
    said = [spans.results[span.id_] for span in spans.attempts]
    assert [type(message) for message in said] == [ChatMessage] * 2
    assert [message.content for message in said] == [DRAFT, ANSWER]
    assert not spans.open_spans


@pytest.mark.parametrize("method", METHODS)
async def test_each_attempt_is_told_as_a_call_of_its_model(method: str, events: Any, spans: Any) -> None:
    """With its usage, so that back-ends price it; the end of the cascade's call tells none, or it would count twice."""
    models = [Stage(Chat(name="small", says=DRAFT, p=0.3), [TokenProbability()], {"p_t": 0.8}, prices=Prices(1.0, 2.0))]
    llm = ConfidenceCascadeLLM(stages=[*models, Stage(Chat(name="large"))])
    answer = await answered(llm, method)

    ends = [event for event in events.seen if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent)]
    starts = {e.span_id: e for e in events.seen if isinstance(e, LLMChatStartEvent) and "model" in e.model_dict}
    usage = {end.span_id: end.response.raw.get("usage") for end in ends}
    for span, model, tokens in zip(spans.attempts, ("small", "large"), (2, 3), strict=True):
        assert starts[span.id_].model_dict == {"model": model}
        assert starts[span.id_].messages == user("q")
        assert usage.pop(span.id_) == {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    assert [*usage.values()] == [None]
    shown = [end.response.message.content for end in ends if end.span_id in starts]
    assert shown == ["", ANSWER]  # no draft
    assert not {"prompt_tokens", "total_tokens"} & ends[-1].response.additional_kwargs.keys()
    assert answer.raw["usage"]["total_tokens"] == 25  # what the caller gets is whole
    assert spans.attempts[0].tags["confcascade_usd"] == pytest.approx(14e-6)


@pytest.mark.parametrize("method", METHODS)
async def test_without_tracers_the_events_of_the_call_tell_all_usage(method: str, events: Any) -> None:
    await answered(cascade(Chat(name="small", says=DRAFT, p=0.3), Chat(name="large")), method)

    (end,) = [event for event in events.seen if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent)]
    assert end.response.raw["usage"]["total_tokens"] == 25


@pytest.mark.parametrize("method", METHODS)
async def test_a_failed_attempt_is_a_dropped_span_also_where_the_cascade_fails(method: str, spans: Any) -> None:
    down = ConnectionError("no route")
    await answered(cascade(Chat(name="small", says=down), Chat()), method)
    failed, answering = spans.attempts

    assert failed in spans.dropped_spans
    assert failed.metadata == {"error": "ConnectionError"}
    assert answering in spans.completed_spans

    spans.completed_spans, spans.dropped_spans = [], []
    with pytest.raises(CascadeExhaustedError):
        await answered(cascade(Chat(name="small", says=down), Chat(says=down)), method)
    assert len(spans.attempts) == 2
    assert all(span in spans.dropped_spans for span in spans.attempts)


async def test_attempts_of_core_models_are_spans_too(spans: Any) -> None:
    llm = cascade(ScriptedModel("small", lambda _: Reply(DRAFT, 0.3)), ScriptedModel("large", lambda _: ANSWER))
    for method in METHODS:
        await answered(llm, method)

    assert len(spans.attempts) == 2 * len(METHODS)
    assert {spans.results[span.id_].content for span in spans.attempts} == {DRAFT, ANSWER}


async def test_a_stream_reports_below_the_span_in_which_it_was_asked_for(spans: Any) -> None:
    """Wherever it is read; also where it is read in another span."""
    llm, dispatcher = cascade(Chat(says=DRAFT, p=0.3), Chat()), get_dispatcher()
    streams = llm.stream_chat(user("q")), await llm.astream_complete("q")

    @dispatcher.span
    async def read() -> None:
        list(streams[0])
        [item async for item in streams[1]]

    await read()
    calls = [
        span.id_ for span in spans.all if span.id_.startswith("ConfidenceCascadeLLM.") and "attempt" not in span.id_
    ]
    assert {span.parent_id for span in spans.attempts} == set(calls)
    assert len(calls) == 2


async def test_a_stream_that_is_left_reports_what_was_begun(spans: Any) -> None:
    """Its tokens were paid for."""
    llm = cascade(Chat())
    stream = llm.stream_chat(user("q"))
    next(stream)
    stream.close()
    astream: Any = await llm.astream_chat(user("q"))
    await anext(astream)
    await astream.aclose()
    await asyncio.sleep(0.05)  # LlamaIndex's own wrapper lets go of ours, which the loop then closes

    assert [span.tags["confcascade_decision"] for span in spans.attempts] == ["left", "left"]
    assert not spans.open_spans


# ---------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("shared", ["nothing", "Settings", "a global handler"])
@pytest.mark.parametrize("method", METHODS)
async def test_tokens_of_every_attempt_count_once(
    small: Any, method: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the stages have the very callbacks that the cascade has."""
    counter = TokenCountingHandler(tokenizer=str.split)
    manager = CallbackManager([counter])
    monkeypatch.setattr(Settings, "_callback_manager", manager)
    fields: dict[str, Any] = {"callback_manager": manager} if shared == "Settings" else {}
    if shared == "a global handler":
        monkeypatch.setattr(llama_index.core, "global_handler", counter)
        manager = CallbackManager([])
    llm = cascade(small(**fields), Chat(**fields), callback_manager=manager)
    usage = (await answered(llm, method)).additional_kwargs["confcascade"]["usage"]

    (counted,) = counter.llm_token_counts
    assert (counted.prompt_token_count, counted.completion_token_count) == (
        usage["input_tokens"],
        usage["output_tokens"],
    )
    assert usage["output_tokens"] > 3


def test_settings_give_their_callbacks_to_the_cascade_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    stage = Chat()
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([counter]))
    monkeypatch.setattr(Settings, "_llm", cascade(stage))
    before = stage.callback_manager

    Settings.llm.chat(user("q"))

    assert counter.total_llm_token_count == 10 + 3
    assert stage.callback_manager is before


# ---------------------------------------------------------------------- stages


async def test_the_rate_limiter_of_a_stage_is_asked_as_often_as_alone() -> None:
    class Counter(BaseRateLimiter):
        taken: int = 0

        def acquire(self, num_tokens: int = 0) -> None:
            self.taken += 1

        async def async_acquire(self, num_tokens: int = 0) -> None:
            self.taken += 1

    limiter, alone = Counter(), Counter()
    for method in METHODS:
        await answered(cascade(Chat(rate_limiter=limiter)), method)
        await answered(Chat(rate_limiter=alone), method)

    assert limiter.taken == alone.taken


# ---------------------------------------------------------------------- tools and structured output


class Place(BaseModel):
    name: str


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


LONG = 271828182845904523  # no id, time or latency of an event holds so many digits by chance


@pytest.mark.parametrize("mode", ["default", "llm", "function"])
async def test_objects_and_tools_are_asked_of_stages_in_silence(calling, said, events, spans, mode) -> None:
    """The events are those of the cascade's own methods, and show no draft."""
    draft = said('{"name": "Lima"}', [("Place", '{"name": "Lima"}')], p=0.3)
    answer = said('{"name": "Funafuti"}', [("Place", '{"name": "Funafuti"}')])
    llm = cascade(calling("small", draft), calling("large", answer), pydantic_program_mode=mode)
    prompt = PromptTemplate("Capital of {land}?")

    assert llm.structured_predict(Place, prompt, land="Tuvalu") == Place(name="Funafuti")
    assert await llm.astructured_predict(Place, prompt, land="Tuvalu") == Place(name="Funafuti")
    tool = FunctionTool.from_defaults(add)
    sums = [said("", [("add", f'{{"a": 1, "b": {b}}}')], p=p) for b, p in ((LONG, 0.3), (2, 0.99))]
    llm = cascade(calling("small", sums[0]), calling("large", sums[1]))
    assert (await llm.achat_with_tools([tool], "1 + 2?")).additional_kwargs["confcascade"]["answered_by"] == "large"
    assert list(llm.stream_chat_with_tools([tool], "1 + 2?"))[-1].additional_kwargs["confcascade"]["stage"] == 1

    told = [event for event in events.seen if type(event).__name__.startswith("LLM")]
    own = [event for event in told if "confcascade_model" not in event.tags]
    starts = [type(event).__name__ for event in own if type(event).__name__.endswith("StartEvent")]
    assert starts == ["LLMStructuredPredictStartEvent", "LLMChatStartEvent"] * 2 + ["LLMChatStartEvent"] * 2
    assert "Lima" not in repr(told)
    assert str(LONG) not in repr(told)
    assert len(spans.attempts) == 8
    names = {span.id_.partition("-")[0] for span in spans.all}
    assert {name for name in names if name.startswith("CallingLLM")} == set()
