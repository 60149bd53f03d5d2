"""Ties broken by lot: the order of scores stays, equal ones are told apart, live as recorded."""

from __future__ import annotations

import numpy as np
import pytest
from confcascade import (
    Cascade,
    ConfigurationError,
    Message,
    Request,
    RetrievalScore,
    Stage,
    TiesByLot,
    TokenProbability,
    Verbalized,
)
from confcascade.extending import Evidence, Response
from confcascade.signals.ties_by_lot import LOT, drawn, lot_of
from confcascade.testing import ScriptedModel
from hypothesis import given
from hypothesis import strategies as st


def asked(text: str) -> Request:
    return Request((Message("user", text),))


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0, 1), st.floats(0, 1))
def test_the_order_of_scores_stays(low: int, high: int, some: float, other: float):
    """Between different scores no lot decides; between equal ones only the lot."""
    ours, theirs = drawn(low / 100, some), drawn(high / 100, other)

    assert 0 <= ours <= 1
    assert abs(ours - low / 100) <= LOT
    if low != high:
        assert (ours < theirs) == (low < high)
    elif abs(some - other) > 1e-6:  # an eighth digit of a lot may be lost beside a score
        assert (ours < theirs) == (some < other)


def test_lots_are_uniform_and_always_the_same():
    """Over questions that look alike; the mean of 4,000 lies within five standard errors of a half."""
    lots = np.array([lot_of(asked(f"What is {i} + {i}?")) for i in range(4000)])

    assert lots.tolist() == [lot_of(asked(f"What is {i} + {i}?")) for i in range(4000)]
    assert abs(lots.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 4000)
    assert np.histogram(lots, bins=10, range=(0, 1))[0].min() > 300
    assert lot_of(Request((Message("system", "a"), Message("user", "b")))) != lot_of(asked("ab"))


def test_a_part_of_equal_statements_is_kept():
    """All say 0.95: a threshold between them keeps those with the greater lots, and no more of the lower ones."""
    queries = [f"q{i}" for i in range(40)]

    def said(request: Request) -> str:
        number = int(request.messages[0].content.split()[0][1:])
        return f"It is so.\n\nConfidence: {95 if number % 4 else 90}%"

    threshold = drawn(0.95, 0.6)
    small = Stage(ScriptedModel("small", said), [TiesByLot(Verbalized())], {"stated": threshold})
    cascade = Cascade([small, Stage(ScriptedModel("large", lambda request: "No."))])

    kept = {q for q in queries if cascade.run(q).record.answered_by == "small"}

    assert kept == {f"q{i}" for i in range(40) if i % 4 and lot_of(asked(f"q{i}")) >= 0.6}
    assert 0 < len(kept) < 30


@given(st.lists(st.floats(-5, 0), min_size=1, max_size=4), st.integers(1, 4))
def test_bounds_hold_for_the_drawn_score(logprobs: list[float], seen: int):
    """Of an answer that is still growing, by a signal that decides early."""
    from confcascade.extending import Token

    signal = TiesByLot(TokenProbability(aggregate="product"))
    tokens = tuple(Token("x", p) for p in logprobs)
    request = asked("q")

    low, high = signal.bounds(Evidence(request, tokens=tokens[:seen]))
    value = signal.score(Evidence(request, tokens=tokens, response=Response("x" * len(tokens), tokens=tokens))).value

    assert low <= value <= high


def test_it_is_the_other_signal_in_all_else():
    """Name, needs, what the model is asked; and another identity, so that thresholds of one are not used for both."""
    inner = Verbalized(name="sure")
    signal, request = TiesByLot(inner), asked("q")

    assert (signal.name, signal.phase, signal.space, signal.told) == ("sure", "post", (0.0, 1.0), True)
    assert signal.asks(request) == inner.asks(request) != request
    assert TiesByLot(TokenProbability("AB")).labels == ("A", "B")
    assert signal.identity() != inner.identity() == signal.identity()["of"]


@pytest.mark.parametrize(
    "signal", [RetrievalScore(scores=(-1, 1)), TokenProbability("AB", corrects=True), TiesByLot(Verbalized()), "stated"]
)
def test_what_it_cannot_take(signal):
    with pytest.raises(ConfigurationError, match="takes"):
        TiesByLot(signal)
