from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from confcascade import (
    Cascade,
    ConfigurationError,
    FormatProbability,
    KnowledgeProbe,
    Message,
    ModelError,
    Outcome,
    Request,
    RetrievalScore,
    Stage,
    StreamBrokenError,
    TiesByLot,
    TokenProbability,
    drivers,
    trace,
)
from confcascade.asks import Answer, Flow, Generate, Prefill
from confcascade.checks import checking
from confcascade.extending import Chunk, Prefilled, Response, Signal
from confcascade.models.base import InThreads
from confcascade.signals.knowledge_probe import ProbeCard
from confcascade.testing import Reply, ScriptedModel, same_record
from confcascade.types import Tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FIVE = "one two three four five"


def probe(model: str = "small") -> KnowledgeProbe:
    """A probe that reads the first of two dimensions: P(IK) = 1 / (1 + exp(-x))."""
    card = ProbeCard(model, f"scripted-{model}", 2, 2, (1, 1, 1), 0.5, (0.5, 0.5), 0.25, 1, 0)
    flat = {"mean": np.zeros(2, np.float32), "scale": np.ones(2, np.float32)}
    weights = {"weight.0": np.array([[1], [0]], np.float32), "bias.0": np.zeros(1, np.float32)}
    return KnowledgeProbe(card, {**flat, **weights})


CONFIGURATIONS: dict[str, tuple[Callable[[], list[Signal]], bool]] = {
    # signals, and whether the model prefills
    "mean": (lambda: [TokenProbability()], False),
    "min": (lambda: [TokenProbability(aggregate="min")], False),
    "product": (lambda: [TokenProbability(aggregate="product")], False),
    "first": (lambda: [TokenProbability(aggregate="first")], False),
    "opening": (lambda: [TokenProbability(first=2)], False),
    "after": (lambda: [TokenProbability(after="two")], False),
    "labels, no prefill": (lambda: [TokenProbability("AB")], False),
    "labels, prefill": (lambda: [TokenProbability("AB")], True),
    "format": (lambda: [FormatProbability("A")], False),
    "format and labels, prefill": (lambda: [FormatProbability("A"), TokenProbability("BC")], True),
    "mean, prefill": (lambda: [TokenProbability()], True),
    "probe": (lambda: [probe()], True),
    "probe and mean": (lambda: [probe(), TokenProbability()], True),
    "probe and min": (lambda: [probe(), TokenProbability(aggregate="min")], True),
    "probe and first": (lambda: [probe(), TokenProbability(aggregate="first")], True),
    "probe and labels": (lambda: [probe(), TokenProbability("AB")], True),
    "first and product": (
        lambda: [TokenProbability(aggregate="first"), TokenProbability(aggregate="product", name="all")],
        False,
    ),
    "product, ties by lot": (lambda: [TiesByLot(TokenProbability(aggregate="product"))], False),
    "labels, ties by lot, prefill": (lambda: [TiesByLot(TokenProbability("AB"))], True),
    "labels and mean": (lambda: [TokenProbability("AB"), TokenProbability(name="mean")], True),
}


@st.composite
def replies(draw: Any, name: str) -> Reply:
    """What one model says to one query; its words tell whose they are."""
    words = draw(st.lists(st.sampled_from(["one", "two", "three", "A", "B"]), max_size=5))
    p = st.floats(0.05, 1.0)
    return Reply(
        " ".join(f"{name}:{word}" for word in words),
        probability=draw(st.none() | st.lists(p, min_size=len(words), max_size=len(words))),
        labels=draw(st.sampled_from([{}, {"A": 0.6, "B": 0.3}, {" A": 0.3, "A": 0.4}, {"B": 0.2}, {"C": 0.9}])),
        hidden=(draw(st.floats(-3, 3)), 1.0),
        error=draw(st.sampled_from([None, None, None, ModelError(f"{name} is down")])),
        after=draw(st.integers(0, 3)),
    )


@st.composite
def scripts(draw: Any) -> dict[str, dict[str, Reply]]:
    """What three models say to up to four queries."""
    queries = [f"q{i}" for i in range(draw(st.integers(1, 4)))]
    return {name: {query: draw(replies(name)) for query in queries} for name in ("small", "middle", "large")}


