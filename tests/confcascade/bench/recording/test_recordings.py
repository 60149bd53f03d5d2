"""A recording keeps every row that was appended, and never half of one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from confcascade import ConfigurationError, Message, Request, TokenProbability, Usage
from confcascade.asks import Answer, Generate
from confcascade.bench.recording import (
    Columns,
    RecordedScore,
    RecordingWriter,
    Row,
    judged_score,
    read_rows,
    score_of,
)
from confcascade.bench.recording.reading import is_recording
from confcascade.extending import Evidence, Prefilled, Response
from confcascade.signals import Measurement
from confcascade.types import Token
from hypothesis import given, settings
from pydantic import ValidationError

from ..conftest import Case, cases


def row(question: str, model: str = "m", **changes: object) -> Row:
    return Row.model_validate({"question": question, "model": model, "answer": "yes", "grade": 1.0} | changes)


@given(case=cases())
@settings(max_examples=50, deadline=None)
def test_rows_survive_the_round_trip(case: Case, tmp_path_factory: pytest.TempPathFactory):
    """What is read is what was appended, to the last digit."""
    path = tmp_path_factory.mktemp("recording") / "rec.jsonl"
    with RecordingWriter(path) as writer:
        for each in case.rows:
            writer.append(each)

    assert list(read_rows(path)) == case.rows


def test_half_a_character_ends_no_collect(tmp_path: Path):
    """JSON may name half a surrogate pair, and UTF-8 cannot hold it: the row is kept, with U+FFFD in its place."""
    path = tmp_path / "rec.jsonl"
    token = Token("\ud83d", -0.5)
    with RecordingWriter(path) as writer:
        writer.append(row("q1", answer="so \ud83d", tokens=(token,), scores={"p_t": RecordedScore(value=0.5)}))
    (read,) = read_rows(path)
    assert (read.answer, read.tokens) == ("so \ufffd", (Token("\ufffd", -0.5),))
    assert read.scores["p_t"].value == 0.5


def test_an_unfinished_last_line_is_no_row(tmp_path: Path):
    """However much of the last line a kill has left: readers drop it, and the next writer cuts it off."""
    path = tmp_path / "rec.jsonl"
    whole, half = row("q1").line(), row("q2", prompt="ü" * 70_000).line()
    for end in (1, 10, len(half) // 2, len(half) - 1):
        path.write_bytes(whole + half[:end])
        assert [each.question for each in read_rows(path)] == ["q1"]
        with RecordingWriter(path) as writer:
            assert writer.keys == {("q1", "m")}
            writer.append(row("q3"))
        assert [each.question for each in read_rows(path)] == ["q1", "q3"]


def test_a_file_of_one_unfinished_line_is_empty(tmp_path: Path):
    """The first row may be the one that was cut short."""
    path = tmp_path / "rec.jsonl"
    path.write_bytes(b'{"question": "q')
    with RecordingWriter(path) as writer:
        assert writer.keys == set()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [
        b"One line of notes, without a newline",
        b'{"question": "Where?", "reference": "here"}',
        b'{"question": "Where?"}\n{"question": "When?"}',
        row("q1").line() + b"notes",
        b"question,reference\nWhere?,here",
    ],
)
def test_a_file_that_is_no_recording_is_left_as_it_is(tmp_path: Path, content: bytes):
    """Whoever names the wrong file keeps it whole: only what a kill can have left of a row is cut off."""
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a r"):
        RecordingWriter(path)
    assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path):
    """Only the end of a file can be the work of a kill: anything else is said, by line and field."""
    path = tmp_path / "rec.jsonl"
    path.write_bytes(row("q1").line() + b'{"question": "q2", "model": 3}\n' + row("q3").line())
    with pytest.raises(ConfigurationError, match=r"Line 2 of '.*rec.jsonl'.*model"):
        list(read_rows(path))
    with pytest.raises(ConfigurationError, match="Line 2"):
        RecordingWriter(path)


def test_one_writer_at_a_time(tmp_path: Path):
    """A second writer is refused, and welcome once the first has closed."""
    pytest.importorskip("fcntl")
    path = tmp_path / "rec.jsonl"
    with RecordingWriter(path), pytest.raises(ConfigurationError, match="another"):
        RecordingWriter(path)
    RecordingWriter(path).close()


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A short write is an error, and what was written of the row is taken away."""
    path = tmp_path / "rec.jsonl"
    write = os.write
    with RecordingWriter(path) as writer:
        writer.append(row("q1"))
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(OSError, match="Only 7 of"):
            writer.append(row("q2"))
        monkeypatch.undo()
        writer.append(row("q3"))
        assert writer.keys == {("q1", "m"), ("q3", "m")}
    assert [each.question for each in read_rows(path)] == ["q1", "q3"]


