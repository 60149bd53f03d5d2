"""The study of aggregates measures what it says: an aggregate by its own formula, its AUROC by scikit-learn's."""

import math
import random

import pytest
from confcascade.bench.recording import Row
from confcascade.types import Token, Usage
from sklearn.metrics import roc_auc_score

ALTERNATIVES = (("a", math.log(0.6)), ("b", math.log(0.3)))


def row(i: int, right: bool, *probabilities: float, finish: str = "stop") -> Row:
    tokens = tuple(Token(" w", math.log(p), ALTERNATIVES) for p in probabilities)
    return Row(
        question=f"q{i}",
        model="m",
        group="gsm8k",
        answer=" w" * len(tokens),
        grade=float(right),
        tokens=tokens,
        finish_reason=finish,
        usage=Usage(5, len(tokens)),
    )


def test_aggregates_are_what_they_are_called(load_script):
    script = load_script("aggregates")
    told = script.Told(row(0, True, 0.9, 0.5, 0.8))
    found = {name: float(aggregate(told)) for name, aggregate in script.AGGREGATES.items()}

    assert math.exp(found["mean (default)"]) == pytest.approx((0.9 * 0.5 * 0.8) ** (1 / 3))
    assert math.exp(found["min"]) == pytest.approx(0.5)
    assert math.exp(found["product"]) == pytest.approx(0.36)
    assert math.exp(found["first"]) == pytest.approx(0.9)
    assert found["length (shorter is better)"] == -3
    assert found["mean, those cut off last"] == found["mean (default)"]
    assert script.AGGREGATES["mean, those cut off last"](script.Told(row(0, True, 0.9, finish="length"))) < -1e6


def test_its_aurocs_are_those_of_scikit_learn(load_script):
    """Ties, too; draws of the questions are the same for every aggregate."""
    script = load_script("aggregates")
    rng = random.Random(0)
    rows = [row(i, rng.random() < 0.5, *(rng.choice([0.2, 0.5, 0.9]) for _ in range(3))) for i in range(60)]
    of = script.answers("gsm8k", "m", rows)
    areas = script.areas(of, draws=20)

    for name, scores in of.scores.items():
        assert areas[name][0] == pytest.approx(roc_auc_score(of.right, scores)), name
    assert {len(area) for area in areas.values()} == {21}
