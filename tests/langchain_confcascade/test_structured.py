"""Structured output through the cascade: every schema, method and way to ask, judged before it is kept."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Optional, TypedDict

import pytest
from confcascade import ConfigurationError, OpenAICompatibleModel, trace
from confcascade.testing import ScriptedModel
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.v1 import BaseModel as BaseModelV1
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from langchain_confcascade import ConfidenceCascadeLLM
from langchain_confcascade.structured import Structured


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str | None = Field(default=None, description="the answer")
    stars: int = 3


class JokeV1(BaseModelV1):
    """A joke."""

    setup: str
    stars: int = 3


class JokeDict(TypedDict):
    """A joke."""

    setup: Annotated[str, ..., "the question"]
    stars: Annotated[int, ..., "how good"]


SCHEMAS = {
    "Joke": Joke,
    "JokeV1": JokeV1,
    "JokeDict": JokeDict,
    "schema": Joke.model_json_schema(),
}
GOOD, BAD, BROKEN = '{"setup": "Why?", "stars": 4}', '{"setup": "Why?", "stars": "four"}', '{"stars": 4, "set'
METHODS = ["function_calling", "json_mode", "json_schema"]


def told(said: Any, method: str, schema: Any, text: str, **kwargs: Any) -> Any:
    """What a model says that is asked by `method`."""
    if method == "function_calling":
        return said(calls=[(Structured(schema).output.name, text)], **kwargs)
    return said(text, **kwargs)


def cascade(*models: Any, threshold: Any = 0.9, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), threshold=threshold, **parameters)


class Counting(BaseCallbackHandler):
    """Counts what a user's callbacks see."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, options: Any = None, **kwargs: Any) -> None:
        self.starts.append(options)


async def four_ways(llm: Runnable[Any, Any], query: Any) -> list[Any]:
    streamed, astreamed = list(llm.stream(query)), [part async for part in llm.astream(query)]
    assert len(streamed) == len(astreamed) == 1
    return [llm.invoke(query), await llm.ainvoke(query), *streamed, *astreamed]


# ---------------------------------------------------------------------- every schema and method


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("draft", "answered_by"), [(GOOD, "small"), (BAD, "large"), (BROKEN, "large")])
async def test_output_that_does_not_validate_escalates(calling, said, schema, method, draft, answered_by):
    small = calling("small", told(said, method, schema, draft))
    large = calling("large", told(said, method, schema, GOOD))
    llm = cascade(small, large).with_structured_output(schema, method=method)

    with trace() as t:
        answers = await four_ways(llm, "Tell me a joke.")

    for answer in answers:
        kind = schema if schema in (Joke, JokeV1) else dict
        assert type(answer) is kind
        found = answer if isinstance(answer, dict) else dict(answer)
        assert (found["setup"], found["stars"]) == ("Why?", 4)
    assert [record.answered_by for record in t.records] == [answered_by] * 4
    assert all("Why" not in str(record) for record in t.records)


@pytest.mark.parametrize("method", METHODS)
def test_a_doubtful_draft_escalates_however_well_it_validates(calling, said, method):
    small = calling("small", told(said, method, Joke, GOOD, p=0.4))
    large = calling("large", told(said, method, Joke, '{"setup": "Who?"}'))

    with trace() as t:
        answer = cascade(small, large).with_structured_output(Joke, method=method).invoke("q")

    assert answer == Joke(setup="Who?")
    assert t.records[0].attempts[0].reason == "p_t 0.4 < 0.9"


def test_without_a_method_each_model_uses_its_own(calling, said):
    """The scripted ones call a function; ChatOpenAI sends a schema (see below)."""
    small = calling("small", told(said, "function_calling", Joke, GOOD))

    assert cascade(small).with_structured_output(Joke).invoke("q") == Joke(setup="Why?", stars=4)
    assert small.seen[0]["tools"][0]["function"]["name"] == "Joke"


@pytest.mark.parametrize("method", METHODS)
def test_output_that_was_cut_off_escalates(calling, said, method):
    """LangChain's JSON parser completes it, and it may even validate."""
    cut = '{"setup": "Why did the ch' if method != "function_calling" else GOOD
    small = calling("small", told(said, method, Joke, cut, cut=True))
    large = calling("large", told(said, method, Joke, GOOD))

    with trace() as t:
        answer = cascade(small, large).with_structured_output(Joke, method=method).invoke("q")

    assert answer == Joke(setup="Why?", stars=4)
    assert "cut off" in t.records[0].attempts[0].reason


