"""LangChain and LlamaIndex decide identically: the same models behind both classes, the same queries, equal records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from confcascade import (
    Calibrated,
    CascadeExhaustedError,
    ConfigurationError,
    Request,
    RetrievalScore,
    Stage,
    StreamBrokenError,
    TokenProbability,
)
from confcascade.calibration import EarlyAccept, Feature, Fusion, Input, Platt
from confcascade.extending import Chunk, Evidence, Generate, Measurement, Signal
from confcascade.testing import Reply, ScriptedModel, same_record
from confcascade.types import Response
from llama_index.core.base.llms.types import ChatMessage

import langchain_confcascade
import llamaindex_confcascade

Make = Callable[[], dict[str, Any]]

REPLIES = {
    "sure": Reply("yes it is", 0.95),
    "unsure": Reply("perhaps it is", 0.4),
    "unsure at first": Reply("it is so", (0.2, 0.99, 0.99)),
    "unsure at last": Reply("it is so", (0.99, 0.99, 0.1)),
    "empty": Reply(""),
    "white space": Reply(" "),
    "without log-probabilities": Reply("it is", None),
    "down": Reply("it is", error=ConnectionError("no route")),
    "breaks off": Reply("it is so", error=ConnectionError("reset"), after=2),
}
QUERIES = [f"{small}, {large}" for small in REPLIES for large in ("sure", "empty", "down")]


def script(place: int) -> Callable[[Request], Reply]:
    """What the first or the last model says to "sure, down"."""
    return lambda request: REPLIES[request.messages[-1].content.split(", ")[place]]


def stages(*signals: Signal, **parameters: Any) -> dict[str, Any]:
    small, large = ScriptedModel("small", script(0)), ScriptedModel("large", script(1))
    return {
        "stages": [Stage(small, signals, {signal.name: 0.8 for signal in signals}), Stage(large)],
        **parameters,
    }


WEIGHTS = {"opening": 0.0, "p_t": 2.0}


def two_looks() -> Calibrated:
    """Sure of its first two tokens, or else of all: as `fit(early="opening")` makes it."""
    parts = [TokenProbability(first=2, name="opening"), TokenProbability()]
    features = tuple(Feature(Input(name, (0.0, 1.0)), 0.0, 1.0, weight, None) for name, weight in WEIGHTS.items())
    look = EarlyAccept(Platt(Input("opening", (0.0, 1.0)), 1.0, 0.0), Fusion(features, 0.0), 1.0, 0.0)
    return Calibrated(parts, look)


class Gate(RetrievalScore):
    """Judges before the answer, by the question's first letter."""

    def score(self, evidence: Evidence) -> Measurement:
        return Measurement(0.1 if evidence.request.messages[-1].content.startswith("u") else 0.9)


def skipping() -> dict[str, Any]:
    small, middle, large = (ScriptedModel(name, script(place)) for name, place in (("s", 0), ("m", 0), ("l", 1)))
    first = Stage(small, [Gate(), TokenProbability()], {"retrieval": 0.5, "p_t": 0.8}, skip={"retrieval": 0.2})
    return {"stages": [first, Stage(middle, [TokenProbability()], {"p_t": 0.8}), Stage(large)]}


CASCADES: dict[str, Make] = {
    "mean": lambda: stages(TokenProbability()),
    "first token": lambda: stages(TokenProbability(aggregate="first")),
    "product": lambda: stages(TokenProbability(aggregate="product")),
    "minimum and mean": lambda: stages(TokenProbability(aggregate="min", name="least"), TokenProbability()),
    "confidence": lambda: stages(Calibrated([TokenProbability()], Platt(Input("p_t", (0.0, 1.0)), 1.0, 0.0))),
    "opening": lambda: stages(TokenProbability(first=2)),
    "opening, else all": lambda: stages(two_looks()),
    "straight to the last": skipping,
    "raises at the end": lambda: stages(TokenProbability(), on_exhausted="raise"),
    "raises at once": lambda: stages(TokenProbability(), on_error="raise"),
    "one model": lambda: {"models": [ScriptedModel("only", script(0))]},
}


