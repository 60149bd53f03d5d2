"""Every Python block of the documents runs, and prints what stands below it; every test that they name is there."""

import ast
import contextlib
import importlib
import io
import logging
import re
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# a Python block, and the block of its output where there is one; a comment before it may say why it is not run, or that
# real models speak, of whose output numbers and names of models may change when they are trained anew
BLOCK = re.compile(
    r"(?:<!-- (?P<note>not run|real models): [^>]*? -->\n)?"
    r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?",
    re.DOTALL,
)
LEVEL = re.compile(r'getLogger\("([\w.]+)"\)\.setLevel')
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+)`")


def blocks():
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            line = page.read_text()[: match.start()].count("\n") + 1
            yield pytest.param(match, id=f"{page.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("match", list(blocks()))
def test_block(match, request, monkeypatch):
    """A block runs as it stands, and prints the output shown; OpenAI's clients reach a server on this machine."""
    if match["note"] == "not run":
        compile(match["code"], "block", "exec")
        return
    for module in ("torch", "langchain", "llama_index.core"):
        pytest.importorskip(module)
    if "opentelemetry" in match["code"]:
        pytest.importorskip("opentelemetry.sdk")
    if "train_verbalized" in match["code"]:
        pytest.importorskip("trl")
    if "OpenAI(" in match["code"]:  # LangChain's and LlamaIndex's
        for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
            monkeypatch.setenv(name, request.getfixturevalue("served")("large"))
        monkeypatch.setenv("OPENAI_API_KEY", "none")
    if "Settings" in match["code"]:  # LlamaIndex's, which would stay as the block leaves them
        monkeypatch.setattr(importlib.import_module("llama_index.core").Settings, "_llm", None)
    for name in LEVEL.findall(match["code"]):  # nor are levels of logs to stay
        logger = logging.getLogger(name)
        request.addfinalizer(partial(logger.setLevel, logger.level))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(match["code"], "block", "exec"), {"__name__": "block"})
    if match["output"] is not None:
        kept = without_what_training_changes if match["note"] else str
        assert kept(printed.getvalue()) == kept(match["output"])


def without_what_training_changes(printed):
    return re.sub(r"\b(small|medium|large)\b|\d[\d.]*", "_", printed)


def test_named_tests_exist():
    """Whoever follows a page to the test of a promise finds it."""
    named = [(page, match) for page in PAGES for match in TEST.finditer(page.read_text())]
    assert named
    for page, match in named:
        path = ROOT / match["file"]
        assert path.exists(), f"{page.name} names {match['file']}"
        nodes = ast.walk(ast.parse(path.read_text()))
        assert match["name"] in {getattr(node, "name", None) for node in nodes}, f"{page.name} names {match[0]}"


def test_links_lead_somewhere():
    """Every relative link of a page names a file that is there."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_figures_are_the_measured_ones():
    """The tables of the page on the bundled models are those that `measure` makes of its figures."""
    import json

    from confcascade.demo.measure import tables
    from confcascade.models.bundled import WEIGHTS

    page = (ROOT / "docs" / "bundled-models.md").read_text()
    assert tables(json.loads((WEIGHTS / "figures.json").read_text())) in page
