"""Bounds fail no more often than promised, certification stops where it must, and plans are the tests turned around."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.guarantee import (
    Certificate,
    Equivalence,
    Promise,
    attainable_drop,
    betting_bound,
    certify,
    examine,
    examples_needed,
    examples_needed_like,
    fewest_examples,
    harm_bound,
    least_loss,
    passes,
    power_of,
    reach,
    score_bound,
    score_p_value,
    suited_test,
)
from confcascade.guarantee.bounds import betting_wins, score_statistic
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom, binomtest, multinomial

SAME = Equivalence("normalised match")
DAY = datetime.date(2026, 11, 22)


@st.composite
def counts(draw, most: int = 400):
    n = draw(st.integers(1, most))
    harms = draw(st.integers(0, n))
    return harms, draw(st.integers(0, n - harms)), n


def binom_upper(k: int, n: int, delta: float) -> float:
    return 1.0 if k >= n else float(beta.ppf(1 - delta, k + 1, n - k))


def outcomes(harms: int, benefits: int, n: int):
    return np.array([1.0] * harms + [-1.0] * benefits + [0.0] * (n - harms - benefits))


# ---------------------------------------------------------------------- bounds


@settings(deadline=None)
@given(counts(), st.floats(0.001, 0.4))
def test_the_harm_bound_is_clopper_and_pearsons(count, delta):
    """statsmodels' interval, and scipy's: at the bound, so few harms have the probability delta."""
    statsmodels = pytest.importorskip("statsmodels.stats.proportion")
    harms, _, n = count
    bound = harm_bound(harms, n, delta)
    assert bound == pytest.approx(statsmodels.proportion_confint(harms, n, 2 * delta, method="beta")[1], abs=1e-9)
    if harms < n:
        assert binomtest(harms, n, bound, alternative="less").pvalue == pytest.approx(delta, rel=1e-6)


def test_mapie_certifies_the_same_policies():
    """Harms alone, tested in a fixed order: MAPIE's p-values and fixed-sequence procedure."""
    methods = pytest.importorskip("mapie.risk_control.methods")
    fixed = pytest.importorskip("mapie.risk_control.fwer_control").control_fwer
    rng = np.random.default_rng(0)
    stopped = set()
    for _ in range(30):
        rates = np.sort(rng.uniform(0, 0.06, 12))
        losses = (rng.random((12, 400)) < rates[:, None]).astype(float)
        p = methods.compute_hoeffding_bentkus_p_value(losses.mean(axis=1), 400, 0.03, binary=True)[:, 0]
        theirs = fixed(p, 0.05, fwer_method="fixed_sequence")
        ours = certify(losses, -np.arange(12.0), Promise(0.03, equivalence=SAME), "harms")
        assert [each.index for each in ours.tested if each.certified] == theirs.tolist()
        stopped.add(len(theirs))
    assert len(stopped) > 5


@pytest.mark.parametrize("drop", [0.02, 0.06, 0.15])
def test_false_certificates_are_no_more_likely_than_promised(drop):
    """Exactly, by adding up every outcome of 60 questions, at the boundary, for every rate of discordance tried."""
    n, delta = 60, 0.1
    every = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    passed = np.array([score_p_value(b, c, n, drop) <= delta for b, c in every])
    table = np.array([(b, c, n - b - c) for b, c in every])
    used = []
    for net in (drop, drop + 0.05):
        for benefit in (0.0, 0.005, 0.02, 0.1, 0.2, 0.3, 0.39):
            chances = multinomial.pmf(table, n, [benefit + net, benefit, 1 - 2 * benefit - net])
            assert chances.sum() == pytest.approx(1)
            assert chances[passed].sum() <= delta
            used.append(chances[passed].sum())
    assert max(used) > 0.6 * delta  # and it is not kept by never certifying


@settings(deadline=None, max_examples=200)
@given(counts(), st.floats(0.001, 0.9))
def test_the_score_statistic_is_tangos(count, drop):
    """Its variance is that at the rates which fit best among those that differ by the drop, found by search; and it
    rises with the harms and falls with the benefits, on which the exactness of the p-value rests."""
    harms, benefits, n = count
    found = float(score_statistic(harms, benefits, n, drop))

    def against(rate):
        parts = zip((harms, benefits, n - harms - benefits), (rate + drop, rate, 1 - 2 * rate - drop), strict=True)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

    best = minimize_scalar(against, bounds=(0, (1 - drop) / 2), method="bounded", options={"xatol": 1e-10}).x
    wanted = (harms - benefits - n * drop) / math.sqrt(n * (2 * best + drop - drop**2))
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    if harms + benefits < n:
        assert score_statistic(harms + 1, benefits, n, drop) > found
        assert score_statistic(harms, benefits + 1, n, drop) < found


