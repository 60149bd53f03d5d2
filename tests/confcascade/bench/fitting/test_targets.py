"""Targets of policies on a recording: what was certified is what the rows say, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest
from confcascade import ConfigurationError, Prices
from confcascade.bench.fitting import QueryLimits, Wanted, agreement, fit_targets, material_of, realised
from confcascade.bench.fitting.played import ClassAnswers, played
from confcascade.bench.fitting.targets import EACH
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.graders import NormalizedMatch
from confcascade.guarantee import Certificate, Equivalence, Promise, Target, TargetCertificate
from confcascade.policy import Policy

from tests.confcascade.bench.fitting.conftest import made_rows

PRICES = {"small": Prices(0.1, 0.4), "large": Prices(2.0, 8.0)}
MOST = QueryLimits((40, 20))


@pytest.fixture(scope="module")
def classed():
    """Of questions that are "Yes" or "No"; a right answer is the reference, a wrong one the other."""
    rng, references, rows = np.random.default_rng(1), {}, []
    for row in made_rows(2500):
        reference = references.setdefault(row.question, "Yes" if rng.random() < 0.4 else "No")
        wrong = "No" if reference == "Yes" else "Yes"
        answer = (reference if row.grade else wrong) + "."
        latency = float(rng.exponential(0.2 if row.model == "small" else 1.0))
        rows.append(row.model_copy(update={"reference": reference, "answer": answer, "latency_s": min(latency, 8.0)}))
    return rows


@pytest.fixture(scope="module")
def material(classed):
    return material_of(classed, models=("small", "large"), texts=True)


def fitted(material, *targets, drop=None, confidence=0.95, **options):
    promise = None if drop is None else Promise(drop, confidence)
    return fit_targets(material, Wanted(targets, promise, confidence), **{"prices": PRICES, **options})


def by_hand(classed, found):
    """Of the questions of the proof: reference, answer, grade, cost and time of the policy and of the large model."""
    rows = {(row.question, row.model): row for row in classed}
    (gated, _) = found.stages
    ((name, threshold),) = gated.thresholds.items()
    told = []
    for question in sorted({row.question for row in classed}):
        small, large = rows[question, "small"], rows[question, "large"]
        kept = small.scores[name].value >= threshold
        answer = small if kept else large
        cost = {m.model: PRICES[m.model].of(m.usage) for m in (small, large)}
        told.append(
            {
                "question": question,
                "reference": small.reference,
                "answer": answer.answer.rstrip("."),
                "grade": answer.grade,
                "large": large.grade,
                # a gate is read before the answer, which is then not written
                "cost": cost["small"] if kept else cost["large"] + (cost["small"] if name == "p_t" else 0),
                "seconds": small.latency_s + (0 if kept else large.latency_s),
                "kept": kept,
            }
        )
    return told


def proof_of(material, found, told):
    questions = {material.columns.questions[i] for i in found.split.certify}
    return [each for each in told if each["question"] in questions]


def test_a_class_is_counted_as_by_hand(material, classed):
    """F1, precision and recall together, beside what a loop over the rows counts."""
    found = fitted(
        material,
        Target("f1", 0.75, of="yes"),
        Target("precision", 0.7, of="yes"),
        Target("recall", 0.7, of="YES."),
        signals=["p_t"],
    )
    assert found.policy is not None
    told = proof_of(material, found, by_hand(classed, found))
    hits = sum(each["answer"] == each["reference"] == "Yes" for each in told)
    given, has = (sum(each[key] == "Yes" for each in told) for key in ("answer", "reference"))
    seen = {each.kind: (each.counted, each.failing, each.of) for each in found.policy.certificates}
    assert seen == {
        "f1": (given + has - hits, given + has - 2 * hits, "Yes"),
        "precision": (given, given - hits, "Yes"),
        "recall": (has, has - hits, "Yes"),
    }
    f1 = next(each for each in found.policy.certificates if each.kind == "f1")
    assert f1.seen == pytest.approx(2 * hits / (given + has))
    assert "3 promises, which hold together with 0.95 confidence" in found.describe()
    assert found.policy.saving.low > 0


def test_quality_cost_and_lateness_hold_together(material, classed, tmp_path):
    found = fitted(
        material,
        Target("cost", 0.9),
        Target("late", 0.4, seconds=1.0),
        drop=0.05,
        signals=["p_t"],
        limits=MOST,
    )
    assert found.policy is not None
    drop, cost, late = found.policy.certificates
    told = proof_of(material, found, by_hand(classed, found))
    assert isinstance(drop, Certificate)
    assert drop.confidence == cost.confidence == 0.95
    assert drop.loss == pytest.approx(np.mean([each["large"] - each["grade"] for each in told]))
    large = PRICES["large"].of(classed[0].usage)
    assert cost.seen == pytest.approx(np.mean([each["cost"] for each in told]) - 0.9 * large)
    assert late.failing == sum(each["seconds"] > 1.0 for each in told)
    assert (late.n, cost.tokens, cost.unit) == (len(told), (40, 20), "usd")

    found.policy.save(tmp_path / "policy.json")
    again = Policy.load(tmp_path / "policy.json")
    assert again.certificates == found.policy.certificates
    assert [type(each) for each in again.certificates] == [Certificate, TargetCertificate, TargetCertificate]
    said = again.describe()
    assert said.count("The questions to come are like the examples") == 1
    assert "No model is paid for more than 40 tokens" in said

    lines = realised(again, material, prices=PRICES).describe(again)
    assert "promises to lose at most 5.00 points" in lines[0]
    assert "What it promises of cost, late is not judged here." in lines[1]


def test_the_price_of_an_error_decides_how_much_is_kept(material):
    """Dear errors leave little to the small model, cheap ones nearly all; both are certified to pay."""
    large = PRICES["large"].of(material_usage())
    kept = []
    for price in (0.5, 8.0):
        found = fitted(material, Target("total", price * large), limits=MOST, unit="usd")
        assert found.policy is not None
        (certificate,) = found.policy.certificates
        assert (certificate.kind, certificate.seen < 0) == ("total", True)
        assert f"priced at ${price * large:g}" in found.describe()
        kept.append(found.policy.saving.spared)
    assert kept[0] > kept[1] + 0.2


def material_usage():
    return made_rows(1)[0].usage


def test_caps_alone_promise_no_quality_and_say_so(material):
    found = fitted(material, Target("asked", 0.5))
    assert found.policy is not None
    (certificate,) = found.policy.certificates
    assert certificate.seen <= certificate.bound <= 0.5
    assert certificate.bound > 0.4  # of those that keep it, the one that loses least
    assert "Nothing is promised of its quality" in found.notes[-1]
    lines = realised(found.policy, material, prices=PRICES).describe(found.policy)
    assert lines[0].startswith("The policy promises nothing of accuracy;")
    assert fitted(material, Target("latency", 1.0), limits=QueryLimits(timeout=10.0)).policy is not None


def test_each_class_and_no_labels(material):
    """Every class of the largest model's answers: disagreement per class."""
    same = agreement(material, NormalizedMatch())
    found = fitted(material, Target("recall", 0.8, of=EACH), same=same)
    assert found.policy is not None
    assert {each.of for each in found.policy.certificates} == {"Yes.", "No."}
    assert "against the largest model's answers" in found.describe()
    # disagreement in a loop: where the large model says so, how often does the policy not
    answers = ClassAnswers.of(material, labels=False)
    bill = Costing.of(material.columns, material.models, None, PRICES, "usd")
    seen = played(material.columns, [found.stages], "large", bill, classes=answers)
    for each in found.policy.certificates:
        code = answers.classes.index(each.of)
        rows = [i for i in found.split.certify if answers.references[i] == code]
        assert each.counted == len(rows)
        assert each.failing == sum(int(seen.answers[0, i]) != code for i in rows)
    promise = Promise(0.3, equivalence=Equivalence("normalised match"))
    both = fit_targets(material, Wanted((Target("asked", 0.9),), promise, 0.95), same=same, prices=PRICES)
    assert both.policy is not None
    assert [each.kind for each in both.policy.certificates] == ["agreement", "asked"]
    with pytest.raises(ConfigurationError, match="go together"):
        fit_targets(material, Wanted((), promise, 0.95), prices=PRICES)


