"""Sampled answers: graded, kept as they come, and the same wherever a run was stopped."""

import threading

import pytest
from confcascade import ConfigurationError

pytest.importorskip("torch")
from confcascade.bench.training.verbalized.rollouts import Answer, Rollout, Sampling, end_tokens, sample_rollouts


@pytest.fixture(scope="module")
def few(questions):
    from dataclasses import replace

    return replace(questions, training=questions.training[:10])


@pytest.fixture(scope="module")
def sampled(few, tmp_path_factory):
    from confcascade.models.bundled import bundled_model

    model = bundled_model("small")
    path = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    return model, path, sample_rollouts(model, few, path, Sampling(8, rows=16))


def test_grades_are_those_of_the_texts(sampled, few):
    model, _, rollouts = sampled
    assert list(rollouts) == [example.id for example in few.training]
    for example in few.training:
        rollout = rollouts[example.id]
        assert len(rollout.answers) == 8
        texts = [model.tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in rollout.answers]
        assert [answer.grade for answer in rollout.answers] == [few.grade(example, text) for text in texts]
    # sampled, and not one answer eight times
    assert any(0 < rollout.accuracy < 1 for rollout in rollouts.values())


def test_an_answer_ends_where_the_model_ended_it(sampled):
    model, _, rollouts = sampled
    ends = set(end_tokens(model))
    for rollout in rollouts.values():
        for answer in rollout.answers:
            assert not ends & set(answer.tokens[:-1])
            assert answer.tokens[-1] in ends or len(answer.tokens) == 40


def test_a_killed_run_goes_on_to_the_same_answers(sampled, few, small, tmp_path):
    _, path, rollouts = sampled
    lines = path.read_text().splitlines(keepends=True)
    cut = tmp_path / "rollouts.jsonl"
    cut.write_text("".join(lines[:4]) + lines[4][:20])
    done = []
    assert sample_rollouts(small, few, cut, Sampling(8, rows=16), progress=lambda n, _: done.append(n)) == rollouts
    assert done[0] == 4
    assert done[-1] == 10


def test_stopped_before_the_next_questions(few, small, tmp_path):
    stop = threading.Event()
    path = tmp_path / "rollouts.jsonl"
    assert sample_rollouts(small, few, path, Sampling(8, rows=16), progress=lambda *_: stop.set(), stop=stop) is None
    stop.clear()
    assert sample_rollouts(small, few, path, Sampling(8, rows=16), stop=stop) is not None


def test_groups_of_another_size_are_refused(sampled, few):
    model, path, _ = sampled
    with pytest.raises(ConfigurationError, match="holds 8 answers to a question, and 4 are wanted"):
        sample_rollouts(model, few, path, Sampling(4))


@pytest.mark.parametrize("settings", [{"group": 1}, {"temperature": 0.0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ConfigurationError):
        Sampling(**settings)


def test_accuracy_is_the_mean_grade():
    assert Rollout("q", (Answer((1,), 1.0), Answer((2,), 0.0), Answer((3,), 0.5))).accuracy == 0.5
