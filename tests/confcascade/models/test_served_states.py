"""P(IK) of served models, by servers that answer in the form of SGLang's and vLLM's sources; no real one was asked."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pickle
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import (
    Cascade,
    ConfigurationError,
    KnowledgeProbe,
    Message,
    ModelError,
    OpenAICompatibleModel,
    Prices,
    Request,
    Stage,
    StepwiseCascade,
    TokenProbability,
    Verbalized,
)
from confcascade.asks import Generate, Prefill
from confcascade.bench.collecting import collect
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording import RecordingWriter, read_rows
from confcascade.bench.recording.reading import read_columns
from confcascade.bench.replay import PolicyStage, replay
from confcascade.cascade_file import CascadeFile
from confcascade.cost import forward_flops
from confcascade.demo.world import World
from confcascade.graders import NormalizedMatch
from confcascade.graders.example import Example
from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel, check_model
from confcascade.types import Usage
from pytest_httpserver import HTTPServer
from safetensors.torch import save_file
from werkzeug import Response as Sent

from ...served_engine import ServedEngine, normed

LAYERS = (3, 2)  # in the order that vLLM was started with
LAYER = {"sglang": 4, "vllm": 2}
ENGINES = pytest.mark.parametrize("kind", ["sglang", "vllm"])
FITTED: dict[Any, KnowledgeProbe] = {}


@cache
def prompts() -> list[str]:
    return [each.prompt for each in World().questions("test", ("facts", "sums"), per_task=4)]


@pytest.fixture
def engine(httpserver: HTTPServer, tmp_path: Path) -> Any:
    """Starts the server of a kind; gives it and its model."""

    def start(kind: str, **settings: Any) -> tuple[ServedEngine, OpenAICompatibleModel]:
        served = ServedEngine(httpserver, kind, tmp_path, LAYERS)
        return served, model_of(served, **settings)

    return start


def model_of(served: ServedEngine, **settings: Any) -> OpenAICompatibleModel:
    own: dict[str, Any] = {"hidden_states": served.engine, "architecture": bundled_model("small").architecture}
    if served.engine == "vllm":
        own |= {"states_layers": LAYERS, "states_folder": served.folder}
    given = {"base_url": served.url, "api_key": "none", "max_retries": 0, **own, **settings}
    return OpenAICompatibleModel("small", **given)


def request(prompt: str) -> Request:
    return Request((Message("user", prompt),))


@cache
def local_states(layer: int, count: int = 60) -> np.ndarray:
    local = bundled_model("small")
    texts = [each.prompt for each in World().questions("fit", ("facts", "sums"), per_task=count // 2)]
    return np.asarray(local.hidden_states([request(text) for text in texts], layer))


def fitted(model: Any, kind: str) -> KnowledgeProbe:
    """A probe of some property of the prompts, the same weights whichever model it is for."""
    key = kind, model.capability.engine, model.fingerprint
    if key not in FITTED:
        FITTED[key] = newly_fitted(model, kind)
    return FITTED[key]


def newly_fitted(model: Any, kind: str) -> KnowledgeProbe:
    states = local_states(LAYER[kind])
    states = normed(states) if kind == "sglang" else states
    right = states[:, 0] > np.median(states[:, 0])
    quick: dict[str, Any] = {"hidden_layers": (), "layer": LAYER[kind]}
    return KnowledgeProbe.fit(model, states, right.tolist(), **quick)


def oracle(kind: str, probe: KnowledgeProbe) -> dict[str, float]:
    """What the probe says of the local model's states, in this process."""
    local, found = bundled_model("small"), {}
    for prompt in prompts():
        state = local.hidden_states([request(prompt)], LAYER[kind])
        found[prompt] = float(probe.predict(normed(state) if kind == "sglang" else state)[0])
    return found


def cascade_of(model: Any, probe: KnowledgeProbe, threshold: float) -> Cascade:
    large = ScriptedModel("large", dict.fromkeys(prompts(), "from the large model"))
    return Cascade([Stage(model, [probe], {"p_ik": threshold}), Stage(large)])


# ---------------------------------------------------------------------- as local


