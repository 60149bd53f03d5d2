"""LLMs that tell no log-probabilities, judged by what they state of their confidence."""

import asyncio

from confcascade import Stage, Verbalized
from confcascade.signals.verbalized import INSTRUCTION, SECOND_TURN
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate

from llamaindex_confcascade import ConfidenceCascadeLLM

from .conftest import CallingLLM


def cascade_of(script, signal, large="Rome"):
    small, last = CallingLLM(name="small", script=script), CallingLLM(name="large", script=lambda _: large)
    return small, last, ConfidenceCascadeLLM(stages=[Stage(small, [signal], {signal.name: 0.8}), Stage(last)])


def sent(llm, call=0):
    return llm.seen[call]["messages"]


def test_one_step():
    """A chat, a completion, a template and a stream: asked for it, and shown without."""
    small, last, llm = cascade_of(lambda _: "Paris.\n<confidence>0.9</confidence>", Verbalized())
    response = llm.chat([ChatMessage("Which?")])
    assert response.message.content == "Paris."
    assert response.additional_kwargs["confcascade"]["attempts"][0]["scores"]["stated"]["value"] == 0.9
    assert sent(small)[-1].content == f"Which?\n\n{INSTRUCTION}"
    assert llm.complete("Which?").text == "Paris."
    assert llm.predict(PromptTemplate("Which {what}?"), what="city") == "Paris."
    assert sent(small, 2)[-1].content == f"Which city?\n\n{INSTRUCTION}"
    assert [piece.delta for piece in llm.stream_chat([ChatMessage("Which?")]) if piece.delta] == ["Paris."]
    assert asyncio.run(llm.achat([ChatMessage("Which?")])).message.content == "Paris."
    assert not last.seen


def test_escalates():
    """The last stage is asked as it would be alone."""
    _, last, llm = cascade_of(lambda _: "Paris.\n<confidence>0.2</confidence>", Verbalized())
    assert llm.chat([ChatMessage("Which?")]).message.content == "Rome"
    assert [message.content for message in sent(last)] == ["Which?"]


def test_blocks_stay():
    """An image goes along, before the instruction."""
    small, _, llm = cascade_of(lambda _: "Paris.\nConfidence: 90%", Verbalized())
    image = ImageBlock(image=b"x", image_mimetype="image/png")
    llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="Which?"), image])])
    blocks = sent(small)[-1].blocks
    assert [type(block) for block in blocks] == [TextBlock, ImageBlock, TextBlock]
    assert blocks[-1].text == f"\n\n{INSTRUCTION}"


def test_two_steps():
    """The second turn follows the caller's messages."""

    def script(messages):
        return "0.9" if messages[-1].content == SECOND_TURN else "Paris"

    small, _, llm = cascade_of(script, Verbalized("two-step"))
    prompt = ChatPromptTemplate([ChatMessage(role="system", content="Be short."), ChatMessage("Which {what}?")])
    assert llm.predict(prompt, what="city") == "Paris"
    assert [message.content for message in sent(small, 1)] == ["Be short.", "Which city?", "Paris", SECOND_TURN]
    assert [piece.delta for piece in llm.stream_chat([ChatMessage("Which?")]) if piece.delta] == ["Paris"]
