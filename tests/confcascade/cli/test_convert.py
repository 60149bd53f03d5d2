"""``confcascade convert``: the same rows in another file."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from confcascade.bench.recording import RecordingWriter, Row, part_paths, read_rows


def test_there_and_back(confcascade, tmp_path: Path):
    """Lines become Parquet, Parquet parts, and parts lines again; nothing is overwritten."""
    rows = [Row(question=f"q{i}", model="m", answer=f"ü{i}", grade=0.5) for i in range(20)]
    with RecordingWriter(tmp_path / "a.jsonl") as writer:
        for row in rows:
            writer.append(row)
    for source, target in (("a.jsonl", "b.parquet"), ("b.parquet", "c"), ("c", "d.jsonl")):
        more = ["--parts", 3] if target == "c" else []
        done = confcascade("convert", tmp_path / source, tmp_path / target, *more)
        assert (done.returncode, done.stderr.strip()) == (0, "")
        assert done.stdout == f"20 rows in {tmp_path / target}\n"
    assert list(read_rows(tmp_path / "b.parquet")) == rows
    assert len(part_paths(tmp_path / "c")) == 3
    assert sorted((tmp_path / "a.jsonl").read_bytes().splitlines()) == sorted(
        (tmp_path / "d.jsonl").read_bytes().splitlines()
    )
    again = confcascade("convert", tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert again.returncode == 2
    assert "there already" in again.stderr
    odd = confcascade("convert", tmp_path / "a.jsonl", tmp_path / "e.csv")
    assert odd.returncode == 2
    assert "must end with .parquet or .jsonl" in odd.stderr
