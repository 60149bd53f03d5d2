"""A recording is opened once, and everybody names it by the same digest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from confcascade.bench.evaluation.report import made_of
from confcascade.bench.fitting import read_material
from confcascade.bench.recording import Recording, RecordingWriter, Row, read_rows, write_parquet, write_parts
from confcascade.bench.recording.digest import digest
from confcascade.types import Usage

pytest.importorskip("pyarrow")

FIT = [sys.executable, "-m", "confcascade.cli", "fit", "--max-drop", "0.3", "--unit", "tokens"]
# counts how often the recording is opened by a command
COUNTED = """
import sys
from confcascade.cli import main

name, opened = sys.argv.pop(1), []
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith(name) and opened.append(args[0]))
try:
    main()
except SystemExit as ended:
    print("code", ended.code, file=sys.stderr)
print("opened", len(opened), file=sys.stderr)
"""


def rows(count=400):
    for i in range(count):
        score = {"p_t": {"value": 0.2 + 0.79 * ((i * 37) % 100) / 100}}
        right = float((i * 37) % 100 > 20)
        for model, grade, tokens in (("small", right, 1), ("large", 1.0, 9)):
            yield Row(
                question=f"q{i}",
                model=model,
                prompt=f"{i}?",
                answer="x",
                grade=grade,
                scores=score,
                usage=Usage(tokens, 1),
            )


@pytest.fixture
def recording(tmp_path):
    with RecordingWriter(tmp_path / "rec.jsonl") as writer:
        for row in rows():
            writer.append(row)
    return tmp_path / "rec.jsonl"


@pytest.fixture
def policy(recording):
    done = subprocess.run(
        [*FIT, recording.name],
        cwd=recording.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return recording.parent / "policy.json"


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "rec.jsonl", "--max-drop", "0.3", "--unit", "tokens"],
        ["evaluate", "rec.jsonl", "--threshold", "p_t=0.5", "--no-plots", "-o", "report"],
        ["evaluate", "rec.jsonl", "--policy", "policy.json", "--no-plots", "-o", "report"],
    ],
    ids=["fit", "evaluate", "evaluate a policy"],
)
def test_a_command_opens_its_recording_once(recording, policy, command):
    """What it reads, hashes, counts and quotes comes from one pass over it."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, "rec.jsonl", *command], cwd=recording.parent, capture_output=True, text=True
    )
    assert "opened 1\n" in done.stderr, done.stderr
    assert "code 2" not in done.stderr


@pytest.mark.parametrize("form", ["lines", "unfinished", "parquet", "parts"])
def test_policy_and_report_name_a_recording_alike(recording, tmp_path, form):
    """In whatever form it is; a pass over its rows gives the digest, which is that of its bytes."""
    path = recording
    if form == "unfinished":
        with path.open("ab") as file:
            file.write(b'{"question":"q')
    elif form == "parquet":
        write_parquet(read_rows(recording), path := tmp_path / "rec.parquet")
    elif form == "parts":
        write_parts(read_rows(recording), path := tmp_path / "parts", 3)
    source = Recording(path)
    assert sorted(row.key for row in source.rows()) == sorted(row.key for row in rows())
    assert source.digest == digest(path) == Recording(path).digest
    assert read_material(path).digest == source.digest
    assert made_of(source, "a command")["sha256 of the recording"] == source.digest


def test_fit_takes_a_folder_of_parts(recording, tmp_path):
    """As `evaluate` does; the policy is that of the whole."""
    write_parts(read_rows(recording), tmp_path / "parts", 3)
    made = []
    for name in ("rec.jsonl", "parts"):
        done = subprocess.run(
            [*FIT, name, "-o", f"{name}.json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert made[0]["stages"] == made[1]["stages"]
    assert made[1]["made_from"]["recording"] == digest(tmp_path / "parts")
