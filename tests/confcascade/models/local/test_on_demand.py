"""Local models that are loaded when first asked, within a bound: they answer as those that are loaded at once."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import (
    Cascade,
    ConfigurationError,
    KnowledgeProbe,
    MemoryBound,
    ModelError,
    OnDemandModel,
    Stage,
    TokenProbability,
    TransformersModel,
)
from confcascade.asks import Generate, Prefill
from confcascade.models import memory
from confcascade.models.bundled import SIZES, bundled_folder, bundled_model
from confcascade.types import Message, Request

pytestmark = pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="models are refused there (test_loading.py)"
)
TEXTS = [f"Where was {name} born?" for name in ("Bren", "Tasu", "Ilo", "Mira", "Oda", "Peki")]


def request(text, **parameters):
    return Request(Message.parse(text), **({"max_tokens": 12} | parameters))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(memory, "_TURN_S", 0.1)
    monkeypatch.setattr(memory, "_IDLE_S", 0.01)
    monkeypatch.setattr(memory, "_PREFILL_S", 0.3)


@pytest.fixture(scope="module")
def at_once():
    return {size: bundled_model(size) for size in SIZES}


@pytest.fixture
def on_demand():
    largest = bundled_model("large", MemoryBound()).weight_bytes
    bound = MemoryBound((largest + 1) / 2**30)  # the large one fits in, and no other with it
    return {size: bundled_model(size, bound) for size in SIZES}


def said(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer.text, answer.usage, [token.logprob for token in answer.tokens]


def answered(model, text, **parameters):
    return said(model.generate([Generate(model, request(text, **parameters))])[0])


# ---------------------------------------------------------------------- what is known before


@pytest.mark.parametrize("size", SIZES)
def test_a_cascade_is_told_the_same_before_anything_is_loaded(size, at_once, on_demand):
    lazy, eager = on_demand[size], at_once[size]

    assert lazy.capability == eager.capability
    assert lazy.architecture == eager.architecture
    assert lazy.generation_settings == eager.generation_settings
    assert lazy.render(request(TEXTS[0])) == eager.render(request(TEXTS[0]))
    assert lazy.encode(request(TEXTS[0])) == eager.encode(request(TEXTS[0]))
    assert lazy.weight_bytes == sum(each.nelement() * each.element_size() for each in eager.model.parameters())
    assert not lazy.is_loaded
    assert lazy.memory.loaded == ()


def random_model(folder, kind, **config):
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, vocab_size=1536, **config)
    )
    made.save_pretrained(folder)
    for path in bundled_folder("small").glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("qwen2", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                   "num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("mixtral", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)  # fmt: skip
def test_architectures_are_seen_without_weights(tmp_path, kind, config):
    """Of a mixture, which experts a token is sent to is known once there are weights."""
    folder = random_model(tmp_path, kind, **config)
    lazy, eager = OnDemandModel(folder), TransformersModel.from_pretrained(folder)
    before = lazy.architecture

    assert before == (None if kind == "mixtral" else eager.architecture)
    assert answered(lazy, TEXTS[0], max_tokens=4) == answered(eager, TEXTS[0], max_tokens=4)
    assert (lazy.capability, lazy.architecture) == (eager.capability, eager.architecture)
    assert lazy.fingerprint == OnDemandModel(folder).fingerprint == eager.fingerprint


def refused(place, **options):
    with pytest.raises(ConfigurationError) as raised:
        OnDemandModel(place, **options)
    return str(raised.value)


def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path):
    small, empty = bundled_folder("small"), tmp_path / "empty"
    shutil.copytree(small, empty, ignore=shutil.ignore_patterns("probe", "*.safetensors"))

    assert "'nowhere/at-all'" in refused("nowhere/at-all")
    assert "has no weights" in refused(empty)
    assert "wish" in refused(small, generation_options={"wish": 1})
    assert "does not read" in refused(small, template_options={"enable_thinking": False})
    assert "device" in refused(small, device="cuda:77")
    assert "dtype" in refused(small, dtype="int3")
    assert "more than the bound" in refused(small, memory=MemoryBound(1e-6))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(tmp_path)


# ---------------------------------------------------------------------- answers


def test_answers_are_those_of_models_loaded_at_once(at_once, on_demand):
    """Called, streamed, as tasks, in batches; each is loaded anew, as only one fits."""
    for size in (*SIZES, *SIZES):
        lazy, eager = on_demand[size], at_once[size]
        expected = [answered(eager, text) for text in TEXTS]
        asks = [Generate(lazy, request(text)) for text in TEXTS]

        assert answered(lazy, TEXTS[0]) == expected[0]
        assert lazy.memory.loaded[-1:] == (size,)
        assert said(list(lazy.stream(asks[0]))[-1]) == expected[0]
        assert [text for text, *_ in map(said, lazy.generate(asks))] == [text for text, *_ in expected]
        assert said(asyncio.run(lazy.agenerate(asks[:1]))[0]) == expected[0]
    assert not on_demand["small"].is_loaded


def test_records_are_those_of_models_loaded_at_once(at_once, on_demand):
    def records(models):
        probe = KnowledgeProbe.load(bundled_folder("small") / "probe")
        stages = [
            Stage(models["small"], [probe, TokenProbability()], {"p_ik": 0.3, "p_t": 0.8}),
            Stage(models["medium"], [TokenProbability()], {"p_t": 0.8}),
            Stage(models["large"]),
        ]
        outcomes = Cascade(stages).run_batch(TEXTS)
        for outcome in outcomes:
            for attempt in outcome.record.attempts:
                told = attempt.as_dict()
                scores = {name: round(each["value"], 4) for name, each in told["scores"].items() if each["value"]}
                yield attempt.model, attempt.decision, attempt.usage, attempt.cost.flops, scores

    assert list(records(on_demand)) == list(records(at_once))


def test_fingerprints_are_those_of_models_loaded_at_once(at_once, on_demand):
    """And are read from the files, so that no cascade that is made of models loads them."""
    for size in SIZES:
        assert on_demand[size].fingerprint == at_once[size].fingerprint
        asked = on_demand[size].with_options(name="asked", generation_options={"repetition_penalty": 1.5})
        same = at_once[size].with_options(name="asked", generation_options={"repetition_penalty": 1.5})
        assert asked.fingerprint == same.fingerprint != at_once[size].fingerprint
    assert on_demand["small"].memory.loaded == ()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fingerprints_know_the_precision(dtype):
    lazy, eager = (
        each(bundled_folder("small"), dtype=dtype) for each in (OnDemandModel, TransformersModel.from_pretrained)
    )
    assert lazy.fingerprint == eager.fingerprint
    assert not lazy.is_loaded


def test_one_may_be_asked_in_two_ways_and_is_loaded_once(at_once, caplog):
    lazy = bundled_model("small", MemoryBound())
    short = lazy.with_options(name="short", max_new_tokens=1)
    with caplog.at_level(logging.INFO, logger="confcascade"):
        answers = [
            said(model.generate([Generate(model, Request(Message.parse(TEXTS[0])))])[0]) for model in (lazy, short)
        ]
    same = at_once["small"].with_options(name="same", max_new_tokens=1)

    assert answers[0][1].output_tokens > 1
    assert answers[1] == said(same.generate([Generate(same, Request(Message.parse(TEXTS[0])))])[0])
    assert sum(message.startswith("Loading model") for message in caplog.messages) == 1
    assert (lazy.name, short.name) == ("small", "short")


# ---------------------------------------------------------------------- memory


def test_weights_that_are_taken_off_are_freed(on_demand):
    answered(on_demand["small"], TEXTS[0])
    weights = [weakref.ref(each) for each in on_demand["small"].with_weights().model.parameters()]
    assert all(each() is not None for each in weights)
    answered(on_demand["large"], TEXTS[0])
    assert not on_demand["small"].is_loaded
    assert all(each() is None for each in weights)


def test_a_model_that_nobody_has_is_freed_too():
    bound = MemoryBound()
    model = bundled_model("small", bound)
    answered(model, TEXTS[0])
    assert bound.loaded == ("small",)
    del model
    gc.collect()
    assert bound.loaded == ()


def test_what_was_read_is_gone_on_from_after_the_weights_were_away(at_once, on_demand):
    """One that holds a prompt of one model, and waits for another, does not wait for ever."""
    small, large = on_demand["small"], on_demand["large"]
    (read,) = small.prefill([Prefill(small, request(TEXTS[0]))])
    began = time.monotonic()
    answered(large, TEXTS[0])
    waited_s = time.monotonic() - began
    assert not small.is_loaded
    (answer,) = small.generate([Generate(small, request(TEXTS[0]), prefilled=read)])

    assert waited_s >= 0.25
    assert said(answer) == answered(at_once["small"], TEXTS[0])


def test_many_callers_of_two_models_that_do_not_fit_together(at_once, on_demand, caplog):
    """All are answered, as they would be alone, and the models change places far less often than they are asked."""
    sizes = ["medium", "large"] * 12
    with caplog.at_level(logging.INFO, logger="confcascade"), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: answered(on_demand[sizes[i]], TEXTS[i % 6]), range(len(sizes))))
    for i, (text, usage, logprobs) in enumerate(found):
        expected = answered(at_once[sizes[i]], TEXTS[i % 6])
        assert (text, usage) == expected[:2]
        assert logprobs == pytest.approx(expected[2], abs=1e-4)
    assert sum(message.startswith("Loading model") for message in caplog.messages) <= 12


def test_the_event_loop_goes_on_while_a_model_is_loaded(monkeypatch, on_demand):
    small, going_on = on_demand["small"], threading.Event()
    read = small._weights._read

    def slow():
        assert going_on.wait(10)
        return read()

    monkeypatch.setattr(small._weights, "_read", slow)

    async def ask():
        asked = asyncio.create_task(small.agenerate([Generate(small, request(TEXTS[0]))]))
        await asyncio.sleep(0.05)
        assert not asked.done()
        going_on.set()
        return said((await asked)[0])

    assert asyncio.run(ask())[0]


def test_a_caller_who_leaves_while_a_model_is_loaded_leaves_nothing_behind(monkeypatch, on_demand):
    small, going_on = on_demand["small"], threading.Event()
    read = small._weights._read
    monkeypatch.setattr(small._weights, "_read", lambda: going_on.wait(10) and read())

    async def ask():
        asked = asyncio.create_task(small.agenerate([Generate(small, request(TEXTS[0]))]))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(ask())
    going_on.set()
    answered(on_demand["large"], TEXTS[0])
    assert on_demand["large"].memory.loaded == ("large",)


# ---------------------------------------------------------------------- what fails


def damaged(tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(bundled_folder("small"), folder, ignore=shutil.ignore_patterns("probe"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


def test_weights_that_cannot_be_loaded_fail_their_stage(tmp_path, at_once):
    """As any model that fails; and once they can be, they are."""
    folder = tmp_path / "moved"
    shutil.copytree(bundled_folder("small"), folder, ignore=shutil.ignore_patterns("probe"))
    moved = OnDemandModel(folder, max_new_tokens=12)
    cascade = Cascade([Stage(moved, [TokenProbability()], {"p_t": 0.0}), Stage(at_once["large"])])
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")

    outcome = cascade.run(TEXTS[0])
    assert outcome.record.answered_by == "large"
    assert outcome.record.attempts[0].decision == "fail"
    with pytest.raises(ModelError, match=r"Model 'moved' cannot be loaded\. No causal language model"):
        answered(moved, TEXTS[0])

    (tmp_path / "elsewhere").rename(folder / "model.safetensors")
    assert answered(moved, TEXTS[0]) == answered(at_once["small"], TEXTS[0])


def test_weights_that_are_cut_off_are_refused_when_a_cascade_is_made(tmp_path, at_once):
    folder = damaged(tmp_path)
    with pytest.raises(ConfigurationError, match="cut off or damaged"):
        Cascade([Stage(OnDemandModel(folder), [TokenProbability()], {"p_t": 0.0}), Stage(at_once["large"])])


def test_a_wrong_layer_fails_alone(on_demand):
    """Errors of asks are those of the model."""
    small = on_demand["small"]
    (error,) = small.prefill([Prefill(small, request(TEXTS[0]), (99,))])
    assert isinstance(error, ModelError)
    assert "gives hidden states 1 to 4" in str(error)
    assert not math.isnan(small.hidden_states([request(TEXTS[0])], 1).sum())


def test_loading_is_logged(on_demand, caplog):
    with caplog.at_level(logging.INFO, logger="confcascade"):
        answered(on_demand["small"], TEXTS[0])
        answered(on_demand["large"], TEXTS[0])
    told = [message.split(", in ")[0] for message in caplog.messages if "odel '" in message]
    assert told == [
        "Loading model 'small' (0.3 MiB).",
        "Model 'small' is loaded",
        "Model 'small' is taken out of memory, for 'large'.",
        "Loading model 'large' (5.3 MiB).",
        "Model 'large' is loaded",
    ]
