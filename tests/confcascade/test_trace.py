from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict
from typing import Any

import pytest
from confcascade import Attempt, Cascade, Cost, Record, Score, Stage, Usage, trace
from confcascade.testing import ScriptedModel
from confcascade.trace import open_traces


def attempt(stage: int, **changes: object) -> Attempt:
    figures = {
        "scores": {"p_t": Score(0.4, 0.9, False, {"label": "A"})},
        "usage": Usage(10, stage + 1),
        "cost": Cost(flops=100.0 * (stage + 1), tokens=11 + stage, usd=0.5, seconds=0.25),
    }
    return Attempt(stage, f"m{stage}", "escalate", "p_t 0.4 < 0.9", **{**figures, **changes})  # type: ignore[arg-type]


def record(stage: int = 2, name: str = "p") -> Record:
    return Record(name, (attempt(0), attempt(1), attempt(2)), stage=stage, answered_by=f"m{stage}")


def test_a_record_charges_every_attempt():
    """Usage and the default cost are the sums over all that was paid for."""
    assert record().usage == Usage(30, 6)
    assert record().cost == Cost(flops=600.0, tokens=36, usd=1.5, seconds=0.75)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_papers_accounting_charges_the_answer_only(stage: int):
    """`cost_answering_stage` is that of the attempt whose answer was kept, be it an earlier one."""
    assert record(stage).cost_answering_stage == attempt(stage).cost


def test_an_unknown_cost_makes_the_total_unknown():
    """One model without prices leaves no total in dollars; the others stay known."""
    attempts = (attempt(0), attempt(1, cost=Cost(flops=1.0, tokens=3, usd=None, seconds=0.1)))
    both = Record("p", attempts, stage=1, answered_by="m1")

    assert both.cost.usd is None
    assert both.cost.flops == 101.0


def test_an_attempt_as_a_dict_holds_every_field_and_nothing_of_its_own():
    details = {"labels": ["A"]}
    entry = attempt(0, scores={"p_t": Score(0.4, 0.9, False, details)}).as_dict()

    told = asdict(attempt(0, scores={"p_t": Score(0.4, 0.9, False, details)}))
    told["usage"] = Usage(10, 1).as_dict()  # without details, where there are none
    assert {**told, "steps": []} == entry
    details["labels"].append("B")
    assert entry["scores"]["p_t"]["details"] == {"labels": ["A"]}


def test_the_attributes_of_an_attempt_are_plain_and_known():
    """What tracers of both frameworks show: no mapping, no None, each with a name of its own."""
    usage = Usage(10, 3, input_details={"cache_read": 8}, output_details={"reasoning": 2})
    told = attempt(0, usage=usage, cost=Cost(None, 13, 0.5, 0.25)).attributes()

    assert all(isinstance(value, str | bool | int | float) for value in told.values())
    assert (told["confcascade_score_p_t"], told["confcascade_passed_p_t"], told["confcascade_usd"]) == (0.4, False, 0.5)
    assert told["confcascade_input_cache_read_tokens"] == 8
    assert "confcascade_flops" not in told


def test_a_record_survives_json():
    """`as_dict` holds what the documents promise, and comes back from JSON as it went."""
    entry = record().as_dict()

    assert json.loads(json.dumps(entry)) == entry
    assert list(entry) == [
        "schema",
        "policy_id",
        "answered_by",
        "stage",
        "degraded",
        "ended",
        "attempts",
        "usage",
        "cost",
        "cost_answering_stage",
    ]
    assert set(entry["attempts"][0]) >= {
        "model",
        "scores",
        "confidence",
        "decision",
        "reason",
        "error",
        "aborted",
        "steps",
        "usage",
        "cost",
        "latency_s",
    }
    assert entry["attempts"][0]["scores"]["p_t"] == {
        "value": 0.4,
        "threshold": 0.9,
        "passed": False,
        "details": {"label": "A"},
    }
    assert entry["attempts"][0]["confidence"] is None


def publish(record: Record) -> None:
    """As a cascade does it."""
    for each in open_traces():
        each.records.append(record)


def test_a_trace_collects_inside_its_block_only():
    """Records before and after the block are somebody else's."""
    publish(record(name="before"))
    with trace() as t:
        publish(record(name="first"))
        publish(record(name="second"))
    publish(record(name="after"))

    assert [each.policy_id for each in t.records] == ["first", "second"]
    assert t.usage == Usage(60, 12)
    assert t.cost.tokens == 72
    assert repr(t) == "Trace(2 records)"


def test_traces_nest():
    """An outer trace sees what an inner one sees, and more; a block that fails closes its trace."""
    with trace() as outer:
        with contextlib.suppress(KeyError), trace() as inner:
            publish(record(name="both"))
            raise KeyError
        publish(record(name="outer"))

    assert [each.policy_id for each in inner.records] == ["both"]
    assert [each.policy_id for each in outer.records] == ["both", "outer"]


def test_traces_of_other_tasks_and_threads_are_separate():
    """A trace collects what is asked in its own context; a thread that was not handed it adds nothing."""

    async def task(name: str) -> list[str]:
        with trace() as t:
            await asyncio.sleep(0)
            publish(record(name=name))
            await asyncio.sleep(0)
        return [each.policy_id for each in t.records]

    async def both() -> list[list[str]]:
        return await asyncio.gather(task("a"), task("b"))

    with trace() as outside:
        stranger = threading.Thread(target=publish, args=(record(),))
        stranger.start()
        stranger.join()

    assert asyncio.run(both()) == [["a"], ["b"]]
    assert outside.records == []


def test_jobs_of_a_thread_pool_are_collected_where_they_are_submitted():
    """A pool's threads outlive a trace: each job belongs to the traces around its own submission."""
    with ThreadPoolExecutor(2) as pool:
        pool.submit(publish, record(name="before")).result()
        with trace() as first:
            list(pool.map(lambda name: publish(record(name=name)), "ab"))
        with trace() as second:
            pool.submit(publish, record(name="c")).result()
        pool.submit(publish, record(name="after")).result()

    assert sorted(each.policy_id for each in first.records) == ["a", "b"]
    assert [each.policy_id for each in second.records] == ["c"]


def test_a_generator_that_is_stepped_through_other_contexts_is_collected():
    """As servers step through the response of a synchronous endpoint: every step in a fresh copy of a context."""
    model = ScriptedModel("only", {"q": ("one two three", 0.9)})

    def response() -> Iterator[Any]:
        with trace() as t:
            yield from Cascade([Stage(model)]).stream("q")
            yield t

    items, found = response(), []
    while (item := copy_context().run(next, items, None)) is not None:
        found.append(item)

    assert found[-2].text == "one two three"
    assert [each.ended for each in found[-1].records] == ["answered"]
