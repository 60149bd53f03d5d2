"""What holds for the package as a whole."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import confcascade
import pytest
from confcascade.extending import LanguageModel

ROOT = Path(__file__).parents[2]
DOORS = ("confcascade", "confcascade.extending")  # where names come in that are made elsewhere
APART = ("confcascade.demo", "confcascade.cli", "confcascade.__main__")  # with tests of their own
HEAVY = """
    langchain langchain_core llama_index matplotlib numpy openai pydantic rich safetensors scipy sklearn
    torch transformers typer yaml
""".split()


def names() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(confcascade.__path__, "confcascade.")]
    return ["confcascade", *(name for name in found if not name.startswith(APART))]


def modules() -> list[ModuleType]:
    return [importlib.import_module(name) for name in names()]


def test_importing_is_light():
    """No module of the core brings in a framework, a learning library, or even numpy or pydantic, until it is used."""
    # made of arrays, and of pydantic's models
    apart = "audit.of_policy bench cascade_file graders guarantee policy schema".split()
    apart = tuple(f"confcascade.{name}" for name in apart)
    light = [name for name in names() if not name.startswith(apart)]
    imports = "; ".join(f"import {name}" for name in light)
    code = f"{imports}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)

    assert "confcascade.models.local" in loaded
    assert not set(loaded) & set(HEAVY)


def test_what_is_public_is_listed():
    """`__all__` is sorted, and names everything that the package offers, nothing else."""
    offered = {
        name
        for name, value in vars(confcascade).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert confcascade.__all__ == sorted(confcascade.__all__)
    assert set(confcascade.__all__) == offered | {"__version__"} | set(confcascade._HOMES)


@pytest.mark.parametrize("name", sorted(set(confcascade.__all__) - {"__version__"}))
def test_what_is_public_comes_from_here(name: str):
    """Every public name is made in a module of the package, and is public there, too."""
    value = getattr(confcascade, name)
    homes = [module for module in modules() if module.__name__ not in DOORS and name in module.__all__]
    made = getattr(value, "__module__", "typing")
    if made != "typing":  # an alias of types has no home of its own
        homes = [module for module in homes if module.__name__ == made]

    assert len(homes) == 1
    assert getattr(homes[0], name) is value


def test_layers_name_every_room():
    """A room that no layer names could import whatever it likes."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name for layer in layers for name in layer.replace("|", ":").replace(" ", "").split(":")}
    folders = [*Path(confcascade.__file__).parent.iterdir(), *(Path(confcascade.__file__).parent / "bench").iterdir()]
    rooms = {
        f"confcascade.{'bench.' if path.parent.name == 'bench' else ''}{path.stem}"
        for path in folders
        if not path.stem.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert named == rooms - {"confcascade.bench"}


@pytest.mark.parametrize("name", ["collect", "evaluate", "fit", "Policy", "Certificate"])
def test_the_bench_has_a_front_door(name: str):
    """Which brings nothing in until somebody goes through it."""
    told = "print('numpy' in sys.modules)"
    code = f"import sys, confcascade; {told}; confcascade.{name}; {told}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert name in dir(confcascade)


def test_what_is_not_there_is_missed():
    """As in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        confcascade.fitt  # noqa: B018


@pytest.mark.parametrize("name", names())
def test_modules_list_what_they_offer(name: str):
    """The `__all__` of every module names things that are there."""
    module = importlib.import_module(name)

    assert module.__all__ or name == "confcascade.bench", f"{name} offers nothing"  # a hall of rooms
    assert all(hasattr(module, each) for each in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def public_things() -> Iterator[tuple[str, Any]]:
    """Every module, and every public class and function, at home."""
    for module in modules():
        yield module.__name__, module
        for name in module.__all__:
            value = getattr(module, name)
            if getattr(value, "__module__", None) != module.__name__ or not callable(value):
                continue  # made elsewhere, or a type alias
            yield f"{module.__name__}.{name}", value


def test_every_public_thing_is_documented():
    """Modules, classes and functions say what they are; a dataclass's generated signature does not count."""
    for name, value in public_things():
        text = inspect.getdoc(value) or ""
        assert text, f"{name} has no docstring"
        assert not text.startswith(f"{name.rpartition('.')[2]}("), f"{name} has a generated docstring"
        assert text.splitlines()[0].endswith((".", ":", ",")) or len(text.splitlines()) > 1, f"{name}: {text!r}"


def test_every_public_method_is_documented():
    """So do the methods that a user calls. Those of a protocol are explained once, where it is defined."""
    protocol = {name for name in (*vars(LanguageModel), "fingerprint") if not name.startswith("_")}
    for name in confcascade.__all__:
        value = getattr(confcascade, name)
        if not inspect.isclass(value):
            continue
        for attribute, member in vars(value).items():
            if attribute.startswith("_") or (attribute in protocol and value is not LanguageModel):
                continue
            if inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property):
                assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute} has no docstring"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module: ModuleType):
    """What a docstring shows is what happens."""
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_there_are_examples():
    """The check above has something to check."""
    finder = doctest.DocTestFinder()

    assert sum(bool(test.examples) for module in modules() for test in finder.find(module)) >= 4


def test_the_version_is_the_packages():
    """`__version__` is what was installed."""
    from importlib.metadata import version

    assert confcascade.__version__ == version("confcascade")
