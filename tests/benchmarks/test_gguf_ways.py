"""The two ways of a GGUF file in float32 agree, and the script says by how much."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
pytest.importorskip("accelerate")


def test_both_ways_of_one_file_agree(load_script, tmp_path, capsys):
    """The weights are in float32, so nothing but the order of sums differs (on some processors, not even that)."""
    load_script("gguf_ways").main(questions=8, half=False, out=tmp_path / "out.json", threads=1, batch=4)

    found = json.loads((tmp_path / "out.json").read_text())
    assert max(found["hidden_difference"], found["logprob_difference"]) < 1e-4
    row = found["free"]["llamacpp"]
    assert (row["n"], row["decisions"], row["answers"]) == (8, 0, 0)
    assert row["largest"] < 1e-3
    assert "| free (8) | llamacpp |" in capsys.readouterr().out
