"""A cascade of two scripted models that disagree on a known share of what the small one keeps."""

import pytest
from confcascade import Audit, Cascade, Stage, TokenProbability
from confcascade.testing import Reply, ScriptedModel


def small(request):
    """Sure but for every third number."""
    return Reply("yes", 0.5 if int(request.messages[-1].content) % 3 == 0 else 0.95)


def large(request):
    """Another answer to every tenth number; 10, 20, 40, 50, ... are kept."""
    return Reply("no" if int(request.messages[-1].content) % 10 == 0 else " Yes.")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "audit.sqlite"


@pytest.fixture
def audited(state):
    """Makes cascades with an audit of this test's file."""

    def make(*, largest=large, prices=None, on_exhausted="raise", **parameters):
        stages = [
            Stage(ScriptedModel("small", small), [TokenProbability()], {"p_t": 0.9}),
            Stage(ScriptedModel("large", largest), prices=prices),
        ]
        audit = Audit(**{"state": state, "rate": 1.0, "queue": 10_000, **parameters})
        return Cascade(stages, audit=audit, on_exhausted=on_exhausted)

    return make
