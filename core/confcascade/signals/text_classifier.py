"""Logistic regression on texts: hashed words and pairs of words, and four figures of a text's shape.

Nothing is kept of the texts but weights: words are hashed, so there is no vocabulary to store. scikit-learn fits the
weights; reading a text with them takes numpy alone, and gives the same value whatever is installed.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SHAPES", "WORDS", "TextColumns", "cross_predictions", "predict", "train"]

# texts by column (the question, the answer), each column with its own weights
TextColumns = Sequence[Sequence[str]]
WORDS = 2**16  # hash buckets of a column
GOLDEN = 0x9E3779B1  # odd, 2**32 over the golden ratio: tells a pair from the same words the other way round
SHAPES = 4  # figures of `_shape`
SHAPE_SCALE = 0.3  # of a standardised figure beside words, whose vector has length 1; chosen in docs/design


def train(columns: TextColumns, labels: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """Weights of an L2-regularised logistic regression (C = 1).

    Args:
        columns: Texts, each column of length n.
        labels: Shape (n,), of both classes.

    Returns:
        ``words`` of shape (columns * `WORDS`,), ``shape`` of (columns * 4,), ``mean`` and ``scale`` of the figures, and
        ``bias`` of (1,).
    """
    import numpy as np
    from scipy.sparse import csr_matrix, hstack
    from sklearn.linear_model import LogisticRegression

    shapes = _shapes(columns)
    mean, scale = shapes.mean(0), (shapes.std(0) + 1e-6) / SHAPE_SCALE
    x = hstack([_matrix(columns), csr_matrix((shapes - mean) / scale)], format="csr")
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(x, labels)
    coefficients = fitted.coef_[0].astype(np.float32)
    words = len(columns) * WORDS
    return {
        "words": coefficients[:words],
        "shape": coefficients[words:],
        "mean": mean.astype(np.float32),
        "scale": scale.astype(np.float32),
        "bias": fitted.intercept_.astype(np.float32),
    }


def predict(weights: Mapping[str, NDArray[np.float32]], columns: TextColumns) -> NDArray[np.float64]:
    """Probabilities of shape (n,) of the class True."""
    import numpy as np

    words = [weights["words"][buckets] @ values for buckets, values in map(_words, zip(*columns, strict=True))]
    figures = (_shapes(columns) - weights["mean"]) / weights["scale"]
    z = np.array(words) + figures @ weights["shape"] + weights["bias"]
    probability: NDArray[np.float64] = np.exp(-np.logaddexp(0, -z))  # the logistic function; nothing here overflows
    return probability


def cross_predictions(
    columns: TextColumns, labels: NDArray[np.bool_], groups: Sequence[Any] | None, *, folds: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Each row's probability by a classifier that saw no row of its group, and the fold that it was held out in.

    Args:
        columns: Texts, each column of length n.
        labels: Shape (n,).
        groups: What must not be on both sides; by default every row is its own.
        folds: Their number, at least 2.
        seed: Of the split.

    Raises:
        ConfigurationError: If a fold would hold one class only.
    """
    import numpy as np

    probability, fold_of = np.empty(len(labels)), np.empty(len(labels), dtype=np.intp)
    for fold, (seen, held) in enumerate(_folds(labels, groups, folds, seed)):
        weights = train([[column[i] for i in seen] for column in columns], labels[seen])
        probability[held] = predict(weights, [[column[i] for i in held] for column in columns])
        fold_of[held] = fold
    return probability, fold_of


def _folds(labels: NDArray[np.bool_], groups: Sequence[Any] | None, folds: int, seed: int) -> Iterator[tuple[Any, Any]]:
    import warnings

    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    n = len(labels)
    names = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(names) != n:
        raise ConfigurationError(f"`groups` must name one group for each of the {n} rows. Got {len(names)}.")
    count = int(names.max()) + 1 if n else 0
    if folds < 2:
        raise ConfigurationError(f"`folds` must be at least 2. Got {folds}.")
    if count < max(30, folds):
        raise ConfigurationError(
            f"Learning takes at least {max(30, folds)} examples (of different groups). Got {count}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class with fewer rows than folds, which is an error here
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = list(splitter.split(labels, labels, names))
    for seen, held in parts:
        if len(np.unique(labels[held])) < 2 or len(np.unique(labels[seen])) < 2:
            raise ConfigurationError(
                f"Learning takes right and wrong answers in each of the {folds} folds: of {n} rows, "
                f"{int(labels.sum())} are labelled true, and one fold has none of a kind. Collect more, or take fewer "
                "folds."
            )
    yield from parts


# ---------------------------------------------------------------------- features


def _words(texts: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The words and pairs of words of a row's texts: buckets and values, each text's of length 1.

    Terms that share a bucket add up with signs of their own, so that on average they cancel out (Weinberger et al.
    2009, arXiv 0902.2206, as in scikit-learn's `HashingVectorizer`).
    """
    import numpy as np

    found: list[NDArray[np.intp]] = []
    values: list[NDArray[np.float64]] = []
    for column, text in enumerate(texts):
        words = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in re.findall(r"\w+", text.lower())]
        codes = np.array(words, dtype=np.uint64)
        pairs = (codes[:-1] * np.uint64(GOLDEN) + codes[1:]) % np.uint64(2**32)  # which does not overflow
        terms = np.concatenate([codes, pairs]).astype(np.int64)
        buckets, which = np.unique(terms % WORDS, return_inverse=True)
        counts = np.bincount(which, weights=np.where(terms >> 31, 1.0, -1.0), minlength=len(buckets))
        found.append(column * WORDS + buckets)
        values.append(counts / (np.linalg.norm(counts) or 1.0))
    return np.concatenate(found), np.concatenate(values)


def _matrix(columns: TextColumns) -> Any:
    """`_words` as a sparse matrix of shape (n, columns * WORDS)."""
    import numpy as np
    from scipy.sparse import csr_matrix

    rows = [_words(texts) for texts in zip(*columns, strict=True)]
    starts = np.cumsum([0, *(len(buckets) for buckets, _ in rows)])
    buckets, values = (np.concatenate(part) for part in zip(*rows, strict=True))
    return csr_matrix((values, buckets, starts), shape=(len(rows), len(columns) * WORDS))


def _shapes(columns: TextColumns) -> NDArray[np.float64]:
    """`_shape` of shape (n, columns * 4)."""
    import numpy as np

    return np.hstack([np.array([_shape(text) for text in column]).reshape(-1, SHAPES) for column in columns])


def _shape(text: str) -> tuple[float, ...]:
    """Logarithms of the number of words, of numbers and of a word's mean length; and the share of punctuation."""
    words = len(text.split())
    numbers, marks = len(re.findall(r"\d+", text)), len(re.findall(r"[^\w\s]", text))
    return math.log1p(words), math.log1p(numbers), math.log1p(len(text) / max(1, words)), marks / max(1, len(text))
