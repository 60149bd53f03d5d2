"""What signals that are learnt from texts share: a card, their files, and checks of what they are fitted on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError
from confcascade.signals import Signal
from confcascade.signals.text_classifier import SHAPES, WORDS, TextColumns, cross_predictions, train

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LearnedCard", "LearnedSignal", "checked_labels", "checked_texts"]

FORMAT = 1
S = TypeVar("S", bound="LearnedSignal")


@dataclass(frozen=True)
class LearnedCard:
    """What a learnt signal was trained for, and how well it does on questions that it has not seen.

    Attributes:
        signal: "TextRouter" or "LearnedScorer".
        target: What it predicts: that the model's answer is "right", or "no worse" than the larger model's.
        model: Name of the model whose answers were labelled, if given; the signal is refused on any other.
        examples: Their number.
        base_rate: Share of them that are labelled true.
        aurocs: Of each fold of a cross-validation, by a classifier that saw no row of the fold's groups.
        brier: Of all rows, each by the classifier that did not see it.
        seed: Of the folds.
    """

    signal: str
    target: Literal["right", "no worse"]
    model: str | None
    examples: int
    base_rate: float
    aurocs: tuple[float, ...]
    brier: float
    seed: int

    @property
    def auroc(self) -> float:
        """The mean over the folds."""
        return sum(self.aurocs) / len(self.aurocs)


class LearnedSignal(Signal):
    """What `TextRouter` and `LearnedScorer` share. Made by `fit` or `load`, never by hand."""

    columns: ClassVar[int]  # of texts that it reads

    def __init__(self, card: LearnedCard, weights: Mapping[str, NDArray[np.float32]], name: str) -> None:
        self.card = card
        self.name = name
        self._weights = dict(weights)
        shape, words = (self.columns * SHAPES,), (self.columns * WORDS,)
        wanted = {"words": words, "shape": shape, "mean": shape, "scale": shape, "bias": (1,)}
        if {key: value.shape for key, value in self._weights.items()} != wanted:
            raise ConfigurationError(f"These weights are not those of a {type(self).__name__}.")

    def __repr__(self) -> str:
        card = self.card
        return f"{type(self).__name__}(model={card.model!r}, target={card.target!r}, held-out AUROC={card.auroc:.3f})"

    def identity(self) -> Mapping[str, Any]:
        digest = hashlib.sha256()
        for key in sorted(self._weights):
            digest.update(self._weights[key].tobytes())
        return {"signal": type(self).__name__, "weights": digest.hexdigest()}

    def check(self, model: LanguageModel) -> None:
        if self.card.model is not None and model.name != self.card.model:
            raise ConfigurationError(
                f"This {type(self).__name__} was trained on answers of model '{self.card.model}'; the stage's model is "
                f"'{model.name}'. Train one for it with {type(self).__name__}.fit."
            )

    # ------------------------------------------------------------------ on disk

    def save(self, folder: str | Path) -> None:
        """Write ``learned.json`` and ``learned.safetensors`` into `folder`; nothing that executes, and no text."""
        from safetensors.numpy import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_file(self._weights, path / "learned.safetensors")
        (path / "learned.json").write_text(json.dumps({"format": FORMAT, **asdict(self.card)}, indent=1) + "\n")

    @classmethod
    def load(cls: type[S], folder: str | Path) -> S:
        """Read a saved signal of this class.

        Raises:
            ConfigurationError: If the folder holds none, a damaged one, one of another class or of an unknown format.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(folder)
        try:
            card = json.loads((path / "learned.json").read_text())
            version, signal = card.pop("format", None), card.get("signal")
            weights = load_file(path / "learned.safetensors")
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"'{path}' holds no {cls.__name__}: {error.filename or error} is missing. {cls.__name__}.save writes "
                "one."
            ) from error
        except (ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise _damaged(path, error) from error
        if version != FORMAT:
            raise ConfigurationError(f"'{path}' holds a signal of another format; this version reads format {FORMAT}.")
        if signal != cls.__name__:
            raise ConfigurationError(f"'{path}' holds a {signal}, not a {cls.__name__}.")
        try:
            return cls(LearnedCard(**{**card, "aurocs": tuple(card["aurocs"])}), weights)  # type: ignore[call-arg]
        except (KeyError, TypeError) as error:
            raise _damaged(path, error) from error

    # ------------------------------------------------------------------ learning

    @classmethod
    def _fit(
        cls: type[S],
        columns: TextColumns,
        labels: NDArray[np.bool_],
        target: Literal["right", "no worse"],
        model: str | None,
        groups: Sequence[Any] | None,
        folds: int,
        seed: int,
    ) -> S:
        import numpy as np
        from sklearn.metrics import brier_score_loss, roc_auc_score

        held_out, fold_of = cross_predictions(columns, labels, groups, folds=folds, seed=seed)
        parts = [fold_of == fold for fold in range(folds)]
        card = LearnedCard(
            signal=cls.__name__,
            target=target,
            model=model,
            examples=len(labels),
            base_rate=float(np.mean(labels)),
            aurocs=tuple(float(roc_auc_score(labels[part], held_out[part])) for part in parts),
            brier=float(brier_score_loss(labels, held_out)),
            seed=seed,
        )
        return cls(card, train(columns, labels))  # type: ignore[call-arg]  # each has a name of its own


def checked_texts(*columns: Sequence[str]) -> TextColumns:
    """The columns, if they are lists of texts, all of one length.

    Raises:
        ConfigurationError: If they are not.
    """
    for column in columns:
        if isinstance(column, str) or not all(isinstance(text, str) for text in column):
            raise ConfigurationError("Questions and answers are given as lists of texts.")
    if len({len(column) for column in columns}) > 1:
        raise ConfigurationError(
            f"There must be one answer to each question. Got {', '.join(map(str, map(len, columns)))}."
        )
    return columns


def checked_labels(columns: TextColumns, labels: ArrayLike, larger: ArrayLike | None) -> NDArray[np.bool_]:
    """What is to be learnt: `labels`, or with `larger` whether they are no less; of both classes.

    Raises:
        ConfigurationError: If they are not one to each text, of one class only, or no labels.
    """
    import numpy as np

    given = np.asarray(labels)
    for name, values in (("labels", given), ("larger", given if larger is None else np.asarray(larger))):
        if values.shape != (len(columns[0]),):
            raise ConfigurationError(
                f"`{name}` must have shape ({len(columns[0])},), as many as texts. Got {values.shape}."
            )
        if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
            raise ConfigurationError(f"`{name}` must be true or false, or grades from 0 to 1. Got {values.dtype}.")
    if larger is None:
        if not np.isin(given, (0, 1)).all():
            raise ConfigurationError("`labels` must hold only True and False; grades between them need `larger`.")
        y = given.astype(bool)
    else:
        both = np.stack([given, np.asarray(larger)]).astype(float)
        if not ((both >= 0) & (both <= 1)).all():
            raise ConfigurationError("Grades in `labels` and `larger` must lie in [0, 1].")
        y = both[0] >= both[1]
    if len(y) and y.all() == y.any():
        raise ConfigurationError(
            f"There is nothing to learn: all {len(y)} labels are {bool(y[0])}. Collect harder or easier questions too."
        )
    return y


def _damaged(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The signal in '{path}' is damaged ({type(error).__name__}: {error}). Save it again, or train a new one."
    )
