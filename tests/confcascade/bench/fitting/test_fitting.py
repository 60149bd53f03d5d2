"""From a recording to a promise, or to a refusal that says why."""

import re

import numpy as np
import pytest
from confcascade import Cascade, ConfigurationError, Message, Request, TiesByLot, Usage, Verbalized
from confcascade.bench.fitting import (
    Fitted,
    NotCertified,
    agreement,
    describe_fit,
    fit,
    material_of,
    realised,
    replayable,
    split_by_key,
)
from confcascade.bench.fitting.candidates import Candidates, candidates, derive, fixed_thresholds, lone_path
from confcascade.bench.fitting.describe import told
from confcascade.bench.fitting.splitting import SHARES
from confcascade.bench.recording import Columns, PlaybackModel, RecordedScore, Row
from confcascade.bench.replay import PolicyStage, replay
from confcascade.graders import NormalizedMatch
from confcascade.guarantee import Equivalence, Promise
from confcascade.policy import Policy
from confcascade.signals.ties_by_lot import LOT, drawn, lot_of
from confcascade.testing import ScriptedModel
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from .conftest import SIZES, made_rows

FIVE = Promise(0.05)
GRID = [
    *(1 / (1 + np.exp(-np.arange(14, -14, -0.02)))),
    *np.arange(101) / 100,
    *(float(drawn(u / 100, t / 50)) for u in range(101) for t in range(50)),
]


def fitted(rows, promise=FIVE, **options):
    return fit(material_of(rows, architectures=SIZES), promise, architectures=SIZES, **options)


@pytest.fixture(scope="module")
def pair(rows):
    result = fitted(rows)
    assert isinstance(result, Fitted)
    return result


# ---------------------------------------------------------------------- what is promised


def test_a_policy_that_saves_and_holds(pair):
    """On thousands of new questions the promise holds, and the saving is the one that was told."""
    fresh = material_of(made_rows(6000, seed=7, prefix="new"), architectures=SIZES)
    came = realised(pair.policy, fresh, architectures=SIZES, only_new=True)

    assert came.loss <= 0.05
    assert pair.policy.saving.low - 0.02 <= came.saved <= pair.policy.saving.high + 0.02
    assert came.saved > 0.1
    assert came.seen == 0


def test_the_certificate_counts_what_the_replay_shows(rows, pair):
    """n, harms, benefits and saving are those of a plain replay of the policy on the questions of the proof."""
    material = material_of(rows, architectures=SIZES).take(pair.parts.certify)
    columns, stages = replayable(material.columns, pair.policy)
    played = replay(columns, stages, architectures=SIZES)
    alone = replay(columns, [PolicyStage("large")], architectures=SIZES)
    (certificate,) = pair.policy.certificates

    assert certificate.n == len(columns)
    assert certificate.harms == (alone.grade > played.grade).sum()
    assert certificate.benefits == (alone.grade < played.grade).sum()
    assert pair.policy.saving.share == pytest.approx(1 - played.cost.flops.sum() / alone.cost.flops.sum())
    assert pair.policy.saving.spared == pytest.approx((played.decision[:, -1] == -1).mean())


def test_the_live_cascade_decides_as_was_certified(rows, pair, tmp_path):
    """Saved, read back and made of live models, the policy decides every question as its replay does."""
    path = tmp_path / "policy.json"
    pair.policy.save(path)
    policy = Policy.load(path)
    assert policy.model_dump() == pair.policy.model_dump()
    material = material_of(rows, architectures=SIZES)
    columns, stages = replayable(material.columns, policy)
    played = replay(columns, stages, architectures=SIZES)
    by_question = {row.question: row.prompt for row in rows}
    models = [PlaybackModel(name, [row.model_copy(update={"question": row.prompt}) for row in rows]) for name in SIZES
              if name != "medium"]  # fmt: skip
    signals = {model.name: [model.signal(name) for name in ("p_ik", "p_t")] for model in models}
    with pytest.warns(UserWarning, match="the build of 'small'"):
        cascade = Cascade(policy.make_stages(models, signals=signals))

    for i, question in list(enumerate(columns.questions))[::10]:
        record = cascade.run(by_question[question]).record
        assert record.answered_by == stages[played.stage[i]].model


def stating(n: int, *, seed: int = 3) -> list[Row]:
    """A small model that says 0.9 of six answers of seven, and of 19 in 20 of these is right, as the large one is."""
    rng = np.random.default_rng(seed)
    sure, right = rng.random(n) < 6 / 7, rng.random(n)
    found = []
    for i in range(n):
        prompt = f"What is {i}?"
        said = drawn(0.9 if sure[i] else 0.6, lot_of(Request((Message("user", prompt),))))
        grades = {"small": float(right[i] < (0.94 if sure[i] else 0.4)), "large": 1.0}
        for model, grade in grades.items():
            scores = {"stated": RecordedScore(value=said)} if model == "small" else {}
            found.append(Row(question=f"{i}", model=model, prompt=prompt, answer="x", grade=grade, scores=scores,
                             usage=Usage(20, 5)))  # fmt: skip
    return found


