"""Figures of a policy: against the functions that they are made of, closed forms, and the live cascade's own record."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from confcascade import Architecture, Cascade, Prices, Stage, Usage
from confcascade.bench.evaluation.baselines import learned
from confcascade.bench.evaluation.evaluate import evaluate, with_texts
from confcascade.bench.evaluation.gathered import MEAN_LOG_PROBABILITY, gather
from confcascade.bench.evaluation.policy_figures import Bench
from confcascade.bench.metrics.frontier import gap_closed
from confcascade.bench.metrics.ranking import auroc, calibration_error, macro_scores
from confcascade.bench.metrics.significance import mcnemar
from confcascade.bench.recording import PlaybackModel, RecordedScore, Row
from confcascade.bench.recording.importers import read_choice_logits
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.policy import models_in_order, stages_from_thresholds
from confcascade.errors import ConfigurationError
from confcascade.types import Token

SIZES = {"small": Architecture(10, 0, 0), "large": Architecture(100, 0, 0)}
DATA = Path(__file__).parents[5] / "shared" / "data" / "mmlu_llama31_logits" / "mmlu_test_even_logits.csv.gz"


def made_rows(n=60, seed=0, **changes):
    """Lettered questions in two groups; the small model's score tells its right answers better than chance."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        reference = "ABCD"[i % 4]
        for model, skill in (("small", 0.6), ("large", 0.9)):
            right = rng.random() < skill
            answer = reference if right else "ABCD"[(i + 1) % 4]
            p = float(np.clip(rng.normal(0.8 if right else 0.5, 0.2), 0.01, 0.99))
            fields = {
                "question": f"q{i}",
                "model": model,
                "group": "law" if i % 3 else "art",
                "prompt": f"Question {i}: <b>which</b>?",
                "reference": reference,
                "answer": answer,
                "grade": float(right),
                "tokens": (Token(answer, math.log(p)),),
                "scores": {"p_t": RecordedScore(value=p)},
                "usage": Usage(9, 1),
                "latency_s": 0.5,
            }
            rows.append(Row(**{**fields, **changes}))
    return rows


def judged(rows, thresholds=None, **options):
    gathered = gather(rows)
    policy = stages_from_thresholds(gathered.columns, ("small", "large"), thresholds or {"p_t": 0.7})
    return evaluate(gathered, policy, **{"architectures": SIZES, **options})


def test_a_policy_has_the_figures_of_the_live_cascade():
    """Accuracy, both costs, retention and who answered are those of the cascade run live on the recorded answers."""
    rows = made_rows()
    figures = judged(rows).policy
    small, large = (PlaybackModel(name, rows, architecture=SIZES[name]) for name in ("small", "large"))
    live = Cascade([Stage(small, [small.signal("p_t")], {"p_t": 0.7}), Stage(large)])
    questions = dict.fromkeys(row.question for row in rows)
    outcomes = [live.run(question) for question in questions]
    grades = {row.key: row.grade for row in rows}
    got = [grades[q, o.record.answered_by] for q, o in zip(questions, outcomes, strict=True)]
    assert figures.accuracy.value == pytest.approx(np.mean(got))
    assert figures.cost.flops == pytest.approx(np.mean([o.record.cost.flops for o in outcomes]))
    assert figures.cost_answering_stage.flops == pytest.approx(
        np.mean([o.record.cost_answering_stage.flops for o in outcomes])
    )
    kept = np.mean([o.record.answered_by == "small" for o in outcomes])
    assert figures.answered == pytest.approx({"small": kept, "large": 1 - kept})
    assert figures.retention["small"] == pytest.approx(kept)
    assert figures.cost.seconds == pytest.approx(0.5 + 0.5 * (1 - kept))