class Shown:
    """What a stream showed, and how it ended."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.outcome: Any = None

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    def add(self, item: Chunk | Outcome) -> None:
        assert self.outcome is None, "the outcome is the last item"
        if isinstance(item, Outcome):
            self.outcome = item
        else:
            self.chunks.append(item)


def attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


def streamed(cascade: Cascade, query: Any) -> Shown:
    shown = Shown()
    try:
        for item in cascade.stream(query):
            shown.add(item)
    except Exception as error:
        shown.outcome = error
    return shown


async def astreamed(cascade: Cascade, query: Any) -> Shown:
    shown = Shown()
    try:
        async for item in cascade.astream(query):
            shown.add(item)
    except Exception as error:
        shown.outcome = error
    return shown


async def every_async(cascade: Cascade, queries: Sequence[str]) -> tuple[list[Any], list[Any], list[Shown]]:
    single = []
    for query in queries:
        try:
            single.append(await cascade.arun(query))
        except Exception as error:
            single.append(error)
    batch = await cascade.arun_batch(queries, return_exceptions=True)
    return single, batch, [await astreamed(cascade, query) for query in queries]


def batch_by(driver: str, cascade: Cascade, queries: Sequence[str], **options: Any) -> list[Any]:
    if driver == "run_batch":
        return cascade.run_batch(queries, **options)
    return asyncio.run(cascade.arun_batch(queries, **options))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Outcome) and isinstance(b, Outcome):
        return a.response == b.response and same_record(a.record.as_dict(), b.record.as_dict())
    return type(a) is type(b) and str(a) == str(b)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts(), batch_size=st.integers(1, 3), threshold=st.floats(0.2, 0.9))
def test_all_drivers_decide_alike(configuration: str, script: Any, batch_size: int, threshold: float):
    """Six drivers give one record and one answer for the same query, whatever the models say and however they fail.

    The one exception is a model that breaks off an answer of which a part was shown: a stream cannot take it back.
    """
    make, prefills = CONFIGURATIONS[configuration]
    signals = make()
    small = ScriptedModel("small", script["small"], hidden_size=2 if prefills else 0, batch_size=batch_size)
    middle = ScriptedModel("middle", script["middle"])
    large = ScriptedModel("large", script["large"], batch_size=2)
    thresholds = {signal.name: threshold for signal in signals}
    cascade = Cascade(
        [Stage(small, signals, thresholds), Stage(middle, [TokenProbability()], {"p_t": threshold}), Stage(large)]
    )
    queries = list(script["small"])

    run = [attempt(lambda query=query: cascade.run(query)) for query in queries]
    small.calls.clear()
    small.most_open_caches = 0
    batch = cascade.run_batch(queries, return_exceptions=True)
    calls, most_open_caches = list(small.calls), small.most_open_caches
    arun, abatch, astream = asyncio.run(every_async(cascade, queries))
    stream = [streamed(cascade, query) for query in queries]

    for i in range(len(queries)):
        assert same(run[i], batch[i])
        assert same(run[i], arun[i])
        assert same(run[i], abatch[i])
        assert same(stream[i].outcome, astream[i].outcome)
        assert stream[i].chunks == astream[i].chunks
        assert all(chunk.released for chunk in stream[i].chunks)
        if isinstance(stream[i].outcome, StreamBrokenError):
            assert stream[i].text.strip()
            assert "is down" in str(stream[i].outcome)
        else:
            assert same(run[i], stream[i].outcome)
            assert stream[i].text == (run[i].text if isinstance(run[i], Outcome) else "")
    assert all(len(call) <= batch_size for call in calls)
    assert most_open_caches <= batch_size
    assert small.open_caches == 0


# ---------------------------------------------------------------------- what a stream shows, and when


class Stepping(ScriptedModel):
    """Tells how many pieces of its last stream were taken from it, and whether it was closed."""

    taken = 0
    closed = False

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        self.taken, self.closed = 0, False
        try:
            for item in super().stream(ask):
                self.taken += 1
                yield item
        finally:
            self.closed = True


def stepping(aggregate: Any, probabilities: Sequence[float], threshold: float = 0.5) -> tuple[Stepping, Cascade]:
    small = Stepping("small", {"q": Reply(FIVE, probabilities)})
    signal = TokenProbability(aggregate=aggregate)
    return small, Cascade([Stage(small, [signal], {"p_t": threshold}), Stage(ScriptedModel("large", {"q": "6"}))])


def test_an_accepted_answer_streams_from_its_first_token():
    """With the first token as the signal, a word is shown before the model has generated the next."""
    small, cascade = stepping("first", [0.9, 0.1, 0.1, 0.1, 0.1])
    taken = []
    for item in cascade.stream("q"):
        taken.append(small.taken)
        assert isinstance(item, Outcome) or item.text == FIVE.split()[len(taken) - 1].rjust(len(item.text))

    assert taken == [1, 2, 3, 4, 5, 6]


def opening(script: Any, **parameters: Any) -> tuple[Stepping, Cascade]:
    small = Stepping("small", {"q": script}, tools=True)
    stage = Stage(small, [TokenProbability(first=2)], {"p_t": 0.5})
    return small, Cascade([stage, Stage(ScriptedModel("large", {"q": "6"}, tools=True))])


def when_shown(small: Stepping, items: Iterable[Chunk | Outcome]) -> list[int]:
    """How many pieces had come from the model as each with text was shown."""
    return [small.taken for item in items if isinstance(item, Chunk) and item.text]


def test_an_answer_streams_from_where_its_opening_is_complete():
    """Two tokens decide: both are shown when the second has come, the others as they come."""
    small, cascade = opening(Reply(FIVE, [0.9, 0.9, 0.1, 0.1, 0.1]))

    assert when_shown(small, cascade.stream("q")) == [2, 2, 3, 4, 5]


def test_an_opening_of_thoughts_shows_nothing():
    """Tokens count from the answer's first: a model that thinks is shown once two tokens of its answer have come."""
    small, cascade = opening(Reply("<think> hm </think> one two three", [0.1, 0.1, 0.1, 0.9, 0.9, 0.1]))

    assert when_shown(small, cascade.stream("q"))[0] == 5


def test_an_opening_decides_nothing_that_must_be_whole():
    """With a check, tools or a schema in the request, the draft is held to its end, however sure its opening."""
    small, cascade = opening(Reply(FIVE, [0.9, 0.9, 0.9, 0.9, 0.9]))
    tool = Tool("look", "Looks.", {"type": "object", "properties": {}})

    with checking(lambda text: "five" in text):
        assert when_shown(small, cascade.stream("q")) == [6] * 5
    assert when_shown(small, cascade.stream("q", tools=(tool,))) == [6] * 5
    with checking(lambda text: "nine" in text):
        assert [item.text for item in cascade.stream("q") if isinstance(item, Chunk)] == ["6"]


def test_behind_signals_that_judge_the_prompt_a_draft_streams_at_once():
    """Nothing that comes can withdraw it."""
    small = Stepping("small", {"q": Reply(FIVE, 0.1)})
    gate = Stage(small, [RetrievalScore()], {"retrieval": 0.5})
    cascade = Cascade([gate, Stage(ScriptedModel("large"))])

    assert when_shown(small, cascade.stream(Request((Message("user", "q"),), retrieved=(0.9,)))) == [1, 2, 3, 4, 5]


