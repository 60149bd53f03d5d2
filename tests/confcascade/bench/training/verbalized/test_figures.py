"""What stated confidences are worth, by hand."""

import numpy as np
import pytest
from confcascade.bench.metrics.ranking import auroc, brier, calibration_error
from confcascade.bench.recording import RecordedScore, Row
from confcascade.bench.training.verbalized.figures import figures_of


def row(i, grade, stated, **more):
    score = RecordedScore(value=stated)
    return Row(question=str(i), model="m", answer="a", grade=grade, scores={"stated": score}, **more)


def test_an_answer_without_a_statement_stands_below_all_others():
    rows = [row(0, 1.0, 0.9), row(1, 0.0, 0.2), row(2, 0.0, None), row(3, 1.0, 0.1)]
    found = figures_of(rows, "stated")
    assert (found.n, found.scored, found.accuracy) == (4, 3, 0.5)
    # of the four pairs of a right and a wrong answer, only (0.1, 0.2) is the wrong way round
    assert found.auroc == 0.75
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.81) / 3)
    assert found.mean == pytest.approx(0.4)
    # accuracy, the share with a statement, less the error: of a missing statement it is 1
    assert found.earned == pytest.approx(0.5 + 0.75 - (0.75 * 0.86 / 3 + 0.25))


def test_figures_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    stated = rng.random(300).round(2)
    right = rng.random(300) < stated**2
    found = figures_of([row(i, float(right[i]), float(stated[i])) for i in range(300)], "stated")
    assert found.auroc == auroc(right, stated)
    assert found.brier == brier(right, stated)
    assert found.ece == calibration_error(right, stated)
    assert found.low < found.auroc < found.high
    assert found.health.can_route


def test_failed_and_ungraded_answers_do_not_count():
    rows = [row(0, 1.0, 0.9), row(1, None, 0.9), row(2, 1.0, 0.9, error="down")]
    assert figures_of(rows, "stated").n == 1
    assert figures_of(rows[1:], "stated") is None


def test_no_statement_at_all():
    found = figures_of([row(0, 1.0, None), row(1, 0.0, None)], "stated")
    assert (found.scored, found.mean, found.ece, found.brier, found.auroc) == (0, None, None, None, 0.5)
    assert found.earned == -0.5
    assert not found.health.can_route
