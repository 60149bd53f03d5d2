"""`RetrievalScore` in LlamaIndex: each answer is judged by what was retrieved for its own query alone."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confcascade import Record, Request, RetrievalScore, Stage, Trace, trace
from confcascade.testing import ScriptedModel
from llama_index.core import PromptTemplate, QueryBundle
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import (
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.retrieval import _spans, retrieved_scores, watch_retrievals


class Scored(BaseRetriever):
    """Finds two passages, the first with the number in the query as its score, the second with 0.

    Args:
        barrier: Where given, a retrieval waits until all have retrieved, so that concurrent queries overlap for sure.
    """

    def __init__(self, barrier: threading.Barrier | None = None, delay_s: float = 0.0) -> None:
        super().__init__()
        self.barrier = barrier
        self.delay_s = delay_s

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self.barrier is not None:
            self.barrier.wait(30)
        return self._found(query_bundle.query_str)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await asyncio.sleep(self.delay_s * random.Random(query_bundle.query_str).random())
        return self._found(query_bundle.query_str)

    @staticmethod
    def _found(query: str) -> list[NodeWithScore]:
        score = float(query.split()[-1])
        return [NodeWithScore(node=TextNode(text=f"P{i} {query}"), score=s) for i, s in enumerate((score, 0.0))]


class Late(BaseNodePostprocessor):
    """Takes its time between retrieval and answer, so that concurrent queries overtake each other in between."""

    def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
        return nodes

    async def _apostprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
        await asyncio.sleep(0.02 * random.Random(str(query_bundle)).random())
        return nodes


def says(request: Request) -> str:
    return request.messages[-1].content.rpartition("Q: ")[2]


def cascade(**parameters: Any) -> ConfidenceCascadeLLM:
    """A small model whose answers are always kept: their records hold what its signal saw."""
    small = Stage(ScriptedModel("small", says), [RetrievalScore(**parameters)], {"retrieval": "always"})
    return ConfidenceCascadeLLM(stages=[small, Stage(ScriptedModel("large"))])


def engine(
    retriever: BaseRetriever | None = None, llm: ConfidenceCascadeLLM | None = None, **parameters: Any
) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(
        retriever or Scored(),
        llm=llm or cascade(),
        text_qa_template=PromptTemplate("{context_str} Q: {query_str}"),
        **parameters,
    )


def seen(record: Record) -> Any:
    """The score that judged an answer, or why there is none."""
    score = record.attempts[0].scores["retrieval"]
    return score.details["unavailable"] if score.value is None else score.value


NOTHING = "nothing was retrieved for this query"


@pytest.fixture
def t() -> Iterator[Trace]:
    with trace() as collected:
        yield collected
    assert not _spans._open  # nothing is kept of a query that has ended
    assert retrieved_scores() is None


# ---------------------------------------------------------------------- one query


@pytest.mark.parametrize("mode", [m for m in ResponseMode if m.value not in ("no_text", "context_only", "generation")])
def test_every_response_mode_judges_by_the_retrieval(mode: ResponseMode, t: Trace) -> None:
    """However many calls of the LLM a mode makes, and in whichever loop."""
    synthesizer = get_response_synthesizer(
        cascade(), response_mode=mode, text_qa_template=PromptTemplate("{context_str} Q: {query_str}"), use_async=True
    )

    RetrieverQueryEngine(Scored(), response_synthesizer=synthesizer).query("answer 7")

    assert t.records
    assert {seen(record) for record in t.records} == {7.0}


async def test_every_way_to_ask_an_engine_judges_by_the_retrieval(t: Trace) -> None:
    """Whole and streamed, synchronously and not; a stream that is read long after the query has ended, too."""
    engine().query("answer 1")
    await engine().aquery("answer 2")
    streams = [engine(streaming=True).query("answer 3"), engine(streaming=True).query("answer 4")]
    later = await engine(streaming=True).aquery("answer 5")
    engine().query("answer 6")
    for stream in streams:
        assert isinstance(stream, StreamingResponse)
        assert "".join(stream.response_gen) == says_of(stream)
    assert isinstance(later, AsyncStreamingResponse)
    assert "".join([token async for token in later.async_response_gen()]) == "answer 5"

    assert sorted(seen(record) for record in t.records) == [1, 2, 3, 4, 5, 6]


def says_of(stream: StreamingResponse) -> str:
    return stream.source_nodes[0].node.get_content().removeprefix("P0 ")


def test_scores_that_retrieval_gave_are_the_retrievers_own(t: Trace) -> None:
    """A postprocessor may drop or rescore passages; the signal's threshold belongs to the retriever."""
    engine(node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=5)]).query("answer 7")

    assert t.records[0].attempts[0].scores["retrieval"].details == {"passages": 2}


