"""Structured output through the cascade: asked of each LLM in its own way, judged before it is kept."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from confcascade import CascadeExhaustedError, OpenAICompatibleModel, Request, trace
from confcascade.testing import Reply, ScriptedModel
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import BaseModel, ValidationError, field_validator
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.openai import OpenAI
from openai import BadRequestError
from pydantic import Field

from llamaindex_confcascade import ConfidenceCascadeLLM


class Joke(BaseModel):
    """A joke."""

    setup: str
    stars: int = 3

    @field_validator("stars")
    @classmethod
    def rated(cls, stars: int) -> int:
        if stars > 5:
            raise ValueError(f"{stars} are too many stars")
        return stars


GOOD, BAD, BROKEN = '{"setup": "Why?", "stars": 4}', '{"setup": "Why?", "stars": "x"}', '{"stars": 4, "set'
RATED = '{"setup": "Why?", "stars": 9}'
JOKE = Joke(setup="Why?", stars=4)


@pytest.fixture
def prompt() -> PromptTemplate:
    """One for each test: LlamaIndex's text programs leave their parser on the prompt that they are given."""
    return PromptTemplate("Tell me a joke about {topic}.")


class Plain(OpenAI):
    """One that calls no tools: it is asked in words."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, is_chat_model=True, is_function_calling_model=False)

    def _should_use_structure_outputs(self) -> bool:
        return False


class Formatted(OpenAI):
    """A class with a way of its own, as Ollama's."""

    def structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **args: Any) -> Any:
        response = self.chat(prompt.format_messages(**args), format="json", **(llm_kwargs or {}))
        return output_cls.model_validate_json(response.message.content or "")

    async def astructured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **args: Any) -> Any:
        response = await self.achat(prompt.format_messages(**args), format="json", **(llm_kwargs or {}))
        return output_cls.model_validate_json(response.message.content or "")

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        assert kwargs.pop("format") == "json"
        return super().chat(messages, **kwargs)

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        assert kwargs.pop("format") == "json"
        return await super().achat(messages, **kwargs)


KINDS = ["JSON Schema", "a tool", "words", "a way of its own", "core model, JSON Schema", "core model, words"]


@pytest.fixture
def stage(openai_server, said):
    """A model that is asked for structured output in this way, and answers so."""

    def make(kind: str, name: str, text: str, p: float = 0.99) -> Any:
        model = {"small": "gpt-4o-mini", "large": "gpt-4o"}[name]
        match kind:
            case "JSON Schema":
                return openai_server.llm(model, said(text, p=p))
            case "a tool":
                model = {"small": "gpt-3.5-turbo", "large": "gpt-4-turbo"}[name]
                return openai_server.llm(model, said(calls=[("Joke", text)], p=p))
            case "words":
                return openai_server.llm(model, said(f"Here it is:\n{text}", p=p), cls=Plain)
            case "a way of its own":
                return openai_server.llm(model, said(text, p=p), cls=Formatted)
            case "core model, JSON Schema":
                openai_server.scripts[name] = said(text, p=p)
                return OpenAICompatibleModel(name, base_url=openai_server.url, api_key="none")
        return ScriptedModel(name, lambda _: Reply(f"```json\n{text}\n```", p))

    return make


def cascade(*models: Any, threshold: Any = 0.9, **parameters: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=list(models), threshold=threshold, **parameters)


async def every_way(llm: ConfidenceCascadeLLM, prompt: PromptTemplate, cls: type[BaseModel] = Joke) -> list[Any]:
    structured = llm.as_structured_llm(cls)
    question = [ChatMessage(content="Tell me a joke about cats.")]
    streamed = list(llm.stream_structured_predict(cls, prompt, topic="cats"))
    astream = await llm.astream_structured_predict(cls, prompt, topic="cats")
    return [
        llm.structured_predict(cls, prompt, topic="cats"),
        await llm.astructured_predict(cls, prompt, topic="cats"),
        streamed[-1],
        [item async for item in astream][-1],
        structured.chat(question).raw,
        (await structured.achat(question)).raw,
        list(structured.stream_chat(question))[-1].raw,
    ]


