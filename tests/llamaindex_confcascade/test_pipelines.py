"""LlamaIndex's pipelines over real documents, a real retriever and the bundled models: answers, records and accounts.

Where intelligence is needed that models so small do not have (a router's JSON, sub-questions, verdicts), a script
speaks in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_index.retrievers.bm25")

from confcascade import OpenAICompatibleModel, Trace, trace
from confcascade.demo import bundled_stages
from confcascade.demo.show import DOCUMENTS
from confcascade.testing import Reply, ScriptedModel
from llama_index.core import PromptTemplate, Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.evaluation import BatchEvalRunner, CorrectnessEvaluator, FaithfulnessEvaluator, RelevancyEvaluator
from llama_index.core.extractors import KeywordExtractor, SummaryExtractor
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from llama_index.llms.openai import OpenAI
from llama_index.retrievers.bm25 import BM25Retriever

from llamaindex_confcascade import ConfidenceCascadeLLM

READ = PromptTemplate("Context: {context_str}\nQuestion: {query_str}\nAnswer:")
REFINE = PromptTemplate("Context: {context_msg}\nQuestion: {query_str}\nAnswer:")
QUESTIONS = [line.split("\t") for line in (DOCUMENTS / "questions.tsv").read_text().splitlines()]
(QUESTION, REFERENCE), *_ = QUESTIONS
WAYS = ["query", "aquery", "query, streaming", "aquery, streaming"]


@pytest.fixture(scope="module")
def llm() -> ConfidenceCascadeLLM:
    """The demo's own cascade."""
    return ConfidenceCascadeLLM(stages=bundled_stages())


@pytest.fixture(scope="module")
def nodes() -> list[TextNode]:
    return [TextNode(text=path.read_text().strip(), id_=path.stem) for path in sorted(DOCUMENTS.glob("*.txt"))]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> TokenCountingHandler:
    """In `Settings`, from where engines hand it on to their LLM."""
    handler = TokenCountingHandler(tokenizer=str.split)
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([handler]))
    return handler


@pytest.fixture
def accounted(counter: TokenCountingHandler) -> Callable[..., Any]:
    """Within it, a trace; every call is in it, and LlamaIndex counts what the records count."""

    @contextmanager
    def account(*llms: ConfidenceCascadeLLM, calls: int) -> Iterator[Trace]:
        for each in llms:
            each.callback_manager = Settings.callback_manager
        counter.reset_counts()
        with trace() as t:
            yield t
        assert len(t.records) == len(counter.llm_token_counts) == calls
        assert counter.prompt_llm_token_count == t.usage.input_tokens
        assert counter.completion_llm_token_count == t.usage.output_tokens
        for record in t.records:
            assert record.answered_by == record.attempts[-1].model

    return account


def retriever(nodes: list[TextNode], k: int = 1) -> BM25Retriever:
    return BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=k)


def engine(llm: Any, nodes: list[TextNode], k: int = 1, **parameters: Any) -> RetrieverQueryEngine:
    templates = {"text_qa_template": READ, "refine_template": REFINE, "summary_template": READ, "simple_template": READ}
    return RetrieverQueryEngine.from_args(retriever(nodes, k), llm=llm, **templates | parameters)


async def answer(make: Callable[..., Any], way: str, question: str = QUESTION) -> str:
    asked, _, streaming = way.partition(", ")
    made = make(streaming=bool(streaming))
    if asked == "query":
        response = made.query(question)
        return "".join(response.response_gen) if streaming else str(response)
    response = await made.aquery(question)
    return "".join([piece async for piece in response.async_response_gen()]) if streaming else str(response)


def scripted(says: str) -> ConfidenceCascadeLLM:
    """The large model always says this; the small one something else, and is not sure of it."""

    return ConfidenceCascadeLLM(
        models=[ScriptedModel("unsure", lambda _: Reply("a draft", 0.2)), ScriptedModel("sure", lambda _: says)],
        threshold=0.8,
    )


# ---------------------------------------------------------------------- query engines

