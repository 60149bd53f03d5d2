"""Targets other than accuracy: each says what it names, no test fails oftener than promised, all hold together."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.guarantee import (
    CAPS_SHARE,
    Mean,
    Paired,
    Played,
    Promise,
    Share,
    Target,
    TargetCertificate,
    in_testing_order,
    prove_together,
    prove_within,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binom, multinomial
from sklearn.metrics import f1_score, precision_score, recall_score

DAY = datetime.date(2026, 11, 30)
SCORES = {"precision": precision_score, "recall": recall_score, "f1": f1_score}


def made(answers=((0,),), references=(0,), **changes):
    """What policies do, all costs and times 1."""
    answers, references = np.array(answers, np.int32), np.array(references, np.int32)
    shape, n = answers.shape, len(references)
    found = Played(
        asked=np.zeros(shape, bool),
        cost=np.ones(shape),
        largest_cost=np.ones(n),
        grade=np.ones(shape),
        largest_grade=np.ones(n),
        seconds=np.ones(shape),
        answers=answers,
        references=references,
        classes=("no", "yes", "maybe"),
        tops={},
    )
    return dataclasses.replace(found, **changes)


# ---------------------------------------------------------------------- what a target says


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=40),
    st.sampled_from(sorted(SCORES)),
    st.floats(0.01, 0.99),
)
def test_shares_of_a_class_are_sklearns(pairs, kind, least):
    """Seen is sklearn's figure, and a failing share within the limit is a figure of at least the target's."""
    answers, references = zip(*pairs, strict=True)
    known = SCORES[kind](references, answers, labels=[1], average="micro", zero_division=0.0)
    target = Target(kind, least, of="yes")
    evidence = target.evidence(made([answers], references), 0.95)
    shown = evidence.examine(0)
    if shown.counted:
        assert shown.seen == pytest.approx(known)
        assert target.measured(shown.failing / shown.counted) == pytest.approx(known)
        if abs(known - least) > 1e-9:
            assert (shown.failing / shown.counted <= target.failing) == (known >= least)
    else:
        assert not shown.certified


@given(st.floats(0.01, 0.99))
def test_f1_is_a_mean_of_a_bounded_variable(t):
    """The largest failing share makes E[2 TP - t (2 TP + FP + FN)] exactly 0."""
    failing = Target("f1", t, of="yes").failing
    assert 2 * (1 - failing) - t * (2 * (1 - failing) + failing) == pytest.approx(0, abs=1e-12)


def test_variables_of_costs_and_times():
    """Each is the excess over what is allowed; its greatest value is what the bounds say."""
    played = made(
        [[1, 0], [1, 0]],
        (1, 1),
        cost=np.array([[0.2, 1.2], [0.2, 0.2]]),
        largest_cost=np.array([1.0, 1.0]),
        grade=np.array([[0.0, 1.0], [0.0, 0.5]]),
        largest_grade=np.array([1.0, 1.0]),
        seconds=np.array([[1.0, 4.0], [1.0, 1.0]]),
        asked=np.array([[False, True], [False, False]]),
        tops={"others": np.array([0.3, 0.3]), "largest": np.array(2.0), "seconds": np.array([9.0, 5.0])},
    )
    cost = Target("cost", 0.4).evidence(played, 0.95)
    assert cost.values.tolist() == [pytest.approx([-0.2, 0.8]), pytest.approx([-0.2, -0.2])]
    assert cost.top.tolist() == pytest.approx([0.3 + 0.6 * 2.0] * 2)
    total = Target("total", 3.0).evidence(played, 0.95)
    assert total.values.tolist() == [pytest.approx([0.2 - 1 + 3, 0.2]), pytest.approx([0.2 - 1 + 3, 0.2 - 1 + 1.5])]
    assert total.top.tolist() == pytest.approx([3.3, 3.3])
    latency = Target("latency", 2.0).evidence(played, 0.95)
    assert latency.values.tolist() == [[-1, 2], [-1, -1]]
    assert latency.top.tolist() == [7, 3]
    assert Target("asked", 0.5).evidence(played, 0.95).marks.tolist() == [[0, 1], [0, 0]]
    assert Target("late", 0.5, seconds=2.0).evidence(played, 0.95).marks.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("kind", "limit", "options", "said"),
    [
        ("f1", 0.8, {}, "A class is named"),
        ("cost", 0.8, {"of": "yes"}, "A class is named"),
        ("late", 0.1, {}, "belong to the target 'late'"),
        ("late", 0.1, {"seconds": 0.0}, "above 0"),
        ("cost", 1.0, {}, "a share between 0 and 1"),
        ("total", 0.0, {}, "The price of an error"),
        ("latency", math.inf, {}, "A mean latency"),
    ],
)
def test_targets_that_say_nothing_are_refused(kind, limit, options, said):
    with pytest.raises(ConfigurationError, match=said):
        Target(kind, limit, **options)


def test_what_has_no_bound_is_refused_with_the_way_out():
    for kind, way in (("cost", "max_asked"), ("total", "most_tokens"), ("latency", "late_share")):
        with pytest.raises(ConfigurationError, match=way):
            Target(kind, 0.5).evidence(made(), 0.95)
    beyond = made(tops={"others": np.array([0.1]), "largest": np.array(0.5), "seconds": np.array([0.5])})
    with pytest.raises(ConfigurationError, match="is said to be the most"):
        Target("cost", 0.5).evidence(dataclasses.replace(beyond, cost=np.array([[1.5]])), 0.95)
    unknown = made(seconds=np.array([[np.nan]]))
    with pytest.raises(ConfigurationError, match="how long"):
        Target("late", 0.5, seconds=1.0).evidence(unknown, 0.95)
    with pytest.raises(ConfigurationError, match="Classes there: 'no'"):
        Target("f1", 0.5, of="perhaps").evidence(made(), 0.95)


# ---------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    "target", [Target("precision", 0.9, of="yes"), Target("f1", 0.8, of="yes"), Target("asked", 0.3)]
)
@pytest.mark.parametrize("m", [1, 10, 57, 200])
def test_a_share_is_tested_exactly(target, m):
    """At the border so many failures have a probability of at most delta, and one more would have more."""
    passing = [k for k in range(m + 1) if Share(target, np.array([[1] * k + [0] * (m - k)]), 0.9).examine(0).certified]
    assert passing == list(range(len(passing)))
    most = len(passing) - 1
    assert binom.cdf(most, m, target.failing) <= 0.1 + 1e-9
    assert binom.cdf(most + 1, m, target.failing) > 0.1


def test_a_random_number_of_questions_that_count_changes_nothing():
    """All samples of 20 questions, of which each counts with probability 0.4, at the border: delta is kept."""
    n, target = 20, Target("recall", 0.7, of="yes")
    chance = 0.0
    for fine, failing in itertools.product(range(n + 1), repeat=2):
        if fine + failing <= n:
            marks = np.array([[0] * fine + [1] * failing + [-1] * (n - fine - failing)], np.int8)
            if Share(target, marks, 0.8).examine(0).certified:
                chances = [0.4 * (1 - target.failing), 0.4 * target.failing, 0.6]
                chance += multinomial.pmf([fine, failing, n - fine - failing], n, chances)
    assert 0.02 < chance <= 0.2


@pytest.mark.parametrize(
    ("values", "chances"), [((2.0, -0.05), (1 / 41, 40 / 41)), ((2.0, 0.0, -8.0), (0.2, 0.75, 0.05))]
)
def test_a_mean_at_its_border_is_seldom_certified(values, chances):
    """Values that are rarely at their bound of 2, or far below it at times, with a mean of 0; 2,000 samples."""
    assert np.dot(values, chances) == pytest.approx(0)
    drawn = np.random.default_rng(0).choice(values, size=(2000, 300), p=chances)
    evidence = Mean(Target("latency", 1.0), drawn, np.full(2000, 2.0), 0.9)
    certified = sum(evidence.examine(i).certified for i in range(2000))
    assert certified <= binom.ppf(1 - 1e-6, 2000, 0.1)


def test_a_mean_clearly_below_is_certified_and_its_bound_covers():
    rng = np.random.default_rng(1)
    values = rng.uniform(-1, 0.5, size=(1, 400))
    assert Mean(Target("latency", 1.0), values, np.array([0.5]), 0.95).examine(0).certified
    above = rng.uniform(-1, 2, size=(200, 400))  # of mean 0.5
    evidence = Mean(Target("latency", 1.0), above, np.full(200, 2.0), 0.9)
    shown = [evidence.examine(i) for i in range(200)]
    assert not any(each.certified for each in shown)
    assert sum(each.bound < 0.5 for each in shown) <= binom.ppf(1 - 1e-6, 200, 0.1)
    assert np.median([each.bound for each in shown]) < 0.7


def test_what_cannot_fail_is_certified():
    assert Mean(Target("latency", 9.0), np.array([[-8.0]]), np.array([-1.0]), 0.95).examine(0).certified


# ---------------------------------------------------------------------- several


@dataclasses.dataclass
class Told:
    """Evidence whose verdicts are told."""

    verdicts: list[bool]

    def margins(self):
        return np.array([1.0 if each else -1.0 for each in self.verdicts])

    def examine(self, policy):
        marks = np.array([[0] * 100 if self.verdicts[policy] else [1] * 100], np.int8)
        return Share(Target("asked", 0.5), marks, 0.95).examine(0)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=2)))
def test_what_passes_both_ways_is_certified(verdicts):
    """Those before the first failure of quality, and behind the last failure of a cap."""
    quality, caps = [Told(each) for each in verdicts[:1]], [Told(each) for each in verdicts[1:]]
    n = len(verdicts[0])
    found = prove_within(quality, caps, range(n), range(n)[::-1])
    held = list(itertools.takewhile(lambda i: verdicts[0][i], range(n)))
    kept = list(itertools.takewhile(lambda i: all(each[i] for each in verdicts[1:]), range(n)[::-1]))
    assert [each.policy for each in found if each.certified] == sorted(set(held) & set(kept))
    alone = prove_within(caps, [], range(n), range(n))
    together = prove_together(caps, range(n))
    assert [each.shown for each in alone] == together
    assert all(all(one.certified for one in each) for each in together[:-1])


def test_nothing_is_divided_where_all_must_pass():
    """Two targets at their borders: that a policy passes both is no likelier than that it passes one."""
    rng = np.random.default_rng(0)
    target, draws = Target("asked", 0.3), 3000
    first, second = rng.random((draws, 100)) < 0.3, rng.random((draws, 100)) < 0.05  # the second holds by far
    parts = [Share(target, each.astype(np.int8), 0.9) for each in (first, second)]
    passed = sum(len(shown) == 1 and all(one.certified for one in shown[0]) for shown in _each(parts, draws))
    assert 0.05 * draws < passed <= binom.ppf(1 - 1e-6, draws, 0.1)


def _each(parts, draws):
    return [prove_together(parts, [i]) for i in range(draws)]


def test_a_drop_stands_among_other_targets():
    losses = np.array([[0.0] * 300, [1.0] * 30 + [0.0] * 270])
    drop = Paired(Promise(0.02), losses, ["harms", "harms"])
    assert [each.certified for (each,) in prove_together([drop], [0, 1])] == [True, False]
    assert drop.margins()[0] > 0 > drop.margins()[1]
    assert 0 < CAPS_SHARE < 1
    with pytest.raises(ConfigurationError, match="nothing to prove"):
        prove_together([], [0])


def test_tests_begin_where_a_chain_is_nearly_sure():
    """The chain with the best policy that is likely to hold, from its most cautious one that is nearly sure to."""
    marks = np.full((5, 400), 0, np.int8)
    for i, failing in enumerate((195, 100, 120, 150, 5)):  # of 400, where half may fail
        marks[i, :failing] = 1
    evidence = [Share(Target("asked", 0.5), marks, 0.95)]
    assert in_testing_order(evidence, np.array([5.0, 4, 3, 2, 9]), [[4], [0, 1, 2, 3]]) == [1, 2, 3]
    assert in_testing_order(evidence, np.array([5.0, 4, 3, 2, 1]), [[4], [0, 1, 2, 3]]) == [4]
    assert in_testing_order(evidence, np.array([5.0, 4, 3, 2, 1]), []) == []
    hopeless = [Share(Target("asked", 0.001), marks, 0.95)]
    assert in_testing_order(hopeless, np.array([5.0, 4, 3, 2, 9]), [[4], [0, 1, 2, 3]]) == [4]


# ---------------------------------------------------------------------- certificates


def certified(target, failing=2, counted=200):
    marks = np.array([[1] * failing + [0] * (counted - failing) + [-1] * 50], np.int8)
    return Share(target, marks, 0.95).examine(0)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("precision", 0.9, of="yes"), "the precision of 'yes' against the references is at least 90.00%"),
        (Target("recall", 0.9, of="yes"), "the recall of 'yes' against the references is at least 90.00%"),
        (Target("f1", 0.9, of="yes"), "F1 of 'yes' against the references is at least 90.00%"),
        (Target("asked", 0.3), "at most 30.00% of the questions are put to the largest model"),
        (Target("late", 0.3, seconds=2.0), "at most 30.00% of the questions take longer than 2 s"),
    ],
)
def test_a_certificate_of_a_share(target, words):
    certificate = TargetCertificate.of_shown(certified(target), 0.95, unit="usd", date=DAY, repeated=3)
    said = certificate.describe()
    assert f"Promised: {words}, with 0.95 confidence." in said
    assert "Clopper-Pearson bound on a share, 2026-11-30." in said
    assert "- 3 examples repeat the question of another" in said
    assert TargetCertificate.model_validate_json(certificate.model_dump_json()) == certificate
    assert certificate.target == target


@pytest.mark.parametrize(
    ("target", "unit", "words", "needs"),
    [
        (
            Target("cost", 0.4),
            "usd",
            "costs on average at most 40.00% of the largest",
            "more than 40 tokens of a prompt",
        ),
        (Target("cost", 0.4), "seconds", "costs on average at most 40.00% of the largest", "No attempt takes longer"),
        (Target("total", 0.5), "usd", "an error priced at $0.5", "every error is worth the same"),
        (Target("latency", 2.0), "usd", "takes at most 2 s on average", "No attempt takes longer than 30 s"),
    ],
)
def test_a_certificate_of_a_mean(target, unit, words, needs):
    shown = Mean(target, np.full((1, 300), -0.5), np.array([1.0]), 0.95).examine(0)
    said = TargetCertificate.of_shown(shown, 0.95, unit=unit, tokens=(40, 20), timeout=30.0, date=DAY).describe()
    assert words in said
    assert needs in said
    assert "betting on the mean of a bounded variable" in said


def test_no_certificate_of_what_failed():
    target = Target("f1", 0.9, of="yes")
    with pytest.raises(ConfigurationError, match="failed"):
        TargetCertificate.of_shown(certified(target, failing=100), 0.95)
    good = TargetCertificate.of_shown(certified(target), 0.95, against="largest", date=DAY)
    assert "against the largest model's answers" in good.describe()
    for changes in ({"bound": 0.5}, {"failing": 500}, {"against": None}, {"of": None}):
        with pytest.raises((ValidationError, ConfigurationError)):
            TargetCertificate.model_validate(good.model_dump() | changes)