def test_a_part_of_equal_scores_is_promised(tmp_path):
    """Where all answers that score the same are too many: some are kept, live the same ones as on the recording."""
    rows = stating(1500)
    plain = [row.model_copy(update={"scores": {name: RecordedScore(value=round(each.value, 2))
                                               for name, each in row.scores.items()}}) for row in rows]  # fmt: skip
    refused = fitted(plain, Promise(0.03))
    assert isinstance(refused, NotCertified)
    common = sum(each.value == 0.9 for row in plain for each in row.scores.values()) / 1500
    assert f"{common:.0%} of the scores small.stated are 0.9, and a threshold keeps all" in describe_fit(refused)
    result = fitted(rows, Promise(0.03))
    assert isinstance(result, Fitted)
    threshold = result.policy.stages[0].thresholds["stated"]
    assert 0 < 0.9 - threshold < LOT or 0 < threshold - 0.9 < LOT
    assert f"stated >= {threshold:.11g}" in result.policy.describe()
    columns, stages = replayable(material_of(rows).columns, result.policy)
    played = replay(columns, stages, architectures=SIZES)
    assert 0.2 < (played.stage == 0).mean() < 0.7

    stated = {row.prompt: round(row.scores["stated"].value, 2) for row in rows if row.model == "small"}
    models = [
        ScriptedModel(
            "small", lambda request: f"x\n\nConfidence: {stated[request.messages[0].content.splitlines()[0]]}"
        ),
        ScriptedModel("large", lambda request: "x"),
    ]
    with pytest.warns(UserWarning, match="not known here"):
        cascade = Cascade(result.policy.make_stages(models, signals=[TiesByLot(Verbalized())]))
    for i, question in list(enumerate(columns.questions))[::30]:
        assert cascade.run(f"What is {question}?").record.answered_by == stages[played.stage[i]].model


@given(st.lists(st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0]) | st.floats(0, 1), min_size=1, max_size=30), st.booleans())
def test_thresholds_are_the_fixed_ones_that_tell_scores_apart(scores: list[float], lots: bool):
    """Whatever any threshold of the fixed grid keeps, one of these keeps, and no two of them keep the same."""
    known = np.array(scores)
    if lots:
        known = drawn(known, np.random.default_rng(len(scores)).random(len(scores)))
    found = fixed_thresholds(known)
    kept, every = ((known >= np.array(each)[:, None]).sum(axis=1).tolist() for each in (found, GRID))  # they are nested

    assert set(found) <= set(GRID)
    assert found == sorted(found, reverse=True)
    assert set(every) == set(kept)
    assert len(set(kept)) == len(kept)


def test_every_part_does_its_own_work(rows, pair):
    """Grades of the proof chose nothing: with these turned round, the same policies are tested, and fail."""
    questions = material_of(rows).columns.questions
    proof = {questions[i] for i in pair.parts.certify}
    turned = [
        row.model_copy(update={"grade": 0.0}) if row.question in proof and row.model == "small" else row for row in rows
    ]
    result = fitted(turned)

    assert isinstance(result, NotCertified)
    assert result.tested[0].policy == pair.tested[0].policy


def test_the_least_loss_that_a_share_of_the_cost_buys(rows):
    result = fitted(rows, Promise(None), max_cost=0.7)

    assert isinstance(result, Fitted)
    (certificate,) = result.policy.certificates
    assert certificate.max_drop is None
    assert result.policy.saving.share == pytest.approx(0.3, abs=0.06)
    assert certificate.promised == certificate.bound > certificate.loss


def test_without_labels_agreement_is_promised(rows):
    """Grades are not looked at: without any, the result is the same."""
    ungraded = [row.model_copy(update={"grade": None}) for row in rows]
    results = []
    for each in (rows, ungraded):
        material = material_of(each, graded=False, texts=True, architectures=SIZES)
        same = agreement(material, NormalizedMatch())
        results.append(
            fit(material, Promise(0.05, equivalence=Equivalence("normalized")), same=same, architectures=SIZES)
        )
    with_grades, without = results

    assert isinstance(without, Fitted)
    assert without.stages == with_grades.stages
    (certificate,) = without.policy.certificates
    assert (certificate.kind, certificate.benefits) == ("agreement", 0)
    assert "differ from the largest model's by 'normalized'" in describe_fit(without)


