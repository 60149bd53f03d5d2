"""Weights that take part in a product for a token, against torch's own counter of operations."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade.models.bundled import WEIGHTS
from confcascade.models.local import TransformersModel
from confcascade.models.local.compute import MultipliedWeights
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)
SHAPE = {
    "vocab_size": 1387, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Mixtral": {"num_local_experts": 16, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1,
    },
    "Gemma3n": {  # tables for each layer, which are looked up
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 1387, "num_kv_shared_layers": 0,
        "laurel_rank": 8, "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": None,
        "altup_num_inputs": 2,
    },
}  # fmt: skip


def made(kind: str) -> Any:
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3n" else f"{kind}Config")
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config(**{**SHAPE, **MODELS[kind]})).eval()


@pytest.mark.parametrize("kind", MODELS)
def test_twice_the_weights_are_the_operations_of_a_token(kind: str):
    """Within some percent: the counter sees neither norms nor biases, and counts the attention to one token."""
    model = made(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")

    parameters = TransformersModel(model, tokenizer).architecture.parameters

    model.requires_grad_(False)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the counter does not know grouped products
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([[5]]), use_cache=False)
    assert 2 * parameters == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_shared_block_counts_each_time_and_a_tower_that_is_not_entered_not_at_all():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.block = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 4, bias=False)
            self.tower = torch.nn.Linear(4, 100)

        def forward(self, ids: Any) -> Any:
            return self.block(self.block(self.words(ids)))

    net = Net()
    with MultipliedWeights(net, None) as weights:
        net(torch.tensor([[3]]))

    assert weights.count == 2 * 4 * 4


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_outside_of_the_blocks_is_told_apart(tied: bool):
    """The output layer's weights and the last norm's; what is looked up counts nowhere."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "tie_word_embeddings": tied})
    model = transformers.LlamaForCausalLM(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")

    architecture = TransformersModel(model, tokenizer).architecture

    blocks = sum(weight.numel() for weight in model.model.layers.parameters())
    assert architecture.outside_blocks == 1387 * 64 + 64
    assert architecture.parameters == blocks + architecture.outside_blocks


def test_packed_weights_count_what_they_unpack_to():
    """bitsandbytes keeps two numbers in a byte; what the layer multiplies is (out_features, in_features)."""

    class Packed(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 6, bias=False)
            self.weight = torch.nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, x: Any) -> Any:
            return x

    with MultipliedWeights(layer := Packed(), None) as weights:
        layer(torch.zeros(1, 8))

    assert weights.count == 48
