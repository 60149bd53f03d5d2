"""What happens beside every answer: who is drawn, what is asked, what is told, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import random
import sqlite3
import threading
import time

import pytest
from confcascade import Audit, Cascade, ConfigurationError, Prices, Stage, TokenProbability, Tool, trace
from confcascade.audit.auditor import question_hash
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Message, Request
from scipy.stats import binom

QUERIES = [str(i) for i in range(60)]
KEPT = [query for query in QUERIES if int(query) % 3]
DIFFERENT = [query for query in KEPT if int(query) % 10 == 0]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finished(cascade):
    assert cascade.auditor.wait(30)
    return cascade.auditor.file.state()


async def aiterated(items):
    return [item async for item in items]


WAYS = {
    "run": lambda cascade: [cascade.run(query) for query in QUERIES],
    "arun": lambda cascade: [asyncio.run(cascade.arun(query)) for query in QUERIES],
    "stream": lambda cascade: [list(cascade.stream(query)) for query in QUERIES],
    "astream": lambda cascade: [asyncio.run(aiterated(cascade.astream(query))) for query in QUERIES],
    "run_batch": lambda cascade: cascade.run_batch(QUERIES),
    "arun_batch": lambda cascade: asyncio.run(cascade.arun_batch(QUERIES)),
    "batching": lambda cascade: [cascade.batching().run(query) for query in QUERIES],
    "abatching": lambda cascade: [asyncio.run(cascade.batching().arun(query)) for query in QUERIES],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_is_audited(way, audited):
    """All queries are counted, those that were kept are compared, and the differences are found."""
    cascade = audited()
    WAYS[way](cascade)
    state = finished(cascade)

    assert (state.queries, state.n) == (len(QUERIES), len(QUERIES))
    assert (state.kept, state.audited, state.disagreements) == (len(KEPT), len(KEPT), len(DIFFERENT))
    assert state.disagreement == len(DIFFERENT) / len(QUERIES)
    assert state.low < state.disagreement < state.high
    found = {each.question_hash for each in cascade.auditor.file.disagreements()}
    assert found == {question_hash(Request((Message("user", query),))) for query in DIFFERENT}


def test_no_answer_waits_for_it(audited):
    """The largest model says nothing before all answers are there."""
    answered = threading.Event()
    cascade = audited(largest=lambda request: Reply("yes" if answered.wait(30) else "no"))
    outcomes = [cascade.run("1"), asyncio.run(cascade.arun("2")), list(cascade.stream("4"))[-1]]

    assert [outcome.text for outcome in outcomes] == ["yes"] * 3
    assert not cascade.auditor.wait(0.01)
    answered.set()
    state = finished(cascade)
    assert (state.audited, state.disagreements) == (3, 0)


def test_what_is_asked_is_the_query_itself(audited):
    """With its parameters and the framework's own messages, outside of traces."""
    native = object()
    cascade = audited()
    with trace() as seen:
        cascade.run(Request((Message("user", "1"),), max_tokens=7, native=native))
        finished(cascade)

    ((ask,),) = cascade.stages[-1].model.calls
    assert ask.request.native is native
    assert (ask.request.max_tokens, ask.logprobs) == (7, False)
    assert len(seen.records) == 1


def test_the_share_that_is_drawn(audited):
    """A fifth, whoever answers, within a binomial tail of 1e-6."""
    cascade = audited(rate=0.2, seed=1)
    for i in range(2000):
        cascade.run(str(i))
    state = finished(cascade)

    assert binom.ppf(1e-6, 2000, 0.2) <= state.n <= binom.ppf(1 - 1e-6, 2000, 0.2)
    assert binom.ppf(1e-6, state.n, 2 / 3) <= state.audited <= binom.ppf(1 - 1e-6, state.n, 2 / 3)
    assert state.dropped == 0


def test_what_is_dropped_does_not_depend_on_the_answer(audited):
    """Of answers that come in random order while a slow largest model holds up the queue, both kinds are dropped alike.

    Fails by chance with a probability of 2e-6.
    """
    cascade = audited(queue=3, largest=lambda request: Reply("yes", delay_s=0.001))
    outcomes = [cascade.run(query) for query in ("1", "2", "3")]
    finished(cascade)
    order = random.Random(0)
    request = Request((Message("user", "1"),))
    for _ in range(3000):
        cascade.auditor.observe(request, order.choice(outcomes))
        time.sleep(0.0002)
    state = finished(cascade)

    assert state.dropped > 100
    assert state.queries == 3003
    assert binom.ppf(1e-6, state.n, 2 / 3) <= state.audited <= binom.ppf(1 - 1e-6, state.n, 2 / 3)


