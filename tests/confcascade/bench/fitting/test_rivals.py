"""What stands beside a cascade and asks one model only."""

import numpy as np
import pytest
from confcascade.bench.fitting import Fitted, describe_fit, fit, material_of
from confcascade.bench.fitting.rivals import rivals
from confcascade.bench.replay.costing import Costing
from confcascade.guarantee import Promise

from .conftest import SIZES, made_rows


def judged(rows, max_drop):
    material = material_of(rows, architectures=SIZES)
    bill = Costing.of(material.columns, material.models, SIZES)
    return material, {each.name: each for each in rivals(material.columns, material.models, None, bill, max_drop)}


def test_single_models_and_routers_are_told_by_plain_arithmetic(rows):
    """Over every threshold: small reads each prompt of 20 tokens and writes 5; large answers what is passed on."""
    drop = 0.05
    material, found = judged(rows, drop)
    columns = material.columns
    small, large = (columns.grades[:, columns.index(model)] for model in ("small", "large"))
    assert set(found) == {"small alone", "a router from small to large by p_ik"}  # p_t is known too late
    alone = found["small alone"]
    assert alone.loss == pytest.approx((large - small).mean())
    assert alone.saved == pytest.approx(1 - 1 / 30)
    assert alone.within is False

    score = columns.signal("small", "p_ik").values
    kept = score >= np.unique(score)[:, None]
    loss = (kept * (large - small)).mean(axis=1)
    cost = (20 + 5 * kept) / 25 / 30 + ~kept
    saved = 1 - cost.mean(axis=1)
    best = saved[loss <= drop].max()
    router = found["a router from small to large by p_ik"]
    assert router.within
    assert router.loss <= drop
    assert best - 0.02 < router.saved <= best + 1e-9


def test_a_router_that_cannot_keep_the_target_saves_nothing():
    """Where the small model is always wrong and the large one right, whatever is spared is lost."""
    rows = [row.model_copy(update={"grade": float(row.model == "large")}) for row in made_rows(200)]
    _, found = judged(rows, 0.001)
    router = found["a router from small to large by p_ik"]
    assert (router.within, router.saved, router.loss) == (False, 0.0, 0.0)


def test_without_a_target_no_threshold_is_best(rows):
    _, found = judged(rows, None)
    assert [(name, each.within) for name, each in found.items()] == [("small alone", None)]


def test_a_fit_tells_them_beside_its_cascade(chain_rows):
    """Every smaller model and every router, on the questions of the proof; none is chosen by it."""
    result = fit(material_of(chain_rows, architectures=SIZES), Promise(0.05), architectures=SIZES)
    assert isinstance(result, Fitted)
    text = describe_fit(result)
    assert f"what asks one model only, in hindsight on the {len(result.parts.certify):,} questions" in text
    names = ["small alone", "medium alone", *(f"a router from {m} to large by p_ik" for m in ("small", "medium"))]
    assert [each.name for each in result.rivals] == names
    assert all(f"  {name}: " in text for name in names)
