"""Graders by name."""

from __future__ import annotations

import pytest
from confcascade.errors import ConfigurationError
from confcascade.graders import grader_from_string
from confcascade.graders.example import Example


@pytest.mark.parametrize("name", ["choice", "exact", "normalized", "contains", "numeric"])
def test_a_grader_by_its_name(name):
    grader = grader_from_string(name, refusal="^pass$")
    assert grader.name == name
    assert grader.refuses("pass")


def test_a_tolerance():
    assert grader_from_string("numeric:0.5").grade(Example("?", references=("3",)), "3.5").value == 1
    with pytest.raises(ConfigurationError, match="must be a number"):
        grader_from_string("numeric:much")


def test_a_judge_names_its_model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    pytest.importorskip("openai")
    assert grader_from_string("judge:openai:gpt-4o").identity()["model"] == "gpt-4o"


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_graders.py").write_text(
        "from pydantic import BaseModel\n"
        "class City(BaseModel):\n    name: str\n    size: int\n"
        "def short(example, answer):\n    return len(answer) < 5\n"
        "class Graders:\n    long = staticmethod(lambda example, answer: len(answer) >= 5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_a_function_and_a_class_of_ones_own():
    example = Example("?", references=("Rome",))
    assert grader_from_string("my_graders:short").grade(example, "Rome").value == 1
    assert grader_from_string("my_graders:Graders.long").grade(example, "Rome").value == 0
    assert (
        grader_from_string("structured:my_graders:City#name").grade(example, '{"name": "Rome", "size": 3}').value == 1
    )
    whole = grader_from_string("structured:my_graders:City")
    assert (
        whole.grade(Example("?", references=('{"name": "Rome", "size": 3}',)), '{"size": 3, "name": "Rome"}').value == 1
    )


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "must be one of choice"),
        ("squad", "must be one of choice"),
        ("judge:", "must be one of choice"),
        ("structured:my_graders", "must be one of choice"),
        ("choice:x", "must be one of choice"),
        ("missing_module:f", "cannot be imported"),
        ("my_graders:missing", "has no 'missing'"),
        ("structured:my_graders:short", "pydantic class"),
    ],
)
def test_what_names_no_grader_is_one_sentence(name, said):
    with pytest.raises(ConfigurationError, match=said):
        grader_from_string(name)
