"""The weights of a P(IK) probe: a logistic regression, or the cited network, on standardised hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NETWORK", "Weights", "fit_weights", "predict"]

Weights: TypeAlias = "dict[str, NDArray[np.float32]]"

NETWORK = (256, 128, 64)  # widths of the hidden layers: Mahaut et al. 2024, in their code
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: less is a stronger pull to 0
_BATCH = 64


def fit_weights(
    x: NDArray[np.float32],
    y: NDArray[np.bool_],
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    *,
    hidden_layers: Sequence[int] = NETWORK,
    balanced: bool = False,
    max_epochs: int = 300,
    patience: int = 20,
    seed: int = 0,
) -> tuple[Weights, int]:
    """Learn on the rows `train`; the rows `validation` say when to stop, or how strong the penalty is.

    Args:
        x: Hidden states, shape (n, hidden_size).
        y: Whether the answers were right, shape (n,).
        train: Rows to learn from, of both classes.
        validation: Rows to judge by, of both classes.
        hidden_layers: Widths of the network's hidden layers; none makes a logistic regression.
        balanced: Right and wrong answers weigh the same in training. The log-odds are then moved back by those of the
            training rows, so that what is predicted stays the probability of a right answer (Elkan 2001, "The
            Foundations of Cost-Sensitive Learning", theorem 2).
        max_epochs: Most passes of the network over the training rows.
        patience: Epochs without a lower validation loss after which the network's training ends.
        seed: Of the network's weights and the order of its rows.

    Returns:
        Float32 arrays ``mean``, ``scale``, ``weight.0``, ``bias.0``, ``weight.1``, ...; and the epochs (of a regression
        the solver's steps) that they took.
    """
    import numpy as np

    mean, scale = x[train].mean(0), x[train].std(0) + 1e-6
    z = (x - mean) / scale
    shift = float(np.log(y[train].sum() / (~y[train]).sum())) if balanced else 0.0
    if hidden_layers:
        layers, steps = _network(z, y, train, validation, hidden_layers, shift, max_epochs, patience, seed)
    else:
        layers, steps = _regression(z, y, train, validation, shift)
    weights: Weights = {"mean": mean, "scale": scale}
    for i, (weight, bias) in enumerate(layers):
        weights[f"weight.{i}"], weights[f"bias.{i}"] = weight.astype(np.float32), bias.astype(np.float32)
    weights[f"bias.{len(layers) - 1}"] += np.float32(shift)
    return weights, steps


def predict(weights: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of shape (n,) from states of shape (n, hidden_size), with ReLU between the layers."""
    import numpy as np

    depth = sum(key.startswith("weight.") for key in weights)
    x = (x - weights["mean"]) / weights["scale"]
    for i in range(depth):
        x = x @ weights[f"weight.{i}"] + weights[f"bias.{i}"]
        if i < depth - 1:
            x = np.maximum(x, 0)
    # the logistic function; nothing here overflows
    probability: NDArray[np.float64] = np.exp(-np.logaddexp(0, -x[:, 0].astype(np.float64)))
    return probability


def _network(
    z: NDArray[np.float32],
    y: NDArray[np.bool_],
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    hidden_layers: Sequence[int],
    shift: float,
    max_epochs: int,
    patience: int,
    seed: int,
) -> tuple[list[tuple[Any, Any]], int]:
    """(weights, biases) of each layer at the epoch of the least validation loss, and that epoch."""
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(tuple(hidden_layers), alpha=1e-3, learning_rate_init=1e-4, random_state=seed)
    rng = np.random.default_rng(seed)
    right, wrong = train[y[train]], train[~y[train]]
    fewer, more = sorted((right, wrong), key=len)
    best: tuple[float, int, list[tuple[Any, Any]]] | None = None
    for epoch in range(1, max_epochs + 1):
        # the rarer class is drawn again, with repeats, until there is as much of it
        rows = np.concatenate([more, fewer, rng.choice(fewer, len(more) - len(fewer))]) if shift else train
        order = rng.permutation(rows)
        for start in range(0, len(order), _BATCH):
            network.partial_fit(
                z[order[start : start + _BATCH]], y[order[start : start + _BATCH]], classes=[False, True]
            )
        loss = _loss(y[validation], network.predict_proba(z[validation])[:, 1], shift)
        if best is None or loss < best[0]:
            layers = zip(network.coefs_, network.intercepts_, strict=True)
            best = loss, epoch, [(weight.copy(), bias.copy()) for weight, bias in layers]
        elif epoch - best[1] >= patience:
            break
    assert best is not None  # max_epochs >= 1
    return best[2], best[1]


def _regression(
    z: NDArray[np.float32],
    y: NDArray[np.bool_],
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    shift: float,
) -> tuple[list[tuple[Any, Any]], int]:
    """The one layer of the penalty with the least validation loss, and the solver's steps to it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    best: tuple[float, Any] | None = None
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, class_weight="balanced" if shift else None, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the validation rows judge it as it is
            model.fit(z[train], y[train])
        loss = _loss(y[validation], model.predict_proba(z[validation])[:, 1], shift)
        if best is None or loss < best[0]:
            best = loss, model
    assert best is not None  # there are penalties
    return [(best[1].coef_.T, best[1].intercept_)], int(best[1].n_iter_[0])


def _loss(y: NDArray[np.bool_], p: NDArray[np.float64], shift: float) -> float:
    """Log loss of probabilities whose log-odds are moved by `shift`."""
    import numpy as np
    from sklearn.metrics import log_loss

    if shift:
        odds = np.clip(p, 1e-12, 1 - 1e-12)
        p = 1 / (1 + (1 - odds) / odds * np.exp(-shift))
    return float(log_loss(y, p, labels=[False, True]))
