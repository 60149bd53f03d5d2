"""The command from end to end: on the bundled models, and on a server whose calls are counted."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
BUNDLED = """
stages:
  - model: bundled:small
    signals:
      - {type: p_ik, probe: "bundled:small"}
      - {type: p_t, aggregate: min}
  - model: bundled:large
"""


@pytest.fixture
def files(tmp_path):
    """A folder with a data set of 30 questions and a cascade file."""
    from confcascade.demo.world import World

    questions = World().questions("test", ("facts", "sums"), per_task=15)
    rows = [{"question": each.prompt, "reference": each.reference, "group": each.task} for each in questions]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "cascade.yaml").write_text(BUNDLED)
    return tmp_path


def test_help_names_every_option(confcascade):
    """`--help` tells what each option takes, how it ends, and shows an example."""
    shown = confcascade("collect", "--help").stdout
    for word in (
        *("--out", "--cascade", "--format", "--prompt", "--grader", "--limit", "--max-usd", "--max-concurrency"),
        *("--max-tokens", "--temperature", "--retry-errors", "--no-text", "- bundled:small", "--grader numeric"),
    ):
        assert word in shown


def test_it_collects_and_goes_on(confcascade, files):
    """Bundled models by a cascade file; a larger sample adds to a smaller one, and other ways to ask are refused."""
    rec = files / "out" / "rec.jsonl"
    given = ["collect", "questions.jsonl", "-o", rec, "--cascade", "cascade.yaml", "--grader"]
    done = confcascade(*given, "normalized", "--limit", 10, cwd=files)
    assert done.returncode == 0, done.stderr
    assert "10/10" in done.stdout
    assert f"Next: confcascade evaluate {rec}" in done.stdout
    assert "20 to ask" in done.stderr
    first = rec.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert {row["model"] for row in rows} == {"small", "large"}
    assert all(set(row["scores"]) == ({"p_ik", "p_t"} if row["model"] == "small" else {"p_t"}) for row in rows)
    assert all("grade" in row and row["group"] in ("facts", "sums") for row in rows)

    done = confcascade(*given, "normalized", "--limit", 12, cwd=files)
    assert done.returncode == 0, done.stderr
    assert rec.read_text().startswith(first)
    assert rec.read_text().count("\n") == 24

    refused = confcascade(*given, "exact", cwd=files)
    assert refused.returncode == 2
    assert 'grader.grader was "normalized" and is now "exact"' in refused.stderr
    assert "Traceback" not in refused.stderr
    assert rec.read_text().count("\n") == 24


def test_a_grader_must_be_named(confcascade, files):
    """Unless every question has choices; it shows before a model is loaded."""
    done = confcascade("collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", cwd=files)
    assert done.returncode == 2
    assert "Name a grader with --grader" in done.stderr
    assert not (files / "rec.jsonl").exists()


@pytest.fixture
def counted(files, monkeypatch):
    """A cascade file of a priced model on a server that writes down what it is asked; the path of that list."""
    pytest.importorskip("openai")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import kill_collect

    log = files / "asked.log"
    with kill_collect.server(log) as port:
        model = {"openai": "m", "base_url": f"http://127.0.0.1:{port}/v1"}
        stage = {"model": model, "prices": {"input_usd": 0, "output_usd": 1_000}}  # of 16 tokens: 1.6 cents
        (files / "cascade.yaml").write_text(json.dumps({"stages": [stage]}))
        yield log


def test_the_cap_ends_it_with_3(confcascade, files, counted):
    """And says what was spent and how to go on."""
    given = ["collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "contains"]
    given += ["--max-tokens", 16]
    done = confcascade(*given, "--max-usd", 0.1, cwd=files)
    assert done.returncode == 3, done.stderr
    assert "beyond $0.1: $0.0960 are spent, 24 rows to go. Raise --max-usd to go on." in done.stdout
    assert len(counted.read_text().splitlines()) == 6
    done = confcascade(*given, "--max-usd", 1, cwd=files)
    assert done.returncode == 0, done.stderr
    assert len(counted.read_text().splitlines()) == len(set(counted.read_text().splitlines())) == 30


def test_ctrl_c_loses_no_call(confcascade, files, counted):
    """What is under way is finished and kept: of all that the model was asked nothing is asked again."""
    rows = [{"question": f"Question {i}?", "reference": "word"} for i in range(400)]
    (files / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["collect", "many.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "contains"]
    process = subprocess.Popen(
        [sys.executable, "-m", "confcascade.cli", *given, "--max-concurrency", "4"],
        cwd=files,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )
    while process.poll() is None and not (counted.exists() and len(counted.read_text().splitlines()) > 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "is finished and kept" in errors
    assert "The same command goes on where it was." in said
    recorded = (files / "rec.jsonl").read_text().count("\n")
    assert 20 < recorded < 400
    assert recorded == len(counted.read_text().splitlines())
    done = confcascade(*given, cwd=files)
    assert done.returncode == 0, done.stderr
    calls = counted.read_text().splitlines()
    assert len(calls) == len(set(calls)) == 400


def test_bars_on_a_terminal(tmp_path):
    """For each model how far it is, its dollars and its errors."""
    from confcascade import ModelError, Prices, Stage
    from confcascade.cli.collect import _Shown
    from confcascade.evaluation import RecordingWriter
    from confcascade.evaluation.collect import collect
    from confcascade.evaluation.examples import Example
    from confcascade.evaluation.graders import ExactMatch
    from confcascade.evaluation.prompts import PROMPTS
    from confcascade.testing import Reply, ScriptedModel
    from rich.console import Console

    model = ScriptedModel("m", lambda request: Reply("", error=ModelError("no")) if "q1" in repr(request) else "yes")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RecordingWriter(tmp_path / "rec.jsonl") as writer, _Shown(console) as shown:
        examples = [Example(f"q{i}") for i in range(8)]
        stages = [Stage(model, prices=Prices(0, 1e6))]
        collect(examples, stages, writer, prompt=PROMPTS["plain"], grader=ExactMatch(), progress=shown)
    drawn = console.file.getvalue()
    for part in ("8/8", "/s", "$7.00", "1 error"):
        assert part in drawn
