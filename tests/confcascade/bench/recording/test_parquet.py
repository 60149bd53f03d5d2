"""A Parquet recording holds every row as JSON Lines do, and its columns are those of its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from confcascade import ConfigurationError, Usage
from confcascade.bench.recording import (
    Columns,
    RecordedScore,
    RecordingWriter,
    Row,
    parquet,
    read_columns,
    read_rows,
    write_parquet,
)
from confcascade.types import Token
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import Case, cases

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["", " ", "\x1c", "\u3000"])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=4,
)
PAIRS = st.tuples(TEXTS, NUMBERS)
TOKENS = st.builds(Token, TEXTS, NUMBERS, st.lists(PAIRS, max_size=2).map(tuple))
SCORES = st.builds(
    RecordedScore,
    value=st.none() | NUMBERS,
    phase=st.just("post"),
    prefill=st.just(False),
    details=st.dictionaries(TEXTS, JSON, max_size=2),
)
ROWS = st.builds(
    Row,
    question=KEYS,
    model=st.sampled_from(["small", "large"]),
    group=st.none() | TEXTS,
    prompt=st.none() | TEXTS,
    reference=st.none() | TEXTS,
    answer=TEXTS,
    grade=st.none() | st.floats(0, 1),
    refused=st.booleans(),
    predicted=st.none() | TEXTS,
    error=st.none() | TEXTS,
    finish_reason=st.none() | TEXTS,
    tokens=st.none() | st.lists(TOKENS, max_size=3).map(tuple),
    labels=st.dictionaries(TEXTS, NUMBERS, max_size=2),
    scores=st.dictionaries(KEYS, SCORES, max_size=3),
    usage=st.builds(
        Usage,
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.booleans(),
        *[st.dictionaries(st.sampled_from(("cache_read", "audio", "reasoning")), st.integers(0, 2**40))] * 2,
    ),
    latency_s=st.none() | st.floats(0, 1e6),
    prefill_s=st.none() | st.floats(0, 1e6),
    build=st.none() | TEXTS,
    prompt_version=st.none() | TEXTS,
    drawn=st.integers(1, 3),
)


def same(first: Columns, second: Columns) -> None:
    """Hold two recordings as arrays against each other, to the last digit."""
    for name in Columns.__dataclass_fields__:
        if name != "signals":
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert first.signals.keys() == second.signals.keys()
    for key, column in first.signals.items():
        other = second.signals[key]
        np.testing.assert_array_equal(column.values, other.values)
        assert (column.phase, column.prefill, column.depth) == (other.phase, other.prefill, other.depth)
        assert (column.upper is None) == (other.upper is None)
        if column.upper is not None and other.upper is not None:
            for part in ("starts", "tokens", "bounds"):
                np.testing.assert_array_equal(getattr(column.upper, part), getattr(other.upper, part))
        assert (column.lower is None) == (other.lower is None)
        if column.lower is not None and other.lower is not None:
            np.testing.assert_array_equal(column.lower, other.lower)
        assert (column.labels is None) == (other.labels is None)
        if column.labels is not None and other.labels is not None:
            assert column.labels.names == other.labels.names
            np.testing.assert_array_equal(column.labels.index, other.labels.index)
            assert (column.labels.probabilities is None) == (other.labels.probabilities is None)
            if column.labels.probabilities is not None:
                np.testing.assert_array_equal(column.labels.probabilities, other.labels.probabilities)
                np.testing.assert_array_equal(column.labels.grades, other.labels.grades)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parquet")


@given(rows=st.lists(ROWS, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost(rows: list[Row], folder: Path):
    """Rows of any content are read as they were written, in their order, and so are their columns."""
    path = folder / "rec.parquet"
    assert write_parquet(rows, path) == len(rows)
    assert list(read_rows(path)) == rows
    same(read_columns(path), Columns.of(rows))


@given(case=cases(), size=st.sampled_from([1, 2, 3, 7]))
@settings(max_examples=100, deadline=None)
def test_columns_are_those_of_the_rows(case: Case, size: int, folder: Path):
    """Bounds, phases, failures and missing scores alike, however the rows fall into batches."""
    path = folder / "rec.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_ROWS", size)
        write_parquet([*case.rows, *case.rows[:2]], path)
        same(read_columns(path), Columns.of(case.rows))
    assert list(read_rows(path)) == [*case.rows, *case.rows[:2]]


def test_blank_is_blank():
    """An answer of white space alone is no answer, whatever Python takes for white space."""
    assert set(parquet._SPACE) == {c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()}


def test_other_tools_read_it(tmp_path: Path):
    """A plain reader finds plain columns, and a signal's scores by its name."""
    score = RecordedScore(value=0.25, upper=((1, 0.5), (3, 0.25)), details={"why": ["ü"]})
    row = Row(question="q", model="m", answer="ja", scores={"p_t": score}, usage=Usage(3, 2), latency_s=1.5)
    write_parquet([row], tmp_path / "rec.parquet")
    (record,) = pq.read_table(tmp_path / "rec.parquet").to_pylist()
    assert (record["question"], record["input_tokens"], record["latency_s"], record["grade"]) == ("q", 3, 1.5, None)
    (told,) = record["scores"]
    assert (told["name"], told["value"]) == ("p_t", 0.25)
    assert told["upper"] == [{"tokens": 1, "bound": 0.5}, {"tokens": 3, "bound": 0.25}]
    assert json.loads(told["details"]) == {"why": ["ü"]}


