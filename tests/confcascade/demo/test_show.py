"""What the demo prints can be read in a narrow terminal, and nothing of it is lost."""

from __future__ import annotations

import io
import re

import pytest
from confcascade import Cascade, Stage
from confcascade.demo.show import DOCUMENTS, NARROWEST, WIDE, _print_answers, _told
from confcascade.testing import ScriptedModel
from rich.console import Console

PASSAGE = (
    "Context: The product of Gumil Brothers is coffee. The birthplace of Kabror Brothers is Krosi. Vuki Mills makes "
    "copper.\nQuestion: What is the product of Vuki Mills?\nAnswer:"
)
ANSWERS = [
    {
        "question": question,
        "document": document,
        "answer": "I don't know (right)",
        "answered by": "medium",
        "scores": "medium: p_ik 0.951 >= 0.7, p_t 0.631 < 0.75 (ended after 11 tokens)",
        "compute": "173.4 MFLOP (148.2 answering)",
    }
    for question, document in zip([PASSAGE] * 9, sorted(path.stem for path in DOCUMENTS.glob("*.txt")), strict=False)
]


def printed(width: int, answers: list[dict[str, str]]) -> str:
    console = Console(width=width, file=io.StringIO())
    _print_answers(console, "LlamaIndex: a query engine", answers)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, WIDE - 1, WIDE, 120, 200])
@pytest.mark.parametrize("columns", ["document", None])
def test_no_word_is_cut_and_no_line_is_too_long(width, columns):
    """Of a passage, the longest name of a document, scores and costs."""
    answers = [{name: value for name, value in each.items() if columns or name != "document"} for each in ANSWERS]
    shown = printed(width, answers)
    assert max(map(len, shown.splitlines())) <= width
    missing = {word for each in answers for value in each.values() for word in value.split()} - set(shown.split())
    assert not missing


@pytest.mark.parametrize("width", [WIDE, 120])
def test_no_cell_is_narrower_than_is_readable(width):
    borders = next(line for line in printed(width, ANSWERS).splitlines() if "┳" in line)
    assert min(len(cell) - 2 for cell in re.findall("━+", borders)) >= NARROWEST


def test_a_narrow_terminal_has_a_line_for_each_thing():
    """A passage has the room of the whole terminal, and not that of a cell."""
    lines = printed(80, ANSWERS[:1]).splitlines()
    starts = [line.split("  ")[0] for line in lines if line[:1].strip()]
    assert starts == ["LlamaIndex: a query engine", *ANSWERS[0]]
    assert len(lines) < 15


@pytest.mark.parametrize("width", [80, 120])
def test_a_word_longer_than_its_cell_is_folded(width):
    """And not cut off: of a real model's answer everything is shown."""
    link = "https://example.org/" + "".join(f"{i:03}" for i in range(60))
    shown = printed(width, [{**ANSWERS[0], "answer": link}])
    assert "…" not in shown
    assert shown.count("059") == 1


def test_what_models_say_is_not_markup():
    """Questions, answers and names in square brackets stand as they are."""
    outcome = Cascade([Stage(ScriptedModel("[/b]", {"[/i]?": "yes [/i]"}))]).run("[/i]?")
    shown = printed(80, [_told(outcome.record, "[/i]?", outcome.text, right=False, reference="[/u]")])
    for text in ("question     [/i]?", "answer       yes [/i] (wrong, it is [/u])", "answered by  [/b]"):
        assert text in shown
