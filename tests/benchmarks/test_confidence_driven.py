"""The paper's experiment on a dozen questions of each set, its figures beside plain counting; and the page's tables."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from confcascade import Cascade, Stage
from confcascade.bench.recording import Columns
from confcascade.bench.replay import replay
from confcascade.demo import bundled_probe
from confcascade.demo.world import World
from confcascade.models.bundled import SIZES, bundled_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "papers" / "confidence-driven.md"
FIGURES = ROOT / "docs" / "papers" / "confidence-driven" / "figures.json"
MOST = 12  # questions of each set


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The modules by their names' ends: "" (the command), "runs", "sets", "tables"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        names = {"": "confidence_driven"} | {end: f"confidence_driven_{end}" for end in ("runs", "sets", "tables")}
        yield {end: importlib.import_module(name) for end, name in names.items()}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {size: bundled_model(size) for size in SIZES}


@pytest.fixture(scope="module")
def probes() -> dict[tuple[str, str], Any]:
    """The shipped ones in the place of those that the command trains."""
    return {(learnt, size): bundled_probe(size) for learnt in ("letters", "open", "shipped") for size in SIZES[:-1]}


@pytest.fixture(scope="module")
def sets(scripts: dict[str, ModuleType]) -> dict[str, Any]:
    return {asked.name: asked for asked in scripts["sets"].question_sets(World(), MOST)}


@pytest.fixture(scope="module")
def folder(scripts: dict[str, ModuleType], probes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    pytest.importorskip("matplotlib")

    def shipped(model: Any, questions: Any, told: Any) -> Any:
        return probes["shipped", model.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts[""], "train_probe", shipped)
        out = tmp_path_factory.mktemp("experiment") / "new"
        scripts[""].main(out, MOST)
    return out


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return found


@pytest.mark.parametrize(
    ("name", "chain", "p_ik", "threshold"),
    [
        ("letters", ("small", "medium", "large"), True, 0.7),
        ("two steps", ("medium", "large"), False, 0.9),
        ("facts", ("small", "large"), False, 0.5),
        ("strangers", ("small", "medium"), True, 0.5),
    ],
)
def test_figures_are_those_of_the_outcomes(scripts, sets, models, probes, figures, name, chain, p_ik, threshold):
    """Asked one by one, and counted with nothing of the package's metrics."""
    from sklearn.metrics import f1_score
    from statsmodels.stats.contingency_tables import mcnemar

    asked, policy = sets[name], scripts["runs"].Policy(chain, p_ik, threshold)
    cascade, alone = Cascade(policy.stages(asked, models, probes)), Cascade([Stage(models[chain[-1]])])
    outcomes = [cascade.run(question.prompt) for question in asked.questions]
    singles = [alone.run(question.prompt) for question in asked.questions]
    right = [q.is_correct(o.text) for q, o in zip(asked.questions, outcomes, strict=True)]
    theirs = [q.is_correct(o.text) for q, o in zip(asked.questions, singles, strict=True)]
    pairs = list(zip(right, theirs, strict=True))

    (run,) = (
        run
        for run in figures["runs"]
        if (run["set"], tuple(run["chain"]), run["p_ik"], run["threshold"]) == (name, chain, p_ik, threshold)
    )

    assert (run["n"], run["right"]) == (MOST, sum(right))
    assert run["points"] == pytest.approx(100 * (sum(right) - sum(theirs)) / MOST, abs=0.005)
    assert (run["harms"], run["benefits"]) == (pairs.count((False, True)), pairs.count((True, False)))
    table = [[pairs.count((a, b)) for b in (True, False)] for a in (True, False)]
    assert run["mcnemar_p"] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=0.01)
    assert run["answered_by"] == [sum(o.record.answered_by == size for o in outcomes) for size in chain]
    paid = sum(attempt.cost.flops for o in outcomes for attempt in o.record.attempts)
    kept = sum(o.record.attempts[-1].cost.flops for o in outcomes)  # nothing fails here: the last attempt answers
    largest = sum(o.record.attempts[0].cost.flops for o in singles)
    assert run["flops_saved"][0] == pytest.approx(100 * (1 - paid / largest), abs=0.051)
    assert run["flops_saved_answering_stage"] == pytest.approx(100 * (1 - kept / largest), abs=0.051)
    prices = {"small": 0.08, "medium": 0.10, "large": 0.60}  # of a token read; one that is written costs twice that
    usd = sum(
        prices[attempt.model] * (attempt.usage.input_tokens + 2 * attempt.usage.output_tokens) / 1e6
        for o in outcomes
        for attempt in o.record.attempts
    )
    assert run["usd_per_1000"] == pytest.approx(1000 * usd / MOST, abs=1e-6)
    said = [o.text.strip() for o in outcomes]
    if asked.labels:
        expected = f1_score([q.reference for q in asked.questions], said, average="macro", zero_division=0)
        assert run["macro"][2] == pytest.approx(expected, abs=1e-4)
    else:
        made_up = [not ok and text != "I don't know" for ok, text in zip(right, said, strict=True)]
        assert run["hallucination_rate"] == pytest.approx(sum(made_up) / MOST, abs=1e-4)