def test_no_answer_is_not_the_largest_models(rows):
    """A model that fails on a fifth of the questions, and else agrees, cannot stand alone at 10 %."""
    said = [
        row.model_copy(update={"answer": "", "error": "away", "grade": None, "scores": {}})
        if row.model == "small" and int(row.question[1:]) % 5 == 0
        else row.model_copy(
            update={"answer": "no" if row.model == "small" and int(row.question[1:]) % 50 == 1 else "yes"}
        )
        for row in rows
    ]
    material = material_of(said, graded=False, texts=True, architectures=SIZES)
    same = agreement(material, NormalizedMatch())
    promise = Promise(0.1, equivalence=Equivalence("normalized"))
    result = fit(material, promise, same=same, architectures=SIZES)
    assert isinstance(result, Fitted)
    assert [stage.model for stage in result.stages] == ["small", "large"]
    alone = fit(
        material, promise, same=same, architectures=SIZES, signals=[], parts=result.parts
    )  # without a signal there is nothing else to try
    assert isinstance(alone, NotCertified)
    (failed,) = alone.tested
    lost = ~same[result.parts.certify, material.columns.index("small")]
    assert failed.policy == (PolicyStage("small"),)
    assert failed.examined[0].harms == int(lost.sum())


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_small_model_that_is_always_right_does_alone(rows, wrong):
    """There is no signal to judge, and none is needed; the grader is in question only if it never says no."""
    large = [row.model_copy(update={"grade": 1.0}) for row in rows if row.model == "large"]
    small = [
        row.model_copy(update={"grade": float(i >= wrong)})
        for i, row in enumerate(row for row in rows if row.model == "small")
    ]
    result = fitted([*small, *large], Promise(0.01))
    assert isinstance(result, Fitted)
    assert "Policy: ask small alone." in describe_fit(result)
    assert result.policy.certificates[0].harms <= wrong
    assert result.policy.saving.share > 0.9
    assert ("CHECK THE GRADER" in describe_fit(result)) == (wrong == 0)
    few = fitted([row for row in [*small, *large] if int(row.question[1:]) < 300], Promise(0.01))
    assert isinstance(few, NotCertified)
    assert "even a policy that never loses an answer takes 299" in few.why


@pytest.mark.parametrize("agreeing", [True, False])
def test_without_labels_nothing_is_right(rows, agreeing):
    """A model that always agrees may do alone; one that never does is named; neither by words of right and graders."""
    said = [
        row.model_copy(update={"grade": None, "answer": "yes" if agreeing or row.model == "large" else "no"})
        for row in rows
    ]
    material = material_of(said, graded=False, texts=True, architectures=SIZES)
    same = agreement(material, NormalizedMatch())
    promise = Promise(0.01, equivalence=Equivalence("normalized"))
    if agreeing:
        result = fit(material, promise, same=same, architectures=SIZES)
        assert isinstance(result, Fitted)
        text = describe_fit(result)
        assert "Policy: ask small alone." in text
        assert "agreeing and 0 differing answers have scores: too few to tell" in text
    else:
        with pytest.raises(ConfigurationError, match="are other than the largest model's: of one class only") as caught:
            fit(material, promise, same=same, architectures=SIZES)
        text = str(caught.value)
    assert not re.search("right|wrong|grader", text, re.IGNORECASE)


@pytest.mark.parametrize("labels", [True, False])
def test_a_signal_whose_top_score_is_common_keeps_what_has_it(rows, labels):
    """Three quarters of the answers score exactly 1, and nearly all of these are right: keep them."""
    rng = np.random.default_rng(1)
    large, small = ([row for row in rows if row.model == model] for model in ("large", "small"))
    made = []
    for ours, theirs in zip(small, large, strict=True):
        good = rng.random() < 0.85
        sure = rng.random() < (0.87 if good else 0.02)
        scores = {"p_true": RecordedScore(value=1.0 if sure else float(0.99 * rng.random()))}
        made.append(ours.model_copy(update={"grade": float(good), "answer": "yes" if good else "no", "scores": scores}))
        made.append(theirs.model_copy(update={"grade": 1.0, "answer": "yes"}))
    material = material_of(made, graded=labels, texts=not labels, architectures=SIZES)
    same = None if labels else agreement(material, NormalizedMatch())
    rule = None if labels else Equivalence("normalized")
    result = fit(material, Promise(0.02, equivalence=rule), same=same, architectures=SIZES)
    assert isinstance(result, Fitted)
    health = result.health["small", "p_true"]
    assert health.mode_share > 0.6
    assert "of its scores are 1" in describe_fit(result)
    kept = replay(*replayable(material.columns, result.policy), architectures=SIZES).stage == 0
    assert kept[material.columns.signal("small", "p_true").values == 1].all()
    assert result.policy.saving.share > 0.6


def dear(rows, heavy, every):
    """The small model is right where it is sure; some answers are of many thousand tokens."""
    return [
        row.model_copy(update={"usage": Usage(20, heavy)})
        if row.model == "small" and int(row.question[1:]) % every == 0
        else row
        for row in rows
    ]


