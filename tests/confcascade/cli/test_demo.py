"""The command line: help that teaches, errors in one line, and the demo from end to end."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")

# as the command runs where no framework is installed
ALONE = """
import sys
sys.modules.update(langchain_core=None, llama_index=None)
from confcascade.cli import main
main()
"""


def test_help_names_every_option(confcascade):
    """`--help` tells what each option takes and shows an example."""
    shown = confcascade("demo", "--help").stdout
    options = "--models", "--threshold", "--prices", "--questions", "--plot"
    for word in (*options, "llamacpp:small.gguf", "confcascade demo --plot demo.png"):
        assert word in shown


def test_demo_answers_and_plots(confcascade, tmp_path):
    """The demo runs on the bundled models: a chain, a query engine, a comparison, and a PNG."""
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    plot = tmp_path / "demo.png"
    done = confcascade("demo", "--questions", "4", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    for part in (
        "prompt | llm | StrOutputParser()",
        "query engine over 6 documents",
        "held-out questions",
        "McNemar",
        "p_ik",
        "p_t",
    ):
        assert part in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_own_models_need_no_framework(tmp_path):
    """`--models` asks the shipped questions, ends with a table, the next steps and a plot."""
    plot = tmp_path / "own.png"
    models = ["--models", "bundled:small", "--models", "bundled:large"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "demo", *models, "--threshold", "0.5", "--questions", "3", "--plot", str(plot)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for part in ("Loading bundled:large", "3/3", "answering stage only", "Other thresholds", "confcascade collect"):
        assert part in done.stdout
    assert "Not one answer was right" in done.stdout  # they know a made-up world only
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "gpt-4o", "--models", "openai:gpt-4o"], 'Got "gpt-4o"'),
        (["--models", "local:/nowhere", "--models", "bundled:large"], "No causal language model can be loaded"),
        (["--models", "bundled:large"], "at least two models, smallest first. Got 1"),
        (["--models", "bundled:large", "--models", "bundled:small", "--prices", "x=1"], "prices for 'x'"),
        (["--threshold", "0.5"], "go with --models"),
    ],
)
def test_bad_models_are_one_line(confcascade, arguments, message):
    """What cannot be a model ends the command with one line and the code 2."""
    done = confcascade("demo", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_larger_model_first_is_a_warning(confcascade):
    """And the demo goes on."""
    done = confcascade("demo", "--models", "bundled:large", "--models", "bundled:small", "--questions", "1")
    assert done.returncode == 0, done.stderr
    assert "Models go smallest first, and 'large'" in done.stderr
