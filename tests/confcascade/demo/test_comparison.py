"""A cascade beside its smallest and largest model: what the table and the thresholds say is the cascade's own."""

import io
import math
import sys
from dataclasses import replace

import pytest
from confcascade import Cascade, Stage, TokenProbability
from confcascade.cost import Architecture
from confcascade.demo.comparison import Comparison, Contender, amount, ready_to_plot
from confcascade.demo.thresholds import at_thresholds, thresholds_table
from confcascade.errors import ConfigurationError, MissingExtraError
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Cost
from rich.console import Console

ANSWERS = [("1", 0.97, "1"), ("2", 0.85, "2"), ("no", 0.85, "3"), ("4", 0.55, "4"), ("5", 0.3, "no")]
QUESTIONS = [f"Question {i}?" for i in range(len(ANSWERS))]


def model(name, place, parameters):
    script = {
        question: Reply(answers[place], probability=answers[1])
        for question, answers in zip(QUESTIONS, ANSWERS, strict=True)
    }
    return ScriptedModel(name, script, architecture=Architecture(parameters, 2, 10))


SMALL, LARGE = model("small", 0, 1_000_000), model("large", 2, 10_000_000)


def played(name, stages):
    outcomes = Cascade(stages).run_batch(QUESTIONS)
    right = [outcome.text == str(i + 1) for i, outcome in enumerate(outcomes)]
    return Contender.of(name, right, outcomes), outcomes


def compared(threshold=0.8):
    small, _ = played("small", [Stage(SMALL)])
    large, _ = played("large", [Stage(LARGE)])
    cascade, outcomes = played("cascade", [Stage(SMALL, [TokenProbability()], {"p_t": threshold}), Stage(LARGE)])
    return Comparison.of(small, cascade, large), outcomes


def test_both_accountings_are_relative_to_the_largest_model():
    """The cascade's share is what its records say; the answering stage's is less by the drafts that were escalated."""
    found, outcomes = compared()
    whole = sum(cost.flops for cost in found.largest.every)
    assert found.unit == "flops"
    assert found.share(found.largest) == 1
    assert found.share(found.cascade) == sum(outcome.record.cost.flops for outcome in outcomes) / whole
    assert 0 < found.share(found.cascade, every=False) < found.share(found.cascade)
    assert [sum(each.right) for each in (found.smallest, found.cascade, found.largest)] == [4, 3, 4]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.6, 0.8, 0.9, 1.0])
def test_another_threshold_does_what_a_live_cascade_does(threshold):
    """Kept, right and cost of the arithmetic are those of the cascade at that threshold."""
    live, outcomes = compared(threshold)
    scores = [p for _, p, _ in ANSWERS]
    (row,) = at_thresholds(compared(0.8)[0], scores, [threshold])
    assert row.kept == sum(outcome.stage == 0 for outcome in outcomes)
    assert row.right == sum(live.cascade.right)
    assert row.share == pytest.approx(live.share(live.cascade), rel=1e-12)


def test_a_draft_without_a_score_is_never_kept():
    """Not at the threshold 0 either."""
    (row,) = at_thresholds(compared()[0], [None] * 5, [0.0])
    assert row.kept == 0


def test_money_counts_where_it_is_asked_for():
    """Dollars go before operations then; where they are not known, that is an error."""
    costs = tuple(Cost(flops=1.0, tokens=2, usd=usd, seconds=1.0) for usd in (0.1, 0.2))
    known = Contender("large", (True, True), costs, costs)
    assert Comparison.of(known, known, known, in_dollars=True).unit == "usd"
    assert Comparison.of(known, known, known).unit == "flops"
    unpriced, _ = compared()
    with pytest.raises(ConfigurationError, match="usd"):
        Comparison.of(unpriced.smallest, unpriced.cascade, unpriced.largest, in_dollars=True)


def test_without_sizes_tokens_count():
    """What is not known of one model is compared of none."""
    costs = (Cost(flops=None, tokens=10, usd=None, seconds=0.5),)
    unsized = Contender("large", (True,), costs, costs)
    assert all(math.isnan(value) for value in unsized.mean_costs()[:2])
    assert Comparison.of(unsized, unsized, unsized).unit == "tokens"


def test_tables_show_every_contender_and_threshold():
    """In 80 columns, with square brackets in names as they are."""
    found, _ = compared()
    console = Console(width=80, file=io.StringIO())
    console.print(found.table("5 questions"))
    console.print(thresholds_table(at_thresholds(found, [0.9] * 5, [0.5, 0.95]), "small"))
    shown = console.file.getvalue()
    for part in ("5 questions", "4 (80.0%)", "3 (60.0%)", "100.0%", "0.95", "small keeps"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", ["Qwen2.5-Coder-0.5B", "a-model-of-a-name-that-is-too-long-for-any-table"])
def test_no_name_is_cut_off(name):
    """Of the model's that is long, every letter is there in 80 columns."""
    found, _ = compared()
    console = Console(width=80, file=io.StringIO())
    console.print(replace(found, largest=replace(found.largest, name=name)).table("5 questions"))
    cells = [line.split("│")[1].strip() for line in console.file.getvalue().splitlines() if "│" in line]
    assert name in "".join(cells)


def test_a_plot_that_cannot_be_written_is_refused_before_anybody_is_asked(tmp_path, monkeypatch):
    """And its folder is made."""
    ready_to_plot(None)
    monkeypatch.setitem(sys.modules, "matplotlib", sys)
    ready_to_plot(tmp_path / "a" / "b" / "plot.png")
    assert (tmp_path / "a" / "b").is_dir()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"confcascade\[plots\]"):
        ready_to_plot(tmp_path / "plot.png")


def test_a_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    found, _ = compared()
    found.plot(tmp_path / "plot.png", [(0.5, 0.6, "0.5"), (0.9, 0.8, "0.9")])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (2.2e12, "flops", "2.2 TFLOP"),
        (45.5e9, "flops", "45.5 GFLOP"),
        (83.26e6, "flops", "83.3 MFLOP"),
        (340.04e6, "flops", "340 MFLOP"),
        (0.000123, "usd", "$0.000123"),
        (1.5, "usd", "$1.5000"),
        (30, "tokens", "30 tokens"),
        (0.25, "seconds", "0.2 s"),
    ],
)
def test_amounts_are_read_at_a_glance(value, unit, told):
    assert amount(value, unit) == told