def test_nothing_is_promised_that_was_not_shown(material):
    found = fitted(material, Target("f1", 0.99, of="yes"))
    assert found.policy is None
    assert "the likeliest to hold, f1 of 'Yes'" in found.describe()
    assert "not shown" in found.describe()
    apart = fitted(material, Target("asked", 0.05), drop=0.01)
    assert apart.policy is None
    assert "Until then, ask the largest model alone." in apart.describe()


def test_bounds_that_do_not_hold_are_refused(material, classed):
    with pytest.raises(ConfigurationError, match="The longest recorded: 20 and 5"):
        fitted(material, Target("cost", 0.5), limits=QueryLimits((10, 20)))
    with pytest.raises(ConfigurationError, match="took longer than"):
        fitted(material, Target("latency", 0.5), limits=QueryLimits(timeout=0.5))
    with pytest.raises(ConfigurationError, match="`max_asked="):
        fitted(material, Target("cost", 0.5))
    priced = material_of([row.model_copy(update={"usd": 0.01}) for row in classed], models=("small", "large"))
    with pytest.raises(ConfigurationError, match="was recorded with its answers"):
        fitted(priced, Target("cost", 0.5), limits=MOST)
    for wrong in ({"tokens": (0, 5)}, {"timeout": 0.0}):
        with pytest.raises(ConfigurationError):
            QueryLimits(**wrong)


