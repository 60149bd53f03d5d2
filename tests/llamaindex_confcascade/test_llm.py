"""`ConfidenceCascadeLLM` as a LlamaIndex LLM: its eight methods, its records, and the engines around it."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confcascade import (
    CascadeExhaustedError,
    ConfigurationError,
    Request,
    Stage,
    StreamBrokenError,
    TokenProbability,
    Trace,
    trace,
)
from confcascade.testing import Reply, ScriptedModel, same_record
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.utils import resolve_llm
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from llamaindex_confcascade import ConfidenceCascadeLLM

KNOWN, UNKNOWN, BROKEN, HOPELESS = (
    "Capital of France?",
    "Capital of Tuvalu?",
    "Capital of Crash?",
    "Capital of Nowhere?",
)

ANSWERS = {
    ("small", KNOWN): ("It is Paris.", 0.95),
    ("small", UNKNOWN): ("Perhaps it is Lima.", 0.3),
    ("small", BROKEN): RuntimeError("small is down"),
    ("small", HOPELESS): ("No idea at all.", 0.2),
    ("large", UNKNOWN): ("It is Funafuti.", 0.9),
    ("large", BROKEN): ("It is Crashville.", 0.9),
    ("large", HOPELESS): RuntimeError("large is down"),
}
ANSWERED_BY = {KNOWN: "small", UNKNOWN: "large", BROKEN: "large", HOPELESS: "small"}


class Rule(LLM):
    """Answers from the table above, with log-probabilities where they are asked for, as OpenAI's class does."""

    name: str
    logprobs: bool | None = None
    calls: list[tuple[list[ChatMessage], dict[str, Any]]] = Field(default_factory=list, exclude=True)
    window: int = 1000

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.name, context_window=self.window, num_output=-1, is_chat_model=True)

    def _answer(self, messages: Any, kwargs: dict[str, Any]) -> list[ChatResponse]:
        """The pieces of a stream; the whole is the last."""
        self.calls.append((messages, kwargs))
        query = messages[-1].content
        found = ANSWERS.get((self.name, query), (f"{self.name}: {query}", 0.99))
        if isinstance(found, Exception):
            raise found
        text, probability = found
        words, pieces = [f" {word}" if i else word for i, word in enumerate(text.split(" "))], []
        for i, word in enumerate(words):
            message = ChatMessage(content="".join(words[: i + 1]), role=MessageRole.ASSISTANT)
            pieces.append(ChatResponse(message=message, delta=word, raw=self._raw([word], probability, kwargs)))
        usage = {"prompt_tokens": 10, "completion_tokens": len(words)}
        pieces[-1].raw |= {"usage": usage}
        return pieces

    def _whole(self, messages: Any, kwargs: dict[str, Any]) -> ChatResponse:
        pieces = self._answer(messages, kwargs)
        content = [entry for piece in pieces for entry in _entries(piece.raw)]
        raw = {"choices": [{"logprobs": {"content": content} if content else None}], "usage": pieces[-1].raw["usage"]}
        return ChatResponse(message=pieces[-1].message, raw=raw)

    @staticmethod
    def _raw(words: list[str], probability: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        content = [
            {"token": word, "logprob": math.log(probability), "bytes": None, "top_logprobs": []} for word in words
        ]
        return {"choices": [{"logprobs": {"content": content} if kwargs.get("logprobs") else None}]}

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._whole(messages, kwargs)

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        return self._whole(messages, kwargs)

    def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
        def pieces() -> ChatResponseGen:
            yield from self._answer(messages, kwargs)

        return pieces()

    async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        async def pieces() -> ChatResponseAsyncGen:
            for piece in self._answer(messages, kwargs):
                await asyncio.sleep(0)
                yield piece

        return pieces()

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    stream_complete = acomplete = astream_complete = complete


def _entries(raw: dict[str, Any]) -> list[Any]:
    return (raw["choices"][0]["logprobs"] or {}).get("content", [])


def scripted(name: str) -> ScriptedModel:
    def script(request: Request) -> Reply:
        found = ANSWERS.get((name, request.messages[-1].content), (f"{name}: {request.messages[-1].content}", 0.99))
        return Reply("?", error=found) if isinstance(found, Exception) else Reply(*found)

    return ScriptedModel(name, script)


@pytest.fixture(params=["LlamaIndex LLMs", "core models"])
def llm(request: pytest.FixtureRequest) -> ConfidenceCascadeLLM:
    if request.param == "core models":
        models: list[Any] = [scripted("small"), scripted("large")]
    else:
        models = [Rule(name="small"), Rule(name="large")]
    return ConfidenceCascadeLLM(models=models, threshold=0.8, on_exhausted="best")


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


async def answered_in_all_eight_ways(llm: LLM, query: str) -> dict[str, list[Any]]:
    """By method, the responses: one, or those of the stream."""
    return {
        "chat": [llm.chat(user(query))],
        "complete": [llm.complete(query)],
        "stream_chat": list(llm.stream_chat(user(query))),
        "stream_complete": list(llm.stream_complete(query)),
        "achat": [await llm.achat(user(query))],
        "acomplete": [await llm.acomplete(query)],
        "astream_chat": [item async for item in await llm.astream_chat(user(query))],
        "astream_complete": [item async for item in await llm.astream_complete(query)],
    }


def text_of(response: ChatResponse | CompletionResponse) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


# ---------------------------------------------------------------------- the eight methods


@pytest.mark.parametrize("query", [KNOWN, UNKNOWN, BROKEN, HOPELESS])
async def test_the_eight_methods_answer_and_record_alike(llm: ConfidenceCascadeLLM, query: str) -> None:
    answered = await answered_in_all_eight_ways(llm, query)

    reference = answered["chat"][-1]
    record = reference.additional_kwargs["confcascade"]
    assert record["answered_by"] == ANSWERED_BY[query]
    assert record["degraded"] is (query == HOPELESS)
    for method, responses in answered.items():
        last = responses[-1]
        assert same_record(last.additional_kwargs["confcascade"], record), method
        assert text_of(last) == text_of(reference), method
        assert last.raw["usage"] == reference.raw["usage"], method
        assert last.logprobs == reference.logprobs, method


@pytest.mark.parametrize("query", [KNOWN, UNKNOWN, BROKEN, HOPELESS])
async def test_streams_show_the_answer_and_no_rejected_draft(llm: ConfidenceCascadeLLM, query: str) -> None:
    """Increments add up to the answer, every item holds the whole so far, and only the last the record."""
    answered = await answered_in_all_eight_ways(llm, query)

    for method in ("stream_chat", "stream_complete", "astream_chat", "astream_complete"):
        *chunks, last = answered[method]
        assert "".join(item.delta for item in [*chunks, last]) == text_of(last) == text_of(answered["chat"][0])
        for i, chunk in enumerate(chunks):
            assert text_of(chunk) == "".join(item.delta for item in chunks[: i + 1])
            assert "confcascade" not in chunk.additional_kwargs
        if query == UNKNOWN:
            assert not any("Perhaps" in text_of(item) or "Lima" in text_of(item) for item in [*chunks, last])


def test_a_certain_answer_streams_as_it_is_made() -> None:
    """The last stage's answer cannot be withdrawn: the first words are shown before the last exist."""
    large = Rule(name="large")
    llm = ConfidenceCascadeLLM(models=[large], threshold=None)

    deltas = [item.delta for item in llm.stream_chat(user(UNKNOWN))]

    assert deltas == ["It", " is", " Funafuti.", ""]


async def test_a_stream_that_breaks_after_a_part_was_shown_cannot_escalate() -> None:
    broken = ScriptedModel("broken", lambda _: Reply("one two three", error=RuntimeError("down"), after=2))
    with pytest.raises(RuntimeError, match="down"):  # a stage alone fails as it does alone
        list(ConfidenceCascadeLLM(models=[broken]).stream_chat(user(KNOWN)))
    llm = ConfidenceCascadeLLM(models=[scripted("small"), broken], threshold=0.8)
    with pytest.raises(StreamBrokenError):
        list(llm.stream_chat(user(UNKNOWN)))
    with pytest.raises(StreamBrokenError) as raised:
        [item async for item in await llm.astream_complete(UNKNOWN)]
    assert isinstance(raised.value, RuntimeError)


# ---------------------------------------------------------------------- what an answer carries


async def test_the_record_is_on_the_response_and_never_on_the_message(llm: ConfidenceCascadeLLM) -> None:
    """On the message it would leak into prompts of completion models, and into memories."""
    answered = await answered_in_all_eight_ways(llm, UNKNOWN)

    for responses in answered.values():
        json.dumps(responses[-1].additional_kwargs["confcascade"])
        for response in responses:
            assert not isinstance(response, ChatResponse) or response.message.additional_kwargs == {}
            assert not isinstance(response, ChatResponse) or response.message.role == MessageRole.ASSISTANT


def test_usage_is_the_sum_over_all_attempts() -> None:
    llm = ConfidenceCascadeLLM(models=[Rule(name="small"), Rule(name="large")], threshold=0.8)

    response = llm.chat(user(UNKNOWN))

    counts = {"prompt_tokens": 20, "completion_tokens": 4 + 3, "total_tokens": 27}
    assert response.raw["usage"] == counts
    assert {key: response.additional_kwargs[key] for key in counts} == counts
    assert response.raw["native"]["usage"] == {"prompt_tokens": 10, "completion_tokens": 3}


async def test_token_counters_count_every_attempt_once(llm: ConfidenceCascadeLLM) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])
    usage = llm.chat(user(UNKNOWN)).raw["usage"]
    counter.reset_counts()

    await answered_in_all_eight_ways(llm, UNKNOWN)

    assert len(counter.llm_token_counts) == 8
    assert counter.prompt_llm_token_count == 8 * usage["prompt_tokens"]
    assert counter.completion_llm_token_count == 8 * usage["completion_tokens"]


