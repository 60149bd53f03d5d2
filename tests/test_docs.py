"""Every Python block of the documents runs, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# a Python block, and the block of its output where there is one; a comment before it may say why it is not run
BLOCK = re.compile(
    r"(?P<skip><!-- not run: .*? -->\n)?```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL
)


def blocks():
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            line = page.read_text()[: match.start()].count("\n") + 1
            yield pytest.param(match, id=f"{page.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("match", list(blocks()))
def test_block(match):
    """A block runs as it stands, and its output is the output shown."""
    if match["skip"]:
        compile(match["code"], "block", "exec")
        return
    pytest.importorskip("torch")
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(match["code"], "block", "exec"), {"__name__": "block"})
    if match["output"] is not None:
        assert printed.getvalue() == match["output"]


def test_links_lead_somewhere():
    """Every relative link of a page names a file that is there."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_figures_are_the_measured_ones():
    """The tables of the page on the bundled models are those that `measure` makes of its figures."""
    import json

    from confcascade.demo import WEIGHTS
    from confcascade.demo.measure import tables

    page = (ROOT / "docs" / "bundled-models.md").read_text()
    assert tables(json.loads((WEIGHTS / "figures.json").read_text())) in page
