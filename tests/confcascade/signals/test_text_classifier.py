from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.signals.text_classifier import (
    SHAPE_SCALE,
    SHAPES,
    WORDS,
    _matrix,
    _shapes,
    _words,
    cross_predictions,
    predict,
    train,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

VOCABULARY = "who what bell smith tower harbour sings 7 1999 and of the".split()


def texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(VOCABULARY, size=rng.integers(3, 12))) for _ in range(n)]


# ---------------------------------------------------------------------- features


def test_words_and_pairs_are_those_of_scikit_learn():
    """But for the hash: similarities of texts are those of its `CountVectorizer`, to the last digits.

    No two of these few terms share a bucket, so nothing is lost.
    """
    said = ["Who sings, who SINGS?", "the bell of 1999", "the bell's tower", "Die Glöcke über'm Turm", "", "?!"]
    counted = CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit_transform(said).toarray()
    lengths = np.linalg.norm(counted, axis=1, keepdims=True)
    expected = counted / np.where(lengths, lengths, 1)

    ours = _matrix([said]).toarray()
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-12)


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_every_text_has_features(row: list[str]):
    """Whatever it holds: each text's words have length 1 (or there are none), in the buckets of its own column."""
    buckets, values = _words(row)
    for column, text in enumerate(row):
        own = values[buckets // WORDS == column]
        alone = _words([text])[1]
        assert own == pytest.approx(alone)
        assert np.linalg.norm(own) == pytest.approx(1 if alone.any() else 0)
    assert np.isfinite(_shapes([[text] for text in row])).all()


def test_the_hash_stays_the_same():
    """A saved signal's weights belong to buckets: another hash would make noise of them."""

    def hashed(*row: str) -> dict[int, float]:
        return {int(bucket): float(value) for bucket, value in zip(*_words(row), strict=True)}

    assert hashed("Bell") == {57479: -1.0}
    assert hashed("bell", "bell!") == {57479: -1.0, WORDS + 57479: -1.0}
    assert hashed("the bell") == pytest.approx(THE_BELL)
    assert hashed("bell the") != hashed("the bell")


THE_BELL = {28134: -(1 / math.sqrt(3)), 37517: 1 / math.sqrt(3), 57479: -(1 / math.sqrt(3))}


def test_the_shape_of_a_text():
    """Words, numbers, their mean length and the share of punctuation."""
    (shape,) = _shapes([["In 1999, 3 bells!"]])

    assert shape == pytest.approx([math.log(5), math.log(3), math.log(1 + 17 / 4), 2 / 17])


# ---------------------------------------------------------------------- the classifier


@pytest.fixture(scope="module")
def trained() -> tuple[list[list[str]], np.ndarray, Any]:
    columns = [texts(200, 0), texts(200, 1)]
    labels = np.array(["bell" in q or "7" in a for q, a in zip(*columns, strict=True)])
    return columns, labels, train(columns, labels)


def test_it_predicts_what_scikit_learn_does(trained: Any):
    """Of the same features; the weights are kept in single precision."""
    columns, labels, weights = trained
    shapes = _shapes(columns)
    figures = (shapes - shapes.mean(0)) / (shapes.std(0) + 1e-6) * SHAPE_SCALE
    x = hstack([_matrix(columns), csr_matrix(figures)], format="csr")
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(x, labels).predict_proba(x)[:, 1]

    assert expected.min() < 0.4 < 0.6 < expected.max()
    np.testing.assert_allclose(predict(weights, columns), expected, atol=1e-5)


def test_weights_are_of_the_documented_shapes(trained: Any):
    _, _, weights = trained
    shapes = {key: value.shape for key, value in weights.items()}

    assert shapes == {
        "words": (2 * WORDS,),
        "shape": (2 * SHAPES,),
        "mean": (2 * SHAPES,),
        "scale": (2 * SHAPES,),
        "bias": (1,),
    }
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_predictions_do_not_depend_on_their_neighbours(trained: Any, rows: list[tuple[str, str]]):
    """A text scores in a list as it does alone, always in [0, 1]; of none there is no score."""
    columns = [[row[i] for row in rows] for i in (0, 1)]
    together = predict(trained[2], columns)

    assert together.shape == (len(rows),)
    assert ((together >= 0) & (together <= 1)).all()
    for row, p in zip(rows, together, strict=True):
        assert predict(trained[2], [[row[0]], [row[1]]])[0] == pytest.approx(p, abs=1e-12)


# ---------------------------------------------------------------------- cross-validation


@settings(max_examples=25, deadline=None)
@given(groups=st.lists(st.integers(0, 80), min_size=60, max_size=90), folds=st.integers(2, 5), seed=st.integers(0, 9))
def test_folds_never_share_a_group(groups: list[int], folds: int, seed: int):
    """Every row is held out once, with all others of its group."""
    assume(len(set(groups)) >= 30)
    labels = np.random.default_rng(seed).random(len(groups)) < 0.5
    try:
        _, fold_of = cross_predictions([["a"] * len(groups)], labels, groups, folds=folds, seed=seed)
    except ConfigurationError:  # large groups may leave a fold without a kind
        assume(False)

    assert set(fold_of) == set(range(folds))
    for group in set(groups):
        assert len({fold for fold, name in zip(fold_of, groups, strict=True) if name == group}) == 1


def test_held_out_rows_were_not_seen():
    """Texts that each occur twice, right by coin toss, are known by heart only where the pair is torn apart."""
    rng = np.random.default_rng(3)
    once = [" ".join(map(str, rng.integers(0, 10**6, size=4))) for _ in range(150)]
    labels = np.repeat(rng.random(150) < 0.5, 2)
    repeated = [text for text in once for _ in range(2)]
    apart, _ = cross_predictions([repeated], labels, list(repeated), folds=5, seed=0)
    torn, _ = cross_predictions([repeated], labels, None, folds=5, seed=0)

    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(labels, torn) > 0.85
    assert roc_auc_score(labels, apart) < 0.65


HALF = np.arange(60) % 2 == 0


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (HALF[:29], {}, "at least 30 examples (of different groups). Got 29"),
        (HALF, {"groups": ["one"] * 60}, "at least 30 examples (of different groups). Got 1"),
        (HALF, {"groups": ["one"] * 59}, "one group for each of the 60 rows. Got 59"),
        (HALF, {"folds": 1}, "`folds` must be at least 2"),
        (HALF, {"folds": 61}, "at least 61 examples"),
        (np.arange(60) < 3, {}, "in each of the 5 folds: of 60 rows, 3 are labelled true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_split_is_refused(labels: np.ndarray, options: Any, said: str):
    """Each error says what there is and what it takes."""
    options = {"groups": None, "folds": 5, "seed": 0, **options}
    with pytest.raises(ConfigurationError) as raised:
        cross_predictions([["a"] * len(labels)], labels, options.pop("groups"), **options)

    assert said in str(raised.value)


def test_splitting_is_quiet(recwarn: Any):
    """No warning of scikit-learn's reaches the user."""
    run: Callable[..., Any] = cross_predictions
    run([texts(60, 0)], HALF, None, folds=5, seed=0)

    assert not recwarn.list
