"""What LlamaIndex asks in words and parses afterwards goes to the next LLM where it cannot be parsed."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import checking
from confcascade.testing import ScriptedModel
from llama_index.core import PromptTemplate
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import Response
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.evaluation import CorrectnessEvaluator
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.query_engine import CustomQueryEngine, RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from llamaindex_confcascade import ConfidenceCascadeLLM


class Joke(BaseModel):
    setup: str
    stars: int


class Says(CustomQueryEngine):
    text: str

    def custom_query(self, query_str: str) -> str:
        return self.text


def cascade(draft: str, answer: str) -> ConfidenceCascadeLLM:
    """Whatever is asked, the small model is sure of `draft`, and the large one says `answer`."""
    models = [ScriptedModel("small", lambda _: (draft, 0.99)), ScriptedModel("large", lambda _: answer)]
    return ConfidenceCascadeLLM(models=models, threshold=0.9)


def engine(name: str) -> QueryEngineTool:
    built: BaseQueryEngine = Says(text=name)
    return QueryEngineTool.from_defaults(built, name=name, description=name)


@pytest.mark.parametrize("draft", ["the second", "```json\n[]\n```", '[{"choice": "two"}]'])
async def test_a_router_finds_its_way(draft: str) -> None:
    """`predict` with an output parser, whole texts that parse but choose nothing included."""
    llm = cascade(draft, '[{"choice": 2, "reason": "it is"}]')
    router = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [engine("first"), engine("second")], llm=llm)

    answers: list[Any] = [router.query("which?"), await router.aquery("which?")]

    assert [str(answer) for answer in answers] == ["second", "second"]


async def test_a_prompt_without_a_parser_is_asked_as_ever() -> None:
    llm = cascade("anything", "else")

    assert llm.predict(PromptTemplate("q")) == await llm.apredict(PromptTemplate("q")) == "anything"


def test_programs_and_evaluators_that_parse_themselves_are_asked_in_a_block() -> None:
    """They call `chat`, so the cascade cannot know: `checking` tells it."""
    good = '{"setup": "Why?", "stars": 5}'
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(output_cls=Joke), prompt_template_str="q", llm=cascade("{}", good)
    )
    with checking(Joke.model_validate_json):
        assert program() == Joke(setup="Why?", stars=5)

    evaluator = CorrectnessEvaluator(llm=cascade("good", "4.0\nclose"))
    with checking(evaluator.parser_function):
        result = evaluator.evaluate(query="q", response="r", reference="s")
    assert (result.score, isinstance(Response("r"), Response)) == (4.0, True)
