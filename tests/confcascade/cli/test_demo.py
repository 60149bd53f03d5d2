"""The command line: help that teaches, errors in one line, and the demo from end to end."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")


def test_help_names_every_option(confcascade):
    """`--help` tells what each option takes and shows an example."""
    shown = confcascade("demo", "--help").stdout
    for word in ("--models", "--threshold", "--questions", "--plot", "confcascade demo --plot demo.png"):
        assert word in shown


def test_demo_answers_and_plots(confcascade, tmp_path):
    """The demo runs on the bundled models: a chain, a query engine, a comparison, and a PNG."""
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


def test_demo_takes_other_models(confcascade):
    """`--models` takes model strings; here folders, loaded as any model is."""
    from confcascade.models.bundled import WEIGHTS

    done = confcascade(
        "demo", "--models", f"local:{WEIGHTS / 'small'}", "--models", f"local:{WEIGHTS / 'large'}", "--questions", "4"
    )
    assert done.returncode == 0, done.stderr
    assert "small -> large" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "gpt-4o", "--models", "openai:gpt-4o"], 'Got "gpt-4o"'),
        (["--models", "local:/nowhere", "--models", "openai:gpt-4o"], "No causal language model can be loaded"),
    ],
)
def test_bad_models_are_one_line(confcascade, arguments, message):
    """What cannot be a model ends the command with one line and the code 2."""
    done = confcascade("demo", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