def test_reasons_name_the_field_and_the_rule(calling, said):
    large = calling("large", told(said, "json_mode", Joke, GOOD))
    reasons = {}
    for schema in (Joke, JokeDict):
        for draft in (BAD, BROKEN, "{}", "no"):
            with trace() as t:
                llm = cascade(calling("small", said(draft)), large).with_structured_output(schema, method="json_mode")
                llm.invoke("q")
            reasons[schema.__name__, draft] = t.records[0].attempts[0].reason

    assert reasons["Joke", BAD] == "the structured output does not validate ('stars': int_parsing)"
    assert reasons["Joke", "{}"] == "the structured output does not validate ('setup': missing)"
    assert reasons["JokeDict", BAD] == "the structured output does not fit: 'stars' must be of type integer"
    assert reasons["JokeDict", "{}"] == "the structured output does not fit: 'setup' is missing"
    assert reasons["Joke", "no"] == "the structured output cannot be read (OutputParserException)"


# ---------------------------------------------------------------------- the last stage, and include_raw


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [BAD, BROKEN, "", "Ha."])
async def test_the_last_stage_fails_as_it_would_alone(calling, said, method, text):
    def says() -> Any:
        if method == "function_calling":
            return said(calls=[("Joke", text)]) if text.startswith("{") else said(text)
        return said(text)

    alone = calling("large", says())
    expected = alone.with_structured_output(Joke, method=method, include_raw=True).invoke("q")
    llm = cascade(calling("small", says()), calling("large", says()))

    for found in await four_ways(llm.with_structured_output(Joke, method=method, include_raw=True), "q"):
        # a stream completes what was cut off, whoever reads it
        streamed_gap = method == "function_calling" and text == BROKEN
        assert streamed_gap or type(found["parsing_error"]) is type(expected["parsing_error"])
        assert streamed_gap or found["parsed"] == expected["parsed"]
        assert found["raw"].response_metadata["confcascade"]["answered_by"] == "large"
        assert not {"parsed", "parsing_error"} & found["raw"].additional_kwargs.keys()
    plain = llm.with_structured_output(Joke, method=method)
    if expected["parsing_error"] is None:
        assert plain.invoke("q") is None
    else:
        with pytest.raises(type(expected["parsing_error"])):
            plain.invoke("q")
        if not streamed_gap:
            with pytest.raises((ValidationError, OutputParserException)):
                list(plain.stream("q"))


async def test_include_raw_gives_the_message_with_its_record(calling, said):
    model = calling("small", told(said, "function_calling", Joke, GOOD))

    for found in await four_ways(cascade(model).with_structured_output(Joke, include_raw=True), "q"):
        assert found["parsed"] == Joke(setup="Why?", stars=4)
        assert found["parsing_error"] is None
        assert type(found["raw"]) is AIMessage
        assert found["raw"].usage_metadata["input_tokens"] == 5
        assert found["raw"].response_metadata["confcascade"]["answered_by"] == "small"


def test_validators_of_the_users_own_decide_too(calling, said):
    class Short(BaseModel):
        word: str

        @field_validator("word")
        @classmethod
        def is_short(cls, word: str) -> str:
            if len(word) > 5:
                raise ValueError("too long")
            return word

    says = {name: json.dumps({"word": word}) for name, word in [("small", "elephant"), ("large", "cat")]}
    chats = [calling(name, said(text)) for name, text in says.items()]
    core = [ScriptedModel(name, {"q": text}, structured=True) for name, text in says.items()]

    for models in (chats, core):
        with trace() as t:
            found = cascade(*models).with_structured_output(Short, method="json_mode").invoke("q")
        assert found == Short(word="cat")
        reason = t.records[0].attempts[0].reason
        assert reason == "the structured output does not validate ('word': value_error)"


# ---------------------------------------------------------------------- the rest of an application