def test_figures_are_those_of_the_functions():
    """McNemar, macro scores, gap closed, AUROC and ECE: of the very arrays."""
    rows = made_rows()
    evaluation = judged(rows)
    policy, columns = evaluation.policy, gather(rows).columns
    p_t = columns.signal("small", "p_t").values
    kept = p_t >= 0.7
    grade = np.where(kept, columns.grades[:, 0], columns.grades[:, 1])
    assert policy.accuracy.value == pytest.approx(grade.mean())
    assert policy.mcnemar_p == pytest.approx(mcnemar(grade == 1, columns.grades[:, 1] == 1))
    assert policy.drop_points.low <= policy.drop_points.value <= policy.drop_points.high
    costs = np.tile([200.0, 2000.0], (len(columns), 1))
    spent = 200 + 2000 * (1 - kept.mean())
    assert policy.cost.flops == pytest.approx(spent)
    assert policy.saved["flops"] == pytest.approx(1 - spent / 2000)
    assert policy.gap_closed == pytest.approx(gap_closed(spent, grade.mean(), columns.grades, costs))
    answers = {row.key: row.answer for row in rows}
    chosen = [answers[q, "small" if k else "large"] for q, k in zip(columns.questions, kept, strict=True)]
    references = ["ABCD"[int(q[1:]) % 4] for q in columns.questions]
    assert (policy.macro_precision, policy.macro_recall, policy.macro_f1) == pytest.approx(
        macro_scores(chosen, references)
    )
    signal = evaluation.signals[0]
    assert (signal.model, signal.auroc) == ("small", pytest.approx(auroc(columns.grades[:, 0] == 1, p_t)))
    own = next(s for s in evaluation.signals if s.signal == "p_t" and s.model == "small")
    assert own.ece == pytest.approx(calibration_error(columns.grades[:, 0], p_t))
    assert sum(n for n, _, _ in own.bins) == len(columns)
    assert evaluation.break_even == {"small": pytest.approx(0.1)}


def test_groups_add_up_to_the_whole():
    """Weighted by their size, the groups' accuracies are the accuracy; small ones are flagged."""
    evaluation = judged(made_rows())
    sizes = [group.policy.questions for group in evaluation.groups]
    means = [group.policy.accuracy.value for group in evaluation.groups]
    assert np.average(means, weights=sizes) == pytest.approx(evaluation.policy.accuracy.value)
    assert [(group.name, group.few) for group in evaluation.groups] == [("law", False), ("art", True)]


def test_curves_meet_the_policy_and_stay_below_the_oracle():
    """The policy's own threshold lies on the curve of its signal, which no point takes above the oracle."""
    evaluation = judged(made_rows())
    curve = next(c for c in evaluation.curves if c.signal == "p_t")
    cost, accuracy = zip(*evaluation.oracle, strict=True)
    for c, a in zip(curve.cost, curve.accuracy, strict=True):
        assert a <= np.interp(c, cost, accuracy) + 1e-12
    assert min(curve.thresholds) <= 0.7 <= max(curve.thresholds)
    assert min(curve.cost) <= evaluation.policy.cost.flops <= max(curve.cost)
    assert evaluation.sensitivity[0].thresholds == curve.thresholds


def test_every_pair_stands_beside_a_chain():
    """Of three models the three pairs, each with the thresholds that the chain has."""
    rows = made_rows()
    rows += [row.model_copy(update={"model": "medium"}) for row in rows if row.model == "small"]
    gathered = gather(rows)
    policy = stages_from_thresholds(gathered.columns, ("small", "medium", "large"), {"p_t": 0.7, "medium.p_t": 0.9})
    evaluation = evaluate(gathered, policy)
    assert [p.name for p in evaluation.beside] == ["small → medium", "small → large", "medium → large"]
    assert evaluation.beside[2].thresholds == {"medium": {"p_t": 0.9}, "large": {}}
    assert {c.models for c in evaluation.curves} == {
        ("small", "medium", "large"),
        ("small", "medium"),
        ("small", "large"),
        ("medium", "large"),
    }


def test_mean_log_probability_is_computed_from_the_tokens():
    """The dozen lines: exp of the mean over the answer's tokens, whatever signals were recorded."""
    row = made_rows(1, tokens=(Token("a", -0.1), Token("b", -0.5)), answer="ab", scores={})[0]
    columns = gather([row]).columns
    assert columns.signal("small", MEAN_LOG_PROBABILITY).values == pytest.approx([math.exp(-0.3)])
    assert MEAN_LOG_PROBABILITY not in gather([row.model_copy(update={"tokens": None})]).columns.signal_names
    for number in (math.nan, math.inf):  # an overflow is not certainty
        overflowed = row.model_copy(update={"tokens": (Token("a", number), Token("b", -0.5))})
        assert MEAN_LOG_PROBABILITY not in gather([overflowed]).columns.signal_names


def test_costs_count_in_what_is_known_of_every_model():
    """Operations before dollars before tokens; nothing is assumed of a model that is not told."""
    rows = made_rows()
    prices = {"small": Prices(1, 2), "large": Prices(10, 20)}
    assert judged(rows, prices=prices).unit == "flops"
    assert judged(rows, prices=prices, architectures={}).unit == "usd"
    assert judged(rows, prices={"small": Prices(1, 2)}, architectures={}).unit == "tokens"
    with pytest.raises(ConfigurationError, match="Costs cannot count in usd"):
        judged(rows, unit="usd")
    timeless = judged([row.model_copy(update={"latency_s": None}) for row in rows])
    assert timeless.policy.cost.seconds is None
    assert "The recording tells no times." in timeless.notes


