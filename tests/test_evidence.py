"""What an answer is judged by, over real clients and HTTP: the core's own, LangChain's and LlamaIndex's alike.

A scripted server answers as vLLM, SGLang, llama.cpp, Ollama, DeepSeek and OpenAI do. Whatever it lists beside the
answer, and in whichever way a cascade is asked, the decision and the score are those of the answer.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("llama_index.llms.openai")
pytest.importorskip("openai")

from confcascade import (
    Cascade,
    OpenAICompatibleModel,
    OutputSchema,
    Record,
    RetrievalScore,
    Stage,
    TokenProbability,
    Tool,
    trace,
)
from confcascade.bench.collecting import CollectOptions, collect_rows
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording import Columns, PlaybackModel
from confcascade.bench.replay import PolicyStage, replay
from confcascade.extending import Evidence, Measurement, Signal
from confcascade.graders import NormalizedMatch
from confcascade.graders.example import Example
from confcascade.models import calls
from confcascade.models.bundled import WEIGHTS
from confcascade.thoughts import part
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

import langchain_confcascade
import llamaindex_confcascade

SMALL, LARGE = "gpt-4o-mini", "gpt-4o"  # names that LlamaIndex's `OpenAI` knows
QUESTION = "Where is the Rhône?"
THRESHOLD = 0.8

# ---------------------------------------------------------------------- the server

At = Literal["content", "reasoning_content", "reasoning", "call", "nowhere", "whole only"]


@dataclass(frozen=True)
class Piece:
    """A token: its probability (None: it is not listed), and in which field its text comes.

    "call": of a tool call; "nowhere": a mark that a parser takes away; "whole only": one that streams do not tell.
    """

    text: str
    p: float | None = 0.99
    at: At = "content"
    alternatives: tuple[tuple[str, float], ...] = ()  # with log-probabilities
    logprob: float | None = None  # rather than p

    @property
    def entry(self) -> dict[str, Any]:
        assert self.p is not None
        logprob = math.log(self.p) if self.logprob is None else self.logprob
        others = [{"token": t, "logprob": lp, "bytes": list(t.encode())} for t, lp in self.alternatives]
        return {
            "token": self.text,
            "logprob": logprob,
            "bytes": list(self.text.encode()),
            "top_logprobs": others or [{"token": self.text, "logprob": logprob, "bytes": list(self.text.encode())}],
        }


@dataclass(frozen=True)
class Says:
    """An answer. `apart`: the log-probabilities of thoughts are in a list of their own, as DeepSeek's."""

    pieces: Sequence[Piece]
    calls: Sequence[tuple[str, str]] = ()
    finish: str = "stop"
    apart: bool = False
    strips: bool = False  # whether the whole answer's text loses blanks around it
    batch: int = 1  # tokens in an event

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        listed = [piece for piece in pieces if piece.p is not None]
        thoughts = [piece.entry for piece in listed if piece.at.startswith("reasoning")]
        if not self.apart:
            return {"content": [piece.entry for piece in listed]} if listed else None
        return {
            "content": [piece.entry for piece in listed if not piece.at.startswith("reasoning")] or None,
            "reasoning_content": thoughts or None,
        }

    @staticmethod
    def fields(pieces: Sequence[Piece]) -> dict[str, str]:
        told: dict[str, str] = {}
        for piece in pieces:
            if piece.at in ("content", "reasoning_content", "reasoning"):
                told[piece.at] = told.get(piece.at, "") + piece.text
        return told


Refusal = Callable[[dict[str, Any]], HTTPResponse | None]


class Server:
    """Says for each model what `says` has of it, and refuses what `refuses` does."""

    def __init__(self, httpserver: HTTPServer) -> None:
        # a path of its own: langchain-openai shares asynchronous clients by address, over event loops
        self.url = httpserver.url_for(f"/{uuid.uuid4().hex}/v1")
        self.says: dict[str, Says] = {LARGE: Says([Piece("the"), Piece(" large"), Piece(" one")])}
        self.refuses: Refusal = lambda body: None
        self.bodies: list[dict[str, Any]] = []
        path = f"/{self.url.split('/', 3)[3]}/chat/completions"
        httpserver.expect_request(path, method="POST").respond_with_handler(self._answer)

    def _answer(self, http: HTTPRequest) -> HTTPResponse:
        body = json.loads(http.get_data())
        self.bodies.append(body)
        if (refused := self.refuses(body)) is not None:
            return refused
        says, told = self.says[body["model"]], bool(body.get("logprobs"))
        listed = body.get("top_logprobs") or 0  # and never more
        says = replace(says, pieces=[replace(each, alternatives=each.alternatives[:listed]) for each in says.pieces])
        if body.get("stream"):
            return HTTPResponse("".join(self._events(says, body, told)), content_type="text/event-stream")
        fields: dict[str, Any] = {"content": None} | says.fields(says.pieces)
        if says.strips and fields["content"]:
            fields["content"] = fields["content"].strip()
        if says.calls:
            fields["tool_calls"] = [self._call(i, *call) for i, call in enumerate(says.calls)]
        choice = {
            "index": 0,
            "message": {"role": "assistant", **fields},
            "finish_reason": says.finish,
            "logprobs": says.logprobs(says.pieces) if told else None,
        }
        return _json(_envelope("chat.completion", choices=[choice], usage=self._usage(says)))

    def _events(self, says: Says, body: dict[str, Any], told: bool) -> Iterator[str]:
        def event(delta: dict[str, Any], logprobs: Any = None, finish: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            fields = {"choices": [choice]} | more
            return f"data: {json.dumps(_envelope('chat.completion.chunk', **fields))}\n\n"

        yield event({"role": "assistant", "content": ""})
        pieces = [piece for piece in says.pieces if piece.at != "whole only"]
        for start in range(0, len(pieces), says.batch):
            some = pieces[start : start + says.batch]
            yield event(says.fields(some), says.logprobs(some) if told else None)
        for i, (name, arguments) in enumerate(says.calls):
            call = self._call(i, name, arguments)
            yield event({"tool_calls": [call | {"function": {"name": name, "arguments": ""}}]})
            for some in (arguments[:4], arguments[4:]):
                yield event({"tool_calls": [{"index": i, "function": {"arguments": some}}]})
        yield event({}, finish=says.finish)
        if body.get("stream_options", {}).get("include_usage"):
            yield event({}, choices=[], usage=self._usage(says))
        yield "data: [DONE]\n\n"

    @staticmethod
    def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"index": index, "id": f"call_{index}", "type": "function", "function": function}

    @staticmethod
    def _usage(says: Says) -> dict[str, int]:
        n = len(says.pieces)
        return {"prompt_tokens": 7, "completion_tokens": n, "total_tokens": 7 + n}


