"""`LangChainModel`: what LangChain's own classes are asked, and how their answers are read."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confcascade import (
    Cascade,
    ConfigurationError,
    Message,
    ModelError,
    Request,
    Stage,
    TokenProbability,
    ToolCall,
    Usage,
)
from confcascade.answers import parted
from confcascade.asks import Generate, Prefill
from confcascade.extending import Response
from confcascade.testing import check_model, same_record
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.convert import Reading, messages_from, request_from, response_from
from langchain_confcascade.model import LangChainModel

QUESTION = Request((Message("user", "capital of France?"),))
ASK = Generate(LangChainModel(FakeListChatModel(responses=[])), QUESTION)
WORDS = [("It", 0.9), (" is", 0.8), (" Paris", 0.7)]


class Server:
    """An OpenAI-compatible server that says `WORDS`, and remembers what it was asked."""

    def __init__(self, server: HTTPServer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refuses: tuple[str, ...] = ()
        self.complaint = "{} is not supported with this model"
        # a path of its own: langchain-openai shares asynchronous clients by address, over event loops
        self.url = server.url_for(f"/{uuid.uuid4().hex}/v1")
        server.expect_request(f"/{self.url.split('/', 3)[3]}/chat/completions").respond_with_handler(self.answer)

    def model(self, **parameters: Any) -> ChatOpenAI:
        return ChatOpenAI(**{"model": "tiny", "base_url": self.url, "api_key": "none", "max_retries": 0} | parameters)

    def answer(self, request: HTTPRequest) -> HTTPResponse:
        asked = json.loads(request.data)
        self.asked.append(asked)
        for name in self.refuses:
            if name in asked:
                error = {"error": {"message": self.complaint.format(name), "code": "unsupported"}}
                return HTTPResponse(json.dumps(error), 400, content_type="application/json")
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        entries = [entry(word, p) for word, p in WORDS] + [{**entry("<end>", 0.5), "bytes": []}]
        told = asked.get("logprobs")
        if not asked.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "It is Paris"},
                "finish_reason": "stop",
                "logprobs": {"content": entries} if told else None,
            }
            return HTTPResponse(json.dumps(envelope(choices=[choice], usage=usage)), content_type="application/json")
        return HTTPResponse(self._events(asked, entries if told else None, usage), content_type="text/event-stream")

    @staticmethod
    def _events(asked: dict[str, Any], entries: list[dict[str, Any]] | None, usage: dict[str, int]) -> Iterator[str]:
        for i, (word, _) in enumerate(WORDS):
            if asked["model"] == "breaks" and i == 2:
                return
            logprobs = {"content": [entries[i]]} if entries else None
            choice = {
                "index": 0,
                "delta": {"role": "assistant", "content": word},
                "finish_reason": None,
                "logprobs": logprobs,
            }
            yield event(choices=[choice])
        if asked["model"] != "unexplained":
            yield event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if asked.get("stream_options", {}).get("include_usage"):
            yield event(choices=[], usage=usage)
        yield "data: [DONE]\n\n"


def entry(token: str, p: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(p), "bytes": list(token.encode())}]
    return {"token": token, "logprob": math.log(p), "bytes": list(token.encode()), "top_logprobs": top}


def envelope(**fields: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny-2026", **fields}


def event(**fields: Any) -> str:
    return f"data: {json.dumps({**envelope(**fields), 'object': 'chat.completion.chunk'})}\n\n"


@pytest.fixture
def server(httpserver: HTTPServer) -> Server:
    return Server(httpserver)


def generate(model: LangChainModel, **ask: Any) -> Response:
    (response,) = model.generate([Generate(model, QUESTION, **ask)])
    assert isinstance(response, Response)
    return response


# ---------------------------------------------------------------------- the contract


def test_it_keeps_the_contract_of_a_language_model(server):
    check_model(LangChainModel(server.model()), QUESTION)


def test_a_chat_model_that_does_not_stream_keeps_it_too():
    check_model(
        LangChainModel(GenericFakeChatModel(messages=iter(["hello there"] * 9), disable_streaming=True)), QUESTION
    )


async def test_synchronous_and_asynchronous_answers_are_equal(server):
    model = LangChainModel(server.model())
    ask = Generate(model, QUESTION)

    first, second = await model.agenerate([ask, ask])
    *chunks, last = [item async for item in model.astream(ask)]

    expected = generate(model)
    for response in (first, second, last):
        assert (response.text, response.tokens, response.usage) == (expected.text, expected.tokens, expected.usage)
    assert "".join(chunk.text for chunk in chunks) == expected.text


def test_it_answers_plain_questions_of_the_core(server):
    """Without LangChain's messages in the request, they are made from the plain ones."""
    stage = Stage(LangChainModel(server.model()), [TokenProbability()], {"p_t": 0.5})
    outcome = Cascade([stage, Stage(LangChainModel(server.model()))]).run(
        [("system", "be brief"), ("user", "capital?")]
    )

    assert (outcome.text, outcome.record.stage) == ("It is Paris", 0)
    assert [message["role"] for message in server.asked[0]["messages"]] == ["system", "user"]


