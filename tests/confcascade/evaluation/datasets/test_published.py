"""The published formats, on rows in their layout everywhere, and on the data sets themselves where they are at hand."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from confcascade.errors import ConfigurationError
from confcascade.evaluation.datasets import format_of, read_examples
from confcascade.evaluation.examples import Example

DATA = Path(__file__).parents[5] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the data sets are not at hand")


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


# ---------------------------------------------------------------- MMLU

CSV = [["What is 2+2, and why?", "1", "2", "3", "4", "D"], ["question", "a", "b", "c", "d", "A"]]


def test_mmlu_as_its_authors_published_it(tmp_path):
    """CSV without a header: the subject and the ids come from the name of the file."""
    path = write_table(tmp_path / "high_school_physics_test.csv", CSV)
    assert format_of(path) == "mmlu"
    first, second = read_examples(path)
    assert first == Example(
        CSV[0][0], ("1", "2", "3", "4"), ("D",), group="high_school_physics", id="high_school_physics/test/0"
    )
    assert second.id == "high_school_physics/test/1"


def test_mmlu_as_a_folder(tmp_path):
    for name in ("law", "astronomy"):
        write_table(tmp_path / f"{name}_test.csv", CSV[:1])
    (tmp_path / "README.txt").write_text("not read")
    assert [example.id for example in read_examples(tmp_path)] == ["astronomy/test/0", "law/test/0"]
    write_table(tmp_path / "law_val.csv", CSV[:1])
    with pytest.raises(ConfigurationError, match="several splits, test, val: say which as `part`"):
        list(read_examples(tmp_path))
    assert [example.id for example in read_examples(tmp_path, part="val")] == ["law/val/0"]
    with pytest.raises(ConfigurationError, match=r"astronomy_dev\.csv"):
        list(read_examples(tmp_path, part="dev"))


def test_mmlu_without_a_subject_in_its_name_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="must tell the subject"):
        list(read_examples(write_table(tmp_path / "questions.csv", CSV)))


def test_a_header_that_ends_in_a_letter_is_no_row_of_mmlu(tmp_path):
    """A file of one's own may have a column for each choice, the last of them D."""
    rows = [["question", "answer", "A", "B", "C", "D"], ["2+2?", "D", "1", "2", "3", "4"]]
    path = write_table(tmp_path / "algebra_test.csv", rows)
    assert format_of(path) == "own"
    assert list(read_examples(path)) == [Example("2+2?", ("1", "2", "3", "4"), ("D",))]


def test_mmlu_as_rows(tmp_path):
    """The hub's rows tell the answer as an index; a question under two subjects is two examples."""
    row = {"question": "2+2?", "subject": "algebra", "choices": ["1", "2", "3", "4"], "answer": 3}
    path = write_lines(tmp_path / "test.jsonl", row, {**row, "subject": "law"}, {**row, "question": "x", "answer": "B"})
    assert format_of(path) == "mmlu"
    made = list(read_examples(path))
    assert [example.references for example in made] == [("D",), ("D",), ("B",)]
    assert [example.group for example in made] == ["algebra", "law", "algebra"]
    assert len({example.id for example in made}) == 3


def test_an_answer_that_mmlu_does_not_have_is_an_error(tmp_path):
    row = {"question": "2+2?", "subject": "algebra", "choices": ["1", "2"], "answer": "two"}
    with pytest.raises(ConfigurationError, match=r"Line 1 of .* format mmlu: .*letter or a 0-based index.*own"):
        list(read_examples(write_lines(tmp_path / "a.jsonl", row)))


@needs_data
def test_mmlu_whole():
    """All 7,032 even questions of the test split, under the ids of the recorded logits, repeated texts and all."""
    made = list(read_examples(DATA / "mmlu" / "mmlu_test_even.jsonl.gz"))
    assert len({example.id for example in made}) == 7032
    assert len({example.group for example in made}) == 57
    assert all(len(example.choices) == 4 and example.references[0] in "ABCD" for example in made)


# ---------------------------------------------------------------- GPQA