def test_log_probabilities_begin_with_the_chosen_token() -> None:
    reply = Reply("A", 0.6, labels={"B": 0.3, "A": 0.6})
    models = [ScriptedModel("small", lambda _: reply), Rule(name="large")]
    llm = ConfidenceCascadeLLM(models=models, threshold=0.5, signals=[TokenProbability("AB")])

    (position,) = llm.chat(user("A or B?")).logprobs or []

    assert [(entry.token, entry.bytes) for entry in position] == [("A", [65]), ("B", [66])]


def test_a_stages_message_is_passed_on_as_a_copy() -> None:
    """Blocks that the core does not know survive; what a caller does to the answer does not reach the stage."""
    shared = ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[TextBlock(text="see"), ImageBlock(url="http://x/y.png")],
        additional_kwargs={"tool_calls": []},
    )

    class Painter(Rule):
        def chat(self, *_: Any, **__: Any) -> ChatResponse:
            return ChatResponse(message=shared)

    llm = ConfidenceCascadeLLM(models=[Painter(name="painter")])

    message = llm.chat(user("paint")).message
    message.blocks.append(TextBlock(text="!"))
    message.additional_kwargs["mine"] = 1

    assert isinstance(llm.chat(user("paint")).message.blocks[1], ImageBlock)
    assert (len(shared.blocks), shared.additional_kwargs) == (2, {"tool_calls": []})