def test_hidden_states_cannot_be_seen():
    model = LangChainModel(FakeListChatModel(responses=["a"]))

    with pytest.raises(ModelError, match="hidden states"):
        model.prefill([Prefill(model, QUESTION, layers=(1,))])
    assert not model.capability.prefill


@pytest.mark.parametrize("native", [3, "openai:x", HumanMessage("hi"), GenericFakeChatModel])
def test_what_is_no_chat_model_is_refused(native):
    with pytest.raises(ConfigurationError, match="takes a LangChain chat model"):
        LangChainModel(native)


def test_names_come_from_the_model(server):
    assert LangChainModel(server.model()).name == "tiny"
    assert LangChainModel(server.model().bind(seed=1)).name == "tiny"
    assert LangChainModel(FakeListChatModel(responses=[])).name == "FakeListChatModel"
    assert LangChainModel(server.model(), name="mine").name == "mine"


def test_classes_known_to_tell_no_log_probabilities_are_refused_when_built():
    class ChatAnthropic(FakeListChatModel):
        """Stands for langchain_anthropic's."""

    silent, other = LangChainModel(ChatAnthropic(responses=["a"])), LangChainModel(FakeListChatModel(responses=["a"]))

    assert (silent.capability.logprobs, other.capability.logprobs) == (False, None)
    with pytest.raises(ConfigurationError, match="needs log-probabilities"):
        Cascade([Stage(silent, [TokenProbability()], {"p_t": 0.5}), Stage(other)])


def test_fingerprints_tell_settings_apart_and_show_none(server):
    first, second = (LangChainModel(server.model(temperature=t, api_key="sk-secret")) for t in (0.0, 1.0))

    assert first.fingerprint == LangChainModel(server.model(temperature=0.0)).fingerprint
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint != LangChainModel(server.model(temperature=0.0).bind(seed=1)).fingerprint
    assert "sk-secret" not in f"{first!r}{first.fingerprint}"


def test_it_can_be_pickled():
    model = LangChainModel(FakeListChatModel(responses=["a", "b"]))

    assert generate(pickle.loads(pickle.dumps(model))).text == "a"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_answer_with_a_number_that_is_not_finite_has_no_tokens(server, streamed, number, monkeypatch):
    """Neither whole nor streamed are the others judged without it."""
    plain = entry
    monkeypatch.setitem(
        globals(), "entry", lambda word, p: plain(word, p) | ({"logprob": number} if word == " is" else {})
    )

    response = generate(LangChainModel(server.model()), watch=(lambda _: "hold") if streamed else None)

    assert (response.text, response.tokens) == ("It is Paris", None)


# ---------------------------------------------------------------------- what goes out


