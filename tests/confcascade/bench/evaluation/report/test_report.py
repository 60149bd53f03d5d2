"""The report: whole, self-contained, and safe with texts that nobody vouches for."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from confcascade import Architecture, Usage
from confcascade.bench.evaluation.evaluate import evaluate, with_texts
from confcascade.bench.evaluation.gathered import gather
from confcascade.bench.evaluation.policy_figures import Interval
from confcascade.bench.evaluation.report import headline, made_of, tables, verdict, write_report
from confcascade.bench.evaluation.report.tables import Head, Table
from confcascade.bench.recording import RecordedScore, Recording, Row
from confcascade.bench.replay.policy import stages_from_thresholds
from rich.console import Console

EVIL = "<script>alert(1)</script>\"'&</pre><img src=http://evil.example/x>"


def evaluation(name="small", text="which?", group="law"):
    """Of ten questions the small model is sure and right on five, sure and wrong on one, and unsure on the rest."""
    rows = []
    for i in range(10):
        for model in (name, "large"):
            sure = i < 6
            right = model == "large" or i < 5
            rows.append(
                Row(
                    question=f"{text} {i}",
                    model=model,
                    group=group,
                    prompt=f"{text} {i}",
                    reference=text,
                    answer=f"{text} yes" if right else f"{text} no",
                    grade=float(right),
                    scores={"p_t": RecordedScore(value=0.9 if sure else 0.3 + i / 100)},
                    usage=Usage(1),
                )
            )
    gathered = gather(rows)
    policy = stages_from_thresholds(gathered.columns, (name, "large"), {"p_t": 0.8})
    sizes = {name: Architecture(10, 0, 0), "large": Architecture(100, 0, 0)}
    return with_texts(evaluate(gathered, policy, architectures=sizes), rows)


class Elements(HTMLParser):
    """Every element with its attributes; whether elements are closed in their order."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    recording = folder / "rec.jsonl"
    recording.write_text("")
    made = made_of(Recording(recording), "confcascade evaluate rec.jsonl")
    return write_report(evaluation(EVIL, EVIL, EVIL), folder / "out", made)


def test_untrusted_texts_stay_texts(page):
    """Names, groups, prompts and answers that are HTML show as they are, and no element comes of them."""
    elements = Elements(page.read_text())
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in elements.found}
    assert EVIL in "".join(elements.text)
    assert html.escape(f"{EVIL} 5") in page.read_text()


def test_the_page_needs_nothing_else(page):
    """No address outside it, no script; ids of its many plots are different."""
    elements = Elements(page.read_text())
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", page.read_text())
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', page.read_text())
    assert set(used) <= set(ids)
    assert len([tag for tag, _ in elements.found if tag == "svg"]) == 5
    assert "default-src 'none'" in page.read_text()


def test_plots_take_the_colours_of_the_page(page):
    """Light or dark: ink and lines are the page's."""
    text = page.read_text()
    assert "var(--ink)" in text
    assert "prefers-color-scheme: dark" in text
    assert "#010203" not in text
    assert "#040506" not in text


def test_every_plot_and_table_is_a_file(page):
    """PNG and CSV of each plot, CSV of each table, and all figures as JSON."""
    names = {path.name for path in page.parent.iterdir()}
    pictures = {name for name in names if name.endswith(".png")}
    assert {f"plot_{name[:-4]}.csv" for name in pictures} <= names
    assert {"policies.csv", "baselines.csv", "signals.csv", "groups.csv", "costs.csv"} <= names
    for name in pictures:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    figures = json.loads((page.parent / "figures.json").read_text())
    assert figures["policy"]["accuracy"]["value"] == 0.9
    assert figures["made"]["sha256 of the recording"] == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of nothing
    )
    with (page.parent / "policies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["accuracy (95 %)"]) == 0.9
    assert float(rows[0]["accuracy (95 %): low"]) < 0.9


def test_without_plots_matplotlib_is_not_needed(tmp_path, monkeypatch):
    """Tables without plots where it was asked for; an error that names the extra otherwise, and nothing written."""
    import sys

    from confcascade.errors import MissingExtraError

    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"confcascade\[plots\]"):
        write_report(evaluation(), tmp_path / "a", {})
    assert not (tmp_path / "a").exists()
    index = write_report(evaluation(), tmp_path / "b", {}, plots=False)
    assert "<svg" not in index.read_text()
    assert not list(Path(index.parent).glob("*.png"))