def test_metadata_holds_for_every_stage() -> None:
    llm = ConfidenceCascadeLLM(models=[Rule(name="small", window=500), Rule(name="large")], threshold=0.5)

    assert llm.metadata.context_window == 500
    assert (
        llm.metadata.num_output == 125
    )  # no stage sets one: of LlamaIndex's own default, what leaves room for a prompt
    assert llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model
    assert (
        llm.metadata.model_name == f"confcascade-{llm.chat(user(KNOWN)).additional_kwargs['confcascade']['policy_id']}"
    )
    assert llm.class_name() == "ConfidenceCascadeLLM"


def test_a_core_models_window_counts_where_it_is_known() -> None:
    small = ScriptedModel("small")
    small._capability = dataclasses.replace(small.capability, context_window=400)

    assert ConfidenceCascadeLLM(models=[small, Rule(name="large")], threshold=0.5).metadata.context_window == 400
    assert ConfidenceCascadeLLM(models=[Rule(name="small"), small], threshold=0.5).metadata.context_window == 400
    unknown = ConfidenceCascadeLLM(models=[ScriptedModel("unknown")]).metadata
    assert (unknown.context_window, unknown.num_output) == (3900, 256)  # LlamaIndex's own defaults


# ---------------------------------------------------------------------- what a stage is given


async def test_parameters_and_messages_reach_the_stages() -> None:
    """LlamaIndex LLMs get the caller's own messages, in a list of their own; core models the plain view."""
    small, large = Rule(name="small"), ScriptedModel("large")
    llm = ConfidenceCascadeLLM(models=[small, large], threshold="never")
    messages = [ChatMessage(role=role, content=role.value) for role in (MessageRole.DEVELOPER, MessageRole.USER)]

    await llm.achat(messages, max_tokens=7, temperature=0.5, stop="END", seed=1)

    ((given, kwargs),) = small.calls
    assert given == messages
    assert given is not messages
    assert kwargs == {
        "max_tokens": 7,
        "temperature": 0.5,
        "stop": ["END"],
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
    }
    request = large.calls[0][0].request
    assert (request.max_tokens, request.temperature, request.stop) == (7, 0.5, ("END",))
    assert request.options == {"seed": 1}
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "developer"),
        ("user", "user"),
    ]


