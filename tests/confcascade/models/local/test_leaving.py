"""Local models that nobody waits for any more: they stop after the token under way."""

import asyncio
import contextlib
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Cascade, Stage, TokenProbability
from confcascade.asks import Generate
from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel
from confcascade.types import Message, Request

LONG = 400
SETTLED_S = 5.0


@pytest.fixture
def steps():
    """The small model, slowed down, never ending by itself, and the rows of each of its forward passes so far."""
    model = bundled_model("small")
    passes = []

    def slow(_module, _args, kwargs):
        passes.append(len(kwargs["input_ids"]))
        time.sleep(0.005)

    handle = model.model.register_forward_pre_hook(slow, with_kwargs=True)
    ends, model._speaker.settings.ends = model._speaker.settings.ends, frozenset()
    try:
        yield model, passes
    finally:
        handle.remove()
        model._speaker.settings.ends = ends


def ask(model, text="Where was Bren born?", tokens=LONG):
    return Generate(model, Request(Message.parse(text), max_tokens=tokens))


async def stopped(passes):
    """The number of passes, once there are no more."""
    before = -1
    until = time.monotonic() + SETTLED_S
    while before != len(passes) and time.monotonic() < until:
        before = len(passes)
        await asyncio.sleep(0.1)
    return len(passes)


async def running(passes, count=5):
    while len(passes) < count:
        await asyncio.sleep(0.002)


def test_a_cancelled_agenerate_stops_the_model(steps):
    """After the token under way; the thread is free again."""
    model, passes = steps

    async def main():
        call = asyncio.ensure_future(model.agenerate([ask(model), ask(model, "What is it?")]))
        await running(passes)
        call.cancel()
        at = len(passes)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await stopped(passes) <= at + 2

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancelled", "left"])
def test_an_astream_that_is_left_stops_the_model(steps, how):
    """Cancelled while a token is under way, or left between two."""
    model, passes = steps

    async def read():
        async with contextlib.aclosing(model.astream(ask(model))) as stream:
            async for _ in stream:
                if how == "left" and len(passes) >= 5:
                    return

    async def main():
        task = asyncio.ensure_future(read())
        await running(passes)
        if how == "cancelled":
            task.cancel()
        at = len(passes)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await stopped(passes) <= at + 2

    asyncio.run(main())


def test_an_astream_that_shows_nothing_is_stopped_too(steps):
    """Where what came might begin a stop string, a step takes more than one token."""
    model, passes = steps
    model._speaker.settings.ends = frozenset()
    whole = model.generate([ask(model, tokens=40)])[0].text
    passes.clear()
    held = Generate(model, Request(Message.parse("Where was Bren born?"), max_tokens=LONG, stop=(whole + "!",)))

    async def main():
        task = asyncio.ensure_future(anext(model.astream(held)))
        await running(passes)
        task.cancel()
        at = len(passes)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await stopped(passes) <= at + 2

    asyncio.run(main())


def test_a_dropped_stream_stops_the_model(steps):
    """After the token under way."""
    model, passes = steps
    stream = model.stream(ask(model))
    next(stream)
    stream.close()
    at = len(passes)
    time.sleep(0.1)
    assert len(passes) <= at + 1


def test_in_a_batch_the_others_go_on(steps):
    """Two of three queries of a batch are cancelled: their rows end, the third's answer is as if they had not been."""
    model, passes = steps
    cascade = Cascade([Stage(model)])
    texts = ["Where was Bren born?", "What is it?", "Who lives in Oslo?"]
    requests = [Request(Message.parse(text), max_tokens=60) for text in texts]
    alone = [cascade.run(request).text for request in requests]
    passes.clear()

    async def main():
        batching = cascade.batching()
        tasks = [asyncio.ensure_future(batching.arun(request)) for request in requests]
        await running(passes)
        for task in tasks[:2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(main())

    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, asyncio.CancelledError)
    assert third.text == alone[2]
    assert passes[0] == 3  # read together
    assert passes[-1] == 1  # and the last went on by itself
    assert len(passes) == 60


class EnoughError(Exception):
    """What `on_result` raises here."""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_of_queries_that_is_left_stops(steps, asynchronous):
    """As by Ctrl-C, or an error of `on_result`: the answer under way, of another query, is not written to its end."""
    model, passes = steps
    small = ScriptedModel("draft", {"hard": ("no", 0.1), "easy": ("yes", 0.9)})
    cascade = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(model)])
    requests = [Request(Message.parse(text), max_tokens=LONG) for text in ("hard", "easy")]

    def first(_index, _outcome):
        raise EnoughError

    async def main():
        await cascade.arun_batch(requests, on_result=first, max_concurrency=1)

    if asynchronous:
        with pytest.raises(EnoughError):
            asyncio.run(main())
    else:
        with pytest.raises(EnoughError):
            cascade.run_batch(requests, on_result=first, max_concurrency=1)
    assert asyncio.run(stopped(passes)) < 20


def test_what_is_not_left_loses_nothing(steps):
    """Asked in a thread or not, an answer is the same to its last token."""
    model, _ = steps
    (there,) = asyncio.run(model.agenerate([ask(model, tokens=30)]))
    (here,) = model.generate([ask(model, tokens=30)])
    assert there.text == here.text
    assert there.usage == here.usage
    assert there.finish_reason == here.finish_reason == "length"