async def test_callbacks_see_one_call_with_the_schema(calling, said):
    small, large = (
        calling(name, told(said, "function_calling", Joke, text)) for name, text in [("s", BAD), ("l", GOOD)]
    )
    llm = cascade(small, large).with_structured_output(Joke)

    for call in range(4):
        counting = Counting()
        config = {"callbacks": [counting]}
        if call == 0:
            llm.invoke("q", config)
        elif call == 1:
            await llm.ainvoke("q", config)
        elif call == 2:
            list(llm.stream("q", config))
        else:
            [part async for part in llm.astream("q", config)]
        assert len(counting.starts) == 1
        assert counting.starts[0]["ls_structured_output_format"]["schema"] == convert_to_json_schema(Joke)


async def test_it_works_in_chains_batches_and_with_config(calling, said):
    model = calling("small", told(said, "function_calling", Joke, GOOD))
    llm = cascade(model).with_structured_output(Joke).with_config(tags=["mine"])
    chain = ChatPromptTemplate.from_template("{q}") | llm | RunnableLambda(lambda joke: joke.stars)

    with trace() as t:
        assert chain.invoke({"q": "x"}) == 4
        assert chain.batch([{"q": "x"}, {"q": "y"}]) == [4, 4]
        assert await chain.abatch([{"q": "x"}]) == [4]
        assert llm.with_retry().invoke("q").stars == 4
    assert len(t.records) == 5


def test_parameters_reach_each_stage(calling, said):
    """Those of the call and those bound to the stage, log-probabilities among them: a chain would have dropped them."""
    small, large = (calling(name, told(said, "json_mode", Joke, text)) for name, text in [("s", BAD), ("l", GOOD)])
    llm = cascade(small.bind(seed=1), large.bind(seed=2)).with_structured_output(Joke, method="json_mode")

    llm.invoke("q", stop=["END"], top_k=5)

    assert [(model.seen[0]["seed"], model.seen[0]["stop"], model.seen[0]["top_k"]) for model in (small, large)] == [
        (1, ["END"], 5),
        (2, ["END"], 5),
    ]
    assert small.seen[0]["logprobs"]


def test_the_cache_knows_schemas_by_what_they_ask_for(calling, said):
    def variant(kind: type) -> type[BaseModel]:
        class Answer(BaseModel):
            setup: str
            stars: kind  # type: ignore[valid-type]

        return Answer

    model = calling("small", said(GOOD))
    llm = cascade(model, cache=InMemoryCache())

    for kind in (int, int, float):
        answer = llm.with_structured_output(variant(kind), method="json_mode").invoke("q")
        assert answer.stars == 4
    assert len(model.seen) == 2


def test_nothing_of_a_draft_is_shown_by_the_model_behind_it(calling, said):
    """The cascade's own chunks, before they are parsed."""
    small, large = calling("small", said(BAD)), calling("large", said(GOOD))
    binding = cascade(small, large, threshold="always").with_structured_output(Joke, method="json_mode").first

    assert "".join(str(chunk.content) for chunk in binding.stream("q")) == GOOD


def test_stages_that_cannot_are_skipped_or_an_error(calling, said):
    large = calling("large", told(said, "function_calling", Joke, GOOD))

    with trace() as t:
        llm = cascade(FakeListChatModel(responses=["x"]), ScriptedModel("core"), large).with_structured_output(Joke)
        assert llm.invoke("q") == Joke(setup="Why?", stars=4)
    reasons = [attempt.reason for attempt in t.records[0].attempts]
    assert reasons == ["the model cannot give structured output"] * 2 + ["last stage"]
    with pytest.raises(ConfigurationError, match="cannot give structured output"):
        cascade(large, ScriptedModel("core")).with_structured_output(Joke)


def test_a_model_whose_structured_output_cannot_be_taken_apart_says_so(calling, said):
    class Odd(type(calling("x", "y"))):
        def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[Any, Any]:
            return RunnableLambda(lambda _: {"raw": None, "parsed": None, "parsing_error": None})

    large = calling("large", told(said, "function_calling", Joke, GOOD))
    odd = Odd(model="odd", script=str)

    with trace() as t:
        cascade(odd, large).with_structured_output(Joke).invoke("q")
    assert "must be a model followed by a parser" in t.records[0].attempts[0].reason
    with pytest.raises(ConfigurationError, match="must be a model followed by a parser"):
        cascade(odd).with_structured_output(Joke)