@pytest.mark.parametrize("method", ["chat", "stream_chat", "complete", "stream_complete", "achat", "astream_complete"])
async def test_a_cascade_can_be_a_stage_of_another(method: str) -> None:
    """Whichever of its stages answers is asked for log-probabilities, the last one too."""
    large = Rule(name="large")
    inner = ConfidenceCascadeLLM(models=[Rule(name="small"), large], threshold=0.8)
    outer = ConfidenceCascadeLLM(models=[inner, Rule(name="third")], threshold=0.85)

    for question, value, asked in [(KNOWN, 0.95, 1), (UNKNOWN, 0.9, 2)]:
        response = await answered(outer, method, question)
        record = response.additional_kwargs["confcascade"]
        assert record["answered_by"] == inner.metadata.model_name
        assert record["attempts"][0]["scores"]["p_t"]["value"] == pytest.approx(value)
        assert response.raw["usage"]["prompt_tokens"] == 10 * asked

    await answered(inner, method, UNKNOWN)  # itself, it is not judged
    assert [bool(options.get("logprobs")) for _, options in large.calls] == [True, False]


def test_a_cascade_whose_last_stage_cannot_be_asked_for_log_probabilities_is_refused() -> None:
    inner = ConfidenceCascadeLLM(models=[Rule(name="small"), ScriptedModel("large")], threshold=0.8)

    with pytest.raises(ConfigurationError, match="Put its models into this cascade"):
        ConfidenceCascadeLLM(models=[inner, Rule(name="third")], threshold=0.9)
    assert ConfidenceCascadeLLM(models=[Rule(name="third"), inner], threshold=0.9)


async def answered(llm: LLM, method: str, question: str, **options: Any) -> Any:
    """The last that a method gives."""
    found: Any = getattr(llm, method)(user(question) if "chat" in method else question, **options)
    if method.startswith("a"):
        found = await found
        return [item async for item in found][-1] if "stream" in method else found
    return list(found)[-1] if "stream" in method else found


# ---------------------------------------------------------------------- errors


def cascade(**parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=[Rule(name="small"), Rule(name="large")], threshold=0.8, **parameters)


