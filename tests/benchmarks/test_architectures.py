"""The script finds what is equal, refused and different, and does not look twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import typer


def test_types_are_compared_once(
    load_script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A decoder is equal, hidden states and operations too; an encoder is refused in one line; the page says so."""
    script = load_script("architectures")
    page = tmp_path / "page.md"

    script.main(tmp_path / "out", kinds=["llama", "bert"], seconds=120.0, jobs=1, write=page, as_json=True)

    found = {each["kind"]: each for each in json.loads(capsys.readouterr().out)}
    assert (found["llama"]["verdict"], found["llama"]["hidden"]) == ("equal", "equal")
    assert set(found["llama"]["differences"]) == {"alone", "one pass", "batch", "ends", "parts", "stopped"}
    counted = found["llama"]["products"]
    assert counted[0] == pytest.approx(counted[1], rel=0.05)
    assert (found["bert"]["verdict"], found["bert"]["why"]) == ("refused", "it returned no KV cache")
    assert "| `bert` | refused: it returned no KV cache |" in page.read_text()
    assert "Prompts have 2 to 97 tokens." in page.read_text()
    (tmp_path / "out" / "llama.json").write_text(json.dumps({**found["llama"], "verdict": "differs", "why": "x"}))
    with pytest.raises(typer.Exit):  # what is there is read, and what differs is the script's failure
        script.main(tmp_path / "out", kinds=["llama"], seconds=120.0, jobs=1, write=None, as_json=False)


def test_a_type_that_takes_too_long_is_ended(load_script: Callable[[str], ModuleType], tmp_path: Path):
    found = load_script("architectures").find("llama", tmp_path / "llama.json", 0.01)

    assert (found.verdict, found.why) == ("crashed", "no end after 0.01 s")


def test_a_type_whose_fields_stay_large_is_not_built(load_script: Callable[[str], ModuleType]):
    """It would take as long as a real model, and hide what is slow: dots3-note kept the sizes of some of its layers."""
    script = load_script("architectures_tiny")

    with pytest.raises(ValueError, match=r"its tiny configuration makes .* weights"):
        script.random_model(script.configuration("llama", 1387, intermediate_size=60_000))
    for kind in ("dots3_note", "dots3_note_text"):
        assert script.random_model(script.configuration(kind, 1387)).num_parameters() < 1_000_000
