"""`HuggingFaceLLM` as a stage: its model's log-probabilities, which LlamaIndex's class drops."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Cascade, ConfigurationError, KnowledgeProbe, Request, Stage, TokenProbability, trace
from confcascade.asks import Prefill, Session
from confcascade.demo import bundled_probe
from confcascade.demo.world import World
from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel, same_record
from confcascade.types import Message
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, SelectorPromptTemplate

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.huggingface import HuggingFaceModel

QUESTIONS = [question.prompt for question in World().questions("test", ("facts", "sums"), per_task=3)]


@pytest.fixture(scope="module")
def small():
    return bundled_model("small")


def test_it_decides_as_the_local_model_and_says_what_it_says_alone(local_llm, small):
    native, large = local_llm(small), bundled_model("large")
    llm = ConfidenceCascadeLLM(models=[native, large], threshold=0.9)
    local = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(large)])

    for question in QUESTIONS:
        response, outcome = llm.chat([ChatMessage(content=question)]), local.run(question)
        attempt = response.additional_kwargs["confcascade"]["attempts"][0]
        assert same_record(attempt["scores"], outcome.record.as_dict()["attempts"][0]["scores"])
        assert response.message.content == outcome.text
        assert native.chat([ChatMessage(content=question)]).message.content == outcome.responses[0].text


async def test_it_streams_and_does_not_block_the_event_loop(local_llm, small):
    llm = ConfidenceCascadeLLM(models=[local_llm(small)])

    (*_, last) = [item async for item in await llm.astream_chat([ChatMessage(content=QUESTIONS[0])])]

    assert last.message.content == llm.chat([ChatMessage(content=QUESTIONS[0])]).message.content


def test_its_hidden_states_can_be_read(local_llm, small):
    probe = bundled_probe("small")
    assert isinstance(probe, KnowledgeProbe)
    stages = [Stage(local_llm(small), [probe], {"p_ik": "never"}), Stage(ScriptedModel("large"))]

    record = ConfidenceCascadeLLM(stages=stages).complete(QUESTIONS[0]).additional_kwargs["confcascade"]

    assert 0 <= record["attempts"][0]["scores"]["p_ik"]["value"] <= 1


def test_its_own_window_and_output_are_the_cascades(local_llm, small):
    llm = ConfidenceCascadeLLM(models=[local_llm(small, context_window=500)])

    assert (llm.metadata.context_window, llm.metadata.num_output) == (500, 64)
    assert ConfidenceCascadeLLM(models=[small]).metadata.context_window == small.capability.context_window


def test_a_prompt_of_the_users_own_is_kept(local_llm, small):
    """And gets the tokenizer's special tokens, which a chat template writes itself."""
    native = local_llm(small, messages_to_prompt=lambda messages: "|".join(message.content for message in messages))
    model = HuggingFaceModel(native)

    assert model.render(Request((Message("system", "Be brief."), Message("user", "Why?")))) == "Be brief.|Why?"


def test_a_prompt_of_the_users_own_is_gone_on_with(local_llm, small):
    """In a session, as steps are read, and where a signal has the answer begun."""
    native = local_llm(small, messages_to_prompt=lambda messages: "|".join(message.content for message in messages))
    model, asked = HuggingFaceModel(native), Request(Message.parse(QUESTIONS[0]))
    (whole,) = model.prefill([Prefill(model, asked, (1,))])
    (session,) = model.prefill([Prefill(model, asked, (1,), session=Session())])

    assert model.render(replace(asked, begun="Answer:")) == f"{QUESTIONS[0]}Answer:"
    assert model.encode(asked) == small.tokenizer(QUESTIONS[0])["input_ids"]
    assert session.usage.input_tokens == whole.usage.input_tokens
    assert session.hidden_states[1] == pytest.approx(whole.hidden_states[1], abs=1e-5)


@pytest.mark.parametrize(
    "parameters",
    [{"do_sample": False}, {"do_sample": False, "temperature": 0.0, "top_p": 1.0}, {"pad_token_id": 0}],
)
def test_generate_kwargs_that_change_nothing_are_taken(local_llm, small, parameters):
    """They are in most tutorials, and a local model is greedy anyway."""
    native = local_llm(small, generate_kwargs=parameters)

    assert HuggingFaceModel.takes(native)
    assert ConfidenceCascadeLLM(models=[native, small], threshold=0.9).complete(QUESTIONS[0]).text


def test_a_tokenizer_that_takes_no_system_message_is_asked_for_completions(local_llm, small):
    """As alone: for an LLM that does not chat, LlamaIndex takes the prompts without one."""
    tokenizer = copy.deepcopy(small.tokenizer)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    native = local_llm(Served(small.model, tokenizer))
    prompt = SelectorPromptTemplate(
        PromptTemplate("{q}"),
        [(lambda llm: llm.metadata.is_chat_model, ChatPromptTemplate([ChatMessage(role="system", content="{q}")]))],
    )

    assert ConfidenceCascadeLLM(models=[native]).predict(prompt, q=QUESTIONS[0]) == native.predict(
        prompt, q=QUESTIONS[0]
    )
    with trace() as t:  # also before a model that chats
        ConfidenceCascadeLLM(models=[native, small], threshold="always").predict(prompt, q=QUESTIONS[0])
    assert t.records[0].attempts[0].error is None


@dataclass
class Served:
    model: Any
    tokenizer: Any


@pytest.mark.parametrize("parameters", [{"generate_kwargs": {"top_k": 5, "do_sample": True}}, {"stopping_ids": [3]}])
def test_one_that_generates_otherwise_is_asked_itself(local_llm, small, parameters):
    """Its log-probabilities are then not seen, so it can only be last."""
    native = local_llm(small, **parameters)

    assert not HuggingFaceModel.takes(native)
    assert ConfidenceCascadeLLM(models=[native]).complete(QUESTIONS[0]).text
    with pytest.raises(ConfigurationError, match=r"'bundled' does not return them\. It does without (gen|stop)"):
        ConfidenceCascadeLLM(models=[native, small], threshold=0.9)