@settings(deadline=None, max_examples=40)
@given(counts(150), st.floats(0.005, 0.3))
def test_the_p_value_is_the_largest_over_all_rates(count, drop):
    """As a fine search over the rates of benefits finds, by scipy's binomials."""
    harms, benefits, n = count
    seen = score_statistic(harms, benefits, n, drop)
    b = np.arange(n + 1)
    table = score_statistic(np.arange(n + 1)[:, None], b[None], n, drop)
    most = ((table <= seen + 1e-9) & (np.arange(n + 1)[:, None] + b[None] <= n)).sum(axis=0) - 1
    rates = np.linspace(0, (1 - drop) / 2, 400)[:, None]
    chances = binom.pmf(b, n, rates) * binom.cdf(most, n - b, np.minimum((rates + drop) / (1 - rates), 1))
    p = score_p_value(harms, benefits, n, drop)
    within = 2 * rates[:, 0] + drop <= binom_upper(harms + benefits, n, 5e-5)
    largest = chances.sum(axis=1)[within].max(initial=chances[0].sum())
    if largest < 0.3:  # beyond, nobody certifies
        assert largest <= p
        assert p <= largest + 2e-3  # the search is no finer


@settings(deadline=None, max_examples=60)
@given(counts())
def test_the_score_bound_is_where_the_p_value_falls_below(count):
    harms, benefits, n = count
    bound = score_bound(harms, benefits, n, 0.05)
    assert max(0, (harms - benefits) / n) <= bound <= 1
    if 2e-5 < bound < 1:
        assert score_p_value(harms, benefits, n, bound) <= 0.05
        assert score_p_value(harms, benefits, n, bound - 2e-5) > 0.05 - 1e-6 or bound <= 3e-5
        for more in (0.01, 0.05, 0.2):
            if bound + more < 1:
                assert score_p_value(harms, benefits, n, bound + more) <= 0.05


@settings(deadline=None, max_examples=60)
@given(counts())
def test_a_harm_more_is_never_better(count):
    harms, benefits, n = count
    if harms + benefits < n:
        bound, tolerance = score_bound(harms, benefits, n, 0.05), 2e-5
        assert score_bound(harms + 1, benefits, n, 0.05) >= bound - tolerance
        assert score_bound(harms, benefits + 1, n, 0.05) <= bound + tolerance


def test_what_the_papers_own_counts_certify():
    """8B -> 70B: 14 harms and 9 benefits on 1,430 questions: within 0.95 points, 1.53 if only harms count."""
    assert harm_bound(14, 1430, 0.05) == pytest.approx(0.0153, abs=5e-5)
    assert score_bound(14, 9, 1430, 0.05) == pytest.approx(0.0095, abs=5e-5)


@settings(deadline=None, max_examples=60)
@given(counts(300))
def test_without_benefits_the_score_test_is_as_sharp_as_harms_alone(count):
    harms, _, n = count
    assert score_bound(harms, 0, n, 0.05) <= harm_bound(harms, n, 0.05) * 1.005 + 1e-3


@pytest.mark.parametrize(("kept", "mean", "spread"), [(0.5, 0.04, 0.2), (0.1, 0.2, 0.6), (0.05, 0.4, 1.0)])
def test_the_betting_bound_fails_no_more_often_than_promised(kept, mean, spread):
    """Graded losses of mean 0.02; a correct bound breaks this test with probability 1e-6."""
    rng, draws, n, delta = np.random.default_rng(1), 1_000, 300, 0.1
    sizes = np.clip(mean + spread * rng.choice([-1.0, 1.0], size=(draws, n)), -1, 1)
    true = kept * np.clip(mean + spread * np.array([-1.0, 1.0]), -1, 1).mean()
    losses = sizes * (rng.random((draws, n)) < kept)
    assert true > 0
    failures = betting_wins(losses, true, delta).sum()
    assert failures <= binom.ppf(1 - 1e-6, draws, delta)
    assert betting_wins(losses, 3 * true + 0.05, delta).mean() > 0.8  # and it does certify


def test_the_betting_bound_is_where_the_capital_arrives():
    losses = np.tile([0.25, -0.25, 0, 0.5, 0, 0, 0, 0, 0, 0], 100)
    bound = betting_bound(losses, 0.05)
    assert losses.mean() < bound < losses.mean() + 0.03
    assert betting_wins(losses, bound, 0.05)
    assert not betting_wins(losses, bound - 2e-5, 0.05)
    assert betting_bound(-np.ones(100), 0.05) == 0.0
    assert betting_bound(np.ones(100), 0.05) > 0.99


