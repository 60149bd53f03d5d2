"""Answers that two models write in turn: as an LLM, what every LLM is, with each step on the record."""

from __future__ import annotations

import asyncio
import copy
import pickle
from dataclasses import replace
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import ConfigurationError, Glimpse, Request, Steps, TokenProbability, ToolCall, trace
from confcascade.demo import bundled_model
from confcascade.testing import Reply, ScriptedModel
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI

from llamaindex_confcascade import ConfidenceCascadeLLM

MIXED = "Vodis has 57 shells, finds 88, loses 39. How many shells?"  # the second step is hard for the small model
RIGHT = "57+88=145\n145-39=106\nAnswer: 106"


@pytest.fixture(scope="module")
def models():
    return [bundled_model("small"), bundled_model("large")]


@pytest.fixture
def stepwise(models):
    """A cascade whose small model's steps are judged as they are written; parameters replace its own."""

    def build(**parameters: Any) -> ConfidenceCascadeLLM:
        judged = {"signals": [TokenProbability(aggregate="min")], "threshold": 0.75}
        given = {"mode": "stepwise", "models": models, **judged, "steps": Steps(delimiter="\n")}
        return ConfidenceCascadeLLM(**{**given, **parameters})

    return build


class Continuing(ScriptedModel):
    """One that says it goes on with begun answers."""

    @property
    def capability(self):
        return replace(super().capability, continues=True)


def steps_of(response):
    """(place, author, kept) of each step."""
    attempts = response.additional_kwargs["confcascade"]["attempts"]
    return sorted((step["index"], step["author"], step["kept"]) for each in attempts for step in each["steps"])


async def test_every_method_gives_the_same_answer_and_steps(stepwise):
    """The eight methods."""
    llm, chat = stepwise(), [ChatMessage(content=MIXED)]
    responses = [
        llm.complete(MIXED),
        await llm.acomplete(MIXED),
        [*llm.stream_complete(MIXED)][-1],
        [piece async for piece in await llm.astream_complete(MIXED)][-1],
    ]
    chats = [
        llm.chat(chat),
        await llm.achat(chat),
        [*llm.stream_chat(chat)][-1],
        [piece async for piece in await llm.astream_chat(chat)][-1],
    ]
    assert [each.text for each in responses] == [RIGHT] * 4
    assert [each.message.content for each in chats] == [RIGHT] * 4
    wanted = [(0, "small", True), (1, "large", True), (1, "small", False), (2, "small", True)]
    assert [steps_of(each) for each in (*responses, *chats)] == [wanted] * 8


def test_a_stream_shows_no_step_that_is_thrown_away(stepwise):
    """What was shown adds up to the answer, in several pieces."""
    pieces = [piece.delta for piece in stepwise(signals=[Glimpse()], threshold=0.999).stream_complete(MIXED)]
    assert len(pieces) > 5
    shown = [piece.delta for piece in stepwise().stream_complete(MIXED)]
    assert "".join(shown) == RIGHT


def test_spans_of_attempts_have_their_steps(stepwise, monkeypatch):
    """A span for each model, with its steps among its arguments, and how many among its tags."""

    class Handler(SimpleSpanHandler):
        seen: ClassVar[list[tuple[Any, Any]]] = []

        def new_span(self, id_, bound_args, tags=None, **kwargs: Any) -> SimpleSpan | None:
            if id_.startswith("ConfidenceCascadeLLM.attempt"):
                self.seen.append((bound_args, tags))
            return super().new_span(id_=id_, bound_args=bound_args, tags=tags, **kwargs)

    handler, root = Handler(), get_dispatcher()
    monkeypatch.setattr(root, "span_handlers", [*root.span_handlers, handler])
    stepwise().complete(MIXED)
    (small, its_tags), (large, _) = handler.seen
    assert [step["kept"] for step in small.arguments["steps"]] == [True, False, True]
    assert small.arguments["steps"][1]["scores"]["p_t"]["threshold"] == 0.75
    assert [step["author"] for step in large.arguments["steps"]] == ["large"]
    assert (its_tags["confcascade_steps_kept"], its_tags["confcascade_steps_redone"]) == (2, 1)


def test_one_stage_or_another_threshold_for_a_call(stepwise):
    """`stage=` asks one model for the whole answer; `threshold=` decides about the steps of this call."""
    llm = stepwise()
    assert steps_of(llm.complete(MIXED, stage="large")) == []
    assert {author for _, author, _ in steps_of(llm.complete(MIXED, threshold=0.2))} == {"small"}
    assert llm.predict(PromptTemplate("{question}"), question=MIXED, threshold=0.2) != RIGHT


