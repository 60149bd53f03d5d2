"""Which format a file has, and what becomes of rows that come twice."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
from confcascade.bench.questions import FORMATS, format_of, read_examples
from confcascade.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_format_that_was_recognised_is_logged_without_content(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", {"question": "secret", "possible_answers": ["hush"]})
    with caplog.at_level(logging.INFO, logger="confcascade"):
        list(read_examples(path))
    assert "in the format popqa" in caplog.text
    assert "secret" not in caplog.text
    assert "hush" not in caplog.text


def test_a_file_that_could_be_two_formats_is_not_guessed(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "?", "possible_answers": ["a"], "reference": "b"})
    with pytest.raises(ConfigurationError, match=r"formats own, popqa.*Name one as `format`"):
        list(read_examples(path))
    assert next(read_examples(path, "own")).references == ("b",)
    assert next(read_examples(path, "popqa")).references == ("a",)


def test_a_file_without_questions_names_its_keys_and_the_formats(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "?", "gold": "a"})
    with pytest.raises(ConfigurationError, match=r"no `question`: its keys are prompt, gold.*own, mmlu, mmlu_pro"):
        format_of(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_question_is_an_error_with_file_and_line(tmp_path, name):
    """In whatever format, and whatever else is there."""
    row = {"question": "", "subject": "x", "choices": ["a", "b"], "answer": "A", "possible_answers": ["a"]}
    row |= {"Question": "", "Correct Answer": "a"} | {f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)}
    if name == "arc":
        row |= {"answerKey": "A", "choices": {"text": ["a"], "label": ["A"]}}
    with pytest.raises(
        ConfigurationError, match=rf"Line 1 of '.*a\.jsonl' cannot be read in the format {name}: .*uestion"
    ):
        list(read_examples(write(tmp_path / "a.jsonl", row), name))


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_key_is_an_error_with_file_and_line(tmp_path, name):
    path = write(tmp_path / "a.jsonl", {"unknown": "?"})
    with pytest.raises(ConfigurationError, match=rf"Line 1 of '.*a\.jsonl' cannot be read in the format {name}"):
        list(read_examples(path, name))


def test_formats_and_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="There is no file"):
        read_examples(tmp_path / "a.jsonl")
    path = write(tmp_path / "a.jsonl")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigurationError, match="has no rows"):
        read_examples(path)
    with pytest.raises(ConfigurationError, match="has no rows"):
        list(read_examples(path, "own"))
    with pytest.raises(ConfigurationError, match="must be auto, own or mmlu"):
        read_examples(path, "triviaqa")
    with pytest.raises(ConfigurationError, match=r"The folder '.*' has no file that ends in \.jsonl"):
        list(read_examples(tmp_path / "nothing"))


def test_a_folder_of_files_is_one_data_set(tmp_path):
    """In the order of their names; other files are passed over, and ids are unique across them."""
    write(tmp_path / "b.jsonl", {"question": "b", "reference": "x"})
    write(tmp_path / "a.jsonl", {"question": "a", "reference": "y"}, {"question": "a2", "reference": "z"})
    (tmp_path / "README.md").write_text("not read")
    assert format_of(tmp_path) == "own"
    assert [example.question for example in read_examples(tmp_path)] == ["a", "a2", "b"]
    assert [example.question for example in read_examples(tmp_path, "own")] == ["a", "a2", "b"]
    write(tmp_path / "c.jsonl", {"question": "a", "reference": "other", "id": "1"}, {"question": "c", "id": "1"})
    with pytest.raises(ConfigurationError, match=r"line 2 of '.*c\.jsonl' has the id '1' of the one in line 1"):
        list(read_examples(tmp_path))
    write(tmp_path / "c.jsonl", {"question": "c", "answer": "so #### 72"})
    with pytest.raises(ConfigurationError, match="are of the formats gsm8k, own"):
        read_examples(tmp_path)


def test_rows_that_are_there_again_are_draws_and_counted(tmp_path):
    """A file of traffic repeats itself; a warning says how often, for it may be a slip."""
    row = {"question": "a", "reference": "x"}
    path = write(tmp_path / "a.jsonl", row, {"question": "b", "reference": "y"}, row, row)
    with pytest.warns(UserWarning, match="2 of 4 rows of '.*a.jsonl' repeat an earlier one, word for word"):
        assert [example.question for example in read_examples(path)] == ["a", "b", "a", "a"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"question": "a", "reference": "x"}, {"question": "a", "reference": "y"}),
        ({"question": "a", "id": "1"}, {"question": "b", "id": "1"}),
        ({"question": "a", "group": "g"}, {"question": "a", "group": "h"}),
    ],
)
def test_different_rows_under_one_id_are_an_error_that_names_both(tmp_path, first, second):
    """One would stand for the other in a recording."""
    path = write(tmp_path / "a.jsonl", first, {"question": "z"}, second)
    with pytest.raises(ConfigurationError, match=r"in line 3 of .* of the one in line 1 of .*`id` of its own"):
        list(read_examples(path))


def test_the_same_question_under_two_ids_is_two_examples(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "a", "id": "1"}, {"question": "a", "id": "2"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [example.id for example in read_examples(path)] == ["1", "2"]


@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.text()), min_size=1))
def test_ids_are_unique_or_it_is_an_error(tmp_path_factory, rows):
    """Whatever the rows: all are read, or two differ under one id."""
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"question": q, "reference": r}) + "\n" for q, r in rows))
    references = {}
    conflict = any(references.setdefault(q, r.strip() and r) != (r.strip() and r) for q, r in rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if conflict:
            with pytest.raises(ConfigurationError):
                list(read_examples(path))
        else:
            made = list(read_examples(path))
            assert [example.question for example in made] == [q for q, _ in rows]
            assert len({example.id for example in made}) == len({q for q, _ in rows})


def test_examples_come_one_at_a_time(tmp_path):
    """The first is there before the file is read to its end."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a"}\n{"question": "b"}\nnot JSON\n')
    found = read_examples(path)
    assert [next(found).question, next(found).question] == ["a", "b"]
    with pytest.raises(ConfigurationError, match="Line 3"):
        next(found)


CERTAIN = {"question": "Capital of France?", "choices": ["Rome", "Paris"], "reference": "B"}
UNCLEAR = {"question": "Which is a vitamin?", "choices": ["C", "Paris", "Rome"], "reference": "C"}


@pytest.mark.parametrize("rows", [[CERTAIN, UNCLEAR], [UNCLEAR, CERTAIN]])
def test_letters_are_letters_where_the_file_uses_letters(tmp_path, rows):
    """The text of one choice may be another's letter."""
    found = {each.question: each.references for each in read_examples(write(tmp_path / "q.jsonl", *rows))}

    assert found == {CERTAIN["question"]: ("B",), UNCLEAR["question"]: ("C",)}


@pytest.mark.parametrize("rows", [[UNCLEAR], [UNCLEAR, CERTAIN | {"reference": "Paris"}]], ids=["only one", "texts"])
def test_where_it_does_not_what_could_be_either_is_refused(tmp_path, rows):
    with pytest.raises(ConfigurationError, match=r"Line 1 .* write letters in every row, or `reference_index`"):
        list(read_examples(write(tmp_path / "q.jsonl", *rows)))