def test_failures_of_the_largest_model_are_told():
    """Where it fails, the earlier answer stands; a group in which it always fails has no saving, and is no error."""
    rows = [
        row.model_copy(update={"error": "down", "answer": "", "grade": None, "usage": Usage(), "tokens": None})
        if row.model == "large" and row.group == "art"
        else row
        for row in made_rows()
    ]
    evaluation = judged(rows)
    art = next(group for group in evaluation.groups if group.name == "art")
    assert art.alone["large"] == 0
    assert art.policy.saved["flops"] is None
    assert art.policy.unanswered > 0
    assert evaluation.policy.saved_interval is not None
    json.dumps(evaluation.as_dict(), allow_nan=False)


def test_a_recording_without_any_cost_is_refused():
    with pytest.raises(ConfigurationError, match="Nothing is known of what the models cost"):
        judged(made_rows(usage=Usage(), latency_s=None))


def test_one_model_alone_can_be_told():
    evaluation = evaluate(gather(made_rows()), [PolicyStage("large")])
    assert evaluation.policy.accuracy == evaluation.alone[0].accuracy
    assert not evaluation.curves


def test_models_are_ordered_by_size_then_price_then_first_row():
    columns = gather(made_rows()).columns
    assert models_in_order(columns, {"small": SIZES["large"], "large": SIZES["small"]}, {})[0] == ("large", "small")
    assert models_in_order(columns, {}, {"small": Prices(5, 5), "large": Prices(1, 1)})[0] == ("large", "small")
    assert models_in_order(columns, {"small": SIZES["small"]}, {}) == (("small", "large"), "first row")


def test_thresholds_of_one_model_go_before_those_of_all():
    """Names of models may hold dots."""
    rows = [row.model_copy(update={"model": f"llama-3.1-{row.model}"}) for row in made_rows(4)]
    columns, models = gather(rows).columns, ("llama-3.1-small", "llama-3.1-large")
    policy = stages_from_thresholds(columns, models, {"llama-3.1-small.p_t": 0.2, "p_t": 0.9})
    assert policy == (PolicyStage("llama-3.1-small", {"p_t": 0.2}), PolicyStage("llama-3.1-large"))
    with pytest.raises(ConfigurationError, match=r"'p_ik' is of no recorded signal.*llama-3.1-small: .*p_t"):
        stages_from_thresholds(columns, models, {"p_ik": 0.9})
    with pytest.raises(ConfigurationError, match=r"'llama-3\.1-small' has no threshold"):
        stages_from_thresholds(columns, models, {})


def test_questions_that_cannot_be_judged_are_left_out_and_counted():
    rows = made_rows(10)
    rows[0] = rows[0].model_copy(update={"grade": None})
    evaluation = judged(rows[:-1])
    assert evaluation.questions == 8
    assert sum("1 of 10 questions are left out" in note for note in evaluation.notes) == 2
    with pytest.raises(ConfigurationError, match="No question was asked of all of small, large and graded"):
        judged([row.model_copy(update={"grade": None}) for row in rows])


def test_harmful_keeps_are_kept_wrong_answers_that_the_largest_has_right():
    """Of these the surest come first, with their texts."""
    rows = made_rows()
    evaluation = with_texts(judged(rows), rows)
    by_key = {row.key: row for row in rows}
    assert evaluation.harmful
    scores = [keep.scores["p_t"] for keep in evaluation.harmful]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.7
    assert len(evaluation.harmful) == min(20, evaluation.policy.harms)
    for keep in evaluation.harmful:
        small, large = by_key[keep.question, "small"], by_key[keep.question, "large"]
        assert (small.grade, large.grade) == (0, 1)
        assert (keep.prompt, keep.answer, keep.largest_answer) == (small.prompt, small.answer, large.answer)


@pytest.mark.parametrize(
    ("value", "hint"), [(lambda i: 0.5, "cannot route: every score is 0.5"), (lambda i: None, "no answer has a score")]
)
def test_signals_that_cannot_route_are_named(value, hint):
    rows = [row.model_copy(update={"scores": {"s": RecordedScore(value=value(0))}}) for row in made_rows()]
    evaluation = judged(rows, {"s": 0.4})
    assert hint in next(s for s in evaluation.signals if s.signal == "s").hint


def test_scores_that_are_no_probabilities_have_no_brier_score():
    rows = [
        row.model_copy(update={"scores": {"s": RecordedScore(value=float(i))}}) for i, row in enumerate(made_rows())
    ]
    signal = next(s for s in judged(rows, {"s": 3}).signals if s.signal == "s")
    assert (signal.brier, signal.ece, signal.bins) == (None, None, ())
    assert signal.auroc is not None


