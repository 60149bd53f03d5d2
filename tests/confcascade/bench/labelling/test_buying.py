"""Labels are bought until it is enough, and a run that was killed goes on to the same result."""

import json

import numpy as np
import pytest
from confcascade import ConfigurationError, Policy, Promise
from confcascade.bench.fitting import realised, replayable
from confcascade.bench.labelling import Aim, Journal, LabelTask, buy, labelled
from confcascade.bench.replay import replay
from confcascade.guarantee import Equivalence

from .conftest import SIZES, Teacher, judged, material, task_of, ungraded

PROMISE = Promise(0.02)


def bought(task, folder, teacher, aim=None, promise=PROMISE, **identity):
    return buy(task, promise, Journal(folder / "policy.labels.jsonl", identity), teacher, aim=aim or Aim())


def test_it_buys_a_policy_with_few_labels(task, tmp_path):
    """The certificate counts what was labelled; each label is asked for once, at its price."""
    teacher = Teacher()
    state = bought(task, tmp_path, teacher)
    result = labelled(task, PROMISE, state)
    certificate = result.policy.certificates[0]

    assert state.ended in ("enough", "out of reach")
    assert state.labels == len(teacher.asked) == len(set(teacher.asked)) < 150
    assert (state.usd, state.seconds) == (0.25 * state.labels, 2 * state.labels)
    assert certificate.test == "sequential"
    assert certificate.bound <= 0.02 < 0.1 < result.policy.saving.share
    assert certificate.labels <= state.labels
    i = state.best
    assert certificate.n == state.path.examined(i, cost=0).n
    assert task.open[i, : certificate.n].sum() == certificate.labels
    assert f"Bought: {state.labels} labels" in result.describe()


def test_the_policy_holds_on_new_questions(task, tmp_path):
    """Thousands of fresh ones, graded by whoever labelled."""
    policy = labelled(task, PROMISE, bought(task, tmp_path, Teacher())).policy
    fresh = [
        row.model_copy(update={"grade": float(row.answer == "yes"), "prompt": f"Fresh: {row.prompt}"})
        for row in ungraded(8000, seed=7)
    ]
    came = realised(policy, material(fresh), architectures=SIZES)
    assert came.loss <= 0.02
    assert came.saved == pytest.approx(policy.saving.share, abs=0.04)


def test_the_policy_is_one_like_any_other(task, tmp_path):
    """Saved, loaded and replayed, it is what was certified."""
    state = bought(task, tmp_path, Teacher())
    labelled(task, PROMISE, state).policy.save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    columns, stages = replayable(task.material.columns, policy)
    assert stages == task.policies[state.best]
    kept = replay(columns, stages).stage == 0
    assert policy.saving.spared == pytest.approx(kept.mean())
    assert policy.stages[0].build == "build of small"


@pytest.mark.parametrize("batch", [1, 7])
def test_a_killed_run_goes_on_to_the_same_result(task, tmp_path, batch):
    """Left after every few labels, with half a line written, it asks for the same questions and certifies alike."""
    whole = bought(task, tmp_path / "whole", Teacher(batch=batch))
    asked = []
    while True:
        teacher = Teacher(batch=batch, most=15)
        state = bought(task, tmp_path / "parts", teacher)
        asked += teacher.asked
        if state.ended != "paused":
            break
        with (tmp_path / "parts" / "policy.labels.jsonl").open("a") as file:
            file.write('{"number": 99, "place"')

    told = [(tmp_path / name / "policy.labels.jsonl").read_text() for name in ("whole", "parts")]
    assert told[0] == told[1]
    assert len(asked) == len(set(asked)) == whole.labels
    assert (state.ended, state.best, state.path.certified) == (whole.ended, whole.best, whole.path.certified)


def test_aims(task, tmp_path):
    """A saving, or so many labels."""
    whole = bought(task, tmp_path / "whole", Teacher())
    least = float(task.saved[whole.best]) - 0.02
    aimed = bought(task, tmp_path / "saving", Teacher(), Aim(saving=least))
    assert aimed.ended == "reached"
    assert least <= task.saved[aimed.best] <= task.saved[whole.best]
    assert 0 < aimed.labels < whole.labels
    few = bought(task, tmp_path / "most", Teacher(batch=4), Aim(most=6))
    assert (few.ended, few.labels) == ("most", 6)
    assert labelled(task, PROMISE, few).next_labels is not None
    for wrong in ({"saving": 1.5}, {"most": 0}):
        with pytest.raises(ConfigurationError):
            Aim(**wrong)


def test_what_nobody_can_tell_counts_as_lost(task, tmp_path):
    """So no more is certified than by those who can."""
    knowing = bought(task, tmp_path / "knowing", Teacher(), Aim(most=60))
    skipping = bought(task, tmp_path / "skipping", Teacher(judge=lambda wanted: None), Aim(most=60))
    assert skipping.skipped == skipping.labels > 0
    assert skipping.path.certified < knowing.path.certified


