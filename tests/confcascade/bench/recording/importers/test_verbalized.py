"""Stated confidences, as published: made-up rows everywhere, MMLU-Pro, SciQ and BoolQ where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.bench.recording import NOT_KEPT, Columns
from confcascade.bench.recording.importers import read_stated, read_verbalized

DATA = Path(__file__).parents[5].parent / "shared" / "data"
MMLU_PRO = DATA / "verbalized_mmlu_pro" / "llama_even.csv.gz"
STATED = DATA / "stated_vs_token" / "sciq_boolq.csv.gz"
VERBALIZED_HEADER = (
    "question,category,answer,model,predicted,verbal_confidence,sequence_confidence,linguistic_confidence,tokens\n"
)
STATED_HEADER = "dataset,question,model,correct,stated_confidence,chosen_token_confidence,max_token_confidence\n"


def written(text: str, folder: Path) -> Path:
    path = folder / "confidences.csv"
    path.write_text(text)
    return path


def test_verbalized(tmp_path: Path):
    """Three scores, of which only the first is ever missing; no letter found is a wrong answer, not an empty one."""
    lines = "0,law,J,small,J,0.8,0.7,1,47\n2,law,A,small,,,0.6,0.4,123\n4,law,B,closed,C,1,,,9\n"
    told, missing, closed = read_verbalized(written(VERBALIZED_HEADER + lines, tmp_path))
    assert (told.question, told.model, told.group, told.reference) == ("0", "small", "law", "J")
    assert (told.answer, told.grade, missing.answer, missing.grade) == ("J", 1.0, NOT_KEPT, 0.0)
    values = {name: score.value for name, score in told.scores.items()}
    assert values == {"verbalized": 0.8, "mean_token_probability": 0.7, "wording": 1.0}
    assert missing.usable
    assert missing.scores["verbalized"].value is None
    assert missing.scores["verbalized"].details == {"unavailable": "the model wrote no number"}
    assert (missing.usage.input_tokens, missing.usage.output_tokens, missing.usage.estimated) == (0, 123, True)
    assert set(closed.scores) == {"verbalized"}


def test_a_cell_may_be_long(tmp_path: Path):
    """A question with a page of context in it, above what the module `csv` takes by itself."""
    question = "word " * 60_000
    (row,) = read_verbalized(written(VERBALIZED_HEADER + f"{question},law,J,small,J,0.8,0.7,1,47\n", tmp_path))
    assert row.question == question


def test_stated(tmp_path: Path):
    """P(T) only of the models that tell token probabilities; ids of two data sets do not meet."""
    lines = "sciq,0,open,1,0.8,0.9,0.95\nboolq,0,open,0,0.7,0.6,0.6\nsciq,0,closed,1,1,,\n"
    rows = list(read_stated(written(STATED_HEADER + lines, tmp_path)))
    assert [(row.question, row.model, row.group, row.grade) for row in rows] == [
        ("sciq/0", "open", "sciq", 1.0),
        ("boolq/0", "open", "boolq", 0.0),
        ("sciq/0", "closed", "sciq", 1.0),
    ]
    assert [{name: score.value for name, score in row.scores.items()} for row in rows] == [
        {"verbalized": 0.8, "p_t": 0.9},
        {"verbalized": 0.7, "p_t": 0.6},
        {"verbalized": 1.0},
    ]
    assert all(row.answer == NOT_KEPT and row.usable and row.usage.estimated for row in rows)
    assert Columns.of(rows).complete().questions == ("sciq/0",)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("0,law,J,small,J,80,0.7,1,47", "'80' does not lie in"),
        ("0,law,J,small,J,high,0.7,1,47", "could not convert"),
        ("0,law,J,small,J,0.8,0.7,1,", "Line 2"),
        ("0,law,,small,,0.8,0.7,1,47", "it has no `answer`"),
        ("0,law,J,small,J", "Line 2"),
    ],
)
def test_verbalized_of_another_kind(line: str, error: str, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=error):
        list(read_verbalized(written(f"{VERBALIZED_HEADER}{line}\n", tmp_path)))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("sciq,0,open,,0.8,,", "right .1. or wrong .0."),
        ("sciq,0,open,1,80,,", "'80' does not lie in"),
        ("sciq,0,open,1", "Line 2"),
    ],
)
def test_stated_of_another_kind(line: str, error: str, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=error):
        list(read_stated(written(f"{STATED_HEADER}{line}\n", tmp_path)))


@pytest.mark.skipif(not MMLU_PRO.exists(), reason="the recorded answers are not at hand")
def test_mmlu_pro():
    """24,064 rows: 6,016 questions in 14 categories to four Llamas, each right more often than the smaller."""
    columns = Columns.of(read_verbalized(MMLU_PRO))
    assert columns.recorded.shape == (6016, 4)
    assert columns.recorded.all()
    assert columns.usable.all()
    assert len(set(columns.groups)) == 14
    assert columns.grades.mean(axis=0) == pytest.approx([0.3250, 0.4230, 0.6032, 0.7229], abs=5e-5)
    at = columns.signal_names.index("verbalized")
    assert np.isnan(columns.scores[:, :, at]).sum() == 456
    assert columns.output_tokens.min() == 25


@pytest.mark.skipif(not STATED.exists(), reason="the recorded answers are not at hand")
def test_sciq_and_boolq():
    """45,878 rows of 11 models on 1,000 and 3,270 questions, two of them with token probabilities."""
    columns = Columns.of(read_stated(STATED))
    assert int(columns.recorded.sum()) == 45_878
    assert len(columns.models) == 11
    assert sorted(np.unique(columns.groups, return_counts=True)[1]) == [1000, 3270]
    told = {model for model, name in columns.signals if name == "p_t"}
    assert told == {"Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct"}
    llama = columns.index("Meta-Llama-3.1-70B-Instruct")
    asked = columns.recorded[:, llama]
    right = {group: float(columns.grades[asked & (columns.groups == group), llama].sum()) for group in columns.groups}
    assert right == {"sciq_test": 953, "boolq_valid": 2465}