@ENGINES
@pytest.mark.parametrize("way", ["run", "arun", "batch", "abatch", "stream"])
def test_a_served_gate_decides_as_a_local_one(engine: Any, kind: str, way: str):
    """Through the server, the same weights give the same scores to the last digit, and so the same decisions; a
    rejected query has one token decoded, and nothing else is asked of it."""
    served, model = engine(kind)
    probe = fitted(model, kind)
    expected = oracle(kind, probe)
    threshold = float(np.median(list(expected.values())))
    cascade, asked = cascade_of(model, probe, threshold), {"max_tokens": 8, "temperature": 0}
    if way == "run":
        outcomes = [cascade.run(prompt, **asked) for prompt in prompts()]
    elif way == "stream":
        outcomes = [list(cascade.stream(prompt, **asked))[-1] for prompt in prompts()]
        assert not any(body.get("stream") for body in served.bodies[:1])
    elif way == "arun":
        outcomes = [asyncio.run(cascade.arun(prompt, **asked)) for prompt in prompts()]
    elif way == "batch":
        outcomes = cascade.run_batch(prompts(), **asked)
    else:
        outcomes = asyncio.run(cascade.arun_batch(prompts(), **asked))

    kept = 0
    for prompt, outcome in zip(prompts(), outcomes, strict=True):
        attempt = outcome.record.attempts[0]
        assert attempt.scores["p_ik"].value == expected[prompt]
        passed = expected[prompt] >= threshold
        assert (outcome.text == "from the large model") != passed
        assert attempt.decision == ("accept" if passed else "escalate")
        calls = [n for n, body in zip(served.decoded, served.bodies, strict=True) if said(body) == prompt]
        assert calls[0] == 1  # the gate
        assert len(calls) == (2 if passed else 1)
        assert attempt.usage.output_tokens == sum(calls)
        kept += passed
    assert 0 < kept < len(prompts())