def _envelope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "x", "object": kind, "created": 0, "model": "m", **fields}


def _json(body: Any, status: int = 200) -> HTTPResponse:
    return HTTPResponse(json.dumps(body), status, content_type="application/json")


@pytest.fixture(scope="module")
def threaded() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def server(threaded: HTTPServer) -> Iterator[Server]:
    yield Server(threaded)
    threaded.clear()


# ---------------------------------------------------------------------- the clients, and the ways to ask


def weather(city: str) -> str:
    """The weather in a city."""
    return city


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@dataclass(frozen=True)
class Setting:
    """A cascade of two, and what is asked of it."""

    signals: Sequence[Signal] = (TokenProbability(),)
    threshold: float = THRESHOLD
    tools: bool = False
    forced: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    on_cut: Literal["escalate", "keep"] = "escalate"

    def stages(self, small: Any, large: Any) -> list[Stage]:
        thresholds = dict.fromkeys((signal.name for signal in self.signals), self.threshold)
        return [Stage(small, self.signals, thresholds), Stage(large)]


class Client:
    """Asks a cascade over one kind of client, in the four ways; the models are kept from call to call."""

    ways: tuple[str, ...]

    def __init__(self, url: str, setting: Setting = Setting()) -> None:
        self.url = url
        self.setting = setting
        self.made = self.make()

    def make(self) -> Any:
        raise NotImplementedError

    async def ask(self, way: str) -> Any:
        raise NotImplementedError

    async def record(self, way: str) -> Record:
        """How the answer came about; `shown` is what was streamed, or answered."""
        with trace() as traced:
            await self.ask(way)
        return traced.records[-1]


class Core(Client):
    ways = ("run", "arun", "stream", "astream")

    def make(self) -> Cascade:
        models = [OpenAICompatibleModel(m, base_url=self.url, api_key="none", max_retries=0) for m in (SMALL, LARGE)]
        return Cascade(self.setting.stages(*models), on_cut=self.setting.on_cut)

    async def ask(self, way: str) -> Any:
        parameters: dict[str, Any] = dict(self.setting.options)
        if "extra_body" in parameters:
            parameters["options"] = {"extra_body": parameters.pop("extra_body")}
        if self.setting.tools:
            parameters["tools"] = (Tool("weather", SCHEMA),)
            parameters["tool_choice"] = "weather" if self.setting.forced else None
        return await _drained(getattr(self.made, way)(QUESTION, **parameters))


class LangChain(Client):
    ways = ("invoke", "ainvoke", "stream", "astream")

    def chat(self, model: str) -> Any:
        return ChatOpenAI(model=model, base_url=self.url, api_key="none", max_retries=0)

    def make(self) -> Any:
        stages = self.setting.stages(self.chat(SMALL), self.chat(LARGE))
        llm: Any = langchain_confcascade.ConfidenceCascadeLLM(stages=stages, on_cut=self.setting.on_cut)
        if self.setting.tools:
            llm = llm.bind_tools([weather], tool_choice="weather" if self.setting.forced else None)
        return llm.bind(**self.setting.options) if self.setting.options else llm

    async def ask(self, way: str) -> Any:
        return await _drained(getattr(self.made, way)(QUESTION))


class DeepSeek(LangChain):
    """The one client of LangChain's that reads thoughts which are told apart."""

    def chat(self, model: str) -> Any:
        deepseek = pytest.importorskip("langchain_deepseek")
        return deepseek.ChatDeepSeek(model=model, api_base=self.url, api_key="none", max_retries=0)


class LlamaIndex(Client):
    ways = ("chat", "achat", "stream_chat", "astream_chat")

    def llm(self, model: str) -> Any:
        return OpenAI(model=model, api_base=self.url, api_key="none", max_retries=0)

    def make(self) -> Any:
        stages = self.setting.stages(self.llm(SMALL), self.llm(LARGE))
        return llamaindex_confcascade.ConfidenceCascadeLLM(stages=stages, on_cut=self.setting.on_cut)

    async def ask(self, way: str) -> Any:
        message, options = ChatMessage(content=QUESTION), self.setting.options
        if not self.setting.tools:
            return await _drained(getattr(self.made, way)([message], **options))
        tools = [FunctionTool.from_defaults(weather)]
        called = getattr(self.made, f"{way}_with_tools")
        return await _drained(called(tools, user_msg=message, tool_required=self.setting.forced, **options))