@pytest.mark.parametrize("method", ["chat", "stream_chat", "achat", "astream_chat"])
async def test_a_failing_model_escalates_or_raises(method: str) -> None:
    async def answer(llm: LLM, query: str) -> Any:
        given = getattr(llm, method)(user(query))
        given = await given if inspect.isawaitable(given) else given
        if method == "stream_chat":
            return list(given)[-1]
        return [item async for item in given][-1] if method == "astream_chat" else given

    record = (await answer(cascade(), BROKEN)).additional_kwargs["confcascade"]
    assert [attempt["error"] for attempt in record["attempts"]] == ["RuntimeError", None]
    with pytest.raises(RuntimeError, match="small is down"):
        await answer(cascade(on_error="raise"), BROKEN)
    with pytest.raises(RuntimeError) as raised:
        await answer(cascade(), HOPELESS)
    assert isinstance(raised.value, CascadeExhaustedError)
    assert str(raised.value.__cause__) == "large is down"


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "Give either `models`"),
        ({"models": []}, "at least one stage"),
        ({"models": Rule(name="small"), "threshold": 0.5}, "`models` must be a list"),
        ({"models": [Rule(name="small"), Rule(name="large")]}, "`threshold` is missing"),
        ({"models": [Rule(name="small"), Rule(name="large")], "threshold": 90}, r"must be a number in \[0, 1\]"),
        ({"models": [Rule(name="small")], "on_error": "ignore"}, "`on_error` must be"),
        ({"models": [Rule(name="small")], "on_exhausted": "ignore"}, "`on_exhausted` must be"),
        ({"models": ["gpt-4o"]}, "A model string must be"),
        ({"models": [object()]}, "Got object"),
        ({"stages": [Rule(name="small")]}, "bare models go into `models`"),
        ({"models": [FakeListChatModel(responses=[])]}, "langchain_confcascade.ConfidenceCascadeLLM"),
        ({"stages": [Stage(FakeListChatModel(responses=[]))]}, "langchain_confcascade.ConfidenceCascadeLLM"),
    ],
)
def test_what_cannot_work_is_refused_at_construction_in_one_line(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        ConfidenceCascadeLLM(**parameters)

    assert "\n" not in str(caught.value)


def test_a_stage_that_never_tells_log_probabilities_is_refused_unless_it_is_last() -> None:
    class Anthropic(Rule):
        """As far as its name goes."""

    with pytest.raises(ConfigurationError, match="model 'claude' does not return them"):
        ConfidenceCascadeLLM(models=[Anthropic(name="claude"), Rule(name="large")], threshold=0.5)
    ConfidenceCascadeLLM(models=[Rule(name="small"), Anthropic(name="claude")], threshold=0.5)


def test_what_no_cascade_takes_is_ignored_and_said() -> None:
    """As by LangChain's class: what is meant for the models must not break an application."""
    with pytest.warns(UserWarning, match="no parameter 'treshold', and ignores it"):
        llm = ConfidenceCascadeLLM(models=[Rule(name="small")], treshold=0.9)

    assert llm.chat(user(KNOWN)).message.content == "It is Paris."


def test_a_cascade_is_not_made_of_names() -> None:
    with pytest.raises(ConfigurationError, match="Pickle it, or build it from its models"):
        ConfidenceCascadeLLM.from_dict(cascade().to_dict())
    with pytest.raises(ConfigurationError, match="Pickle it"):
        ConfidenceCascadeLLM.from_json(cascade().to_json())


@pytest.mark.parametrize("method", ["chat", "stream_chat", "complete", "stream_complete", "achat", "astream_complete"])
async def test_one_call_may_have_a_stage_or_a_threshold_of_its_own(method: str) -> None:
    """They are the cascade's: no stage gets to see them."""
    small, large = Rule(name="small"), Rule(name="large")
    llm = ConfidenceCascadeLLM(models=[small, large], threshold=0.8)

    for options, question, by in [
        ({"stage": "large"}, KNOWN, "large"),
        ({"stage": 0}, UNKNOWN, "small"),
        ({"threshold": "never"}, KNOWN, "large"),
        ({"threshold": 0.1}, UNKNOWN, "small"),
        ({}, KNOWN, "small"),
    ]:
        response = await answered(llm, method, question, **options)
        assert response.additional_kwargs["confcascade"]["answered_by"] == by, options

    assert not any({"stage", "threshold"} & options.keys() for _, options in (*small.calls, *large.calls))


def test_its_cascade_is_public() -> None:
    llm = ConfidenceCascadeLLM(models=[Rule(name="small"), Rule(name="large")], threshold=0.7)

    assert [stage.thresholds for stage in llm.cascade.stages] == [{"p_t": 0.7}, {}]
    assert llm.metadata.model_name == f"confcascade-{llm.cascade.policy_id}"


def test_calls_that_cannot_work_say_so() -> None:
    with pytest.raises(ConfigurationError, match="at least one message"):
        cascade().chat([])
    with pytest.raises(ConfigurationError, match=r"Got a list of dict\. A text goes into"):
        cascade().stream_chat([{"role": "user", "content": "hello"}])  # type: ignore[list-item]


def test_unset_fields_of_llama_index_may_be_none() -> None:
    llm = cascade(callback_manager=None, system_prompt=None)

    assert isinstance(llm.callback_manager, CallbackManager)


# ---------------------------------------------------------------------- keys


def payload_of(llm: LLM) -> Any:
    """What its events carry of it."""
    return llm.to_payload() if hasattr(llm, "to_payload") else llm.to_dict()  # llama-index-core 0.14.20 has none


def test_nothing_that_is_serialized_or_shown_holds_a_key() -> None:
    llm = ConfidenceCascadeLLM(models=[OpenAI(model="gpt-4o-mini", api_key="sk-secret"), Rule(name="b")], threshold=0.5)

    shown = [llm.to_dict(), llm.to_json(), llm.model_dump(), payload_of(llm), repr(llm), str(llm)]

    assert "sk-secret" not in repr(shown)
    told = llm.to_dict()
    assert [re.fullmatch("[0-9a-f]{12}", digest) is not None for digest in told.pop("settings")] == [True, True]
    assert told == {
        "system_prompt": None,
        "pydantic_program_mode": "default",
        "class_name": "ConfidenceCascadeLLM",
        "stages": ["gpt-4o-mini", "b"],
        "policy_id": llm._cascade.policy_id,
        "on_error": "escalate",
        "on_exhausted": "raise",
        "on_cut": "escalate",
    }
    assert repr(llm).startswith("ConfidenceCascadeLLM(stages=['gpt-4o-mini', 'b'], policy_id='")


def test_it_survives_pickling() -> None:
    llm = pickle.loads(pickle.dumps(cascade(system_prompt="Be brief.")))

    assert llm.system_prompt == "Be brief."
    assert llm.complete(KNOWN).text == "It is Paris."


def test_a_copy_answers_as_the_original_and_shares_its_stages() -> None:
    """Also a deep one, though clients of stages cannot be copied."""
    small = OpenAI(model="gpt-4o-mini", api_key="sk-secret", api_base="http://127.0.0.1:1", max_retries=0)
    small._get_client()
    llm = ConfidenceCascadeLLM(models=[small, Rule(name="large")], threshold=0.8, system_prompt="Be brief.")

    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True)):
        copied.system_prompt = "Take your time."
        assert copied.complete(UNKNOWN).text == "It is Funafuti."
        assert repr(copied) == repr(llm)
    assert llm.system_prompt == "Be brief."