# ---------------------------------------------------------------------- decisions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("draft", "says"),
    [(GOOD, None), (BAD, "'stars'"), (BROKEN, "structured output|tool call"), (RATED, "validate|cannot be read")],
)
async def test_output_that_does_not_validate_escalates(stage, kind, draft, says, prompt):
    """Also where only the class's own validator knows; and the record says why, but not what was said."""
    llm = cascade(stage(kind, "small", draft), stage(kind, "large", GOOD))

    with trace() as t:
        answers = await every_way(llm, prompt)

    assert answers == [JOKE] * 7
    assert [record.stage for record in t.records] == [0 if says is None else 1] * 7
    for record in t.records:
        assert all(word not in str(record) for word in ("Why", "too many"))
        if says is not None:
            assert re.search(says, record.attempts[0].reason), record.attempts[0].reason


@pytest.mark.parametrize("kind", KINDS)
async def test_a_doubtful_draft_escalates_however_well_it_validates(stage, kind, prompt):
    llm = cascade(stage(kind, "small", '{"setup": "Who?"}', p=0.4), stage(kind, "large", GOOD))

    with trace() as t:
        assert await every_way(llm, prompt) == [JOKE] * 7

    for record in t.records:
        assert record.attempts[0].reason == "p_t 0.4 < 0.9"
        assert record.attempts[0].usage.output_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
async def test_the_last_stage_fails_as_it_would_alone(stage, kind, prompt):
    large = stage(kind, "large", RATED)
    llm = cascade(stage(kind, "small", BAD), large)

    if isinstance(large, OpenAI):
        with pytest.raises(Exception) as alone:  # noqa: PT011 - whatever it is
            large.structured_predict(Joke, prompt, topic="cats")
    else:
        with pytest.raises(ValidationError) as alone:
            PydanticOutputParser(Joke).parse(RATED)
    with pytest.raises(type(alone.value)) as caught:
        llm.structured_predict(Joke, prompt, topic="cats")
    with pytest.raises(type(alone.value)):
        await llm.astructured_predict(Joke, prompt, topic="cats")

    assert str(caught.value) == str(alone.value)


def test_a_model_that_fails_is_passed_over_and_the_last_raises(openai_server, said, prompt):
    broken = openai_server.llm("gpt-4o-mini", said(error=ConnectionError("no route")))

    assert cascade(broken, openai_server.llm("gpt-4o", GOOD)).structured_predict(Joke, prompt, topic="x") == JOKE
    with pytest.raises(BadRequestError, match="no route"):
        cascade(broken, threshold=None).structured_predict(Joke, prompt, topic="x")