@pytest.mark.parametrize("streamed", [False, True])
def test_log_probabilities_are_asked_for_per_call(server, streamed):
    native = server.model()
    before = native.model_dump()
    model = LangChainModel(native)

    response = generate(model, watch=(lambda _: "hold") if streamed else None, top_logprobs=5)
    generate(model, logprobs=False)

    asked, silent = server.asked
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 5)
    assert "logprobs" not in silent
    assert "top_logprobs" not in silent
    assert [(token.text, round(math.exp(token.logprob), 3)) for token in response.tokens] == WORDS
    assert response.tokens[0].top == (("It", pytest.approx(math.log(0.9))),)
    assert native.model_dump() == before


def test_at_least_two_alternatives_are_asked_for_and_the_users_own_wish_counts(server):
    model = LangChainModel(server.model())
    generate(model)
    model.generate([Generate(model, Request(QUESTION.messages, options={"top_logprobs": 3}))])

    assert [asked["top_logprobs"] for asked in server.asked] == [2, 3]


def test_classes_that_do_not_know_the_parameter_are_not_given_it():
    given: dict[str, Any] = {}

    class Plain(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            given.update(kwargs)
            return super()._call(*args, **kwargs)

    assert generate(LangChainModel(Plain(responses=["a"]))).tokens is None
    assert "logprobs" not in given


def test_request_parameters_and_messages_reach_the_model(server):
    request = Request((Message("user", "plain"),), 9, ("END",), 0.5, {"seed": 1}, native=[HumanMessage("hi")])
    model = LangChainModel(server.model())
    model.generate([Generate(model, request)])

    asked = server.asked[0]
    assert (asked["stop"], asked["temperature"], asked["seed"]) == (["END"], 0.5, 1)
    assert asked.get("max_tokens", asked.get("max_completion_tokens")) == 9
    assert asked["messages"][0]["content"] == "hi"


def test_a_model_that_changes_its_messages_changes_a_list_of_its_own():
    class Appending(FakeListChatModel):
        """Adds to what it was given, as some integrations do."""

        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            messages.append(AIMessage("mine"))
            return super()._call(messages, *args, **kwargs)

    messages = [HumanMessage("hi")]
    model = LangChainModel(Appending(responses=["a"]))
    model.generate([Generate(model, Request(QUESTION.messages, native=messages))])

    assert messages == [HumanMessage("hi")]


def test_bound_parameters_are_kept_and_stop_sequences_added(server):
    model = LangChainModel(server.model().bind(seed=7).with_config(tags=["mine"]))
    generate(model)

    assert server.asked[0]["seed"] == 7


@pytest.mark.parametrize(("watch", "tries"), [(None, "TFF"), (lambda _: "hold", "TTFF")])
def test_a_server_that_refuses_log_probabilities_is_asked_again_without(server, watch, tries):
    """And only once: every further call leaves them out. A draft whose stream is refused them comes whole."""
    server.refuses = ("logprobs",)
    model = LangChainModel(server.model())

    answers = [generate(model, watch=watch) for _ in range(2)]

    assert [(answer.text, answer.tokens) for answer in answers] == [("It is Paris", None)] * 2
    assert ["logprobs" in asked for asked in server.asked] == [each == "T" for each in tries]


async def test_refusals_of_concurrent_calls_are_all_survived(server):
    """None of the calls that were under way when the first was refused may fail."""
    server.refuses = ("logprobs", "stream_options")
    model = LangChainModel(server.model())
    asks = [Generate(model, QUESTION), Generate(model, QUESTION, watch=lambda _: "hold")] * 3

    answers = await model.agenerate(asks)

    assert [answer.text for answer in answers] == ["It is Paris"] * 6


@pytest.mark.parametrize("watch", [None, lambda _: "hold"])
async def test_an_error_that_merely_mentions_log_probabilities_is_raised_and_not_remembered(server, watch):
    model = LangChainModel(server.model())
    server.refuses = ("messages",)  # whatever is left out
    server.complaint = "the {} 'what are logprobs?' are not supported"
    ask = Generate(model, Request((Message("user", "why?"),)), watch=watch)
    for _ in range(2):
        with pytest.raises(Exception, match="not supported"):
            model.generate([ask])
        with pytest.raises(Exception, match="not supported"):
            await model.agenerate([ask])
    server.refuses = ()

    assert generate(model).tokens is not None


def test_usage_is_asked_for_in_streams_unless_the_user_declined(server):
    """With a `base_url` of one's own, langchain-openai leaves it out by itself."""
    watch = {"watch": lambda _: "hold"}

    told, declined = (
        generate(LangChainModel(server.model()), **watch),
        generate(LangChainModel(server.model(stream_usage=False)), **watch),
    )

    assert (told.usage.input_tokens, told.usage.output_tokens, told.usage.estimated) == (7, 3, False)
    assert declined.usage.estimated
    assert "stream_options" not in server.asked[1]


class Detour(FakeListChatModel):
    """A model with an `invoke` of its own."""

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        return super().invoke([HumanMessage("by a detour")], *args[1:], **kwargs)

    def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        return f"{messages[-1].content}?"


async def test_an_invoke_of_its_own_is_used():
    """Only of LangChain's own `invoke` it is known what may be left out."""
    model = LangChainModel(Detour(responses=[""]))

    (asynchronous,) = await model.agenerate([Generate(model, QUESTION)])

    assert generate(model).text == "by a detour?"
    assert asynchronous.text == "capital of France??"


@pytest.mark.parametrize("watched", ["callbacks", "verbose", "debug"])
async def test_whoever_looks_at_a_stage_sees_its_calls(watched, capsys, monkeypatch):
    """Handlers of the model's own, LangChain's `verbose` and its global `set_debug`."""
    seen: list[str] = []

    class Seeing(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append("start")

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append("end")

    monkeypatch.setattr("langchain_core.globals._debug", watched == "debug")
    settings = {"callbacks": {"callbacks": [Seeing()]}, "verbose": {"verbose": True}, "debug": {}}[watched]
    model = LangChainModel(FakeListChatModel(responses=["hello"], **settings))

    generate(model)
    await model.agenerate([Generate(model, QUESTION)])

    assert seen == (["start", "end"] * 2 if watched == "callbacks" else [])
    assert (capsys.readouterr().out.count("[llm/end]") == 2) == (watched == "debug")


def test_caches_of_a_stage_are_used(server):
    cached = InMemoryCache()
    model = LangChainModel(server.model(cache=cached))

    first, second = generate(model), generate(model)

    assert first.text == second.text == "It is Paris"
    assert first.tokens == second.tokens
    assert len(server.asked) == 1


def test_rate_limiters_of_a_stage_are_respected(server):
    limiter = InMemoryRateLimiter(requests_per_second=20, check_every_n_seconds=0.005, max_bucket_size=1)
    model = LangChainModel(server.model(rate_limiter=limiter))

    assert [generate(model).text for _ in range(2)] == ["It is Paris"] * 2


# ---------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("end", ["sync", "async"])
async def test_a_watch_ends_the_stream_early(server, end):
    model = LangChainModel(server.model())
    ask = Generate(model, QUESTION, watch=lambda tokens: "abort" if len(tokens) == 2 else "hold")

    (response,) = model.generate([ask]) if end == "sync" else await model.agenerate([ask])

    assert (response.text, response.finish_reason) == ("It is", "aborted")
    assert (response.usage.output_tokens, response.usage.estimated) == (2, True)


def test_a_watch_releases_chunks_once_nothing_can_withdraw_them(server):
    model = LangChainModel(server.model())
    ask = Generate(model, QUESTION, watch=lambda tokens: "release" if len(tokens) >= 2 else "hold")

    chunks = [chunk for chunk in model.stream(ask) if not isinstance(chunk, Response) and chunk.text]

    assert [(chunk.text, chunk.released) for chunk in chunks] == [("It", False), (" is", True), (" Paris", True)]


def test_the_native_message_is_carried_along(server):
    model = LangChainModel(server.model())

    for response in (generate(model), generate(model, watch=lambda _: "hold")):
        assert type(response.native) is AIMessage
        assert response.native.response_metadata["model_name"] == "tiny-2026"
        assert response.finish_reason == "stop"


def test_tool_calls_end_an_answer():
    call = {"name": "f", "args": {"a": 1}, "id": "1", "type": "tool_call"}
    message = AIMessage("", tool_calls=[call], response_metadata={"finish_reason": "stop"})
    model = LangChainModel(GenericFakeChatModel(messages=iter([message] * 2), disable_streaming=True))
    *chunks, last = model.stream(Generate(model, QUESTION))

    for response in (generate(model), last):
        assert (response.finish_reason, response.native.tool_calls) == ("tool_calls", [call])
        assert not response.is_empty
    assert [chunk.native.tool_calls for chunk in chunks] == [[call]]


def test_a_broken_stream_is_not_begun_again():
    class Breaking(FakeListChatModel):
        """Says one letter and fails."""

        calls: list[int]
        logprobs: bool | None = None

        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            self.calls.append(1)
            yield next(iter(super()._stream(*args, **kwargs)))
            raise ConnectionError("logprobs were mentioned on the wire")

    native = Breaking(responses=["abc"], calls=[])
    model = LangChainModel(native)

    with pytest.raises(ConnectionError):
        list(model.stream(Generate(model, QUESTION)))
    assert native.calls == [1]


# As servers were seen to answer, shortened: where each integration puts it, and what of it is the answer.
RECORDED: dict[str, tuple[str, Any, list[tuple[str, float]]]] = {
    "llama.cpp's server, whose end-of-text entry has no bytes": (
        "7",
        {
            "content": [
                {
                    "id": 25,
                    "token": "7",
                    "bytes": [55],
                    "logprob": -1.06266,
                    "top_logprobs": [{"id": 25, "token": "7", "bytes": [55], "logprob": -1.06266}],
                },
                {"id": 2, "token": "", "bytes": [], "logprob": -0.00268, "top_logprobs": []},
            ]
        },
        [("7", -1.06266)],
    ),
    "OpenAI, a character of two tokens": (
        "a\N{GRINNING FACE}",
        {
            "content": [
                {"token": "a", "bytes": [97], "logprob": -0.1, "top_logprobs": []},
                {"token": "\\xf0\\x9f\\x98", "bytes": [240, 159, 152], "logprob": -0.2, "top_logprobs": []},
                {"token": "\\x80", "bytes": [128], "logprob": -0.3, "top_logprobs": []},
            ],
            "refusal": None,
        },
        [("a", -0.1), ("", -0.2), ("\N{GRINNING FACE}", -0.3)],
    ),
    "vLLM, which writes -9999 for none": (
        "a",
        {"content": [{"token": "a", "bytes": [97], "logprob": -9999.0, "top_logprobs": []}]},
        [("a", -9999.0)],
    ),
    "llama-cpp-python, without bytes": (
        "It is",
        {
            "content": [
                {"token": "It", "bytes": None, "logprob": -0.1, "top_logprobs": []},
                {"token": " is", "bytes": None, "logprob": -0.2, "top_logprobs": []},
            ],
            "refusal": None,
        },
        [("It", -0.1), (" is", -0.2)],
    ),
    "TGI by HuggingFace, which spells the end-of-text token out": (
        "It is",
        {
            "content": [
                {"token": "It", "logprob": -0.1, "top_logprobs": []},
                {"token": " is", "logprob": -0.2, "top_logprobs": []},
                {"token": "<|eot_id|>", "logprob": -0.01, "top_logprobs": []},
            ]
        },
        [("It", -0.1), (" is", -0.2)],
    ),
    "Ollama, the list alone": (
        "It",
        [{"token": "It", "logprob": -0.1, "bytes": [73, 116], "top_logprobs": None}],
        [("It", -0.1)],
    ),
    "Together, the shape of legacy completions": (
        "It is",
        {"tokens": ["It", " is", "</s>"], "token_logprobs": [-0.1, -0.2, -0.01], "token_ids": [1, 2, 3]},
        [("It", -0.1), (" is", -0.2)],
    ),
    "Fireworks, alternatives as mappings": (
        "It",
        {"tokens": ["It"], "token_logprobs": [-0.1], "top_logprobs": [{"It": -0.1, "We": -2.0}], "text_offset": [0]},
        [("It", -0.1)],
    ),
    "Groq, which says that there are none": ("It", None, []),
}


def test_core_messages_keep_their_tool_calls_and_results():
    """Under the core's own cascade: there and back again."""
    told = (
        Message("system", "Be brief."),
        Message("user", "What is 1 + 2?"),
        Message("assistant", "", (ToolCall("add", {"a": 1, "b": [2]}, "call_1"),)),
        Message("tool", "3", tool_call_id="call_1"),
        Message("assistant", "3."),
    )

    assert request_from(messages_from(told), None, {}).messages == told


@pytest.mark.parametrize("name", RECORDED)
def test_log_probabilities_are_read_where_each_integration_puts_them(name):
    """Whole and streamed alike; the tokens' texts add up to the answer."""
    text, logprobs, expected = RECORDED[name]
    message = AIMessage(text, response_metadata={"logprobs": logprobs})
    whole = parted(ASK.request, response_from(message, ASK))

    assert [(token.text, token.logprob) for token in whole.tokens or ()] == expected
    if isinstance(logprobs, dict) and "content" in logprobs:
        reading = Reading(ASK)
        pieces = [expected[i][0] if i < len(expected) else "" for i in range(len(logprobs["content"]))]
        for piece, each in zip(pieces, logprobs["content"], strict=True):
            list(reading.take(AIMessageChunk(piece, response_metadata={"logprobs": {"content": [each]}})))
        assert parted(ASK.request, reading.response()).tokens == whole.tokens


def test_tokens_of_a_call_without_text_are_kept():
    call = {"name": "f", "args": {}, "id": "1", "type": "tool_call"}
    message = AIMessage("", tool_calls=[call], response_metadata={"logprobs": [{"token": "f", "logprob": -0.5}]})

    assert [token.text for token in response_from(message, ASK).tokens] == ["f"]


def test_classes_that_take_the_parameter_per_call_only_are_given_it():
    given: list[dict[str, Any]] = []

    class ChatFireworks(FakeListChatModel):
        """Stands for langchain_fireworks'."""

        def _call(self, *args: Any, **kwargs: Any) -> str:
            given.append(kwargs)
            return super()._call(*args, **kwargs)

    generate(LangChainModel(ChatFireworks(responses=["a"])))

    assert (given[0]["logprobs"], given[0]["top_logprobs"]) == (True, 2)


def test_a_stream_that_is_cut_off_is_no_answer(server):
    """The server closes without a word of why: what came is not taken for the whole."""
    for model in (
        LangChainModel(server.model(model="breaks")),
        LangChainModel(server.model(model="breaks", streaming=True)),
    ):
        with pytest.raises(ModelError, match="ended before the answer did"):
            list(model.stream(Generate(model, QUESTION)))
    with pytest.raises(ModelError, match="ended before the answer did"):
        model.answer(Generate(model, QUESTION))


@pytest.mark.parametrize("streaming", [{}, {"streaming": True}])
def test_a_server_that_gives_no_reason_why_an_answer_ended_can_answer_last_but_not_be_judged(server, streaming):
    """What is live is the model's own answer; a draft may have been cut off, and escalates."""
    unexplained, large = server.model(model="unexplained", **streaming), server.model(model="large")
    alone, last, first = (
        ConfidenceCascadeLLM(models=models, threshold=threshold)
        for models, threshold in (
            ([unexplained], None),
            ([large, unexplained], 0.99),
            ([unexplained, large], 0.5),
        )
    )
    for llm, answered_by in ((alone, "unexplained"), (last, "unexplained"), (first, "large")):
        chunks = list(llm.stream("q"))
        record = next(filter(None, (chunk.response_metadata.get("confcascade") for chunk in chunks)))

        assert "".join(chunk.content for chunk in chunks) == "It is Paris"
        assert record["answered_by"] == answered_by
    assert record["attempts"][0]["decision"] == "fail"
    assert alone.invoke("q").content == "It is Paris"
    shown_at_once = ConfidenceCascadeLLM(
        models=[unexplained, large], threshold=0.01, signals=[TokenProbability(aggregate="first")]
    )
    *_, end = shown_at_once.stream("q")  # it was released by its first token, so nothing can withdraw it
    assert end.response_metadata["confcascade"]["answered_by"] == "unexplained"


def test_usage_is_asked_for_where_a_model_streams_though_it_is_invoked(server):
    assert generate(LangChainModel(server.model(streaming=True))).usage == Usage(7, 3)


@pytest.mark.parametrize("never", [{"streaming": False}, {"disable_streaming": True}])
def test_a_model_that_never_streams_is_not_said_to_refuse_usage(server, caplog, never):
    """LangChain invokes it where a stream is wanted, and `invoke` does not know the word."""
    model = LangChainModel(server.model(**never))

    assert list(model.stream(Generate(model, QUESTION)))[-1].usage == Usage(7, 3)
    assert [record for record in caplog.records if record.name == "confcascade"] == []


def test_the_prompt_of_an_aborted_stream_is_estimated(server):
    model = LangChainModel(server.model())
    ask = Generate(model, QUESTION, watch=lambda tokens: "abort" if len(tokens) == 2 else "hold")

    assert list(model.stream(ask))[-1].usage == Usage(math.ceil(len("capital of France?") / 4), 2, estimated=True)


def test_the_responses_api_tells_no_log_probabilities(server):
    """langchain-openai neither asks for them there nor hands them on: known before anything is paid for."""
    model = LangChainModel(server.model(use_responses_api=True))

    assert model.capability.logprobs is False
    with pytest.raises(ConfigurationError, match="needs log-probabilities"):
        Cascade([Stage(model, [TokenProbability()], {"p_t": 0.5}), Stage(model)])


def test_an_answer_out_of_a_cache_costs_nothing(server):
    model = LangChainModel(server.model(cache=InMemoryCache()))

    assert generate(model).usage == Usage(7, 3)
    assert generate(model).usage == Usage()
    assert len(server.asked) == 1


async def test_a_cascade_over_a_server_decides_alike_in_every_way(server):
    stages = [
        Stage(LangChainModel(server.model()), [TokenProbability(aggregate="min")], {"p_t": 0.75}),
        Stage(LangChainModel(server.model())),
    ]
    cascade = Cascade(stages)
    ran, streamed = cascade.run("q"), list(cascade.stream("q"))[-1]
    aran, astreamed = await cascade.arun("q"), [item async for item in cascade.astream("q")][-1]

    first, *others = (outcome.record.as_dict() for outcome in (ran, streamed, aran, astreamed))
    assert first["attempts"][0]["aborted"]
    assert all(same_record(other, first) for other in others)


async def test_a_running_event_loop_may_call_synchronously(server):
    assert generate(LangChainModel(server.model())).text == "It is Paris"
    assert (await asyncio.to_thread(generate, LangChainModel(server.model()))).text == "It is Paris"