def test_a_policy_that_surely_costs_more_is_not_sold(rows):
    """The questions that order policies have short answers by chance; those of the proof show what they cost."""
    parts = split_by_key(material_of(rows).keys, shares=SHARES["signals"])
    questions = material_of(rows).columns.questions
    proof = {questions[i] for i in parts.certify}
    costly = [
        row.model_copy(update={"usage": Usage(20, 2000)}) if row.model == "small" and row.question in proof else row
        for row in rows
    ]
    result = fitted(costly)
    assert isinstance(result, NotCertified)
    assert re.search(
        r"costs more than large alone: -\S+% saved on the questions of the proof, 95 % interval", result.why
    )
    assert result.more is None
    assert any(runner.certified for runner in result.tested)


def test_of_the_certified_the_one_that_saves_most_is_taken(rows):
    """Over all questions; where it may save nothing, a note says so, and the interval is that of all certified."""
    sure = []
    for every, heavy, seed in ((60, 3000, 3), (100, 1500, 3), (40, 20_000, 1)):
        result = fitted(dear(rows, heavy, every), seed=seed)
        if not isinstance(result, Fitted):
            continue
        certified = [runner for runner in result.tested if runner.certified]
        (ours,) = [runner for runner in certified if runner.policy == result.stages]
        assert ours.saved == max(runner.saved for runner in certified)
        saving = result.policy.saving
        assert saving.share > 0
        assert (saving.low < 0) == ("Whether this policy saves anything is not sure" in describe_fit(result))
        sure.append(saving.low >= 0)
    assert sure


def test_pairs_chains_and_single_models_compete(chain_rows):
    """A middle model that is better than the largest is used alone; one that is worse and dearer is skipped."""
    best = [row.model_copy(update={"grade": 1.0 - (hash_of(row) % 50 == 0)}) if row.model == "medium" else row
            for row in chain_rows]  # fmt: skip
    alone = fitted(best)
    assert isinstance(alone, Fitted)
    assert alone.stages[-1].model == "medium"
    assert alone.policy.models == ["small", "medium", "large"]

    dear = {**SIZES, "medium": SIZES["large"]}
    bad = [row.model_copy(update={"grade": row.grade * (hash_of(row) % 3 == 0)}) if row.model == "medium" else row
           for row in chain_rows]  # fmt: skip
    skipped = fit(material_of(bad, models=("small", "medium", "large")), FIVE, architectures=dear)
    assert isinstance(skipped, Fitted)
    assert [stage.model for stage in skipped.stages] == ["small", "large"]
    assert "not asked at all: medium" in describe_fit(skipped)


def test_a_gate_may_skip_the_middle(chain_rows, tmp_path):
    """Such policies are among those tried; one decides live as replayed."""
    result = fitted(chain_rows)
    assert isinstance(result, Fitted)
    small = result.policy.stages[0].model_copy(update={"model": "small", "build": None, "derived": [],
                                                       "thresholds": {"p_ik": 0.6, "p_t": 0.8},
                                                       "skip": {"p_ik": 0.6}})  # fmt: skip
    medium = small.model_copy(update={"model": "medium", "build": None, "thresholds": {"p_t": 0.8}, "skip": {}})
    large = result.policy.stages[-1]
    made = result.policy.model_copy(update={"stages": [small, medium, large]})
    made.save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    assert "ask large at once if its p_ik < 0.6" in policy.describe()
    columns, stages = replayable(material_of(chain_rows, architectures=SIZES).columns, policy)
    played = replay(columns, stages)
    models = [PlaybackModel(name, chain_rows) for name in SIZES]
    signals = {model.name: [model.signal(name) for name in ("p_ik", "p_t")] for model in models}
    with pytest.warns(UserWarning, match="not known here"):
        cascade = Cascade(policy.make_stages(models, signals=signals))
    for i in range(0, len(columns), 25):
        record = cascade.run(columns.questions[i]).record
        assert [each.model for each in record.attempts] == [
            stage.model for j, stage in enumerate(stages) if played.decision[i, j] != -1
        ]
    assert (played.decision[:, 1] == -1).any()


def hash_of(row):
    return int(row.question[1:]) * 7919


def test_a_fit_is_the_same_twice(rows, pair):
    again = fitted(rows)
    assert again.policy == pair.policy
    assert fitted(list(reversed(rows))).stages == pair.stages


def test_another_seed_is_another_split(pair, rows):
    other = fitted(rows, seed=1)
    assert set(other.parts.certify) != set(pair.parts.certify)


# ---------------------------------------------------------------------- what is refused


