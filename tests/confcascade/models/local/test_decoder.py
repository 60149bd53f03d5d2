"""What a local model can do is tried when it is wrapped: decoders work, in batches too, and nothing else is taken."""

from __future__ import annotations

import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import Cascade, ConfigurationError, KnowledgeProbe, ModelError, Stage, TokenProbability
from confcascade.asks import Generate, Prefill
from confcascade.demo import bundled_probe
from confcascade.models.bundled import WEIGHTS, bundled_model
from confcascade.models.local import TransformersModel
from confcascade.testing import ScriptedModel, check_model
from confcascade.types import Message, Request, Response

torch.set_num_threads(1)
PROMPTS = ["Where was Bren born?", "The job of", "One two three four five six seven", "What is it?"]
LENGTHS = [2, 3, 12, 7]  # answers that end at different times
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
HYBRIDS: dict[str, dict[str, Any]] = {  # layers without attention keep states of their own
    "Qwen3Next": {
        **LINEAR, "layer_types": ["linear_attention", "full_attention"] * 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "Jamba": {
        "mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "use_mamba_kernels": False,
    },
    "FalconH1": {
        "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
}  # fmt: skip


def tokenizer() -> Any:
    own = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")
    own.chat_template = None
    return own


def random_weights(kind: str, **config: Any) -> Any:
    """A tiny random model whose next token hangs on what came before."""
    own = getattr(transformers, f"{kind}Config")(**{"vocab_size": len(tokenizer()), **SHAPE, **config})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(own).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


def wrapped(model: Any, **options: Any) -> TransformersModel:
    return TransformersModel(model, tokenizer(), **{"name": type(model).__name__, "max_new_tokens": 12, **options})


def request(text: str, length: int | None = None) -> Request:
    return Request(Message.parse(text), max_tokens=length)


def same(one: Any, other: Any) -> None:
    assert isinstance(one, Response), one
    assert one.text == other.text
    assert [t.logprob for t in one.tokens] == pytest.approx([t.logprob for t in other.tokens], abs=1e-4)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_hybrid_answers_in_a_batch_as_it_does_alone(kind: str):
    """Rows end at different times, go on in another order and in parts; none of it changes an answer."""
    try:
        model = wrapped(random_weights(kind, **HYBRIDS[kind]))
    except ConfigurationError as error:  # transformers 5.0 gives some a cache in `generate` only
        if "it returned no KV cache" not in str(error):
            raise
        pytest.skip(str(error))
    asked = [request(text, length) for text, length in zip(PROMPTS, LENGTHS, strict=True)]
    alone = [model.generate([Generate(model, each)])[0] for each in asked]

    for found, expected in zip(model.generate([Generate(model, each) for each in asked]), alone, strict=True):
        same(found, expected)
    read: list[Any] = list(model.prefill([Prefill(model, each, layers=(4,)) for each in asked]))
    for order in ([3, 1], [2, 0]):
        parts = model.generate([Generate(model, asked[i], prefilled=read[i]) for i in order])
        for i, found in zip(order, parts, strict=True):
            same(found, alone[i])
    for text, each in zip(PROMPTS, read, strict=True):
        assert each.hidden_states[4] == pytest.approx(model.hidden_states([request(text)], 4)[0], abs=1e-4)


def test_a_cascade_keeps_a_hybrids_answers_in_a_batch():
    """They used to go to the large model, all of them, for an error of ours."""
    stage = Stage(wrapped(random_weights("Lfm2", **HYBRIDS["Lfm2"])), [TokenProbability()], {"p_t": "always"})
    cascade = Cascade([stage, Stage(ScriptedModel("large"))])

    whole = [cascade.run(prompt, max_tokens=8) for prompt in PROMPTS]
    stop = tuple(outcome.text.strip()[0] for outcome in whole[:2])  # ends two at once, and so halves the batch

    outcomes = cascade.run_batch(PROMPTS, max_tokens=8, stop=stop)

    alone = [cascade.run(prompt, max_tokens=8, stop=stop) for prompt in PROMPTS]
    assert len({outcome.record.usage.output_tokens for outcome in alone}) > 1
    assert [outcome.text for outcome in outcomes] == [outcome.text for outcome in alone]
    assert all(outcome.record.attempts[0].error is None for outcome in outcomes)


class Wrapper(transformers.LlamaForCausalLM):
    """Tells nothing by its signature, as PEFT's and torch's wrappers do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Renamed(transformers.LlamaForCausalLM):
    """As from transformers 5.40 on: forward takes and returns `cache`, and no other word."""

    def forward(self, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'past_key_values'")
        word = "cache" if _says_cache() else "past_key_values"
        out = super().forward(*args, **{word: cache}, **kwargs)
        return Output({"logits": out.logits, "cache": out[word]})


class Output(dict):
    @property
    def logits(self) -> Any:
        return self["logits"]


def _says_cache() -> bool:
    import inspect

    return "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters


@pytest.mark.parametrize("kind", [Wrapper, Renamed])
def test_the_word_for_the_cache_is_tried(kind: type):
    """Whatever word the model takes, and whatever its signature tells, without a warning."""
    small = bundled_model("small")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = kind.from_pretrained(WEIGHTS / "small", dtype=small.model.dtype).eval()
        model = TransformersModel(weights, small.tokenizer, max_new_tokens=12)
        answers = model.generate([Generate(model, request(prompt)) for prompt in PROMPTS])

    for prompt, found in zip(PROMPTS, answers, strict=True):
        same(found, small.generate([Generate(small, request(prompt, 12))])[0])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Bert", {}),
        ("Roberta", {}),
        ("RecurrentGemma", {"lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 16}),
    ],
)
def test_what_returns_no_cache_is_refused(kind: str, config: dict[str, Any]):
    """Encoders, and decoders that keep their cache to themselves, whose every step would see one token only."""
    with pytest.raises(ConfigurationError, match=r"does not work as a decoder.*: it returned no KV cache\."):
        wrapped(random_weights(kind, **config))


def test_a_cache_that_does_not_grow_is_refused():
    """A model may take a cache and not use it: its answers would hang on the last token only."""

    class Forgetful(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, past_key_values: Any = None, cache: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = Forgetful(random_weights("Llama").config).eval()

    with pytest.raises(ConfigurationError, match=r"Forgetful does not .* its KV cache holds 1 tokens after"):
        wrapped(model)


@pytest.mark.parametrize("kind", ["Bloom", "Mpt"])
def test_decoders_without_positions_are_taken(kind: str):
    """They tell positions by the mask."""
    shapes = {
        "Bloom": {"n_layer": 3, "n_head": 4, "hidden_size": 32},
        "Mpt": {"n_layers": 3, "n_heads": 4, "d_model": 32},
    }
    own = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer()), **shapes[kind])
    model = transformers.AutoModelForCausalLM.from_config(own).eval()
    ids = tokenizer()(PROMPTS[0], return_tensors="pt")["input_ids"]

    (found,) = (ours := wrapped(model)).generate([Generate(ours, request(PROMPTS[0]))])

    written = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert found.text == ours.tokenizer.decode(written, skip_special_tokens=True)


def test_a_model_that_padding_changes_is_asked_one_by_one(caplog: pytest.LogCaptureFixture):
    """BART's decoder counts positions by columns: beside a longer prompt, it would read a shorter one otherwise."""
    own = transformers.BartConfig(
        vocab_size=len(tokenizer()), d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
        max_position_embeddings=256,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "confcascade"):
        model = wrapped(transformers.AutoModelForCausalLM.from_config(own).eval())

    assert (model.capability.batch_size, model.capability.local) == (1, True)
    assert "It is asked one by one" in caplog.text


def test_a_cache_whose_rows_cannot_be_selected_is_asked_one_by_one():
    """MiniMax's keeps states beside its layers, which `reorder_cache` forgets."""
    own = {"layer_types": ["full_attention", "linear_attention"] * 2, "num_local_experts": 2, "block_size": 16}
    model = wrapped(random_weights("MiniMax", **own, num_experts_per_tok=1))

    assert model.capability.batch_size == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_not_taken_for_a_fault(dtype: str):
    """The trial compares a token after padding with the same token alone: rounding is the same for both."""
    model = random_weights("Llama").to(getattr(torch, dtype))

    assert wrapped(model).capability.batch_size > 1


class Streams(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    """A block that returns several streams at once, as Gemma 3n's do."""

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        hidden = hidden_states[0] if hidden_states.dim() == 4 else hidden_states
        out = super().forward(hidden, *args, **kwargs)
        return torch.stack([out, out])


def test_blocks_of_another_form_give_no_hidden_states():
    """Generation is right; what a probe would read is not there, and it says so before anything is asked."""
    weights = random_weights("Llama")
    for block in weights.model.layers:
        block.__class__ = Streams
    weights.model.norm.register_forward_pre_hook(lambda _module, args: (args[0][0],))
    model = wrapped(weights)

    assert (model.capability.layers, model.capability.hidden_size) == (0, 0)
    (read,) = model.prefill([Prefill(model, request(PROMPTS[0]), labels=("A", "B"))])
    assert read.label_logprobs.keys() == {"A", "B"}
    read.close()
    assert isinstance(model.generate([Generate(model, request(PROMPTS[0]))])[0], Response)
    (found,) = model.prefill([Prefill(model, request(PROMPTS[0]), layers=(1,))])
    assert isinstance(found, ModelError)
    check_model(model, request(PROMPTS[0], 9))
    probe = bundled_probe("small")
    assert isinstance(probe, KnowledgeProbe)
    with pytest.raises(ConfigurationError, match="does not give any"):
        probe.check(model)


def test_another_tower_as_deep_is_not_mistaken_for_the_decoder():
    """The blocks are those that the trial pass went through."""
    weights = random_weights("Llama")
    tower = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(4)])
    children = dict(weights.model._modules)
    weights.model._modules.clear()
    weights.model._modules.update({"vision_tower": tower, **children})  # found first
    model = wrapped(weights)

    assert model.hidden_states([request(PROMPTS[0])], 4).shape == (1, 32)


@pytest.mark.skipif(not hasattr(transformers, "DeepseekV4Config"), reason="of a later version of transformers")
def test_a_model_that_compresses_padding_is_asked_one_by_one():
    """DeepSeek-V4 makes one entry of four columns, padding among them; two tokens of trial did not show it."""
    model = wrapped(
        random_weights(
            "DeepseekV4", q_lora_rank=8, num_experts_per_tok=2, n_routed_experts=4, moe_intermediate_size=16,
            index_n_heads=4, index_head_dim=8, index_topk=256, o_groups=1, o_lora_rank=8, num_nextn_predict_layers=0,
            sliding_window=16,
        )
    )  # fmt: skip
    asked = [request(text, 6) for text in PROMPTS]

    answers = model.generate([Generate(model, each) for each in asked])

    assert model.capability.batch_size == 1
    for each, found in zip(asked, answers, strict=True):
        same(found, model.generate([Generate(model, each)])[0])


@pytest.mark.parametrize("field", ["attn_temperature_tuning", "keep_window_size"])
def test_attention_by_columns_is_asked_one_by_one(field: str):
    """Llama 4 and Doge count columns from the eight thousandth on, which no trial can show."""
    weights = random_weights("Llama")
    setattr(weights.config, field, 4)

    assert wrapped(weights).capability.batch_size == 1


def test_rows_of_one_pass_are_continued_by_several_threads():
    """Each row goes to one of them, with the cache as it was read."""
    model = wrapped(random_weights("Llama"))
    asked = [request(text, 4) for text in PROMPTS]
    alone = [model.generate([Generate(model, each)])[0] for each in asked]
    for _ in range(5):
        read: list[Any] = list(model.prefill([Prefill(model, each) for each in asked]))
        barrier = threading.Barrier(len(asked))

        def go_on(i: int, read: list[Any] = read, barrier: threading.Barrier = barrier) -> Any:
            barrier.wait()
            return model.generate([Generate(model, asked[i], prefilled=read[i])])[0]

        with ThreadPoolExecutor(len(asked)) as pool:
            for found, expected in zip(pool.map(go_on, range(len(asked))), alone, strict=True):
                same(found, expected)


def test_a_pass_that_fails_costs_no_row_that_has_ended(caplog: pytest.LogCaptureFixture):
    """Rows that had ended keep their answers; the others begin anew, one by one, and it is said once."""
    model = wrapped(random_weights("Llama"), name="flaky")
    asked = [request(text, length) for text, length in zip(PROMPTS, LENGTHS, strict=True)]
    alone = [model.generate([Generate(model, each)])[0] for each in asked]
    passes: list[int] = []

    def fail(_module: Any, _args: Any, kwargs: Any) -> None:
        passes.append(len(kwargs["input_ids"]))
        if len(passes) == 4:  # two have ended by then
            raise MemoryError

    handle = model.model.register_forward_pre_hook(fail, with_kwargs=True)
    with caplog.at_level(logging.WARNING, "confcascade"):
        answers = model.generate([Generate(model, each) for each in asked])
    handle.remove()

    for found, expected in zip(answers, alone, strict=True):
        same(found, expected)
    assert "A call of model 'flaky' for 2 queries failed: MemoryError. They are asked one by one" in caplog.text
    assert passes.count(1) == LENGTHS[2] + LENGTHS[3]  # only the two that were cut off


def test_a_peft_model_is_taken_as_it_is():
    """It answers as PEFT's own `generate`, and is what its base with the adapter's layers is."""
    peft = pytest.importorskip("peft")
    weights = random_weights("Llama")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(weights, settings).eval()
    model, inner = wrapped(adapted), wrapped(adapted.get_base_model())
    ids = tokenizer()(PROMPTS[0], return_tensors="pt")["input_ids"]

    (found,) = model.generate([Generate(model, request(PROMPTS[0]))])

    written = adapted.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert found.text == model.tokenizer.decode(written, skip_special_tokens=True)
    assert model.hidden_states([request(PROMPTS[0])], 4) == pytest.approx(
        inner.hidden_states([request(PROMPTS[0])], 4), abs=1e-6
    )
    assert (model.fingerprint, model.architecture) == (inner.fingerprint, inner.architecture)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_answers_and_shows_hidden_states(in_place: bool):
    """Compiled code passes over hooks, so what hooks wait for is read with the model as it is written."""
    plain = wrapped(random_weights("Llama", num_hidden_layers=1))
    weights, compiled = random_weights("Llama", num_hidden_layers=1), []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    if in_place:
        weights.compile(backend=backend)
        model = wrapped(weights)
    else:
        model = wrapped(torch.compile(weights, backend=backend))
    assert not compiled  # the trial waits for hooks, and need not compile
    asked = request(PROMPTS[0], 3)

    for _ in range(2):
        same(model.generate([Generate(model, asked)])[0], plain.generate([Generate(plain, asked)])[0])
        assert model.hidden_states([asked], 1) == pytest.approx(plain.hidden_states([asked], 1), abs=1e-5)
    assert compiled
    assert (model.fingerprint, model.architecture) == (plain.fingerprint, plain.architecture)


def test_hidden_states_that_hooks_do_not_see_are_an_error():
    """Never a score of nothing: a block may be compiled by itself, behind the hook's back."""
    weights = random_weights("Llama")
    model = wrapped(weights)
    for block in weights.model.layers:
        block._call_impl = block.forward  # as code that was compiled before the hook came

    with pytest.raises(ModelError, match="compiled code passes over hooks"):
        model.hidden_states([request(PROMPTS[0])], 4)


def test_kernels_that_do_not_take_packed_weights_are_named():
    """bitsandbytes asserts in four bits on a CPU where a size is no multiple of its block: it is a decoder still."""
    weights = random_weights("Llama")
    weights.is_quantized = True

    def fail(*_args: Any) -> None:
        raise AssertionError("N must be divisible by block_n")

    weights.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(
        ConfigurationError, match=r"cannot be run here with its weights in fewer bits.*block_n"
    ) as raised:
        wrapped(weights)
    assert "does not work as a decoder" not in str(raised.value)