def test_it_ends_where_the_questions_cannot_do(tmp_path):
    """Everything kept is lost, and few questions are there: it says so, and asks no more."""
    small = task_of(ungraded(300))
    worst = Teacher(judge=lambda wanted: {**judged(wanted), "small": 0.0, "large": 1.0})
    state = bought(small, tmp_path, worst, promise=Promise(0.005))
    assert (state.ended, state.labels, state.best) == ("out of reach", 0, None)
    result = labelled(small, Promise(0.005), state)
    assert result.policy is None
    assert result.describe().startswith("Nothing can be promised yet.")


def test_one_label_tells_all_draws_of_a_question(rows, tmp_path):
    """Questions drawn three times are asked once, and count three times."""
    thrice = [row.model_copy(update={"drawn": 3}) for row in rows[:600] + rows[1500:2100]]
    task, teacher = task_of(thrice), Teacher()
    state = bought(task, tmp_path, teacher)
    assert len(task.material) == 1620
    assert len(teacher.asked) == len(set(teacher.asked)) == state.labels
    result = labelled(task, PROMISE, state)
    assert any("repeat the question of another" in each for each in result.policy.certificates[0].assumptions)


def test_agreement_is_promised_where_the_largest_model_labels(rows, tmp_path):
    """Every kept answer needs a label, for the largest model's is not known."""
    data = material(rows)
    same = np.zeros((len(data), 2), dtype=bool)
    same[:, data.columns.index("large")] = True
    task = LabelTask.of(data, same, architectures=SIZES)
    answers = {row.key: row.answer for row in rows}

    def agrees(wanted):
        return {"large": 1.0, "small": float(answers[wanted.question, "small"] == answers[wanted.question, "large"])}

    promise = Promise(0.05, equivalence=Equivalence("exact"))
    state = bought(task, tmp_path, Teacher(batch=8, judge=agrees), promise=promise)
    result = labelled(task, promise, state)
    certificate = result.policy.certificates[0]
    assert certificate.kind == "agreement"
    assert certificate.benefits == 0
    kept = task.open[state.best]
    assert certificate.labels == kept[: certificate.n].sum()


def test_a_target_is_needed_and_the_journal_must_fit(task, tmp_path):
    with pytest.raises(ConfigurationError, match="max_drop"):
        bought(task, tmp_path, Teacher(), promise=Promise(None))
    bought(task, tmp_path, Teacher(most=3))
    with pytest.raises(ConfigurationError, match="was not drawn there"):
        bought(task_of(ungraded(1500), seed=3), tmp_path, Teacher())


@pytest.mark.parametrize("grades", [{"small": 1.0}, {"small": 2.0, "large": 1.0}])
def test_what_is_no_label_is_not_kept(task, tmp_path, grades):
    """A source that errs leaves the journal as it was; so does one that answers another question."""
    with pytest.raises(ConfigurationError, match="a grade from 0 to 1"):
        bought(task, tmp_path, Teacher(judge=lambda wanted: grades))

    class Elsewhere(Teacher):
        def ask(self, wanted):
            return super().ask([task.wanted(wanted[0].place + 1)])

    with pytest.raises(ConfigurationError, match="each once"):
        bought(task, tmp_path, Elsewhere())
    assert bought(task, tmp_path, Teacher(most=1)).labels == 1


def test_a_promise_once_begun_stays(task, tmp_path):
    """Another target, seed or recording after labels were seen would be chosen by the proof."""
    bought(task, tmp_path, Teacher(most=3), max_drop=0.02, seed=0)
    with pytest.raises(ConfigurationError, match="max_drop, seed differ"):
        bought(task, tmp_path, Teacher(), max_drop=0.05, seed=1)


def test_a_label_changed_behind_its_back_is_noticed(task, tmp_path):
    """A grade turned round, a line taken away, a line added: each breaks the chain."""
    bought(task, tmp_path, Teacher(most=8))
    path = tmp_path / "policy.labels.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    entry = json.loads(lines[4])
    turned = json.dumps({**entry, "grades": {name: 1 - grade for name, grade in entry["grades"].items()}}) + "\n"
    for changed in (
        [*lines[:4], turned, *lines[5:]],
        [*lines[:4], *lines[5:]],
        [*lines, lines[-1]],
        [lines[0].replace("{}", '{"seed": 1}'), *lines[1:]],
    ):
        path.write_text("".join(changed))
        with pytest.raises(ConfigurationError, match=r"not as it was written|bought otherwise"):
            bought(task, tmp_path, Teacher())
    for other in ("a note of mine\n", lines[0] + "no label\n"):
        path.write_text(other)
        with pytest.raises(ConfigurationError, match=r"is no (journal|label)"):
            bought(task, tmp_path, Teacher())