def test_figures_are_json():
    """Without NaN: what is unknown is null."""
    told = json.loads(json.dumps(judged(made_rows()).as_dict(), allow_nan=False))
    assert told["policy"]["cost"]["usd"] is None


def test_no_learner_scores_what_it_saw():
    """Labels of chance cannot be learnt, not even of questions that stand twice, word for word, under two ids."""
    rng = np.random.default_rng(3)
    right = {f"question {i} {rng.integers(10**9)}": float(rng.random() < 0.5) for i in range(150)}
    rows = [
        row.model_copy(update={"prompt": text, "grade": grade if row.model == "small" else 1.0, "question": f"{i}/{j}"})
        for i, (text, grade) in enumerate(right.items())
        for j in range(2)
        for row in made_rows(1)
    ]
    bench = Bench.of(gather(rows), ("small", "large"), architectures=SIZES, prices={})
    for learner in ("TextRouter", "LearnedScorer"):
        values = learned(bench, learner)["small"].values
        assert np.array_equal(values[::2], values[1::2])
        assert abs(auroc(bench.alone["small"].grade == 1, values) - 0.5) < 0.15  # who saw the twin would have 1


def test_learners_read_texts_or_say_that_there_are_none():
    """Where the prompt gives it away both route well, and the router, whose rejections cost nothing, better."""
    rows = made_rows(120)
    right = {row.question: row.grade for row in rows if row.model == "small"}
    rows = [
        row.model_copy(update={"prompt": f"{'an easy' if right[row.question] else 'a hard'} question"}) for row in rows
    ]
    # every prompt its own, or two groups were all that there is
    rows = [row.model_copy(update={"prompt": f"{row.prompt} {row.question}"}) for row in rows]
    told = {each.name: each for each in judged(rows).baselines}
    assert told["TextRouter"].area > told["LearnedScorer"].area > told["mean log-probability"].area
    assert told["TextRouter"].accuracy <= told["oracle"].accuracy + 1e-12
    bench = Bench.of(gather(rows), ("small", "large"), architectures=SIZES, prices={})
    assert learned(bench, "TextRouter")["small"].phase == "pre"
    for changes, reason in (
        ({"prompt": None}, "prompts are not kept"),
        ({"grade": 1.0}, "nothing can be learnt"),
    ):
        bare = judged([row.model_copy(update=changes) for row in rows])
        assert reason in {each.name: each for each in bare.baselines}["TextRouter"].reason


def test_routers_that_ask_one_model_stand_beside():
    """A score that is known before the answer routes; one that is known after it does not; every model is there alone.

    The router generates nothing that it passes on, so that with the very scores of P(T) it costs less.
    """
    rows = [
        row.model_copy(
            update={"scores": {**row.scores, "before": row.scores["p_t"].model_copy(update={"phase": "pre"})}}
        )
        if row.model == "small"
        else row
        for row in made_rows(120)
    ]
    told = {each.name: each for each in judged(rows).baselines}
    assert {"small alone", "large alone", "router by before"} <= set(told)
    assert "router by p_t" not in told
    curves = {each.signal: each for each in judged(rows).curves}
    assert told["router by before"].area == curves["before"].area >= curves["p_t"].area


@pytest.mark.skipif(not DATA.exists(), reason="the recorded logits are not at hand")
def test_recorded_llama_has_the_figures_of_the_papers_page():
    """The 7,032 questions at 0.9: the row of Table 15 in docs/papers/confidence-driven.md."""
    gathered = gather(row for row in read_choice_logits(DATA) if row.model.endswith("instruct"))
    small, large = "llama-3.1-8b-instruct", "llama-3.1-70b-instruct"
    sizes = {small: Architecture(8 * 10**9, 0, 0), large: Architecture(70 * 10**9, 0, 0)}
    models, by = models_in_order(gathered.columns, sizes, {})
    assert (models, by) == ((small, large), "operations for a token")
    policy = evaluate(
        gathered, stages_from_thresholds(gathered.columns, models, {"p_t": 0.9}), architectures=sizes
    ).policy
    assert 100 * policy.accuracy.value == pytest.approx(78.75, abs=0.005)
    points = policy.drop_points
    assert (points.value, points.low, points.high) == pytest.approx((-1.34, -1.66, -1.02), abs=0.005)
    assert (policy.harms, policy.benefits) == (114, 20)
    assert policy.saved["flops"] == pytest.approx(0.210, abs=0.0005)
    assert policy.saved_answering_stage["flops"] == pytest.approx(0.287, abs=0.0005)
    assert policy.gap_closed == pytest.approx(0.40, abs=0.005)