# ---------------------------------------------------------------------- OpenAI's own class, over HTTP


@pytest.fixture
def served(httpserver: HTTPServer) -> tuple[Callable[[str], OpenAI], list[dict[str, Any]]]:
    """LLMs behind a server like OpenAI's, and what they send to it."""
    bodies: list[dict[str, Any]] = []

    def answer(http: HTTPRequest) -> HTTPResponse:
        body = json.loads(http.get_data())
        bodies.append(body)
        name = {"gpt-4o-mini": "small", "gpt-4o": "large"}[body["model"]]
        text, probability = ANSWERS[name, body["messages"][-1]["content"]]  # type: ignore[misc]
        words = [f" {word}" if i else word for i, word in enumerate(text.split(" "))]
        content = [
            {"token": word, "logprob": math.log(probability), "bytes": [*word.encode()], "top_logprobs": []}
            for word in words
        ]
        usage = {"prompt_tokens": 10, "completion_tokens": len(words), "total_tokens": 10 + len(words)}
        common = {"id": "x", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": content} if body.get("logprobs") else None,
            }
            data = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
            return HTTPResponse(json.dumps(data), content_type="application/json")
        choices = [
            {
                "index": 0,
                "delta": {"content": word},
                "finish_reason": None,
                "logprobs": {"content": [entry]} if body.get("logprobs") else None,
            }
            for word, entry in zip(words, content, strict=True)
        ]
        events: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps({**common, 'object': 'chat.completion.chunk', **event})}\n\n" for event in events]
        return HTTPResponse("".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")

    httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(answer)
    url = httpserver.url_for("/v1")
    return lambda model: OpenAI(model=model, api_base=url, api_key="sk-secret", max_retries=0), bodies


@pytest.mark.parametrize("query", [KNOWN, UNKNOWN])
@pytest.mark.parametrize("aggregate", ["mean", "first"])
async def test_openai_models_decide_alike_in_all_eight_ways(served: Any, query: str, aggregate: Any) -> None:
    """Also where an answer is judged by its first token, and so ended or released early."""
    make, bodies = served
    small, large = make("gpt-4o-mini"), make("gpt-4o")
    before = small.model_dump()
    signals = [TokenProbability(aggregate=aggregate)]
    llm = ConfidenceCascadeLLM(models=[small, large], threshold=0.8, signals=signals)

    answered = await answered_in_all_eight_ways(llm, query)

    reference = answered["chat"][0]
    assert reference.message.content == ("It is Paris." if query == KNOWN else "It is Funafuti.")
    assert reference.raw["usage"] == answered["achat"][0].raw["usage"]
    for method, responses in answered.items():
        record = responses[-1].additional_kwargs["confcascade"]
        assert same_record(record, reference.additional_kwargs["confcascade"]), method
        assert "sk-secret" not in repr(responses)
    assert small.model_dump() == before
    assert all(body.get("logprobs", False) is (body["model"] == "gpt-4o-mini") for body in bodies)


# ---------------------------------------------------------------------- engines


class Shelf(BaseRetriever):
    """Finds the same nodes for everything."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        del query_bundle
        facts = ["Paris is the capital of France.", "Funafuti is the capital of Tuvalu."]
        return [NodeWithScore(node=TextNode(text=fact), score=1.0) for fact in facts]


def reader(name: str, probability: float) -> ScriptedModel:
    """Answers with the fact of the prompt that names the country of the question; sure of itself about France."""

    def script(request: Request) -> Reply:
        prompt = request.messages[-1].content
        country = "Tuvalu" if "Where is Tuvalu" in prompt else "France"
        facts = [line for line in prompt.splitlines() if line.endswith(f"capital of {country}.")]
        return Reply(facts[0] if facts else "It does not say.", probability if country == "Tuvalu" else 0.99)

    return ScriptedModel(name, script)


@pytest.fixture
def reading() -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=[reader("small", 0.2), reader("large", 0.9)], threshold=0.8)


def engine(llm: LLM, **parameters: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(Shelf(), llm=llm, **parameters)


def answered_by(t: Trace) -> list[str]:
    return [record.answered_by for record in t.records]


def test_a_query_engine_answers_through_the_cascade(reading: ConfidenceCascadeLLM) -> None:
    with trace() as t:
        assert str(engine(reading).query("Where is France?")) == "Paris is the capital of France."
        assert str(engine(reading).query("Where is Tuvalu?")) == "Funafuti is the capital of Tuvalu."

    assert answered_by(t) == ["small", "large"]
    assert [len(record.attempts) for record in t.records] == [1, 2]


async def test_a_query_engine_answers_asynchronously(reading: ConfidenceCascadeLLM) -> None:
    """Concurrent queries land in one trace."""
    with trace() as t:
        questions = ["Where is France?", "Where is Tuvalu?"] * 3
        answers = await asyncio.gather(*(engine(reading).aquery(question) for question in questions))

    assert [str(answer) for answer in answers[:2]] == [
        "Paris is the capital of France.",
        "Funafuti is the capital of Tuvalu.",
    ]
    assert sorted(answered_by(t)) == ["large"] * 3 + ["small"] * 3


async def test_a_query_engine_streams(reading: ConfidenceCascadeLLM) -> None:
    with trace() as t:
        streamed = engine(reading, streaming=True).query("Where is Tuvalu?")
        assert "".join(streamed.response_gen) == "Funafuti is the capital of Tuvalu."  # type: ignore[union-attr]
        astreamed = await engine(reading, streaming=True).aquery("Where is Tuvalu?")
        pieces = [piece async for piece in astreamed.async_response_gen()]  # type: ignore[union-attr]
        assert "".join(pieces) == "Funafuti is the capital of Tuvalu."

    assert answered_by(t) == ["large", "large"]


def test_a_stream_belongs_to_the_trace_in_which_it_was_asked_for(llm: ConfidenceCascadeLLM) -> None:
    """Wherever it is consumed. (A query engine that streams asks for it only when it is consumed.)"""
    with trace() as t:
        streams = [llm.stream_chat(user(UNKNOWN)), llm.stream_complete(KNOWN)]
    assert answered_by(t) == []
    with ThreadPoolExecutor(1) as pool:
        for stream in streams:
            pool.submit(list, stream).result()

    assert answered_by(t) == ["large", "small"]


@pytest.mark.parametrize("mode", [ResponseMode.TREE_SUMMARIZE, ResponseMode.REFINE, ResponseMode.ACCUMULATE])
async def test_traces_hold_through_llama_indexs_own_loops_and_threads(
    reading: ConfidenceCascadeLLM, mode: ResponseMode
) -> None:
    """`use_async` starts an event loop in a thread, from a synchronous query inside a running loop."""
    with trace() as t:
        engine(reading, response_mode=mode, use_async=True).query("Where is Tuvalu?")
        await engine(reading, response_mode=mode, use_async=True).aquery("Where is Tuvalu?")

    assert len(t.records) >= 2
    assert set(answered_by(t)) <= {"small", "large"}


def test_settings_take_it(reading: ConfidenceCascadeLLM) -> None:
    before = Settings._llm
    try:
        Settings.llm = reading
        with trace() as t:
            response = RetrieverQueryEngine.from_args(Shelf()).query("Where is France?")
        assert str(response) == "Paris is the capital of France."
        assert answered_by(t) == ["small"]
        assert resolve_llm(reading) is reading
    finally:
        Settings._llm = before


def test_a_chat_engine_streams_in_a_thread_of_its_own(llm: ConfidenceCascadeLLM) -> None:
    """The record reaches the trace, and no routing data the memory."""
    chat_engine = SimpleChatEngine.from_defaults(llm=llm)
    with trace() as t:
        assert str(chat_engine.chat(KNOWN)) == "It is Paris."
        streamed = chat_engine.stream_chat(UNKNOWN)
        assert "".join(streamed.response_gen) == "It is Funafuti."

    assert answered_by(t) == ["small", "large"]
    assert [message.additional_kwargs for message in chat_engine.chat_history] == [{}] * 4


class Place(BaseModel):
    name: str


def test_structured_output_works_through_text() -> None:
    small = ScriptedModel("small", lambda _: Reply('{"name": "Lima"}', 0.3))
    large = ScriptedModel("large", lambda _: Reply('{"name": "Funafuti"}'))
    llm = ConfidenceCascadeLLM(models=[small, large], threshold=0.8)

    with trace() as t:
        place = llm.structured_predict(Place, PromptTemplate("Capital of {land}?"), land="Tuvalu")

    assert place == Place(name="Funafuti")
    assert answered_by(t) == ["large"]


def test_the_system_prompt_reaches_every_stage() -> None:
    small, large = Rule(name="small"), Rule(name="large")
    llm = ConfidenceCascadeLLM(models=[small, large], threshold="never", system_prompt="Be brief.")

    llm.predict(PromptTemplate(KNOWN))

    for stage in (small, large):
        ((messages, _),) = stage.calls
        assert [message.content for message in messages] == ["Be brief.", KNOWN]


# ---------------------------------------------------------------------- callbacks and events


class Events(BaseCallbackHandler):
    """Counts the LLM events of a callback manager."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.started: list[CBEventType] = []

    def on_event_start(self, event_type: CBEventType, *_: Any, **__: Any) -> str:
        self.started.append(event_type)
        return ""

    def on_event_end(self, *_: Any, **__: Any) -> None: ...

    def start_trace(self, *_: Any, **__: Any) -> None: ...

    def end_trace(self, *_: Any, **__: Any) -> None: ...


async def test_a_query_is_one_event_for_callbacks(llm: ConfidenceCascadeLLM) -> None:
    events = Events()
    llm.callback_manager = CallbackManager([events])

    await answered_in_all_eight_ways(llm, UNKNOWN)

    assert events.started == [CBEventType.LLM] * 8


class Ends(BaseEventHandler):
    """Keeps the ends of chats."""

    ends: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, LLMChatEndEvent):
            self.ends.append(event.response)