def said(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_the_local_model_itself_decides_so(engine: Any):
    """The same probe weights on the local model: scores and decisions of a cascade of each are equal."""
    served, model = engine("vllm")
    local = bundled_model("small")
    theirs, ours = fitted(model, "vllm"), fitted(local, "vllm")
    assert theirs.identity() == ours.identity()
    assert (theirs.card.engine, ours.card.engine) == ("vllm", "")
    threshold = float(np.median(list(oracle("vllm", ours).values())))

    for prompt in prompts():
        there, here = (
            cascade_of(which, probe, threshold).run(prompt, max_tokens=8, temperature=0)
            for which, probe in ((model, theirs), (local, ours))
        )
        assert there.text == here.text
        one, other = there.record.attempts[0], here.record.attempts[0]
        assert (one.decision, one.scores, one.reason) == (other.decision, other.scores, other.reason)
    served.settle()


@ENGINES
def test_both_readings_of_the_prompt_are_paid_for(engine: Any, kind: str):
    """Usage as the server reports it, cached tokens among it; operations and dollars of both calls."""
    served, model = engine(kind)
    served.change = lambda sent: sent["usage"]["prompt_tokens_details"].update(cached_tokens=len(served.bodies) * 2)
    probe, prompt = fitted(model, kind), prompts()[0]
    stage = Stage(model, [probe], {"p_ik": 0.0}, prices=Prices(1.0, 10.0))

    (attempt,) = Cascade([stage, Stage(ScriptedModel("large"))]).run(prompt, max_tokens=4).record.attempts

    read, answer = (Usage(attempt.usage.input_tokens // 2, written) for written in served.decoded)
    assert attempt.usage == replace(read + answer, input_details={"cache_read": 2 + 4})
    assert attempt.cost.usd == pytest.approx((read.input_tokens * 2 + (1 + answer.output_tokens) * 10) / 1e6)
    assert attempt.cost.flops == sum(forward_flops(model.architecture, usage) for usage in (read, answer))


@ENGINES
def test_the_prompt_alone_is_asked_for(engine: Any, kind: str):
    """One token, no log-probabilities, no stream, and what else the caller wants of the answer."""
    served, model = engine(kind, options={"chat_template_kwargs": {"enable_thinking": False}})
    probe = fitted(model, kind)
    stage = Stage(model, [probe, TokenProbability(labels=["A", "B"])], {"p_ik": 0.0, "p_t": 0.0})

    record = Cascade([stage, Stage(ScriptedModel("large"))]).run(prompts()[0], max_tokens=4, stop=("\n",)).record

    gate, answer = served.bodies
    assert (gate["max_tokens"], answer["max_tokens"]) == (1, 4)
    assert "stop" not in gate
    assert not {"logprobs", "top_logprobs", "stream"} & set(gate)
    assert gate["messages"] == answer["messages"]
    assert gate["chat_template_kwargs"] == answer["chat_template_kwargs"]
    assert gate.get("return_hidden_states") == ("last" if kind == "sglang" else None)
    assert "return_hidden_states" not in answer
    assert record.attempts[0].scores["p_ik"].value is not None


# ---------------------------------------------------------------------- refused


def test_a_probe_knows_what_it_was_trained_on(engine: Any):
    """Another engine, another block, another norm, another model: each is refused, with the reason."""
    served, vllm = engine("vllm")
    served.engine = "sglang"
    sglang, local = model_of(served), bundled_model("small")
    by_vllm, by_sglang, by_local = fitted(vllm, "vllm"), fitted(sglang, "sglang"), fitted(local, "vllm")
    of_the_last = fitted(local, "sglang")  # before the norm, as far as its card says
    refusals = [
        (by_local, vllm, r'of a model in the same process; model .small. gives them from a server \("vllm"\)'),
        (of_the_last, sglang, r'gives them from a server \("sglang"\)'),
        (by_vllm, sglang, r'from a server \("vllm"\); model .small. gives them from a server \("sglang"\)'),
        (by_vllm, local, "gives them of a model in the same process"),
        (by_vllm, model_of_layers(served, (3, 1)), "trained on block 2; model 'small' gives block 3, 1 of 4 only"),
        (normalised(by_vllm), vllm, "behind the final norm; model 'small' gives them before any final norm"),
        (not_normalised(by_sglang), sglang, "before any final norm; model 'small' gives them behind the final norm"),
        (by_vllm, model_named(served, "other"), r"trained for model 'small' .*; the stage's model is 'other'"),
    ]
    for probe, model, message in refusals:
        with pytest.raises(ConfigurationError, match=message):
            Cascade([Stage(model, [probe], {"p_ik": 0.5}), Stage(ScriptedModel("large"))])
    for probe, model in ((by_vllm, vllm), (by_sglang, sglang)):
        probe.check(model)
    assert served.bodies == []


def normalised(probe: KnowledgeProbe) -> KnowledgeProbe:
    return KnowledgeProbe(replace(probe.card, normalised=True), probe._weights)


def not_normalised(probe: KnowledgeProbe) -> KnowledgeProbe:
    return KnowledgeProbe(replace(probe.card, normalised=False), probe._weights)


def model_of_layers(served: ServedEngine, layers: tuple[int, ...]) -> OpenAICompatibleModel:
    return model_of(served, hidden_states="vllm", states_layers=layers, states_folder=served.folder)


def model_named(served: ServedEngine, name: str) -> OpenAICompatibleModel:
    return OpenAICompatibleModel(
        name,
        base_url=served.url,
        hidden_states="vllm",
        states_layers=LAYERS,
        states_folder=served.folder,
        architecture=bundled_model("small").architecture,
    )


def test_the_card_goes_with_the_probe(engine: Any, tmp_path: Path):
    """Saved and read, it still knows; a card from before there were engines is one of a local model."""
    _, model = engine("sglang")
    probe = fitted(model, "sglang")
    probe.save(tmp_path / "probe")

    assert KnowledgeProbe.load(tmp_path / "probe", with_answer=True).phase == "post"
    card = KnowledgeProbe.load(tmp_path / "probe").card
    assert (card, card.engine, card.normalised, card.layer) == (probe.card, "sglang", True, 4)

    fitted(bundled_model("small"), "vllm").save(tmp_path / "old")
    told = json.loads((tmp_path / "old" / "probe.json").read_text())
    for name in ("engine", "normalised"):
        told.pop(name)
    (tmp_path / "old" / "probe.json").write_text(json.dumps(told))
    KnowledgeProbe.load(tmp_path / "old").check(bundled_model("small"))


@pytest.mark.parametrize("absent", ["key", "null", "empty", "zeros"])
def test_a_missing_state_is_no_score(engine: Any, absent: str):
    """No value takes its place: the query escalates, and the record says why."""
    served, model = engine("sglang")

    def drop(sent: dict[str, Any]) -> None:
        (choice,) = sent["choices"]
        given = {"null": None, "empty": [], "zeros": [0.0] * 28}
        choice.pop("hidden_states", None)
        choice.update({} if absent == "key" else {"hidden_states": given[absent]})

    served.change = drop
    outcome = cascade_of(model, fitted(model, "sglang"), 0.0).run(prompts()[0])

    attempt = outcome.record.attempts[0]
    assert (attempt.decision, attempt.scores["p_ik"].value) == ("escalate", None)
    assert attempt.reason == "p_ik: the hidden state of layer 4 was not given"
    assert served.decoded == [1]
    assert attempt.usage.output_tokens == 1


def test_a_server_that_names_no_file_gives_no_state(engine: Any):
    """As one that was started without the connector does."""
    served, model = engine("vllm")
    served.change = lambda sent: sent.pop("kv_transfer_params")

    record = cascade_of(model, fitted(model, "vllm"), 0.0).run(prompts()[0]).record

    assert record.attempts[0].reason == "p_ik: the hidden state of layer 2 was not given"


SHAPES = {
    "nested": [[0.5] * 28],
    "longer": [0.5] * (3 * 28),
    "texts": ["a"] * 28,
    "ragged": [[0.5], [0.5, 0.5]],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_another_shape_is_an_error_with_a_way_out(engine: Any, shape: str):
    """It fails the attempt, which is charged what the call had used, and the query escalates."""
    served, model = engine("sglang")

    def change(sent: dict[str, Any]) -> None:
        sent["choices"][0]["hidden_states"] = SHAPES[shape]

    served.change = change
    cascade = cascade_of(model, fitted(model, "sglang"), 0.0)

    attempt = cascade.run(prompts()[0]).record.attempts[0]

    assert attempt.decision == "fail"
    assert "architecture.hidden_size" in attempt.reason
    assert "v0.5.17" in attempt.reason
    assert (attempt.usage.output_tokens, attempt.usage.input_tokens > 0) == (1, True)


def test_a_server_without_the_flag_says_which(engine: Any):
    """SGLang refuses with 400; the record says how to start it, and nothing of the server's text."""
    served, model = engine("sglang")
    text = "The server is not configured to return the hidden states. Please set `--enable-return-hidden-states`."
    served.refuse = lambda body: Sent(
        json.dumps({"object": "error", "message": text, "type": "BadRequest", "code": 400}), 400
    )

    attempt = cascade_of(model, fitted(model, "sglang"), 0.0).run(prompts()[0]).record.attempts[0]

    assert attempt.decision == "fail"
    assert "--enable-return-hidden-states" in attempt.reason
    assert "not configured" not in attempt.reason
    served.refuse = lambda body: Sent(json.dumps({"message": "no such thing", "code": 400}), 400)
    other = cascade_of(model, fitted(model, "sglang"), 0.0).run(prompts()[0]).record.attempts[0]
    assert other.reason == "BadRequestError (400)"


SETTINGS = [
    ({"hidden_states": "tgi"}, 'must be "sglang", "vllm" or None'),
    ({"hidden_states": "sglang", "architecture": None}, "needs `architecture="),
    ({"hidden_states": "sglang", "states_layers": (2,)}, "SGLang gives the last block's state only"),
    ({"hidden_states": "vllm", "states_layers": ()}, "eagle_aux_hidden_state_layer_ids"),
    ({"hidden_states": "vllm", "states_layers": (2, 2)}, "eagle_aux_hidden_state_layer_ids"),
    ({"hidden_states": "vllm", "states_layers": "23"}, "eagle_aux_hidden_state_layer_ids"),
    ({"hidden_states": "vllm", "states_layers": (0, 2)}, "between 1 and the model's 4 blocks"),
    ({"hidden_states": "vllm", "states_layers": (5,)}, "between 1 and the model's 4 blocks"),
    ({"hidden_states": "vllm", "states_folder": None}, "shared_storage_path"),
    ({"hidden_states": None, "states_layers": (2,)}, 'goes with `hidden_states="vllm"`'),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=lambda each: str(each)[:40])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    """When the model is made, naming the setting."""
    plain: dict[str, Any] = {"architecture": bundled_model("small").architecture, "base_url": "http://127.0.0.1:1/v1"}
    if settings["hidden_states"] == "vllm":
        plain |= {"states_layers": LAYERS, "states_folder": tmp_path}

    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        OpenAICompatibleModel("m", **{**plain, **settings})


def test_what_changes_the_prompt_is_refused_beside_a_probe(engine: Any):
    """As with a local model: it was trained on states at the prompt's own end."""
    _, model = engine("sglang")
    stage = Stage(model, [fitted(model, "sglang"), Verbalized()], {"p_ik": 0.5, "stated": 0.5})

    with pytest.raises(ConfigurationError, match="changes the prompt"):
        Cascade([stage, Stage(ScriptedModel("large"))])


# ---------------------------------------------------------------------- vLLM's files


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_files_of_every_precision_are_read(engine: Any, dtype: str):
    """To the last digit of what was written; NumPy's side of safetensors has no bfloat16."""
    served, model = engine("vllm")
    served.dtype = getattr(torch, dtype)
    (local,) = bundled_model("small").prefill([Prefill(bundled_model("small"), request(prompts()[0]), layers=(2, 3))])

    (found,) = model.prefill([Prefill(model, request(prompts()[0]), layers=(2, 3))])

    for layer in (2, 3):
        expected = torch.from_numpy(local.hidden_states[layer]).to(served.dtype).float().numpy()
        assert found.hidden_states[layer].dtype == np.float32
        assert np.array_equal(found.hidden_states[layer], expected)
    assert found.apart
    assert found.usage.output_tokens == 1


@pytest.mark.parametrize("way", ["prefill", "aprefill"])
def test_a_file_that_is_being_written_is_waited_for(engine: Any, way: str):
    """Its writer holds the lock; the event loop is free all the while."""
    served, model = engine("vllm")
    served.writing_s = 0.6
    ask = Prefill(model, request(prompts()[0]), layers=(2,))

    async def waiting() -> Any:
        ticks = asyncio.create_task(ticking())
        (found,) = await model.aprefill([ask])
        ticks.cancel()
        return found

    longest = 0.0

    async def ticking() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)

    (found,) = model.prefill([ask]) if way == "prefill" else (asyncio.run(waiting()),)

    assert found.hidden_states[2].shape == (28,)
    assert longest < 0.5


def test_files_are_removed_once_they_are_read(engine: Any):
    """The gate's at once, an answer's with the next, if it was not written yet: nothing piles up."""
    served, model = engine("vllm")
    served.writing_s = 0.05
    cascade = cascade_of(model, fitted(model, "vllm"), 0.0)

    for prompt in prompts()[:3]:
        cascade.run(prompt, max_tokens=2)
        served.settle()

    left = sorted(path.name for path in served.folder.iterdir())
    assert left == ["chatcmpl-6.safetensors", "chatcmpl-6.safetensors.lock"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are waited for but a moment."""
    monkeypatch.setattr("confcascade.models.openai._PATIENCE_S", 0.2)


@pytest.mark.usefixtures("impatient")
def test_a_file_elsewhere_is_neither_read_nor_removed(engine: Any, tmp_path_factory: Any):
    """A server names a path; only the folder that the user names is looked into."""
    served, model = engine("vllm")
    other = tmp_path_factory.mktemp("other") / "mine.safetensors"
    save_file({"hidden_states": torch.ones(1, 2, 28), "token_ids": torch.arange(1)}, other)
    served.change = lambda sent: sent.update(kv_transfer_params={"hidden_states_path": str(other)})

    with pytest.raises(ModelError, match="`states_folder` must be its shared_storage_path as this machine sees it"):
        model.prefill([Prefill(model, request(prompts()[0]), layers=(2,))])

    assert other.exists()
    for name in ("../x", "x.txt", "", 3):
        served.change = lambda sent, name=name: sent.update(kv_transfer_params={"hidden_states_path": name})
        with pytest.raises(ModelError, match=r"names no \.safetensors file"):
            model.prefill([Prefill(model, request(prompts()[0]), layers=(2,))])
    served.settle()


def write(path: Path, **tensors: Any) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


FILES = {
    "blocks": ((10, 3, 28), r"shape \(10, 3, 28\) .*\(tokens, 2, 28\) was expected.*`states_layers`"),
    "dimensions": ((10, 2, 30), r"\(tokens, 2, 28\) was expected.*`architecture.hidden_size`"),
    "flat": ((10, 56), r"\(tokens, 2, 28\) was expected"),
    "tokens": ((2, 2, 28), "of 2 tokens of model 'small', and the prompt has .*--no-enable-chunked-prefill"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_of_another_shape_are_an_error(engine: Any, what: str):
    """With what was expected, and where that comes from; they are removed all the same."""
    served, model = engine("vllm")
    shape, message = FILES[what]

    def change(sent: dict[str, Any]) -> None:
        served.settle()
        count = sent["usage"]["prompt_tokens"] if what != "tokens" else shape[0]
        path = Path(sent["kv_transfer_params"]["hidden_states_path"])
        write(path, hidden_states=torch.ones(shape), token_ids=torch.arange(count))

    served.change = change
    with pytest.raises(ModelError, match=message):
        model.prefill([Prefill(model, request(prompts()[0]), layers=(2,))])
    assert list(served.folder.iterdir()) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("broken", ["cut", "no header", "no safetensors", "no tensor"])
def test_a_damaged_file_is_an_error(engine: Any, broken: str):
    """None is waited for longer than for an answer."""
    served, model = engine("vllm")

    def change(sent: dict[str, Any]) -> None:
        served.settle()
        path = Path(sent["kv_transfer_params"]["hidden_states_path"])
        whole = path.read_bytes()
        if broken == "no tensor":
            write(path, token_ids=torch.arange(3))
        else:
            path.write_bytes({"cut": whole[:-1], "no header": whole[:9], "no safetensors": b"x" * 100}[broken])

    served.change = change
    with pytest.raises(ModelError, match="cannot be read"):
        model.prefill([Prefill(model, request(prompts()[0]), layers=(2,))])


@pytest.mark.usefixtures("impatient")
def test_a_writer_that_never_ends_is_not_waited_for_ever(engine: Any):
    """A lock that stays is a time-out, and the file is left alone."""
    served, model = engine("vllm")
    held: list[int] = []

    def change(sent: dict[str, Any]) -> None:
        served.settle()
        path = sent["kv_transfer_params"]["hidden_states_path"]
        held.append(os.open(f"{path}.lock", os.O_RDONLY))
        fcntl.flock(held[0], fcntl.LOCK_EX)

    served.change = change
    with pytest.raises(ModelError, match=r"it was not written within 0\.2 s"):
        model.prefill([Prefill(model, request(prompts()[0]), layers=(2,))])
    os.close(held[0])
    assert len(list(served.folder.iterdir())) == 2


# ---------------------------------------------------------------------- with the answer


@pytest.mark.parametrize("way", ["run", "arun", "stream", "astream", "batch"])
def test_one_request_can_serve_both(engine: Any, way: str):
    """Opt-in, with vLLM: the same scores and decisions, judged after answers that are then paid for, or thrown away."""
    served, model = engine("vllm")
    probe = fitted(model, "vllm").with_answer()
    expected = oracle("vllm", probe)
    threshold = float(np.median(list(expected.values())))
    cascade, asked = cascade_of(model, probe, threshold), {"max_tokens": 128, "temperature": 0}

    async def astreamed(prompt: str) -> Any:
        return [item async for item in cascade.astream(prompt, **asked)][-1]

    ways = {
        "run": lambda: [cascade.run(prompt, **asked) for prompt in prompts()],
        "arun": lambda: [asyncio.run(cascade.arun(prompt, **asked)) for prompt in prompts()],
        "stream": lambda: [list(cascade.stream(prompt, **asked))[-1] for prompt in prompts()],
        "astream": lambda: [asyncio.run(astreamed(prompt)) for prompt in prompts()],
        "batch": lambda: cascade.run_batch(prompts(), **asked),
    }
    for prompt, outcome in zip(prompts(), ways[way](), strict=True):
        attempt = outcome.record.attempts[0]
        assert attempt.scores["p_ik"].value == expected[prompt]
        assert attempt.decision == ("accept" if expected[prompt] >= threshold else "escalate")
        (written,) = [n for n, body in zip(served.decoded, served.bodies, strict=True) if said(body) == prompt]
        assert attempt.usage.output_tokens == written
    assert not any(body.get("stream") for body in served.bodies)
    assert max(served.decoded) > 1
    served.settle()
    assert list(served.folder.iterdir()) == []


def test_with_the_answer_is_for_servers_that_give_the_prompts_state(engine: Any):
    """SGLang's is of the last token that was written; steps of an answer have none."""
    _, vllm = engine("vllm", continues="continue_final_message")
    served = ServedEngine.__new__(ServedEngine)
    served.engine, served.url = "sglang", "http://127.0.0.1:1/v1"
    sglang = model_of(served)
    large = Stage(ScriptedModel("large"))
    with pytest.raises(ConfigurationError, match="SGLang's is of the last token"):
        Cascade([Stage(sglang, [fitted(sglang, "sglang").with_answer()], {"p_ik": 0.5}), large])
    with pytest.raises(ConfigurationError, match="judges whole answers"):
        StepwiseCascade([Stage(vllm, [fitted(vllm, "vllm").with_answer()], {"p_ik": 0.5}), large])


# ---------------------------------------------------------------------- around it


def test_other_blocks_are_refused_by_the_model(engine: Any):
    """Whoever asks it directly reads which it gives."""
    served, model = engine("vllm")

    with pytest.raises(ModelError, match=r"gives the hidden states of block 3, 2, its `states_layers`\. Got 4"):
        model.prefill([Prefill(model, request("Hi"), layers=(4,))])

    assert served.bodies == []


def test_it_is_behind_an_api_all_the_same(engine: Any):
    """Asked for many answers at once, and not taken for a model that reads labels or begins answers."""
    for kind in ("sglang", "vllm"):
        _, model = engine(kind)
        told = model.capability
        assert (told.layers, told.hidden_size, told.engine) == (4, 28, kind)
        assert (told.prefill, told.local, told.stops) == (False, False, False)
        assert (told.served_layers, told.normalised) == (((4,), True) if kind == "sglang" else (LAYERS, False))
        assert pickle.loads(pickle.dumps(model)).capability == told


def test_a_probe_is_not_fitted_for_a_block_that_is_not_given(engine: Any):
    """The default depth is not the last block, which is all that SGLang gives."""
    _, model = engine("sglang")
    states = local_states(4)
    right = (states[:, 0] > np.median(states[:, 0])).tolist()

    with pytest.raises(ConfigurationError, match=r"gives the hidden states of block 4, of 4\. Got `layer` 3"):
        KnowledgeProbe.fit(model, normed(states), right, hidden_layers=())


def test_a_gate_that_is_late_or_fails_in_passing(engine: Any):
    """Late, it is an estimate, and the query escalates; what passes is tried again by the client."""
    served, model = engine("sglang", timeout_s=0.3, max_retries=0)
    cascade = cascade_of(model, fitted(model, "sglang"), 0.0)
    served.refuse = lambda body: time.sleep(0.6)  # type: ignore[func-returns-value]

    attempt = cascade.run(prompts()[0]).record.attempts[0]

    assert attempt.decision == "fail"
    assert attempt.reason.startswith("APITimeoutError")
    assert attempt.usage.estimated
    assert attempt.usage.input_tokens > 0
    fails = [Sent("busy", 503, headers={"retry-after-ms": "1"})]
    served.refuse = lambda body: fails.pop() if fails else None
    patient = model_of(served, max_retries=1)
    again = cascade_of(patient, fitted(patient, "sglang"), 0.0).run(prompts()[0], max_tokens=4)
    assert again.record.attempts[0].decision == "accept"


def test_a_gate_that_is_left_is_charged(engine: Any):
    """A cancelled query has paid for the prompt twice, as far as it is known."""
    served, model = engine("sglang")
    cascade, begun = cascade_of(model, fitted(model, "sglang"), 0.0), threading.Event()
    records: list[Any] = []
    cascade = Cascade(cascade.stages, on_ended=lambda _, ended: records.append(ended.record))

    def slowly(body: dict[str, Any]) -> None:
        if body.get("max_tokens") != 1:
            begun.set()
            time.sleep(0.3)

    served.refuse = slowly

    async def cancelled() -> None:
        task = asyncio.create_task(cascade.arun(prompts()[0], max_tokens=4))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())

    (attempt,) = records[0].attempts
    assert attempt.decision == "left"
    assert attempt.usage.estimated
    gate = served.decoded[0]
    assert attempt.usage.output_tokens == gate
    assert attempt.usage.input_tokens > len(prompts()[0]) / 4 + 5


def test_a_cascade_file_says_how(engine: Any, tmp_path: Path):
    """The folder relative to the file; what cannot be is an error at its key."""
    served, _ = engine("vllm")
    file = tmp_path / "cascade.yaml"
    text = """
models:
  - openai: small
    base_url: URL
    hidden_states: vllm
    states_layers: [3, 2]
    states_folder: .
    architecture: {parameters: 80668, layers: 4, hidden_size: 28}
  - bundled:large
threshold: 0.9
""".replace("URL", served.url)
    file.write_text(text)
    model = CascadeFile.load(file).model("small")

    (read,) = model.prefill([Prefill(model, request(prompts()[0]), layers=(2,))])

    assert read.hidden_states[2].shape == (28,)
    for old, new, message in (
        ("states_layers: [3, 2]", "states_layers: [3, 9]", r"states_layers`: must lie between 1 and the model's 4"),
        ("hidden_states: vllm", "hidden_states: sglang", "states_layers`: goes with vLLM"),
        ("hidden_states: vllm", "hidden_states: tgi", "hidden_states"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(ConfigurationError, match=message):
            CascadeFile.load(file)


def test_answers_need_no_states(engine: Any):
    """Log-probabilities and the rest of a model behind a server are as without."""
    _, model = engine("sglang")
    (answer,) = model.generate([Generate(model, replace(request(prompts()[0]), max_tokens=3))])

    assert answer.tokens
    assert answer.hidden_states == {}


@ENGINES
def test_a_recording_of_it_is_replayed_at_the_live_cost(engine: Any, kind: str):
    """Collected whole, every query read and answered; a policy replayed on that decides and costs as the live one."""
    served, model = engine(kind)
    probe, large = fitted(model, kind), ScriptedModel("large", dict.fromkeys(prompts(), "from the large model"))
    stages = [Stage(model, [probe]), Stage(large)]
    path, asked = served.folder / "recording.jsonl", {"max_tokens": 64, "temperature": 0}
    with RecordingWriter(path) as writer:
        examples = [Example(prompt, id=prompt, references=("x",)) for prompt in prompts()]
        collect(examples, stages, writer, prompt=PROMPTS["plain"], grader=NormalizedMatch(), **asked)
    rows = {row.question: row for row in read_rows(path) if row.model == "small"}
    assert all((row.gate_input_tokens > 0, row.gate_output_tokens) == (True, 1) for row in rows.values())
    values = sorted(row.scores["p_ik"].value for row in rows.values())
    threshold = values[len(values) // 2]
    columns = read_columns(path)
    policy = [PolicyStage("small", {"p_ik": threshold}), PolicyStage("large")]
    sizes = {each.name: each.architecture for each in (model, large) if each.architecture is not None}

    played = replay(columns, policy, architectures=sizes)

    cascade = cascade_of(model, probe, threshold)
    for i, prompt in enumerate(columns.questions):
        first, *others = cascade.run(prompt, **asked).record.attempts
        assert (first.usage.input_tokens, first.usage.output_tokens) == (
            played.input_tokens[i, 0],
            played.output_tokens[i, 0],
        )
        assert played.stage[i] == len(others)
        if not others:
            assert played.cost.flops[i] == first.cost.flops


@ENGINES
def test_it_keeps_the_contract_of_a_language_model(engine: Any, kind: str):
    """Answers, streams and, beside those, hidden states."""
    _, model = engine(kind)
    check_model(model, replace(request(prompts()[0]), max_tokens=16, temperature=0))