GPQA = ["Record ID", "Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]


def gpqa_row(number):
    answers = [f"{word} of {number}\n" for word in ("seven", "eight", "nine", "ten")]
    return [f"rec{number}", f"An invented question, number {number}?", *answers, "Optics", "Physics"]


def gpqa_file(path, numbers):
    return write_table(path, [[*GPQA, "Subdomain", "High-level domain"], *map(gpqa_row, numbers)])


def test_gpqa_choices_are_in_an_order_that_never_changes(tmp_path):
    """Not the file's, in which the right answer is always first; the order of the rows is of no account."""
    made = list(read_examples(gpqa_file(tmp_path / "gpqa_main.csv", range(400))))
    again = list(read_examples(gpqa_file(tmp_path / "other.csv", random.Random(0).sample(range(400), 400))))
    assert sorted(made, key=lambda each: each.id) == sorted(again, key=lambda each: each.id)
    for number, example in enumerate(made):
        letter = "ABCD".index(example.references[0])
        assert example.choices[letter] == f"seven of {number}"
    assert (made[0].group, made[0].id) == ("Physics", "rec0")
    # written down once: a change of the order would make recorded letters wrong
    assert [example.references[0] for example in made[:8]] == list("ABBBCDCB")
    # each letter 100 times of 400 in the mean, standard deviation 8.7: below 60 with a probability of 2e-6
    assert min(Counter(example.references[0] for example in made).values()) >= 60


def test_gpqa_with_a_wrong_answer_that_is_right_is_an_error(tmp_path):
    row = gpqa_row(1)
    row[4] = row[2].strip()
    path = write_table(tmp_path / "gpqa.csv", [[*GPQA, "Subdomain", "High-level domain"], row])
    with pytest.raises(ConfigurationError, match="also one of the wrong ones"):
        list(read_examples(path))
    row[4] = ""
    path = write_table(tmp_path / "gpqa.csv", [[*GPQA, "Subdomain", "High-level domain"], row])
    with pytest.raises(ConfigurationError, match="`Incorrect Answer 2` is empty"):
        list(read_examples(path))


# ---------------------------------------------------------------- PopQA


def test_popqa_as_a_table_and_as_lines(tmp_path):
    """The names that an answer goes by are JSON within a cell of the published table."""
    names = ["politician", "political leader"]
    header = ["id", "prop", "s_pop", "question", "possible_answers"]
    cells = ["42", "occupation", "41", "What is Ann's occupation?", json.dumps(names)]
    table = write_table(tmp_path / "popQA.tsv", [header, cells], delimiter="\t")
    lines = write_lines(tmp_path / "popqa.jsonl", {**dict(zip(header, cells, strict=True)), "possible_answers": names})
    expected = [Example("What is Ann's occupation?", references=tuple(names), group="occupation", id="42")]
    assert format_of(table) == format_of(lines) == "popqa"
    assert list(read_examples(table)) == list(read_examples(lines)) == expected


@needs_data
def test_popqa_whole():
    """Questions that read alike are about others of the same name, and have ids of their own."""
    made = list(read_examples(DATA / "popqa" / "popqa_a.jsonl.gz"))
    assert len(made) == 1000
    assert len({example.question for example in made}) == 989
    assert all(example.references for example in made)


# ---------------------------------------------------------------- GSM8K


def test_gsm8k_keeps_the_result_alone(tmp_path):
    path = write_lines(tmp_path / "test.jsonl", {"question": "How many?", "answer": "2*500=<<2*500=1000>>\n#### 1,000"})
    assert format_of(path) == "gsm8k"
    assert list(read_examples(path)) == [Example("How many?", references=("1000",))]
    path = write_lines(tmp_path / "bad.jsonl", {"question": "How many?", "answer": "12"})
    with pytest.raises(ConfigurationError, match="does not end in a result"):
        list(read_examples(path, "gsm8k"))


@needs_data
@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k_whole(name, count):
    made = list(read_examples(DATA / "gsm8k" / f"{name}.jsonl.gz"))
    assert len(made) == count
    for example in made:
        float(example.references[0])


# ---------------------------------------------------------------- ARC

TEXTS, LABELS = ["wind", "rain", "sun"], ["1", "2", "3"]


def test_arc_as_ai2_published_it_and_as_rows(tmp_path):
    """Choices that are numbered from 1 become letters."""
    pairs = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    ai2 = {"id": "NYSEDREGENTS_1", "question": {"stem": "What is wet?", "choices": pairs}, "answerKey": "2"}
    hub = {
        "id": "NYSEDREGENTS_1",
        "question": "What is wet?",
        "choices": {"text": TEXTS, "label": LABELS},
        "answerKey": "2",
    }
    expected = [Example("What is wet?", tuple(TEXTS), ("B",), id="NYSEDREGENTS_1")]
    for name, row in (("ai2", ai2), ("hub", hub)):
        path = write_lines(tmp_path / f"{name}.jsonl", row)
        assert format_of(path) == "arc"
        assert list(read_examples(path)) == expected


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answerKey": "4"}, "none of the labels 1, 2, 3"),
        ({"choices": TEXTS}, "must be an object"),
        ({"choices": {"text": TEXTS, "label": ["1", "2", "2"]}}, "one label each, all different"),
        ({"question": {"choices": []}}, "no text of a question"),
        ({"question": {"stem": "a", "choices": {}}}, "must be a list of objects"),
    ],
)
def test_arc_that_cannot_be_read_is_an_error(tmp_path, changed, said):
    row = {"question": "?", "choices": {"text": TEXTS, "label": LABELS}, "answerKey": "1"}
    with pytest.raises(ConfigurationError, match=said):
        list(read_examples(write_lines(tmp_path / "arc.jsonl", {**row, **changed})))


