"""What is to be labelled, and what needs no label."""

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.bench.labelling import LabelTask, same_text
from confcascade.bench.replay import PolicyStage, replay

from .conftest import SIZES, material, task_of, ungraded


def test_labels_are_needed_where_a_kept_answer_is_not_the_largest_models(rows, task):
    """Policy for policy, as a replay decides and the texts say."""
    answers = {row.key: row.answer for row in rows}
    for i in range(0, len(task.policies), 7):
        stage = replay(task.material.columns, task.policies[i]).stage
        expected = [
            s == 0 and answers[q, "small"] != answers[q, "large"]
            for s, q in zip(stage, task.material.columns.questions, strict=True)
        ]
        assert task.open[i].tolist() == expected
        assert (np.isnan(task.losses()[i]) == expected).all()


def test_in_a_chain_a_label_is_needed_wherever_the_answer_that_stands_differs():
    rows = ungraded(400, models=("small", "medium", "large"))
    task, answers = task_of(rows), {row.key: row.answer for row in rows}
    names = ("small", "medium", "large")
    for i in range(0, len(task.policies), 9):
        stage = replay(task.material.columns, task.policies[i]).stage
        expected = [
            answers[q, names[s]] != answers[q, "large"]
            for s, q in zip(stage, task.material.columns.questions, strict=True)
        ]
        assert task.open[i].tolist() == expected
    assert task.open.any()


def test_thresholds_come_of_questions_that_are_never_labelled(rows, task):
    """A tenth of them; the same scores elsewhere make the same thresholds, whatever the other questions' scores are."""
    labelled = set(task.material.columns.questions)
    assert len(task.material) == 1350
    changed = [row.model_copy(update={"answer": "something else"}) if row.question in labelled else row for row in rows]
    assert task_of(changed).policies == task.policies
    heights = [policy[0].thresholds["p_t"] for policy in task.policies]
    assert heights == sorted(heights, reverse=True)


def test_the_order_is_drawn_by_the_seed(rows, task):
    assert task_of(rows[::-1]).material.columns.questions == task.material.columns.questions
    assert task_of(rows, seed=1).material.columns.questions != task.material.columns.questions


def test_a_loss_is_the_largest_models_grade_less_that_of_the_answer_that_stands(task):
    """1 where only the large model is right, -1 where only the small one is; nobody knowing counts as lost."""
    place = int(np.flatnonzero(task.open.any(axis=0))[0])
    keeps = task.answering[:, place] == task.material.columns.index("small")
    assert keeps.any()
    assert not keeps.all()
    for small, large in ((0.0, 1.0), (1.0, 0.0), (0.25, 0.75), (0.0, 0.0)):
        lost = task.losses_of(place, {"small": small, "large": large})
        assert lost.tolist() == [large - small if kept else 0.0 for kept in keeps]
    assert task.losses_of(place, None).tolist() == [1.0] * len(task.policies)


def test_what_is_wanted_does_not_tell_whose_answer_it_is(rows, task):
    """Each text once; over many questions the large model's stands first as often as second."""
    answers = {row.key: row.answer for row in rows}
    places = np.flatnonzero(task.open.any(axis=0))
    first = 0
    for place in places:
        wanted = task.wanted(int(place))
        assert sorted(wanted.answers) == sorted({answers[wanted.question, m] for m in ("small", "large")})
        assert wanted.grades([0.5] * len(wanted.answers)) == {"small": 0.5, "large": 0.5}
        assert wanted.prompt == f"What is {wanted.question[1:]}?"
        first += "large" in wanted.models[0]
    assert 0.4 < first / len(places) < 0.6


def test_where_the_largest_model_gave_no_answer_nothing_is_asked(rows):
    """Nothing can be lost there."""
    failing = [
        row.model_copy(update={"answer": "", "error": "Timeout"})
        if row.model == "large" and row.question < "q3"
        else row
        for row in rows
    ]
    task = task_of(failing)
    failed = np.array([question < "q3" for question in task.material.columns.questions])
    assert failed.any()
    assert not task.open[:, failed].any()


def test_what_cannot_be_labelled_is_refused(rows):
    two = [row.model_copy(update={"scores": {**row.scores, "p_x": row.scores["p_t"]}}) for row in rows]
    with pytest.raises(ConfigurationError, match="it has p_t, p_x"):
        task_of(two)
    with pytest.raises(ConfigurationError, match="it has p_t"):
        task_of(rows, signals=["entropy"])
    with pytest.raises(ConfigurationError, match="keeps no answer"):
        same_text(material([row.model_copy(update={"answer": "(not kept)"}) for row in rows[:4] + rows[1500:1504]]))
    data = material(rows)
    with pytest.raises(ConfigurationError, match="alone"):
        LabelTask.of(material(rows[:1500]), same_text(material(rows[:1500])), architectures=SIZES)
    with pytest.raises(ConfigurationError, match="is not known"):
        LabelTask.of(data, same_text(data))


def test_a_policy_is_a_plain_threshold(task):
    for policy in task.policies:
        small, large = policy
        assert (small.model, list(small.thresholds), large) == ("small", ["p_t"], PolicyStage("large"))