async def test_an_accepted_answer_streams_from_its_first_token_asynchronously():
    """The asynchronous stream is as early."""
    small, cascade = stepping("first", [0.9, 0.1, 0.1, 0.1, 0.1])

    assert [small.taken async for _ in cascade.astream("q")] == [1, 2, 3, 4, 5, 6]


def test_an_undecided_answer_is_held_back():
    """A mean is known at the end: nothing is shown before, and everything then."""
    small, cascade = stepping("mean", [0.9] * 5)

    assert [(small.taken, item.text) for item in cascade.stream("q")][:2] == [(6, "one"), (6, " two")]


def test_the_last_stage_streams_live():
    """Nothing can withdraw the last stage's answer: it streams from its first token, without any signal."""
    model = Stepping("m", {"q": FIVE})
    cascade = Cascade([Stage(model)])

    assert [model.taken for _ in cascade.stream("q")] == [1, 2, 3, 4, 5, 6]


def test_a_rejected_draft_is_never_shown():
    """Of a cascade that escalates, only the answer is seen."""
    _, cascade = stepping("mean", [0.1] * 5)
    *chunks, outcome = cascade.stream("q")

    assert "".join(chunk.text for chunk in chunks) == "6" == outcome.text


def test_a_degraded_answer_is_shown_at_last():
    """If the last stage fails, the stream shows the earlier answer that is returned."""
    small = ScriptedModel("small", {"q": (FIVE, 0.1)})
    large = ScriptedModel("large", {"q": Reply("", error=ModelError("down"))})
    *chunks, outcome = Cascade(
        [Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(large)], on_exhausted="best"
    ).stream("q")

    assert ("".join(chunk.text for chunk in chunks), outcome.record.degraded) == (FIVE, True)


def test_a_doomed_answer_is_ended():
    """With the least probable token as the signal, generation ends where it fell too low, in all drivers."""
    small, cascade = stepping("min", [0.9, 0.9, 0.2, 0.9, 0.9])

    *_, outcome = cascade.stream("q")
    assert small.taken == 4  # three words, and the response that says "aborted"

    others = [cascade.run("q"), *cascade.run_batch(["q"]), asyncio.run(cascade.arun("q"))]
    for each in [outcome, *others]:
        first = each.record.attempts[0]
        assert (first.aborted, first.decision, first.usage.output_tokens) == (True, "escalate", 3)
        assert each.text == "6"


def test_a_degraded_answer_keeps_its_native_object():
    """Where an earlier answer is what is returned, its chunk carries the framework's own object."""
    draft = Response("maybe", native=object())
    down = ScriptedModel("large", {"q": Reply("", error=ModelError("down"))})
    cascade = Cascade([Stage(Saying(draft), [TokenProbability()], {"p_t": 0.5}), Stage(down)], on_exhausted="best")

    shown = streamed(cascade, "q")

    assert [(chunk.text, chunk.native) for chunk in shown.chunks] == [("maybe", draft.native)]
    assert shown.outcome.record.degraded


class Saying(ScriptedModel):
    """Answers with the items it was given, whatever it is asked."""

    def __init__(self, *items: Any) -> None:
        super().__init__("saying")
        self.items = items

    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        return [self.items[-1] for _ in asks]

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        for item in self.stream(ask):
            yield item


def before(last: ScriptedModel) -> Cascade:
    small = ScriptedModel("small", {"q": ("3", 0.1)})
    return Cascade([Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(last)], on_exhausted="best")


@pytest.mark.parametrize(("end", "text"), [(Response(" \n"), " \n"), (ModelError("down"), "3")], ids=["empty", "error"])
def test_white_space_is_not_shown_before_there_is_text(end: Any, text: str):
    """What follows may fail, and an earlier answer take its place; so it must not have been shown, not even live."""
    cascade = before(Saying(Chunk(" ", released=True), Chunk("\n", released=True), end))

    *chunks, outcome = cascade.stream("q")
    shown = asyncio.run(astreamed(cascade, "q"))

    assert "".join(chunk.text for chunk in chunks) == outcome.text == cascade.run("q").text == text
    assert (shown.text, shown.outcome.text) == (text, text)


def test_a_call_of_a_tool_streams_live_without_text():
    """It is an answer: nothing of it is held back for a text that never comes."""
    shown: list[Any] = []

    with pytest.raises(StreamBrokenError):
        shown.extend(before(Saying(Chunk("", released=True, native=1, calls_tool=True), ModelError("cut"))).stream("q"))

    assert [chunk.native for chunk in shown] == [1]


def test_white_space_is_shown_with_the_text_that_follows():
    """Nothing of an answer gets lost by holding white space back."""
    cascade = Cascade([Stage(Saying(Chunk("\n", released=True), Chunk("4", released=True), Response("\n4")))])

    assert streamed(cascade, "q").text == "\n4"


def test_a_stream_that_breaks_after_text_was_shown_is_an_error():
    """What was shown cannot be taken back: the query fails with the cause, and no other stage is asked."""
    error = ModelError("cut")
    cascade = before(Saying(Chunk("4", released=True), error))
    for shown in (streamed(cascade, "q"), asyncio.run(astreamed(cascade, "q"))):
        assert shown.text == "4"
        assert isinstance(shown.outcome, StreamBrokenError)
        assert shown.outcome.__cause__ is error


def test_a_stream_that_breaks_before_anything_was_shown_escalates():
    """A draft that was held back can be withdrawn: the next stage answers, as in every other driver."""
    small = ScriptedModel("small", {"q": Reply(FIVE, 0.9, error=ModelError("cut"), after=3)})
    cascade = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large", {"q": "6"}))])

    assert streamed(cascade, "q").text == "6"
    assert cascade.run("q").text == "6"


