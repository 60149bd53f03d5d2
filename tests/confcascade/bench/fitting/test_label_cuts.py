"""Thresholds by label are one nested path, and keep more where a model is not equally right about all labels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.bench.fitting.label_cuts import label_cuts
from confcascade.bench.recording import Columns, RecordedScore, Row
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.replay import outcomes

N = 900


def recording(*, corrects: bool = False, bias: float = -1.2, seed: int = 0) -> Columns:
    """A small model that says "no" too readily: its "yes" is right from 0.5 on, its "no" only when it is very sure."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(N):
        lean = rng.normal(0, 2)
        p = float(1 / (1 + np.exp(-(lean + bias + 0.5 * rng.normal()))))
        truth = "yes" if rng.random() < 1 / (1 + np.exp(-1.5 * lean)) else "no"
        own, other = ("yes", "no") if p >= 0.5 else ("no", "yes")
        details: dict[str, Any] = {"label": own}
        if corrects:
            details |= {"probabilities": {"yes": p, "no": 1 - p}, "grades": {other: float(other == truth)}}
        score = RecordedScore(value=max(p, 1 - p), details=details)
        grade = float(own == truth)
        rows.append(Row(question=f"q{i}", model="small", answer=own, grade=grade, scores={"p_t": score}))
        rows.append(Row(question=f"q{i}", model="large", answer=truth, grade=1.0))
    return Columns.of(rows)


def kept(columns: Columns, paths: list[Any]) -> tuple[Any, Any]:
    """Which answers each policy keeps, and whether these are wrong, shape (policies, questions)."""
    policies = [[PolicyStage("small", {"p_t": each}), PolicyStage("large")] for each in paths]
    played = outcomes(columns, policies)
    return played.stage == 0, (played.stage == 0) & (played.grade < 0.5)


@pytest.mark.parametrize("corrects", [False, True])
def test_whatever_one_keeps_the_next_keeps_too(corrects: bool):
    columns = recording(corrects=corrects)
    path = label_cuts(columns, "small", "p_t", columns.grades[:, 0] > 0.5, np.arange(300))
    assert len(path) > 20
    keeps, _ = kept(columns, list(path))
    assert (keeps[:-1] <= keeps[1:]).all()
    assert keeps[-1].mean() > 0.9
    assert keeps[0].mean() < 0.1
    for before, after in pairwise(path):
        levels = [tuple(2.0 if cut == "never" else cut for cut in each.values()) for each in (before, after)]
        assert all(low >= high for low, high in zip(*levels, strict=True))


def test_more_is_kept_at_the_same_errors():
    """Learnt from 300 questions, on the others: at most 5 % wrong, and a fifth more kept than by one threshold."""
    columns, rest = recording(), np.arange(300, N)
    path = label_cuts(columns, "small", "p_t", columns.grades[:, 0] > 0.5, np.arange(300))
    one = [float(each) for each in np.linspace(0.99, 0.5, 50)]
    most = []
    for paths in (list(path), one):
        keeps, wrong = kept(columns.take(rest), paths)
        most.append(keeps.mean(axis=1)[wrong.mean(axis=1) <= 0.05].max())
    assert most[0] > 1.2 * most[1]


def test_a_corrected_answer_has_the_grade_of_its_new_label():
    """Question by question: kept under "yes" from 0.3 on, whatever the model said."""
    columns = recording(corrects=True)
    labels = columns.signal("small", "p_t").labels
    assert labels is not None
    assert labels.probabilities is not None
    played = outcomes(columns, [[PolicyStage("small", {"p_t": {"yes": 0.3, "no": 0.9}}), PolicyStage("large")]])
    yes = labels.probabilities[:, labels.names.index("yes")]
    own = columns.grades[:, 0]
    keeps = (yes >= 0.3) | (yes <= 0.1)
    np.testing.assert_array_equal(played.stage[0] == 0, keeps)
    turned = (yes >= 0.3) & (yes < 0.5)
    expected = np.where(turned, 1 - own, own)
    np.testing.assert_array_equal(played.grade[0][keeps], expected[keeps])
    assert turned.any()


def test_what_cannot_be_learnt_gives_nothing_or_says_why():
    columns = recording(corrects=True)
    right = columns.grades[:, 0] > 0.5
    assert label_cuts(columns, "small", "p_t", right, np.arange(20)) == ()
    with pytest.raises(ConfigurationError, match="Fit with labels, or record the signal without `corrects`"):
        label_cuts(columns, "small", "p_t", right, np.arange(300), agreement=True)
    rows = [
        Row(question=f"q{i}", model="small", answer="x", grade=1.0, scores={"p_t": RecordedScore(value=0.5)})
        for i in range(50)
    ]
    bare = Columns.of(rows)
    assert label_cuts(bare, "small", "p_t", np.ones(50, dtype=bool), np.arange(50)) == ()


def test_a_recording_that_tells_no_labels_cannot_be_replayed_by_them():
    rows = [
        Row(question="q", model="small", answer="x", grade=1.0, scores={"p_t": RecordedScore(value=0.5)}),
        Row(question="q", model="large", answer="x", grade=1.0),
    ]
    with pytest.raises(ConfigurationError, match="does not tell which label 1 of 1 answers give"):
        outcomes(Columns.of(rows), [[PolicyStage("small", {"p_t": {"a": 0.4, "b": 0.2}}), PolicyStage("large")]])


def test_the_graders_reading_stands_in_for_a_label():
    """Recordings from elsewhere tell no labels with their scores, but their grader read the answers."""
    rows = [
        Row(question=q, model="small", answer=a, predicted=a, grade=1.0, scores={"p_t": RecordedScore(value=0.5)})
        for q, a in (("1", "a"), ("2", "b"), ("3", "c"))
    ]
    rows += [Row(question=q, model="large", answer="x", grade=1.0) for q in "123"]
    played = outcomes(Columns.of(rows), [[PolicyStage("small", {"p_t": {"a": 0.4, "b": 0.6}}), PolicyStage("large")]])
    assert played.stage[0].tolist() == [0, 1, 1]  # a label without a threshold is not kept