class OpenAILike(LlamaIndex):
    def llm(self, model: str) -> Any:
        like = pytest.importorskip("llama_index.llms.openai_like")
        more = {"is_chat_model": True, "is_function_calling_model": True}
        return like.OpenAILike(model=model, api_base=self.url, api_key="none", max_retries=0, **more)


async def _drained(answer: Any) -> Any:
    """What was returned, awaited if need be; of a stream, all pieces."""
    if hasattr(answer, "__await__"):
        answer = await answer
    if isinstance(answer, AsyncIterator):
        return [item async for item in answer]
    return list(answer) if isinstance(answer, Iterator) else answer


CLIENTS = {"core": Core, "ChatOpenAI": LangChain, "ChatDeepSeek": DeepSeek, "OpenAI": LlamaIndex, "Like": OpenAILike}
every_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


def over(**axes: Mapping[str, Any] | Sequence[Any]) -> pytest.MarkDecorator:
    """A test of every combination; slow are those with later values than the first on more than one axis.

    So each value has a fast case: with the first values of the other axes.
    """
    labelled = [axis.items() if isinstance(axis, Mapping) else [(str(x), x) for x in axis] for axis in axes.values()]
    cases = []
    for combination in itertools.product(*map(enumerate, labelled)):
        later = sum(i > 0 for i, _ in combination)
        label = "-".join(name for _, (name, _) in combination)
        values = (value for _, (_, value) in combination)
        cases.append(pytest.param(*values, id=label, marks=[pytest.mark.slow] if later > 1 else []))
    return pytest.mark.parametrize(tuple(axes), cases)


def check(record: Record, expected: float | str, *, threshold: float = THRESHOLD, where: str = "") -> None:
    """Hold the small model's attempt against the score that is right, or a pattern of why there is none."""
    small = record.attempts[0]
    shown = f"{where}: {small.reason}"
    score = small.scores.get("p_t")
    if isinstance(expected, str):
        assert small.decision == "escalate", shown
        assert score is None or score.value is None, shown
        assert re.search(expected, small.reason), shown
        assert record.answered_by == LARGE
    else:
        assert score is not None, shown
        assert score.value is not None, shown
        assert score.value == pytest.approx(expected, rel=1e-6), shown
        assert small.decision == ("accept" if expected >= threshold else "escalate"), shown
        assert record.answered_by == (SMALL if expected >= threshold else LARGE), shown


def words(text: str, p: float | None, at: At = "content") -> list[Piece]:
    return [Piece(word, p, at) for word in re.findall(r"\s*\S+", text)]


def mean(*probabilities: float) -> float:
    return math.exp(math.fsum(map(math.log, probabilities)) / len(probabilities))


# ---------------------------------------------------------------------- thoughts

UNSURE, SURE = [Piece("Ly", 0.1), Piece("on", 0.9)], [Piece("Ly", 0.98), Piece("on", 0.999)]
LOW, HIGH = mean(0.1, 0.9), mean(0.98, 0.999)
MUSING = "It may be Lyon or Geneva so I say Lyon"


def apart(at: At, p: float | None = 0.999) -> list[Piece]:
    return words(MUSING, p, at)


def marked(p: float | None = 0.999) -> list[Piece]:
    return [Piece("<think>", p), *words("\n" + MUSING, p), Piece("\n"), Piece("</think>", p), Piece("\n\n", p)]


def untold(pieces: Sequence[Piece]) -> list[Piece]:
    """Listed apart from the text."""
    return [Piece(piece.text, piece.p, "nowhere") for piece in pieces]


MARK = [Piece("</think>", 0.999, "nowhere"), Piece("\n\n", 0.999, "nowhere")]
LOST = [Piece("</think>", 0.999, "whole only"), Piece("\n\n", 0.999, "whole only")]
END = [Piece("<|im_end|>", 0.5, "nowhere")]

ANSWERS: dict[str, tuple[Says, float | str]] = {
    "reasoning_content, unsure": (Says([*apart("reasoning_content"), *MARK, *UNSURE]), LOW),
    "reasoning_content, sure": (Says([*apart("reasoning_content", 0.3), *MARK, *SURE]), HIGH),
    "reasoning_content, marks lost": (Says([*apart("reasoning_content"), *LOST, *UNSURE, *END]), LOW),
    "reasoning_content, stripped": (
        Says([*apart("reasoning_content"), Piece("\n\n", 0.999), *UNSURE], strips=True),
        LOW,
    ),
    "reasoning_content, in batches": (Says([*apart("reasoning_content"), *MARK, *UNSURE], batch=3), LOW),
    "reasoning, unsure": (Says([*apart("reasoning"), *MARK, *UNSURE]), LOW),
    "reasoning, sure": (Says([*apart("reasoning", 0.3), *SURE, *END]), HIGH),
    "in the text, unsure": (Says([*marked(), *UNSURE]), LOW),
    "in the text, sure": (Says([*marked(0.3), *SURE, *END]), HIGH),
    "in the text, in batches": (Says([*marked(), *UNSURE], batch=4), LOW),
    "opened by the prompt": (Says([*words(MUSING, 0.999), Piece("</think>", 0.999), *UNSURE]), LOW),
    "thoughts not listed": (Says([*apart("reasoning_content", None), *UNSURE]), LOW),
    "a list of their own, unsure": (Says([*apart("reasoning_content"), *UNSURE], apart=True), LOW),
    "a list of their own, sure": (Says([*apart("reasoning_content", 0.3), *SURE], apart=True), HIGH),
    "only the thoughts listed, apart": (
        Says([*apart("reasoning_content"), *words("Lyon", None)], apart=True),
        "log-prob",
    ),
    "only the thoughts listed, in one list": (
        Says([*apart("reasoning_content"), *words("Geneva", None)]),
        "log-prob",
    ),
    "cut off in thoughts": (Says(apart("reasoning_content"), finish="length"), "cut off in its thoughts|empty answer"),
    "cut off in thoughts of the text": (Says(marked()[:-2], finish="length"), "cut off in its thoughts"),
    "thoughts and no answer": (Says(marked()), "no answer"),
    "the beginning alone is listed": (Says([*words("small fine", 0.99), *words(" and more", None)]), "log-prob"),
    "the end alone is listed": (Says([*words("small fine", None), *words(" and more", 0.99)]), "log-prob"),
    "the middle is not listed": (Says([Piece("a"), Piece(" b", None), Piece(" c")]), "log-prob"),
    "none are listed": (Says(words("Lyon it is", None)), "log-prob"),
    "no thoughts": (Says([*SURE, *END]), HIGH),
    "listed after the text": (Says([*words("Lyon", None), *untold(UNSURE)]), LOW),
    "listed before the text": (Says([*apart("reasoning_content"), *untold(SURE), *words("Lyon", None)]), HIGH),
}