def test_what_the_recording_does_not_keep_is_asked_for(classed):
    models = ("small", "large")
    bare = material_of([row.model_copy(update={"reference": None}) for row in classed], models=models, texts=True)
    with pytest.raises(ConfigurationError, match="keeps no reference"):
        fitted(bare, Target("f1", 0.5, of="yes"))
    silent = material_of(
        [row.model_copy(update={"answer": "(not kept)"}) for row in classed], models=models, texts=True
    )
    with pytest.raises(ConfigurationError, match="keeps no answer"):
        fitted(silent, Target("f1", 0.5, of="yes"))
    with pytest.raises(ConfigurationError, match="has a signal 'p_x'"):
        fitted(material_of(classed, models=models), Target("asked", 0.5), signals=["p_x"])


def test_wanted_is_one_thing():
    with pytest.raises(ConfigurationError, match="nothing to promise"):
        Wanted((), None, 0.95)
    with pytest.raises(ConfigurationError, match="one price"):
        Wanted((Target("total", 1.0), Target("total", 2.0)), None, 0.95)
    with pytest.raises(ConfigurationError, match="the confidence of all"):
        Wanted((), Promise(0.1, 0.9), 0.95)
    both = Wanted((Target("asked", 0.5),), Promise(0.1), 0.95)
    promise, quality, caps = both.tested
    assert promise is not None
    assert promise.confidence == quality
    assert (1 - quality) + (1 - caps) == pytest.approx(0.05)
    alone = Wanted((Target("asked", 0.5),), None, 0.95)
    assert alone.tested == (None, 0.95, 0.95)


def test_bounds_of_chains_add_up(material):
    """Of all models but the largest together, and of the time of all."""
    bill = Costing.of(material.columns, material.models, None, PRICES, "usd")
    chain = (PolicyStage("small", {"p_t": 0.5}), PolicyStage("large"))
    limits = QueryLimits((40, 20), timeout=9.0)
    tops = limits.tops(material.columns, [chain, (PolicyStage("small"),)], "large", bill)
    small = (40 * 0.1 + 20 * 0.4) / 1e6
    assert tops["others"].tolist() == pytest.approx([small, small])
    assert float(tops["largest"]) == pytest.approx((40 * 2.0 + 20 * 8.0) / 1e6)
    assert tops["seconds"].tolist() == [18.0, 9.0]
