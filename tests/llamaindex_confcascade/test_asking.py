"""How a cascade was asked, by a prompt template."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from confcascade import ConfigurationError
from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate, SelectorPromptTemplate

from llamaindex_confcascade import ConfidenceCascadeLLM


class Where(BaseModel):
    name: str


class Named(CustomLLM):
    """Completes; says who it is and what it was asked, as an object."""

    name: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.name)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=f'{{"name": "{self.name}: {prompt.splitlines()[0]}"}}')

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        def pieces() -> CompletionResponseGen:
            whole = self.complete(prompt)
            whole.delta = whole.text
            yield whole

        return pieces()


def completing(calling: Any) -> ConfidenceCascadeLLM:
    return ConfidenceCascadeLLM(models=[Named(name="small"), Named(name="large")], threshold=0.9)


def chatting(calling: Any) -> ConfidenceCascadeLLM:
    def who(name: str) -> Any:
        return calling(name, lambda messages: f'{{"name": "{name}: {messages[-1].content.splitlines()[0]}"}}', **words)

    words = {"calls_tools": False}  # objects are asked for in words
    return ConfidenceCascadeLLM(models=[who("small"), who("large")], threshold="never")


METHODS = [
    "predict", "apredict", "stream", "astream", "structured_predict", "astructured_predict",
    "stream_structured_predict", "astream_structured_predict",
]  # fmt: skip


async def asked(llm: Any, method: str, prompt: Any, **values: Any) -> str:
    """The text of what a method gives."""
    given = getattr(llm, method)(*([Where] if "structured" in method else []), prompt, **values)
    given = await given if inspect.isawaitable(given) else given
    if hasattr(given, "__aiter__"):
        given = [item async for item in given]
    if method in ("stream", "stream_structured_predict"):
        given = list(given)
    pieces = given if isinstance(given, list) else [given]
    return "".join(str(piece) if isinstance(piece, str) else piece.model_dump_json() for piece in pieces)


@pytest.mark.parametrize("made", [chatting, completing])
@pytest.mark.parametrize("method", METHODS)
async def test_parameters_of_a_call_reach_predict(method: str, made: Callable[..., Any], calling: Any) -> None:
    """`stage` and `threshold`, and what is wrong with them is said; a template that has such variables gets them."""
    llm, prompt = made(calling), PromptTemplate("Capital of {land}?")

    assert "large: Capital of Tuvalu?" in await asked(llm, method, prompt, land="Tuvalu")
    assert "small: Capital of Tuvalu?" in await asked(llm, method, prompt, land="Tuvalu", stage="small")
    assert "small: Capital of Tuvalu?" in await asked(llm, method, prompt, land="Tuvalu", stage=0)
    assert "small: Capital of Tuvalu?" in await asked(llm, method, prompt, land="Tuvalu", threshold="always")
    for wrong in ({"stage": "nope"}, {"threshold": "nope"}):
        with pytest.raises(ConfigurationError, match="nope"):
            await asked(llm, method, prompt, land="Tuvalu", **wrong)

    mine = PromptTemplate("Stage {stage} of {threshold}?")
    assert "large: Stage nope of 7?" in await asked(llm, method, mine, stage="nope", threshold=7)


@pytest.mark.parametrize(
    "prompt",
    [
        RichPromptTemplate("Stage {{ stage }}?"),
        ChatPromptTemplate.from_messages([("user", "Stage {stage}?")]),
        SelectorPromptTemplate(PromptTemplate("?"), [(lambda _: True, PromptTemplate("Stage {stage}?"))]),
        SelectorPromptTemplate(PromptTemplate("Stage {stage}?")),
        PromptTemplate("Stage {number}?", template_var_mappings={"stage": "number"}),
        PromptTemplate("Stage {number}?", function_mappings={"number": lambda **values: values["stage"]}),
    ],
    ids=["rich", "chat", "selected", "default", "mapped", "function"],
)
async def test_a_templates_own_variables_stay_its_own(prompt: Any, calling: Any) -> None:
    assert "large: Stage 7?" in chatting(calling).predict(prompt, stage="7")


def test_a_cascade_in_a_cascade_is_not_asked_for_the_stage(calling: Any) -> None:
    """The name is one of the outer's stages."""
    inner = ConfidenceCascadeLLM(models=[calling("one", "1"), calling("two", "2")], threshold="never")
    outer = ConfidenceCascadeLLM(models=[calling("small", "0"), inner], threshold="always")
    prompt = PromptTemplate("Capital of {land}?")

    assert outer.predict(prompt, land="Tuvalu") == "0"
    assert outer.predict(prompt, land="Tuvalu", stage=1) == "2"
    assert outer.predict(prompt, land="Tuvalu", threshold="never") == "2"
