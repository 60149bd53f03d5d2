"""Tiny random models of any type that `transformers` knows: 4 blocks, 32 wide, over the bundled tokenizer.

A type's own default configuration is shrunk, field by field, by what the field is called; few types need more said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

BLOCKS, WIDTH, WINDOW, CONTEXT = 4, 32, 16, 256
END, PAD = 2, 0
MOST = 4_000_000  # weights of a tiny model

# The first that matches decides; a number that is smaller by default stays as it is.
_NUMBERS: list[tuple[str, int]] = [
    (r"hash_byte_group_vocab|ngram_vocab_size_base", 64),
    (r"pronunciation_vocab_size|shape_vocab_size", 64),
    (r"projector_(in|out)put_dim|vision_output_dim|out_hidden_size|adapter_(in|out)_dim|backbone_hidden_size", WIDTH),
    (r"per_layer_input$|ple_embed_dim|router_hidden_size|hc_lowrank", 8),
    (r"max_position|n_positions|n_ctx|max_seq_len|context_length|model_max_length|max_target_positions", CONTEXT),
    (r"layers_per|layer_group|every_n_layers|layer_interval|interleave", 2),
    (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|moe_layer_start_index", 1),
    (r"num_kv_shared_layers", 2),
    (r"layers$|^n_layer$|^depth$|num_blocks$|layer_end_index|max_window_layers", BLOCKS),
    (r"(kv|key_value|key)_heads$|kv_n_heads|num_query_groups", 2),
    (r"(heads?|num_heads)$|^n_heads?$|num_attention_heads", 4),
    (r"mamba_num_heads|n_mamba_heads", 4),
    (r"dt_rank|time_step_rank", 4),
    (r"rope_head_dim|nope_head_dim|v_head_dim|head_dim$|d_head|headdim|kv_channels|attention_head_size|^d_kv$|dim_head"
     r"|key_head_dim|value_head_dim|rotary_dim", 8),
    (r"lora_rank|laurel_rank|adapter_rank|norm_rank|^d_rel$", 8),
    (r"experts_per_tok|moe_top_?k|moe_k$|experts_per_token", 2),
    (r"shared_experts$|n_shared|num_shared", 1),
    (r"experts$|experts_num|expert_num", 4),
    (r"topk_group|n_group|expert_group|o_groups|n_groups|ngroups", 1),
    (r"index_topk$", CONTEXT),
    (r"index_block_size|index_topk_blocks", 16),
    (r"moe_intermediate|expert_intermediate|experts_intermediate|expert_ffn", 16),
    (r"intermediate|ffn|^dff$|^d_ff$|^d_inner$|dim_ff|feed_forward|mlp_dim|n_inner|prompt_mid_dim", 64),
    (r"mamba_d_ssm|lru_width", WIDTH),
    (r"attention_hidden_size", WIDTH),
    (r"state_size|d_state", 8),
    (r"chunk_size$|attention_chunk_size|block_size|floor_scale", WINDOW),
    (r"window|local_attention|mem_len|keep_window", WINDOW),
    (r"hidden_size|d_model|n_embd|embedding_size|emb_dim|embedding_dim|embed_proj_dim|embed_dim|hidden_dim", WIDTH),
    (r"dim_model_base|query_pre_attn_scalar", 8),
]  # fmt: skip
_ABSENT = {"head_dim": 8, "num_key_value_heads": 2}  # which some work out from others, and some do not
_DERIVED = ("qk_head_dim", "attention_hidden_size", "attention_head_dim", "conv_output_size", "num_layers_per_stack")
_IDS = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": 1}

# What the names of fields do not say.
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_MIXED = ["linear_attention", "full_attention"] * 2
_BY_LAYER = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ASSISTANT = {
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": BLOCKS,
    "num_hidden_layers": BLOCKS,
    "enable_moe_block": False, "use_double_wide_mlp": False,
}  # fmt: skip
_INDEXED = {
    "layer_types": ["linear_attention", "indexed_attention"] * 2, "indexer_n_heads": 2, "indexer_kv_heads": 1,
    "indexer_head_dim": 8, "indexer_budget": CONTEXT, "indexer_compress_ratio": 4,
}  # fmt: skip
_NOTE_SLIDING = {
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
_NOTE = {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": {1: _NOTE_SLIDING, 3: _NOTE_SLIDING}}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "beam": {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": None}},
    "cohere_compass_text": {"rope_parameters": _BY_LAYER},
    "blenderbot": {"encoder_layers": BLOCKS},  # its cache is as deep as the encoder that it leaves out
    "bloom": {"n_layer": BLOCKS, "n_head": 4},
    "mpt": {"n_layers": BLOCKS, "n_heads": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {"text_config": _NOTE, "audio_config": {"adapter_input_size": WIDTH}},
    "dots3_note_text": _NOTE,
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "granitemoehybrid": {**_MAMBA, "layer_types": _MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"qk_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8},
    "mamba2": {"head_dim": 16},
    "ministral3": {
        "rope_parameters": {**_ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": WINDOW},
    },
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlnet": {"d_head": 8},
    "xlstm": {"num_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "mamba_headdim": 16,
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
}


def configuration(kind: str, vocabulary: int, **options: Any) -> Any:
    """A tiny configuration of a type, such as "llama".

    Args:
        kind: A key of `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`.
        vocabulary: Number of tokens.
        **options: Fields that are set on top.
    """
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    own = {**_OWN.get(kind, {}), **options}
    try:
        default = made()
    except Exception:  # its defaults contradict each other
        default = made(**own)
    parts = {name for name in default.sub_configs if name in own}
    shrunk = _shrunk(default, vocabulary, own)
    config = made(**({**own, **shrunk} if parts else {**shrunk, **own}))
    try:
        return made.from_dict(config.to_dict())  # as it will be loaded
    except Exception:  # infinity is written as it is not read
        return config


def _shrunk(config: Any, vocabulary: int, own: dict[str, Any]) -> dict[str, Any]:
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
    fields: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if (name in own and name not in parts) or name in _DERIVED:
            continue
        if name in parts:
            fields[name] = {
                **_shrunk(parts[name], vocabulary, own.get(name, {})),
                **own.get(name, {}),
                "model_type": getattr(parts[name], "model_type", ""),
            }
            continue
        small = _small(name, value, vocabulary)
        if small is not value:
            fields[name] = small
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields and "num_key_value_heads" not in own:
        fields["num_key_value_heads"] = fields["num_attention_heads"]  # latent attention has a head for each
    return fields


def _small(name: str, value: Any, vocabulary: int) -> Any:
    if name == "per_layer_config":
        return None
    if name == "forced_eos_token_id":
        return None if value is None else END
    if name in _IDS:
        return _IDS[name]
    if re.search(r"(token_id|token_index)$", name) and isinstance(value, int):
        return min(value, vocabulary - 1)
    if name == "rope_parameters" and isinstance(value, dict):
        return _rope(value)
    if isinstance(value, bool):
        return value
    if value is None and name in _ABSENT:
        return _ABSENT[name]
    if isinstance(value, int):
        return _number(name, value, vocabulary)
    if isinstance(value, list | tuple) and len(value) > BLOCKS:
        return _list(name, list(value), vocabulary)
    return value


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Plain rotary positions: what a type adds for long contexts is of no interest at 256 tokens."""
    if parameters and all(isinstance(each, dict) for each in parameters.values()):
        return {kind: _rope(each) for kind, each in parameters.items()}
    kept = {key: value for key, value in parameters.items() if key in ("rope_theta", "partial_rotary_factor")}
    return {"rope_type": "default", "rope_theta": 10000.0, **kept}