def test_tools_and_degraded_answers_are_skipped(audited):
    """Whether or not they were kept: what is compared is text against text."""
    cascade = audited()
    outcome = cascade.run("2")
    tools = Request((Message("user", "1"),), tools=(Tool("look_up", {}),))
    cascade.auditor.observe(tools, outcome)
    down = audited(largest=lambda request: Reply("", error=ConnectionError("down")), on_exhausted="best")
    assert down.run("3").record.degraded
    finished(down)

    state = finished(cascade)
    assert (state.skipped, state.audited, state.queries) == (2, 1, 3)


def test_a_largest_model_that_fails(audited, caplog):
    """Is counted, told in one line without the query, and disturbs nobody."""
    cascade = audited(largest=lambda request: Reply("", error=ConnectionError("refused: secret question"), after=0))
    with caplog.at_level(logging.WARNING, "confcascade.audit"):
        assert cascade.run("1").text == "yes"
        state = finished(cascade)

    assert (state.failed, state.n) == (1, 0)
    (line,) = caplog.messages
    assert line.startswith("An audit failed: 'large' gave no answer (")
    assert "secret" not in line


class Spelled:
    name = "spelled the same"

    def __call__(self, question, answer, larger):
        return None if question == "2" else answer == larger


def test_an_answer_that_cannot_be_compared_fails(audited):
    """One that the rule cannot read, or that is empty: nothing is made up in its place."""
    cascade = audited(same=Spelled(), largest=lambda request: "" if request.messages[-1].content == "4" else "yes")
    for query in ("1", "2", "4"):
        cascade.run(query)
    state = finished(cascade)
    assert (state.failed, state.n, state.disagreements) == (2, 1, 0)


def test_calls_by_the_hour(audited):
    """Over all that share the file; once they are spent, no query is looked at, whoever answered it."""
    cascade = audited(per_hour=5)
    for query in QUERIES:
        cascade.run(query)
    state = finished(cascade)
    assert state.audited == 5
    assert state.n + state.dropped == len(QUERIES)

    another = audited(per_hour=5)
    another.run("1")
    another.auditor._queue.join()
    told = another.auditor.file.state()  # at once, and not only at the end
    assert (told.audited, told.dropped) == (5, state.dropped + 1)


def test_dollars(audited):
    """What audits cost is told, and kept to; without prices it cannot be."""
    prices = Prices(1e6, 1e6)  # a dollar a token
    free = audited(prices=prices)
    free.run("1")
    price = finished(free).usd
    assert price is not None
    assert price > 1

    cascade = audited(usd=3.5 * price, prices=prices)
    for query in QUERIES:
        cascade.run(query)
    state = finished(cascade)
    assert (state.audited, state.usd) == (4, pytest.approx(4 * price))
    with pytest.raises(ConfigurationError, match="`prices` of the last stage, 'large', must be known"):
        audited(usd=7.0)


def test_nothing_said_is_stored(audited, state):
    """Unless the audit is to keep texts: then those of answers that differ."""
    cascade = audited(same=Spelled(), largest=lambda request: "nevertheless")
    cascade.run("1")
    finished(cascade)
    assert cascade.auditor.file.disagreements()[0].texts is None
    assert not any(b"nevertheless" in path.read_bytes() for path in state.parent.iterdir())

    cascade = audited(same=Spelled(), state="kept", keep_texts=True, largest=lambda request: "nevertheless")
    cascade.run("1")
    finished(cascade)
    assert cascade.auditor.file.disagreements()[0].texts == ("1", "yes", "nevertheless")


def test_alarm(audited, caplog):
    """Raised once, in another thread, with the state; a hook that fails disturbs nobody."""
    told = []

    def hook(state):
        told.append((state, threading.current_thread()))
        raise RuntimeError("no pager")

    cascade = audited(max_disagreement=0.01, on_alarm=hook, largest=lambda request: "no")
    with caplog.at_level(logging.WARNING, "confcascade.audit"):
        for query in QUERIES:
            cascade.run(query)
        state = finished(cascade)

    ((seen, thread),) = told
    assert seen.alarms == state.alarms == ("agreement",)
    assert thread is not threading.main_thread()
    assert any("is broken (agreement beyond 0.01)" in line for line in caplog.messages)
    assert state.failed == 0
    assert json.dumps(state.as_dict())