# as SGLang lists characters of several tokens
SPELLINGS: dict[str, tuple[Says, float | str]] = {
    "characters without a spelling": (
        Says([Piece("Ly", 0.1), Piece("\ufffd", 0.9, "nowhere"), Piece("\ufffd", 0.9, "nowhere"), Piece("🙂", None)]),
        mean(0.1, 0.9, 0.9),
    ),
    "characters without a spelling, within": (
        Says([Piece("L", 0.9), *[Piece("\ufffd", 0.9, "nowhere")] * 3, Piece(" 🙂鿆", None), Piece(" on", 0.9)]),
        0.9,
    ),
}


STREAMED = [
    "reasoning_content, unsure",
    "reasoning_content, marks lost",
    "reasoning, sure",
    "in the text, sure",
    "in the text, in batches",
    "a list of their own, sure",
    "only the thoughts listed, apart",
    "the end alone is listed",
    "listed before the text",
]


@over(client=CLIENTS, name=[*ANSWERS, *SPELLINGS])
async def test_the_score_is_that_of_the_answer(server: Server, client: type[Client], name: str) -> None:
    """Whole and streamed, synchronously and not, whatever else is listed; and where it is not listed, there is none."""
    server.says[SMALL], expected = (ANSWERS | SPELLINGS)[name]
    asking = client(server.url)
    for way in client.ways:
        check(await asking.record(way), expected, where=way)


@over(client=CLIENTS, aggregate=["first", "min"], name=STREAMED)
async def test_drafts_that_are_ended_early_decide_alike(
    server: Server, client: type[Client], name: str, aggregate: Any
) -> None:
    """By any aggregate that a stream is watched by: what is released was not withdrawn by what came later."""
    server.says[SMALL], expected = ANSWERS[name]
    asking = client(server.url, Setting([TokenProbability(aggregate=aggregate)], 0.8))
    kept = None
    for way in client.ways:
        record = await asking.record(way)
        kept = record.answered_by == SMALL if kept is None else kept
        assert (record.answered_by == SMALL) == kept == (expected == HIGH), f"{way}: {record.attempts[0].reason}"


@pytest.mark.parametrize("name", ANSWERS | SPELLINGS)
def test_a_recording_replays_the_same(server: Server, name: str) -> None:
    """`collect` over the server, then the live cascade over what was recorded, and the arithmetic of replays."""
    server.says[SMALL], expected = (ANSWERS | SPELLINGS)[name]
    models = [OpenAICompatibleModel(m, base_url=server.url, api_key="none", max_retries=0) for m in (SMALL, LARGE)]
    stages = Setting().stages(*models)
    answer = part(Says.fields(server.says[SMALL].pieces).get("content", "")).answer.strip()
    options = CollectOptions(PROMPTS["plain"], NormalizedMatch())
    rows = list(collect_rows(((Example(QUESTION, references=(answer or "-",)), stage) for stage in stages), options))
    by_model = {row.model: row for row in rows}
    assert by_model[SMALL].answer.strip() == answer
    assert by_model[SMALL].grade == float(bool(answer))
    prompt = by_model[SMALL].prompt
    assert prompt is not None
    played = replay(Columns.of(rows), [PolicyStage(SMALL, {"p_t": THRESHOLD}), PolicyStage(LARGE)])
    assert played.stage.tolist() == [0 if isinstance(expected, float) and expected >= THRESHOLD else 1]
    small, large = (PlaybackModel(m, rows, key=lambda _, m=m: by_model[m].question) for m in (SMALL, LARGE))
    recorded = Cascade(Setting([small.signal("p_t")]).stages(small, large))
    judged_anew = recorded if isinstance(expected, str) else Cascade(Setting().stages(small, large))
    for cascade in (recorded, judged_anew):
        check(cascade.run(prompt).record, expected)
        check(list(cascade.stream(prompt))[-1].record, expected)


@pytest.mark.parametrize("client", [Core, DeepSeek, LlamaIndex])
async def test_a_rehearsal_is_not_taken_for_the_answer(server: Server, client: type[Client]) -> None:
    """Thoughts that end in the words of an answer that is not listed; `ChatOpenAI` does not show that there are any."""
    server.says[SMALL] = Says([*apart("reasoning_content"), *words("Lyon", None)])
    asking = client(server.url)
    for way in client.ways:
        check(await asking.record(way), "log-prob", where=way)


