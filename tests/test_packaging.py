"""What pyproject.toml promises is so: no extra without code behind it, and the sdist has what its tests read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PACKAGES = ("core/confcascade", "langchain_confcascade", "llamaindex_confcascade")
# what a distribution is called where it is imported, if otherwise
IMPORTED = {"llama-index-core": "llama_index", "llama-index-retrievers-bm25": "llama_index.retrievers.bm25"}


def needed(extra: str) -> list[str]:
    """The distributions of an extra, without those of other extras and without versions."""
    names = [re.match(r"[\w-]+", each)[0] for each in EXTRAS[extra]]
    return [name for name in names if name != "confcascade"]


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev"}))
def test_every_extra_has_code_behind_it(extra: str):
    """Somebody imports what it brings; else it only costs whoever installs it."""
    sources = "\n".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    for name in needed(extra):
        module = re.escape(IMPORTED.get(name, name.replace("-", "_")))
        used = rf'(^ *(from|import) {module}\b)|(require\("{module}[\w.]*", "\w+"\))'
        assert re.search(used, sources, re.MULTILINE), f"nobody imports {module} of the extra '{extra}'"


def test_the_sdist_has_what_its_tests_read():
    """Whoever packages it for a distribution runs them."""
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"tests", "docs", "benchmarks", "constraints.txt", "README.md"} <= set(included)
