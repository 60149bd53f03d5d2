"""The benchmark of retrieval scores beside P(T)."""

from __future__ import annotations

import re
from itertools import combinations
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_index.retrievers.bm25")


@pytest.fixture
def retrieval_score(load_script) -> ModuleType:
    return load_script("retrieval_score")


def test_no_two_passages_are_about_the_same(retrieval_score: ModuleType) -> None:
    """Else they contradict each other, and no retriever could find the one that a question means."""
    asked = retrieval_score.reading_questions(25)
    passages = [retrieval_score.parts(question)[0] for question in asked]
    names = [set(re.findall(r"[A-Z]\w+ [A-Z]\w+", passage)) for passage in passages]

    assert len(asked) == 25
    assert all(names)
    assert not any(one & other for one, other in combinations(names, 2))


def test_its_table_has_a_row_for_every_model(retrieval_score: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares and areas are such, and each interval holds its area."""
    retrieval_score.main(questions=40, missing=0.3, sizes="small")

    *_, header, _, row = capsys.readouterr().out.splitlines()
    areas = re.findall(r"(\d\.\d\d) \((\d\.\d\d)–(\d\.\d\d)\)", row)
    assert header.count("|") == row.count("|")
    assert row.startswith("| small |")
    assert len(areas) == len(retrieval_score.SIGNALS)
    assert all(0 <= float(low) <= float(area) <= float(high) <= 1 for area, low, high in areas)
