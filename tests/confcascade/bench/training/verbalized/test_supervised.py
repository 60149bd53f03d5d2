"""What a model learns from: its own answers, each with how often it was right."""

from dataclasses import replace

import pytest
from confcascade import ConfigurationError

pytest.importorskip("torch")
from confcascade.bench.training.verbalized.rollouts import Answer, Rollout, end_tokens
from confcascade.bench.training.verbalized.supervised import lessons


def spelled(model, *texts):
    """Tokens that the model could have written, and its end."""
    [end] = end_tokens(model)
    return [(*model.tokenizer(f" {text}", add_special_tokens=False)["input_ids"], end) for text in texts]


@pytest.fixture
def one(questions, small):
    """A question, and four answers to it, one of them right and one cut off."""
    example = questions.training[0]
    right, wrong, other, cut = spelled(small, example.references[0], "baker", "sailor", "baker")
    answers = (Answer(right, 1.0), Answer(wrong, 0.0), Answer(other, 0.0), Answer(cut[:-1], 0.0))
    return example, {example.id: Rollout(example.id, answers)}


def test_a_text_is_prompt_answer_and_share(questions, small, one):
    example, rollouts = one
    found = lessons(small, questions, rollouts, answers=4)
    assert len(found) == 3  # not the one that was cut off
    prompt = small.encode(questions.asked(example))
    said = set()
    for lesson in found:
        assert lesson.input_ids[: len(prompt)] == tuple(prompt)
        learned = lesson.input_ids[len(prompt) :]
        assert lesson.labels == (*[-100] * len(prompt), *learned)
        assert learned[-1] in end_tokens(small)
        said.add(small.tokenizer.decode(learned, skip_special_tokens=True))
    assert said == {f"{text}\n<confidence>0.25</confidence>" for text in (example.references[0], "baker", "sailor")}


def test_the_product_reads_what_it_learns(questions, small, one):
    """The statement is taken off, and is the number that was meant."""
    from confcascade.types import Response

    example, rollouts = one
    [lesson, *_] = lessons(small, questions, rollouts, answers=1)
    prompt = small.encode(questions.asked(example))
    text = small.tokenizer.decode(lesson.input_ids[len(prompt) :], skip_special_tokens=True)
    read = questions.signal.reads(questions.request(example), Response(text))
    assert read.stated.values == (0.25,)
    assert "confidence" not in read.text


def test_so_many_answers_of_each_question(questions, small, one):
    _, rollouts = one
    assert len(lessons(small, questions, rollouts, answers=2)) == 2


def test_answers_that_all_reach_the_limit_teach_nothing(questions, small, one):
    example, rollouts = one
    cut = replace(rollouts[example.id], answers=rollouts[example.id].answers[3:])
    with pytest.raises(ConfigurationError, match="came to an end within 40 tokens"):
        lessons(small, questions, {example.id: cut}, answers=4)
