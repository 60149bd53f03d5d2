"""P(IK) of the answers that `real_models` collected: every question scored by a probe that did not see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confcascade import TransformersModel
from confcascade.bench.questions import side
from confcascade.bench.recording import Row, read_rows
from confcascade.bench.recording.row import RecordedScore
from confcascade.bench.training import StateCache
from confcascade.bench.training.cross_fitting import folds_of, out_of_fold
from confcascade.bench.training.probes import KINDS
from confcascade.bench.training.states import key_of
from confcascade.graders.example import Example
from confcascade.graders.grade import is_right
from confcascade.signals.probe_fitting import fit_weights, predict
from confcascade.types import Request
from numpy.typing import NDArray
from real_models_sets import QuestionSet

FOLDS = 10
GATE = 0.75  # of the depth: where the cascade reads P(IK); fixed beforehand
NETWORK_DEPTHS = (0.75,)
_SHARES = {"training": 0.9, "validation": 0.1}
Told = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What a model's probes learn from, of one set.

    Attributes:
        asked: The set.
        questions: Those that were answered, read and graded.
        keys: Of their prompts.
        rows: The model's answers, by question.
        others: Other models' answers, by model and question.
        states: Of the prompts.
    """

    asked: QuestionSet
    questions: tuple[Example, ...]
    keys: tuple[str, ...]
    rows: Mapping[str, Row]
    others: Mapping[str, Mapping[str, Row]]
    states: StateCache

    @classmethod
    def read(
        cls,
        out: Path,
        asked: QuestionSet,
        model: TransformersModel,
        others: Sequence[str],
        data: Path,
        layers: Sequence[int],
    ) -> Material:
        """From the folder of `collect`; only questions that every model has answered."""
        states = StateCache(out / asked.name / f"{model.name}.states", model, layers)
        by_model = {
            name: {row.question: row for row in read_rows(path) if row.grade is not None}
            for name in (model.name, *others)
            if (path := out / asked.name / f"{name}.jsonl").exists()
        }
        kept = [
            (example, key)
            for example in asked.examples(data, None)
            if all(example.id in rows for rows in by_model.values())
            and (key := key_of(Request(asked.prompt.messages(example)))) in states
        ]
        return cls(
            asked,
            tuple(example for example, _ in kept),
            tuple(key for _, key in kept),
            by_model.pop(model.name),
            by_model,
            states,
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the model's answers are, shape (n,)."""
        return self.right_of(self.rows)

    def right_of(self, rows: Mapping[str, Row]) -> NDArray[np.bool_]:
        """Whether a model's answers are, shape (n,)."""
        return np.array([is_right(rows[each.id].grade or 0.0) for each in self.questions], bool)

    @property
    def texts(self) -> list[str]:
        """Of the questions."""
        return [each.question for each in self.questions]


def scored(material: Material, elsewhere: Sequence[Material], layers: int, told: Told) -> list[Row]:
    """The model's rows with scores of P(IK), cross-fitted, and of probes of other sets.

    - ``p_ik@DEPTH``: a logistic regression at each depth; ``p_ik_mlp@DEPTH``: the network;
    - ``p_ik_from_SET``: a probe of another set, at the depth `GATE`;
    - ``needed_MODEL``: that MODEL is right and this one is not; ``right_MODEL``: that MODEL is right; both from this
      model's states.
    """
    found: dict[str, tuple[NDArray[np.float64], int]] = {}
    folds = folds_of(material.texts, FOLDS)
    gate = gate_of(material.states.layers, layers)

    def keep(name: str, layer: int, values: Callable[[], NDArray[np.float64]], labels: NDArray[np.bool_]) -> None:
        told(f"{material.asked.name}: {name}")
        fewest = min(_fewest(labels[folds == fold]) for fold in range(FOLDS))
        if fewest:  # else there is a fold of which nothing can be learned
            found[name] = values(), layer

    right = material.right
    for layer in material.states.layers:
        x = material.states.read(material.keys, layer)
        keep(f"p_ik@{layer / layers:.2f}", layer, lambda x=x: out_of_fold(x, right, folds), right)
        if layer in {round(depth * layers) for depth in NETWORK_DEPTHS}:
            keep(f"p_ik_mlp@{layer / layers:.2f}", layer, lambda x=x: out_of_fold(x, right, folds, kind="mlp"), right)
    x = material.states.read(material.keys, gate)
    for name, rows in material.others.items():
        theirs = material.right_of(rows)
        for what, labels in ((f"needed_{name}", theirs & ~right), (f"right_{name}", theirs)):
            keep(what, gate, lambda labels=labels: out_of_fold(x, labels, folds), labels)
    for other in elsewhere:
        if _fewest(other.right) >= FOLDS:
            keep(f"p_ik_from_{other.asked.name}", gate, lambda other=other: transferred(other, gate, x), right)
    return [_with(material.rows[each.id], i, found, layers) for i, each in enumerate(material.questions)]


def gate_of(read: Sequence[int], layers: int) -> int:
    """The block that is read at the depth `GATE`."""
    return min(read, key=lambda layer: abs(layer / layers - GATE))


def transferred(source: Material, layer: int, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """P(IK) of states by a probe of another set, all of whose questions it learned from."""
    sides = np.array([side(Example(text), _SHARES) for text in source.texts])
    train, validation = (np.flatnonzero(sides == part) for part in _SHARES)
    weights, _ = fit_weights(
        source.states.read(source.keys, layer), source.right, train, validation, hidden_layers=KINDS["linear"]
    )
    return predict(weights, x)


def _fewest(labels: NDArray[np.bool_]) -> int:
    """How many there are of the rarer label."""
    return int(min(labels.sum(), (~labels).sum()))


def _with(row: Row, i: int, found: Mapping[str, tuple[NDArray[np.float64], int]], layers: int) -> Row:
    scores = {
        name: RecordedScore(value=float(values[i]), phase="pre", prefill=True, depth=layer / layers)
        for name, (values, layer) in found.items()
    }
    return row.model_copy(update={"scores": {**row.scores, **scores}})