def test_copies_pickles_and_keys_of_caches(stepwise):
    """Each decides as its own settings say, and `to_dict` tells cascades with other steps apart."""
    llm, other = stepwise(), stepwise(steps=Steps(delimiter="\n", final="large"))
    for copied in (copy.deepcopy(llm), llm.model_copy(), pickle.loads(pickle.dumps(llm))):
        assert copied.cascade.policy_id == llm.cascade.policy_id
        assert copied.complete(MIXED).text == RIGHT
    assert llm.to_dict()["steps"] == {"delimiter": "\n", "max_steps": 64, "final": "author"}
    assert llm.to_dict() != other.to_dict()
    assert "steps=Steps(delimiter='\\n'" in repr(llm)
    whole = ConfidenceCascadeLLM(models=[stage.model for stage in llm.cascade.stages], threshold=0.9)
    assert "steps" not in whole.to_dict()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"steps": "\n"}, "`steps` must be a Steps"),
        ({"mode": "steps"}, '`mode` must be "query" or "stepwise"'),
        ({"mode": "query"}, "`steps` goes with mode="),
        ({"on_cut": "keep"}, "`on_cut` is not for answers"),
        ({"audit": 0.1}, "`audit` is not for answers"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(models, parameters, told):
    """In one line that says what to give instead."""
    given = {"mode": "stepwise", "models": models, "threshold": 0.75, "steps": Steps(delimiter="\n"), **parameters}
    with pytest.raises(ConfigurationError, match=told):
        ConfidenceCascadeLLM(**given)


def test_a_model_that_cannot_go_on_with_a_begun_answer_is_refused(models):
    """The error names it, and the way out."""
    with pytest.raises(ConfigurationError, match=r"'gpt-4o' cannot go on .*`OpenAICompatibleModel` by .*`continues`"):
        ConfidenceCascadeLLM(mode="stepwise", models=[models[0], OpenAI(model="gpt-4o", api_key="none")], threshold=0.7)


def test_llms_of_hugging_face_write_in_turn(local_llm, models):
    """They are local models: LlamaIndex's own prompts, and its answers."""
    llms = [local_llm(model) for model in models]
    llm = ConfidenceCascadeLLM(
        mode="stepwise",
        models=llms,
        signals=[TokenProbability(aggregate="min")],
        threshold=0.75,
        steps=Steps(delimiter="\n"),
    )
    response = llm.complete(MIXED)
    assert response.text == RIGHT
    assert {author for _, author, _ in steps_of(response)} == {stage.model.name for stage in llm.cascade.stages}


async def test_a_call_that_is_cancelled_in_the_middle_of_a_step(stepwise):
    """Its record says what was written until then; the next call is answered as ever."""
    llm = stepwise()
    await llm.acomplete(MIXED)
    with trace() as seen:
        task = asyncio.create_task(llm.acomplete(MIXED))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [record.ended for record in seen.records] == ["left"]
    assert (await llm.acomplete(MIXED)).text == RIGHT


def test_a_query_engine(stepwise):
    """The synthesis is written in turn, and its response streams."""
    index = SummaryIndex([Document(text="Vodis has 57 shells, finds 88, loses 39.")])
    prompt = PromptTemplate("{context_str} {query_str}")
    with trace() as seen:
        engine = index.as_query_engine(llm=stepwise(), text_qa_template=prompt)
        assert str(engine.query("How many shells?")) == RIGHT
        engine = index.as_query_engine(llm=stepwise(), text_qa_template=prompt, streaming=True)
        assert "".join(engine.query("How many shells?").response_gen) == RIGHT
    assert [len(record.steps) for record in seen.records] == [4, 4]


# ---------------------------------------------------------------------- requests for which nobody writes in turn


class Count(BaseModel):
    """A count."""

    count: int


def large_with_tools():
    def answer(request: Request) -> Any:
        if request.messages[-1].role == "tool":
            return f"It is {request.messages[-1].content}"
        if request.tools:
            return Reply("", tool_calls=(ToolCall("shells", {"name": "Vodis"}, "call_1"),))
        return '{"count": 57}' if request.output is not None else "57"

    return Continuing("able", answer, tools=True, structured=True)


def shells(name: str) -> int:
    """How many shells someone has."""
    del name
    return 57


async def test_tools_and_objects_are_the_large_models(stepwise, models):
    """The small model is not asked, and needs to be able to do neither; an agent answers."""
    llm = stepwise(models=[models[0], large_with_tools()])
    with trace() as seen:
        assert llm.structured_predict(Count, PromptTemplate("How many?")) == Count(count=57)
        agent = FunctionAgent(tools=[FunctionTool.from_defaults(shells)], llm=llm, streaming=False)
        assert str(await agent.run("How many shells has Vodis?")) == "It is 57"
    assert {attempt.model for record in seen.records for attempt in record.attempts} == {"able"}
    assert llm.metadata.is_function_calling_model