def test_the_signal_decides(t: Trace) -> None:
    """Below its threshold the small model is not asked."""
    small = Stage(ScriptedModel("small", says), [RetrievalScore("margin")], {"retrieval": 5.0})
    asking = engine(llm=ConfidenceCascadeLLM(stages=[small, Stage(ScriptedModel("large", says))]))

    for query in ("answer 7", "answer 3"):
        asking.query(query)

    assert [record.answered_by for record in t.records] == ["small", "large"]
    assert t.records[1].attempts[0].reason == "retrieval 3 < 5"


# ---------------------------------------------------------------------- whose query it is


def test_nothing_is_left_of_an_earlier_query(t: Trace) -> None:
    """In the same context, before and after a query, and of a retriever that was asked on its own."""
    llm = cascade()
    llm.complete("Q: before")
    engine(llm=llm).query("answer 7")
    Scored().retrieve("answer 8")
    llm.complete("Q: after")

    assert [seen(record) for record in t.records] == [NOTHING, 7.0, NOTHING]


def test_a_query_that_fails_leaves_nothing(t: Trace) -> None:
    """Its spans are dropped, and what they held with them."""
    asking = engine()
    with pytest.raises(ValueError, match="could not convert"):
        asking.query("answer x")
    cascade().complete("Q: after")

    assert [seen(record) for record in t.records] == [NOTHING]


def test_queries_in_threads_do_not_mix(t: Trace) -> None:
    """All of them have retrieved before any of them answers."""
    n = 16
    asking = engine(Scored(threading.Barrier(n)))

    def ask(i: int) -> tuple[str, Any]:
        with trace() as mine:
            return str(asking.query(f"answer {i}")), seen(mine.records[0])

    with ThreadPoolExecutor(n) as pool:
        answered = list(pool.map(ask, range(n)))

    assert answered == [(f"answer {i}", i) for i in range(n)]


async def test_queries_in_tasks_do_not_mix(t: Trace) -> None:
    """They share a thread, a parent context and an engine, and overtake each other."""
    asking = engine(Scored(delay_s=0.02), node_postprocessors=[Late()])

    async def ask(i: int) -> tuple[str, Any]:
        with trace() as mine:
            return str(await asking.aquery(f"answer {i}")), seen(mine.records[0])

    dispatcher = get_dispatcher(__name__)

    @dispatcher.span
    async def application() -> list[tuple[str, Any]]:
        """An application may have a span of its own around all of them."""
        return await asyncio.gather(*map(ask, range(32)))

    assert await application() == [(f"answer {i}", i) for i in range(32)]


async def test_a_cancelled_query_leaves_nothing(t: Trace) -> None:
    """Neither in its context nor in the handler's memory."""
    task = asyncio.create_task(engine(Scored(delay_s=60)).aquery("answer 3"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await cascade().acomplete("Q: after")

    assert [seen(record) for record in t.records] == [NOTHING]


class Halves(BaseQuestionGenerator):
    """Asks the tool "half" for 7 and for 8."""

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=f"answer {i}", tool_name="half") for i in (7, 8)]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None: ...


@pytest.mark.parametrize("use_async", [False, True])
def test_sub_questions_are_queries_of_their_own(use_async: bool, t: Trace) -> None:
    """And the answer made of their answers, for which nothing was retrieved, is judged by none of theirs."""
    llm = cascade()
    asking = SubQuestionQueryEngine.from_defaults(
        [QueryEngineTool.from_defaults(engine(Scored(delay_s=0.01), llm), name="half", description="half")],
        llm=llm,
        question_gen=Halves(),
        use_async=use_async,
        verbose=False,
    )

    asking.query("both")

    *halves, whole = t.records
    assert sorted(seen(record) for record in halves) == [7, 8]
    assert seen(whole) == NOTHING


