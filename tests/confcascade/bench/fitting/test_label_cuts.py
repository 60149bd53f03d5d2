"""Thresholds by label are one nested path, and keep more where a model is not equally right about all labels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from confcascade import Architecture, ConfigurationError, Usage
from confcascade.bench.fitting import Fitted, fit, material_of, replayable
from confcascade.bench.fitting.label_cuts import label_cuts
from confcascade.bench.recording import Columns, RecordedScore, Row
from confcascade.bench.replay import PolicyStage, replay
from confcascade.bench.replay.replay import outcomes
from confcascade.guarantee import Promise
from confcascade.policy import Policy
from scipy.stats import binom

N = 900


def recording(**options: Any) -> Columns:
    return Columns.of(made_rows(**options))


def made_rows(*, corrects: bool = False, bias: float = -1.2, seed: int = 0, n: int = N) -> list[Row]:
    """A small model that says "no" too readily: its "yes" is right from 0.5 on, its "no" only when it is very sure."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        lean = rng.normal(0, 2)
        p = float(1 / (1 + np.exp(-(lean + bias + 0.5 * rng.normal()))))
        truth = "yes" if rng.random() < 1 / (1 + np.exp(-1.5 * lean)) else "no"
        own, other = ("yes", "no") if p >= 0.5 else ("no", "yes")
        details: dict[str, Any] = {"label": own}
        if corrects:
            details |= {"probabilities": {"yes": p, "no": 1 - p}, "grades": {other: float(other == truth)}}
        score = RecordedScore(value=max(p, 1 - p), details=details)
        grade = float(own == truth)
        known = {"question": f"q{i}", "usage": Usage(20, 1)}
        rows.append(Row(**known, model="small", answer=own, grade=grade, scores={"p_t": score}))
        rows.append(Row(**known, model="large", answer=truth, grade=1.0))
    return rows


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


SIZES = {"small": Architecture(10**9, 0, 0), "large": Architecture(10**11, 0, 0)}


def fitted(material: Any, drop: float = 0.05, seed: int = 0) -> Any:
    return fit(material, Promise(drop), architectures=SIZES, rule="per-label", seed=seed)


def test_fit_certifies_a_threshold_for_each_label(tmp_path):
    """What was shown is what a replay of the saved policy does on the questions of the proof."""
    material = material_of(made_rows(n=2000), architectures=SIZES)
    result = fitted(material)
    assert isinstance(result, Fitted)
    result.policy.save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    (threshold,) = policy.stages[0].thresholds.values()
    assert set(threshold) == {"yes", "no"}
    assert threshold["yes"] < threshold["no"]
    columns, stages = replayable(material.take(result.parts.certify).columns, policy)
    played = replay(columns, stages)
    (certificate,) = policy.certificates
    assert certificate.n == len(columns) == pytest.approx(0.7 * 2000, abs=100)
    assert certificate.harms == (played.grade < 1).sum()
    plain = fit(material, Promise(0.05), architectures=SIZES)
    assert result.policy.saving.share > plain.policy.saving.share  # this model needs two


def test_without_labels_to_tell_apart_there_is_no_such_fit():
    bare = [
        row.model_copy(update={"scores": {"p_t": RecordedScore(value=row.scores["p_t"].value)}, "predicted": None})
        if row.model == "small"
        else row
        for row in made_rows(n=200)
    ]
    with pytest.raises(ConfigurationError, match="which of a few labels"):
        fitted(material_of([row.model_copy(update={"answer": f"{row.answer} {row.question}"}) for row in bare]))


@pytest.mark.parametrize("draws", [40, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("corrects", [False, True])
def test_the_promise_of_labels_is_kept(draws, corrects):
    """Samples of 700 from a known traffic; more than the tail of the binomial says (1e-3) is no chance."""
    traffic = material_of(made_rows(n=6000, corrects=corrects), architectures=SIZES)
    rng, sold, broken = np.random.default_rng(3), 0, 0
    for seed in range(draws):
        result = fitted(traffic.take(np.sort(rng.integers(6000, size=700))), seed=seed)
        if isinstance(result, Fitted):
            columns, stages = replayable(traffic.columns, result.policy)
            sold += 1
            broken += float(1 - replay(columns, stages).grade.mean()) > 0.05
    assert sold > 0.8 * draws
    assert broken <= binom.ppf(0.999, draws, 0.05)
