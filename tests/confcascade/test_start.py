"""What a start loads: only what is used by then. `benchmarks/start.py` measures what it costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import confcascade
import pytest

HEAVY = "matplotlib numpy openai pyarrow safetensors scipy sklearn torch transformers".split()
COMMAND = """
import sys
from confcascade.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded(code: str) -> set[str]:
    """Names of the modules that a fresh process has loaded when it has run the code."""
    code = f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith("confcascade.")}


def test_the_front_door_loads_nothing_behind_it():
    """A name brings in its own module when it is used."""
    closed = ours(loaded("import confcascade"))
    opened = ours(loaded("from confcascade import Cascade"))

    assert closed <= {f"confcascade.{name}" for name in ("errors", "quick_init", "thoughts", "trace", "types")}
    assert "confcascade.cascade" in opened
    assert not {"confcascade.models.local", "confcascade.policy", "confcascade.cascade_file"} & opened


def test_the_front_door_shows_type_checkers_what_is_there():
    """They read imports that are never run, and those say the same as the table that is."""
    tree = ast.parse(Path(confcascade.__file__).read_text())
    (never_run,) = (node for node in tree.body if isinstance(node, ast.If))
    shown = {alias.name: node.module for node in never_run.body for alias in node.names}  # type: ignore[attr-defined]

    assert shown == confcascade._HOMES


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in "ask audit collect convert demo evaluate fit train-probe".split())]
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]):
    found = loaded(COMMAND.format(arguments=[*command, "--help"]))
    assert "typer" in found
    assert not found & set(HEAVY)
    assert "confcascade.cascade" not in found


def test_a_cascade_of_api_models_loads_nothing_for_local_ones(tmp_path: Path):
    """From the file to the cascade that is ready to be asked."""
    pytest.importorskip("openai")
    path = tmp_path / "cascade.yaml"
    path.write_text('models: ["openai:small", "openai:large"]\nthreshold: 0.9\nmode: query\n')
    code = f"""
import os
os.environ["OPENAI_API_KEY"] = "none"
from confcascade.cascade_file import CascadeFile
CascadeFile.load({str(path)!r}).cascade()
"""
    found = loaded(code)
    assert "openai" in found
    assert not found & (set(HEAVY) - {"openai"})
    assert not {"confcascade.models.local", "confcascade.policy", "confcascade.guarantee"} & found


@pytest.mark.parametrize(
    ("integration", "framework"),
    [("langchain_confcascade", "langchain_core"), ("llamaindex_confcascade", "llama_index")],
)
def test_integrations_load_nothing_heavy_themselves(integration: str, framework: str):
    """What their frameworks load is the frameworks' affair: LlamaIndex needs numpy."""
    pytest.importorskip(framework)
    framework = {"llama_index": "llama_index.core"}.get(framework, framework)
    theirs = loaded(f"import {framework}")
    assert not loaded(f"import {integration}") & (set(HEAVY) - theirs)