def test_sorted_losses_are_bounded_like_shuffled_ones():
    """A recording sorted by outcome does not let the gambler bet on a row of harmless questions."""
    losses = outcomes(30, 0, 1000)
    low, high = betting_bound(losses, 0.05), betting_bound(losses[::-1], 0.05)
    assert min(low, high) > 0.03
    assert max(low, high) < 0.06


@pytest.mark.parametrize(
    "call",
    [
        lambda: harm_bound(3, 2, 0.05),
        lambda: harm_bound(0, 0, 0.05),
        lambda: score_bound(2, 2, 3, 0.05),
        lambda: harm_bound(0, 10, 1.0),
        lambda: score_p_value(0, 0, 10, 1.5),
        lambda: betting_bound(np.array([]), 0.05),
        lambda: betting_bound(np.array([0.5, math.nan]), 0.05),
    ],
)
def test_what_is_out_of_range_is_refused(call):
    with pytest.raises(ConfigurationError, match=r"Got|empty|NaN"):
        call()


# ---------------------------------------------------------------------- certification


def test_testing_stops_at_the_first_failure():
    """A policy behind a failed one is not certified, however good; of the certified the cheapest is chosen."""
    losses = np.array([outcomes(0, 0, 500), outcomes(1, 0, 500), outcomes(60, 0, 500), outcomes(0, 0, 500)])
    found = certify(losses, [0.7, 0.8, 0.5, 0.1], Promise(0.02), "score")
    assert [each.certified for each in found.tested] == [True, True, False]
    assert found.chosen == found.tested[0]
    assert found.tested[1].harms == 1
    none = certify(losses[2:], [0.5, 0.1], Promise(0.02), "score")
    assert none.chosen is None
    assert len(none.tested) == 1


@settings(deadline=None, max_examples=40)
@given(counts(300), st.floats(0.005, 0.2), st.sampled_from(["harms", "score", "betting"]))
def test_passing_is_what_the_bound_says(count, drop, test):
    harms, benefits, n = count
    lost = outcomes(harms, 0 if test == "harms" else benefits, n)
    promise = Promise(drop, equivalence=SAME if test == "harms" else None)
    found = examine(lost, 1.0, promise, test)
    assert passes(lost, promise, test) == found.certified == (found.bound <= drop)


def test_each_kind_of_loss_has_its_test():
    assert suited_test(outcomes(20, 20, 400), Promise(0.01)) == "score"
    assert suited_test(outcomes(20, 20, 400) / 2, Promise(0.01)) == "betting"
    assert suited_test(outcomes(20, 0, 400), Promise(0.01, equivalence=SAME)) == "harms"


def test_how_far_a_path_is_expected_to_reach():
    """So far as its rates would pass on as many questions as the proof has; and few questions never look sure."""
    rows = [outcomes(0, 0, 400), outcomes(2, 1, 400), outcomes(4, 2, 400), outcomes(40, 2, 400), outcomes(0, 0, 400)]
    for equivalence in (None, SAME):
        losses = np.array(rows) if equivalence is None else np.maximum(rows, 0)
        promise = Promise(0.02, equivalence=equivalence)
        reached = [reach(losses, promise, n=n) for n in (100, 400, 4_000)]
        assert reached == sorted(reached)
        assert reached[0] == 0
        assert reached[-1] == 3
    assert reach(np.array(rows) / 2, Promise(0.02), n=4_000) == 3
    assert reach(np.zeros((3, 20)), Promise(0.01), n=4_000) == 0  # half a harm of 20 is 2.5 points


def test_graded_losses_are_certified_by_betting():
    losses = np.array([outcomes(10, 8, 1000) / 2])
    promise = Promise(0.03)
    (only,) = certify(losses, [0.5], promise, "betting").tested
    assert only.bound == betting_bound(losses[0], promise.delta)
    assert only.certified
    assert only.loss == pytest.approx(0.001)


def test_a_judges_error_widens_the_bound():
    """What it may miss is added, and the doubt about that is taken off the level: together they fail at most delta."""
    missed = harm_bound(0, 400, 0.01)
    promise = Promise(0.05, equivalence=Equivalence("judge", error=missed, delta=0.01))
    found = examine(outcomes(5, 0, 1000), 1.0, promise, "harms")
    assert found.bound == harm_bound(5, 1000, 0.04) + missed
    assert found.certified == (found.bound <= 0.05)
    with pytest.raises(ConfigurationError, match="check the judge on more pairs"):
        Promise(0.01, equivalence=Equivalence("judge", error=missed))
    with pytest.raises(ConfigurationError, match=r"below 0\.05"):
        Promise(0.05, equivalence=Equivalence("judge", delta=0.05))


