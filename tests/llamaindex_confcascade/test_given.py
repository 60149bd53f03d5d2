"""What users give as stages."""

from __future__ import annotations

from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel
from llama_index.core.base.llms.types import ChatMessage

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.model import LlamaIndexModel

QUESTION = [ChatMessage("Capital of Tuvalu?")]


def names(llm: ConfidenceCascadeLLM) -> list[str]:
    return [stage.model.name for stage in llm.cascade.stages]


def test_equal_names_are_told_apart(openai_server, said) -> None:
    """Two settings of one model, or one model twice; a name that the user chose stays."""
    server, other = (
        openai_server.llm("gpt-4o", said("Funafuti", p=0.3), temperature=temperature) for temperature in (0.0, 1.0)
    )
    llm = ConfidenceCascadeLLM(models=[server, other, server], threshold=0.9)

    assert names(llm) == ["gpt-4o", "gpt-4o (2)", "gpt-4o (3)"]
    assert llm.chat(QUESTION).additional_kwargs["confcascade"]["answered_by"] == "gpt-4o (3)"
    assert llm.chat(QUESTION, stage="gpt-4o (2)").additional_kwargs["confcascade"]["answered_by"] == "gpt-4o (2)"
    assert openai_server.bodies[-1]["temperature"] == 1.0
    assert {body["model"] for body in openai_server.bodies} == {"gpt-4o"}

    chosen = [LlamaIndexModel(each, name="mine") for each in (server, other)]
    assert names(ConfidenceCascadeLLM(models=chosen, threshold=0.9)) == ["mine", "mine"]


def test_a_model_of_the_core_keeps_its_name(calling) -> None:
    models = [ScriptedModel("m"), calling("m", "answer"), ScriptedModel("m")]
    assert names(ConfidenceCascadeLLM(models=models, threshold=0.9)) == ["m", "m (2)", "m"]


def test_local_models_of_one_name(local_llm) -> None:
    native = local_llm(bundled_model("small"))
    first, second = names(ConfidenceCascadeLLM(models=[native, native], threshold=0.9))
    assert second == f"{first} (2)"