class Note(TypedDict):
    """A note."""

    text: str
    by: Optional[str]  # noqa: UP045  # as people write it
    lines: list[int] | None


@pytest.mark.parametrize("method", ["function_calling", "json_mode", "json_schema"])
@pytest.mark.parametrize(
    ("note", "stage"),
    [
        ({"text": "hi", "by": None, "lines": None}, 0),
        ({"text": "hi", "by": "ann", "lines": [1]}, 0),
        ({"text": None, "by": None, "lines": None}, 1),
        ({"text": "hi", "by": 3, "lines": None}, 1),
    ],
)
def test_null_is_usable_where_a_typed_dict_says_optional(provider, method, note, stage):
    """ChatOpenAI alone accepts it: what LangChain sends as the schema has lost the null."""
    text = json.dumps(note)
    said = {"call": ("Note", text)} if method == "function_calling" else {"text": text}
    models = [ChatOpenAI(**provider(**said).settings()) for _ in range(2)]
    llm = ConfidenceCascadeLLM(models=models, threshold="always")
    with trace() as t:
        found = llm.with_structured_output(Note, method=method).invoke("q")

    assert found == models[0].with_structured_output(Note, method=method).invoke("q") == note
    assert t.records[0].stage == stage


@pytest.mark.parametrize("text", [GOOD, BAD])
async def test_a_model_whose_structured_output_ignores_include_raw_is_a_model_and_a_parser(calling, said, text):
    """As ChatHuggingFace's is by some methods."""

    class Ignoring(type(calling("x", "y"))):
        def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
            return super().with_structured_output(schema, include_raw=False, **kwargs)

    model = Ignoring(model="ignoring", script=lambda _: said(text))
    llm = ConfidenceCascadeLLM(models=[model])

    async def asked(llm: Any, way: str, **options: Any) -> Any:
        objects = llm.with_structured_output(Joke, method="json_mode", **options)
        try:
            return await objects.ainvoke("q") if way == "ainvoke" else objects.invoke("q")
        except Exception as error:
            return type(error), str(error)

    for way in ("invoke", "ainvoke"):
        assert await asked(llm, way) == await asked(model, way)
        found = await asked(llm, way, include_raw=True)
        assert (found["parsed"] is None) == (text == BAD) == (found["parsing_error"] is not None)
        assert found["raw"].content == text


@pytest.mark.parametrize("schema", [3, None, {"no": "schema"}])
def test_what_is_no_schema_is_refused_at_once(calling, schema):
    with pytest.raises(ConfigurationError, match="must be a pydantic class") as caught:
        cascade(calling("small", "x")).with_structured_output(schema)

    assert "\n" not in str(caught.value)


def test_what_the_last_stage_refuses_is_refused_at_once(calling):
    model = ChatOpenAI(model="tiny", api_key="none")

    with pytest.raises(ValueError, match="Unrecognized method"):
        cascade(calling("small", "x"), model).with_structured_output(Joke, method="by_magic")


# ---------------------------------------------------------------------- real clients


