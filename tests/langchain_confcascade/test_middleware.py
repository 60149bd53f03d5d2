"""The cascade as middleware of an agent."""

from __future__ import annotations

import subprocess
import sys

from confcascade.testing import ScriptedModel
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage

from langchain_confcascade.middleware import ConfidenceCascadeMiddleware

ASKED = {"messages": [HumanMessage("meaning of life")]}


async def test_a_cascade_answers_in_place_of_the_agents_model():
    small = ScriptedModel("small", {"meaning of life": ("Maybe seven", 0.4)})
    large = ScriptedModel("large", {"meaning of life": "It is 42"})
    cascade = ConfidenceCascadeMiddleware(models=[small, large], threshold=0.9)
    agent = create_agent(FakeListChatModel(responses=["the agent's own"]), middleware=[cascade])

    for state in (agent.invoke(ASKED), await agent.ainvoke(ASKED)):
        answer = state["messages"][-1]
        assert answer.content == "It is 42"
        assert answer.response_metadata["confcascade"]["answered_by"] == "large"
    shown = [message.content for message, _ in agent.stream(ASKED, stream_mode="messages")]
    assert "".join(shown) == "It is 42"


def test_the_package_does_not_import_langchain():
    code = "import sys, langchain_confcascade; print('langchain' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
