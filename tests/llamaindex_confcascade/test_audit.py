"""Audits of a cascade in LlamaIndex: its own LLMs are asked in its own messages, and no event or span tells of it."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

pytest.importorskip("llama_index.core")

from confcascade import Audit, AuditFile, ConfigurationError
from confcascade.testing import ScriptedModel
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM

from llamaindex_confcascade import ConfidenceCascadeLLM

MESSAGES = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="2+2?")]


class Large(MockLLM):
    """Remembers what it was asked."""

    asked: list = []  # noqa: RUF012  # pydantic copies it

    def chat(self, messages, **kwargs):
        self.asked.append(list(messages))
        return ChatResponse(message=ChatMessage(role="assistant", content="5"))


class Events(BaseEventHandler):
    seen: list = []  # noqa: RUF012  # pydantic copies it

    def handle(self, event, **kwargs):
        self.seen.append(event.class_name())


@pytest.fixture
def events():
    handler, root = Events(), get_dispatcher()
    root.add_event_handler(handler)
    yield handler.seen
    root.event_handlers.remove(handler)


async def alast(opened):
    return [response async for response in await opened][-1]


WAYS = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES)),
    "stream_chat": lambda llm: list(llm.stream_chat(MESSAGES)),
    "astream_chat": lambda llm: asyncio.run(alast(llm.astream_chat(MESSAGES))),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask(way, tmp_path, events):
    large = Large()
    audit = Audit(rate=1.0, state=tmp_path / "audit.sqlite")
    llm = ConfidenceCascadeLLM(models=[ScriptedModel("small"), large], threshold=0.9, audit=audit)
    WAYS[way](llm)
    assert llm._cascade.auditor.wait(30)

    state = AuditFile(tmp_path / "audit.sqlite").state()
    assert (state.queries, state.kept, state.audited, state.disagreements) == (1, 1, 1, 1)
    assert large.asked == [MESSAGES]
    assert (events.count("LLMChatStartEvent"), events.count("LLMChatEndEvent")) == (1, 1)


def test_copies(tmp_path):
    """An audit goes along with them."""
    audit = Audit(rate=1.0, state=tmp_path / "audit.sqlite")
    models = [ScriptedModel("small"), ScriptedModel("large")]
    llm = ConfidenceCascadeLLM(models=models, threshold=0.9, audit=audit)
    for each in (llm, copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):
        each.complete("q")
        assert each._cascade.auditor.wait(30)
    assert AuditFile(tmp_path / "audit.sqlite").state().n == 3
    with pytest.raises(ConfigurationError, match="must be a share of queries"):
        ConfidenceCascadeLLM(models=models, threshold=0.9, audit="often")