def test_too_few_rows_say_how_many_more(rows):
    """Also what collecting these costs, as the recorded rows did."""
    few = fitted([row for row in rows if int(row.question[1:]) < 150], Promise(0.01))

    assert isinstance(few, NotCertified)
    assert few.n < 299
    assert few.more > 299 / SHARES["signals"]["certify"] - 150
    assert few.tokens == pytest.approx(few.more * 50)
    assert few.seconds == pytest.approx(few.more * 1.0)
    assert "even a policy that never loses an answer takes 299" in describe_fit(few)
    assert f"About {few.more:,} more would do" in describe_fit(few)


def test_what_would_do_does(rows):
    """With as many questions as were named, a promise is found in most draws."""
    few = fitted(rows[:300] + rows[1500:1800], Promise(0.01))
    assert isinstance(few, NotCertified)
    assert few.more is not None
    found = [isinstance(fitted(made_rows(300 + few.more, seed=seed), Promise(0.01)), Fitted) for seed in range(3)]
    assert sum(found) >= 2


def test_more_questions_are_named_for_a_policy_that_is_worth_them():
    """Not for one that keeps hardly an answer, though that takes the fewest."""
    few = fitted(made_rows(80), Promise(0.02), signals=["p_t"])

    assert isinstance(few, NotCertified)
    assert few.more > 100
    assert few.saved > 0.1
    assert f"saves about {few.saved:.0%}" in describe_fit(few)


def changed(rows, model, **updates):
    return [row.model_copy(update=updates) if row.model == model else row for row in rows]


def with_score(rows, make):
    return [row.model_copy(update={"scores": {"p_t": RecordedScore(value=make(row))}}) for row in rows]


REFUSED = {
    "mixed prompts": (
        lambda rows: rows[:100] + changed(rows[100:], "small", prompt_version="v2"),
        r"mixes prompts of 'small': v2 \(1,400 rows\) and v1 \(100 rows\)",
    ),
    "mixed builds": (
        lambda rows: rows[:100] + changed(rows[100:], "small", build="other"),
        r"mixes builds of 'small': other \(1,400 rows\)",
    ),
    "labels all alike": (
        lambda rows: [row.model_copy(update={"grade": 0.0}) for row in rows],
        "Every grade in the recording is 0: labels that are all alike",
    ),
    "one class only": (
        lambda rows: changed(rows, "small", grade=0.0),
        "answers of 'small' that could choose a threshold are wrong: of one class only.*Look at the grader",
    ),
    "one model": (lambda rows: [row for row in rows if row.model == "large"], "chooses among models"),
    "no grades": (
        lambda rows: [row.model_copy(update={"grade": None}) for row in rows],
        "No question was asked of all of small, large and graded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_is_refused(rows, case):
    make, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message):
        fitted(make(rows))


def test_chains_are_tried_with_a_gate_that_skips(chain_rows):
    material = material_of(chain_rows, architectures=SIZES)
    routable = {"small": ["p_ik", "p_t"], "medium": ["p_ik", "p_t"], "large": []}
    every = np.arange(len(material))
    made = derive(
        material.columns,
        material.models,
        routable,
        material.right,
        every,
        lambda model, name: (0.0, 1.0),
        confidence="confidence",
        gains=False,
    )
    tried = candidates(made, material.models, routable, every).structures
    skipping, *more = [each for each in tried if "skipping" in each.rule]
    assert len(more) == 4  # a path for each share that the gate holds back
    assert all(
        len(policy) == 3 and policy[0].skip["p_ik"] == policy[0].thresholds["p_ik"] for policy in skipping.policies
    )
    assert re.fullmatch(
        r"small \(p_ik >= (\S+) and confidence >= \S+; large at once if p_ik < \1\) → medium \([^;]*\) → large",
        told(skipping.policies[0]),
    )


def test_the_papers_gates_are_tried(rows):
    """Every rule of the table, on every pair."""
    material = material_of(rows, architectures=SIZES)
    columns, every = material.columns, np.arange(len(material))
    routable = {"small": ["p_ik", "p_t"], "large": []}
    made = derive(
        columns,
        material.models,
        routable,
        material.right,
        every,
        lambda model, name: (0.0, 1.0),
        confidence="confidence",
        gains=True,
    )
    tried = candidates(made, material.models, routable, every).structures
    assert [each.rule for each in tried] == [
        "p_ik",
        "p_t",
        "p_ik and p_t",
        "confidence",
        *["p_ik gate, then confidence"] * 5,
        "expected gain",
    ]
    assert all(len(each.policies) > 40 for each in tried)


def test_a_path_keeps_more_and_more(rows, chain_rows):
    """Of every structure: what a policy keeps, the next one keeps, too; the last is the first model alone."""
    for recorded, models in ((rows, ("small", "large")), (chain_rows, ("small", "medium", "large"))):
        material = material_of(recorded, models=models, architectures=SIZES)
        names = {model: ["p_ik", "p_t"] for model in models[:-1]}
        every = np.arange(len(material))
        for structure in candidates(Candidates(material.columns), models, names, every).structures:
            for stage in range(len(structure.policies[0]) - 1):
                model = structure.policies[0][stage].model
                for name in structure.policies[0][stage].thresholds:
                    levels = [policy[stage].thresholds[name] for policy in structure.policies[:-1]]
                    assert levels == sorted(levels, reverse=True)
                    assert (model, name) in material.columns.signals
            if "skipping" not in structure.rule:
                assert structure.policies[-1] == (PolicyStage(structure.policies[0][0].model),)


def test_with_one_signal_every_question_proves(rows):
    """Its thresholds are of one grid whatever the scores are, and the promise is of all questions."""
    result = fitted(rows, signals=["p_t"])
    assert isinstance(result, Fitted)
    assert result.policy.certificates[0].n == len(material_of(rows)) == len(result.parts.certify)
    assert result.rule == "p_t"
    moved = [
        row.model_copy(update={"scores": {"p_t": RecordedScore(value=row.scores["p_t"].value ** 3)}})
        if row.model == "small"
        else row
        for row in rows
    ]
    paths = [
        lone_path(material_of(each, architectures=SIZES).columns, ("small", "large"), {"small": ["p_t"]})
        for each in (rows, moved)
    ]
    thresholds, others = ([policy[0].thresholds["p_t"] for policy in path.policies[:-1]] for path in paths)
    odds = np.log(thresholds[1:]) - np.log1p([-each for each in thresholds[1:]])
    hundredths = np.abs(np.array(thresholds[1:]) - np.round(thresholds[1:], 2)) < LOT
    assert (hundredths | (np.abs(odds / 0.02 - np.round(odds / 0.02)) < 1e-6)).all()
    assert len(set(thresholds) & set(others)) > 300
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] == others[0] == 1.0
    (threshold,) = result.policy.stages[0].thresholds.values()
    assert threshold in thresholds


