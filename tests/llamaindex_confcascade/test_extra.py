"""With the extra `llamaindex` alone: nothing of LangChain, torch, transformers or an API's client is needed."""

from __future__ import annotations

import subprocess
import sys

# what the extra does not install
ABSENT = (
    "langchain langchain_core langchain_openai langchain_confcascade langgraph torch transformers tokenizers openai "
    "llama_index.llms.openai llama_index.retrievers.bm25 matplotlib gguf xllamacpp"
).split()

CODE = f"""
import asyncio
import sys


class Absent:  # `sys.modules[name] = None` would do, but scipy looks into that for an imported torch
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in {ABSENT!r}:
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Absent)

from confcascade import MissingExtraError, TransformersModel, trace
from confcascade.testing import ScriptedModel
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from llamaindex_confcascade import ConfidenceCascadeLLM, measure
from confcascade import RetrievalScore


class Found(BaseRetriever):
    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=TextNode(text="Paris is the capital of France."), score=0.8)]


small = ScriptedModel("small", lambda request: ("Paris", 0.97 if "France" in request.messages[-1].content else 0.2))
llm = ConfidenceCascadeLLM(models=[small, MockLLM(max_tokens=3)], threshold=0.9)
print(llm.complete("Capital of France?"))
print(asyncio.run(llm.acomplete("Capital of Tuvalu?")))
print("".join(chunk.delta for chunk in llm.stream_complete("Capital of Tuvalu?")))

scored = ConfidenceCascadeLLM(models=[small, MockLLM(max_tokens=3)], signals=[RetrievalScore()], threshold=0.5)
engine = RetrieverQueryEngine.from_args(Found(), llm=scored)
with trace() as t:
    print(engine.query("Capital of France?"), t.records[0].attempts[0].reason)
measured = measure(engine.query, [("Capital?", "Paris"), ("Capital of Italy?", "Rome")], str.__eq__)
print(measured.accuracy, measured.auroc("retrieval"))

try:
    TransformersModel.from_pretrained("anything")
except MissingExtraError as error:
    print("confcascade[local]" in str(error))
"""

PRINTED = """\
Paris
text text text
text text text
Paris retrieval 0.8 >= 0.5
0.5 0.5
True
"""


def test_a_cascade_runs_with_this_extra_alone() -> None:
    """Called, asynchronous, streamed, in an engine; what needs another extra says which."""
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)

    printed = "".join(f"{line.rstrip()}\n" for line in run.stdout.splitlines())  # older mock LLMs end in a space
    assert printed == PRINTED, run.stderr
