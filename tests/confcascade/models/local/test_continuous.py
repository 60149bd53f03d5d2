"""Asks that come one by one share passes: answers are what they are alone, and nobody waits for ever."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import Cascade, Stage, TransformersModel
from confcascade.asks import Generate, Prefill
from confcascade.models.bundled import bundled_model
from confcascade.models.local.worker import Worker
from confcascade.testing import ScriptedModel
from confcascade.types import Message, Request

TEXTS = [f"Where was {name} born?" for name in ("Bren", "Tasu", "Ilo", "Mira", "Oda", "Peki", "Runo", "Sol")]


def request(text, **parameters):
    return Request(Message.parse(text), **({"max_tokens": 24} | parameters))


@pytest.fixture(scope="module")
def small():
    return bundled_model("small")


@pytest.fixture
def passes(small):
    """The rows of each forward pass, and a gate that holds the passes back while it is closed."""
    seen, gate = [], threading.Event()
    gate.set()

    def before(_module, _args, kwargs):
        gate.wait(10)
        seen.append(tuple(kwargs["input_ids"].shape))

    handle = small.model.register_forward_pre_hook(before, with_kwargs=True)
    yield seen, gate
    handle.remove()


def alone(small, texts=TEXTS, **parameters):
    return [small.generate([Generate(small, request(text, **parameters))])[0] for text in texts]


def close(response, other):
    """Whether two answers are the same but for rounding."""
    assert response.text == other.text
    assert response.usage == other.usage
    assert [token.logprob for token in response.tokens] == pytest.approx(
        [token.logprob for token in other.tokens], abs=1e-4
    )


def test_tasks_share_passes(small, passes):
    """Eight calls of eight tasks take hardly more passes than one, and no thread of their own."""
    seen, _ = passes
    expected = alone(small)
    longest = max(len(response.tokens) for response in expected)
    seen.clear()
    before = threading.active_count()

    async def main():
        calls = [asyncio.ensure_future(small.agenerate([Generate(small, request(text))])) for text in TEXTS]
        await asyncio.sleep(0.01)
        assert threading.active_count() == before
        return [answers[0] for answers in await asyncio.gather(*calls)]

    for response, other in zip(asyncio.run(main()), expected, strict=True):
        close(response, other)
    assert len(seen) <= longest + 6


def test_threads_share_passes(small, passes):
    """So do eight threads, whose asks come while a pass is under way."""
    seen, gate = passes
    expected = alone(small)
    seen.clear()
    gate.clear()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(small.generate, [Generate(small, request(text))]) for text in TEXTS]
        time.sleep(0.1)
        gate.set()
        for call, other in zip(calls, expected, strict=True):
            close(call.result()[0], other)
    assert max(rows for rows, _ in seen) >= 7
    assert sum(1 for _, width in seen if width > 1) <= 3


def test_rows_join_what_is_under_way(small, passes):
    """An ask that comes while others are being written does not wait for their ends; short ones leave first."""
    seen, _ = passes
    long, short = request(TEXTS[0], max_tokens=60), request(TEXTS[1], max_tokens=2)
    ends, small._speaker.settings.ends = small._speaker.settings.ends, frozenset()
    try:
        expected = alone(small, TEXTS[:1], max_tokens=60) + alone(small, TEXTS[1:2], max_tokens=2)
        seen.clear()

        async def main():
            first = asyncio.ensure_future(small.agenerate([Generate(small, long)]))
            while len(seen) < 10:
                await asyncio.sleep(0.001)
            (second,) = await small.agenerate([Generate(small, short)])
            assert not first.done()
            return [(await first)[0], second]

        for response, other in zip(asyncio.run(main()), expected, strict=True):
            close(response, other)
    finally:
        small._speaker.settings.ends = ends
    assert {rows for rows, _ in seen} == {1, 2}


def test_prefills_go_on_together(small, passes):
    """Rows that were read in one pass and come back one by one are written in one batch."""
    seen, gate = passes
    expected = alone(small)
    read = small.prefill([Prefill(small, request(text)) for text in TEXTS])
    seen.clear()
    gate.clear()
    with ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(small.generate, [Generate(small, request(text), prefilled=prefilled)])
            for text, prefilled in zip(TEXTS, read, strict=True)
        ]
        time.sleep(0.1)
        gate.set()
        for call, other in zip(calls, expected, strict=True):
            close(call.result()[0], other)
    assert max(rows for rows, _ in seen) >= 4


def test_prompts_of_like_length_are_read_together(small, passes):
    """A long prompt does not pad short ones to its length."""
    seen, gate = passes
    texts = [TEXTS[0], " ".join(TEXTS * 6), TEXTS[1]]
    seen.clear()
    gate.clear()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(small.generate, [Generate(small, request(text)) for text in texts])
        gate.set()
        answers = call.result()
    reads = [shape for shape in seen if shape[1] > 1]
    assert sorted(rows for rows, _ in reads) == [1, 2]
    for response, other in zip(answers, alone(small, texts), strict=True):
        close(response, other)


def test_held_prefills_do_not_stop_others(small):
    """Somebody who keeps as many prefills as a batch holds stops nobody."""
    size = small.capability.batch_size
    held = small.prefill([Prefill(small, request(TEXTS[i % 8])) for i in range(2 * size)])
    assert small.generate([Generate(small, request(TEXTS[0]))])[0].text == alone(small)[0].text
    for prefilled in held:
        prefilled.close()


def test_a_pass_that_fails_is_repeated_one_by_one(small, caplog):
    """What is too much for a pass with others is asked alone; what fails alone fails by itself."""
    expected = alone(small, TEXTS[:3])

    def too_many(_module, _args, kwargs):
        if len(kwargs["input_ids"]) > 1 and kwargs["input_ids"].shape[1] == 1:
            raise MemoryError("too many rows")

    handle = small.model.register_forward_pre_hook(too_many, with_kwargs=True)
    try:
        found = small.generate([Generate(small, request(text)) for text in TEXTS[:3]])
    finally:
        handle.remove()
    for response, other in zip(found, expected, strict=True):
        close(response, other)
    assert "failed: MemoryError" in caplog.text


def test_every_caller_is_answered_when_a_step_breaks(small, monkeypatch):
    """An error of our own reaches whoever waits."""
    monkeypatch.setattr(small._batching, "_let_in", lambda: 1 / 0)
    found = small.generate([Generate(small, request(text)) for text in TEXTS[:2]])
    assert [type(value) for value in found] == [ZeroDivisionError] * 2
    monkeypatch.undo()
    assert alone(small, TEXTS[:1])[0].text


def test_a_model_that_asks_within_its_own_pass_is_refused(small):
    """It would wait for itself."""
    problems = []

    def watch(_tokens):
        try:
            small.generate([Generate(small, request(TEXTS[0]))])
        except Exception as error:
            problems.append(str(error))
        return "hold"

    small.generate([Generate(small, request(TEXTS[0]), watch=watch)])
    assert "from within" in problems[0]


def test_rows_that_cannot_join_are_answered_batch_after_batch():
    """A model whose layers attend to a window keeps no more than that of its past."""
    config = transformers.MistralConfig(
        vocab_size=1387, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8, pad_token_id=0,
    )  # fmt: skip
    model = TransformersModel(transformers.MistralForCausalLM(config).eval(), bundled_model("small").tokenizer)
    expected = alone(model, TEXTS[:4])
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(model.generate, [Generate(model, request(text))]) for text in TEXTS[:4]]
        for call, other in zip(calls, expected, strict=True):
            close(call.result()[0], other)


def test_the_time_of_a_pass_is_shared(small):
    """What a query is said to have taken of the machine is its share; what it waited is told apart."""
    cascade = Cascade([Stage(small), Stage(ScriptedModel("large"))][:1])
    began = time.perf_counter()
    asks = [Generate(small, request(text)) for text in TEXTS]
    small.generate(asks)
    took = time.perf_counter() - began
    assert 0 < sum(ask.progress.busy_s for ask in asks) <= took
    assert cascade.run(TEXTS[0]).record.attempts[0].latency_s > 0


def test_an_idle_worker_ends_and_begins_again(small, monkeypatch):
    """Its thread does not outlive its work by more than a minute."""
    monkeypatch.setattr("confcascade.models.local.worker._IDLE_S", 0.01)
    alone(small, TEXTS[:1])
    worker = Worker.of(small.model.device)
    for _ in range(200):
        if worker._thread is None:
            break
        time.sleep(0.01)
    assert worker._thread is None
    assert alone(small, TEXTS[:1])[0].text
