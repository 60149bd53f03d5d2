"""``confcascade fit --label``: at the terminal, by a file that grows, and of the largest model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from confcascade import ConfigurationError
from confcascade.demo.world import World
from confcascade.policy import Policy
from typer.testing import CliRunner

from ..bench.labelling.conftest import ungraded

FIT = ("--max-drop", "0.02", "--parameters", "small=1e9,large=3e10")


def run(*arguments: Any, cwd: Path, **options: Any) -> Any:
    """In this process: to start one takes longer than to fit."""
    from confcascade.cli import app

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        done = CliRunner().invoke(app, ["fit", *map(str, arguments)], env={"COLUMNS": "160"}, **options)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a recording that nobody has graded."""
    (tmp_path / "rec.jsonl").write_bytes(b"".join(row.line() for row in ungraded(900)))
    return tmp_path


def fill(folder: Path) -> int:
    """Who labels by file: every wanted line, filled in."""
    wanted = [json.loads(line) for line in (folder / "labels.wanted.jsonl").read_text().splitlines()]
    with (folder / "labels.jsonl").open("a") as file:
        for line in wanted:
            file.write(json.dumps({**line, "grades": [int(text == "yes") for text in line["answers"]]}) + "\n")
    return len(wanted)


def test_by_a_file_run_for_run(folder: Path) -> None:
    """It ends with 3 and says what it wants until it is enough; then with 0, and the policy holds what was bought."""
    by_file = ("rec.jsonl", "--label", "labels.jsonl", "-o", "out/policy.json", *FIT)
    labels, done = 0, run(*by_file, cwd=folder)
    while done.exit_code == 3:
        assert "Wanted next: labels.wanted.jsonl. Append the lines" in done.output
        labels += fill(folder)
        done = run(*by_file, cwd=folder)
    assert done.exit_code == 0
    assert f"Bought: {labels} labels." in done.output
    assert "Test: betting, sequential" in done.output
    (certificate,) = Policy.load(folder / "out" / "policy.json").certificates
    assert certificate.max_drop == 0.02
    assert certificate.labels is not None
    assert certificate.labels <= labels
    assert len((folder / "out" / "policy.labels.jsonl").read_text().splitlines()) == labels + 1
    assert run(*by_file, cwd=folder).output.splitlines()[-1] == done.output.splitlines()[-1]


def test_a_label_changed_in_the_file_is_refused(folder: Path) -> None:
    by_file = ("rec.jsonl", "--label", "labels.jsonl", *FIT)
    run(*by_file, cwd=folder)
    fill(folder)
    run(*by_file, cwd=folder)
    first, *rest = (folder / "labels.jsonl").read_text().splitlines()
    changed = {**json.loads(first), "grades": [0.5] * len(json.loads(first)["grades"])}
    (folder / "labels.jsonl").write_text("\n".join([json.dumps(changed), *rest]) + "\n")
    with pytest.raises(ConfigurationError, match="not the one that was taken"):
        run(*by_file, cwd=folder)


def test_at_the_terminal(folder: Path) -> None:
    """Each answer that differs is right, wrong, skipped or left; another run goes on after what was told."""
    ask = ("rec.jsonl", "--label", "ask", *FIT)
    done = run(*ask, cwd=folder, input="r\nw\ns\nnonsense\nq\n")
    assert done.exit_code == 3
    assert "What is " in done.output
    assert "Answer 2 of 2" in done.output
    assert "Please select one of the available options" in done.output
    entries = [json.loads(line) for line in (folder / "policy.labels.jsonl").read_text().splitlines()[1:]]
    assert [sorted((entry["grades"] or {}).values()) for entry in entries] == [[0.0, 1.0], []]
    assert "Bought: 2 labels, " in done.output
    assert "1 of them nobody could tell: they count as lost." in done.output
    done = run(*ask, cwd=folder, input="r\nw\n")  # and then nothing: as if they had left
    assert done.exit_code == 3
    assert "2 labels were bought before" in done.output
    assert "Bought: 3 labels" in done.output


def test_other_promises_after_labels_were_seen_are_refused(folder: Path) -> None:
    run("rec.jsonl", "--label", "ask", *FIT, cwd=folder, input="r\nw\nq\n")
    with pytest.raises(ConfigurationError, match="bought otherwise: max_drop differs"):
        run("rec.jsonl", "--label", "ask", "--max-drop", "0.05", *FIT[2:], cwd=folder)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--label", "ask", "--max-cost", "0.4"), "--max-drop 0.01"),
        (("--label", "ask", *FIT, "--per-group"), "--per-group does not go with --label"),
        (("--label", "ask", *FIT, "--rule", "pass-rate"), "--rule does not go with --label"),
        (("--label", "ask", *FIT, "--no-labels", "--equivalence", "exact"), "or say --label largest"),
        (("--label", "largest", *FIT), "--most-labels, the most calls"),
        ((*FIT, "--saving", "0.3"), "say --label"),
        (("--label", "ask", *FIT, "--saving", "30"), "between 0 and 1"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(folder: Path, options: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        run("rec.jsonl", *options, cwd=folder)
    assert not (folder / "policy.json").exists()


def test_of_the_largest_model(tmp_path: Path) -> None:
    """It is asked only where the small model's answer is kept, and one run after another comes to the same."""
    pytest.importorskip("torch")
    from confcascade import CascadeFile, collect
    from confcascade.graders.example import Example

    (tmp_path / "cascade.yaml").write_text(
        "stages:\n- model: bundled:small\n  signals: [{type: p_t, aggregate: min}]\n"
        "- model: bundled:large\n  prices: {input_usd: 1, output_usd: 2}\n"
    )
    stages = CascadeFile.load(tmp_path / "cascade.yaml").make_stages()
    asked = [Example(each.prompt) for each in World().questions("calibration", ("facts", "sums"), per_task=150)]
    collect(asked, stages[:1], tmp_path / "rec.jsonl", prompt="plain", grader="normalized", max_tokens=40)
    largest = (
        *("rec.jsonl", "--label", "largest", "--cascade", "cascade.yaml", "--no-labels", "--equivalence", "normalized"),
        *("--max-drop", "0.1", "--parameters", "small=1e6,large=2e7"),
    )
    few = run(*largest, "--most-labels", 16, cwd=tmp_path)
    assert "Bought: 16 labels, $" in few.output
    done = run(*largest, "--most-labels", 300, cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert "16 labels were bought before" in done.output
    policy = Policy.load(tmp_path / "policy.json")
    assert policy.certificates[0].kind == "agreement"
    assert policy.stages[-1].build == stages[-1].model.fingerprint  # type: ignore[attr-defined]
    rows = [json.loads(line) for line in (tmp_path / "policy.largest.jsonl").read_text().splitlines()]
    entries = [json.loads(line) for line in (tmp_path / "policy.labels.jsonl").read_text().splitlines()[1:]]
    assert {row["question"] for row in rows} == {entry["question"] for entry in entries}
    assert len(entries) < 270
    (tmp_path / "both.jsonl").write_text(
        (tmp_path / "rec.jsonl").read_text() + (tmp_path / "policy.largest.jsonl").read_text()
    )
    with pytest.raises(ConfigurationError, match="nothing to buy"):
        run("both.jsonl", *largest[1:], "--most-labels", 16, cwd=tmp_path)
    spent = sum(row["usage"]["input_tokens"] + 2 * row["usage"]["output_tokens"] for row in rows) / 1e6
    assert sum(entry["usd"] for entry in entries) == pytest.approx(spent)
