"""Scripts that lie beside the packages, loaded as modules."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives the script of a name as a module; its neighbours can be imported while the test runs."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module
