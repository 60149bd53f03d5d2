"""Measuring: replay decides as the live cascade, and the cheapest cascade within tolerance is chosen."""

import numpy as np
import pytest

pytest.importorskip("torch")

from confcascade import Cascade
from confcascade.demo import bundled_probe, bundled_stages
from confcascade.demo.measure import ask_all, candidates, choose, replay
from confcascade.demo.world import World


def test_replay_is_the_live_cascade():
    """Array arithmetic on single models' answers gives the correctness and, drafts charged whole, at least the cost."""
    questions = World().questions("calibration", per_task=20)
    stages = bundled_stages()
    outcomes = Cascade(stages).run_batch([q.prompt for q in questions])
    measured = [ask_all(stage.model, questions) for stage in stages]
    p_ik = [bundled_probe(s.model.name).predict(m.hidden) for s, m in zip(stages[:-1], measured, strict=False)]
    thresholds = [(stage.thresholds["p_ik"], stage.thresholds["p_t"]) for stage in stages[:-1]]
    near = np.zeros(len(questions), bool)  # padding changes the last digits: near ties are left out
    for m, known, (knows, likely) in zip(measured, p_ik, thresholds, strict=False):
        near |= (abs(known - knows) < 1e-4) | (abs(m.p_t - likely) < 1e-4)

    correct, flops = replay(measured, p_ik, thresholds)

    live = np.array([q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)])
    spent = np.array([o.record.cost.flops for o in outcomes])
    assert near.mean() < 0.05
    assert (live == correct)[~near].all()
    assert (spent <= flops * (1 + 1e-9))[~near].all()
    kept = np.array([len(o.record.attempts) == 1 for o in outcomes])
    assert spent[kept & ~near] == pytest.approx(flops[kept & ~near])


def test_choose_takes_the_cheapest_within_tolerance():
    """A free small model that is as good as the large one, and knows it, answers alone; a useless one is left out."""
    from confcascade.demo.measure import Measured

    rng = np.random.default_rng(0)
    n = 400

    def made(right, p_t, cost):
        return Measured(
            right, np.zeros(n, bool), p_t, np.zeros((n, 2), np.float32), np.full(n, cost), np.full(n, cost / 2)
        )

    hard = rng.random(n) < 0.5
    knowing = made(~hard, np.where(hard, 0.1, 0.999), 1.0)
    useless = made(np.zeros(n, bool), np.full(n, 0.999), 5.0)
    large = made(np.ones(n, bool), np.ones(n), 100.0)
    p_ik = {"small": np.where(hard, 0.05, 0.95), "medium": np.full(n, 0.95)}
    policy = choose({"small": knowing, "medium": useless, "large": large}, p_ik)
    assert [stage["model"] for stage in policy["stages"]] == ["small", "large"]
    gate = policy["stages"][0]["thresholds"]
    correct, flops = replay([knowing, large], [p_ik["small"]], [(gate["p_ik"], gate["p_t"])])
    assert correct.all()
    assert flops.mean() == pytest.approx((~hard).mean() * 1.0 + hard.mean() * 100.5)
    only = choose({"small": useless, "medium": useless, "large": large}, p_ik)
    assert [stage["model"] for stage in only["stages"]] == ["large"]


def test_candidates_cover_both_thresholds():
    """The grid holds the paper's 0.9 for both, and no gate at all for P(IK)."""
    grid = set(candidates())
    assert {(0.9, 0.9), (0.0, 0.9)} <= grid
