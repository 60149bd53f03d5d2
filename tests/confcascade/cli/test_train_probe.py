"""``confcascade train-probe``: from questions or a recording to a probe that a cascade file can name."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With questions, in a folder of two files, on which the small model is right about half of the time."""
    from confcascade.demo.world import World

    folder = tmp_path_factory.mktemp("train-probe")
    questions = World().questions("fit", ("facts", "sums", "letters"), per_task=200)
    rows = [{"question": each.prompt, "reference": each.reference, "group": each.key} for each in questions]
    (folder / "questions").mkdir()
    for name, part in (("a", rows[::2]), ("b", rows[1::2])):
        (folder / "questions" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="module")
def trained(confcascade, folder):
    """Trained on the questions; the process that did it."""
    options = ("--model", "bundled:small", "--grader", "normalized", "--depths", "0.5,1.0")
    done = confcascade("train-probe", "questions", "-o", "probe", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


def test_a_probe_of_questions(trained, folder):
    """The model answers, the probe is chosen, and the terminal tells what it is worth."""
    from confcascade import ConfigurationError, KnowledgeProbe
    from confcascade.demo import bundled_model

    told = json.loads((folder / "probe" / "training.json").read_text())
    assert {(each["layer"], each["kind"]) for each in told["candidates"]} == {
        (layer, kind) for layer in (2, 4) for kind in ("linear", "mlp")
    }
    assert " ".join(told["verdict"][0].split()) in " ".join(trained.stdout.split())
    assert told["verdict"][0].startswith("This probe can")
    assert told["command"][:3] == ["confcascade", "train-probe", "questions"]
    assert told["split"]["by"] == "question"
    for name in ("reliability.png", "learning_curve.png", "auroc_by_depth.png", "recording.jsonl", "states"):
        assert (folder / "probe" / name).exists()
    probe = KnowledgeProbe.load(folder / "probe")
    probe.check(bundled_model("small"))
    with pytest.raises(ConfigurationError, match="trained for model 'small'"):
        probe.check(bundled_model("medium"))


def test_the_same_command_does_nothing_twice(confcascade, trained, folder):
    """Answers and hidden states are kept: another kind of probe takes a moment."""
    before = (folder / "probe" / "recording.jsonl").read_bytes()
    shards = {path.name: path.stat().st_mtime_ns for path in (folder / "probe" / "states").iterdir()}
    options = ("--model", "bundled:small", "--grader", "normalized", "--depths", "0.5,1.0", "--kind", "linear")
    done = confcascade("train-probe", "questions", "-o", "probe", *options, "--balanced", "--no-plots", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "probe" / "recording.jsonl").read_bytes() == before
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "probe" / "states").iterdir()} == shards
    told = json.loads((folder / "probe" / "training.json").read_text())
    assert {each["kind"] for each in told["candidates"]} == {"linear"}
    assert told["probe"]["balanced"]


def test_a_probe_of_a_recording(confcascade, trained, folder):
    """The recording's grades and prompts are enough; a model of a cascade file can be named."""
    (folder / "cascade.yaml").write_text("models: [bundled:small, bundled:large]\n")
    recording = folder / "probe" / "recording.jsonl"
    options = ("--cascade", "cascade.yaml", "--model", "small", "--depths", "4", "--kind", "linear", "--by-group")
    done = confcascade("train-probe", recording, "-o", "again", *options, "--no-plots", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "again" / "training.json").read_text())
    assert (told["split"]["by"], sum(told["probe"]["examples"])) == ("group", recording.read_text().count("\n"))
    assert not (folder / "again" / "recording.jsonl").exists()
    other = confcascade("train-probe", recording, "-o", "other", *options[:2], "--model", "large", cwd=folder)
    assert other.returncode == 2
    assert "no answers of model 'large'; it has small" in other.stderr


def test_questions_again_for_a_recording_without_text(confcascade, trained, folder):
    """`--data` gives what the recording does not keep."""
    rows = [json.loads(line) for line in (folder / "probe" / "recording.jsonl").read_text().splitlines()]
    for row in rows:
        del row["prompt"]
    (folder / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", "bundled:small", "--depths", "1.0", "--kind", "linear", "--no-plots")
    refused = confcascade("train-probe", "bare.jsonl", "-o", "bare", *options, cwd=folder)
    assert refused.returncode == 2
    assert "Give the questions by --data" in refused.stderr
    done = confcascade("train-probe", "bare.jsonl", "-o", "bare", *options, "--data", "questions", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "bare" / "training.json").read_text())
    assert sum(told["probe"]["examples"]) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["questions", "--grader", "normalized"], "Give --model local:NAME or bundled:SIZE, or --cascade FILE"),
        (["questions", "--model", "bundled:small"], "Name a grader with --grader"),
        (["questions", "--model", "small", "--grader", "exact"], 'must be "bundled:SIZE"'),
        (["questions", "--model", "bundled:small", "--grader", "exact", "--depths", "deep"], "--depths takes numbers"),
        (["questions", "--model", "bundled:small", "--grader", "exact", "--depths", "1.5"], "must lie in (0, 1]"),
        (["questions", "--model", "bundled:small", "--data", "questions"], "--data goes with a recording"),
        (["probe/recording.jsonl", "--model", "bundled:small", "--grader", "exact"], "A recording has its grades"),
        (["probe/recording.jsonl", "--model", "bundled:small", "--prompt", "plain"], "--prompt goes with --data"),
        (["probe/recording.jsonl", "--cascade", "cascade.yaml", "--model", "tiny"], "no model 'tiny'"),
    ],
)
def test_mistakes_are_one_line(confcascade, trained, folder, arguments, message):
    """What is wrong and what to do, code 2, no traceback, nothing written."""
    (folder / "cascade.yaml").write_text("models: [bundled:small, bundled:large]\n")
    done = confcascade("train-probe", *arguments, "-o", "mistake", "--no-plots", cwd=folder)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (folder / "mistake").exists()
