"""A promise for each group apart, and the largest model where nothing passes."""

from dataclasses import replace

import numpy as np
import pytest
from confcascade import Cascade, ConfigurationError, Usage
from confcascade.bench.fitting import Fitted, NotCertified, describe_fit, fit, material_of, realised, replayable
from confcascade.bench.fitting.by_group import testable as can_pass
from confcascade.bench.recording import PlaybackModel, RecordedScore, Row
from confcascade.bench.replay import PolicyStage, replay
from confcascade.guarantee import Promise, fewest_examples, passes
from confcascade.policy import Policy
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from .conftest import SIZES, made_rows

PAIR = {name: SIZES[name] for name in ("small", "large")}
# by group: how many questions, and how often the small model is right where it is surest and where it is least sure
GROUPS = {"easy": (700, 1.0, 0.9), "hard": (700, 0.99, 0.1), "rare": (30, 1.0, 1.0), "vain": (400, 0.0, 0.0)}


def drawn(groups=None, seed=0, **changes):
    """Rows of two models; the larger is always right."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, (n, best, worst) in (groups or GROUPS).items():
        score = rng.random(n)
        right = rng.random(n) < worst + (best - worst) * score
        for i in range(n):
            for model, grade in (("small", float(right[i])), ("large", 1.0)):
                row = Row(
                    question=f"{group} {i} of {seed}",
                    model=model,
                    group=group,
                    prompt=f"What is {i} in {group} of {seed}?",
                    answer="yes" if grade else "no",
                    grade=grade,
                    scores={"p_t": RecordedScore(value=float(score[i]))},
                    usage=Usage(20, 5),
                    prompt_version="v1",
                )
                rows.append(row.model_copy(update=changes))
    return rows


@pytest.fixture(scope="module")
def grouped():
    return drawn()


@pytest.fixture(scope="module")
def result(grouped):
    found = fit(material_of(grouped, architectures=PAIR), Promise(0.05), per_group=True, architectures=PAIR)
    assert isinstance(found, Fitted)
    return found


def test_each_group_has_its_own_thresholds(result):
    """Groups go as far as their own questions prove; what cannot be promised is asked of the largest model."""
    policy, alone = result.policy, (PolicyStage("large"),)
    assert {group.name: group.stages == alone for group in result.groups} == {
        "easy": False,
        "hard": False,
        "rare": True,
        "vain": True,
    }
    easy, hard = (policy.groups[name].stages[0].thresholds["p_t"] for name in ("easy", "hard"))
    assert easy < hard - 0.1
    assert {each.group for each in policy.certificates} == {"easy", "hard"}
    # of the rare nothing could be shown, whatever it is: the error is divided over the other three
    assert {each.groups for each in policy.certificates} == {3}
    assert [stage.model for stage in policy.stages] == ["large"]


def test_certificates_count_each_groups_own_questions(grouped, result):
    """n, harms and saving of a group are those of a replay on its questions alone; the whole saving is their mean."""
    material = material_of(grouped, architectures=PAIR)
    spent = alone = 0.0
    for group in result.groups:
        part = material.take(np.flatnonzero(material.columns.groups == group.name))
        own = result.policy.for_group(group.name)
        columns, stages = replayable(part.columns, own)
        played = replay(columns, stages, architectures=PAIR)
        theirs = replay(columns, [PolicyStage("large")], architectures=PAIR)
        spent, alone = spent + played.cost.flops.sum(), alone + theirs.cost.flops.sum()
        assert own.saving.share == pytest.approx(1 - played.cost.flops.sum() / theirs.cost.flops.sum())
        if group.certificate is not None:
            assert group.certificate.n == len(columns)
            assert group.certificate.harms == (theirs.grade > played.grade).sum()
            assert passes(theirs.grade - played.grade, replace(Promise(0.05), groups=3), "score")
            assert own.certificates == [group.certificate]
        else:
            assert own.certificates == []
    saving = result.policy.saving
    assert saving.share == pytest.approx(1 - spent / alone)
    assert saving.low < saving.share < saving.high


def test_a_group_goes_no_further_than_its_questions_prove(grouped, result):
    """The next policy of the path fails in this group, or saves less."""
    for group in result.groups:
        failed = [each for each in group.tested if not each.certified]
        certified = [each for each in group.tested if each.certified]
        assert len(failed) <= 1
        if group.certificate is not None:
            assert max(certified, key=lambda each: each.saved).policy == group.stages


def test_what_is_missing_is_told_of_each_group(grouped, result):
    """How many more questions would do; with about so many, they do."""
    by_name = {group.name: group for group in result.groups}
    rare = by_name["rare"]
    assert "30 questions for the proof" in rare.why
    assert rare.more > 0
    text = describe_fit(result)
    assert "Groups that have a promise, 2 of 4:" in text
    assert f"About {rare.more:,} more questions of this group would do" in text
    assert by_name["vain"].why.startswith("of the policies that keep the promise the cheapest")
    more = {**GROUPS, "rare": (30 + 3 * rare.more, 1.0, 1.0)}
    again = fit(material_of(drawn(more), architectures=PAIR), Promise(0.05), per_group=True, architectures=PAIR)
    assert {group.name for group in again.groups if group.certificate} >= {"rare"}


def test_nothing_is_promised_of_any_group():
    few = {"first": (30, 1.0, 0.9), "second": (40, 1.0, 0.9)}
    nothing = fit(material_of(drawn(few), architectures=PAIR), Promise(0.05), per_group=True, architectures=PAIR)
    assert isinstance(nothing, NotCertified)
    assert [group.name for group in nothing.groups] == ["first", "second"]
    assert nothing.more == min(group.more for group in nothing.groups)
    text = describe_fit(nothing)
    assert "of the 2 groups there is none in which a policy passed" in text
    for group in nothing.groups:
        assert f"  {group.name}: {group.why}. About {group.more:,} more questions of this group would do" in text
    assert "No number" not in text


def test_live_decisions_are_those_of_the_replay(grouped, result, tmp_path):
    """Saved, read back, and asked by the group: every question is answered by the model that the replay says."""
    path = tmp_path / "policy.json"
    result.policy.save(path)
    policy = Policy.load(path)
    assert policy.model_dump() == result.policy.model_dump()
    material = material_of(grouped, architectures=PAIR)
    models = [
        PlaybackModel(name, [row.model_copy(update={"question": row.prompt}) for row in grouped]) for name in PAIR
    ]
    signals = {model.name: [model.signal("p_t")] for model in models}
    for name in policy.groups:
        own = policy.for_group(name)
        columns, stages = replayable(material.columns.take(np.flatnonzero(material.columns.groups == name)), own)
        played = replay(columns, stages)
        with pytest.warns(UserWarning, match="not known here"):
            cascade = Cascade.of(models=models, policy=policy, group=name, signals=signals)
        with pytest.warns(UserWarning, match="not known here"):
            assert Cascade(own.make_stages(models, signals=signals)).policy_id == cascade.policy_id
        prompts = {row.question: row.prompt for row in grouped}
        for i, question in list(enumerate(columns.questions))[::15]:
            assert cascade.run(prompts[question]).record.answered_by == stages[played.stage[i]].model


def test_new_questions_are_judged_by_their_own_groups(result):
    fresh = material_of(drawn({**GROUPS, "rare": (200, 1.0, 1.0)}, seed=1), architectures=PAIR)
    came = realised(result.policy, fresh, architectures=PAIR, only_new=True)
    lost = spent = alone = 0.0
    for name in GROUPS:
        part = fresh.take(np.flatnonzero(fresh.columns.groups == name))
        own = realised(result.policy.for_group(name), part, architectures=PAIR)
        assert came.groups[name] == replace(own, seen=None)
        lost += own.loss * own.questions
        columns, stages = replayable(part.columns, result.policy.for_group(name))
        spent += replay(columns, stages, architectures=PAIR).cost.flops.sum()
        alone += replay(columns, [PolicyStage("large")], architectures=PAIR).cost.flops.sum()
    assert came.loss == pytest.approx(lost / came.questions)
    assert came.saved == pytest.approx(1 - spent / alone)
    assert came.groups["rare"].loss == 0 == came.groups["rare"].saved
    assert any("in each of 2 groups" in line for line in came.describe(result.policy))
    strange = material_of(drawn({"law": (20, 1.0, 1.0)}), architectures=PAIR)
    with pytest.raises(ConfigurationError, match=r"not fitted on a group 'law'.* It knows easy, hard, rare, vain"):
        realised(result.policy, strange, architectures=PAIR)


def test_a_path_is_chosen_for_all_groups_together():
    """With two signals and three models some questions choose: one path, thresholds by group."""
    rows = made_rows(3000, models=("small", "medium", "large"))
    result = fit(material_of(rows, architectures=SIZES), Promise(0.1), per_group=True, architectures=SIZES)
    assert isinstance(result, Fitted)
    assert {contender.rule for contender in result.tested} == {result.rule}
    even, odd = result.policy.certificates
    assert (even.group, odd.group, even.groups) == ("even", "odd", 2)
    assert even.n + odd.n == len(result.parts.certify) < 3000


def test_a_cap_on_cost_is_one_policy_for_all_groups(grouped):
    """Of which the loss is bounded in each."""
    result = fit(
        material_of(grouped, architectures=PAIR), Promise(None), max_cost=0.7, per_group=True, architectures=PAIR
    )
    assert isinstance(result, Fitted)
    assert not result.policy.groups
    assert [each.group for each in result.policy.certificates] == sorted(GROUPS)
    assert {each.groups for each in result.policy.certificates} == {4}


def test_every_question_needs_a_group(grouped):
    rows = [*grouped, *drawn({"": (5, 1.0, 1.0)})]
    with pytest.raises(ConfigurationError, match="some have none"):
        fit(material_of(rows, architectures=PAIR), Promise(0.05), per_group=True, architectures=PAIR)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 400), min_size=1, max_size=12))
def test_the_error_is_divided_over_what_can_pass(sizes):
    """By brute force: as many groups as pass together if they lose nothing; all, where none does."""
    promise = Promise(0.05)
    counts = [
        k
        for k in range(1, len(sizes) + 1)
        if sum(n >= fewest_examples(replace(promise, groups=k)) for n in sizes.values()) >= k
    ]
    found = can_pass(sizes, promise, "harms")
    assert found == [name for name in sizes if name in found]
    if not counts:
        assert found == list(sizes)
        return
    assert len(found) == max(counts)
    assert min(sizes[name] for name in found) >= max([n for name, n in sizes.items() if name not in found], default=0)


def test_no_group_is_broken_in_more_than_a_twentieth_of_the_samples():
    """40 samples of known groups: how often any certified group loses more than was promised.

    `benchmarks/per_group.py` draws more.
    """
    rng, drop = np.random.default_rng(3), 0.1
    population = {"even": (3000, 0.98, 0.55), "odd": (3000, 0.9, 0.4), "flat": (3000, 0.9, 0.9)}
    everything = material_of(drawn(population, seed=5), architectures=PAIR)
    columns = everything.columns
    at = {name: np.flatnonzero(columns.groups == name) for name in population}
    score, lost = columns.signal("small", "p_t").values, 1 - columns.grades[:, columns.index("small")]

    def loses(policy, name):
        (first, *rest) = policy.groups[name].stages
        kept = score[at[name]] >= first.thresholds["p_t"] if rest else np.full(len(at[name]), first.model == "small")
        return float((kept * lost[at[name]]).mean())

    broken, promised = 0, 0
    for _ in range(40):
        rows = np.concatenate([rng.choice(own, size=150) for own in at.values()])
        result = fit(everything.take(np.sort(rows)), Promise(drop), per_group=True, architectures=PAIR)
        if isinstance(result, Fitted):
            promised += len(result.policy.certificates)
            broken += any(loses(result.policy, name) > drop for name in population)
    assert promised > 40
    assert broken <= binom.ppf(0.999, 40, 0.05)
