"""`RetrievalScore`: how well the passages that an answer is to be read from match the query."""

from __future__ import annotations

import json
import math

import pytest
from confcascade import (
    Cascade,
    ConfigurationError,
    Message,
    Request,
    RetrievalScore,
    SignalUnavailableError,
    Stage,
    TokenProbability,
)
from confcascade.extending import Evidence
from confcascade.stage import policy_id
from confcascade.testing import ScriptedModel
from hypothesis import given
from hypothesis import strategies as st

QUERY = "Where was Trugo Voden born?"


def evidence(*scores: float | None, nothing: bool = False) -> Evidence:
    return Evidence(Request((Message("user", QUERY),), retrieved=None if nothing else scores))


def cascade(threshold: object = 5.0, **parameters: object) -> Cascade:
    small = ScriptedModel("small", {QUERY: ("Tobras", 0.95)})
    stage = Stage(small, [RetrievalScore(**parameters)], {"retrieval": threshold})  # type: ignore[arg-type]
    return Cascade([stage, Stage(ScriptedModel("large", {QUERY: "Tobras, it says"}))])


@pytest.mark.parametrize(
    ("signal", "scores", "value"),
    [
        (RetrievalScore(), (2.0, 7.5, 4.0), 7.5),
        (RetrievalScore("mean", k=2), (2.0, 7.5, 4.5), 6.0),
        (RetrievalScore("mean", k=5), (2.0, 7.0), 4.5),
        (RetrievalScore("margin"), (2.0, 7.5, 4.0), 3.5),
        (RetrievalScore(scores=(-1, 1)), (-0.25,), -0.25),
    ],
)
def test_scores_become_one_number(signal: RetrievalScore, scores: tuple[float, ...], value: float) -> None:
    """In whatever order the retriever lists its passages."""
    measured = signal.score(evidence(*scores))

    assert measured.value == pytest.approx(value)
    assert measured.details == {"passages": len(scores)}


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.sampled_from(["top", "mean", "margin"]), st.integers(1, 9)
)
def test_values_stay_in_the_space_and_do_not_hang_on_the_order(scores: list[float], aggregate: str, k: int) -> None:
    """So a threshold that `validate` takes can be reached."""
    signal = RetrievalScore(aggregate, k=k, scores=(-1, 1))  # type: ignore[arg-type]
    low, high = signal.space

    value = signal.score(evidence(*scores)).value

    assert low <= value <= high
    assert value == signal.score(evidence(*reversed(scores))).value


@pytest.mark.parametrize(
    ("signal", "given", "says"),
    [
        (RetrievalScore(), evidence(nothing=True), "nothing was retrieved"),
        (RetrievalScore(), evidence(), "found no passage"),
        (RetrievalScore(), evidence(3.0, None), "has no score"),
        (RetrievalScore(), evidence(math.nan), "outside of"),
        (RetrievalScore(scores=(-1, 1)), evidence(3.0, 0.5), r"outside of \[-1, 1\]"),
        (RetrievalScore("margin"), evidence(3.0), "no margin"),
    ],
)
def test_no_value_is_invented(signal: RetrievalScore, given: Evidence, says: str) -> None:
    """What cannot be computed is said, and why."""
    with pytest.raises(SignalUnavailableError, match=says):
        signal.score(given)


def test_passages_that_do_not_match_escalate_before_anything_is_generated() -> None:
    """The small model is not asked at all, and the record says why."""
    asking = cascade()

    matched, unmatched = (asking.run(QUERY, retrieved=(score, 0.5)).record for score in (8.0, 2.0))

    assert (matched.answered_by, unmatched.answered_by) == ("small", "large")
    assert unmatched.attempts[0].reason == "retrieval 2 < 5"
    assert unmatched.attempts[0].usage.total_tokens == 0
    small = asking.stages[0].model
    assert isinstance(small, ScriptedModel)
    assert len(small.calls) == 1


def test_without_a_retrieval_a_query_escalates_unless_always_kept() -> None:
    """The reason is in the record; "always" keeps the answer, and only records the score."""
    assert cascade().run(QUERY).record.attempts[0].reason == "retrieval: nothing was retrieved for this query"
    assert cascade("always").run(QUERY).record.answered_by == "small"


async def test_every_driver_reads_the_requests_own_scores() -> None:
    """Concurrent queries and batches: each is judged by what was retrieved for it."""
    asking, messages = cascade(), (Message("user", QUERY),)
    requests = [Request(messages, retrieved=(score,)) for score in (8.0, 2.0, 6.0, 4.0)]
    expected = ["small", "large", "small", "large"]

    assert [outcome.record.answered_by for outcome in asking.run_batch(requests)] == expected
    assert [outcome.record.answered_by for outcome in await asking.arun_batch(requests)] == expected
    streamed = [list(asking.stream(request))[-1] for request in requests]
    assert [outcome.record.answered_by for outcome in streamed] == expected  # type: ignore[union-attr]


def test_it_stands_beside_other_signals() -> None:
    """Both must pass, each with a threshold of its own."""
    small = ScriptedModel("small", {QUERY: ("Tobras", 0.95)})
    thresholds = {"retrieval": 5.0, "p_t": 0.9}
    asking = Cascade([Stage(small, [RetrievalScore(), TokenProbability()], thresholds), Stage(ScriptedModel("large"))])

    record = asking.run(QUERY, retrieved=(8.0,)).record

    assert record.attempts[0].reason == "retrieval 8 >= 5, p_t 0.95 >= 0.9"
    assert json.loads(json.dumps(record.as_dict()))["attempts"][0]["scores"]["retrieval"]["details"] == {"passages": 1}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"aggregate": "median"}, "`aggregate`"),
        ({"k": 0}, "`k`"),
        ({"k": True}, "`k`"),
        ({"scores": (1, -1)}, "`scores`"),
        ({"scores": (math.nan, 1)}, "`scores`"),
    ],
)
def test_arguments_are_checked(parameters: dict[str, object], says: str) -> None:
    """When the signal is made."""
    with pytest.raises(ConfigurationError, match=says):
        RetrievalScore(**parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "threshold"),
    [
        ({"scores": (-1, 1)}, 1.5),
        ({"scores": (-1, 1), "aggregate": "margin"}, -0.5),
        ({"aggregate": "margin"}, -0.5),
        ({}, math.inf),
        ({}, math.nan),
    ],
)
def test_a_threshold_lies_in_the_space(parameters: dict[str, object], threshold: float) -> None:
    """And is finite, also where the space is not: "always" and "never" stand for its ends."""
    with pytest.raises(ConfigurationError, match="threshold of signal 'retrieval' must be a number in"):
        cascade(threshold, **parameters)


def test_what_decides_alike_has_one_policy_id() -> None:
    """`k` tells policies apart only where it is read, and identities are JSON without infinities."""

    def of(signal: RetrievalScore) -> str:
        json.dumps(signal.identity(), allow_nan=False)
        return policy_id([Stage(ScriptedModel("small"), [signal], {"retrieval": 0.5})])

    assert of(RetrievalScore(k=2)) == of(RetrievalScore(k=3))
    assert len({of(RetrievalScore(k=2)), of(RetrievalScore("mean", k=2)), of(RetrievalScore("mean", k=3))}) == 3
    assert of(RetrievalScore()) != of(RetrievalScore(scores=(-1, 1)))