def test_more_to_choose_spends_more(rows, chain_rows):
    assert len(fitted(rows).parts.certify) == pytest.approx(0.7 * 1500, abs=80)
    chain = fitted(chain_rows, signals=["p_t"])
    assert len(chain.parts.calibrate) == 0
    assert len(chain.parts.certify) == pytest.approx(0.85 * len(material_of(chain_rows)), abs=80)


@pytest.mark.parametrize("constant", [True, False])
def test_without_a_signal_that_routes_only_single_models_are_tried(rows, constant):
    """A constant signal or none: no thresholds; but a smaller model that is as good may be used alone."""
    scores = {"p_t": RecordedScore(value=0.9)} if constant else {}
    blind = [row.model_copy(update={"scores": scores}) for row in rows]
    refused = fitted(blind)
    assert isinstance(refused, NotCertified)
    assert [runner.rule for runner in refused.tested] == ["alone"]
    assert ("small.p_t: this signal cannot route: every score is 0.9" in describe_fit(refused)) == constant

    grades = {row.question: row.grade for row in rows if row.model == "large"}
    alike = [row.model_copy(update={"grade": grades[row.question]}) for row in blind]
    alone = fitted(alike)
    assert isinstance(alone, Fitted)
    assert [stage.model for stage in alone.stages] == ["small"]
    assert "Policy: ask small alone." in describe_fit(alone)


def test_a_signal_that_cannot_route_is_left_out(rows):
    """One that is constant has no part in a policy; the report says why."""
    constant = [row.model_copy(update={"scores": {**row.scores, "stuck": RecordedScore(value=1.0)}}) for row in rows]
    result = fitted(constant)
    assert isinstance(result, Fitted)
    assert "small.stuck: this signal cannot route: every score is 1" in describe_fit(result)
    assert all("stuck" not in stage.needs for stage in result.policy.stages)


def test_a_score_that_is_no_number_is_no_row(tmp_path, rows):
    from confcascade.bench.fitting import read_material

    path = tmp_path / "rec.jsonl"
    path.write_bytes(rows[0].line() + rows[1].line().replace(b'"p_t":{"value":0', b'"p_t":{"value":NaN,"x":0'))
    with pytest.raises(ConfigurationError, match=r"Line 2 of .* is not a row of a recording: scores: p_t: value"):
        read_material(path)


def test_every_draw_counts(rows):
    """Under two ids or one; the proof is drawn from the draws, and of the rest no text is on two sides."""
    twice = [*rows, *(row.model_copy(update={"question": f"again {row.question}"}) for row in rows)]
    material = material_of(twice)
    drawn = material_of([row.model_copy(update={"drawn": 2}) for row in rows])
    assert len(material) == len(drawn) == 3000
    assert material.keys == drawn.keys
    assert material.repeated == 1500
    assert material.notes == drawn.notes
    assert material.notes[0].startswith("1,500 of 3,000 questions repeat another: each counts as often as it was drawn")
    result = fit(material, FIVE, architectures=SIZES)
    assert isinstance(result, Fitted)
    calibrate, choose, certify = ({material.keys[i] for i in part} for part in vars(result.parts).values())
    assert not calibrate & choose
    assert len(calibrate & certify) > 300
    assert result.policy.certificates[0].n == len(result.parts.certify)
    assert "1,500 examples repeat the question of another: a recorded answer counts" in describe_fit(result)


