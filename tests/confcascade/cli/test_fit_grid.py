"""``confcascade fit --grid``: from answers that were written step by step at several thresholds to a live policy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from confcascade import Cascade, CascadeFile, ConfigurationError, Steps, StepwiseCascade
from confcascade.bench.fitting import RecordedGrid, stepwise_models
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.demo.world import World
from confcascade.models.bundled import bundled_model
from confcascade.policy import Policy, Stepwise

CASCADE = """
mode: stepwise
models: [bundled:small, bundled:large]
signals: [{type: p_t, aggregate: min}]
steps: {delimiter: "\\n"}
decoding: {max_tokens: 60}
"""
GRID = ("small+large@0.95", "small+large@0.75")
QUESTION = "Vodis has 57 shells, finds 88, loses 39. How many shells?"  # the second step is hard for the small model


def run(*arguments: Any) -> Any:
    """In this process: to start one takes longer than to fit."""
    from confcascade.cli import app
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def questions(path: Path, n: int, *tasks: Any) -> Path:
    asked = World().questions("calibration", tasks, per_task=n)
    rows = [{"question": each.prompt, "reference": each.reference} for each in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording at two thresholds, given the lower one first, and a policy of it in a folder of its own."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "cascade.yaml").write_text(CASCADE)
    (folder / "live.yaml").write_text(
        "mode: stepwise\nmodels: [bundled:small, bundled:large]\npolicy: out/policy.json\n"
    )
    asked = questions(folder / "questions.jsonl", 50, "sums")
    told = ("--cascade", folder / "cascade.yaml", "--thresholds", "0.75,0.95", "--grader", "normalized")
    assert run("collect", asked, "-o", folder / "rec.jsonl", *told).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path) -> str:
    done = run(
        *("fit", folder / "rec.jsonl", "--grid", "--cascade", folder / "cascade.yaml"),
        *("-o", folder / "out" / "policy.json", "--max-drop", "0.2", "--confidence", "0.9"),
    )
    assert done.exit_code == 0, done.output
    return str(done.output)


@pytest.fixture
def policy(folder: Path, fitted: str) -> Policy:
    return Policy.load(folder / "out" / "policy.json")


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [bundled_model("small"), bundled_model("large")]


def test_it_says_the_order_then_what_is_promised(fitted: str) -> None:
    """The safest first, whatever the order of collecting; then the choice, what it saves, and the best in hindsight."""
    order, *_ = fitted.splitlines()
    assert order.startswith(
        "Step by step, small and large, at the thresholds of p_t 0.95, 0.75. They are tested in this"
    )
    for part in (
        "Policy: small → large, step by step",
        "Chosen: small+large@0.75, which saves ",
        "in flops, every model that ran",
        "Promised: accuracy at most 20.00 points below the largest model's, with 0.9 confidence.",
        "In hindsight the best was small+large@0.75",
        "configuration     questions  lost",
    ):
        assert part in fitted, part


def test_the_policy_holds_all_that_the_cascade_needs(policy: Policy, models: list[Any], folder: Path) -> None:
    """Signal, threshold, steps, builds and settings are those of the recording, and costs are the recorded ones."""
    small, large = policy.stages
    assert policy.stepwise == Stepwise(delimiter="\n", configuration=GRID[1])
    assert (small.thresholds, large.thresholds) == ({"p_t": 0.75}, {})
    assert [stage.build for stage in policy.stages] == [model.fingerprint for model in models]
    assert [stage.decoding for stage in policy.stages] == [{"max_tokens": 60}] * 2
    assert small.prompt_version == PROMPTS["plain"].version
    grid = RecordedGrid.read(folder / "rec.jsonl")
    columns = grid.material().columns
    assert grid.order == GRID
    assert policy.saving.cost == pytest.approx(columns.flops[:, columns.index(GRID[1])].mean())


def test_it_is_live_as_it_was_recorded(policy: Policy, models: list[Any], folder: Path) -> None:
    """Built from the file in Python and by a cascade file, it is the cascade that was collected."""
    path = folder / "out" / "policy.json"
    with pytest.warns(UserWarning, match="not known here is the prompt"):
        built = StepwiseCascade.of(models=models, policy=path)
    assert isinstance(built, StepwiseCascade)
    assert built.steps == Steps(delimiter="\n")
    recorded = CascadeFile.load(folder / "cascade.yaml").grid([0.75])[0]
    steps = [
        [(step.author, step.kept, step.reason) for step in cascade.run(QUESTION).record.steps]
        for cascade in (built, recorded)
    ]
    assert steps[0] == steps[1]
    assert {author for author, _, _ in steps[0]} == {"small", "large"}
    live = folder / "live.yaml"
    version = PROMPTS["plain"].version
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CascadeFile.load(live).cascade(prompt_version=version).policy_id == built.policy_id
    done = run("ask", QUESTION, "--cascade", live)
    assert "small 2, large 1" in done.output


def test_contradictions_are_refused_with_the_way_out(policy: Policy, models: list[Any], folder: Path) -> None:
    """Another mode, other steps, another build, other settings; the same steps, said again, are none."""
    path = folder / "out" / "policy.json"
    version = PROMPTS["plain"].version
    stages = policy.make_stages(models, prompt_version=version, stepwise=True)
    with pytest.raises(ConfigurationError, match=r'step by step, .* use mode="stepwise"'):
        Cascade.of(models=models, policy=path)
    with pytest.raises(ConfigurationError, match=r'step by step, .* use mode="stepwise"'):
        Cascade(stages)
    with pytest.raises(ConfigurationError, match=r"leave `steps` out, or fit again"):
        StepwiseCascade(stages, steps=Steps())
    assert StepwiseCascade(stages, steps=Steps(delimiter="\n")).steps == policy.stepwise.load()  # type: ignore[union-attr]
    whole = policy.model_copy(update={"stepwise": None})
    with pytest.raises(ConfigurationError, match=r'by the whole answer, .* use mode="query"'):
        StepwiseCascade.of(models=models, policy=whole)
    with pytest.raises(ConfigurationError, match=r'by the whole answer, .* use mode="query"'):
        StepwiseCascade(whole.make_stages(models, prompt_version=version))
    other = policy.model_copy(
        update={"stages": [policy.stages[0].model_copy(update={"build": "0" * 12}), policy.stages[1]]}
    )
    with pytest.raises(ConfigurationError, match="fitted on build 000000000000 of 'small'"):
        StepwiseCascade.of(models=models, policy=other)
    for text, says in (
        ("mode: query\n", 'line 3, `policy`: This policy decides step by step, .* use mode="stepwise"'),
        ('mode: stepwise\nsteps: {delimiter: "\\n\\n"}\n', "leave `steps` out"),
        ("mode: stepwise\ndecoding: {max_tokens: 90}\n", "with max_tokens 60; here it is 90"),
    ):
        bad = folder / "bad.yaml"
        bad.write_text(text + "models: [bundled:small, bundled:large]\npolicy: out/policy.json\n")
        with pytest.raises(ConfigurationError, match=says):
            CascadeFile.load(bad).cascade(prompt_version=version)
    with pytest.raises(ConfigurationError, match="drop `policy` for a grid"):
        CascadeFile.load(folder / "live.yaml").grid([0.9])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--grid", "--max-cost", "0.5"], "say what may be lost: --max-drop"),
        (["--grid", "--max-drop", "0.2", "--prices", "large=3"], "put `prices` into the cascade file"),
        (["--grid", "--max-drop", "0.2", "--seed", "3"], "--seed does not go with --grid"),
        (["--grid", "--max-drop", "0.2", "--unit", "usd"], "in usd is not in the recording"),
        (["--grid", "--max-drop", "0.2", "--models", "small,large"], "'small' is no cascade that writes step by step"),
        (["--max-drop", "0.2"], "Say --grid to certify one of them"),
    ],
)
def test_what_a_grid_has_no_use_for_is_refused(folder: Path, options: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        run("fit", folder / "rec.jsonl", "-o", folder / "none.json", *options)
    assert says in str(raised.value)
    assert not (folder / "none.json").exists()


def test_nothing_is_written_where_nothing_can_be_promised(folder: Path) -> None:
    """It ends with 1, and says how many more questions would do."""
    done = run("fit", folder / "rec.jsonl", "--grid", "--max-drop", "0.01", "-o", folder / "none.json")
    assert done.exit_code == 1
    assert "Nothing can be promised: 50 questions are there" in done.output
    assert not (folder / "none.json").exists()


def test_without_labels_answers_are_compared(folder: Path) -> None:
    """And without the cascade file, the signal is handed over, which is said."""
    done = run(
        *("fit", folder / "rec.jsonl", "--grid", "--no-labels", "--equivalence", "normalized"),
        *("--max-drop", "0.4", "-o", folder / "same.json", "--models", "small+large@0.95,large"),
    )
    assert done.exit_code == 0, done.output
    assert "of the answers differ from the largest model's by 'normalized'" in done.output
    assert "The policy does not say how 'p_t' is made. Fit with --cascade FILE" in done.output
    assert Policy.load(folder / "same.json").stepwise.configuration == "small+large@0.95"  # type: ignore[union-attr]


def test_a_recording_of_whole_answers_has_no_grid(tmp_path: Path) -> None:
    (tmp_path / "rec.jsonl").write_text('{"question": "q", "model": "m"}\n')
    assert stepwise_models(tmp_path / "rec.jsonl") == ()
    with pytest.raises(ConfigurationError, match=r"has no cascade that writes step by step: .* `mode: stepwise`"):
        RecordedGrid.read(tmp_path / "rec.jsonl")


def test_a_mixture_from_the_command_line_to_a_policy(tmp_path: Path) -> None:
    """Fitted, gone on with, collected by, kept in the policy by its path; of one kind of step, there is none."""
    asked = questions(tmp_path / "fit.jsonl", 60, "facts", "sums")
    told = ("fit-mixture", asked, "-o", tmp_path / "mixture.json", "--model", "bundled:small", "--delimiter", "\\n")
    done = run(*told)
    assert done.exit_code == 0, done.output
    assert "steps of 120 answers of small" in done.output
    assert "Sure: " in done.output

    kept = tmp_path / "mixture.json.steps.jsonl"
    first = (tmp_path / "mixture.json").read_text()
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:3]) + '[["cut o')  # a kill
    assert run(*told).exit_code == 0
    assert json.loads((tmp_path / "mixture.json").read_text())["n"] == json.loads(first)["n"]
    with pytest.raises(ConfigurationError, match="were collected otherwise"):
        run(*told, "--max-tokens", 5)

    (tmp_path / "cascade.yaml").write_text(
        'mode: stepwise\nmodels: [bundled:small, bundled:large]\nsteps: {delimiter: "\\n"}\n'
        "signals: [{type: lookback, mixture: mixture.json}]\ndecoding: {max_tokens: 60}\n"
    )
    few = questions(tmp_path / "few.jsonl", 12, "sums")
    cascade = ("--cascade", tmp_path / "cascade.yaml")
    grid = ("--thresholds", "0.9", "--grader", "normalized")
    assert run("collect", few, "-o", tmp_path / "rec.jsonl", *cascade, *grid).exit_code == 0
    promise = ("--grid", "--max-drop", "0.95", "--confidence", "0.6", "--unit", "flops")
    done = run("fit", tmp_path / "rec.jsonl", "-o", tmp_path / "out" / "policy.json", *cascade, *promise)
    policy = json.loads((tmp_path / "out" / "policy.json").read_text()) if done.exit_code == 0 else None
    assert policy is not None, done.output
    assert policy["stages"][0]["signals"][0]["mixture"] == "../mixture.json"

    one_kind = questions(tmp_path / "sums.jsonl", 40, "sums")
    done = run("fit-mixture", one_kind, "-o", tmp_path / "none.json", *cascade)
    assert done.exit_code == 1
    assert "do not show two kinds of steps" in done.output
    assert "Use Glimpse()" in done.output
    assert not (tmp_path / "none.json").exists()
    with pytest.raises(ConfigurationError, match="Whose steps"):
        run("fit-mixture", one_kind)
