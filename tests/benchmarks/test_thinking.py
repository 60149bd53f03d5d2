"""The benchmark of efforts asks what it says it asks, of any model: here of one that cannot do sums."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from confcascade.models.bundled import WEIGHTS


def test_a_cascade_of_efforts_is_measured(load_script, capsys):
    """Each effort alone, and two cascades of both: in them only part of the questions is thought about."""
    lines = load_script("thinking").main(WEIGHTS / "small", count=4, most=(8,), shares=(0.25, 0.75))

    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    names = ["quick only", "thinking only, at most 8 tokens", *["quick, thinking (at most 8)"] * 2]
    assert [row[0].split(" below")[0] for row in cells] == names
    assert all(row[1].endswith("of 4") for row in cells)
    assert cells[1][2] == "4"  # it never closes its thoughts
    flops = [float(row[5]) for row in cells]
    assert flops[0] < flops[2] <= flops[3]
    assert capsys.readouterr().out.splitlines() == lines


def test_questions_are_what_they_are_graded_by(load_script):
    """Every other has one step; an answer is right by its last number."""
    script = load_script("thinking")
    found = script.questions(6, seed=3)

    assert found == script.questions(6, seed=3) != script.questions(6, seed=4)
    for question in found[1::2]:
        a, b, c = map(int, script.re.findall(r"\d+", question.text))
        assert question.answer == a * b + c
    for question in found[::2]:
        a, c = map(int, script.re.findall(r"\d+", question.text))
        assert question.answer == a + c
