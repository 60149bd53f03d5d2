"""A file of another form is refused in one sentence that says where."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from confcascade import ConfigurationError
from confcascade.bench.recording import importers

ALL = [
    importers.read_chain,
    importers.read_choice_logits,
    importers.read_choice_softmax,
    importers.read_stated,
    importers.read_verbalized,
]


@pytest.mark.parametrize("read", ALL)
@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("other.csv", b"some,other\n1,2\n", r"Line [12] of '.*other.csv' is not of the form of this importer"),
        ("other.jsonl", b'{"some": "other"}\n{}\n', r"Line [12] of '.*other.jsonl' is not of the form"),
        (
            "list.jsonl.gz",
            gzip.compress(b"[1, 2]\n[3]\n", mtime=0),
            r"Line [12] of '.*list.jsonl.gz' is not of the form",
        ),
        ("empty.csv", b"", "'.*empty.csv' has no rows"),
        ("plain.csv.gz", b"question,model\n", "'.*plain.csv.gz' cannot be read"),
        ("half.csv.gz", gzip.compress(b"question,model\n", mtime=0)[:14], "'.*half.csv.gz' cannot be read"),
        ("latin.csv", b"\xe9t\xe9\n", "'.*latin.csv' cannot be read"),
    ],
)
def test_another_form(read: Callable, name: str, content: bytes, error: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=error) as caught:
        list(read(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", ALL)
def test_a_missing_file_is_the_systems_error(read: Callable, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        list(read(tmp_path / "none.csv"))
