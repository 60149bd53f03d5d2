"""The library speaks of arguments, the command line of options."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import confcascade as package
import pytest
import typer
from confcascade.bench.recording import RecordingWriter, Row
from confcascade.cli import app
from confcascade.cli.hints import OPTIONS, with_options
from confcascade.types import Usage

SOURCE = Path(package.__file__).parent


def literals(path: Path) -> list[str]:
    """The texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, holders) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in texts if id(node) not in documents]


def test_no_message_of_the_library_names_an_option_of_a_command():
    """A caller in Python has none; `cli` and `demo`, which are commands, may. A server's own option is another thing.

    What `with_options` adds are options of some command.
    """
    commands: Any = typer.main.get_command(app)
    ours = {option for each in commands.commands.values() for one in each.params for option in one.opts}
    assert {*OPTIONS.values()} <= ours
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] not in ("cli", "demo"):
            for text in literals(path):
                assert not ours & set(re.findall(r"(?<![\w(-])--[a-z][a-z-]*", text)), f"{path.name}: {text!r}"


def test_the_option_is_named_once():
    """Whatever a message says of other things in backticks."""
    assert with_options("Give `prices=...` or `prices={}`; see `x=1`.").endswith("(Here: `prices` is --prices.)")
    assert with_options("Nothing to add to `skip`.") == "Nothing to add to `skip`."


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_a_command_says_which_option_gives_what_is_missing(tmp_path, command):
    with RecordingWriter(tmp_path / "rec.jsonl") as writer:
        for i in range(20):
            for model in ("small", "large"):
                score = {"p_t": {"value": i / 20}}
                row = Row(question=f"q{i}", model=model, prompt=f"{i}", answer="x", grade=float(i % 2), scores=score)
                writer.append(row.model_copy(update={"usage": Usage(1, 1)}))
    rules = {"fit": ["--max-drop", "0.1"], "evaluate": ["--threshold", "p_t=0.5", "--no-plots", "--unit", "usd"]}
    asked = [sys.executable, "-m", "confcascade", command, "rec.jsonl", *rules[command]]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "`prices` is --prices" in done.stderr
