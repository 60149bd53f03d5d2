"""A check of a stage that P(IK) gates by a server's hidden states, over stand-ins for SGLang and vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Cascade, KnowledgeProbe, OpenAICompatibleModel, Stage, TokenProbability, diagnose
from confcascade.cost import forward_flops
from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel
from confcascade.types import Usage
from pytest_httpserver import HTTPServer
from werkzeug import Response as Sent

from ...served_engine import ServedEngine

QUESTION = "Which is the capital of Vodis?"
ENGINES = pytest.mark.parametrize("kind", ["sglang", "vllm"])


class Gated:
    """A cascade whose first stage is the small bundled model behind an engine, gated by a probe of its own."""

    def __init__(self, httpserver: HTTPServer, kind: str, folder: Path, *, threshold: float = 0.0) -> None:
        self.served = ServedEngine(httpserver, kind, folder, (3, 2))
        own: dict[str, Any] = {"hidden_states": kind, "architecture": bundled_model("small").architecture}
        if kind == "vllm":
            own |= {"states_layers": (3, 2), "states_folder": folder}
        self.model = OpenAICompatibleModel("small", base_url=self.served.url, max_retries=0, **own)
        states = np.random.default_rng(0).normal(size=(60, 28)).astype(np.float32)
        layer = 4 if kind == "sglang" else 2
        right = (states[:, 0] > 0).tolist()
        self.probe = KnowledgeProbe.fit(self.model, states, right, hidden_layers=(), layer=layer)
        self.threshold = threshold

    def cascade(self, *, with_answer: bool = False) -> Cascade:
        probe = self.probe.with_answer() if with_answer else self.probe
        signals, thresholds = [probe, TokenProbability()], {"p_ik": self.threshold, "p_t": 0.0}
        return Cascade([Stage(self.model, signals, thresholds), Stage(ScriptedModel("large"))])


@ENGINES
@pytest.mark.parametrize("with_answer", [False, True])
def test_the_gate_is_scored_as_live(httpserver: HTTPServer, tmp_path: Path, kind: str, with_answer: bool):
    """From a call for one token, or with the answer where that can be; and both are paid for."""
    if with_answer and kind == "sglang":
        pytest.skip("its state is then another position's")
    gated = Gated(httpserver, kind, tmp_path)
    cascade = gated.cascade(with_answer=with_answer)
    found = diagnose(cascade, question=QUESTION).stages[0]
    counts = list(gated.served.decoded)
    live = cascade.run(QUESTION).record.attempts[0]

    assert found.works
    assert found.scores["p_ik"].value == live.scores["p_ik"].value is not None
    assert found.abilities["hidden states"].how.endswith("28 numbers each, by a call for one token")
    assert found.usage.output_tokens == sum(counts)
    costs = [forward_flops(gated.model.architecture, usage) for usage in (Usage(500, 100), Usage(500, 1))]
    assert found.typical.flops == sum(costs[: 1 if with_answer else 2])  # the gate reads the prompt by itself
    assert counts[0] == 1
    gate = "answers only with p_ik >= 0, keeps an answer with p_t >= 0"
    assert found.then.startswith("keeps an answer with p_ik >= 0 and p_t >= 0" if with_answer else gate)
    assert live.decision == "accept"
    gated.served.settle()


@ENGINES
def test_states_that_do_not_come_never_pass(httpserver: HTTPServer, tmp_path: Path, kind: str):
    """As the live cascade finds: a server that was started without its option."""
    gated = Gated(httpserver, kind, tmp_path)

    def drop(sent: dict[str, Any]) -> None:
        sent.pop("kv_transfer_params", None)
        sent["choices"][0].pop("hidden_states", None)

    gated.served.change = drop
    cascade = gated.cascade()
    found = diagnose(cascade, question=QUESTION).stages[0]
    live = cascade.run(QUESTION).record.attempts[0]

    assert [each.kind for each in found.findings if each.level == "fails"] == ["never_scored"]
    assert "needs hidden states" in found.findings[0].text
    assert {"sglang": "--enable-return-hidden-states", "vllm": "extract_hidden_states"}[kind] in found.findings[0].text
    assert found.then == "every query escalates to 'large'"
    told = f"no: the server gave none, though it is set to (`hidden_states: {kind}`)"
    assert found.abilities["hidden states"].how == told
    assert (live.decision, live.scores["p_ik"].value) == ("escalate", None)
    gated.served.settle()


def test_a_refusal_says_how_to_start_the_server(httpserver: HTTPServer, tmp_path: Path):
    """SGLang's, without its option: the answer itself still comes."""
    gated = Gated(httpserver, "sglang", tmp_path)
    text = json.dumps({"object": "error", "message": "not configured to return the hidden states", "code": 400})
    gated.served.refuse = lambda body: Sent(text, 400) if "return_hidden_states" in body else None
    cascade = gated.cascade()
    found = diagnose(cascade, question=QUESTION).stages[0]

    assert "--enable-return-hidden-states" in found.abilities["hidden states"].how
    assert [each.kind for each in found.findings if each.level == "fails"] == ["error"]
    assert found.then == "its queries escalate to 'large'"
    assert cascade.run(QUESTION).record.attempts[0].decision == "fail"


@ENGINES
def test_a_query_that_is_turned_down_has_one_token_written(httpserver: HTTPServer, tmp_path: Path, kind: str):
    """Counted at the server: what is said of the gate is what it saves."""
    gated = Gated(httpserver, kind, tmp_path, threshold=1.0)
    cascade = gated.cascade()
    found = diagnose(cascade, question=QUESTION).stages[0]
    assert found.scores["p_ik"].passed is False
    assert found.then.startswith("answers only with p_ik >= 1, ")
    gated.served.decoded.clear()

    assert cascade.run(QUESTION).record.answered_by == "large"
    assert gated.served.decoded == [1]
    gated.served.settle()