def _number(name: str, value: int, vocabulary: int) -> int:
    if re.search(r"(^|_)vocab_size(_per_layer_input)?$", name) and value > 300:
        return vocabulary
    for pattern, size in _NUMBERS:
        if re.search(pattern, name):
            return min(value, size)
    return value


def _list(name: str, values: list[Any], vocabulary: int) -> list[Any]:
    """Of a list with an entry for each block, one for each of four, with all kinds among them."""
    if all(isinstance(value, int) for value in values):
        if values == sorted(set(values)):  # numbers of blocks
            return [value for value in values if value < BLOCKS] or [1]
        return [_number(name, value, vocabulary) for value in values[:BLOCKS]]
    if not all(isinstance(value, str) for value in values):
        return values[:BLOCKS] if len(values) > 2 * BLOCKS else values
    return list(islice(cycle(dict.fromkeys(values)), BLOCKS))


def random_model(config: Any, seed: int = 0) -> Any:
    """A model in evaluation mode, whose next token depends on what came before.

    Raises:
        ValueError: If no scale of the weights makes it so, or it is not tiny.
    """
    import torch
    from transformers import AutoModelForCausalLM

    found = 0.0
    for scale in (0.15, 0.3, 0.6):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        if (weights := sum(weight.numel() for weight in model.parameters())) > MOST:
            raise ValueError(f"its tiny configuration makes {weights:,} weights: its fields need numbers of their own")
        with torch.no_grad():
            for weight in matrices(model):
                if 0 < (spread := float(weight.std())) < scale:
                    weight.mul_(scale / spread)
        found = dependence(model)
        if found > 0.02:
            return model
    raise ValueError(f"its logits do not depend on the context (by {found:.2g} of their spread)")


def matrices(model: Any) -> Iterator[Any]:
    for weight in model.parameters():
        if weight.dim() > 1 and weight.is_floating_point():
            yield weight


def dependence(model: Any) -> float:
    """By what share of their spread the logits change with a token some way back."""
    import torch

    ids = torch.arange(10, 22)[None].repeat(2, 1)
    ids[1, 4] = 30
    with torch.no_grad():
        one, other = (model(input_ids=row[None]).logits[0, -1].float() for row in ids)
    share = float((one - other).norm() / (one - one.mean()).norm())
    return share if share == share else 0.0
