from __future__ import annotations

import sys

import confcascade
import pytest
from confcascade import errors
from confcascade.errors import MissingExtraError, require


def test_the_tree_is_as_drawn():
    """The drawing at the top of the module shows every error below its parent."""
    parents: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), None)
        if name is None:
            continue
        depth = line.index(name) // 4
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1] if depth else None

    assert set(drawn) == set(errors.__all__)
    for name, parent in drawn.items():
        assert parent is None or getattr(errors, parent) in getattr(errors, name).__bases__


def test_every_error_is_public():
    """Whatever is raised on purpose can be caught by its name in `confcascade`, or by the root of them all."""
    for name in errors.__all__:
        assert issubclass(getattr(confcascade, name), confcascade.ConfcascadeError)


def test_errors_are_the_built_in_kind_too():
    """Code that expects a ValueError or an ImportError catches ours."""
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_require_gives_the_module():
    """A package that is there is imported."""
    assert require("json", "local").dumps([1]) == "[1]"


def test_require_names_the_command(monkeypatch):
    """A package that is missing is an error with the very command that installs it, and with its cause."""
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtraError) as raised:
        require("torch", "local")

    assert 'pip install "confcascade[local]"' in str(raised.value)
    assert "`torch`" in str(raised.value)
    assert isinstance(raised.value.__cause__, ImportError)