def test_groups_share_the_level():
    """Each of four groups is tested at a quarter of it, so that all hold together."""
    promises = Promise(0.05).per_group(["law", "physics", "history", "art"])
    assert promises["law"].group == "law"
    assert {each.delta for each in promises.values()} == {0.0125}
    assert examine(outcomes(1, 0, 200), 1, promises["art"], "harms").bound == harm_bound(1, 200, 0.0125)
    with pytest.raises(ConfigurationError, match="once"):
        Promise(0.05).per_group(["law", "law"])


def test_the_least_loss_within_a_cost():
    """The best of those that can be paid, chosen elsewhere than bounded; its certificate promises the bound."""
    losses = np.array([outcomes(1, 0, 300), outcomes(4, 0, 300), outcomes(9, 0, 300), outcomes(9, 0, 300)])
    assert least_loss(losses, [0.9, 0.4, 0.3, 0.2], max_cost=0.4) == 1
    assert least_loss(losses, [0.9, 0.6, 0.3, 0.2], max_cost=0.4) == 3
    assert least_loss(losses, [0.9, 0.6, 0.6, 0.5], max_cost=0.4) is None
    promise = Promise(None)
    found = examine(losses[1], 0.4, promise, "score")
    assert found.certified is None
    assert Certificate.of(found, promise, date=DAY).promised == score_bound(4, 0, 300, promise.delta)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: certify([[0.0, math.nan]], [1.0], Promise(0.01), "score"), "NaN"),
        (lambda: certify([[0.0, 1.0]], [math.nan], Promise(0.01), "score"), "cost is not known"),
        (lambda: certify([[0.0, 1.0]], [1.0], Promise(None), "score"), "`max_drop`"),
        (lambda: certify([0.0, 1.0], [1.0], Promise(0.01), "score"), "shape"),
        (lambda: examine([0.0, 0.5], 1.0, Promise(0.01), "score"), "betting"),
        (lambda: examine([0.0, -1.0], 1.0, Promise(0.01, equivalence=SAME), "harms"), "disagrees"),
        (lambda: reach([[0.0]], Promise(0.01), n=0), "at least 1"),
        (lambda: Promise(1.0), "one point"),
        (lambda: Promise(0.01, confidence=95), "0.95"),
        (lambda: Equivalence(""), "name"),
    ],
)
def test_what_cannot_be_certified_says_why(call, says):
    with pytest.raises(ConfigurationError, match=says):
        call()


# ---------------------------------------------------------------------- certificates


def test_a_certificate_says_what_it_promises():
    promise = Promise(0.02, group="law", groups=2)
    certificate = Certificate.of(examine(outcomes(6, 4, 1430), 0.6, promise, "score"), promise, date=DAY)
    assert certificate.describe() == (
        "Promised: accuracy at most 2.00 points below the largest model's, with 0.95 confidence, for all 2 groups at "
        "once. On questions of the group 'law'.\n"
        "Evidence: on 1,430 questions the cascade lost against the largest model on 6 and gained on 4, a net loss of "
        f"0.14 points; upper bound {100 * score_bound(6, 4, 1430, 0.025):.2f} points.\n"
        "Test: exact unconditional score test of paired proportions (Hsueh, Liu and Chen), 2026-11-22.\n"
        "It holds as long as:\n"
        "- The questions of the group 'law' to come are like the examples, which were drawn from them independently of "
        "one another, repeats included.\n"
        "- The labels of these examples fixed neither the policies, nor the order of tests, nor a calibrator.\n"
        "- Models, their builds, prompts and decoding settings stay as they were.\n"
        "- Answers are graded as they were."
    )
    assert certificate.promised == 0.02


def test_a_certificate_without_labels_names_its_equivalence():
    promise = Promise(0.05, equivalence=Equivalence("judge", error=0.01, delta=0.01))
    certificate = Certificate.of(examine(outcomes(6, 0, 1000), 0.6, promise, "harms"), promise, date=DAY)
    assert certificate.kind == "agreement"
    text = certificate.describe()
    assert "at most 5.00% of the answers differ from the largest model's by 'judge'" in text
    assert "different answers the same on at most 1.00% of the questions" in text
    assert Certificate.model_validate_json(certificate.model_dump_json()) == certificate


