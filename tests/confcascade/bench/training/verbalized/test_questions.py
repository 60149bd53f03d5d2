"""Parts that share no text, and how a question is put to a model that is to state its confidence."""

from dataclasses import replace

import pytest
from confcascade import ConfigurationError
from confcascade.bench.training.verbalized import Questions
from confcascade.graders.example import Example


def test_no_text_is_in_two_parts(examples, questions):
    parts = [questions.training, questions.validation, questions.test]
    texts = [{example.question for example in part} for part in parts]
    assert sum(map(len, texts)) == len({example.question for example in examples})
    assert set.union(*texts) == {example.question for example in examples}


def test_a_question_is_put_with_and_without_the_instruction(questions):
    example = questions.training[0]
    assert questions.request(example).messages[-1].content == example.question
    assert questions.asked(example).messages[-1].content == f"{example.question}\n\nSure?"
    assert questions.asked(example).max_tokens == 40


def test_rewards_grade_by_the_example_with_that_id(questions):
    example = questions.training[3]
    assert questions.right(example.references[0], {"id": example.id}) == 1
    assert questions.right("something else", {"id": example.id}) == 0


def test_an_answer_that_cannot_be_graded_is_wrong(questions):
    class Nobody(type(questions.grader)):
        def grade(self, example, answer):
            return replace(super().grade(example, answer), value=None)

    assert replace(questions, grader=Nobody()).grade(questions.training[0], "x") == 0


@pytest.mark.parametrize(
    ("few", "said"),
    [
        ([Example(f"{i}?", references=("a",)) for i in range(30)], "too few questions"),
        ([Example(f"{i}?") for i in range(300)], "300 of 300 questions have no reference"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(questions, few, said):
    how = {name: getattr(questions, name) for name in ("prompt", "grader", "signal")}
    with pytest.raises(ConfigurationError, match=said):
        Questions.of(few, **how)