CALLS = {  # of the LLM, where two nodes are found
    ResponseMode.COMPACT: 1,
    ResponseMode.REFINE: 2,
    ResponseMode.SIMPLE_SUMMARIZE: 1,
    ResponseMode.TREE_SUMMARIZE: 1,
    ResponseMode.GENERATION: 1,
    ResponseMode.ACCUMULATE: 2,
    ResponseMode.COMPACT_ACCUMULATE: 1,
    ResponseMode.NO_TEXT: 0,
    ResponseMode.CONTEXT_ONLY: 0,
}


@pytest.mark.parametrize("mode", list(ResponseMode))
async def test_a_query_engine_in_every_response_mode(llm, nodes, accounted, monkeypatch, mode):
    """Synchronous, asynchronous, streamed where the mode can stream: the same answer."""
    monkeypatch.setattr(Settings, "_llm", llm)  # modes that call no LLM look for one there
    accumulates = mode in (ResponseMode.ACCUMULATE, ResponseMode.COMPACT_ACCUMULATE)
    silent = CALLS[mode] == 0
    answers = set()
    for way in WAYS[: 2 if accumulates or silent else 4]:
        with accounted(llm, calls=CALLS[mode]):
            answers.add(await answer(lambda **p: engine(llm, nodes, k=2, response_mode=mode, **p), way))

    (said,) = answers
    assert said.strip()


async def test_a_query_engine_reads_what_it_finds(llm, nodes, accounted):
    """Real models: most answers are right, and what was passed on was passed on by its scores."""
    right = []
    for question, reference in QUESTIONS:
        with accounted(llm, calls=1) as t:
            said = await answer(lambda **p: engine(llm, nodes, **p), "query", question)
        right.append(said.strip().rstrip(".") == reference)
        for record in t.records:
            assert all(attempt.scores for attempt in record.attempts[:-1])

    assert sum(right) >= len(right) / 2


@pytest.mark.parametrize("mode", [ResponseMode.TREE_SUMMARIZE, ResponseMode.ACCUMULATE])
async def test_a_query_engine_that_asks_concurrently(llm, nodes, accounted, mode):
    """`use_async`: from a synchronous query, LlamaIndex runs a loop in a thread of its own."""
    for way in WAYS[:2]:
        with accounted(llm, calls=2 if mode == ResponseMode.ACCUMULATE else 1):
            await answer(lambda **p: engine(llm, nodes, k=2, response_mode=mode, use_async=True, **p), way)


# ---------------------------------------------------------------------- chat engines


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_a_chat_engine_with_memory(llm, nodes, accounted, way):
    """The second turn takes two calls, one to condense the question; memory holds text and no routing data."""
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)
    chat = CondensePlusContextChatEngine.from_defaults(
        retriever(nodes), llm=llm, memory=memory, context_prompt="Context: {context_str}\n"
    )

    async def say(text: str) -> str:
        response = getattr(chat, way)(text)
        if way == "stream_chat":
            return "".join(response.response_gen)
        response = await response if way.startswith("a") else response
        if way == "astream_chat":
            return "".join([piece async for piece in response.async_response_gen()])
        return str(response)

    with accounted(llm, calls=1):
        first = await say(QUESTION)
    with accounted(llm, calls=2):
        second = await say(QUESTIONS[1][0])

    messages = memory.get_all()
    assert [message.role.value for message in messages] == ["user", "assistant"] * 2
    assert [message.content.strip() for message in messages] == [
        QUESTION,
        first.strip(),
        QUESTIONS[1][0],
        second.strip(),
    ]
    assert all(message.additional_kwargs == {} for message in messages)


# ---------------------------------------------------------------------- engines above engines


def tools(llm: Any, nodes: list[TextNode]) -> list[QueryEngineTool]:
    by_name = {"jobs": nodes[2:], "births": nodes[:2]}
    return [
        QueryEngineTool.from_defaults(engine(llm, some), name=name, description=f"about {name}")
        for name, some in by_name.items()
    ]