WRITE = """
import sys
from confcascade.bench.recording import RecordingWriter, Row
with RecordingWriter(sys.argv[1]) as writer:
    for i in range(100_000):
        if (f"q{i}", "m") not in writer.keys:
            writer.append(Row(question=f"q{i}", model="m", answer="x" * (i % 5000)))
            print(i, flush=True)
"""


def test_kill_loses_nothing(tmp_path: Path):
    """Killed five times, a writer goes on where it was: what it said it had written is there, once and whole."""
    path = tmp_path / "rec.jsonl"
    said = -1
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            assert first in (said + 1, said + 2)  # a row may have been written, and not yet been told
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().splitlines()
            said = int(lines[-1]) if lines else first
    rows = list(read_rows(path))
    assert [each.question for each in rows] == [f"q{i}" for i in range(len(rows))]
    assert len(rows) in (said + 1, said + 2)
    assert all(len(each.answer) == i % 5000 for i, each in enumerate(rows))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"value": 0.5, "upper": [(1, 0.9), (1, 0.8)]}, "rise in tokens"),
        ({"value": 0.5, "upper": [(1, 0.8), (2, 0.9)]}, "fall in bounds"),
        ({"value": 0.95, "upper": [(1, 0.9)]}, "above its last upper bound"),
        ({"value": 0.5, "upper": [(0, 0.9)]}, "where `prefill` is true"),
        ({"value": 0.5, "lower": 0.6}, "below its lower bound"),
        ({"value": 0.5, "phase": "pre", "lower": 0.5}, "no `lower`"),
        ({"value": 0.5, "phase": "pre", "prefill": True, "upper": [(0, 0.9)]}, "phase 'pre'"),
        ({"value": math.nan}, "finite"),
    ],
)
def test_scores_that_contradict_themselves_are_refused(score: dict[str, object], message: str):
    """A replay relies on bounds that fall, and never below the value."""
    with pytest.raises(ValidationError, match=message):
        RecordedScore.model_validate(score)


def test_a_signals_bounds_are_recorded():
    """`upper` says after how many tokens the greatest value that was still possible fell, and to what."""
    words = ["A", ",", " w", " w"]
    tokens = tuple(Token(word, math.log(p)) for word, p in zip(words, (0.9, 0.95, 0.5, 0.6), strict=True))
    request, response = Request((Message("user", "q"),)), Response("A, w w", tokens, Usage(1, 4))
    least = score_of(TokenProbability(aggregate="min"), Evidence(request, None, tokens, response))
    assert least.value == pytest.approx(0.5)
    assert [count for count, _ in least.upper] == [1, 3]
    assert [bound for _, bound in least.upper] == pytest.approx([0.9, 0.5])
    mean = score_of(TokenProbability(), Evidence(request, None, tokens, response))
    assert mean.upper == ()
    seen = Prefilled(Usage(1), label_logprobs={"A": math.log(0.8), "B": math.log(0.1)})
    letter = score_of(TokenProbability("AB"), Evidence(request, seen, tokens, response), prefill=True)
    assert letter.prefill
    beside = score_of(TokenProbability(aggregate="min"), Evidence(request, seen, tokens, response))
    assert beside == least  # what was prefilled for another signal is none of its business
    assert letter.upper == ((0, letter.value),)
    missing = score_of(TokenProbability(), Evidence(request, None, None, response))
    assert missing.value is None
    assert "no log-probabilities" in missing.details["unavailable"]


