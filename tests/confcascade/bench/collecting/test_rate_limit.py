"""A provider's limits hold whatever is asked, errors that pass are waited out, and waiting is no part of a latency."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from confcascade import ConfigurationError, Message, Request, drivers
from confcascade.asks import Generate, Prefill, ask
from confcascade.bench.collecting.rate_limit import CollectStoppedError, Pace, PacedModel, RateLimiter
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Prefilled, Usage
from hypothesis import given
from hypothesis import strategies as st


class StatusError(Exception):
    """As the clients of providers raise it."""

    def __init__(self, status_code: int, retry_after: str | None = None, code: str | None = None) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.code = code
        self.response = SimpleNamespace(headers={} if retry_after is None else {"retry-after": retry_after})


class Unsteady(ScriptedModel):
    """Raises the given errors first, then answers."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__("m")
        self.errors = list(errors)

    def generate(self, asks):
        if self.errors:
            self.calls.append(tuple(asks))
            raise self.errors.pop(0)
        return super().generate(asks)

    def prefill(self, asks):
        self.calls.append(tuple(asks))
        if self.errors:
            raise self.errors.pop(0)
        return [Prefilled(Usage(5, 1), apart=True) for _ in asks]


def question(model, text="q"):
    return Generate(model, Request((Message("user", text),)))


@given(
    requests=st.integers(1, 600),
    tokens_a_minute=st.integers(100, 10_000),
    calls=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 500)), min_size=1, max_size=60),
)
def test_no_minute_sees_more_than_is_allowed(requests, tokens_a_minute, calls):
    """Whenever calls come and however many tokens they have, any 60 seconds begin at most one more than allowed."""
    now = 0.0
    pace = Pace(requests, tokens_a_minute, clock=lambda: now)
    begun = []
    for pause, tokens in calls:
        now += pause
        begun.append((now + pace.reserve(tokens), tokens))
    for first, _ in begun:
        minute = [tokens for begin, tokens in begun if first <= begin < first + 60 - 1e-6]
        assert len(minute) <= requests + 1
        assert sum(minute[:-1]) <= tokens_a_minute * (1 + 1e-9)  # the last one's tokens are paid for later


def test_a_free_line_is_not_held_up():
    """Without limits, and after a pause longer than the pace, nobody waits."""
    now = 0.0
    assert [Pace(clock=lambda: now).reserve(1_000) for _ in range(5)] == [0.0] * 5
    pace = Pace(60, clock=lambda: now)
    pace.reserve(1)
    now = 5.0
    assert pace.reserve(1) == 0.0  # nor are five calls saved up
    assert pace.reserve(1) == 1.0


def test_estimated_tokens_are_put_right():
    """A call that used fewer tokens than was thought gives the rest back, one that used more keeps others away."""
    pace = Pace(tokens_per_minute=60, clock=lambda: 0.0)
    pace.reserve(10)
    pace.correct(-4)
    assert pace.reserve(10) == pytest.approx(6)
    pace.correct(5)
    assert pace.reserve(1) == pytest.approx(6 + 15)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_above_zero(limit):
    """No limit is None, not 0."""
    with pytest.raises(ConfigurationError, match="above 0"):
        Pace(limit)


@pytest.mark.parametrize(
    "error",
    [StatusError(429, "0"), StatusError(503), StatusError(529, "soon"), ConnectionError("reset"), TimeoutError()],
)
def test_errors_that_pass_are_waited_out(error):
    """Whichever client raises them."""
    model = Unsteady(error, error)
    (answer,) = PacedModel(model, None, threading.Event(), first_wait_s=0.01).generate([question(model)])
    assert answer.text == "m: q"
    assert len(model.calls) == 3


@pytest.mark.parametrize(
    "error", [StatusError(401), StatusError(400), StatusError(429, code="insufficient_quota"), ValueError("a bug")]
)
def test_errors_that_stay_are_answers(error):
    """A wrong key, a bad request or an empty account is not asked again."""
    model = Unsteady(error)
    assert PacedModel(model, None, threading.Event()).generate([question(model)]) == [error]
    assert len(model.calls) == 1


def test_it_gives_up_in_the_end():
    """An error that never passes is the answer."""
    model = Unsteady(*[StatusError(500) for _ in range(50)])
    (answer,) = PacedModel(model, None, threading.Event(), first_wait_s=1e-4).generate([question(model)])
    assert isinstance(answer, StatusError)
    assert len(model.calls) == 7


def test_waiting_is_no_part_of_the_latency():
    """A call that waits for its turn, and was refused once, takes as long as the provider took."""
    model = ScriptedModel("m", lambda request: Reply("yes", delay_s=0.05))
    lines = RateLimiter({"m": SimpleNamespace(requests_per_minute=300, tokens_per_minute=None)})

    def one():
        return (yield from ask(question(model)))

    begun = time.perf_counter()
    answers = [answer for _, answer in drivers.run_many((lines.play(one()) for _ in range(4)), 4)]
    assert time.perf_counter() - begun >= 0.6
    assert all(0.05 <= answer.elapsed_s < 0.19 for answer in answers)
    assert lines.used["m"].output_tokens == 4


def test_who_waits_can_be_stopped():
    """Once it is stopped, a call that waits its turn is not made, and its flow never hears of it."""
    model, heard = ScriptedModel("m"), []
    lines = RateLimiter({"m": SimpleNamespace(requests_per_minute=1, tokens_per_minute=None)})

    def one():
        heard.append((yield from ask(question(model))))

    threading.Timer(0.2, lines.stop.set).start()
    begun = time.perf_counter()
    results = [result for _, result in drivers.run_many((lines.play(one()) for _ in range(3)), 3)]
    assert time.perf_counter() - begun < 30
    assert len(heard) == len(model.calls) == 1
    assert sum(isinstance(result, CollectStoppedError) for result in results) == 2


def test_local_models_are_not_paced():
    """They are asked in batches, as ever."""
    model = ScriptedModel("m", batch_size=8)
    lines = RateLimiter({"m": SimpleNamespace(requests_per_minute=1, tokens_per_minute=None)})

    def one():
        return (yield from ask(question(model)))

    assert len(list(drivers.run_many((lines.play(one()) for _ in range(8)), 4))) == 8
    assert [len(call) for call in model.calls] == [8]


def test_reading_a_prompt_of_a_server_is_paced_too():
    """It is a call like any other: errors that pass are waited out, and what it used is added up."""
    model = Unsteady(StatusError(429, retry_after="0"))
    lines = RateLimiter()

    def flow():
        answer = yield from ask(Prefill(model, question(model).request, layers=(2,)))
        return answer.unwrap()

    read = drivers.run(lines.play(flow()))

    assert read.usage == Usage(5, 1)
    assert len(model.calls) == 2
    assert lines.used == {"m": Usage(5, 1)}
