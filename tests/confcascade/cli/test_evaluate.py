"""``confcascade evaluate``: from a recording to a folder, and errors in one line."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from confcascade import Architecture, Usage
from confcascade.bench.recording import RecordedScore, Row
from confcascade.bench.recording.provenance import meta_path
from confcascade.cost import forward_flops


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


def test_a_threshold_that_no_score_can_reach(confcascade, recording, tmp_path):
    """A percentage, say, is played as it stands, with a warning."""
    done = confcascade("evaluate", recording, "-o", tmp_path, "--threshold", "p_t=90", "--no-plots")
    assert done.returncode == 0, done.stderr
    told = "Threshold 'p_t' of 'small' is 90.0, and its recorded scores all lie in [0, 1]: none of them reaches it."
    assert told in " ".join(done.stderr.split())
    assert json.loads((tmp_path / "figures.json").read_text())["policy"]["answered"]["small"] == 0


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


def test_who_says_sizes_and_prices(confcascade, recording, tmp_path):
    """Of each model the command line, else the cascade file, else what was noted at the collecting."""
    rec, cascade = tmp_path / "rec.jsonl", tmp_path / "cascade.yaml"
    rec.write_bytes(recording.read_bytes())
    sizes = {name: Architecture(n, 0, 0) for name, n in (("small", 1_000), ("large", 3_000))}
    models = {name: {"architecture": asdict(size)} for name, size in sizes.items()}
    models["large"]["prices"] = {"input_usd": 7, "output_usd": 7}
    identity = {"models": {}}
    meta_path(rec).write_text(json.dumps({"format": 1, "identity": identity, "models": models, "runs": []}))

    def figures(*arguments):
        done = confcascade("evaluate", rec, "-o", tmp_path / "out", "--no-plots", *arguments)
        assert done.returncode == 0, done.stderr
        made = json.loads((tmp_path / "out" / "figures.json").read_text())
        assert all(note in " ".join(done.stdout.split()) for note in made["notes"][-1:])
        return made["unit"], made["alone"][1]["cost"], made["notes"][-2:]

    unit, spent, notes = figures("--threshold", "p_t=0.8")
    assert (unit, spent["flops"]) == ("flops", 2 * 3_000 * 12)
    assert notes[0] == "Parameters: small 1,000 (rec.jsonl.meta.json); large 3,000 (rec.jsonl.meta.json)."

    cascade.write_text(
        "stages:\n- model: {openai: small}\n  thresholds: {p_t: 0.8}\n  signals: [p_t]\n"
        "- model: {openai: large, architecture: {parameters: 5000, layers: 1, hidden_size: 1}}\n"
        "  prices: {input_usd: 1, output_usd: 2}\n"
    )
    unit, spent, notes = figures("--cascade", cascade)
    assert (unit, spent["flops"]) == ("flops", forward_flops(Architecture(5_000, 1, 1), Usage(10, 2)))
    assert notes == [
        "Parameters: small 1,000 (rec.jsonl.meta.json); large 5,000 (the cascade file).",
        "Dollars for a million tokens, read and written: large 1 and 2 (the cascade file).",
    ]
    unit, spent, notes = figures("--cascade", cascade, "--parameters", "large=9000", "--prices", "small=0.5")
    assert (unit, spent["flops"], spent["usd"]) == ("flops", 2 * 9_000 * 12, pytest.approx(14e-6))
    assert "large 9,000 (the command line)." in notes[0]
    assert "small 0.5 and 0.5 (the command line); large 1 and 2 (the cascade file)." in notes[1]
    assert figures("--threshold", "p_t=0.8", "--prices", "small=1", "--prices", "large=2")[0] == "usd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say one of --threshold SIGNAL=NUMBER"),
        (["--threshold", "p_t"], "--threshold takes NAME=VALUE"),
        (["--threshold", "p_t=high"], "--threshold 'p_t=high': must be a number, such as 0.9"),
        (["--threshold", "p_t=90%"], "--threshold 'p_t=90%': must be a number, such as 0.9 (90 % is 0.9), or always"),
        (["--threshold", "p_t=nan"], "must be a number, such as 0.9"),
        (["--threshold", "p_t=0.9", "--parameters", "small=8 billion"], "a number of parameters, such as 8B, 350M or"),
        (["--threshold", "p_t=0.9", "--parameters", "small=inf"], "a number of parameters, such as 8B"),
        (["--threshold", "p_t=0.9", "--prices", "small=cheap"], "must be dollars per million tokens"),
        (["--threshold", "p_t=0.9", "--prices", "small=-1"], "at least 0. Got -1.0."),
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
