"""A server is asked as many questions at a time as it answers, and no call is lost in its queue."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest
from confcascade.bench.collecting.collect import collect
from confcascade.bench.collecting.concurrency import Concurrency, timed_out
from confcascade.graders import ExactMatch
from confcascade.graders.example import Example
from confcascade.models.openai import OpenAICompatibleModel
from confcascade.stage import Stage
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Response as Sent

NOW, NEVER = threading.Event(), threading.Event()
NOW.set()


class OneSlot:
    """A server that answers one call after the other, those that nobody waits for any more included.

    Attributes:
        most: Most calls that were there at a time.
        calls: How many there were.
    """

    def __init__(self, httpserver: HTTPServer, answer_s: float, *, reports: bool) -> None:
        self.url = httpserver.url_for("/v1")
        self.most = self.calls = self._waiting = 0
        self._answer_s = answer_s
        self._slot, self._count = threading.Lock(), threading.Lock()
        httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self.answer)
        if reports:
            httpserver.expect_request("/props").respond_with_json({"total_slots": 1})

    def answer(self, received) -> Sent:
        with self._count:
            self.calls += 1
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        with self._slot:
            time.sleep(self._answer_s)
        with self._count:
            self._waiting -= 1
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        told = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        return Sent(json.dumps(told), content_type="application/json")


@pytest.fixture
def threaded():
    with HTTPServer(threaded=True) as server:
        yield server


def collected(server: OneSlot, tmp_path, *, questions: int, timeout_s: float):
    model = OpenAICompatibleModel("m", base_url=server.url, api_key="none", timeout_s=timeout_s)
    examples = [Example(f"q{i}", references=("yes",)) for i in range(questions)]
    return collect(examples, [Stage(model)], tmp_path / "rec.jsonl", prompt="plain", grader=ExactMatch())


def test_a_server_that_reports_its_slots_is_asked_as_many_at_a_time(threaded, tmp_path, caplog):
    """Sixteen calls would wait for more than a second in the queue of one slot, and time out."""
    server = OneSlot(threaded, 0.08, reports=True)

    ended = collected(server, tmp_path, questions=24, timeout_s=1)

    assert (ended.ended, ended.tallies["m"].n, ended.tallies["m"].errors) == ("complete", 24, 0)
    assert (server.most, server.calls) == (1, 24)
    assert not [record for record in caplog.records if record.name == "confcascade"]


def test_a_server_that_does_not_is_asked_fewer_once_calls_time_out(threaded, tmp_path, caplog):
    """Every question is answered, and the user is told once, with what to do."""
    server = OneSlot(threaded, 0.3, reports=False)

    with caplog.at_level(logging.WARNING, "confcascade"):
        ended = collected(server, tmp_path, questions=8, timeout_s=1)

    assert (ended.ended, ended.tallies["m"].n, ended.tallies["m"].errors) == ("complete", 8, 0)
    assert server.most <= 8  # not the sixteen that may be asked at a time, calls that were given up included
    (said,) = [record.getMessage() for record in caplog.records if record.name == "confcascade"]
    assert "did not answer within 1 s (`timeout_s`)" in said
    assert "set `max_concurrency`" in said


# ---------------------------------------------------------------------- the rule


def ended(calls: Concurrency, *, error: Exception | None = None, took_s: float = 0.0) -> int:
    """How many may be under way after a call that has ended so."""
    assert calls.wait(NEVER)
    calls.over(time.monotonic() - took_s, error)
    return int(calls.limit)


def test_it_grows_until_the_server_has_enough_and_then_slowly():
    calls = Concurrency("m", 16, timeout_s=10)

    assert [ended(calls) for _ in range(13)] == [*range(5, 17), 16]
    assert ended(calls, error=TimeoutError()) == 8
    assert [ended(calls) for _ in range(9)] == [8] * 7 + [9] * 2


def test_an_answer_that_took_half_of_the_time_out_has_waited_in_a_queue():
    calls = Concurrency("m", 16, timeout_s=10)

    assert ended(calls, took_s=4.9) == 5
    assert ended(calls, took_s=5.1) == 2


def test_calls_from_before_do_not_halve_again():
    """Sixteen calls that time out together say it once."""
    calls = Concurrency("m", 16, slots=16)
    begun = [time.monotonic() for _ in range(16) if calls.wait(NEVER)]

    for each in begun:
        calls.over(each, TimeoutError())

    assert calls.limit == 8


@given(
    most=st.integers(1, 32),
    slots=st.none() | st.integers(1, 32),
    errors=st.lists(st.sampled_from([None, TimeoutError(), ValueError()]), max_size=60),
)
def test_it_stays_between_one_and_the_most(most, slots, errors):
    calls = Concurrency("m", most, slots=slots)
    for error in errors:
        assert 1 <= ended(calls, error=error) <= min(most, slots or most)


def test_whoever_waits_is_let_go_when_collecting_stops():
    calls = Concurrency("m", 1)
    assert calls.wait(NEVER)

    assert not calls.wait(NOW)


def test_what_a_time_out_is():
    class APITimeoutError(Exception): ...

    class StatusError(Exception):
        status_code = 504

    assert all(map(timed_out, [TimeoutError(), APITimeoutError(), StatusError()]))
    assert not any(map(timed_out, [ValueError(), ConnectionError()]))
