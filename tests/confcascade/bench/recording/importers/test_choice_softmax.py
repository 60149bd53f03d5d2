"""P(T) of a chosen letter, as published: made-up rows everywhere, ARC-Challenge where it is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from confcascade import Cascade, ConfigurationError, Stage
from confcascade.bench.recording import NOT_KEPT, Columns, PlaybackModel
from confcascade.bench.recording.importers import read_choice_softmax
from confcascade.bench.replay import PolicyStage, replay

DATA = Path(__file__).parents[5].parent / "shared" / "data" / "softmax_confidence" / "arc.csv.gz"
HEADER = "question,prompt,model,correct,confidence\n"
LINES = f"""{HEADER}0,1,small,1,0.9
0,1,large,1,0.99
0,2,small,0,0.4
1,1,small,0,0.5
1,1,large,1,0.8
2,1,small,,0
2,1,large,0,0.7
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "softmax.csv"
    path.write_text(LINES)
    return path


def test_rows_of_a_prompt(path: Path):
    """Scores and grades of the chosen phrasing; a reply without a letter is wrong and has no score."""
    rows = list(read_choice_softmax(path))
    assert [(row.question, row.model, row.grade, row.scores["p_t"].value) for row in rows] == [
        ("0", "small", 1.0, 0.9),
        ("0", "large", 1.0, 0.99),
        ("1", "small", 0.0, 0.5),
        ("1", "large", 1.0, 0.8),
        ("2", "small", 0.0, None),
        ("2", "large", 0.0, 0.7),
    ]
    assert rows[4].scores["p_t"].details == {"unavailable": "no answer letter was found"}
    assert all(row.answer == NOT_KEPT and row.usable and row.prompt_version == "1" for row in rows)
    assert all(row.usage.total_tokens == 1 and row.usage.estimated and row.latency_s is None for row in rows)
    (other,) = read_choice_softmax(path, prompt=2)
    assert (other.prompt_version, other.scores["p_t"].value) == ("2", 0.4)


def test_live_is_replay(path: Path):
    """A reply without a score goes on to the next model, in replay as in life."""
    rows = list(read_choice_softmax(path))
    policy = [PolicyStage("small", {"p_t": 0.6}), PolicyStage("large")]
    played = replay(Columns.of(rows), policy)
    small, large = PlaybackModel("small", rows), PlaybackModel("large", rows)
    live = Cascade([Stage(small, [small.signal("p_t")], {"p_t": 0.6}), Stage(large)]).run_batch(["0", "1", "2"])
    assert played.stage.tolist() == [0, 1, 1] == [len(outcome.record.attempts) - 1 for outcome in live]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("0,1,small,2,0.9", "right .1. or wrong .0., not '2'"),
        ("0,1,small,1,90", "'90' does not lie in"),
        ("0,1,small,1,", "could not convert"),
        ("0,1,,1,0.9", "model: "),
        ("0,1,small", "Line 2"),
    ],
)
def test_another_kind_of_value(line: str, error: str, tmp_path: Path):
    path = tmp_path / "other.csv"
    path.write_text(f"{HEADER}{line}\n")
    with pytest.raises(ConfigurationError, match=error):
        list(read_choice_softmax(path))


def test_a_prompt_that_is_not_there(path: Path):
    with pytest.raises(ConfigurationError, match="no row of prompt 3"):
        list(read_choice_softmax(path, prompt=3))


@pytest.mark.skipif(not DATA.exists(), reason="the recorded answers are not at hand")
def test_arc():
    """14 models, 2,590 questions, two phrasings: 72,520 rows, of which 68 have no answer that could be parsed."""
    read = {prompt: Columns.of(read_choice_softmax(DATA, prompt)) for prompt in (1, 2)}
    assert all(columns.recorded.all() and columns.recorded.shape == (2590, 14) for columns in read.values())
    missing = {prompt: int(np.isnan(columns.scores).sum()) for prompt, columns in read.items()}
    assert missing == {1: 50, 2: 18}
    right = dict(zip(read[1].models, np.nansum(read[1].grades, axis=0), strict=True))
    assert (right["Llama3-8b"], right["Llama3-70b"], right["gpt-4-turbo"]) == (1949, 2396, 2482)
