"""``confcascade evaluate``: from a recording to a folder, and errors in one line."""

from __future__ import annotations

import json

import pytest
from confcascade import Usage
from confcascade.evaluation import RecordedScore, Row


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "answers.jsonl"
    with path.open("wb") as file:
        for i in range(40):
            for model in ("small", "large"):
                right = model == "large" or i % 2 == 0
                score = RecordedScore(value=0.9 if i % 2 == 0 or i == 1 else i / 100)
                row = Row(
                    question=f"q{i}",
                    model=model,
                    prompt=f"what is {i}?",
                    answer="yes" if right else "no",
                    grade=float(right),
                    scores={"p_t": score},
                    usage=Usage(10, 2),
                    latency_s=1,
                )
                file.write(row.line())
    return path


def test_a_report_of_a_recording(confcascade, recording, tmp_path):
    """The page, its figures, and in the terminal the verdict; the command at the foot is the one that was typed."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "my report"
    arguments = ["evaluate", recording, "-o", out, "--threshold", "p_t=0.8", "--parameters", "small=1e9,large=1e10"]
    done = confcascade(*arguments, "--beside", "never=p_t=never", "--beside", "all=small.p_t=always")
    assert done.returncode == 0, done.stderr
    figures = json.loads((out / "figures.json").read_text())
    assert figures["policy"]["accuracy"]["value"] == pytest.approx(39 / 40)
    assert {p["name"]: p["answered"]["small"] for p in figures["beside"]} == {"never": 0, "all": 1}
    assert figures["verdict"][0] in done.stdout
    assert f"-o '{out}' --threshold p_t=0.8" in figures["made"]["command"]
    assert figures["made"]["models, smallest first"] == "small, large (by operations for a token)"
    assert "what is 1?" in (out / "index.html").read_text()


def test_prices_and_models_are_as_told(confcascade, recording, tmp_path):
    done = confcascade(
        *("evaluate", recording, "-o", tmp_path, "--threshold", "p_t=0.8", "--no-plots"),
        *("--models", "small,large", "--prices", "small=1,2", "--prices", "large=10"),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["unit"] == "usd"
    assert figures["alone"][1]["cost"]["usd"] == pytest.approx(120e-6)
    assert not list(tmp_path.glob("*.png"))


def test_a_file_whose_stages_skip_is_refused(confcascade, recording, tmp_path):
    """No report is made as if the key were not there."""
    path = tmp_path / "cascade.yaml"
    path.write_text(
        "stages:\n- model: {openai: small, name: small}\n  signals: [{type: retrieval, name: p_t}]\n"
        "  thresholds: {p_t: 0.8}\n  skip: {p_t: 0.1}\n- model: {openai: large, name: large}\n"
    )
    done = confcascade("evaluate", recording, "-o", tmp_path / "out", "--cascade", path, "--no-plots")
    assert done.returncode == 2
    assert "which `confcascade evaluate` does not judge" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_thresholds_and_prices_of_a_cascade_file(confcascade, recording, tmp_path):
    """The models of the file, which need not be at hand."""
    path = tmp_path / "cascade.yaml"
    path.write_text(
        """
        stages:
          - model: {local: ./nowhere, name: small}
            signals: [p_t]
            thresholds: {p_t: 0.8}
            prices: {input_usd: 1, output_usd: 2}
          - model: {openai: large}
            prices: {input_usd: 10, output_usd: 20}
        """
    )
    done = confcascade("evaluate", recording, "-o", tmp_path / "out", "--cascade", path, "--no-plots")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["policy"]["thresholds"] == {"small": {"p_t": 0.8}, "large": {}}
    assert figures["unit"] == "usd"
    assert figures["made"]["models, smallest first"] == "small, large (as in cascade.yaml)"
    twice = confcascade("evaluate", recording, "--cascade", path, "--threshold", "p_t=0.9", "--no-plots")
    assert twice.returncode == 2
    assert "one of --threshold" in twice.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say one of --threshold SIGNAL=NUMBER"),
        (["--threshold", "p_t"], "--threshold takes NAME=VALUE"),
        (["--threshold", "p_t=high"], "could not convert"),
        (["--threshold", "p_ik=0.9"], "'p_ik' is of no recorded signal"),
        (["--threshold", "p_t=0.9", "--models", "small"], "'small' is the only model"),
        (["--threshold", "p_t=0.9", "--models", "small,huge"], "Model 'huge' is not in the recording"),
        (["--threshold", "p_t=0.9", "--prices", "tiny=1,2"], "Model 'tiny' is not in the recording"),
        (["--threshold", "p_t=0.9", "--parameters", "small=-1"], "parameters must be above 0"),
        (["--threshold", "p_t=0.9", "--unit", "euro"], "--unit must be one of flops, usd, tokens, seconds"),
    ],
)
def test_mistakes_are_one_line(confcascade, recording, tmp_path, arguments, message):
    """What is wrong and what to do, code 2, no traceback."""
    done = confcascade("evaluate", recording, "-o", tmp_path / "x", "--no-plots", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
