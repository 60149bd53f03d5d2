"""``confcascade train-probe``: from questions or a recording to a probe that a cascade file can name."""

from __future__ import annotations

import json
import os
import signal

import pytest
from confcascade import ConfigurationError
from confcascade.cli.hints import with_options

pytest.importorskip("torch")
pytest.importorskip("openai")

from ...served_engine import ServedEngine


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


@pytest.fixture
def here(folder, monkeypatch):
    """Runs the command in that folder, in this process: to start one takes longer than to train."""
    from confcascade.cli import app
    from typer.testing import CliRunner

    monkeypatch.chdir(folder)

    def run(*arguments):
        done = CliRunner().invoke(app, ["train-probe", *map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


def checks(*arguments):
    """Runs ``confcascade check`` in this process."""
    from confcascade.cli import app
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["check", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def trained(confcascade, folder):
    """Trained on the questions; the process that did it."""
    options = ("--model", "bundled:small", "--grader", "normalized", "--depths", "0.5,1.0")
    done = confcascade("train-probe", "questions", "-o", "probe", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


def test_a_probe_of_questions(trained, folder):
    """The model answers, the probe is chosen, and the terminal tells what it is worth."""
    from confcascade import KnowledgeProbe
    from confcascade.models.bundled import bundled_model

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


def test_the_same_command_does_nothing_twice(here, trained, folder):
    """Answers and hidden states are kept: another kind of probe takes a moment."""
    before = (folder / "probe" / "recording.jsonl").read_bytes()
    shards = {path.name: path.stat().st_mtime_ns for path in (folder / "probe" / "states").iterdir()}
    options = ("--model", "bundled:small", "--grader", "normalized", "--depths", "0.5,1.0", "--kind", "linear")
    here("questions", "-o", "probe", *options, "--balanced", "--no-plots")
    assert (folder / "probe" / "recording.jsonl").read_bytes() == before
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "probe" / "states").iterdir()} == shards
    told = json.loads((folder / "probe" / "training.json").read_text())
    assert {each["kind"] for each in told["candidates"]} == {"linear"}
    assert told["probe"]["balanced"]


def test_a_probe_of_a_recording(here, trained, folder):
    """The recording's grades and prompts are enough; a model of a cascade file can be named."""
    (folder / "cascade.yaml").write_text("models: [bundled:small, bundled:large]\n")
    recording = folder / "probe" / "recording.jsonl"
    options = ("--cascade", "cascade.yaml", "--depths", "4", "--kind", "linear", "--by-group", "--no-plots")
    here(recording, "-o", "again", *options, "--model", "small")
    told = json.loads((folder / "again" / "training.json").read_text())
    assert (told["split"]["by"], sum(told["probe"]["examples"])) == ("group", recording.read_text().count("\n"))
    assert not (folder / "again" / "recording.jsonl").exists()
    with pytest.raises(ConfigurationError, match="no answers of model 'large'; it has small"):
        here(recording, "-o", "other", *options, "--model", "large")


def test_questions_again_for_a_recording_without_text(here, trained, folder):
    """`--data` gives what the recording does not keep."""
    rows = [json.loads(line) for line in (folder / "probe" / "recording.jsonl").read_text().splitlines()]
    for row in rows:
        del row["prompt"]
    (folder / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", "bundled:small", "--depths", "1.0", "--kind", "linear", "--no-plots")
    with pytest.raises(ConfigurationError, match="Give the questions by `examples=") as refused:
        here("bare.jsonl", "-o", "bare", *options)
    assert with_options(str(refused.value)).endswith("(Here: `examples` is --data, `prompt` is --prompt.)")
    here("bare.jsonl", "-o", "bare", *options, "--data", "questions")
    told = json.loads((folder / "bare" / "training.json").read_text())
    assert sum(told["probe"]["examples"]) == len(rows)


def test_a_mistake_is_one_line(confcascade, folder):
    done = confcascade("train-probe", "questions", "-o", "mistake", cwd=folder)
    assert done.returncode == 2
    assert "Give --model local:NAME or bundled:SIZE, or --cascade FILE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
def test_mistakes_are_named(here, trained, folder, arguments, message):
    """What is wrong and what to do, before anything is written."""
    (folder / "cascade.yaml").write_text("models: [bundled:small, bundled:large]\n")
    with pytest.raises(ConfigurationError) as raised:
        here(*arguments, "-o", "mistake", "--no-plots")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder / "mistake").exists()


def test_ctrl_c_keeps_what_was_read(here, trained, folder, monkeypatch):
    """It ends with 130, says how to go on, and the same command does."""
    from confcascade.models.local import TransformersModel

    prefill, passes = TransformersModel.prefill, []

    def interrupted(self, asks):
        passes.append(len(asks))
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return prefill(self, asks)

    monkeypatch.setattr(TransformersModel, "prefill", interrupted)
    recording = folder / "probe" / "recording.jsonl"
    options = ("--model", "bundled:small", "--depths", "0.75", "--kind", "linear", "--no-plots")
    done = here(recording, "-o", "interrupted", *options)
    assert done.exit_code == 130
    assert "The same command goes on where it was." in done.output
    read = sum(passes)
    done = here(recording, "-o", "interrupted", *options)
    assert done.exit_code == 0
    assert sum(passes) == recording.read_text().count("\n")
    assert read < sum(passes)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_served_model_is_probed_checked_and_gated_through_its_server(here, folder, tmp_path, httpserver, engine):
    """Answers and hidden states both come from the server that the cascade file names; the card says of what kind, and
    what a check says of the gate is what it does: a query that it turns down has one token written.
    """
    from confcascade import KnowledgeProbe
    from confcascade.cascade_file import CascadeFile

    served = ServedEngine(httpserver, engine, tmp_path, layers=(3, 2))
    files = f"states_layers: [3, 2], states_folder: {tmp_path}, " if engine == "vllm" else ""
    sizes = "architecture: {parameters: 80668, layers: 4, hidden_size: 28}"
    cascade = tmp_path / "cascade.yaml"
    cascade.write_text(
        "decoding: {temperature: 0}\nmodels:\n"
        f"  - {{openai: small, base_url: '{served.url}', hidden_states: {engine}, {files}{sizes}}}\n"
        "  - bundled:large\nthreshold: 0.9\n"
    )
    options = ("--cascade", cascade, "--model", "small", "--grader", "normalized", "--kind", "linear", "--no-plots")
    out = tmp_path / "probe"

    done = here("questions", "-o", out, *options, "--limit", 100, "--max-tokens", 24)

    assert done.exit_code == 0, done.output
    card = KnowledgeProbe.load(out).card
    assert (card.engine, card.normalised) == (engine, engine == "sglang")
    told = json.loads((out / "training.json").read_text())
    assert {each["layer"] for each in told["candidates"]} == ({2, 3} if engine == "vllm" else {4})
    assert sum(card.examples) == 100
    read = [body for body in served.bodies if body["max_tokens"] == 1]
    assert (len(read), len(served.bodies)) == (100, 200)

    calls = len(served.bodies)
    again = here("questions", "-o", out, *options, "--limit", 100, "--max-tokens", 24)
    assert again.exit_code == 0
    assert len(served.bodies) == calls  # answers and states are kept

    cascade.write_text(
        cascade.read_text().replace("threshold: 0.9", f"signals: [{{type: p_ik, probe: {out}}}]\nthreshold: 0.5")
    )
    question, gated = "Which is the capital of Vodis?", cascade.read_text()
    checked = checks(cascade, "--question", question, "--json")
    outcome = CascadeFile.load(cascade).cascade().run(question, max_tokens=8)
    score = outcome.record.attempts[0].scores["p_ik"].value
    (stage, _), works = json.loads(checked.stdout)["stages"], checked.exit_code == 0
    assert works
    assert stage["scores"]["p_ik"] == {"value": score, "threshold": 0.5, "unavailable": "", "passed": score >= 0.5}
    assert stage["then"] == "answers only with p_ik >= 0.5, keeps every usable answer, else escalates to 'large'"

    cascade.write_text(gated.replace("threshold: 0.5", "threshold: 1.0"))
    served.decoded.clear()
    assert CascadeFile.load(cascade).cascade().run(question).record.answered_by == "large"
    assert served.decoded == [1]

    other = "sglang" if engine == "vllm" else f"vllm, states_layers: [3, 2], states_folder: {tmp_path}"
    for mine, message in (
        (gated.replace(f"{engine}, {files}".removesuffix(", "), other), f'from a server \\("{engine}"\\); model'),
        (gated.replace("states_layers: [3, 2]", "states_layers: [1]"), "trained on block .*gives block 1 of 4 only"),
    ):
        if mine != gated:
            cascade.write_text(mine)
            with pytest.raises(ConfigurationError, match=message):
                checks(cascade)
    cascade.write_text(gated)
    with pytest.raises(ConfigurationError, match=r"gives the hidden states of block .*, of 4\. Got depths at block 1"):
        here("questions", "-o", tmp_path / "other", *options, "--depths", "1")