class SecondOpinion(TokenProbability):
    """Asks the same model once more."""

    def judge(self, evidence):
        (answer,) = yield (Generate(self.model, evidence.request),)
        return Measurement(0.25 if answer.error else 0.75)


def test_a_signal_with_calls_of_its_own_is_a_flow():
    """Which is sent the answers to its asks; without anybody to ask it cannot be scored."""
    signal, request = SecondOpinion(aggregate="min"), Request((Message("user", "q"),))
    signal.model = object()
    tokens = (Token("w", math.log(0.8)),)
    evidence = Evidence(request, None, tokens, Response("w", tokens))
    flow = judged_score(signal, evidence)
    (asked,) = next(flow)
    assert asked.model is signal.model
    with pytest.raises(StopIteration) as ended:
        flow.send((Answer(Response("yes")),))
    assert ended.value.value == RecordedScore(value=0.75, upper=((1, math.exp(math.log(0.8))),))
    with pytest.raises(ConfigurationError, match="further calls"):
        score_of(signal, evidence)


def test_columns_hold_the_latest_row_of_each_key():
    """Asked again, a question has the score, or the lack of one, and the grade of the last time."""
    rows = [
        row("q1", "a", scores={"s": {"value": 0.1}, "t": {"value": 0.3, "upper": [(1, 0.4), (2, 0.3)]}}),
        row("q2", "b", grade=None, group="hard"),
        row("q2", "a", scores={"s": {"value": None}, "t": {"value": 0.2, "upper": [(3, 0.2)]}}),
        row("q1", "a", grade=0.0, scores={"s": {"value": 0.7}}),
    ]
    columns = Columns.of(rows)
    assert columns.questions == ("q1", "q2")
    assert columns.models == ("a", "b")
    assert columns.groups.tolist() == ["", "hard"]
    assert columns.recorded.tolist() == [[True, False], [True, True]]
    np.testing.assert_array_equal(columns.grades, [[0.0, np.nan], [1.0, np.nan]])
    assert columns.signal_names == ("s", "t")
    np.testing.assert_array_equal(columns.scores[:, 0], [[0.7, np.nan], [np.nan, 0.2]])
    assert np.isnan(columns.scores[:, 1]).all()
    upper = columns.signal("a", "t").upper
    assert upper is not None
    assert (upper.starts.tolist(), upper.tokens.tolist(), upper.bounds.tolist()) == ([0, 0, 1], [3], [0.2])
    assert columns.complete().questions == ("q2",)
    taken = columns.take([1, 0, 1])
    assert taken.questions == ("q2", "q1", "q2")
    assert taken.signal("a", "t").upper.starts.tolist() == [0, 1, 1, 2]  # type: ignore[union-attr]


def test_columns_refuse_a_signal_of_two_kinds():
    """A score now from the prompt, now from the answer, is two signals."""
    with pytest.raises(ConfigurationError, match="two kinds"):
        Columns.of([row("q1", scores={"s": {"value": 1, "phase": "pre"}}), row("q2", scores={"s": {"value": 1}})])


def test_columns_name_what_is_not_recorded():
    """A model or signal that is asked for in vain is named beside those that there are."""
    columns = Columns.of([row("q1", scores={"s": {"value": 1}})])
    with pytest.raises(ConfigurationError, match=r"'x'.*\['m'\]"):
        columns.index("x")
    with pytest.raises(ConfigurationError, match=r"'t' of model 'm'.*\['s'\]"):
        columns.signal("m", "t")
    assert Columns.of([row("q1")]).scores.shape == (1, 1, 0)
    with pytest.raises(ConfigurationError, match="no rows"):
        Columns.of([])


def test_a_recording_is_told_from_questions(tmp_path):
    """By its first row, also of a folder; an empty file, an empty folder and questions are none."""
    path = tmp_path / "a.jsonl"
    assert not is_recording(tmp_path)
    path.write_bytes(Row(question="q", model="m").line())
    assert is_recording(path)
    assert is_recording(tmp_path)
    assert is_recording(tmp_path / "a.parquet") is False
    path.write_text('{"question": "q", "reference": "a"}\n')
    assert not is_recording(path)
    path.write_text("")
    assert not is_recording(path)
    assert not is_recording(tmp_path)
