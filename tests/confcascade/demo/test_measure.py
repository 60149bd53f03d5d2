"""Measuring: a recording of the bundled models replays as the live cascade, and the cheapest within tolerance wins."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from confcascade import Architecture, Cascade, Usage
from confcascade.bench.recording import RecordedScore, Row
from confcascade.bench.replay import PolicyStage, replay
from confcascade.demo import bundled_probe, bundled_stages
from confcascade.demo.measure import Measured, ask_all, candidates, choose, recording
from confcascade.demo.world import World
from confcascade.extending import Token


def test_replay_is_the_live_cascade():
    """Played over what the models said alone, the demo's cascade is right where it is live, and costs the same."""
    questions = World().questions("calibration", per_task=20)
    stages = bundled_stages()
    outcomes = Cascade(stages).run_batch([q.prompt for q in questions])
    measured = {stage.model.name: ask_all(stage.model, questions) for stage in stages}
    p_ik = {size: bundled_probe(size).predict(answers.hidden) for size, answers in measured.items()}
    columns = recording(measured, p_ik)
    near = np.zeros(len(questions), bool)  # padding changes the last digits: near ties are left out
    for stage in stages[:-1]:
        for name, threshold in stage.thresholds.items():
            near |= abs(columns.signal(stage.model.name, name).values - threshold) < 1e-4

    played = replay(
        columns,
        [PolicyStage(stage.model.name, stage.thresholds) for stage in stages],
        architectures={stage.model.name: stage.model.architecture for stage in stages},
    )

    assert near.mean() < 0.05
    live = np.array([q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)])
    assert (live == played.grade)[~near].all()
    assert [o.record.stage for o, tie in zip(outcomes, near, strict=True) if not tie] == played.stage[~near].tolist()
    spent = np.array([o.record.cost.flops for o in outcomes])
    assert spent[~near] == pytest.approx(played.cost.flops[~near])
    aborted = np.array([any(attempt.aborted for attempt in o.record.attempts) for o in outcomes])
    assert aborted.any()  # a draft that ended early is charged as far as it went
    assert (aborted == played.aborted.any(axis=1))[~near].all()


def test_choose_takes_the_cheapest_within_tolerance():
    """A free small model that is as good as the large one, and knows it, answers alone; a useless one is left out."""
    rng = np.random.default_rng(0)
    n = 400
    costs = {"small": Architecture(1, 1, 0), "medium": Architecture(5, 1, 0), "large": Architecture(100, 1, 0)}

    def made(size, right, p_t):
        rows = [
            Row(
                question=str(i),
                model=size,
                answer="x",
                grade=float(right[i]),
                tokens=(Token("x", math.log(p_t[i])),),
                scores={"p_t": RecordedScore(value=p_t[i])},
                usage=Usage(1, 1),
            )
            for i in range(n)
        ]
        return Measured(tuple(rows), np.zeros((n, 2), np.float32))

    hard = rng.random(n) < 0.5
    sure = np.full(n, 0.999)
    knowing = made("small", ~hard, np.where(hard, 0.1, 0.999))
    useless = made("medium", np.zeros(n, bool), sure)
    large = made("large", np.ones(n, bool), sure)
    p_ik = {"small": np.where(hard, 0.05, 0.95), "medium": np.full(n, 0.95), "large": sure}
    columns = recording({"small": knowing, "medium": useless, "large": large}, p_ik)
    policy = choose(columns, costs)
    assert [stage["model"] for stage in policy["stages"]] == ["small", "large"]
    assert policy["stages"][0]["thresholds"] == {"p_ik": 0.9, "p_t": 0.99}  # of those that keep the same, the strictest
    played = replay(
        columns, [PolicyStage("small", policy["stages"][0]["thresholds"]), PolicyStage("large")], architectures=costs
    )
    assert played.grade.all()
    assert played.cost.flops.mean() == pytest.approx((~hard).mean() * 4 + hard.mean() * (2 + 400))
    useless_too = made("small", np.zeros(n, bool), sure)
    only = choose(recording({"small": useless_too, "medium": useless, "large": large}, p_ik), costs)
    assert [stage["model"] for stage in only["stages"]] == ["large"]


def test_candidates_cover_both_thresholds():
    """The grid holds the paper's 0.9 for both, and no gate at all for P(IK)."""
    grid = set(candidates())
    assert {(0.9, 0.9), (0.0, 0.9)} <= grid
