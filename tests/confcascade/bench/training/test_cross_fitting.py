"""Every question is scored by a probe that did not see it."""

from __future__ import annotations

import numpy as np
import pytest
from confcascade.bench.metrics.ranking import auroc
from confcascade.bench.training import cross_fitting
from confcascade.bench.training.cross_fitting import folds_of, out_of_fold
from confcascade.errors import ConfigurationError
from confcascade.signals.probe_fitting import fit_weights, predict

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(400, 12)).astype(np.float32)
RIGHT = HIDDEN[:, 0] + RNG.normal(size=400) > 0
FOLDS = folds_of([f"question {i}" for i in range(400)], 5)


def test_folds_hang_on_the_text_only():
    """Not on the order of the file, nor on case; nearly as many in each."""
    texts = [f"question {i}" for i in range(400)]
    assert folds_of([text.upper() for text in reversed(texts)], 5).tolist() == FOLDS[::-1].tolist()
    assert min(np.bincount(FOLDS, minlength=5)) > 50
    with pytest.raises(ConfigurationError, match="at least 3 folds"):
        folds_of(texts, 2)


def test_labels_of_a_fold_do_not_matter_to_its_scores():
    """Turn those of one fold round: only the scores of others change."""
    before = out_of_fold(HIDDEN, RIGHT, FOLDS)
    after = out_of_fold(HIDDEN, RIGHT ^ (FOLDS == 2), FOLDS)
    assert (before[FOLDS == 2] == after[FOLDS == 2]).all()
    assert (before[FOLDS != 2] != after[FOLDS != 2]).all()


def test_scores_are_those_of_a_probe_without_the_fold():
    """As `fit_weights` makes it, stopped by the next fold."""
    train, validation = np.flatnonzero((FOLDS != 4) & (FOLDS != 0)), np.flatnonzero(FOLDS == 0)
    weights, _ = fit_weights(HIDDEN, RIGHT, train, validation, hidden_layers=())
    scores = out_of_fold(HIDDEN, RIGHT, FOLDS)
    assert scores[FOLDS == 4] == pytest.approx(predict(weights, HIDDEN[FOLDS == 4]))


def test_what_there_is_to_learn_is_learned_and_noise_is_not():
    """Within three standard errors of an AUROC of nothing (.03 of 400)."""
    assert auroc(RIGHT, out_of_fold(HIDDEN, RIGHT, FOLDS)) == pytest.approx(0.75, abs=0.09)
    noise = RNG.random(400) < 0.5
    assert auroc(noise, out_of_fold(HIDDEN, noise, FOLDS)) == pytest.approx(0.5, abs=0.09)


def test_a_fold_of_right_answers_only_is_refused():
    with pytest.raises(ConfigurationError, match="right and wrong answers in every fold"):
        out_of_fold(HIDDEN, RIGHT | (FOLDS == 1), FOLDS)


def test_progress_and_kind(monkeypatch):
    asked = []
    monkeypatch.setattr(
        cross_fitting, "fit_weights", lambda *given, **options: asked.append(options) or fit_weights(*given, **options)
    )
    told: list[tuple[int, int]] = []
    out_of_fold(HIDDEN, RIGHT, FOLDS, kind="mlp", balanced=True, seed=3, progress=lambda *each: told.append(each))
    assert told == [(i, 5) for i in range(1, 6)]
    assert {(each["hidden_layers"], each["balanced"], each["seed"]) for each in asked} == {((256, 128, 64), True, 3)}
