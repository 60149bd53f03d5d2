"""The paper's cost tables follow from its own counts, by the library's cost functions, as far as they do."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture
def paper(load_script) -> ModuleType:
    return load_script("paper_arithmetic")


def test_appendix_d_to_the_last_operation(paper):
    """Its two worked examples, and the 70B alone."""
    assert paper.flops(("3B", "8B", "70B"), paper.NOMINAL)[1] == 110_390e9
    assert paper.flops(("8B", "70B"), paper.NOMINAL)[1] == 126_544e9
    assert paper.QUESTIONS * paper.query_flops(70e9) == 200_200e9


@pytest.mark.parametrize(
    ("chain", "every", "answering"),
    [
        (("3B", "8B"), -3.4, 21.3),
        (("3B", "70B"), 29.8, 32.6),
        (("8B", "70B"), 30.1, 36.8),
        (("3B", "8B", "70B"), 36.1, 44.9),
    ],
)
def test_every_model_that_ran_is_charged(paper, chain, every, answering):
    """Charged for its drafts, 3B -> 8B costs more than 8B alone, and the others save less than printed."""
    assert paper.reductions(chain, paper.NOMINAL) == pytest.approx((every, answering), abs=0.05)


def test_table_1_is_the_answering_stage_alone(paper):
    """With the models' actual sizes, its reductions come out within 0.4 points."""
    for chain, printed in paper.TABLE_1.items():
        assert paper.reductions(chain, paper.ACTUAL)[1] == pytest.approx(printed, abs=0.4)


def test_table_13_is_weighted_by_tokens(paper):
    """Counting questions falls short of every sum printed for the 70B; longer escalated questions explain it."""
    shares = {chain: paper.dollars(chain).last_share for chain in paper.DOLLARS}
    assert shares["3B", "70B"] == pytest.approx(0.705, abs=0.001)
    assert shares["8B", "70B"] == pytest.approx(0.630, abs=0.001)
    assert shares["3B", "8B", "70B"] == pytest.approx(0.557, abs=0.001)
    for chain in shares:
        row, counted = paper.dollars(chain), paper.KEPT[chain][-1] / paper.QUESTIONS
        assert shares[chain] > counted
        if chain[-1] == "70B":
            assert row.by_questions < row.printed - 0.002
    saved = {chain: 100 * (1 - paper.dollars(chain).every_stage / 0.129) for chain in shares if chain[-1] == "70B"}
    assert saved["3B", "70B"] == pytest.approx(16.3, abs=0.1)
    assert saved["8B", "70B"] == pytest.approx(20.8, abs=0.1)
    assert saved["3B", "8B", "70B"] == pytest.approx(19.6, abs=0.1)
    assert paper.dollars(("3B", "8B")).every_stage > paper.DOLLARS_ALONE["8B"]


@pytest.mark.parametrize(
    ("pair", "kept", "every"),
    [
        ("4B -> 8B", 0.356, -14.4),
        ("4B -> 32B", 0.602, 47.7),
        ("8B -> 32B", 0.442, 19.2),
        ("8B -> 70B, GPQA", 0.044, -7.0),
    ],
)
def test_pairs_below_the_break_even_cost_more(paper, pair, kept, every):
    """What Tables 3 and 6 say is saved says what was kept; two of the four pairs kept too little to save anything."""
    small, large, printed = paper.PAIRS[pair]
    assert paper.implied(small, large, printed) == (pytest.approx(kept, abs=5e-4), pytest.approx(every, abs=0.06))
    assert (every < 0) == (kept < small / large)


def test_it_prints(paper, capsys):
    """One command prints all of it."""
    paper.main()
    printed = capsys.readouterr().out
    assert "110,390" in printed
    assert "126,544" in printed
