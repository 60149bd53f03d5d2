"""`HuggingFaceLLM` as a stage: its model's log-probabilities, which LlamaIndex's class drops."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Cascade, ConfigurationError, KnowledgeProbe, Request, Stage, TokenProbability
from confcascade.demo import bundled_probe
from confcascade.demo.world import World
from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel, same_record
from confcascade.types import Message
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.huggingface import HuggingFaceModel

QUESTIONS = [question.prompt for question in World().questions("test", ("facts", "sums"), per_task=3)]


class HuggingFaceLLM(CustomLLM):
    """As LlamaIndex's, as far as is read here; its package is not among the tests' requirements."""

    model_name: str = "bundled"
    context_window: int = 1000
    max_new_tokens: int = 64
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)
    stopping_ids: list[int] = Field(default_factory=list)
    _model: Any = PrivateAttr()
    _tokenizer: Any = PrivateAttr()

    def __init__(self, model: Any, tokenizer: Any, messages_to_prompt: Any = None, **fields: Any) -> None:
        super().__init__(messages_to_prompt=messages_to_prompt or self._tokenizer_messages_to_prompt, **fields)
        self._model = model
        self._tokenizer = tokenizer

    def _tokenizer_messages_to_prompt(self, messages: Any) -> str:
        told = [{"role": message.role.value, "content": message.content} for message in messages]
        prompt: str = self._tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        return prompt

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            model_name=self.model_name, context_window=self.context_window, num_output=self.max_new_tokens
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        del formatted
        inputs = self._tokenizer(prompt, return_tensors="pt")
        tokens = self._model.generate(**inputs, max_new_tokens=self.max_new_tokens, **self.generate_kwargs)
        written = tokens[0][inputs["input_ids"].size(1) :]
        text = self._tokenizer.decode(written, skip_special_tokens=True)
        return CompletionResponse(text=text, raw={"model_output": tokens})

    @llm_completion_callback()
    def stream_complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def small():
    return bundled_model("small")


def llm_of(model: Any, **parameters: Any) -> HuggingFaceLLM:
    return HuggingFaceLLM(model.model, model.tokenizer, **parameters)


def test_it_decides_as_the_local_model_and_says_what_it_says_alone(small):
    native, large = llm_of(small), bundled_model("large")
    llm = ConfidenceCascadeLLM(models=[native, large], threshold=0.9)
    local = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(large)])

    for question in QUESTIONS:
        response, outcome = llm.chat([ChatMessage(content=question)]), local.run(question)
        attempt = response.additional_kwargs["confcascade"]["attempts"][0]
        assert same_record(attempt["scores"], outcome.record.as_dict()["attempts"][0]["scores"])
        assert response.message.content == outcome.text
        assert native.chat([ChatMessage(content=question)]).message.content == outcome.responses[0].text


async def test_it_streams_and_does_not_block_the_event_loop(small):
    llm = ConfidenceCascadeLLM(models=[llm_of(small)])

    (*_, last) = [item async for item in await llm.astream_chat([ChatMessage(content=QUESTIONS[0])])]

    assert last.message.content == llm.chat([ChatMessage(content=QUESTIONS[0])]).message.content


def test_its_hidden_states_can_be_read(small):
    probe = bundled_probe("small")
    assert isinstance(probe, KnowledgeProbe)
    stages = [Stage(llm_of(small), [probe], {"p_ik": "never"}), Stage(ScriptedModel("large"))]

    record = ConfidenceCascadeLLM(stages=stages).complete(QUESTIONS[0]).additional_kwargs["confcascade"]

    assert 0 <= record["attempts"][0]["scores"]["p_ik"]["value"] <= 1


def test_its_own_window_and_output_are_the_cascades(small):
    llm = ConfidenceCascadeLLM(models=[llm_of(small, context_window=500)])

    assert (llm.metadata.context_window, llm.metadata.num_output) == (500, 64)
    assert ConfidenceCascadeLLM(models=[small]).metadata.context_window == small.capability.context_window


def test_a_prompt_of_the_users_own_is_kept(small):
    """And gets the tokenizer's special tokens, which a chat template writes itself."""
    native = llm_of(small, messages_to_prompt=lambda messages: "|".join(message.content for message in messages))
    model = HuggingFaceModel(native)

    assert model.render(Request((Message("system", "Be brief."), Message("user", "Why?")))) == "Be brief.|Why?"


@pytest.mark.parametrize("parameters", [{"generate_kwargs": {"top_k": 5, "do_sample": True}}, {"stopping_ids": [3]}])
def test_one_that_generates_otherwise_is_asked_itself(small, parameters):
    """Its log-probabilities are then not seen, so it can only be last."""
    native = llm_of(small, **parameters)

    assert not HuggingFaceModel.takes(native)
    assert ConfidenceCascadeLLM(models=[native]).complete(QUESTIONS[0]).text
    with pytest.raises(ConfigurationError, match="'bundled' does not return them"):
        ConfidenceCascadeLLM(models=[native, small], threshold=0.9)