def test_a_stream_without_a_response_is_an_error_of_the_model():
    """A model that breaks the contract fails by a name that can be understood."""
    shown = streamed(before(Saying(Chunk("4"))), "q")

    assert shown.outcome.record.attempts[1].error == "ModelError: The stream ended without a response."


def test_a_stream_that_cannot_even_begin_is_an_error_of_the_model():
    """A `stream` that raises when it is called, and not when it is read, reaches the flow as well."""

    class Refusing(ScriptedModel):
        def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
            raise ModelError("no")

        def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
            raise ModelError("no")

    cascade = before(Refusing("large"))

    assert streamed(cascade, "q").text == asyncio.run(astreamed(cascade, "q")).text == "3"


def test_latency_is_the_models_not_the_readers():
    """A reader who takes his time between chunks does not make the model slower, nor dearer."""
    cascade = Cascade([Stage(ScriptedModel("m", {"q": FIVE}))])
    for item in cascade.stream("q"):
        if isinstance(item, Chunk):
            time.sleep(0.03)
        else:
            assert item.record.attempts[0].latency_s < 0.1
            assert item.record.cost.seconds < 0.1


# ---------------------------------------------------------------------- leaving early


def leaving(delay_s: float = 0.0) -> tuple[Stepping, Cascade]:
    """A model whose answer streams while its KV cache is open."""
    small = Stepping("small", {"q": Reply(FIVE, 0.9, hidden=(3.0, 0.0), delay_s=delay_s)}, hidden_size=2, batch_size=2)
    signals = [probe(), TokenProbability(aggregate="first")]
    return small, Cascade([Stage(small, signals, {"p_ik": 0.5, "p_t": 0.5}), Stage(ScriptedModel("large"))])


def test_a_reader_may_leave_a_stream():
    """Closing a stream ends the model's, and frees its KV cache at once."""
    small, cascade = leaving()
    items = cascade.stream("q")
    next(items)
    assert (small.open_caches, small.closed) == (1, False)

    items.close()

    assert (small.open_caches, small.closed, small.taken) == (0, True, 1)


async def test_a_reader_may_leave_an_asynchronous_stream():
    """The same holds for the asynchronous stream."""
    small, cascade = leaving()
    items = cascade.astream("q")
    await anext(items)
    assert small.open_caches == 1

    await items.aclose()

    assert (small.open_caches, small.taken) == (0, 1)


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_a_batch_may_be_left(driver: str):
    """A callback that raises ends the batch: no further model is asked, and no KV cache stays open."""
    small = ScriptedModel("small", lambda _: Reply(FIVE, 0.9, hidden=(3.0, 0.0)), hidden_size=2, batch_size=3)
    cascade = Cascade([Stage(small, [probe()], {"p_ik": 0.5}), Stage(ScriptedModel("large"))])

    def stop(index: int, result: Any) -> None:
        raise KeyError(index)

    with pytest.raises(KeyError):
        batch_by(driver, cascade, ["q"] * 9, on_result=stop)

    assert small.open_caches == 0
    assert [type(call[0]) for call in small.calls].count(Generate) == 1


class LateReader(ScriptedModel):
    """Reads no prompt before `gate` is open."""

    def __init__(self, name: str, script: Any, **more: Any) -> None:
        super().__init__(name, script, **more)
        self.gate = threading.Event()

    def prefill(self, asks: Sequence[Prefill]) -> list[Any]:
        self.gate.wait()
        return super().prefill(asks)

    async def aprefill(self, asks: Sequence[Prefill]) -> list[Any]:
        while not self.gate.is_set():
            await asyncio.sleep(0)
        return super().prefill(asks)


def test_a_call_that_ended_after_its_reader_left():
    """What was under way when a batch was left ends by itself: its KV caches are freed, too."""

    def flows() -> tuple[LateReader, list[Flow[Outcome]]]:
        small = LateReader("small", lambda _: Reply(FIVE, 0.9, hidden=(3.0, 0.0)), hidden_size=2, batch_size=3)
        cascade = Cascade([Stage(small, [probe()], {"p_ik": 0.5}), Stage(ScriptedModel("large"))])
        quick = Cascade([Stage(ScriptedModel("quick"))])
        return small, [quick.flow(REQUEST), *(cascade.flow(REQUEST) for _ in range(3))]

    async def asynchronously() -> int:
        small, asked = flows()
        ended = drivers.arun_many(asked, 4)
        await anext(ended)
        small.gate.set()
        while small.open_caches < 3:  # the prompts have been read in the meantime
            await asyncio.sleep(0)
        await ended.aclose()  # type: ignore[attr-defined]
        return small.open_caches

    small, asked = flows()
    ended = drivers.run_many(asked, 4)
    next(ended)
    small.gate.set()
    while small.open_caches < 3:
        time.sleep(0.001)
    ended.close()  # type: ignore[attr-defined]
    assert small.open_caches == 0

    assert asyncio.run(asynchronously()) == 0


class Waiting(ScriptedModel):
    """Never answers, and tells that it was cancelled."""

    waiting = 0
    cancelled = 0

    async def agenerate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        self.waiting += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return []

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        await self.agenerate([ask])
        yield Chunk("")