# ---------------------------------------------------------------------- tool calls

PARIS = ("weather", '{"city": "Paris"}')


def call(name: float, value: float, at: At = "nowhere") -> list[Piece]:
    """A call as Hermes' parsers take it away."""
    return [
        Piece("<tool_call>", 0.999, at),
        Piece('{"name": "', 0.999, at),
        Piece("weather", name, at),
        Piece('", "arguments": {"city": "', 0.999, at),
        Piece("Paris", value, at),
        Piece('"}}', 0.999, at),
        Piece("</tool_call>", 0.999, at),
    ]


def rehearsed(p: float, at: At = "reasoning_content") -> list[Piece]:
    """Thoughts that say the very call."""
    told = [*words("I could call", p, at), Piece(' weather {"city": "', p, at), Piece("Paris", p, at)]
    return [*told, Piece('"}', p, at), *words(" now. Rome has weather, too.", p, at)]


CALLS: dict[str, tuple[Says, float | str]] = {
    "rehearsed, unsure": (Says([*rehearsed(0.99), *MARK, *call(0.2, 0.3)], [PARIS], "tool_calls"), mean(0.2, 0.3)),
    "rehearsed, sure": (Says([*rehearsed(0.3), *MARK, *call(0.95, 0.9)], [PARIS], "tool_calls"), mean(0.95, 0.9)),
    "rehearsed, field reasoning": (
        Says([*rehearsed(0.99, "reasoning"), *call(0.2, 0.3)], [PARIS], "tool_calls"),
        mean(0.2, 0.3),
    ),
    "rehearsed in the text": (
        Says(
            [Piece("<think>"), *rehearsed(0.99, "content"), Piece("</think>"), *call(0.2, 0.3)], [PARIS], "tool_calls"
        ),
        mean(0.2, 0.3),
    ),
    "only the rehearsal is listed": (Says(rehearsed(0.99), [PARIS], "tool_calls"), "no log-prob"),
    "only the rehearsal is listed, at its end": (Says(rehearsed(0.99)[:-5], [PARIS], "tool_calls"), "no log-prob"),
    "the rehearsal in a list of its own": (
        Says(rehearsed(0.99)[:-5], [PARIS], "tool_calls", apart=True),
        "no log-prob",
    ),
    "said before it calls": (
        Says([*words("I will look it up.", 0.2), *call(0.95, 0.9)], [PARIS], "tool_calls"),
        mean(0.95, 0.9),
    ),
    "said after it calls": (Says([*call(0.95, 0.9), *words("I look it up.", 0.2)], [PARIS]), mean(0.95, 0.9)),
    "none are listed": (Says([], [PARIS], "tool_calls"), "no log-prob"),
    "two alike": (Says([*call(0.9, 0.3), *call(0.9, 0.8)], [PARIS, PARIS], "tool_calls"), mean(0.9, 0.3, 0.9, 0.8)),
    "as DeepSeek writes it": (
        Says(
            [
                *rehearsed(0.99),
                Piece("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", 0.999, "nowhere"),
                Piece("weather", 0.2, "nowhere"),
                Piece("<｜tool▁sep｜>", 0.999, "nowhere"),
                Piece('{"city": "', 0.999, "nowhere"),
                Piece("Paris", 0.3, "nowhere"),
                Piece('"}', 0.999, "nowhere"),
                Piece("<｜tool▁call▁end｜><｜tool▁calls▁end｜>", 0.999, "nowhere"),
            ],
            [PARIS],
            "tool_calls",
        ),
        mean(0.2, 0.3),
    ),
    "only the text before it is listed": (Says(words("I will look.", 0.99), [PARIS], "tool_calls"), "no log-prob"),
}
UNTOLD = {"only the rehearsal is listed, at its end"}  # by ChatOpenAI, which does not show that there are thoughts


@over(client=CLIENTS, name=list(CALLS))
async def test_a_call_is_judged_by_its_own_tokens(server: Server, client: type[Client], name: str) -> None:
    """Its name and values, not what the model thought of them before."""
    if client is LangChain and name in UNTOLD:
        pytest.skip("ChatOpenAI does not show that there are thoughts")
    server.says[SMALL], expected = CALLS[name]
    asking = client(server.url, Setting(tools=True))
    for way in client.ways:
        check(await asking.record(way), expected, where=way)


@every_client
@pytest.mark.parametrize("named", [True, False])
async def test_a_call_that_the_request_names_is_judged_by_its_values(
    server: Server, client: type[Client], named: bool
) -> None:
    """vLLM lets the model write the arguments alone, and lists no name; LlamaIndex demands a call of its only tool."""
    arguments = [Piece('{"city": "', 0.999, "nowhere"), Piece("Paris", 0.9, "nowhere"), Piece('"}', 0.999, "nowhere")]
    server.says[SMALL] = Says(call(0.2, 0.9) if named else arguments, [PARIS], "stop")
    asking = client(server.url, Setting(tools=True, forced=True))
    for way in client.ways:
        check(await asking.record(way), 0.9, where=way)


# ---------------------------------------------------------------------- refusals


def refusal(status: int, message: str, **more: Any) -> HTTPResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None} | more
    return _json({"error": error}, status)