def test_an_unusable_draft_never_comes_back(openai_server, said, prompt):
    llm = cascade(
        openai_server.llm("gpt-4o-mini", BAD),
        openai_server.llm("gpt-4o", said(error=ConnectionError("down"))),
        on_exhausted="best",
    )

    with pytest.raises(CascadeExhaustedError, match="no earlier stage"):
        llm.structured_predict(Joke, prompt, topic="x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_doubtful_object_comes_back_where_the_last_stage_fails(stage, openai_server, said, prompt, kind):
    down = openai_server.llm("gpt-4o", said(error=ConnectionError("down")))
    llm = cascade(stage(kind, "small", GOOD, p=0.4), down, on_exhausted="best")

    with trace() as t:
        assert llm.structured_predict(Joke, prompt, topic="cats") == JOKE

    assert [record.degraded for record in t.records] == [True]


# ---------------------------------------------------------------------- what a stage is given


def test_each_stage_is_asked_its_own_way(stage, openai_server, prompt):
    """With log-probabilities all the same, and with what the call brings."""
    kinds = ["JSON Schema", "a tool", "core model, JSON Schema", "core model, words", "words"]
    names = ["small", "small", "small", "small", "large"]
    models = [stage(kind, name, GOOD) for kind, name in zip(kinds, names, strict=True)]
    before = [model.model_dump() for model in models if isinstance(model, OpenAI)]
    llm = cascade(*models, threshold="never", system_prompt="Be brief.")

    assert llm.structured_predict(Joke, prompt, llm_kwargs={"max_tokens": 90}, topic="cats") == JOKE

    by_schema, by_tool, core, in_words = openai_server.bodies
    assert by_schema["response_format"]["json_schema"]["name"] == "Joke"
    assert by_tool["tools"][0]["function"]["name"] == "Joke"
    assert (by_tool["tool_choice"], "response_format" in by_tool) == ("required", False)
    assert core["response_format"]["json_schema"]["schema"]["title"] == "Joke"
    assert "schema" in str(in_words["messages"])
    assert {"response_format", "tools"}.isdisjoint(in_words)
    (request,) = [ask.request for ask in models[3].calls[0]]
    assert request.messages[-1].content.startswith("Tell me a joke about cats.\n\nHere's a JSON schema to follow")
    for body in openai_server.bodies:
        assert body["max_tokens"] == 90
        assert body["messages"][0] == {"role": "system", "content": body["messages"][0]["content"]}
        assert body["messages"][0]["content"].startswith("Be brief.")
        assert body.get("logprobs", False) is (body is not in_words)
    assert [model.model_dump() for model in models if isinstance(model, OpenAI)] == before


def test_a_stages_client_is_shared_and_its_settings_are_those_of_the_moment(openai_server, prompt):
    """`structured_predict` runs over the LLM as it is, not over a copy from when the cascade was built."""
    small = openai_server.llm("gpt-4o-mini", GOOD)
    llm = cascade(small, openai_server.llm("gpt-4o", GOOD))
    llm.complete("hello")
    client = small._client

    small.temperature = 0.7
    llm.structured_predict(Joke, prompt, topic="cats")

    assert client is not None
    assert small._client is client
    assert openai_server.bodies[-1]["temperature"] == 0.7
    assert "chat" not in small.__dict__


def test_braces_in_messages_are_no_variables(openai_server):
    llm = cascade(openai_server.llm("gpt-4o", GOOD), threshold=None)
    messages = [ChatMessage(content="A joke about {cats} and {{dogs}}.")]

    llm.as_structured_llm(Joke).chat(messages)

    assert openai_server.bodies[0]["messages"][0]["content"] == "A joke about {cats} and {{dogs}}."


@pytest.mark.parametrize(
    ("mode", "key"), [(PydanticProgramMode.FUNCTION, "tools"), (PydanticProgramMode.DEFAULT, "response_format")]
)
def test_the_cascades_program_mode_holds_for_its_stages(openai_server, said, mode, key, prompt):
    script = said(calls=[("Joke", GOOD)]) if key == "tools" else GOOD
    llm = cascade(openai_server.llm("gpt-4o", script), threshold=None, pydantic_program_mode=mode)

    assert llm.structured_predict(Joke, prompt, topic="cats") == JOKE
    assert key in openai_server.bodies[0]


def test_a_cascade_can_be_a_stage(stage, prompt):
    inner = cascade(stage("a tool", "small", GOOD), stage("a tool", "large", GOOD))
    llm = cascade(inner, ScriptedModel("third", lambda _: Reply('{"setup": "Who?"}')))

    with trace() as t:
        assert llm.structured_predict(Joke, prompt, topic="cats") == JOKE

    assert [record.stage for record in t.records] == [0]  # the inner record is part of the outer


class Completing(CustomLLM):
    """Completes prompts, as `HuggingFaceLLM` and `LlamaCPP` do."""

    says: str
    prompts: list[str] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="completing", is_chat_model=False)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        content = [{"token": self.says, "logprob": -0.01, "bytes": None, "top_logprobs": []}]
        return CompletionResponse(text=self.says, raw={"choices": [{"logprobs": {"content": content}}]})

    @llm_completion_callback()
    def stream_complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def test_an_llm_that_completes_prompts_is_asked_in_words(stage, prompt):
    small, large = Completing(says=GOOD), stage("JSON Schema", "large", '{"setup": "Who?"}')

    with trace() as t:
        assert await every_way(cascade(small, large), prompt) == [JOKE] * 7

    assert {record.answered_by for record in t.records} == {"completing"}
    assert all("JSON schema to follow" in prompt for prompt in small.prompts)


class Direct(OpenAI):
    """A class that asks its client without `chat`."""

    def structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **args: Any) -> Any:
        del prompt, llm_kwargs, args
        return output_cls(setup="Why?", stars=4)


