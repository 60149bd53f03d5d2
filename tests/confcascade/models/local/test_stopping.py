"""A pass over prompts ends where nobody needs the rest of it, and what goes on is what it was."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import Cascade, KnowledgeProbe, ModelError, Outcome, Stage, TokenProbability, TransformersModel
from confcascade.asks import Generate, Prefill
from confcascade.bench.collecting.attempt import CollectOptions
from confcascade.bench.collecting.collect import collect_rows
from confcascade.bench.questions.prompts import PROMPTS as TEMPLATES
from confcascade.bench.recording import Columns
from confcascade.bench.replay import PolicyStage, replay
from confcascade.cost import stopped_flops, token_flops
from confcascade.graders import NormalizedMatch
from confcascade.graders.example import Example
from confcascade.models.bundled import WEIGHTS
from confcascade.signals.knowledge_probe import ProbeCard
from confcascade.testing import ScriptedModel
from confcascade.types import Message, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.architectures_tiny import BLOCKS, configuration, random_model

torch.set_num_threads(1)
PROMPTS = ["Where was Bren born?", "The job of", "One two three four five six seven", "What is it?", "Who?"]
EACH_ROW: dict[str, dict[str, Any]] = {  # rows can be taken out between two blocks
    "llama": {},
    "qwen2": {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": {},  # two masks, of which each block is given one
    "gemma4_text": {},  # blocks that are given a part of the embeddings, and keys of blocks before
    "mixtral": {},
    "gpt2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "jamba": {},
}
WHOLE_PASS: dict[str, dict[str, Any]] = {  # they cannot
    "bloom": {},  # distances are told to blocks for each row and head in one
    "doge": {"keep_window_size": 256},  # asked one by one
}


def bundled_tokenizer() -> Any:
    own = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")
    own.chat_template = None
    return own


@cache
def model_of(kind: str) -> TransformersModel:
    own = bundled_tokenizer()
    options = {**EACH_ROW, **WHOLE_PASS}[kind]
    if kind == "jamba" and transformers.__version__ < "5.1":
        pytest.skip("the rows of its cache cannot be selected in this version of transformers")
    try:
        return TransformersModel(
            random_model(configuration(kind, len(own), **options)), own, name=kind, max_new_tokens=6
        )
    except Exception as error:  # older versions of transformers know fewer kinds
        pytest.skip(f"{kind}: {error}")


class EndsAt:
    """A gate that ends a pass behind one block, and notes what it was shown."""

    def __init__(self, layer: int | None) -> None:
        self.layer = layer
        self.seen: list[Mapping[int, Any]] = []

    def __call__(self, hidden_states: Mapping[int, Any]) -> bool:
        self.seen.append(hidden_states)
        return self.layer is None or max(hidden_states) < self.layer


def asked(text: str) -> Request:
    return Request(Message.parse(text))


def read(model: TransformersModel, ends: list[int | None], layers: tuple[int, ...]) -> list[Any]:
    gates = [EndsAt(at) for at in ends]
    asks = [Prefill(model, asked(t), layers=layers, gate=g) for t, g in zip(PROMPTS, gates, strict=False)]
    found: list[Any] = list(model.prefill(asks))
    for gate, at in zip(gates, ends, strict=True):  # once for each layer, from the lowest up, and no more after its no
        assert [sorted(states) for states in gate.seen] == [
            list(layers[: i + 1]) for i, layer in enumerate(layers) if at is None or layer <= at
        ]
    return found


def same(found: Any, expected: Any) -> None:
    assert isinstance(found, Response), found
    assert found.text == expected.text
    assert [t.logprob for t in found.tokens] == pytest.approx([t.logprob for t in expected.tokens], abs=1e-4)


@pytest.mark.parametrize("kind", EACH_ROW)
@pytest.mark.parametrize("ends", [[1, None, 3, None, 2], [None, 2, 2, 2, None], [3, 1, None, 4, 4]])
def test_rows_that_go_on_are_what_they_are_without_the_others(kind: str, ends: list[int | None]):
    """Answers and log-probabilities, wherever the others leave, once or several times, in any kind of model."""
    model = model_of(kind)
    layers = tuple(range(1, BLOCKS + 1))

    found = read(model, ends, layers)

    assert [each.depth for each in found] == [None if at is None else at / BLOCKS for at in ends]
    whole = model.prefill([Prefill(model, asked(text), layers=layers) for text in PROMPTS])
    for each, at, other in zip(found, ends, whole, strict=True):
        assert isinstance(other, type(each))
        assert each.usage == other.usage
        assert list(each.hidden_states) == [layer for layer in layers if at is None or layer <= at]
        for layer, state in each.hidden_states.items():
            assert state == pytest.approx(other.hidden_states[layer], rel=1e-3, abs=1e-4)
        other.close()
    kept = [i for i, at in enumerate(ends) if at is None]
    for group in (kept[:1], kept[1:]):  # in parts, so that the cache is copied and cut
        answers = model.generate([Generate(model, asked(PROMPTS[i]), prefilled=found[i]) for i in group])
        for i, answer in zip(group, answers, strict=True):
            (alone,) = model.generate([Generate(model, asked(PROMPTS[i]))])
            same(answer, alone)


@pytest.mark.parametrize("kind", [*EACH_ROW, *WHOLE_PASS])
def test_nothing_is_computed_behind_the_last_gate(kind: str):
    """Blocks behind it are not called, those between have only the rows that are left, and there is no cache."""
    model = model_of(kind)
    model.generate([Generate(model, asked(PROMPTS[0]))])
    blocks, called = model._decoder.blocks, []

    def note(i: int) -> Any:
        return lambda _module, args, kwargs: called.append((i, len((args or [kwargs.get("hidden_states")])[0])))

    handles = [block.register_forward_pre_hook(note(i), with_kwargs=True) for i, block in enumerate(blocks, 1)]
    found = read(model, [1, 3, 1] if kind in EACH_ROW else [3], (1, 2, 3))
    for handle in handles:
        handle.remove()

    assert called == ([(1, 3), (2, 1), (3, 1)] if kind in EACH_ROW else [(1, 1), (2, 1), (3, 1)])
    assert all(each.state is None and not each.label_logprobs and each.following is None for each in found)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)
    found[0].close()  # harmless


def test_rows_that_cannot_be_taken_out_stay_until_all_are_ended():
    """A row that was ended is charged for what was run all the same."""
    model = model_of("bloom")
    assert model._decoder.row_arguments is None

    some = read(model, [1, None, 2], (1, 2, 3))
    every = read(model, [1, 3, 2], (1, 2, 3))

    assert [each.depth for each in some] == [None] * 3
    assert [each.depth for each in every] == [0.75] * 3
    answers = model.generate([Generate(model, asked(PROMPTS[i]), prefilled=some[i]) for i in (0, 1, 2)])
    for text, answer in zip(PROMPTS, answers, strict=False):
        same(answer, model.generate([Generate(model, asked(text))])[0])


class Astray(transformers.LlamaForCausalLM):
    """Adds to the hidden states, between the blocks, what was there before them: of all rows."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        embedded: list[Any] = []
        self.model.embed_tokens.register_forward_hook(lambda _m, _a, out: embedded.append(out))
        self.model.layers[2].register_forward_hook(lambda _m, _a, out: out + embedded[-1])


