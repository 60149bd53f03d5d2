from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import asdict

import pytest
from confcascade import Attempt, Cost, Record, Score, Usage, trace
from confcascade.trace import publish


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

    assert {**asdict(attempt(0, scores={"p_t": Score(0.4, 0.9, False, details)})), "steps": []} == entry
    details["labels"].append("B")
    assert entry["scores"]["p_t"]["details"] == {"labels": ["A"]}


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