@over(client=CLIENTS, stream_way=[2, 3])
async def test_a_refused_agent_turn_changes_no_later_question(
    server: Server, client: type[Client], stream_way: int
) -> None:
    """llama.cpp tells no log-probabilities of streamed tool calls; forty plain questions are judged as before."""

    def refuses(body: dict[str, Any]) -> HTTPResponse | None:
        told = body.get("logprobs") and body.get("tools") and body.get("stream")
        return refusal(400, "logprobs is not supported with tools + stream") if told else None

    server.refuses = refuses
    server.says[SMALL] = Says([*call(0.95, 0.9)], [PARIS], "tool_calls")
    asking = client(server.url, Setting(tools=True))
    for way in (client.ways[stream_way], *client.ways):
        check(await asking.record(way), mean(0.95, 0.9), where=way)
    server.says[SMALL] = Says(SURE)
    plain = client(server.url)
    if client is Core:
        plain.made = asking.made
    elif issubclass(client, LangChain):
        plain.made = asking.made.bound
    else:
        plain.made = asking.made
    for number in range(40):
        way = client.ways[number % 4]
        check(await plain.record(way), HIGH, where=way)


@over(
    client=CLIENTS,
    status=[400, 403, 422, 500, 501],
    message=["logprobs are not supported", "Extra inputs are not permitted"],
    times=[1, 1000],
)
async def test_a_refusal_of_log_probabilities_is_an_answer_without(
    server: Server, client: type[Client], status: int, message: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named or not; if it came once, it is forgotten."""
    refused = 0

    def refuses(body: dict[str, Any]) -> HTTPResponse | None:
        nonlocal refused
        if not body.get("logprobs") or refused >= times:
            return None
        refused += 1
        return refusal(status, message)

    server.refuses, server.says[SMALL] = refuses, Says(SURE)
    named = "logprobs" in message
    means_it = named or status in (400, 422, 501)
    asking = client(server.url)
    for number, way in enumerate(client.ways * 2):
        before = refused
        record = await asking.record(way)
        if not means_it and refused > before:
            assert record.attempts[0].decision == "fail"
        elif times == 1000 or refused > before or (named and number == 1):
            check(record, f"refuses log-probabilities.*{status}", where=way)
        else:
            check(record, HIGH, where=way)
        if times == 1 and number == 1:
            monkeypatch.setattr(calls, "_FORGOTTEN_S", -1.0)
    if times == 1000 and means_it:  # of each kind, not asked for again
        assert refused <= 4


@over(client=CLIENTS, aggregate=["mean", "min"])
async def test_a_refusal_may_come_in_the_stream(server: Server, client: type[Client], aggregate: Any) -> None:
    """With status 200, as SGLang and gateways send it; then the draft comes whole."""

    def refuses(body: dict[str, Any]) -> HTTPResponse | None:
        if not (body.get("stream") and body.get("logprobs")):
            return None
        error = {"error": {"message": "logprobs is not supported with stream", "type": "BadRequestError", "code": 400}}
        return HTTPResponse(f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    server.refuses, server.says[SMALL] = refuses, Says(SURE)
    asking = client(server.url, Setting([TokenProbability(aggregate=aggregate)]))
    for way in client.ways * 2:
        check(await asking.record(way), HIGH if aggregate == "mean" else 0.98, where=way)


def test_who_asks_makes_no_kind_of_call(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A server that refuses is not asked in vain for each user anew, and it is said once."""
    refused: list[Any] = []

    def refuses(body: dict[str, Any]) -> HTTPResponse | None:
        if not body.get("logprobs"):
            return None
        refused.append(body)
        return refusal(400, "no logprobs")

    server.refuses, server.says[SMALL] = refuses, Says(SURE)
    cascade = Core(server.url).made
    for number in range(20):
        check(cascade.run(QUESTION, options={"user": f"u{number}", "seed": number}).record, "refuses log-prob")
    assert len(refused) == 1
    assert sum("refuses logprobs" in message for message in caplog.messages) == 1


# ---------------------------------------------------------------------- structured output


class Trip(BaseModel):
    city: str
    days: int
    river: str


def trip(compact: bool, p: float = 0.3, at: At = "content") -> list[Piece]:
    sure = 0.999
    gap, colon = ("", ":") if compact else ("\n  ", ": ")
    values = [("city", '"', "Lyon"), ("days", "", "3"), ("river", '"', "Rhone")]
    pieces = [Piece("{", sure, at)]
    for i, (key, quote, value) in enumerate(values):
        pieces += [Piece(("," if i else "") + gap, sure, at)] if i or gap else []
        pieces += [Piece('"', sure, at), Piece(key, sure, at), Piece(f'"{colon}{quote}', sure, at), Piece(value, p, at)]
        pieces += [Piece(quote, sure, at)] if quote else []
    return [*pieces, Piece("}" if compact else "\n}", sure, at)]


TRIP = OutputSchema("Trip", Trip.model_json_schema())


@pytest.mark.parametrize(
    "told",
    [
        ['{"a": ', ('""', 0.3), ', "b": ', ("[]", 0.3), ', "c": "', ("x", 0.3), '"}'],
        ['{"a": ', ('""', 0.3), "}"],
        ['{"": "', ("x", 0.3), '"}'],
        ['{"a": {"b": ', ("{}", 0.3), "}}"],
        ["[", ("-1.5e3", 0.3), ", ", ("null", 0.3), "]"],
        [("{}", 0.3)],
        ['{"say": "', ('\\"no\\"', 0.3), '", "a:b": "', (": ", 0.3), '"}'],
    ],
    ids=repr,
)
async def test_what_is_empty_is_a_value_too(server: Server, told: Sequence[Any]) -> None:
    """A key, a brace or a comma is none; where there is nothing else, all of it is judged."""
    server.says[SMALL] = Says([Piece(*each) if isinstance(each, tuple) else Piece(each, 0.999) for each in told])
    record = Core(server.url).made.run(QUESTION, output=OutputSchema("any", {})).record
    check(record, 0.3)


@over(
    p=[0.3, 0.95],
    compact=[True, False],
    thinks=[None, "reasoning_content", "content"],
    method=["function_calling", "json_schema", "json_mode"],
)
async def test_an_object_has_one_score_by_every_method(
    server: Server, method: str, compact: bool, p: float, thinks: Any
) -> None:
    """That of its values, however it is asked for and written; a rehearsal in thoughts does not count."""
    thoughts = [Piece("so ", 0.999, "reasoning_content"), *trip(compact, 0.999, "reasoning_content")]
    if thinks == "content":
        thoughts = [Piece("<think>"), *trip(compact, 0.999), Piece("</think>")]
    at: At = "nowhere" if method == "function_calling" else "content"
    pieces = ([] if thinks is None else thoughts) + trip(compact, p, at)
    written = "".join(piece.text for piece in trip(compact))
    calls = [("Trip", written)] if method == "function_calling" else []
    server.says[SMALL] = server.says[LARGE] = Says(pieces, calls)
    llm = LangChain(server.url).made.with_structured_output(Trip, method=method)
    if thinks == "content" and method != "function_calling":
        pytest.skip("LangChain's parsers do not take thoughts out of a text")
    for way in LangChain.ways:
        with trace() as traced:
            answer = await _drained(getattr(llm, way)("Plan it as JSON"))
        assert (answer[-1] if isinstance(answer, list) else answer) == Trip(city="Lyon", days=3, river="Rhone")
        check(traced.records[-1], p, where=way)


@pytest.mark.parametrize("p", [0.3, 0.95])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("thinks", [False, True])
async def test_an_object_of_the_core_has_that_score_too(server: Server, compact: bool, p: float, thinks: bool) -> None:
    """Thoughts before it or not."""
    thoughts = [Piece("<think>"), *trip(compact, 0.999), Piece("</think>\n\n")] if thinks else []
    server.says[SMALL] = Says([*thoughts, *trip(compact, p)])
    cascade = Core(server.url).made
    for way in Core.ways:
        with trace() as traced:
            await _drained(getattr(cascade, way)(QUESTION, output=TRIP))
        check(traced.records[-1], p, where=way)


@pytest.mark.parametrize("p", [0.3, 0.95])
@pytest.mark.parametrize("client", [LlamaIndex, OpenAILike])
@pytest.mark.parametrize("by", ["structured output", "function calling"])
async def test_an_object_of_llama_index_has_that_score_too(
    server: Server, client: type[LlamaIndex], p: float, by: str
) -> None:
    """By structured output where the LLM knows it, else by a call."""
    pieces = trip(True, p, "content" if by == "structured output" else "nowhere")
    calls = [("Trip", "".join(piece.text for piece in pieces))] if by == "function calling" else []
    server.says[SMALL] = server.says[LARGE] = Says(pieces, calls)

    class Asking(client):  # type: ignore[misc, valid-type]
        def llm(self, model: str) -> Any:
            llm = super().llm(model)
            if client is OpenAILike:
                llm.should_use_structured_outputs = by == "structured output"
            return llm

    llm = Asking(server.url).made
    if client is LlamaIndex and by == "function calling":
        pytest.skip("OpenAI gives objects by structured output")
    for way in ("structured_predict", "astructured_predict"):
        with trace() as traced:
            answer = await _drained(getattr(llm, way)(Trip, PromptTemplate("Plan it.")))
        assert answer == Trip(city="Lyon", days=3, river="Rhone")
        check(traced.records[-1], p, where=way)


# ---------------------------------------------------------------------- what is no log-probability, and what is


def zero(text: str, *alternatives: tuple[str, float], at: At = "content") -> Piece:
    return Piece(text, 1.0, at, alternatives)


FAKE = {
    "alone": [zero("Ly"), zero("on")],
    "beside nothing": [zero("Ly", ("other", -9999.0)), zero("on", ("other", -9999.0))],
    "beside itself and nothing": [zero("Ly", ("Ly", 0.0), ("x", -9999.0)), zero("on", ("on", 0.0), ("x", -9999.0))],
}


@over(client=CLIENTS, thinks=[False, True], name=list(FAKE))
async def test_zeros_of_a_server_that_tells_nothing_escalate(
    server: Server, client: type[Client], name: str, thinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek V3.2's are exactly 0, each alone."""
    if name == "alone":
        entry = Piece.entry.fget  # type: ignore[attr-defined]
        monkeypatch.setattr(Piece, "entry", property(lambda piece: entry(piece) | {"top_logprobs": []}))
    thoughts = [Piece(each.text, 1.0, "reasoning_content", each.alternatives) for each in FAKE[name] * 4]
    server.says[SMALL] = Says([*(thoughts if thinks else []), *FAKE[name]], apart=thinks)
    asking = client(server.url)
    for way in client.ways:
        check(await asking.record(way), "exactly 0", where=way)


@every_client
async def test_honest_zeros_are_kept(server: Server, client: type[Client]) -> None:
    """gpt-4o-mini tells 0.0, and -16.75 of the next."""
    server.says[SMALL] = Says([zero("Ly", ("Ly", 0.0), ("B", -16.75)), zero("on", ("on", 0.0), ("B", -20.0))])
    asking = client(server.url)
    for way in client.ways:
        check(await asking.record(way), 1.0, where=way)


# ---------------------------------------------------------------------- labels

AB = (("A", math.log(0.05)), ("B", math.log(0.9)))
LABELS: dict[str, tuple[list[Piece], float | str]] = {
    "sampled A": ([Piece("A", 0.05, alternatives=AB)], 0.05),
    "said B": ([Piece("B", 0.9, alternatives=AB)], 0.9),
    "said (B)": ([Piece("(", 0.99, alternatives=(("(", -0.01),)), Piece("B", 0.9, alternatives=AB)], 0.9),
    "a good question": (
        [Piece("A", 0.95, alternatives=(("A", math.log(0.95)),)), *words(" good question, I do not know", 0.9)],
        "no letter can be read",
    ),
    "none": ([Piece("Maybe", 0.5, alternatives=AB), *words(" Lyon", 0.9)], "no letter can be read"),
}


@over(client=CLIENTS, thinks=["", "reasoning_content", "content"], finish=["stop", "length"], name=list(LABELS))
async def test_a_label_is_judged_that_the_answer_gives(
    server: Server, client: type[Client], name: str, thinks: Any, finish: str
) -> None:
    """Not the most probable one, and not a word that begins like one."""
    pieces, expected = LABELS[name]
    thoughts = {"": [], "reasoning_content": [*apart("reasoning_content"), *MARK], "content": marked()}[thinks]
    server.says[SMALL] = Says([*thoughts, *pieces], finish=finish)
    asking = client(server.url, Setting([TokenProbability("AB")], options={"max_tokens": 30}))
    cut = finish == "length" and not name.startswith(("sampled", "said"))
    for way in client.ways:
        record = await asking.record(way)
        if cut:
            assert record.answered_by == LARGE
        else:
            check(record, expected, where=way)


# ---------------------------------------------------------------------- cut off, filtered


@over(client=CLIENTS, aggregate=["mean", "min"], finish=["length", "content_filter"])
async def test_a_draft_that_was_cut_off_goes_on(
    server: Server, client: type[Client], finish: str, aggregate: Any
) -> None:
    """In every way; kept where that is wanted, unless it was filtered."""
    server.says[SMALL] = Says(words("Lyon lies on the", 0.99), finish=finish)
    reason = {"length": "cut off at its most tokens", "content_filter": "filtered"}[finish]
    for on_cut in ("escalate", "keep"):
        asking = client(server.url, Setting([TokenProbability(aggregate=aggregate)], on_cut=on_cut))
        for way in client.ways:
            record = await asking.record(way)
            if on_cut == "keep" and finish == "length":
                check(record, 0.99, where=way)
            else:
                check(record, reason, where=way)


@every_client
@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
async def test_what_was_shown_is_not_withdrawn(server: Server, client: type[Client], finish: str) -> None:
    """A stage that is judged before it answers streams at once; no other model's answer follows, however it ends."""
    server.says[SMALL] = Says(words("Lyon lies on the", 0.99), finish=finish)
    asking = client(server.url, Setting([Sure()], threshold=0.5))
    for way in client.ways:
        assert shown(await asking.ask(way)) == "Lyon lies on the", way
    server.says[SMALL] = Says([], finish=finish)
    for way in client.ways:
        assert shown(await asking.ask(way)) == "the large one", way


class Sure(RetrievalScore):
    """Judges before the answer, and is sure."""

    def score(self, evidence: Evidence) -> Measurement:
        return Measurement(1.0)


def shown(answered: Any) -> str:
    """What the user has seen, of a stream all of it."""
    if not isinstance(answered, list):
        return str(getattr(answered, "text", None) or getattr(getattr(answered, "message", None), "content", ""))
    if hasattr(answered[-1], "delta"):
        return "".join(each.delta or "" for each in answered)
    if hasattr(answered[-1], "record"):
        answered = answered[:-1]
    return "".join(each.text for each in answered)


# ---------------------------------------------------------------------- llama.cpp's own server

# the bundled models' template with thoughts in it, by which the server knows that the model may think
THINKING = (
    (WEIGHTS / "small" / "chat_template.jinja")
    .read_text()
    .replace(
        "{{ ' ' + m.content | default('', true) | trim }}",
        "{% set said = m.content | default('', true) %}"
        "{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
        "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
        "{{ ' ' + said | trim }}",
    )
)
GRAMMAR = 'root ::= "<think>" [a-z ]{20,60} "</think>" " " [A-Z] [a-z]{2,8}'


@every_client
async def test_thoughts_on_a_real_server(served: Callable[..., str], client: type[Client]) -> None:
    """It lists them with the answer, in a stream fewer of them; the score is the answer's alone."""
    import openai

    url = served("small", THINKING)
    options = {"temperature": 0, "max_tokens": 80, "extra_body": {"grammar": GRAMMAR}}
    messages: Any = [{"role": "user", "content": QUESTION}]
    direct: Any = openai.OpenAI(base_url=url, api_key="none")
    given: Any = options | {"logprobs": True, "top_logprobs": 1}
    (choice,) = direct.chat.completions.create(model=SMALL, messages=messages, **given).choices
    assert choice.message.reasoning_content
    answer: list[float] = []
    spelled = ""
    for token in reversed(choice.logprobs.content):
        if spelled.strip() == choice.message.content.strip():
            break
        spelled = token.token + spelled
        answer += [token.logprob] if token.bytes else []
    assert spelled.strip() == choice.message.content.strip()
    expected = math.exp(math.fsum(answer) / len(answer))

    asking = client(url, Setting(options=options))
    for way in client.ways:
        small = (await asking.record(way)).attempts[0]
        assert small.scores["p_t"].value == pytest.approx(expected, rel=0.01), f"{way}: {small.reason}"
