"""Chat models that tell no log-probabilities, judged by what they state of their confidence."""

import asyncio

import pytest
from confcascade import Stage, Verbalized
from confcascade.signals.verbalized import INSTRUCTION, SECOND_TURN
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_confcascade import ConfidenceCascadeLLM

from .conftest import CallingModel, Said


def model(name, script):
    return CallingModel(model=name, script=script, tells_call_tokens=False)


def cascade_of(script, signal, large="Rome"):
    small = model("small", script)
    last = model("large", lambda _: large)
    return small, last, ConfidenceCascadeLLM(stages=[Stage(small, [signal], {signal.name: 0.8}), Stage(last)])


def in_two_steps(answer):
    return lambda messages: "0.9" if messages[-1].content == SECOND_TURN else answer


def test_one_step():
    """The stage's own messages are asked for it; the message that comes back has none of it, nor has a stream."""
    small, last, llm = cascade_of(lambda _: "Paris.\n<confidence>0.9</confidence>", Verbalized())
    message = llm.invoke([SystemMessage("Be short."), HumanMessage("Which?", id="1")])
    assert message.content == "Paris."
    record = message.response_metadata["confcascade"]
    assert record["attempts"][0]["scores"]["stated"]["value"] == 0.9
    asked = small.seen[0]["messages"]
    assert [type(each) for each in asked] == [SystemMessage, HumanMessage]
    assert asked[1].content == f"Which?\n\n{INSTRUCTION}"
    assert asked[1].id == "1"
    assert not last.seen
    assert "".join(chunk.content for chunk in llm.stream("Which?")) == "Paris."
    assert asyncio.run(llm.ainvoke("Which?")).content == "Paris."
    assert (llm | StrOutputParser()).batch(["Which?", "Which?"]) == ["Paris.", "Paris."]


def test_escalates():
    """The last stage is asked the caller's messages, as they are."""
    _, last, llm = cascade_of(lambda _: "Paris.\n<confidence>0.2</confidence>", Verbalized())
    asked = [HumanMessage("Which?")]
    assert llm.invoke(asked).content == "Rome"
    assert last.seen[0]["messages"] == asked
    assert asked == [HumanMessage("Which?")]


def test_blocks_stay():
    """Images go along; content in blocks has the instruction as a block of its own, and loses the statement."""
    blocks = [{"type": "text", "text": "Which?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    said = AIMessage([{"type": "text", "text": "Paris.\nConfidence: 90%"}, {"type": "other", "x": 1}])
    small = GenericFakeChatModel(messages=iter([said]), name="small")
    seen = []
    generate = type(small)._generate

    class Watched(GenericFakeChatModel):
        def _generate(self, messages, *args, **kwargs):
            seen.append(messages)
            return generate(self, messages, *args, **kwargs)

    watched = Watched(messages=iter([said]), name="small")
    stages = [Stage(watched, [Verbalized()], {"stated": 0.8}), Stage(model("large", lambda _: "Rome"))]
    message = ConfidenceCascadeLLM(stages=stages).invoke([HumanMessage(blocks)])
    assert message.content == [{"type": "other", "x": 1}, {"type": "text", "text": "Paris."}]
    assert seen[0][0].content == [*blocks, {"type": "text", "text": f"\n\n{INSTRUCTION}"}]


def test_two_steps():
    """The second turn follows the caller's own messages, and is paid."""
    small, _, llm = cascade_of(in_two_steps("Paris"), Verbalized("two-step"))
    message = llm.invoke([HumanMessage("Which?", id="1")])
    assert message.content == "Paris"
    first, second = (call["messages"] for call in small.seen)
    assert first == [HumanMessage("Which?", id="1")]
    assert second[0] == first[0]
    told = [(each.type, each.content) for each in second]
    assert told == [("human", "Which?"), ("ai", "Paris"), ("human", SECOND_TURN)]
    assert message.usage_metadata["input_tokens"] == 10
    assert [chunk.content for chunk in llm.stream("Which?") if chunk.content] == ["Paris"]


def test_guesses():
    _, _, llm = cascade_of(lambda _: "G1: Paris\nP1: 0.9\nG2: Lyon\nP2: 0.1", Verbalized("top-k", k=2))
    assert llm.invoke("Which?").content == "Paris"


class City(BaseModel):
    """A city."""

    name: str


@tool
def weather(city: str) -> str:
    """The weather."""
    return "sunny"


@pytest.mark.parametrize("style", ["one-step", "two-step"])
def test_tools_and_structured_output(style):
    """They are asked for as ever, and the confidence afterwards."""

    def script(messages):
        if messages[-1].content == SECOND_TURN:
            return "0.9"
        return Said(calls=[("weather", '{"city": "Paris"}')]) if "eather" in str(messages[0].content) else CITY

    CITY = Said(calls=[("City", '{"name": "Paris"}')])
    small, last, llm = cascade_of(script, Verbalized(style))
    answer = llm.bind_tools([weather]).invoke("Weather?")
    assert [call["name"] for call in answer.tool_calls] == ["weather"]
    assert llm.with_structured_output(City).invoke("Which?") == City(name="Paris")
    assert not last.seen
    assert [call["messages"][-1].content == SECOND_TURN for call in small.seen] == [False, True, False, True]
    assert all("tools" not in call for call in small.seen[1::2])