def test_every_live_run_is_its_replay(scripts, sets, models, probes, figures):
    """All 128 runs agree; a live run beside the replay of another policy is found out."""
    checked = figures["replay"]
    assert checked["runs"] == len(figures["runs"]) == 4 * 4 * 2 * 4
    assert checked["answers"] + checked["near"] == checked["runs"] * MOST
    assert checked["differing"] == 0
    assert checked["near"] <= checked["runs"] * MOST / 100

    runs, asked, chain = scripts["runs"], sets["letters"], ("small", "large")
    architectures = {size: model.architecture for size, model in models.items()}
    recorded = runs.record(models["small"], asked, [asked.p_t()]) + runs.record(models["large"], asked, [])
    lenient, strict = runs.Policy(chain, False, 0.0), runs.Policy(chain, False, 1.0)
    outcomes = Cascade(lenient.stages(asked, models, probes)).run_batch([q.prompt for q in asked.questions])
    answers = runs.Answers.of(asked.questions, outcomes)
    for policy, expected in ((lenient, 0), (strict, MOST)):
        played = replay(Columns.of(recorded), policy.replayed(), architectures=architectures)
        assert runs.differing(played, outcomes, answers).sum() == expected


def test_p_ik_lets_fewer_pass(figures):
    """A further condition and a higher threshold each keep no more answers at the first stage."""
    kept = {
        (run["set"], tuple(run["chain"]), run["p_ik"], run["threshold"]): run["answered_by"][0]
        for run in figures["runs"]
    }
    for (asked, chain, p_ik, threshold), count in kept.items():
        assert count <= kept[asked, chain, False, threshold]
        assert all(count <= kept[asked, chain, p_ik, lower] for lower in (0.5, 0.7, 0.9) if lower < threshold)


def test_the_folder(scripts, folder, figures):
    """Tables are those of the figures, every run is in the CSV, and the plots are pictures."""
    written = (folder / "tables.md").read_text()
    assert all(f"## {title}\n\n{table}" in written for title, table in scripts["tables"].markdown(figures).items())
    with (folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["right"]) for row in rows] == [(r["set"], str(r["right"])) for r in figures["runs"]]
    for plot in ("sensitivity.png", "cost.png"):
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")


def test_probes_learn_from_no_question_that_is_asked(scripts):
    """No fact or stranger of a lesson is asked about; a question of two steps has one right option."""
    world = World()
    learnt = {q.key for lesson in scripts["sets"].lessons(world, rounds=1).values() for q in lesson}
    everything = scripts["sets"].question_sets(world)
    assert {asked.name: len(asked.questions) for asked in everything} == {
        "letters": 910,
        "two steps": 364,
        "facts": 910,
        "strangers": 178,
    }
    assert not learnt & {question.key for asked in everything for question in asked.questions}

    birthplace = {fact.subject: fact.value for fact in world.facts if fact.relation == "birthplace"}
    country = {fact.subject: fact.value for fact in world.facts if fact.relation == "country"}
    for question in everything[1].questions:
        options = dict(line.split(". ") for line in question.prompt.split("\n")[1:])
        truth = country[birthplace[question.key.split("/")[0]]]
        assert [label for label, option in options.items() if option == truth] == [question.reference]


def test_a_probe_learns_what_its_model_knew(scripts, models):
    lesson = scripts["sets"].lessons(World(), rounds=1)["letters"][:400]
    probe = scripts["sets"].train_probe(models["small"], lesson)
    outcomes = Cascade([Stage(models["small"])]).run_batch([question.prompt for question in lesson])
    right = np.mean([question.is_correct(o.text) for question, o in zip(lesson, outcomes, strict=True)])
    assert sum(probe.card.examples) == 400
    assert probe.card.base_rate == pytest.approx(right)


def test_the_page_holds_the_tables(scripts, models):
    """Every table of the page is the one made of the committed figures, which are of the bundled weights."""
    figures = json.loads(FIGURES.read_text())
    page = PAGE.read_text()
    for title, table in scripts["tables"].markdown(figures).items():
        assert table in page, title
    assert figures["models"] == {size: model.fingerprint for size, model in models.items()}
    assert figures["replay"]["differing"] == 0