@pytest.mark.parametrize(("larger_right", "alarms"), [(False, ()), (True, ("accuracy",))])
def test_labels_decide_about_accuracy(audited, larger_right, alarms):
    """Answers that differ and are better raise no alarm of it; those that are worse do."""
    told = []
    cascade = audited(max_drop=0.01, largest=lambda request: "no", on_alarm=lambda state: told.append(state.alarms))
    for query in QUERIES * 2:
        cascade.run(query)
    file = cascade.auditor.file
    assert finished(cascade).tests["accuracy"].n == 1  # "0", which was escalated, and then it waits
    for each in file.disagreements():
        state = file.feedback(each.number, right=not larger_right, larger_right=larger_right)
    assert state.alarms == alarms
    assert state.tests["accuracy"].loss == (1 if larger_right else -1) * state.disagreements
    assert state.tests["accuracy"].unlabelled == 0
    for _ in range(2):  # labels may come from another process: the next query tells of the alarm, once
        cascade.run("3")
        finished(cascade)
    assert told == [alarms] * bool(alarms)


@pytest.mark.parametrize(
    "copied", [lambda c: pickle.loads(pickle.dumps(c)), copy.deepcopy], ids=["unpickled", "deep copy"]
)
def test_a_copy_audits_into_the_same_file(copied, state):
    """With a thread of its own."""
    stages = [Stage(ScriptedModel("small"), [TokenProbability()], {"p_t": 0.9}), Stage(ScriptedModel("large"))]
    first = Cascade(stages, audit=Audit(rate=1.0, state=state))
    second = copied(first)
    first.run("1")
    second.run("2")
    finished(first)
    assert finished(second).n == 2


def test_a_number_is_a_rate(tmp_path):
    """With a file in the working directory; 0 is no audit, and no file."""
    stages = [Stage(ScriptedModel("small"), [TokenProbability()], {"p_t": 0.9}), Stage(ScriptedModel("large"))]
    assert Cascade(stages).auditor is None
    assert not list(tmp_path.iterdir())
    assert Cascade(stages, audit=0.02).auditor.audit.rate == 0.02
    assert (tmp_path / "audit.sqlite").exists()


def test_the_thread_ends_when_there_is_nothing_to_do(audited, monkeypatch):
    """And begins anew."""
    monkeypatch.setattr("confcascade.audit.auditor._IDLE_S", 0.05)
    cascade = audited()
    for _ in range(2):
        cascade.run("1")
        finished(cascade)
        deadline = time.monotonic() + 10
        while cascade.auditor._thread is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert cascade.auditor._thread is None
    assert finished(cascade).audited == 2


def test_a_file_that_cannot_be_written_disturbs_nobody(audited, state, caplog):
    """It is told, without an exception on the way of an answer."""
    cascade = audited()
    with sqlite3.connect(state) as db:
        db.execute("DROP TABLE drawn")
    with caplog.at_level(logging.WARNING, "confcascade.audit"):
        assert cascade.run("1").text == "yes"
        cascade.auditor._queue.join()
    assert "cannot be read or written" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rate": 0}, r"share in \(0, 1\]"),
        ({"rate": True}, r"share in \(0, 1\]"),
        ({"max_disagreement": 2}, "`max_disagreement` must be a share"),
        ({"false_alarms": 0}, "`false_alarms` must be a share"),
        ({"usd": -1}, "`usd` must be a number above 0"),
        ({"queue": 0}, "`queue` must be a whole number"),
        ({"same": "choice"}, "rule with a name"),
    ],
)
def test_settings_that_cannot_be(parameters, message):
    with pytest.raises(ConfigurationError, match=message):
        Audit(**parameters)


def test_a_cascade_that_cannot_be_audited():
    with pytest.raises(ConfigurationError, match="one stage"):
        Cascade([Stage(ScriptedModel("only"))], audit=0.1)
    with pytest.raises(ConfigurationError, match=r"such as 0\.02, or an Audit"):
        Cascade([Stage(ScriptedModel("only"))], audit="often")
