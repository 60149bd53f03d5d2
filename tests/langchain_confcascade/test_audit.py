"""Audits of a cascade in LangChain: its own models are asked in its own messages, and no callback learns of it."""

from __future__ import annotations

import asyncio
import pickle

import pytest

pytest.importorskip("langchain_core")

from confcascade import Audit, AuditFile, ConfigurationError
from confcascade.testing import ScriptedModel
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_confcascade import ConfidenceCascadeLLM

MESSAGES = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "2+2?"}], name="Ada")]


class Large(FakeMessagesListChatModel):
    """Remembers what it was asked."""

    asked: list = []  # noqa: RUF012  # pydantic copies it

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append(messages)
        return super()._generate(messages, stop, run_manager, **kwargs)


class Counting(BaseCallbackHandler):
    def __init__(self):
        self.models = self.chains = 0

    def on_chat_model_start(self, *args, **kwargs):
        self.models += 1

    def on_chain_start(self, *args, **kwargs):
        self.chains += 1


async def aiterated(items):
    return [item async for item in items]


WAYS = {
    "invoke": lambda llm, config: llm.invoke(MESSAGES, config),
    "ainvoke": lambda llm, config: asyncio.run(llm.ainvoke(MESSAGES, config)),
    "stream": lambda llm, config: list(llm.stream(MESSAGES, config)),
    "astream": lambda llm, config: asyncio.run(aiterated(llm.astream(MESSAGES, config))),
    "batch": lambda llm, config: llm.batch([MESSAGES], config),
    "abatch": lambda llm, config: asyncio.run(llm.abatch([MESSAGES], config)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask(way, tmp_path):
    large, counting = Large(responses=[AIMessage("5")]), Counting()
    audit = Audit(rate=1.0, state=tmp_path / "audit.sqlite")
    llm = ConfidenceCascadeLLM(models=[ScriptedModel("small"), large], threshold=0.9, audit=audit)
    WAYS[way](llm, {"callbacks": [counting]})
    assert llm.cascade.auditor.wait(30)

    state = AuditFile(tmp_path / "audit.sqlite").state()
    assert (state.queries, state.kept, state.audited, state.disagreements) == (1, 1, 1, 1)
    assert large.asked == [MESSAGES]
    assert (counting.models, counting.chains) == (1, 1)  # the cascade, and its one attempt


def test_copies_and_changes(tmp_path):
    """An audit goes along with copies, and a field that is set makes another cascade."""
    audit = Audit(rate=1.0, state=tmp_path / "audit.sqlite")
    models = [ScriptedModel("small"), ScriptedModel("large")]
    llm = ConfidenceCascadeLLM(models=models, threshold=0.9, audit=audit)
    for each in (llm, llm.model_copy(), llm.model_copy(deep=True), pickle.loads(pickle.dumps(llm))):
        each.invoke("q")
        assert each.cascade.auditor.wait(30)
    assert AuditFile(tmp_path / "audit.sqlite").state().n == 4

    llm.audit = 0.0
    assert llm.cascade.auditor is None
    with pytest.raises(ConfigurationError, match="must be a share of queries"):
        ConfidenceCascadeLLM(models=models, threshold=0.9, audit=2)