def test_where_a_draw_stands_hangs_on_its_text_and_its_number(rows):
    """Not on the order of the file; and each part has its share of the draws, however often a text was drawn."""
    keys = [bytes([i % 256, i // 256]) for i in range(5000)] + [b"often"] * 5000
    shares = {"calibrate": 0.4, "choose": 0.2, "certify": 0.4}
    parts = split_by_key(keys, shares=shares)
    parts.check(keys)
    often = [int((part >= 5000).sum()) for part in vars(parts).values()]
    others = [int((part < 5000).sum()) for part in vars(parts).values()]
    assert 0 in often[:2]  # a text is on one side of these
    assert often[2] == pytest.approx(2000, abs=4 * 35)  # four standard deviations
    assert others == pytest.approx([2000, 1000, 2000], abs=4 * 35)
    once = split_by_key(keys[:5000], shares=shares)
    assert [set(part.tolist()) for part in vars(once).values()] == [
        {i for i in part.tolist() if i < 5000} for part in vars(parts).values()
    ]


def test_the_promise_is_about_draws(rows, pair):
    """A question that is every seventh of the traffic, on which the small model is sure and wrong, is not sold."""
    sure = {name: score.model_copy(update={"value": 0.97}) for name, score in rows[0].scores.items()}
    asked = {"prompt": "What is your refund policy?", "scores": sure}
    faq = [
        row.model_copy(update={**asked, "question": f"faq {i}", "grade": grade})
        for row, grade in ((rows[0], 0.0), (rows[1500], 1.0))
        for i in range(250)
    ]
    traffic, material = Columns.of([*rows, *faq]), material_of([*rows, *faq], architectures=SIZES)
    largest = replay(traffic, [PolicyStage("large")]).grade

    def lost(policy):
        return largest - replay(*replayable(traffic, policy)).grade

    result = fit(material, FIVE, architectures=SIZES)
    assert isinstance(result, NotCertified) or lost(result.policy).mean() <= 0.05
    counted = material_of([*rows, *(row.model_copy(update={"drawn": 250}) for row in faq[::250])], architectures=SIZES)
    assert counted.keys == material.keys

    came = realised(pair.policy, material, architectures=SIZES)  # what is said of another policy counts draws, too
    assert (came.questions, came.harms) == (1750, int((lost(pair.policy) > 0).sum()))
    assert came.loss == pytest.approx(lost(pair.policy).mean())


def test_the_promise_holds_where_traffic_repeats_itself():
    """200 samples of 700 queries from a known traffic: an eighth is one question that the small model gets wrong.

    A twentieth of the promises may be broken; more than the tail of the binomial says (1e-3) is no chance.
    """
    rng = np.random.default_rng(5)
    n, drop = 400, 0.1
    score = np.append([0.8], rng.random(n - 1))
    right = np.append([False], rng.random(n - 1) < 0.2 + 0.8 * score[1:])
    mass = np.append([0.125], np.full(n - 1, 0.875 / (n - 1)))
    scores = [{"p_t": RecordedScore(value=float(each))} for each in score]
    known = {"answer": "x", "usage": Usage(20, 5)}
    traffic = material_of(
        [
            Row(
                question=f"q{i}", model=model, prompt=f"What is {i}?", grade=float(grades[i]), scores=scores[i], **known
            )
            for model, grades in (("small", right), ("large", np.ones(n)))
            for i in range(n)
        ],
        architectures=SIZES,
    )
    at = np.array([int(question[1:]) for question in traffic.columns.questions])
    sold, broken = 0, 0
    for seed in range(200):
        result = fit(
            traffic.take(np.sort(rng.choice(n, size=700, p=mass[at]))), Promise(drop), architectures=SIZES, seed=seed
        )
        if isinstance(result, Fitted):
            columns, stages = replayable(traffic.columns, result.policy)
            lost = 1 - replay(columns, stages).grade
            sold += 1
            broken += float((mass[at] * lost).sum()) > drop
    assert sold > 130
    assert broken <= binom.ppf(0.999, 200, 0.05)


def test_a_text_under_two_ids_has_the_same_key(rows):
    """However it is spaced; ids tell texts apart where prompts are not kept. Parts that overlap are refused."""
    twice = [*rows, *(row.model_copy(update={"question": f"again {row.question}"}) for row in rows)]
    material = material_of(rows)
    spaced = [row.model_copy(update={"prompt": f"  {row.prompt.upper()} "}) for row in rows]
    assert material_of(spaced).keys == material.keys

    bare = [row.model_copy(update={"prompt": None}) if row.question == "q0" else row for row in twice]
    (note,) = material_of(bare).notes
    assert "told apart by their ids" in note

    good = split_by_key(material.keys, shares=SHARES["signals"])
    bad = type(good)(good.calibrate, good.choose, np.append(good.certify, good.choose[0]))
    with pytest.raises(ConfigurationError, match="1 rows are in two of the `parts`, or twice in one"):
        fit(material, FIVE, architectures=SIZES, parts=bad)
    both = material_of(twice)
    first, second = np.arange(0, 600, 2), np.arange(1, 601, 2)  # of each text one
    with pytest.raises(ConfigurationError, match="300 rows of `choose` have a text that is in `calibrate`, too"):
        fit(both, FIVE, architectures=SIZES, parts=type(good)(first, second, np.arange(1000, 3000)))
    fit(both, FIVE, architectures=SIZES, parts=type(good)(np.arange(600), np.arange(600, 1001), np.arange(1001, 3000)))


def test_questions_that_were_fitted_on_prove_nothing(rows, pair):
    material = material_of(rows)
    assert realised(pair.policy, material, architectures=SIZES).seen == 1500
    with pytest.raises(ConfigurationError, match="1,500 of the 1,500 questions are among those"):
        realised(pair.policy, material, architectures=SIZES, only_new=True)


@pytest.mark.parametrize(
    ("updates", "message"),
    [({"build": "b2"}, "build build of small of 'small'"), ({"prompt_version": "v2"}, "prompt v1")],
)
def test_another_recording_must_be_of_the_same_models(pair, updates, message):
    other = material_of(changed(made_rows(50, prefix="new"), "small", **updates))
    with pytest.raises(ConfigurationError, match=message):
        realised(pair.policy, other, architectures=SIZES)


def test_what_contradicts_itself_is_refused(rows):
    material = material_of(rows)
    with pytest.raises(ConfigurationError, match="either a `max_drop` to the promise or a `max_cost`"):
        fit(material, FIVE, max_cost=0.5)
    with pytest.raises(ConfigurationError, match="`max_cost` is a share"):
        fit(material, Promise(None), max_cost=1.5)
    with pytest.raises(ConfigurationError, match="go together"):
        fit(material, Promise(0.05, equivalence=Equivalence("choice")))
    with pytest.raises(ConfigurationError, match="Costs cannot count in usd"):
        fit(material, FIVE, unit="usd")
    with pytest.raises(ConfigurationError, match="by tokens alone a small one is as dear as a large one"):
        fit(material, FIVE)
    with pytest.raises(ConfigurationError, match=r"has a signal 'p_tt'\. They have: p_ik, p_t"):
        fit(material, FIVE, architectures=SIZES, signals=["p_tt"])
    with pytest.raises(ConfigurationError, match="keeps no answer of 'large'"):
        agreement(material, NormalizedMatch())
    silent = material_of(changed(rows, "large", answer=""), graded=False, texts=True)
    with pytest.raises(ConfigurationError, match="'large' answered no question"):
        agreement(silent, NormalizedMatch())


# ---------------------------------------------------------------------- the next model's pass rate


def test_the_pass_rate_as_threshold(rows):
    """Every policy that is tried keeps a score from the larger model's accuracy on; what passes is certified as any."""
    result = fitted(rows, rule="pass-rate")
    assert isinstance(result, Fitted)
    material = material_of(rows, architectures=SIZES)
    columns = material.columns.take(result.parts.ordering)
    rate = columns.grades[:, columns.index("large")].mean()
    assert "pass rate" in result.rule
    (threshold,) = result.policy.stages[0].thresholds.values()
    assert threshold == pytest.approx(rate)
    rules = {contender.rule for contender in result.tested}
    assert all("pass rate" in rule or rule == "alone" for rule in rules)


def test_the_pass_rate_of_a_chain(chain_rows):
    """Of three models, each is held against the one that would be asked next."""
    result = fitted(chain_rows, Promise(0.1), rule="pass-rate")
    for contender in result.tested:
        for stage, larger in zip(contender.policy, contender.policy[1:], strict=False):
            assert set(stage.thresholds) <= {"p_ik", "p_t", "confidence"}
            assert larger.model != stage.model


def test_a_rule_that_there_is_not(rows):
    with pytest.raises(ConfigurationError, match="quantiles, pass-rate"):
        fitted(rows, rule="coin")
    material = material_of(rows, architectures=SIZES)
    same = np.ones_like(material.columns.usable)
    with pytest.raises(ConfigurationError, match="graded answers"):
        fit(material, FIVE, same=same, architectures=SIZES, rule="pass-rate")