class Twice(transformers.LlamaForCausalLM):
    """Runs its blocks twice."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        first = self.model.layers[0]
        self.model.layers[3].register_forward_hook(
            lambda _m, args, kwargs, out: first(out, *args[1:], **{**kwargs, "past_key_values": None}),
            with_kwargs=True,
        )


@pytest.mark.parametrize(("kind", "stops"), [(Astray, True), (Twice, False)])
def test_what_a_model_can_do_is_tried(kind: Any, stops: bool):
    """Where taking rows out fails, they stay; where a block is called twice, nothing is known behind it."""
    torch.manual_seed(0)
    weights = kind(configuration("llama", 1387)).eval()

    model = TransformersModel(weights, bundled_tokenizer(), max_new_tokens=4)

    assert model.capability.stops is stops
    assert model._decoder.row_arguments is None


def test_threads_do_not_mix():
    """Rows that leave in one thread's pass are not taken out of another's, over the same weights."""
    model = model_of("llama")
    expected = [model.generate([Generate(model, asked(text))])[0] for text in PROMPTS]
    barrier = threading.Barrier(4)

    def go_on(i: int) -> list[Any]:
        barrier.wait()
        found = read(model, [1, None, i % 3 + 1, None, None], (1, 2, 3, 4))
        kept = [j for j, each in enumerate(found) if each.depth is None]
        answers = model.generate([Generate(model, asked(PROMPTS[j]), prefilled=found[j]) for j in kept])
        return list(zip(kept, answers, strict=True))

    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(go_on, range(4)):
            assert [j for j, _ in answers] == [1, 3, 4]
            for j, answer in answers:
                same(answer, expected[j])


def test_a_block_that_hooks_do_not_see_is_an_error():
    weights = random_model(configuration("llama", 1387))
    model = TransformersModel(weights, bundled_tokenizer())
    for block in weights.model.layers:
        block._call_impl = block.forward  # as code that was compiled before the hook came

    for problem in model.prefill([Prefill(model, asked(text), layers=(1, 2)) for text in PROMPTS[:2]]):
        assert isinstance(problem, ModelError)
        assert "compiled code passes over hooks" in str(problem)


# ---------------------------------------------------------------------- cascades


def probe(model: TransformersModel, layer: int, name: str, seed: int) -> KnowledgeProbe:
    """Linear, of random weights."""
    size, rng = model.capability.hidden_size, np.random.default_rng(seed)
    card = ProbeCard(model.name, model.fingerprint, layer, size, (0, 0, 0), 0.5, (0.5, 0.5), 0.25, 0, 0)
    weights = {"mean": np.zeros(size), "scale": np.ones(size), "weight.0": rng.normal(size=(size, 1)) / 4}
    every = {**weights, "bias.0": np.zeros(1)}
    return KnowledgeProbe(card, {key: value.astype(np.float32) for key, value in every.items()}, name)


@cache
def without_gates() -> TransformersModel:
    """The same weights; passes go on to their end, as they always did."""
    model = TransformersModel(model_of("llama").model, bundled_tokenizer(), name="llama", max_new_tokens=6)
    model._capability = replace(model.capability, stops=False)
    return model


def signals(model: TransformersModel) -> list[KnowledgeProbe]:
    return [probe(model, 1, "early", 0), probe(model, 3, "late", 1)]


@cache
def known_scores() -> dict[str, list[float]]:
    """Of every prompt, by signal."""
    model = model_of("llama")
    return {each.name: each.predict(model.hidden_states([asked(t) for t in PROMPTS], each.card.layer)).tolist()
            for each in signals(model)}  # fmt: skip


def told(outcome: Outcome) -> dict[str, Any]:
    """A record without clocks, and without operations."""
    found = outcome.record.as_dict()
    for attempt in found["attempts"]:
        attempt.update(cost=attempt["cost"]["tokens"], latency_s=None)
        attempt["scores"] = {
            name: {**score, "value": round(score["value"], 4)} for name, score in attempt["scores"].items()
        }
        attempt["reason"] = attempt["reason"].split()[::2]  # signals and thresholds; values are rounded by the batch
    return {"text": outcome.text, **{key: found[key] for key in ("answered_by", "stage", "attempts", "usage")}}


CUTS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, "never", "always"])


@given(early=CUTS, late=CUTS, skip=st.none() | st.sampled_from([0.25, 0.5]), batch=st.booleans())
@settings(max_examples=25, deadline=None)
def test_decisions_and_records_are_those_of_whole_passes(early: Any, late: Any, skip: float | None, batch: bool):
    """Whichever rows fail, by whichever probe, in a batch or alone, and also where a low score skips a stage."""
    scores = known_scores()

    def cut(name: str, at: Any) -> Any:  # between two of the prompts' scores
        ordered = [0.0, *sorted(scores[name]), 1.0]
        i = at if isinstance(at, str) else int(at * len(PROMPTS))
        return i if isinstance(i, str) else (ordered[i] + ordered[i + 1]) / 2

    thresholds = {"early": cut("early", early), "late": cut("late", late)}
    skips = {"late": min(skip, thresholds["late"])} if skip and isinstance(thresholds["late"], float) else {}
    found: list[list[Outcome]] = []
    for model in (model_of("llama"), without_gates()):
        stage = Stage(model, signals(model), thresholds, skip=skips)
        middle = Stage(ScriptedModel("middle"), [TokenProbability()], {"p_t": "always"})
        cascade = Cascade([stage, middle, Stage(ScriptedModel("large"))])
        found.append(cascade.run_batch(PROMPTS) if batch else [cascade.run(text) for text in PROMPTS])

    for gated, other in zip(*found, strict=True):
        assert told(gated) == told(other)
        mine, theirs = gated.record.attempts[0], other.record.attempts[0]
        size = model_of("llama").architecture
        rejected = not all(score.passed for score in theirs.scores.values())
        assert theirs.cost.flops == token_flops(size, theirs.usage.total_tokens)
        expected = stopped_flops(size, mine.usage.input_tokens, 3 / 4) if rejected else theirs.cost.flops
        assert mine.cost.flops == expected


def test_a_recording_of_whole_passes_replays_as_live():
    """It tells behind which block a score is known, and so what a rejected prompt costs, to the digit."""
    model, large = model_of("llama"), ScriptedModel("large")
    stages = [Stage(model, [*signals(model), TokenProbability()]), Stage(large)]
    examples = {example.id: example for example in (Example(text, references=("x",)) for text in PROMPTS)}
    asking = CollectOptions(TEMPLATES["plain"], NormalizedMatch(), {"stop": ("e",)})  # or most would be cut off
    rows = list(collect_rows([(each, stage) for each in examples.values() for stage in stages], asking))
    columns = Columns.of(sorted(rows, key=lambda row: row.model != "llama"))
    rows = [row for row in rows if row.model == "llama"]
    assert {name: score.depth for name, score in rows[0].scores.items()} == {"early": 0.25, "late": 0.75, "p_t": None}

    known = {name: sorted(row.scores[name].value for row in rows) for name in ("early", "late")}
    thresholds: dict[str, Any] = {name: (values[0] + values[1]) / 2 for name, values in known.items()}  # rejects one
    thresholds["p_t"] = "always"
    stages[0] = replace(stages[0], thresholds=thresholds)
    policy = [PolicyStage("llama", thresholds), PolicyStage("large")]
    sizes = {"llama": model.architecture, "large": model.architecture}
    played = replay(columns, policy, architectures=sizes)
    live = [Cascade(stages).run(asking.request(examples[each]).messages, stop=("e",)) for each in columns.questions]

    assert 0 < sum(outcome.stage == 0 for outcome in live) < len(live)
    for i, outcome in enumerate(live):
        assert played.stage[i] == outcome.stage
        mine = outcome.record.attempts[0].cost.flops
        answered = outcome.record.attempts[-1].usage.total_tokens if outcome.stage else 0
        assert mine is not None
        assert played.cost.flops[i] == mine + token_flops(model.architecture, answered)