@pytest.mark.parametrize("driver", ["arun", "astream", "arun_batch"])
async def test_cancelling_reaches_the_model(driver: str):
    """A cancelled query cancels the call under way, frees its KV cache, and asks no further stage."""
    small = Waiting("small", {"q": Reply("3", hidden=(3.0, 0.0))}, hidden_size=2, batch_size=2)
    large = ScriptedModel("large")
    cascade = Cascade([Stage(small, [probe()], {"p_ik": 0.5}), Stage(large)])

    async def ask() -> None:
        if driver == "arun":
            await cascade.arun("q")
        elif driver == "arun_batch":
            await cascade.arun_batch(["q", "q"])
        else:
            async for _ in cascade.astream("q"):
                pass

    task = asyncio.create_task(ask())
    while not small.waiting:
        await asyncio.sleep(0)
    assert small.open_caches == (2 if driver == "arun_batch" else 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert small.cancelled == small.waiting == 1
    assert small.open_caches == 0
    assert large.calls == []


async def test_cancelling_a_batch_reaches_every_call():
    """Calls to an API that are under way at the same time are all cancelled by the time the batch has ended."""
    model = Waiting("m")
    task = asyncio.create_task(Cascade([Stage(model)]).arun_batch(["q"] * 7, max_concurrency=5))
    while model.waiting < 5:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (model.waiting, model.cancelled) == (5, 5)


# ---------------------------------------------------------------------- many at once


class Counting(ScriptedModel):
    """Counts how many of its calls are under way at the same time.

    With `together`, none of the first calls is answered before that many are under way, or two seconds have passed.
    """

    def __init__(self, *args: Any, together: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.now = self.most = 0
        self._together = together
        self._lock = threading.Lock()
        self._met = threading.Event()

    def _enter(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self._together:
                self._met.set()

    def prefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        self._enter()
        time.sleep(0.005)
        found = super().prefill(asks)
        with self._lock:
            self.now -= 1
        return found

    async def aprefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        return await asyncio.to_thread(self.prefill, asks)

    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        self._enter()
        self._met.wait(2)
        answers = super().generate(asks)
        with self._lock:
            self.now -= 1
        return answers

    async def agenerate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        self._enter()
        for _ in range(200):
            await asyncio.sleep(0 if self._met.is_set() else 0.01)
            if self._met.is_set():
                break
        answers = ScriptedModel.generate(self, asks)
        self.now -= 1
        return answers


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
@pytest.mark.parametrize("concurrency", [1, 3, 10])
def test_an_api_is_asked_many_things_at_once(driver: str, concurrency: int):
    """Remote calls overlap up to `max_concurrency`, and never exceed it; each carries one query."""
    model = Counting("m", lambda request: f"to {request.messages[-1].content}", together=concurrency)
    queries = [f"q{i}" for i in range(20)]

    outcomes = batch_by(driver, Cascade([Stage(model)]), queries, max_concurrency=concurrency)

    assert [outcome.text for outcome in outcomes] == [f"to {query}" for query in queries]
    assert model.most == concurrency
    assert all(len(call) == 1 for call in model.calls)


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_an_api_answers_many_in_the_time_of_few(driver: str):
    """Twenty answers of 0.05 s each, ten at a time, take much less than a second."""
    model = ScriptedModel("m", lambda _: Reply("ok", delay_s=0.05))

    started = time.perf_counter()
    batch_by(driver, Cascade([Stage(model)]), ["q"] * 20, max_concurrency=10)

    assert time.perf_counter() - started < 0.6


class Gated(ScriptedModel):
    """Answers "slow" only once everything else has ended, or after five seconds."""

    opened = False

    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        for _ in range(1000):
            if self.opened or asks[0].request.messages[0].content != "slow":
                break
            time.sleep(0.005)
        return super().generate(asks)

    async def agenerate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        return await asyncio.to_thread(self.generate, asks)


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_slow_queries_do_not_hold_others_up(driver: str):
    """An answer from an API never waits at a barrier: each query ends as soon as its own answers are there."""
    model = Gated("m")
    ended: list[int] = []

    def note(index: int, _: Any) -> None:
        ended.append(index)
        model.opened = len(ended) == 8

    batch_by(driver, Cascade([Stage(model)]), ["slow", *["quick"] * 8], max_concurrency=2, on_result=note)

    assert ended[-1] == 0


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_a_local_model_is_asked_in_full_batches(driver: str):
    """Ten queries go to a model of batch size 4 in three calls, as full as they can be, one call at a time."""
    model = Counting("m", lambda request: "ok", batch_size=4)

    batch_by(driver, Cascade([Stage(model)]), ["q"] * 10)

    assert [len(call) for call in model.calls] == [4, 4, 2]
    assert model.most == 1


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_limits_hold_for_later_stages(driver: str):
    """A whole batch that escalates at once meets the next model's batch size, and the last one's concurrency."""
    small = ScriptedModel("small", lambda _: ("3", 0.1), batch_size=8)
    middle = ScriptedModel("middle", lambda _: ("3", 0.1), batch_size=3)
    large = Counting("large", lambda _: "4", together=2)
    signals, thresholds = [TokenProbability()], {"p_t": 0.5}
    cascade = Cascade([Stage(small, signals, thresholds), Stage(middle, signals, thresholds), Stage(large)])

    outcomes = batch_by(driver, cascade, ["q"] * 16, max_concurrency=2)

    assert [outcome.text for outcome in outcomes] == ["4"] * 16
    assert max(len(call) for call in small.calls) == 8
    assert max(len(call) for call in middle.calls) == 3
    assert large.most == 2


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_what_was_prefilled_is_generated_first(driver: str, batch_size: int):
    """KV caches never exceed one batch: each is read, decided and generated before the next is read.

    Also where the batch size is 1: a model that prefills computes in this process, one call at a time.
    """
    queries = [f"q{i}" for i in range(10)]
    script = {q: Reply(q, 0.9, hidden=(3.0 if i % 3 else -3.0, 0.0)) for i, q in enumerate(queries)}
    small = Counting("small", script, hidden_size=2, batch_size=batch_size)
    # the other model answers while this one reads: those flows end, and let new ones start
    large = ScriptedModel("large")
    cascade = Cascade([Stage(small, [probe(), TokenProbability()], {"p_ik": 0.5, "p_t": 0.5}), Stage(large)])

    outcomes = batch_by(driver, cascade, queries)

    assert [outcome.record.answered_by for outcome in outcomes] == [
        "large" if i % 3 == 0 else "small" for i in range(10)
    ]
    assert (small.most_open_caches, small.open_caches, small.most) == (batch_size, 0, 1)
    assert all(len(call) <= batch_size for call in small.calls)
    waiting = 0
    for call in small.calls:
        if isinstance(call[0], Prefill):
            assert waiting == 0, "the next batch is read only after the last was generated"
            waiting = sum(small.reply(ask.request).hidden[0] > 0 for ask in call)
        else:
            waiting -= len(call)
    assert waiting == 0


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_a_bad_query_fails_alone(driver: str, caplog: pytest.LogCaptureFixture):
    """An exception of a whole call, or in one answer's place, meets the query it was for; a batch is asked again."""

    class Failing(ScriptedModel):
        def prefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
            if any(ask.request.messages[0].content == "poison" for ask in asks):
                raise MemoryError("no room")
            found = super().prefill(asks)
            return [
                ModelError("odd") if a.request.messages[0].content == "odd" else f
                for a, f in zip(asks, found, strict=True)
            ]

    name = f"fails in {driver}"
    small = Failing(name, lambda request: Reply("3", hidden=(3.0, 0.0)), hidden_size=2, batch_size=2)
    cascade = Cascade([Stage(small, [probe(name)], {"p_ik": 0.5}), Stage(ScriptedModel("large", lambda _: "4"))])

    outcomes = batch_by(driver, cascade, ["poison", "b", "odd", "d", "poison"])

    assert [outcome.text for outcome in outcomes] == ["4", "3", "4", "3", "4"]
    assert [outcome.record.attempts[0].error for outcome in outcomes] == [
        "MemoryError",
        None,
        "ModelError: odd",
        None,
        "MemoryError",
    ]
    said = [record.getMessage() for record in caplog.records if record.name == "confcascade"]
    assert said == [
        f"A call of model '{name}' for 2 queries failed: MemoryError. They are asked one by one, which is slower. "
        "Logged once for each kind.",
        f"Model '{name}' failed: MemoryError. Its queries escalate. Logged once for each kind.",
        f"Model '{name}' failed: ModelError: odd. Its queries escalate. Logged once for each kind.",
    ]


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_a_failing_continuation_is_asked_again_from_the_prompt(driver: str):
    """The cache that a batch continued from may be gone with it."""

    class Failing(ScriptedModel):
        def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
            if len(asks) > 1:
                raise RuntimeError("sizes of tensors must match")
            return super().generate(asks)

    small = Failing("small", lambda _: Reply("3", hidden=(3.0, 0.0)), hidden_size=2, batch_size=4)
    cascade = Cascade([Stage(small, [probe()], {"p_ik": 0.5}), Stage(ScriptedModel("large", lambda _: "4"))])

    outcomes = batch_by(driver, cascade, list("abcd"))

    assert [outcome.text for outcome in outcomes] == ["3"] * 4
    assert small.open_caches == 0


@pytest.mark.parametrize("driver", ["run", "arun", "stream", "astream"])
def test_a_models_fault_is_logged(driver: str, caplog: pytest.LogCaptureFixture):
    """A cascade that only escalates would hide it."""
    name = f"faulty in {driver}"
    script = {"bad": Reply("", error=AttributeError("no such thing")), "long": Reply("", error=ModelError("too long"))}
    faulty = ScriptedModel(name, script, batch_size=2)
    cascade = Cascade([Stage(faulty, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large"))])

    for question in ("long", "bad", "bad"):
        calls: dict[str, Callable[[], Any]] = {
            "run": lambda query=question: cascade.run(query),
            "arun": lambda query=question: asyncio.run(cascade.arun(query)),
            "stream": lambda query=question: streamed(cascade, query),
            "astream": lambda query=question: asyncio.run(astreamed(cascade, query)),
        }
        calls[driver]()

    said = [record.getMessage() for record in caplog.records if record.name == "confcascade"]
    assert said == [
        f"Model '{name}' failed: ModelError: too long. Its queries escalate. Logged once for each kind.",
        f"Model '{name}' failed: AttributeError. Its queries escalate. Logged once for each kind.",
    ]


@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_errors_take_their_querys_place(driver: str):
    """With `return_exceptions`, an error stands where the outcome would; without, the first of them is raised."""
    script = {"b": Reply("", error=ModelError("b")), "d": Reply("", error=ModelError("d"))}
    cascade = Cascade([Stage(ScriptedModel("m", script))])
    results: dict[int, Any] = {}

    listed = batch_by(driver, cascade, "a b c d".split(), return_exceptions=True, on_result=results.__setitem__)

    assert [type(result) for result in listed] == [Outcome, ModelError, Outcome, ModelError]
    assert listed == [results[i] for i in range(4)]
    with pytest.raises(ModelError, match=r"^b$"):
        batch_by(driver, cascade, "a b c d".split())


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None, "4"], ids=str)
@pytest.mark.parametrize("driver", ["run_batch", "arun_batch"])
def test_a_concurrency_that_cannot_work_is_refused(driver: str, wrong: Any):
    """No concurrency would mean waiting for ever; it is refused instead."""
    with pytest.raises(ConfigurationError, match="`max_concurrency` must be a whole number of at least 1"):
        batch_by(driver, Cascade([Stage(ScriptedModel("m"))]), ["q"], max_concurrency=wrong)


def test_a_batch_of_nothing():
    """No queries, no outcomes."""
    cascade = Cascade([Stage(ScriptedModel("m"))])

    assert cascade.run_batch([]) == asyncio.run(cascade.arun_batch(iter(()))) == []


# ---------------------------------------------------------------------- flows of any kind


REQUEST = Request((Message("user", "q"),))


def two_at_once(first: ScriptedModel, second: ScriptedModel) -> Flow[str]:
    """Asks two models in one step; their answers come in the order of the asks."""
    one, two = yield Generate(first, REQUEST), Generate(second, REQUEST)
    return f"{one.unwrap().text}, {two.unwrap().text}"


def nothing(result: str) -> Flow[str]:
    """Ends without asking anything."""
    if not result:
        raise ModelError("nothing")
    return result
    yield ()


async def listed(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_a_flow_may_ask_several_things_at_once():
    """All asks of a step are answered together, in their order, by every driver, one model being local and slow."""
    slow = ScriptedModel("slow", {"q": Reply("slow", delay_s=0.03)})
    quick = ScriptedModel("quick", {"q": "quick"}, batch_size=2)

    assert drivers.run(two_at_once(slow, quick)) == "slow, quick"
    assert asyncio.run(drivers.arun(two_at_once(slow, quick))) == "slow, quick"
    for many in (
        list(drivers.run_many([two_at_once(slow, quick), two_at_once(quick, slow)], 4)),
        asyncio.run(listed(drivers.arun_many([two_at_once(slow, quick), two_at_once(quick, slow)], 4))),
    ):
        assert sorted(many) == [(0, "slow, quick"), (1, "quick, slow")]


def test_a_flow_may_ask_nothing():
    """A flow that ends at once has its result, or its error, like any other."""
    assert drivers.run(nothing("a")) == asyncio.run(drivers.arun(nothing("a"))) == "a"
    for many in (
        list(drivers.run_many([nothing("a"), nothing(""), nothing("c")], 4)),
        asyncio.run(listed(drivers.arun_many([nothing("a"), nothing(""), nothing("c")], 4))),
    ):
        results = dict(many)
        assert (results[0], type(results[1]), results[2]) == ("a", ModelError, "c")


def test_prefills_that_are_not_continued_are_freed():
    """Of several prefills in one step, those that the next step continues from stay open, the others are freed."""
    model = ScriptedModel("m", {"q": "a"}, hidden_size=2, batch_size=2)
    seen: list[int] = []

    def flow() -> Flow[str]:
        one, _ = yield Prefill(model, REQUEST, (1,)), Prefill(model, REQUEST, (1,))
        (answer,) = yield (Generate(model, REQUEST, prefilled=one.unwrap()),)
        seen.append(model.open_caches)
        return answer.unwrap().text

    assert drivers.run(flow()) == "a"
    assert (seen, model.open_caches, model.most_open_caches) == ([1], 0, 2)


def test_time_is_measured_and_shared():
    """Every answer, an error too, knows how long its call took, and its share of a call for several."""
    answers: list[Answer[Any]] = []

    def flow() -> Flow[None]:
        answers.extend((yield (Generate(slow, REQUEST),)))

    slow = ScriptedModel("m", {"q": Reply("a", delay_s=0.04)}, batch_size=2)
    drivers.run(flow())
    list(drivers.run_many([flow(), flow()], 2))
    slow = ScriptedModel("m", {"q": Reply("a", delay_s=0.04, error=ModelError("late"))})
    drivers.run(flow())
    asyncio.run(drivers.arun(flow()))

    alone, *pair, failed, afailed = answers
    assert isinstance(failed.error, ModelError)
    assert isinstance(afailed.error, ModelError)
    assert failed.busy_s == failed.elapsed_s >= 0.04
    assert afailed.busy_s == afailed.elapsed_s >= 0.04
    assert alone.busy_s == alone.elapsed_s >= 0.04
    assert all(each.elapsed_s >= 0.08 and each.busy_s == each.elapsed_s / 2 for each in pair)


# ---------------------------------------------------------------------- threads, loops and contexts


class Sleepy(InThreads, ScriptedModel):  # type: ignore[misc]  # a scripted model that computes in this process
    """Sleeps in the thread that calls it."""


@pytest.mark.parametrize("driver", ["arun", "astream", "arun_batch"])
async def test_the_event_loop_goes_on(driver: str):
    """While a local model computes, other tasks of the event loop run."""
    model = Sleepy("m", {"q": Reply("a", delay_s=0.15)}, batch_size=2)
    cascade = Cascade([Stage(model)])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    if driver == "arun":
        await cascade.arun("q")
    elif driver == "arun_batch":
        await cascade.arun_batch(["q"])
    else:
        assert [type(item) async for item in cascade.astream("q")] == [Chunk, Outcome]
    ticking.cancel()

    assert ticks >= 5


def test_trace_collects_in_all_drivers():
    """However a query is asked, its record reaches the trace around it; nothing of it is left behind."""
    cascade = before(ScriptedModel("large", {"q": "4"}))

    async def asynchronously() -> None:
        await cascade.arun("q")
        await cascade.arun_batch(["q", "q"])
        await listed(cascade.astream("q"))

    with trace() as t:
        cascade.run("q")
        cascade.run_batch(["q", "q"])
        list(cascade.stream("q"))
        asyncio.run(asynchronously())
    cascade.run("q")

    assert len(t.records) == 8
    assert all(same_record(record.as_dict(), t.records[0].as_dict()) for record in t.records)


def test_models_see_the_callers_context():
    """A context variable that the caller has set is seen in the threads of a batch; what a model sets stays there."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    def script(request: Request) -> str:
        seen = who.get()
        who.set("the model")
        return seen

    who.set("the caller")
    outcomes = Cascade([Stage(ScriptedModel("m", script))]).run_batch(["a", "b", "c"])

    assert [outcome.text for outcome in outcomes] == ["the caller"] * 3
    assert who.get() == "the caller"


def test_no_thread_outlives_its_batch():
    """The threads of a batch end with it, also if it was left early or failed."""

    def stop(index: int, result: Any) -> None:
        raise KeyError

    cascade = Cascade([Stage(ScriptedModel("m", {"b": Reply("", error=ModelError("b"))}))])
    cascade.run_batch(["a"] * 5)
    for options in ({"on_result": stop}, {}):
        with pytest.raises((KeyError, ModelError)):
            cascade.run_batch(["a", "b", "c"], **options)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("confcascade")]


# ---------------------------------------------------------------------- queries that come one by one


def crowd(delay_s: float = 0.0) -> tuple[Cascade, ScriptedModel, ScriptedModel, ScriptedModel]:
    """Two local stages and an API; every third query passes the first, every second of the rest the next."""

    def sure(share: int) -> Callable[[Request], Reply]:
        def script(request: Request) -> Reply:
            p = 0.9 if int(request.messages[0].content) % share == 0 else 0.1
            return Reply("yes", p, hidden=(5.0, 0.0), delay_s=delay_s)

        return script

    first = ScriptedModel("first", sure(3), hidden_size=2, batch_size=8)
    second = ScriptedModel("second", sure(2), batch_size=8)
    api = ScriptedModel("api", lambda _: "yes")
    signal = TokenProbability()
    stages = [Stage(model, [signal], {"p_t": 0.5}) for model in (first, second)]
    return Cascade([*stages, Stage(api)]), first, second, api


def answered(n: int) -> list[str]:
    return ["first" if i % 3 == 0 else "second" if i % 2 == 0 else "api" for i in range(n)]


def test_threads_that_each_bring_a_query_share_calls():
    """The same records as `run`, in batches of the local models, with no query mixed up."""
    cascade, first, second, api = crowd(delay_s=0.002)  # for queries to arrive while others are answered
    batching = cascade.batching(max_concurrency=4)
    with ThreadPoolExecutor(24) as pool:
        outcomes = list(pool.map(lambda i: batching.run(str(i)), range(96)))

    assert [outcome.record.answered_by for outcome in outcomes] == answered(96)
    for model in (first, second):
        sizes = [len(call) for call in model.calls]
        assert 4 < max(sizes) <= 8
        assert sum(sizes) / len(sizes) > 2
    assert {len(call) for call in api.calls} == {1}
    expected = crowd()[0].run("5").record.as_dict()
    assert same_record(outcomes[5].record.as_dict(), expected)


async def test_tasks_that_each_bring_a_query_share_calls():
    cascade, first, second, _ = crowd()
    batching = cascade.batching()
    outcomes = await asyncio.gather(*(batching.arun(str(i)) for i in range(96)))

    assert [outcome.record.answered_by for outcome in outcomes] == answered(96)
    assert [len(call) for call in first.calls] == [8] * 12
    assert sum(len(call) for call in second.calls) == 64
    assert len(second.calls) <= 16


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_each_of_those_that_share_calls_gets_its_own_error(asynchronous):
    def script(request: Request) -> Reply:
        odd = int(request.messages[0].content) % 2
        return Reply("yes", error=ModelError("down") if odd else None)

    batching = Cascade([Stage(ScriptedModel("m", script, batch_size=4))]).batching()
    if asynchronous:
        ended = await asyncio.gather(*(batching.arun(str(i)) for i in range(8)), return_exceptions=True)
    else:

        def one(i: int) -> Any:
            try:
                return batching.run(str(i))
            except ModelError as error:
                return error

        with ThreadPoolExecutor(8) as pool:
            ended = list(pool.map(one, range(8)))

    assert [isinstance(result, ModelError) for result in ended] == [False, True] * 4


async def test_cancelling_reaches_the_call_that_nobody_else_waits_for():
    """And frees its place: the others are answered."""
    stopped: list[str] = []
    begun = asyncio.Event()

    class Slow(ScriptedModel):
        async def agenerate(self, asks: Sequence[Generate]) -> Any:
            query = asks[0].request.messages[0].content
            begun.set()
            try:
                await asyncio.sleep(60 if query == "late" else 0.01)
            except asyncio.CancelledError:
                stopped.append(query)
                raise
            return self.generate(asks)

    batching = Cascade([Stage(Slow("api"))]).batching(max_concurrency=1)
    late = asyncio.create_task(batching.arun("late"))
    others = [asyncio.create_task(batching.arun(str(i))) for i in range(3)]
    await begun.wait()
    assert not any(task.done() for task in others)
    late.cancel()

    assert [outcome.text for outcome in await asyncio.gather(*others)] == ["api: 0", "api: 1", "api: 2"]
    assert stopped == ["late"]
    with pytest.raises(asyncio.CancelledError):
        await late


async def test_caches_of_cancelled_queries_are_freed():
    cascade, first, *_ = crowd()
    stage = Stage(first, [probe("first"), TokenProbability()], {"p_ik": 0.1, "p_t": 0.5})
    cascade = Cascade([stage, *cascade.stages[1:]])
    batching = cascade.batching()
    tasks = [asyncio.create_task(batching.arun(str(i))) for i in range(20)]
    for _ in range(4):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.05)

    assert first.open_caches == 0


def test_batching_refuses_a_concurrency_that_is_none():
    with pytest.raises(ConfigurationError, match="max_concurrency"):
        crowd()[0].batching(max_concurrency=0)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_results_are_handed_over_before_anything_new_is_asked(concurrency: int):
    """Whoever keeps each result as it comes loses no more to a kill than the calls that were under way."""
    model = ScriptedModel("m", lambda request: Reply("a", delay_s=0.001))

    def flow() -> Flow[None]:
        yield (Generate(model, REQUEST),)

    for taken, _ in enumerate(drivers.run_many((flow() for _ in range(30)), concurrency)):
        time.sleep(0.002)  # whatever was begun by now is counted
        assert len(model.calls) <= taken + concurrency