async def in_langchain(parameters: dict[str, Any], query: str, **options: Any) -> list[Any]:
    llm = langchain_confcascade.ConfidenceCascadeLLM(**parameters)
    whole = [await _caught(llm.ainvoke, query, **options), await _caught(_now, llm.invoke, query, **options)]
    return [each if isinstance(each, str) else (each.content, each.response_metadata["confcascade"]) for each in whole]


async def in_llamaindex(parameters: dict[str, Any], query: str, **options: Any) -> list[Any]:
    llm, messages = llamaindex_confcascade.ConfidenceCascadeLLM(**parameters), [ChatMessage(content=query)]
    whole = [await _caught(llm.achat, messages, **options), await _caught(_now, llm.chat, messages, **options)]
    return [
        each if isinstance(each, str) else (each.message.content, each.additional_kwargs["confcascade"])
        for each in whole
    ]


async def _now(function: Any, *args: Any, **options: Any) -> Any:
    return function(*args, **options)


async def _caught(call: Any, *args: Any, **options: Any) -> Any:
    """What it returned, or how it failed."""
    try:
        return await call(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def same(theirs: Any, ours: Any) -> bool:
    """Equal answers with equal records but for measured times; or equal errors."""
    if isinstance(theirs, str) or isinstance(ours, str):
        return bool(theirs == ours)
    return bool(theirs[0] == ours[0]) and same_record(theirs[1], ours[1])


@pytest.mark.parametrize("make", CASCADES.values(), ids=CASCADES)
async def test_scripted_models_decide_alike(make: Make) -> None:
    """Whatever the small model says, and however the large one fails."""
    found = []
    for query in QUERIES:
        for options in ({}, {"max_tokens": 1}, {"stop": [" it"]}):
            langchain = await in_langchain(make(), query, **options)
            llamaindex = await in_llamaindex(make(), query, **options)
            for theirs, ours in zip(langchain, llamaindex, strict=True):
                assert same(theirs, ours), (query, options)
            found += langchain

    assert any(isinstance(each, tuple) for each in found)
    assert any(isinstance(each, str) for each in found)


@pytest.mark.parametrize("signal", [TokenProbability(first=2), two_looks()], ids=["opening", "opening, else all"])
async def test_a_draft_is_shown_from_where_its_opening_is_sure(signal: Signal) -> None:
    """In both, sync and async: of a model that breaks off after its third word, what had been decided was shown."""
    sure = Reply("one two three four", (0.9, 0.9, 0.1, 0.1), error=ConnectionError("cut"), after=3)
    small, large = ScriptedModel("small", {"q": sure}), ScriptedModel("large", {"q": "five"})
    parameters: dict[str, Any] = {"stages": [Stage(small, [signal], {signal.name: 0.8}), Stage(large)]}
    theirs = langchain_confcascade.ConfidenceCascadeLLM(**parameters)
    ours = llamaindex_confcascade.ConfidenceCascadeLLM(**parameters)
    shown: dict[str, str] = dict.fromkeys(["stream", "astream", "stream_chat", "astream_chat"], "")
    with suppress(StreamBrokenError):
        for chunk in theirs.stream("q"):
            shown["stream"] += str(chunk.content)
    with suppress(StreamBrokenError):
        async for chunk in theirs.astream("q"):
            shown["astream"] += str(chunk.content)
    with suppress(StreamBrokenError):
        for piece in ours.stream_chat([ChatMessage(content="q")]):
            shown["stream_chat"] += piece.delta or ""
    with suppress(StreamBrokenError):
        async for piece in await ours.astream_chat([ChatMessage(content="q")]):
            shown["astream_chat"] += piece.delta or ""
    assert set(shown.values()) == {"one two three"}


@pytest.mark.parametrize("signal", [TokenProbability(first=2), two_looks()], ids=["opening", "opening, else all"])
async def test_an_opening_that_is_not_sure_shows_nothing(signal: Signal) -> None:
    """The rejected draft is not seen; what the whole makes up for is shown at its end."""
    small = ScriptedModel("small", {"q": Reply("one two three four", (0.5, 0.5, 0.99, 0.99))})
    parameters: dict[str, Any] = {
        "stages": [Stage(small, [signal], {signal.name: 0.8}), Stage(ScriptedModel("large", {"q": "five"}))]
    }
    theirs = langchain_confcascade.ConfidenceCascadeLLM(**parameters)
    ours = llamaindex_confcascade.ConfidenceCascadeLLM(**parameters)
    told = {
        "".join(str(chunk.content) for chunk in theirs.stream("q")),
        "".join(piece.delta or "" for piece in ours.stream_chat([ChatMessage(content="q")])),
        str(theirs.invoke("q").content),
    }
    assert told == {"five" if isinstance(signal, TokenProbability) else "one two three four"}


LABELS = {
    "yes": Reply("yes", 0.9, {"yes": 0.9, "no": 0.1}),
    "no": Reply("no", 0.8, {"no": 0.8, "yes": 0.2}),
    "hardly": Reply("No.", 0.6, {"No": 0.5, "no": 0.05, "yes": 0.45}),
    "thinks": Reply("<think>hm</think>no", 0.6, {"no": 0.55, "yes": 0.45}),
    "with reasons": Reply("no because it rains", 0.6, {"no": 0.55, "yes": 0.45}),
}


def labelling(*, corrects: bool) -> dict[str, Any]:
    small, large = ScriptedModel("small", lambda request: LABELS[request.messages[-1].content]), ScriptedModel("large")
    signal = TokenProbability(["yes", "no"], corrects=corrects)
    return {"stages": [Stage(small, [signal], {"p_t": {"yes": 0.4, "no": 0.7}}), Stage(large)]}


@pytest.mark.parametrize("corrects", [False, True])
async def test_thresholds_by_label_decide_alike(corrects: bool) -> None:
    """Whole and streamed, in both and in the core; a corrected answer is shown once, and only as it is corrected."""
    expected = {"yes": "yes", "no": "no", "hardly": "large: hardly", "thinks": "large: thinks"}
    expected["with reasons"] = "large: with reasons"
    if corrects:  # 0.45 reaches what "yes" must; an answer that gives reasons is not turned round
        expected |= {"hardly": "yes.", "thinks": "<think>hm</think>yes"}
    theirs = langchain_confcascade.ConfidenceCascadeLLM(**labelling(corrects=corrects))
    ours = llamaindex_confcascade.ConfidenceCascadeLLM(**labelling(corrects=corrects))
    for query, text in expected.items():
        message, response = theirs.invoke(query), ours.chat([ChatMessage(content=query)])
        chunks = list(theirs.stream(query))
        achunks = [chunk async for chunk in theirs.astream(query)]
        pieces = list(ours.stream_chat([ChatMessage(content=query)]))
        record = message.response_metadata["confcascade"]
        shown = [
            message.content,
            "".join(chunk.content for chunk in chunks),
            "".join(chunk.content for chunk in achunks),
            response.message.content,
            pieces[-1].message.content,
            "".join(piece.delta or "" for piece in pieces),
        ]
        told = text.removeprefix("<think>hm</think>")
        assert {each.removeprefix("<think>hm</think>") for each in shown} == {told}, query
        for other in (chunks[-1].response_metadata, response.additional_kwargs, pieces[-1].additional_kwargs):
            assert same_record(other["confcascade"], record)
        (first, *_) = record["attempts"]
        assert ("corrected" in first["scores"]["p_t"]["details"]) == (told in ("yes.", "yes") and query != "yes")


async def test_the_bundled_models_decide_alike() -> None:
    """The demo's own cascade, on held-out questions: streamed, too."""
    pytest.importorskip("torch")
    from confcascade.demo import bundled_stages
    from confcascade.demo.world import World

    made = bundled_stages()
    theirs = langchain_confcascade.ConfidenceCascadeLLM(stages=made)
    ours = llamaindex_confcascade.ConfidenceCascadeLLM(stages=made)
    attempts = set()
    for question in World().questions("test", per_task=4):
        message = theirs.invoke(question.prompt)
        record = message.response_metadata["confcascade"]
        attempts.add(len(record["attempts"]))
        response = ours.complete(question.prompt)
        *_, last = ours.stream_complete(question.prompt)
        *_, chunk = theirs.stream(question.prompt)
        for text, other in (
            (response.text, response.additional_kwargs["confcascade"]),
            (last.text, last.additional_kwargs["confcascade"]),
            (message.content, chunk.response_metadata["confcascade"]),
        ):
            assert text == message.content
            assert same_record(other, record)

    assert attempts == {1, 2}


def test_they_refuse_the_same() -> None:
    wrong: list[dict[str, Any]] = [
        {"models": []},
        {"models": [ScriptedModel("a"), ScriptedModel("b")]},
        {"models": [ScriptedModel("a"), ScriptedModel("b")], "threshold": 90},
        {"models": [ScriptedModel("a", logprobs=False), ScriptedModel("b")], "threshold": 0.9},
        {"models": [ScriptedModel("a")], "on_error": "ignore"},
        {"stages": [ScriptedModel("a")]},
    ]
    for parameters in wrong:
        with pytest.raises(ConfigurationError) as theirs:
            langchain_confcascade.ConfidenceCascadeLLM(**parameters)
        with pytest.raises(ConfigurationError) as ours:
            llamaindex_confcascade.ConfidenceCascadeLLM(**parameters)
        assert str(ours.value) == str(theirs.value)


def test_they_fail_the_same() -> None:
    parameters = stages(TokenProbability(), on_exhausted="raise")
    with pytest.raises(CascadeExhaustedError) as theirs:
        langchain_confcascade.ConfidenceCascadeLLM(**parameters).invoke("unsure, down")
    with pytest.raises(CascadeExhaustedError) as ours:
        llamaindex_confcascade.ConfidenceCascadeLLM(**parameters).complete("unsure, down")

    assert str(ours.value) == str(theirs.value)
    assert [each.reason for each in ours.value.attempts] == [each.reason for each in theirs.value.attempts]


class Thinker(ScriptedModel):
    """Tells its thoughts apart from the text, as local models do."""

    def _stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        yield Chunk("", released=ask.live, thoughts="hm")
        yield Chunk("", released=ask.live, thoughts=" so")
        yield Chunk("Lyon", released=ask.live)
        yield Response("Lyon", None, thoughts="hm so")


def test_thoughts_of_core_models_come_where_each_framework_has_them() -> None:
    """Whole and streamed, beside the text."""
    chat = langchain_confcascade.ConfidenceCascadeLLM(models=[Thinker("m")])
    message, chunks = chat.invoke("Q"), list(chat.stream("Q"))
    assert (message.content, message.additional_kwargs["reasoning_content"]) == ("Lyon", "hm so")
    merged = sum(chunks[1:], chunks[0])
    assert (merged.content, merged.additional_kwargs["reasoning_content"]) == ("Lyon", "hm so")

    llm = llamaindex_confcascade.ConfidenceCascadeLLM(models=[Thinker("m")])
    asked = [ChatMessage("Q")]
    answer, pieces = llm.chat(asked), list(llm.stream_chat(asked))
    assert (answer.message.content, answer.message.blocks[0].content) == ("Lyon", "hm so")
    assert [piece.additional_kwargs.get("thinking_delta") for piece in pieces[:2]] == ["hm", " so"]
    assert (pieces[-1].message.content, pieces[-1].message.blocks[0].content) == ("Lyon", "hm so")