def test_a_rewritten_query_is_judged_by_what_it_retrieved(t: Trace) -> None:
    """The rewriting itself comes before any retrieval, also where an earlier query of the same engine had one."""
    llm = cascade()
    rewriting = HyDEQueryTransform(llm=llm, hyde_prompt=PromptTemplate("Q: {context_str}"), include_original=False)
    asking = TransformQueryEngine(engine(llm=llm), rewriting)

    for query in ("answer 4", "answer 5"):
        asking.query(query)

    assert [seen(record) for record in t.records] == [NOTHING, 4, NOTHING, 5]


def test_a_router_chooses_without_and_its_choice_answers_with_a_retrieval(t: Trace) -> None:
    """Each of the engines begins a query of its own."""
    choice = '[{"choice": 2, "reason": "it says so"}]'
    small = Stage(
        ScriptedModel("small", lambda request: says(request) if "Q: " in request.messages[-1].content else choice),
        [RetrievalScore()],
        {"retrieval": "always"},
    )
    llm = ConfidenceCascadeLLM(stages=[small, Stage(ScriptedModel("large"))])
    tools = [QueryEngineTool.from_defaults(engine(llm=llm), description=name) for name in ("first", "second")]

    RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), tools, llm=llm).query("answer 6")

    assert [seen(record) for record in t.records] == [NOTHING, 6]


def test_a_retriever_of_retrievers_counts_as_one(t: Trace) -> None:
    """The fused scores judge the answer; the queries that it makes up come before any retrieval."""
    small = Stage(
        ScriptedModel("small", lambda r: says(r) if "Q: " in r.messages[-1].content else "answer 3\nanswer 4"),
        [RetrievalScore()],
        {"retrieval": "always"},
    )
    llm = ConfidenceCascadeLLM(stages=[small, Stage(ScriptedModel("large"))])
    fused = QueryFusionRetriever([Scored()], llm=llm, mode="reciprocal_rerank", num_queries=3, use_async=False)  # type: ignore[arg-type]
    asking = engine(fused, llm)

    response = asking.query("answer 9")

    expected = max(node.score or 0.0 for node in response.source_nodes)
    assert [seen(record) for record in t.records] == [NOTHING, pytest.approx(expected)]
    assert expected < 1  # no retriever's own score: those are 9, 3 and 4


async def test_chat_engines_judge_each_turn_by_its_own_retrieval(t: Trace) -> None:
    """Condensing the question comes before the retrieval; also in streams, which end in threads of their own."""
    llm, memory = cascade(), ChatMemoryBuffer.from_defaults(token_limit=1000)
    condensing = PromptTemplate("{chat_history} Q: {question}")
    chat = CondensePlusContextChatEngine.from_defaults(
        Scored(), llm=llm, memory=memory, condense_prompt="{chat_history} Q: {question}"
    )

    chat.chat("answer 1")
    await chat.achat("answer 2")
    assert "".join(chat.stream_chat("answer 3").response_gen)
    streamed = await chat.astream_chat("answer 4")
    assert [token async for token in streamed.async_response_gen()]
    assert [seen(record) for record in t.records] == [1, NOTHING, 2, NOTHING, 3, NOTHING, 4]

    t.records.clear()
    context = ContextChatEngine.from_defaults(Scored(), llm=llm)
    context.chat("answer 5")
    await context.achat("answer 6")
    over_engine = CondenseQuestionChatEngine.from_defaults(
        engine(llm=llm), llm=llm, condense_question_prompt=condensing
    )
    over_engine.chat("answer 7")
    over_engine.chat("answer 8")
    assert [seen(record) for record in t.records] == [5, 6, 7, NOTHING, 8]


class Found(Event):
    nodes: list[NodeWithScore]