def test_nothing_shown_is_no_certificate():
    """A failed policy has none, and none can be made up in a file."""
    promise = Promise(0.01)
    failed = examine(outcomes(30, 0, 400), 0.5, promise, "score")
    with pytest.raises(ConfigurationError, match="no certificate"):
        Certificate.of(failed, promise)
    good = Certificate.of(examine(outcomes(0, 0, 400), 0.5, promise, "score"), promise).model_dump()
    for change in ({"bound": 0.02}, {"harms": 401}, {"kind": "agreement"}, {"version": 2}, {"bound": math.nan}):
        with pytest.raises(ValidationError):
            Certificate.model_validate({**good, **change})


# ---------------------------------------------------------------------- planning


@settings(deadline=None)
@given(st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_the_floor_is_the_least_that_can_be_certified(drop, confidence):
    """Without a single harm, this number passes and one less does not."""
    promise = Promise(drop, confidence=confidence)
    n = fewest_examples(promise)
    assert harm_bound(0, n, promise.delta) <= drop + 1e-9
    assert n == 1 or harm_bound(0, n - 1, promise.delta) > drop


@pytest.mark.parametrize("test", ["harms", "score"])
@pytest.mark.parametrize(("discordance", "net_loss"), [(0.1, 0.02), (0.3, -0.05), (0.03, 0.03), (0.0, 0.0)])
def test_power_is_the_sum_over_outcomes(test, discordance, net_loss):
    """Of the very bounds, over every outcome of 60 questions."""
    n, promise = 60, Promise(0.1)
    harm, benefit = (discordance + net_loss) / 2, (discordance - net_loss) / 2
    outcomes_ = [(b, c) for b in range(21) for c in range(31)]  # beyond, nothing has a chance worth the name
    table = np.array([(b, c, n - b - c) for b, c in outcomes_])
    chances = multinomial.pmf(table, n, [harm, benefit, 1 - harm - benefit])
    if test == "score":
        passed = np.array([score_p_value(b, c, n, 0.1) <= promise.delta for b, c in outcomes_])
    else:
        passed = np.array([harm_bound(b, n, promise.delta) <= 0.1 for b, _ in outcomes_])
    power = power_of(test, n, promise, discordance=discordance, net_loss=net_loss)
    assert power == pytest.approx(chances[passed].sum(), abs=0.02 if test == "score" else 5e-4)


def test_the_planner_inverts_the_test():
    """Its number has the power asked for, three quarters of it have not, and the drop to hope for is the target."""
    promise, rates = Promise(0.05), {"discordance": 0.05, "net_loss": 0.01}
    n = examples_needed(promise, **rates)
    assert power_of("score", n, promise, **rates) >= 0.8
    assert power_of("score", 3 * n // 4, promise, **rates) < 0.8
    assert attainable_drop(n, promise, **rates) == pytest.approx(0.05, rel=0.05)
    assert examples_needed(promise, **rates, power=0.95) > n
    losses = outcomes(3, 2, 100)
    assert examples_needed_like(losses, promise) == n


def test_what_no_number_of_examples_can_show():
    assert examples_needed(Promise(0.01), discordance=0.05, net_loss=0.01) is None
    assert examples_needed_like(np.full(50, 0.02), Promise(0.01)) is None
    with pytest.raises(ConfigurationError, match="`max_drop`"):
        examples_needed(Promise(None), discordance=0.05)
    with pytest.raises(ConfigurationError, match="at most the discordance"):
        examples_needed(Promise(0.1), discordance=0.05, net_loss=0.06)
    with pytest.raises(ConfigurationError, match="`power`"):
        examples_needed(Promise(0.1), discordance=0.05, power=1.0)


def test_agreement_is_planned_on_harms_alone():
    promise = Promise(0.05, equivalence=SAME)
    n = examples_needed(promise, discordance=0.02, net_loss=0.02)
    most = max(harms for harms in range(n) if harm_bound(harms, n, promise.delta) <= 0.05)
    assert binom.cdf(most, n, 0.02) >= 0.8


def test_graded_losses_are_planned_by_their_own_kind():
    """Fresh samples of that size, drawn as the given losses are, are certified in about 80 of 100 cases."""
    rng = np.random.default_rng(3)
    losses = rng.choice([0.5, -0.5, 0.25, 0], p=[0.03, 0.02, 0.05, 0.9], size=5_000)
    promise = Promise(0.05)
    n = examples_needed_like(losses, promise)
    fresh = rng.choice(losses, size=(1_000, n))
    assert 0.72 <= betting_wins(fresh, 0.05, promise.delta).mean() <= 0.95