@pytest.mark.parametrize("way", WAYS[:2])
async def test_a_router(llm, nodes, accounted, way):
    """The router's choice, and the answer of the engine that it chose."""
    chooser = scripted('[{"choice": 1, "reason": "it asks for a job"}]')
    with accounted(llm, chooser, calls=2) as t:
        selector = LLMSingleSelector.from_defaults(llm=chooser)
        router = RouterQueryEngine(selector, tools(llm, nodes), llm=llm)
        response = await router.aquery(QUESTION) if way == "aquery" else router.query(QUESTION)

    assert response.metadata["selector_result"].ind == 0
    assert [attempt.model for attempt in t.records[0].attempts] == ["unsure", "sure"]
    assert str(response).strip()


@pytest.mark.parametrize("way", ["query", "aquery", "query, use_async"])
async def test_sub_questions(llm, nodes, accounted, way):
    """One call to ask them, one to answer each, one to put the answers together: across loops and threads."""
    asked = [f'{{"sub_question": "{QUESTIONS[i][0]}", "tool_name": "{name}"}}' for i, name in enumerate(("jobs",) * 2)]
    thinker = scripted(f'```json\n{{"items": [{", ".join(asked)}]}}\n```')
    with accounted(llm, thinker, calls=4) as t:
        sub = SubQuestionQueryEngine.from_defaults(
            tools(llm, nodes),
            llm=llm,
            question_gen=LLMQuestionGenerator.from_defaults(llm=thinker),
            use_async="use_async" in way,
            verbose=False,
        )
        response = await sub.aquery("Which jobs?") if way == "aquery" else sub.query("Which jobs?")

    assert t.records[0].answered_by == "sure"
    assert len(response.source_nodes) == 4
    assert str(response).strip()


# ---------------------------------------------------------------------- ingestion


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_ingestion_with_the_llm_of_settings(llm, nodes, accounted, monkeypatch, asynchronous):
    """Two transformations that ask it about every node; what was cached is not asked again."""
    monkeypatch.setattr(Settings, "_llm", llm)
    transformations = [SentenceSplitter(), KeywordExtractor(keywords=2), SummaryExtractor(summaries=["self"])]
    pipeline = IngestionPipeline(transformations=transformations)

    async def ingest() -> Any:
        return await pipeline.arun(nodes=nodes[:3]) if asynchronous else pipeline.run(nodes=nodes[:3])

    with accounted(llm, calls=6):
        ingested = await ingest()
    assert all({"excerpt_keywords", "section_summary"} <= set(node.metadata) for node in ingested)
    with accounted(llm, calls=0):
        assert [node.metadata for node in await ingest()] == [node.metadata for node in ingested]


# ---------------------------------------------------------------------- evaluation


VERDICTS: list[tuple[Any, str, float]] = [
    (FaithfulnessEvaluator, "YES", 1.0),
    (RelevancyEvaluator, "NO", 0.0),
    (CorrectnessEvaluator, "4.0\nnearly", 4.0),
]


@pytest.mark.parametrize(("kind", "verdict", "score"), VERDICTS)
async def test_evaluators(accounted, kind, verdict, score):
    judge = scripted(verdict)
    told = {"query": QUESTION, "response": "dancer", "contexts": ["Vodis Sudal is a dancer."], "reference": "dancer"}
    with accounted(judge, calls=2) as t:
        evaluator = kind(llm=judge)
        assert evaluator.evaluate(**told).score == score
        assert (await evaluator.aevaluate(**told)).score == score

    assert [record.answered_by for record in t.records] == ["sure"] * 2


async def test_evaluators_side_by_side(llm, nodes, accounted):
    """Answers of the bundled models, judged by two evaluators at a time."""
    judge = scripted("YES")
    with accounted(llm, judge, calls=2 * len(QUESTIONS) + len(QUESTIONS)) as t:
        runner = BatchEvalRunner(
            {"faithfulness": FaithfulnessEvaluator(llm=judge), "relevancy": RelevancyEvaluator(llm=judge)}, workers=4
        )
        found = await runner.aevaluate_queries(engine(llm, nodes), queries=[question for question, _ in QUESTIONS])

    assert [result.passing for results in found.values() for result in results] == [True] * 2 * len(QUESTIONS)
    assert sum(record.answered_by == "sure" for record in t.records) == 2 * len(QUESTIONS)


# ---------------------------------------------------------------------- workflows


class Read(Event):
    question: str


class Piece(Event):
    delta: str