class Reading(Workflow):
    """Retrieves in one step and answers in another, which are tasks of their own; the second may come late."""

    def __init__(self, llm: ConfidenceCascadeLLM, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.llm = llm

    @step
    async def find(self, context: Context, start: StartEvent) -> Found:
        await context.store.set("query", start.query)
        return Found(nodes=await Scored(delay_s=0.01).aretrieve(start.query))

    @step
    async def answer(self, context: Context, found: Found) -> StopEvent:
        query = await context.store.get("query")
        await asyncio.sleep(0.02 * random.Random(query).random())
        return StopEvent(str(await self.llm.acomplete(f"Q: {query}")))


async def test_a_run_of_a_workflow_is_one_query_and_runs_do_not_mix(t: Trace) -> None:
    """Though all runs are of one object, and begin in one context."""
    reading = Reading(cascade(), timeout=30)

    async def ask(i: int) -> tuple[str, Any]:
        with trace() as mine:
            return await reading.run(query=f"answer {i}"), seen(mine.records[0])

    dispatcher = get_dispatcher(__name__)

    @dispatcher.span
    async def application() -> list[tuple[str, Any]]:
        return await asyncio.gather(*map(ask, range(8)))

    assert await application() == [(f"answer {i}", i) for i in range(8)]
    handlers = [reading.run(query=f"answer {i}") for i in range(8)]
    assert [await handler for handler in handlers] == [f"answer {i}" for i in range(8)]
    assert sorted(seen(record) for record in t.records[8:]) == list(range(8))


async def test_a_query_that_was_answered_by_a_future_leaves_nothing(t: Trace) -> None:
    """Its span ends in another context than it began in, so its caller's context cannot be set back."""
    dispatcher, llm = get_dispatcher(__name__), cascade()

    @dispatcher.span
    def asking() -> asyncio.Future[Any]:
        async def ask() -> Any:
            await Scored().aretrieve("answer 3")
            return await llm.acomplete("Q: answer 3")

        return asyncio.ensure_future(ask())

    await asking()
    llm.complete("Q: after")

    assert [seen(record) for record in t.records] == [3, NOTHING]


async def test_a_stream_can_be_left(t: Trace) -> None:
    """The reader's context is its own, between the pieces of a stream and after it."""
    llm = cascade()
    stream = engine(llm=llm, streaming=True).query("two words 3")
    astream = await engine(llm=llm, streaming=True).aquery("two words 3")
    assert isinstance(stream, StreamingResponse)
    assert isinstance(astream, AsyncStreamingResponse)

    assert next(stream.response_gen) == "two"
    llm.complete("Q: meanwhile")
    stream.response_gen.close()
    assert await anext(astream.response_gen) == "two"
    await llm.acomplete("Q: meanwhile")
    await astream.response_gen.aclose()

    assert [seen(record) for record in t.answered] == [NOTHING, NOTHING]


def test_code_of_ones_own_is_one_query_with_a_span_around_it(t: Trace) -> None:
    """LlamaIndex's own way to say what belongs together; without it nothing says so, and nothing is guessed."""
    dispatcher, llm, retriever = get_dispatcher(__name__), cascade(), Scored()

    def ask(query: str) -> str:
        retriever.retrieve(query)
        return str(llm.complete(f"Q: {query}"))

    ask("answer 3")
    dispatcher.span(ask)("answer 4")

    assert [seen(record) for record in t.records] == [NOTHING, 4]


# ---------------------------------------------------------------------- the handlers


def test_nothing_is_watched_without_the_signal() -> None:
    """Cascades without it leave LlamaIndex's instrumentation alone; those with it add two handlers in all."""
    import subprocess
    import sys

    code = """
from confcascade.testing import ScriptedModel
from confcascade import TokenProbability
from llama_index.core.instrumentation import get_dispatcher
from llamaindex_confcascade import ConfidenceCascadeLLM
from confcascade import RetrievalScore

models, root = [ScriptedModel("small"), ScriptedModel("large")], get_dispatcher()
def handlers(): return len(root.span_handlers), len(root.event_handlers)
counts = [handlers()]
for signal in (TokenProbability(), RetrievalScore(), RetrievalScore("margin")):
    ConfidenceCascadeLLM(models=models, signals=[signal], threshold=0.5)
    counts.append(handlers())
print(counts)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[(1, 1), (1, 1), (2, 2), (2, 2)]\n"


def test_another_process_watches_for_a_pickled_cascade() -> None:
    """Workers unpickle it, and never build one."""
    import base64
    import pickle
    import subprocess
    import sys

    llm = ConfidenceCascadeLLM(
        models=[ScriptedModel("small"), ScriptedModel("large")], signals=[RetrievalScore()], threshold=0.5
    )
    code = f"""
import base64, pickle
from llama_index.core.instrumentation import get_dispatcher
before = len(get_dispatcher().span_handlers)
llm = pickle.loads(base64.b64decode({base64.b64encode(pickle.dumps(llm))!r}))
print(before, len(get_dispatcher().span_handlers))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "1 2\n"


def test_outside_of_any_query_there_are_no_scores() -> None:
    """And no error."""
    watch_retrievals()

    assert retrieved_scores() is None
