"""Labels out of a file that grows, and from the largest model, which is paid for each."""

import json
import threading

import pytest
from confcascade import ConfigurationError, Prices, Stage, TokenProbability, Usage
from confcascade.bench.labelling import FileLabels, JournalEntry, LargestLabels, Wanted, with_largest
from confcascade.bench.recording import read_rows
from confcascade.graders import NormalizedMatch
from confcascade.testing import ScriptedModel

from .conftest import SIZES, material, ungraded


def wanted(i, **changes):
    return Wanted(
        **{
            "place": i,
            "question": f"q{i}",
            "prompt": f"What is {i}?",
            "answers": ("yes", "no"),
            "models": (("small",), ("large",)),
        }
        | changes
    )


def write(path, *labels):
    path.write_text("".join(json.dumps(label) + "\n" for label in labels))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.jsonl"


def test_it_writes_what_it_wants_and_reads_what_was_filled_in(path):
    """A wanted line with its grades is a label; what has one is wanted no more."""
    source = FileLabels(path)
    assert source.ask([wanted(0), wanted(1)]) == []
    lines = [json.loads(line) for line in (path.parent / "labels.wanted.jsonl").read_text().splitlines()]
    assert lines == [
        {"question": f"q{i}", "prompt": f"What is {i}?", "answers": ["yes", "no"], "grades": [None, None]}
        for i in (0, 1)
    ]
    write(path, {**lines[1], "grades": [1, 0.5]})
    (label,) = source.ask([wanted(0), wanted(1)])
    assert (label.wanted.question, label.grades) == ("q1", {"small": 1.0, "large": 0.5})
    assert [json.loads(line)["question"] for line in source.wanted_path.read_text().splitlines()] == ["q0"]


def test_nobody_can_tell(path):
    write(path, {"question": "q0", "skip": True})
    (label,) = FileLabels(path).ask([wanted(0)])
    assert label.grades is None


def test_it_waits_for_the_file_to_grow(path):
    """Until there is a label of one of these questions."""
    timer = threading.Timer(0.3, write, (path, {"question": "q1", "grades": [0, 1]}))
    timer.start()
    (label,) = FileLabels(path, wait=True).ask([wanted(0), wanted(1)])
    timer.join()
    assert label.wanted.place == 1


def test_a_line_that_is_being_written_is_no_label_yet(path):
    path.write_text('{"question": "q0", "grades": [1, 0]}\n{"question": "q1", "gra')
    assert [each.wanted.question for each in FileLabels(path).ask([wanted(0), wanted(1)])] == ["q0"]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ({"question": "q0", "grades": [1]}, "each of its 2 answers"),
        ({"question": "q0", "grades": [None, None]}, "each of its 2 answers"),
        ({"question": "q0", "grades": [2, 0]}, "from 0 to 1"),
        ({"question": "q0"}, "must have `grades`"),
        ({"question": "q0", "answers": ["no", "yes"], "grades": [1, 0]}, "in another order"),
    ],
)
def test_what_is_no_label_of_its_question_is_refused(path, label, told):
    write(path, label)
    with pytest.raises(ConfigurationError, match=told):
        FileLabels(path).ask([wanted(0)])


def test_what_is_no_label_at_all_is_refused(path):
    path.write_text("yes\n{}\n")
    with pytest.raises(ConfigurationError, match=r"Line 1 of .* is no label"):
        FileLabels(path).ask([wanted(0)])
    write(path, {"question": "q0", "grades": [1, 0]}, {"question": "q0", "grades": [0, 1]})
    with pytest.raises(ConfigurationError, match=r"Line 2 .* a second time"):
        FileLabels(path).ask([wanted(0)])
    with pytest.raises(ConfigurationError, match="at least 1"):
        FileLabels(path, batch=0)


