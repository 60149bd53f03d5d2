"""What a recording gives to learn from, and what it does not."""

import pytest
from confcascade import ConfigurationError, Message
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.training import labelled
from confcascade.graders.example import Example


def test_grades_are_labels_and_prompts_are_asked_again(model):
    rows = model.rows(20)
    other = rows[0].model_copy(update={"model": "large", "grade": 1.0})
    material = labelled([*rows, other], model)

    assert [each.id for each in material.asked] == [f"q{i}" for i in range(20)]
    assert [each.right for each in material.asked] == [row.grade == 1 for row in rows]
    assert material.asked[3].request.messages == (Message("user", "question 3?"),)
    assert material.split_by == "prompt"


def test_of_rows_with_one_key_the_last_holds(model):
    rows = model.rows(5)
    again = rows[2].model_copy(update={"grade": 1 - rows[2].grade})
    material = labelled([*rows, again], model)
    assert len(material.asked) == 5
    assert material.asked[2].right == (again.grade == 1)


def test_failures_and_ungraded_answers_are_left_out_and_counted(model):
    rows = model.rows(10)
    rows[0] = rows[0].model_copy(update={"error": "TimeoutError", "answer": "", "grade": None})
    rows[1] = rows[1].model_copy(update={"grade": None})
    rows[2], rows[3] = (rows[i].model_copy(update={"grade": grade}) for i, grade in ((2, 0.7), (3, 0.4)))
    material = labelled(rows, model)
    assert material.left_out == {"the model failed": 1, "not graded": 1}
    assert [each.right for each in material.asked][:2] == [True, False]
    assert material.partly == 2
    with pytest.raises(ConfigurationError, match="can be learned from: 1 the model failed, 1 not graded"):
        labelled(rows[:2], model)


def test_questions_of_the_data_stand_in_for_prompts(model):
    """They are put again as they were: with the system message whose end the recording does not tell."""
    prompt = PROMPTS["open-ended"]
    examples = [Example(f"question {i}?", references=("yes",), id=f"q{i}") for i in range(4)]
    rows = [row.model_copy(update={"prompt": None, "prompt_version": prompt.version}) for row in model.rows(5)]
    material = labelled(rows, model, examples=examples, prompt=prompt)
    assert material.asked[1].request.messages == prompt.messages(examples[1])
    assert material.left_out == {"not in the data": 1}
    assert (material.split_by, material.asked[1].kept_with) == ("question", "question 1?")
    with pytest.raises(ConfigurationError, match="Name the prompt that it was collected with"):
        labelled(rows, model, examples=examples, prompt=PROMPTS["plain"])


def test_what_cannot_be_told_is_refused(model):
    rows = model.rows(3)
    with pytest.raises(ConfigurationError, match="keeps no prompts"):
        labelled([row.model_copy(update={"prompt": None}) for row in rows], model)
    with pytest.raises(ConfigurationError, match="have system messages"):
        labelled([row.model_copy(update={"prompt": "system: Be brief.\n\nuser: Why?"}) for row in rows], model)
    with pytest.raises(ConfigurationError, match="no answers of model 'm'; it has large"):
        labelled([row.model_copy(update={"model": "large"}) for row in rows], model)
    with pytest.raises(ConfigurationError, match="it is empty"):
        labelled([], model)
    with pytest.raises(ConfigurationError, match="as the build abc, and the model at hand is scripted-m"):
        labelled([row.model_copy(update={"build": "abc"}) for row in rows], model)
    with pytest.raises(ConfigurationError, match="'q0' has no group"):
        labelled(rows, model, by_group=True)


def test_groups_stay_together_if_asked(model):
    material = labelled(model.rows(4, group="fact"), model, by_group=True)
    assert {each.kept_with for each in material.asked} == {"fact"}
    assert material.split_by == "group"


def test_a_smaller_draw_is_part_of_a_larger_one(model):
    few, many = ({each.id for each in labelled(model.rows(50), model, limit=n).asked} for n in (10, 30))
    assert (len(few), len(many)) == (10, 30)
    assert few < many