def test_instrumentation_sees_the_record_and_no_key() -> None:
    llm = ConfidenceCascadeLLM(models=[OpenAI(model="gpt-4o", api_key="sk-secret", api_base="http://127.0.0.1:1")])
    ends, dispatcher = Ends(), get_dispatcher()
    dispatcher.add_event_handler(ends)
    try:
        cascade().chat(user(UNKNOWN))
        payload = payload_of(llm)
    finally:
        dispatcher.event_handlers.remove(ends)

    assert [response.additional_kwargs["confcascade"]["answered_by"] for response in ends.ends] == ["large"]
    assert "sk-secret" not in repr(payload)


# ---------------------------------------------------------------------- the event loop


class Blocking(CustomLLM):
    """Computes in this process, and blocks while it does, as `HuggingFaceLLM`: until the event loop has ticked."""

    ticked: Any = Field(default_factory=threading.Event)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="blocking")

    @llm_completion_callback()
    def complete(self, *_: Any, **__: Any) -> CompletionResponse:
        return CompletionResponse(text="done" if self.ticked.wait(10) else "the event loop is blocked")

    @llm_completion_callback()
    def stream_complete(self, *_: Any, **__: Any) -> CompletionResponseGen:
        def pieces() -> CompletionResponseGen:
            for piece in ("do", "ne"):
                self.ticked.clear()
                said = piece if self.ticked.wait(10) else "the event loop is blocked"
                yield CompletionResponse(text=said, delta=said)

        return pieces()


@pytest.mark.parametrize("method", ["achat", "acomplete", "astream_chat", "astream_complete"])
async def test_a_blocking_stage_does_not_block_the_event_loop(method: str) -> None:
    """The stage waits for a task of the loop; were it called on the loop, that task could not run."""
    stage = Blocking()
    llm = ConfidenceCascadeLLM(models=[stage])

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.005)
            stage.ticked.set()

    ticking = asyncio.create_task(tick())
    with trace() as t:
        given = await getattr(llm, method)(user("go") if "chat" in method else "go")
        if "stream" in method:
            given = [item async for item in given][-1]
    ticking.cancel()

    assert text_of(given) == "done"
    assert answered_by(t) == ["blocking"]


# ---------------------------------------------------------------------- imports


def test_importing_it_is_light() -> None:
    code = (
        "import sys, llamaindex_confcascade; "
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'langchain', 'langchain_core', 'openai'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_its_public_names() -> None:
    import llamaindex_confcascade

    assert llamaindex_confcascade.__all__ == [
        "ConfidenceCascadeLLM",
        "LlamaIndexModel",
        "Measured",
        "MeasuredQuestion",
        "RetrievalScore",
        "ameasure",
        "measure",
    ]