class Server:
    """An OpenAI-compatible server that says one text; remembers what it was asked."""

    def __init__(self, server: HTTPServer, text: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.text = text
        path = f"/{uuid.uuid4().hex}/v1"
        self.url = server.url_for(path)
        server.expect_request(f"{path}/chat/completions").respond_with_handler(self.answer)

    def answer(self, request: HTTPRequest) -> HTTPResponse:
        asked = json.loads(request.data)
        self.asked.append(asked)
        envelope = {"id": "x", "created": 0, "model": "tiny"}
        if asked.get("stream"):
            return HTTPResponse(self._events(envelope), content_type="text/event-stream")
        message = {"role": "assistant", "content": self.text}
        logprobs = {"content": [{"token": self.text, "logprob": -0.01, "bytes": None, "top_logprobs": []}]}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        whole = {**envelope, "object": "chat.completion", "choices": [choice], "usage": usage}
        return HTTPResponse(json.dumps(whole), content_type="application/json")

    def _events(self, envelope: dict[str, Any]) -> Iterator[str]:
        for delta, reason in [({"role": "assistant", "content": self.text}, None), ({}, "stop")]:
            logprobs = None
            if reason is None:
                logprobs = {"content": [{"token": self.text, "logprob": -0.01, "bytes": None, "top_logprobs": []}]}
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
            yield f"data: {json.dumps({**envelope, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"


def test_the_last_real_client_fails_as_it_would_alone(httpserver):
    model = ChatOpenAI(model="tiny", base_url=Server(httpserver, BAD).url, api_key="none", max_retries=0)
    alone = model.with_structured_output(Joke)
    llm = cascade(model, model)

    for each in (alone, llm.with_structured_output(Joke)):
        with pytest.raises(ValidationError, match="valid integer"):
            each.invoke("q")
    raw = llm.with_structured_output(Joke, include_raw=True).invoke("q")
    assert (raw["parsed"], type(raw["parsing_error"])) == (None, ValidationError)


@pytest.mark.parametrize("schema", [Joke, JokeDict], ids=["Joke", "JokeDict"])
@pytest.mark.parametrize("kinds", [("langchain", "langchain"), ("core", "core"), ("core", "langchain")])
@pytest.mark.parametrize(("draft", "answered_by"), [(GOOD, 0), (BAD, 1)])
async def test_structured_output_of_real_clients(httpserver, schema, kinds, draft, answered_by):
    """Our own and ChatOpenAI, which sends a JSON Schema by itself and parses in the client."""
    servers = [Server(httpserver, draft), Server(httpserver, GOOD)]
    models = [
        OpenAICompatibleModel("tiny", base_url=server.url, api_key="none")
        if kind == "core"
        else ChatOpenAI(model="tiny", base_url=server.url, api_key="none", max_retries=0)
        for kind, server in zip(kinds, servers, strict=True)
    ]
    llm = cascade(*models).with_structured_output(schema)

    with trace() as t:
        for answer in await four_ways(llm, "q"):
            assert (answer if isinstance(answer, dict) else dict(answer))["stars"] == 4
            assert isinstance(answer, Joke if schema is Joke else dict)

    assert [record.stage for record in t.records] == [answered_by] * 4
    for record in t.records:
        for attempt in record.attempts:
            assert attempt.decision != "fail"
            assert attempt.usage.total_tokens > 0 or attempt.usage.estimated  # the stream tells none
        assert "four" not in str(record.as_dict())  # what the model said stays out of records
    for server in servers[: answered_by + 1]:
        assert server.asked[0]["response_format"]["json_schema"]["name"] == schema.__name__


# ---------------------------------------------------------------- what fails, out of a cache; a title of one's own


class Titled(BaseModel):
    """An invoice."""

    model_config = ConfigDict(title="My invoice")

    number: int


class SerializingCache(BaseCache):
    """Keeps text, as langchain-community's SQLiteCache does."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], list[str]] = {}

    def lookup(self, prompt: str, llm_string: str) -> Any:
        kept = self.kept.get((prompt, llm_string))
        return None if kept is None else [loads(each, allowed_objects="core") for each in kept]

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        self.kept[prompt, llm_string] = [dumps(each) for each in return_val]

    def clear(self, **kwargs: Any) -> None:
        self.kept.clear()


@pytest.mark.parametrize("text", [BAD, BROKEN, "no object"])
@pytest.mark.parametrize("method", ["function_calling", "json_mode"])
def test_a_failed_object_out_of_a_cache_fails_as_before(calling, said, text, method):
    """Its message is the same, too, and no serialized blob."""
    calls = [("Joke", text)] if method == "function_calling" else []
    model = calling("large", said("" if calls else text, calls))
    llm = ConfidenceCascadeLLM(models=[model], cache=SerializingCache()).with_structured_output(
        Joke, method=method, include_raw=True
    )
    first, second = llm.invoke("q"), llm.invoke("q")
    assert len(model.seen) == 1
    assert type(second["parsing_error"]) is type(first["parsing_error"])
    for name in ("content", "tool_calls", "invalid_tool_calls"):
        assert getattr(second["raw"], name) == getattr(first["raw"], name)
    assert "lc" not in second["raw"].additional_kwargs
    assert (first["parsed"], second["parsed"]) == (None, None)


def test_a_class_with_a_title_of_its_own_fails_as_any_other(httpserver):
    """In a draft it escalates, and nothing of what the model said gets into the record; in the last stage, as alone."""
    secret = '{"number": "SECRETVALUE"}'
    model = ChatOpenAI(model="tiny", base_url=Server(httpserver, secret).url, api_key="none", max_retries=0)
    llm = cascade(model, model).with_structured_output(Titled, include_raw=True)
    with trace() as t:
        found = llm.invoke("q")
    assert (found["parsed"], type(found["parsing_error"])) == (None, ValidationError)
    (record,) = t.records
    assert [attempt.decision for attempt in record.attempts] == ["escalate", "accept"]
    assert "SECRETVALUE" not in str(record.as_dict())


@pytest.mark.parametrize("include_raw", [True, False])
async def test_an_object_that_a_client_refused_is_asked_for_again(httpserver, include_raw):
    """Of its error a cache can keep only text, so the second call would fail in another way than the first."""
    server = Server(httpserver, BAD)
    model = ChatOpenAI(model="tiny", base_url=server.url, api_key="none", max_retries=0)
    llm = ConfidenceCascadeLLM(models=[model], cache=SerializingCache())
    objects = llm.with_structured_output(Joke, include_raw=include_raw)

    async def asked(how: str) -> Any:
        try:
            found = objects.invoke("q") if how == "invoke" else await objects.ainvoke("q")
        except Exception as error:
            return str(error)
        return str(found["parsing_error"]), found["raw"].content, found["parsed"]

    first = await asked("invoke")
    assert "validation error for Joke" in str(first)
    assert [await asked("invoke"), await asked("ainvoke")] == [first, first]
    assert len(server.asked) == 3


def test_caches_tell_models_of_one_name_apart():
    """By server; a cascade built again has the same key, and no key or address can be read from it."""

    def key(url: str, inner: float = 0.5) -> str:
        model = OpenAICompatibleModel("m", base_url=url, api_key="SECRETKEY")
        other = ScriptedModel("n")
        nested = ConfidenceCascadeLLM(models=[model, other], threshold=inner)
        return ConfidenceCascadeLLM(models=[nested, other], threshold="always")._get_llm_string()

    first = key("http://one/v1")
    assert first == key("http://one/v1")
    assert len({first, key("http://two/v1"), key("http://one/v1", inner=0.6)}) == 3
    assert "SECRETKEY" not in first
    assert "http" not in first


# ---------------------------------------------------------------------- asked for by a response format


BOUND = {"type": "json_schema", "json_schema": {"name": "Joke", "schema": Joke.model_json_schema()}}


@pytest.mark.parametrize(
    ("bound", "draft", "answered_by"),
    [
        (BOUND, '{"setup": "Why?", "stars": "many"}', "large"),
        (BOUND, "A joke", "large"),
        (BOUND, '{"setup": "Why?"}', "small"),
        ({"type": "json_object"}, "A joke", "large"),
        ({"type": "json_object"}, '{"any": 1}', "small"),
        ({"type": "text"}, "A joke", "small"),
    ],
)
async def test_what_does_not_fit_a_bound_response_format_escalates(bound, draft, answered_by):
    """As agents with `ProviderStrategy` bind it: nobody but the cascade looks before it is parsed."""
    small, large = ScriptedModel("small", lambda _: (draft, 0.99)), ScriptedModel("large", lambda _: '{"setup": "So."}')
    llm = ConfidenceCascadeLLM(models=[small, large], threshold=0.9).bind(response_format=bound)
    chunks = list(llm.stream("q"))
    answers = [llm.invoke("q"), await llm.ainvoke("q"), chunks[0] + chunks[1:]]

    assert {answer.response_metadata["confcascade"]["answered_by"] for answer in answers} == {answered_by}


def test_an_agent_whose_provider_structures_its_answer_gets_one():
    """`create_agent(response_format=ProviderStrategy(...))` raises where a kept answer does not fit."""
    small = ScriptedModel("small", lambda _: ('{"setup": "Why?", "stars": "many"}', 0.99), tools=True)
    large = ScriptedModel("large", lambda _: '{"setup": "So.", "stars": 5}', tools=True)
    llm = ConfidenceCascadeLLM(models=[small, large], threshold=0.9)
    agent = create_agent(llm, response_format=ProviderStrategy(Joke))

    state = agent.invoke({"messages": [HumanMessage("A joke?")]})

    assert state["structured_response"] == Joke(setup="So.", stars=5)
