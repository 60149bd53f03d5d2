"""A stream is read piece by piece, whatever client gives the pieces."""

from __future__ import annotations

from typing import Any

import pytest
from confcascade import Message, ModelError, Request, Usage
from confcascade.answers import parted
from confcascade.asks import Generate
from confcascade.extending import Piece, Response, StreamReader
from confcascade.testing import ScriptedModel
from hypothesis import given
from hypothesis import strategies as st

REQUEST = Request((Message("user", "four"),))


def reader(**ask: Any) -> StreamReader:
    return StreamReader(Generate(ScriptedModel("small"), REQUEST, **ask))


def listed(*pieces: str) -> list[dict[str, Any]]:
    return [{"token": piece, "logprob": -0.1} for piece in pieces]


def texts(tokens: Any) -> Any:
    return None if tokens is None else [token.text for token in tokens]


pieces = st.builds(
    lambda text, thoughts, logged: Piece(text, thoughts, listed(thoughts + text) if logged else None),
    st.text("ab ", max_size=3),
    st.text("cd", max_size=3),
    st.booleans(),
)


@given(st.lists(pieces))
def test_pieces_add_up_and_none_is_lost(pieces):
    """Text, thoughts and tokens; every piece with something in it is a chunk."""
    reading = reader()

    chunks = [chunk for piece in pieces for chunk in reading.add(piece)]

    assert reading.text == "".join(chunk.text for chunk in chunks) == "".join(piece.text for piece in pieces)
    assert reading.thoughts == "".join(piece.thoughts for piece in pieces)
    assert list(reading.tokens or ()) == [token for chunk in chunks for token in chunk.tokens]
    assert len(chunks) == sum(bool(piece.text or piece.thoughts) for piece in pieces)


def test_a_piece_keeps_what_is_its_clients_own():
    """The event, and whether it adds to a call; one with nothing in it is no chunk."""
    reading, event = reader(), object()

    (called,) = reading.add(Piece(calls_tool=True, native=event))

    assert called.calls_tool
    assert called.native is event
    assert list(reading.add(Piece(native=event, finish_reason="stop"))) == []
    assert list(reading.add(Piece())) == []
    assert reading.finish_reason == "stop"


def test_the_watch_sees_the_answers_tokens_alone():
    """Of thoughts it decides nothing, in the text or apart from it."""
    for before, apart in ((Piece("<think>hm</think>", "", listed("<think>", "hm", "</think>")), False),
                          (Piece("", "hm", listed("hm")), True)):  # fmt: skip
        seen: list[Any] = []
        reading = reader(watch=lambda tokens, seen=seen: seen.append(texts(tokens)) or "hold")
        for piece in (before, Piece("Ly", "", listed("Ly")), Piece("on", "", listed("on"))):
            list(reading.add(piece))

        assert seen == [["Ly"], ["Ly", "on"]]
        found = parted(REQUEST, reading.finished(Response(reading.text)))
        assert (texts(found.tokens), found.thoughts) == (["Ly", "on"], "hm"), apart


@pytest.mark.parametrize(("live", "verdict", "released"), [(True, "hold", [1, 1]), (False, "release", [0, 1]),
                                                           (False, "hold", [0, 0])])  # fmt: skip
def test_chunks_are_released_from_the_verdict_on(live, verdict, released):
    """A live answer from its first."""
    reading = reader(live=live, watch=lambda tokens: verdict if len(tokens) > 1 else "hold")

    chunks = [chunk for text in ("a", "b") for chunk in reading.add(Piece(text, "", listed(text)))]

    assert [chunk.released for chunk in chunks] == released


def test_an_aborted_answer_says_so_and_its_usage_is_estimated():
    """The server did not come to tell it; what it did tell counts."""
    reading = reader(watch=lambda tokens: "abort")
    list(reading.add(Piece("a b", "", listed("a", " ", "b"))))
    assert reading.aborted

    ended = reading.finished(Response(reading.text), must_finish=True)

    assert (ended.finish_reason, ended.usage, texts(ended.tokens)) == ("aborted", Usage(1, 3, True), ["a", " ", "b"])
    assert reading.finished(Response("a b", usage=Usage(7, 9))).usage == Usage(7, 9, True)


def test_a_stream_that_does_not_say_why_it_ended_was_cut():
    """Where the server always says so."""
    reading = reader()
    list(reading.add(Piece("a")))

    assert reading.finished(Response("a")).text == "a"
    with pytest.raises(ModelError, match="of model 'small' ended before the answer did"):
        reading.finished(Response("a"), must_finish=True)
    list(reading.add(Piece(finish_reason="stop")))
    assert reading.finished(Response("a"), must_finish=True).finish_reason == "stop"


def test_what_is_no_log_probability_is_none_of_the_answer():
    """And it is said why; the watch is not asked any more."""
    seen: list[Any] = []
    reading = reader(watch=lambda tokens: seen.append(texts(tokens)) or "hold")
    list(reading.add(Piece("a", "", listed("a"))))
    (chunk,) = reading.add(Piece("b", "", [{"token": "b", "logprob": float("nan")}]))

    ended = reading.finished(Response("ab"))

    assert (chunk.text, chunk.tokens, reading.tokens, ended.tokens) == ("b", (), None, None)
    assert ended.unscored
    assert seen == [["a"]]


def test_what_the_client_read_itself_stays():
    """The thoughts of its own answer, its usage, its calls."""
    reading = reader()
    list(reading.add(Piece("a", "cut", None)))

    ended = reading.finished(Response("a", usage=Usage(1, 2), thoughts="whole"))

    assert (ended.thoughts, ended.usage, ended.tokens) == ("whole", Usage(1, 2), None)
    assert reading.finished(Response("a")).thoughts == "cut"
