"""``confcascade train-verbalized``: from questions to a model that a cascade file can name."""

from __future__ import annotations

import json

import pytest
from confcascade import ConfigurationError, MissingExtraError

pytest.importorskip("trl")
pytest.importorskip("peft")

QUICK = (
    *("--model", "bundled:small", "--grader", "normalized", "--instruction", "Sure?", "--max-tokens", 40),
    *("--group", 4, "--rows", 64, "--questions", 16, "--steps", 2, "--every", 1, "--rate", "1e-3"),
    *("--epochs", 3, "--answers", 4, "--supervised-rate", "1e-2", "--texts", 16),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from confcascade.demo.world import World

    folder = tmp_path_factory.mktemp("train-verbalized")
    for name, task, count in (("questions", "facts", 160), ("others", "letters", 20)):
        asked = World().questions("fit", (task,), per_task=count)
        rows = [{"question": each.prompt, "reference": each.reference} for each in asked]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """Runs the command in that folder, in this process."""
    from confcascade.cli import app
    from typer.testing import CliRunner

    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        done = CliRunner().invoke(app, ["train-verbalized", *map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


@pytest.fixture(scope="module")
def trained(folder):
    from confcascade.cli import app
    from typer.testing import CliRunner

    arguments = ["questions.jsonl", "-o", "out", "--lora", "8", "--also", "letters=others.jsonl", *map(str, QUICK)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        done = CliRunner().invoke(app, ["train-verbalized", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_the_terminal_tells_what_it_is_worth(trained):
    for set_ in ("test", "letters"):
        for when in ("before", "taught the form", "after"):
            assert any(set_ in line and f"stated, {when}" in line for line in trained.stdout.splitlines())
    assert "What it states can" in trained.stdout


def test_the_card_says_how_to_ask_and_what_came_of_it(trained, folder):
    card = json.loads((folder / "out" / "model" / "stated.json").read_text())
    assert card["instruction"] == "Sure?"
    assert card["settings"]["reinforced"]["steps"] == 2
    assert card["data"]["name"] == "questions.jsonl"
    assert set(card["after"]) == set(card["before"]) == {"test", "letters"}
    assert card["after"]["letters"]["stated"]["n"] == 20
    plots = {path.name for path in (folder / "out" / "plots").iterdir()}
    assert plots == {"rewards.png", "statements.png", "reliability-test.png", "reliability-letters.png"}


def test_an_update_of_teaching_has_the_texts_that_were_wanted(trained, folder):
    """Few questions make few texts, and a form is not learned in a few updates."""
    from confcascade.bench.training.verbalized.following import read_log

    texts = json.loads((folder / "out" / "model" / "stated.json").read_text())["texts"]
    assert read_log(folder / "out" / "taught" / "log.jsonl")[-1]["step"] == 3 * -(-texts // 16)


def test_a_cascade_file_names_it(trained, folder):
    """The adapter on its base, asked in the words of its card."""
    from confcascade.cascade_file import CascadeFile
    from confcascade.cli.train_verbalized import _examples
    from confcascade.types import Message, Request

    (folder / "cascade.yaml").write_text(
        "stages:\n"
        "- model: {local: out/model}\n"
        "  signals: [{type: verbalized, trained: out/model}]\n"
        "  thresholds: {stated: 0.5}\n"
        "- model: bundled:large\n"
    )
    cascade = CascadeFile.load(folder / "cascade.yaml").cascade()
    recording = folder / "out" / "recordings" / "after" / "letters.jsonl"
    rows = {row["question"]: row for row in map(json.loads, recording.read_text().splitlines())}
    for example in _examples(folder / "others.jsonl", "auto"):
        request = Request((Message("user", example.question),), max_tokens=40)
        first = cascade.run(request).record.attempts[0]
        stated = first.scores["stated"].value if "stated" in first.scores else None
        assert stated == rows[example.id]["scores"]["stated"]["value"]


def test_the_same_command_is_done_at_once(trained, here):
    done = here("questions.jsonl", "-o", "out", "--lora", 8, "--also", "letters=others.jsonl", *QUICK)
    assert done.exit_code == 0
    assert done.stdout == trained.stdout


def test_other_settings_are_refused(trained, here):
    with pytest.raises(ConfigurationError, match=r"begun with other settings \(seed\)"):
        here("questions.jsonl", "-o", "out", "--lora", 8, "--also", "letters=others.jsonl", *QUICK, "--seed", 1)


def test_a_recording_keeps_questions_enough(trained, here, folder):
    """Prompts and references, where they were kept."""
    from confcascade.cli.train_verbalized import _examples

    found = _examples(folder / "out" / "recordings" / "before" / "letters.jsonl", "auto")
    asked = [json.loads(line) for line in (folder / "others.jsonl").read_text().splitlines()]
    assert {(e.question, e.references) for e in found} == {(a["question"], (a["reference"],)) for a in asked}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Which model?"),
        (("--model", "openai:gpt-5-mini"), "Only local models can be trained"),
        (("--model", "bundled:small", "--also", "test=others.jsonl"), "any name but 'test'"),
        (("--model", "bundled:small", "--rows", "24"), "passes of 24 do not divide"),
    ],
)
def test_what_cannot_be_is_said_at_once(here, arguments, said, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(ConfigurationError, match=said):
        here("questions.jsonl", "-o", tmp_path / "out", "--grader", "normalized", *arguments)


def test_without_trl_it_says_what_to_install(here, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match="train"):
        here("questions.jsonl", "-o", tmp_path / "out", *QUICK)