@needs_data
def test_arc_challenge_whole():
    """As it is at hand: in one file with two lists, choices by label, some of them numbered."""
    path = DATA / "arc_challenge" / "arc_challenge.json.gz"
    for part, count in (("dev", 299), ("test", 1172)):
        made = list(read_examples(path, part=part))
        assert len(made) == count
        assert {example.references[0] for example in made} <= set("ABCDE")
        assert all(len(example.references) == 1 for example in made)
    with pytest.raises(ConfigurationError, match="several lists, dev, test"):
        list(read_examples(path))


# ---------------------------------------------------------------- MMLU-Pro, SQuAD, TruthfulQA

MMLU_PRO = {
    "question_id": 70,
    "question": "Which of these is a noble gas?",
    "options": ["iron", "neon", "lead", "zinc", "gold", "oxygen", "chlorine", "sulphur", "boron", "carbon"],
    "answer": "B",
    "answer_index": 1,
    "cot_content": "",
    "category": "chemistry",
    "src": "made up",
}
SQUAD = {
    "id": "56be",
    "title": "Rivers",
    "context": "The Rhone leaves the lake at Geneva.",
    "question": "Where does the Rhone leave the lake?",
    "answers": {"text": ["Geneva", "at Geneva", "Geneva"], "answer_start": [29, 26, 29]},
}
MC1 = {
    "question": "What happens if you swallow a seed?",
    "mc1_targets": {"choices": ["It passes through you", "A tree grows", "You fall ill"], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["It passes through you", "Nothing", "A tree grows"], "labels": [1, 1, 0]},
}
GENERATION = {
    "type": "Adversarial",
    "category": "Misconceptions",
    "question": "What happens if you swallow a seed?",
    "best_answer": "It passes through you",
    "correct_answers": ["It passes through you", "Nothing"],
    "incorrect_answers": ["A tree grows"],
    "source": "made up",
}


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (MMLU_PRO, "mmlu_pro", (tuple(MMLU_PRO["options"]), ("B",), None, "chemistry", "70")),
        ({**MMLU_PRO, "answer": None}, "mmlu_pro", (tuple(MMLU_PRO["options"]), ("B",), None, "chemistry", "70")),
        (SQUAD, "squad", ((), ("Geneva", "at Geneva"), SQUAD["context"], "Rivers", "56be")),
        ({**SQUAD, "answers": {"text": [], "answer_start": []}}, "squad", ((), (), SQUAD["context"], "Rivers", "56be")),
        (GENERATION, "truthfulqa", ((), ("It passes through you", "Nothing"), None, "Misconceptions", None)),
    ],
)
def test_what_the_hub_has_of_them_is_asked_as_it_was_meant(tmp_path, row, name, expected):
    """With its choices, its passage and its references: none of them is lost."""
    path = write_lines(tmp_path / "a.jsonl", row)
    assert format_of(path) == name
    (found,) = read_examples(path)
    told = (found.choices, found.references, found.context, found.group)
    assert (found.question, *told) == (row["question"], *expected[:-1])
    assert expected[-1] in (None, found.id)


def test_the_true_choice_is_not_always_the_first(tmp_path):
    """As it is in the published rows of TruthfulQA."""
    rows = [{**MC1, "question": f"What happens if you swallow {i} seeds?"} for i in range(60)]
    found = list(read_examples(write_lines(tmp_path / "a.jsonl", *rows)))
    for each in found:
        assert each.choices["ABC".index(each.references[0])] == "It passes through you"
        assert set(each.choices) == set(MC1["mc1_targets"]["choices"])
    assert min(Counter(each.references[0] for each in found).values()) > 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**MMLU_PRO, "answer": "C"}, "name different options"),
        ({**MMLU_PRO, "answer": "K", "answer_index": None}, "the letter of one of its 10 options"),
        ({**MMLU_PRO, "answer_index": 12, "answer": None}, "no choice at the index 12"),
        ({**MC1, "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "exactly one of them 1"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path, row, message):
    with pytest.raises(ConfigurationError, match=message):
        list(read_examples(write_lines(tmp_path / "a.jsonl", row)))