def test_a_class_that_asks_past_its_chat_can_be_last(openai_server, prompt):
    """Nothing but the object is known of its answer, so nothing can be scored."""
    direct = openai_server.llm("gpt-4o", "", cls=Direct)

    with trace() as t:
        assert cascade(direct, ScriptedModel("large", lambda _: Reply(GOOD))).structured_predict(Joke, prompt) == JOKE
        assert cascade(direct, threshold=None).structured_predict(Joke, prompt) == JOKE

    assert [record.answered_by for record in t.records] == ["large", "gpt-4o"]
    assert "no log-probabilities" in t.records[0].attempts[0].reason


# ---------------------------------------------------------------------- what is seen of it


def test_usage_counts_every_attempt_and_events_are_those_of_any_llm(stage, prompt):
    llm = cascade(stage("a tool", "small", BAD), stage("JSON Schema", "large", GOOD))
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])

    class Events(BaseEventHandler):
        seen: list[Any] = Field(default_factory=list)

        def handle(self, event: Any, **_: Any) -> None:
            self.seen.append(event)

    events, dispatcher = Events(), get_dispatcher()
    dispatcher.add_event_handler(events)
    try:
        with trace() as t:
            llm.structured_predict(Joke, prompt, topic="cats")
    finally:
        dispatcher.event_handlers.remove(events)

    (record,) = t.records
    assert counter.total_llm_token_count == record.usage.total_tokens
    kinds = [type(event).__name__ for event in events.seen]
    assert (kinds[0], kinds[-1]) == ("LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent")
    assert events.seen[-1].output == JOKE
    started = next(event for event in events.seen if type(event).__name__ == "LLMChatStartEvent")
    assert json.loads(json.dumps(started.additional_kwargs))["response_format"]["json_schema"]["name"] == "Joke"


def test_what_was_parsed_is_no_part_of_what_is_serialized(stage, prompt):
    llm = cascade(stage("JSON Schema", "small", GOOD), stage("JSON Schema", "large", GOOD))

    response = llm.chat(**llm._wanting(Joke, prompt, None, {"topic": "cats"}))

    assert response.message.role == MessageRole.ASSISTANT
    assert "_value" not in response.model_dump()
    assert response.additional_kwargs["confcascade"]["answered_by"] == "gpt-4o-mini"


def test_a_text_program_over_the_cascade_works_as_over_any_llm(prompt):
    """It asks the cascade itself in words; what does not parse is then the program's to say."""
    asked: list[Request] = []

    def script(request: Request) -> Reply:
        asked.append(request)
        return Reply(GOOD)

    llm = cascade(ScriptedModel("core", script), threshold=None)
    program = LLMTextCompletionProgram.from_defaults(PydanticOutputParser(Joke), prompt=prompt, llm=llm)

    assert program(topic="cats") == JOKE
    assert asked[0].output is None


def test_messages_of_a_chat_prompt_keep_their_roles(openai_server):
    llm = cascade(openai_server.llm("gpt-4o", GOOD), threshold=None)
    prompt = ChatPromptTemplate.from_messages([("system", "You are {who}."), ("user", "A joke!")])

    llm.structured_predict(Joke, prompt, who="funny")

    roles = [(message["role"], message["content"]) for message in openai_server.bodies[0]["messages"]]
    assert roles == [("system", "You are funny."), ("user", "A joke!")]


def test_as_structured_llm_is_llama_indexs_own(stage):
    llm = cascade(stage("JSON Schema", "small", GOOD), stage("JSON Schema", "large", GOOD)).as_structured_llm(Joke)

    assert isinstance(llm, StructuredLLM)
    assert json.loads(llm.complete("Tell me a joke.").text) == {"setup": "Why?", "stars": 4}


class Shelf(BaseRetriever):
    """Finds the same node for everything."""

    def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
        del query_bundle
        return [NodeWithScore(node=TextNode(text="Cats are funny."), score=1.0)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_query_engine_gives_objects(stage, kind):
    llm = cascade(stage(kind, "small", BAD), stage(kind, "large", GOOD))
    engines = [
        RetrieverQueryEngine.from_args(Shelf(), llm=llm, output_cls=Joke),
        RetrieverQueryEngine.from_args(Shelf(), llm=llm.as_structured_llm(Joke)),
    ]

    with trace() as t:
        for engine in engines:
            assert engine.query("A joke?").response == JOKE
            assert (await engine.aquery("A joke?")).response == JOKE

    assert [record.stage for record in t.records] == [1] * 4