class Clerk(Workflow):
    """Answers every question in a step of its own, at the same time, and streams what it reads."""

    llm: Any = None

    @step
    async def begin(self, ctx: Context, event: StartEvent) -> Read | None:
        for question in event.questions:
            ctx.send_event(Read(question=question))
        return None

    @step(num_workers=4)
    async def read(self, ctx: Context, event: Read) -> StopEvent | None:
        text = ""
        async for item in await self.llm.astream_complete(event.question):
            ctx.write_event_to_stream(Piece(delta=item.delta))
            text = item.text
        async with ctx.store.edit_state() as state:
            answers = state["answers"] = {**state.get("answers", {}), event.question: text}
        return StopEvent(result=answers) if len(answers) == len(QUESTIONS) else None


async def test_a_workflow(llm, accounted):
    """Steps are tasks that LlamaIndex starts: the trace around the run has them all."""
    clerk = Clerk(timeout=60)
    clerk.llm = llm
    with accounted(llm, calls=len(QUESTIONS)):
        running = clerk.run(questions=[question for question, _ in QUESTIONS])
        streamed = [event.delta async for event in running.stream_events() if isinstance(event, Piece)]
        answers = await running

    assert set(answers) == {question for question, _ in QUESTIONS}
    assert sorted("".join(streamed)) == sorted("".join(answers.values()))


def says(text: str, **settings: Any) -> ConfidenceCascadeLLM:
    """A cascade that says one thing."""
    models = [ScriptedModel(settings.pop("name", "small"), lambda _: (text, 0.95)), ScriptedModel("large")]
    return ConfidenceCascadeLLM(models=models, **{"threshold": 0.9} | settings)


@pytest.mark.parametrize(
    "other", [{"name": "tiny"}, {"threshold": 0.8}, {"on_error": "raise"}, {"on_exhausted": "best"}]
)
def test_the_ingestion_cache_keeps_cascades_apart(other):
    """Other models, thresholds or settings give other texts; the same cascade, built again, is not asked again."""
    cache = IngestionCache()

    def summary(llm: ConfidenceCascadeLLM) -> str:
        pipeline = IngestionPipeline(transformations=[SummaryExtractor(llm=llm)], cache=cache)
        (node,) = pipeline.run(nodes=[TextNode(text="Tasu has stamps.", id_="n1")])
        return str(node.metadata["section_summary"])

    assert summary(says("first")) == "first"
    assert summary(says("second")) == "first"
    assert summary(says("second", **other)) == "second"


def test_to_dict_holds_names():
    """Of the stages, and the policy's id; it is JSON."""
    told = says("x").to_dict()
    assert told["stages"] == ["small", "large"]
    assert told["policy_id"] in repr(says("x"))
    assert '"on_error": "escalate"' in says("x").to_json()


def settled(**settings: Any) -> dict[str, Any]:
    """What is told of a cascade over OpenAI's client with these settings, itself a stage of another."""
    stage = OpenAI(model="gpt-4o-mini", **{"api_key": "SECRETKEY", "api_base": "http://secrethost/v1"} | settings)
    inner = ConfidenceCascadeLLM(models=[stage, ScriptedModel("large")], threshold=0.9)
    return ConfidenceCascadeLLM(models=[inner, ScriptedModel("largest")], threshold="always").to_dict()


@pytest.mark.parametrize(
    "other", [{"temperature": 0.9}, {"max_tokens": 5}, {"api_base": "http://other/v1"}, {"system_prompt": "In French."}]
)
def test_to_dict_tells_the_settings_of_stages_apart(other):
    """As that of an LLM by itself does, also of a cascade in a cascade; but a new key gives the same answers."""
    assert settled() == settled()
    assert settled() == settled(api_key="another", default_headers={"x": "another"})
    assert settled() != settled(**other)
    assert "secret" not in str(settled(system_prompt="A secret.")).lower()


def test_to_dict_tells_servers_of_core_models_apart():
    """They have the name of the model, and no more."""

    def told(url: str) -> dict[str, Any]:
        return ConfidenceCascadeLLM(models=[OpenAICompatibleModel("m", base_url=url, api_key="none")]).to_dict()

    assert told("http://one/v1") == told("http://one/v1") != told("http://two/v1")
