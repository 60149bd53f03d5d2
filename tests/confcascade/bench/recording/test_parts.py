"""A recording in parts is the recording: its rows, and the figures of every policy over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from confcascade import Architecture, ConfigurationError, Prices, Usage
from confcascade.bench.evaluation.report import made_of
from confcascade.bench.recording import (
    Columns,
    RecordedScore,
    Recording,
    Row,
    part_paths,
    read_columns,
    read_rows,
    write_parts,
)
from confcascade.bench.recording.digest import digest
from confcascade.bench.replay import PolicyStage, Sweep, replay, sweep
from confcascade.bench.replay.replay import Sums, total
from confcascade.extending import Token
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import Case, cases


def figures(swept: Sweep) -> np.ndarray:
    costs = [getattr(cost, unit) for cost in (swept.cost, swept.cost_answering_stage) for unit in vars(cost)]
    return np.stack([swept.accuracy, *swept.answered.T, swept.unanswered, *costs])


def test_parts_hold_every_row_once_and_questions_together(tmp_path: Path):
    """Whatever the order of the rows, a question is in one part, in the order of its rows."""
    rng = np.random.default_rng(0)
    rows = [Row(question=f"q{q}", model=m, answer=str(q)) for q in range(50) for m in ("small", "large")]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    rows.append(rows[3].model_copy(update={"answer": "asked again"}))
    assert write_parts(rows, tmp_path / "rec", 4) == len(rows)
    assert [path.name for path in part_paths(tmp_path / "rec")] == [f"part-000{i}.parquet" for i in range(4)]
    seen: dict[str, Path] = {}
    for path in part_paths(tmp_path / "rec"):
        for row in read_rows(path):
            assert seen.setdefault(row.question, path) == path
    found = list(read_rows(tmp_path / "rec"))
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    assert [r for r in found if r.question == rows[3].question] == [r for r in rows if r.question == rows[3].question]
    assert len(read_columns(tmp_path / "rec")) == 50
    assert [path.name for path in tmp_path.iterdir()] == ["rec"]
    assert made_of(Recording(tmp_path / "rec"), "a command")["sha256 of the recording"] == digest(tmp_path / "rec")


def test_what_cannot_be_written_or_read_is_refused(tmp_path: Path):
    """No parts, a folder that is there, a folder without a recording."""
    with pytest.raises(ConfigurationError, match="at least 1 part"):
        write_parts([], tmp_path / "rec", 0)
    with pytest.raises(ConfigurationError, match="there already"):
        write_parts([], tmp_path, 2)
    for path in (tmp_path, tmp_path / "absent.jsonl"):
        with pytest.raises(ConfigurationError, match="is not a recording"):
            list(read_rows(path))
    with pytest.raises(ConfigurationError, match="at least one part"):
        sweep([], [])


@given(case=cases(), cut=st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_a_sweep_over_parts_is_the_sweep(case: Case, cut: int):
    """Sums of two parts make the figures of the whole."""
    columns = Columns.of(case.rows)
    costs = {"architectures": case.architectures, "prices": case.prices}
    cut = min(cut, len(columns))
    parts = [columns.take(range(cut)), columns.take(range(cut, len(columns)))]
    swept = sweep((part for part in parts if len(part)), case.policies, **costs)
    np.testing.assert_allclose(figures(swept), figures(sweep(columns, case.policies, **costs)), rtol=1e-9)
    for p, policy in enumerate(case.policies):
        assert swept.accuracy[p] == pytest.approx(replay(columns, policy).grade.mean())


def test_sums_do_not_hang_on_the_order_of_the_questions():
    """To the last digit: no order of adding, and so neither threads nor processors, can change a figure."""
    rng = np.random.default_rng(0)
    n = 5_000
    rows = [
        Row(
            question=str(i),
            model=model,
            answer="x",
            grade=rng.random(),
            scores={
                "s": RecordedScore(value=rng.random(), upper=((1, 1.0),)),
                "p": RecordedScore(value=0.5, phase="pre", prefill=True),
            },
            tokens=(Token("x", -1.0),),
            usage=Usage(int(rng.integers(1, 10**6)), 1),
            latency_s=rng.random(),
            prefill_s=0.0,
        )
        for i in range(n)
        for model in ("small", "large")
    ]
    columns = Columns.of(rows)
    policies = [[PolicyStage("small", {"s": t, "p": 0.5}), PolicyStage("large")] for t in (0.1, 0.5, 0.9)]
    costs = {
        "architectures": {
            "small": Architecture(8_030_261_248, 32, 4096),
            "large": Architecture(70_553_706_496, 80, 8192),
        },
        "prices": {"small": Prices(0.1, 0.3), "large": Prices(1.1, 3.3)},
    }
    swept = figures(sweep(columns, policies, **costs))
    assert np.isfinite(swept).all()
    for _ in range(3):
        np.testing.assert_array_equal(figures(sweep(columns.take(rng.permutation(n)), policies, **costs)), swept)
    played = replay(columns, policies[1], **costs)
    assert swept[:, 1] == pytest.approx(
        [played.grade.mean(), *(played.stage[:, None] == [0, 1]).mean(axis=0), 0]
        + [getattr(cost, unit).mean() for cost in (played.cost, played.cost_answering_stage) for unit in vars(cost)],
        rel=1e-11,
    )


def test_sums_of_parts_are_added_in_their_order():
    """Floating-point sums hang on their order, so `total` keeps it."""
    three = [Sums(1, np.full((1, 1), x), np.full((1, 10), x)) for x in (1e16, 1.0, -1e16)]
    assert total(three).accuracy[0] == ((1e16 + 1.0) - 1e16) / 3
    assert total(three[::-1]).accuracy[0] == ((-1e16 + 1.0) + 1e16) / 3