def test_the_verdict_says_what_the_figures_say():
    """Five of ten kept and right, one kept and wrong: cheaper, ten points fewer, in both accountings."""
    found = evaluation()
    text = " ".join(verdict(found))
    # one of ten may be chance
    assert headline(found) == "It is cheaper, and no loss of right answers is shown, though 30.0 points may be lost."
    assert "gets 90.0 % right, and large alone 100.0 %: 10.00 points fewer" in text
    assert "Questions lost: 1, won: 0" in text
    assert "saves 50.0 %" in text
    assert "would say 54.0 % saved" in text
    assert "small answers 60.0 %" in text
    assert "from 10.0 %" in text


def test_more_tokens_are_not_called_dearer():
    """A small model's token costs less than a large one's: without prices or sizes it is not known what is saved."""
    found = evaluation()
    found = replace(found, unit="tokens", policy=replace(found.policy, saved={"tokens": -0.4}))
    assert headline(found) == "It takes more tokens than the largest model alone; what they cost is not known."
    assert "It costs 40.0 % more tokens than the largest model alone" in " ".join(verdict(found))


def test_as_much_is_not_called_more():
    """A small model that answers all with as many tokens: neither more nor −0.0 % of anything."""
    found = evaluation()
    for saved in (0.0, -0.0001):
        same = replace(found, unit="tokens", policy=replace(found.policy, saved={"tokens": saved}))
        assert headline(same) == "It takes as many tokens as the largest model alone; what they cost is not known."
        assert "It costs as many tokens as the largest model alone, every" in " ".join(verdict(same))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"saved": {"flops": -0.1}}, "It saves nothing: it costs more operations than"),
        ({"saved_interval": Interval(0.1, -0.1, 0.3)}, "may be chance"),
        ({"blind": 0.95}, "by lot"),
        ({"drop_points": Interval(-2, -3, -1)}, "fewer questions right"),
        ({"drop_points": Interval(2, 1, 3)}, "more questions right"),
    ],
)
def test_headlines(changes, words):
    """Each case has its own."""
    found = evaluation()
    assert words in headline(replace(found, policy=replace(found.policy, **changes)))


def test_tables_are_the_same_figures_everywhere():
    """A cell for people, unrounded in CSV, unknown is a dash and an empty field."""
    table = Table(
        "t", "T", (Head("a", "share", "a"), Head("b", "points", "b")), ((None, Interval(-1.5, -2, 0)), (0.123456, 1))
    )
    assert table.cells() == [["–", "−1.50 (−2.00 to 0.00)"], ["12.3 %", "+1.00"]]
    assert table.csv() == "a,b,b: low,b: high\n,-1.5,-2,0\n0.123456,1,,\n"
    assert {made.name for made in tables(evaluation())} >= {"policies", "baselines", "stages", "signals"}


def test_no_head_is_cut_in_80_columns():
    """Every word above a column of the terminal's tables stands whole."""
    for table in tables(evaluation()):
        console = Console(width=80, file=io.StringIO())
        console.print(table.rich())
        shown = console.file.getvalue().split()
        assert not {word for head in table.header for word in head.title.split() if f"{word[:3]}-" in shown}
        assert not {word for head in table.header for word in (head.terminal or "").split()} - set(shown)


@pytest.mark.parametrize(
    ("drop", "saved"), [((-20.0, -50.0, 0.0), -0.5), ((-2.0, -3.0, 1.0), 0.5), ((-100.0, -100.0, -100.0), -10.0)]
)
def test_small_groups_are_marked_in_80_columns(drop, saved):
    """To the last letter, whatever the numbers."""
    found = evaluation(group="high_school_macroeconomics")
    (few,) = found.groups
    told = replace(few, policy=replace(few.policy, questions=140, drop_points=Interval(*drop), saved={"flops": saved}))
    (table,) = (each for each in tables(replace(found, groups=(told,))) if each.name == "groups")
    console = Console(width=80, file=io.StringIO())
    console.print(table.rich())
    for word in ("few:", "mostly", "chance"):
        assert word in console.file.getvalue()
