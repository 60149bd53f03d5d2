"""A promise for one of a grid of whole cascades, each of which has answered every question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError, Glimpse, Usage
from confcascade.bench.fitting import FitData, agreement, certify_grid, material_of, replayable
from confcascade.bench.recording import Row
from confcascade.graders import NormalizedMatch
from confcascade.guarantee import Equivalence, Promise, harm_bound, score_bound
from confcascade.policy import FittedStage, Policy, Stepwise
from confcascade.testing import ScriptedModel

GRID = ("both@0.9", "both@0.7", "both@0.5")
COSTS = {"both@0.9": 0.9, "both@0.7": 0.6, "both@0.5": 0.4, "large": 1.0}


def recording(n: int = 400, **wrong: Any) -> tuple[FitData, dict[tuple[str, str], float]]:
    """Answers of the grid and the large model, all right but where `wrong` says so (by name: questions), and costs."""
    rows, costs = [], {}
    for name in (*GRID, "large"):
        missed = set(wrong.get(name.replace("both@0.", "at"), ()))
        for i in range(n):
            costs[f"q{i}", name] = COSTS[name] * (1 + i % 3)
            rows.append(
                Row(
                    question=f"q{i}",
                    model=name,
                    prompt=f"What is {i}?",
                    answer=f"{name} errs" if i in missed else "right",
                    grade=float(i not in missed),
                    usage=Usage(20, 5),
                    latency_s=COSTS[name],
                )
            )
    return material_of(rows, models=(*GRID, "large"), texts=True), costs


def certified(n: int = 400, promise: Promise | None = None, options: Any = None, **wrong: Any) -> Any:
    material, costs = recording(n, **wrong)
    return certify_grid(
        material, GRID, promise or Promise(0.02), **{"costs": costs, "unit": "flops", **(options or {})}
    )


def test_the_cheapest_that_passed_is_chosen():
    """Each tested at the whole level, in order, by hand."""
    found = certified(at7=[1], at5=[1, 2, 3, 4, 6], large=[5])
    first, second, third = found.table

    assert [each.name for each in found.table] == list(GRID)
    assert (first.examined.harms, first.examined.benefits) == (0, 1)
    assert (second.examined.harms, second.examined.benefits) == (1, 1)
    assert second.examined.bound == score_bound(1, 1, 400, 0.05)
    assert (first.passed, second.passed, third.passed) == (True, True, False)
    assert third.examined.bound == score_bound(5, 1, 400, 0.05) > 0.02
    assert found.chosen is second
    assert second.saved == pytest.approx(0.4)
    assert found.interval == pytest.approx((0.4, 0.4))
    assert (found.unit, found.largest, found.largest_cost) == ("flops", "large", pytest.approx(1.9975))
    assert found.certificate.n == 400
    assert found.certificate.bound == second.examined.bound
    assert (found.why, found.more) == ("", None)


def test_the_best_in_hindsight_stands_beside_it():
    """What is within the target by its own look is no promise, and what it would save is told."""
    found = certified(at7=[1], at5=[1, 2, 3, 4, 6], large=[5])

    assert found.hindsight is found.table[2]
    assert "In hindsight the best was both@0.5, which saves 60.0%" in found.describe()
    assert "Chosen: both@0.7, which saves 40.0%" in found.describe()
    assert "Promised: accuracy at most 2.00 points" in found.describe()
    assert certified(at9=range(20), at7=range(20), at5=range(20)).hindsight is None


def test_the_first_failure_ends_the_search():
    """However good what comes after it: the order was fixed for that."""
    found = certified(at7=range(40))

    assert [each.passed for each in found.table] == [True, False, None]
    assert found.table[2].examined.bound <= 0.02
    assert found.chosen.name == "both@0.9"
    assert "both@0.5 400 0 0 +0.00%" in " ".join(found.describe().split())
    assert "not tested" in found.describe()


def test_nothing_is_promised_where_the_safest_fails():
    """Then it is said why, and how many more questions would do."""
    found = certified(at9=[1, 2, 3, 4, 5], at7=[1, 2], at5=[1, 2], large=[7])

    assert (found.chosen, found.certificate, found.interval) == (None, None, None)
    assert found.why.startswith("the safest configuration lost 5 answers and gained 1 of 400, so its loss may be")
    assert 100 < found.more < 4000
    assert f"About {found.more:,} more questions would do." in found.describe()
    assert "Ask large alone" in found.describe()
    assert certified(at9=range(20)).more is None
    assert certified(at9=[1, 2, 3, 4, 5], options={"plan": False}).more is None


def test_too_few_questions_are_told_apart():
    """From a loss."""
    found = certified(n=100)

    assert found.why.startswith(
        "100 questions are there, and even a configuration that never loses an answer takes 149"
    )
    assert 40 < found.more < 1500


def test_what_saves_nothing_is_not_sold():
    """Though it keeps the promise; and a saving that is not sure is said to be so."""
    material, costs = recording()
    dear = {key: value * (3 if key[1] != "large" else 1) for key, value in costs.items()}
    found = certify_grid(material, GRID, Promise(0.02), costs=dear, unit="usd")

    assert found.chosen is None
    assert found.why.startswith("of the configurations that keep the promise the cheapest, both@0.5, costs more than")
    assert found.more is None

    even = {
        key: 1.5 if key == ("q1", "large") else 1.4 if key[0] == "q2" and key[1] != "large" else 1.0 for key in costs
    }
    unsure = certify_grid(material, GRID, Promise(0.02), costs=even, unit="usd")
    assert unsure.chosen is not None
    assert "is not sure" in unsure.notes[-1]


def test_without_labels_answers_are_compared():
    """By a named rule, harms only."""
    material, costs = recording(at7=[1, 2], at5=range(10))
    same = agreement(material, NormalizedMatch())
    promise = Promise(0.02, equivalence=Equivalence("normalized"))
    found = certify_grid(material, GRID, promise, costs=costs, unit="flops", same=same)

    assert [each.examined.harms for each in found.table] == [0, 2, 10]
    assert found.table[1].examined.bound == harm_bound(2, 400, 0.05)
    assert found.chosen.name == "both@0.7"
    assert found.certificate.equivalence == "normalized"


def test_another_test_may_be_fixed_beforehand():
    """By name."""
    found = certified(at9=[1], options={"test": "score"})

    assert found.table[0].examined.bound == score_bound(1, 0, 400, 0.05)


def test_graded_answers_are_bet_on():
    """Where grades lie between 0 and 1."""
    material, costs = recording(600)
    graded = material.columns.grades.copy()
    graded[:5, 0] = 0.5
    changed = FitData(
        **{**vars(material), "columns": type(material.columns)(**{**vars(material.columns), "grades": graded})}
    )
    found = certify_grid(changed, GRID, Promise(0.05), costs=costs, unit="flops")

    assert {each.examined.test for each in found.table} == {"betting"}
    assert found.chosen.name == "both@0.5"


def test_measured_seconds_count_by_themselves():
    """Tokens of two models do not."""
    material, _ = recording()

    found = certify_grid(material, GRID, Promise(0.02), unit="seconds")
    assert found.chosen.saved == pytest.approx(0.6)
    with pytest.raises(ConfigurationError, match="tokens of a small and a large model make no sum"):
        certify_grid(material, GRID, Promise(0.02))


@pytest.mark.parametrize(
    ("order", "options", "why"),
    [
        ((), {}, "`order` lists configurations, each once"),
        ("both@0.9", {}, "`order` lists configurations, each once"),
        (("both@0.9", "both@0.9"), {}, "each once"),
        (("both@0.9", "large"), {}, "without the last"),
        (("both@0.8",), {}, r"'both@0\.8' is not in the recording"),
        (GRID, {"unit": None}, "in which unit"),
        (GRID, {"unit": "euros"}, "in which unit"),
        (GRID, {"same": np.ones((400, 4), bool)}, "go together"),
    ],
)
def test_what_cannot_be_tested_is_refused(order: Any, options: dict[str, Any], why: str) -> None:
    """With the way out."""
    material, costs = recording()
    with pytest.raises(ConfigurationError, match=why):
        certify_grid(material, order, Promise(0.02), **{"costs": costs, "unit": "flops", **options})


def test_every_cost_must_be_known():
    """One that is missing is not taken for nothing."""
    material, costs = recording()
    del costs["q3", "both@0.7"]
    with pytest.raises(ConfigurationError, match=r"cost of 1 answers is not known, .* 'both@0.7' to question\s+'q3'"):
        certify_grid(material, GRID, Promise(0.02), costs=costs, unit="flops")
    free = {key: 0.0 if key[1] == "large" else value for key, value in recording()[1].items()}
    with pytest.raises(ConfigurationError, match="costs nothing"):
        certify_grid(material, GRID, Promise(0.02), costs=free, unit="flops")
    with pytest.raises(ConfigurationError, match="needs a target"):
        certify_grid(material, GRID, Promise(None), costs=recording()[1], unit="flops")


def test_the_chosen_one_is_kept_in_a_file(tmp_path: Path) -> None:
    """With its threshold, its steps and its certificate; a cascade that decides by whole answers refuses it."""
    material, costs = recording(at7=[1], at5=[1, 2, 3, 4, 6], large=[5])
    found = certify_grid(material, GRID, Promise(0.02), costs=costs, unit="flops")
    glimpse = {"glimpse": dict(Glimpse().identity())}
    stages = [
        FittedStage(model="small", identities=glimpse, thresholds={"glimpse": 0.7}),
        FittedStage(model="large"),
    ]
    found.policy(material, stages, Stepwise(max_steps=20)).save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")

    assert policy.stepwise == Stepwise(delimiter="\n\n", max_steps=20, final="author", configuration="both@0.7")
    assert policy.certificates == [found.certificate]
    assert (policy.saving.unit, policy.saving.share, policy.saving.spared) == ("flops", pytest.approx(0.4), None)
    assert policy.made_from.questions == 400
    assert "Policy: small → large, step by step\n  small writes the steps with glimpse >= 0.7" in policy.describe()
    models = [ScriptedModel("small"), ScriptedModel("large")]
    with pytest.warns(UserWarning, match="not known here"):
        small, large = policy.make_stages(models, signals=[Glimpse()], stepwise=True)
    assert (small.thresholds, large.thresholds) == ({"glimpse": 0.7}, {})
    with pytest.raises(ConfigurationError, match=r'decides step by step, .* use mode="stepwise"'):
        policy.make_stages(models, signals=[Glimpse()])
    with pytest.raises(ConfigurationError, match=r'decides by the whole answer, .* use mode="query"'):
        policy.model_copy(update={"stepwise": None}).make_stages(models, signals=[Glimpse()], stepwise=True)
    with pytest.raises(ConfigurationError, match="cannot be replayed"):
        replayable(material.columns, policy)
    with pytest.raises(ConfigurationError, match="There is no policy, for nothing can be promised: the safest"):
        certified(at9=range(20)).policy(material, stages, Stepwise())