def test_a_label_changed_after_it_was_taken_is_noticed(path):
    """Taking it out of the file is no change; turning it round is."""
    taken = [
        JournalEntry(number=1, place=0, question="q0", grades={"small": 1.0, "large": 0.0}),
        JournalEntry(number=2, place=1, question="q1", grades=None),
    ]
    source = FileLabels(path)
    write(path, {"question": "q0", "grades": [1, 0]}, {"question": "q1", "skip": True})
    source.check(taken, wanted)
    write(path, {"question": "q1", "skip": True})
    source.check(taken, wanted)
    for changed in ({"question": "q0", "grades": [0, 0]}, {"question": "q1", "grades": [1, 0]}):
        write(path, changed)
        with pytest.raises(ConfigurationError, match="not the one that was taken"):
            source.check(taken, wanted)


# ------------------------------------------------------------------ the largest model


def largest(tmp_path, script, **options):
    model = ScriptedModel("large", script)
    stage = Stage(model, [TokenProbability()], 0.5, prices=Prices(1e6, 1e6))
    return model, LargestLabels(stage, tmp_path / "largest.jsonl", NormalizedMatch(), **options)


def only_small(i, text="Yes."):
    return wanted(i, answers=(text,), models=(("small",),))


def test_the_largest_model_is_asked_once_and_charged(tmp_path):
    """An answer is right if it is the same; a second run reads it from the recording."""
    model, source = largest(tmp_path, {"What is 0?": "yes", "What is 1?": "no"})
    labels = source.ask([only_small(0), only_small(1)])
    rows = {row.question: row for row in read_rows(tmp_path / "largest.jsonl")}

    assert [label.grades for label in labels] == [{"large": 1.0, "small": 1.0}, {"large": 1.0, "small": 0.0}]
    assert [label.usd for label in labels] == [rows[f"q{i}"].usage.total_tokens for i in (0, 1)]
    asked = len(model.calls)
    again = largest(tmp_path, {})[1].ask([only_small(0), only_small(1)])
    assert [label.grades for label in again] == [label.grades for label in labels]
    assert len(model.calls) == asked


def test_where_it_gives_no_answer_nothing_is_lost(tmp_path):
    """As `agreement` has it; but a call that failed is no answer, and is made again."""
    _, source = largest(tmp_path, {"What is 0?": " "})
    (label,) = source.ask([only_small(0)])
    assert label.grades == {"large": 1.0, "small": 1.0}

    def down(request):
        raise ConnectionError("down")

    _, failing = largest(tmp_path / "other", down)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match=r"answers none of the questions.*down"):
        failing.ask([only_small(1)])
    _, working = largest(tmp_path / "other", {"What is 1?": "Yes"})
    (label,) = working.ask([only_small(1)])
    assert label.grades == {"large": 1.0, "small": 1.0}


@pytest.mark.parametrize("prompt", ["", "system: Be brief.\n\nuser: What is 0?"])
def test_it_must_be_asked_as_the_smaller_ones_were(tmp_path, prompt):
    model, source = largest(tmp_path, {})
    with pytest.raises(ConfigurationError, match="cannot be put to 'large'"):
        source.ask([only_small(0) if prompt is None else wanted(0, prompt=prompt)])
    assert not model.calls


def test_what_stands_for_answers_that_were_not_bought():
    """One row for each question: its own, or the tokens that its answers come to in the mean, and no text."""
    rows = ungraded(4, models=("small",))
    told = [
        row.model_copy(
            update={"model": "large", "answer": "yes", "usage": Usage(20, 10 * i), "prompt_version": "other"}
        )
        for i, row in enumerate(rows[:2], start=1)
    ]
    made = [row for row in with_largest(rows, "large", told) if row.model == "large"]
    assert [row.question for row in made] == ["q0", "q1", "q2", "q3"]
    assert [row.usage for row in made] == [Usage(20, 10), Usage(20, 20), Usage(20, 15), Usage(20, 15)]
    assert [row.answer for row in made] == ["yes", "yes", "(not kept)", "(not kept)"]
    assert {row.prompt_version for row in made} == {"v1"}
    assert [row.usage for row in with_largest(rows, "large", ()) if row.model == "large"] == [Usage(20, 5)] * 4
    assert material([*rows, *made]).models == ("small", "large")
    assert SIZES["large"].parameters > SIZES["small"].parameters