def test_a_file_from_before_knows_of_no_draft_that_was_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Scores that were written without `lower` have none, as rows and as columns."""
    score = RecordedScore(value=0.25, lower=0.25)
    row = Row(question="q", model="m", answer="ja", scores={"p_t": score})
    path = tmp_path / "rec.parquet"
    write_parquet([row], path)
    assert next(iter(read_rows(path))) == row
    now = read_columns(path).signal("m", "p_t").lower
    assert now is not None
    assert now.tolist() == [0.25]

    table = pq.read_table(path)
    whole = table["scores"].combine_chunks()
    kept = [field for field in whole.type.value_type if field.name != "lower"]
    structs = pa.StructArray.from_arrays([whole.values.field(field.name) for field in kept], fields=kept)
    before = pa.ListArray.from_arrays(whole.offsets, structs)
    place = table.schema.get_field_index("scores")
    pq.write_table(table.set_column(place, "scores", before).replace_schema_metadata(table.schema.metadata), path)

    (old,) = read_rows(path)
    assert old.scores == {"p_t": RecordedScore(value=0.25)}
    assert read_columns(path).signal("m", "p_t").lower is None


def test_what_is_no_recording_is_refused(tmp_path: Path):
    """Another Parquet file, another file, and a row that another tool has spoilt: each is said in one sentence."""
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"question": ["q"]}), path)
    with pytest.raises(ConfigurationError, match="is not a recording"):
        list(read_rows(path))
    path.write_bytes(b'{"question": "q"}\n')
    with pytest.raises(ConfigurationError, match="cannot be read as Parquet"):
        read_columns(path)
    write_parquet([Row(question="q", model="m"), Row(question="q", model="n")], path)
    table = pq.read_table(path)
    spoilt = table.set_column(table.schema.get_field_index("grade"), "grade", [[0.5, 7.0]])
    pq.write_table(spoilt, path)
    with pytest.raises(ConfigurationError, match=r"Row 2 of '.*' is not a row of a recording: grade"):
        list(read_rows(path))
    with pytest.raises(ConfigurationError, match=r"Record to a \.jsonl file"):
        RecordingWriter(path)


def test_repeats_are_read_as_draws(tmp_path: Path):
    """As from lines; a file from before they were counted has each question once."""
    rows = [Row(question="q", model="m", grade=1.0, drawn=3), Row(question="r", model="m", grade=0.0)]
    path = tmp_path / "rec.parquet"
    write_parquet(rows, path)
    same(read_columns(path), Columns.of(rows))
    assert read_columns(path).questions == ("q", "q", "q", "r")
    pq.write_table(pq.read_table(path).drop_columns(["drawn"]), path)
    assert read_columns(path).questions == ("q", "r")
    assert [row.drawn for row in read_rows(path)] == [1, 1]


def test_a_file_from_before_depths_has_none(tmp_path: Path):
    """Its rejected questions are charged whole passes, and so are those of which only some rows tell a depth."""

    def row(question: str, depth: float | None) -> Row:
        probe = RecordedScore(value=0.5, phase="pre", prefill=True, depth=depth)
        sure = RecordedScore(value=0.25, upper=((1, 0.5), (3, 0.25)), details={"why": ["ü"]})
        return Row(question=question, model="m", scores={"p_ik": probe, "p_t": sure})

    path = tmp_path / "rec.parquet"
    for rows, depth in ([row("q", 0.5), row("r", 0.5)], 0.5), ([row("q", 0.5), row("r", None)], None):
        write_parquet(rows, path)
        assert list(read_rows(path)) == rows
        same(read_columns(path), Columns.of(rows))
        assert read_columns(path).signal("m", "p_ik").depth == depth
    write_parquet([row("q", 0.5), Row(question="s", model="m"), row("r", 0.75)], path)
    table = pq.read_table(path)
    scores = table["scores"].combine_chunks()
    kept = [field for field in scores.type.value_type if field.name != "depth"]
    structs = pa.StructArray.from_arrays([scores.values.field(each.name) for each in kept], fields=kept)
    older = pa.ListArray.from_arrays(scores.offsets, structs)
    pq.write_table(table.set_column(table.schema.get_field_index("scores"), "scores", older), path)
    expected = [row("q", None), Row(question="s", model="m"), row("r", None)]
    assert list(read_rows(path)) == expected
    same(read_columns(path), Columns.of(expected))


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path):
    """The file appears when it is whole: an error on the way leaves the earlier one as it was."""

    def rows() -> Any:
        yield Row(question="q2", model="m")
        raise OSError("gone")

    path = tmp_path / "rec.parquet"
    write_parquet([Row(question="q1", model="m")], path)
    with pytest.raises(OSError, match="gone"):
        write_parquet(rows(), path)
    assert [row.question for row in read_rows(path)] == ["q1"]
    assert [each.name for each in tmp_path.iterdir()] == ["rec.parquet"]


def test_a_signal_of_two_kinds_is_refused(tmp_path: Path):
    """As in lines."""
    before, after = RecordedScore(value=1, phase="pre"), RecordedScore(value=1)
    rows = [Row(question="a", model="m", scores={"s": before}), Row(question="b", model="m", scores={"s": after})]
    write_parquet(rows, tmp_path / "rec.parquet")
    with pytest.raises(ConfigurationError, match=r"two kinds.*question 'b'"):
        read_columns(tmp_path / "rec.parquet")
    write_parquet([], tmp_path / "none.parquet")
    with pytest.raises(ConfigurationError, match="no rows"):
        read_columns(tmp_path / "none.parquet")
