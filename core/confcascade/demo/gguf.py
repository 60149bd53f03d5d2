"""A bundled model as a GGUF file: ``python -m confcascade.demo.gguf SIZE --out FILE``, for llama.cpp and its kin.

llama.cpp's own converter knows tokenizers by a hash of what they do, and refuses one made at home.  The bundled
models need no such list: they are Llamas with a byte-level BPE that splits words as Qwen2 does.

Weights are written in float32, so that a server answers as `TransformersModel` does, but for the last digits.  One
thing differs: a reply begins with a space, which the tokenizer's decoder takes away and llama.cpp shows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from confcascade.demo.lessons import SPLIT
from confcascade.errors import ConfigurationError, MissingExtraError
from confcascade.models.bundled import SIZES, WEIGHTS

__all__ = ["write_gguf"]


def write_gguf(folder: str | Path, out: str | Path) -> None:
    """Write the model in `folder` to the file `out`.

    Args:
        folder: A Llama as `train` saves it: weights, configuration, tokenizer and chat template.
        out: A file in an existing folder; overwritten.

    Raises:
        MissingExtraError: Without the package `gguf`.
        ConfigurationError: If the model is no Llama with one RoPE frequency, or its tokenizer not of `train`'s kind.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("`gguf` is needed here and cannot be imported. Run: pip install gguf") from error
    import numpy as np
    from safetensors.numpy import load_file

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise ConfigurationError(
            f"Only a Llama with plain RoPE can be written. Got model type '{config['model_type']}' "
            f"with RoPE of type '{rope.get('rope_type')}' in '{folder}'."
        )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, folder, config)

    names: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, stored in load_file(folder / "model.safetensors").items():
        tensor = stored.astype(np.float32)
        if name.endswith("q_proj.weight"):
            tensor = _interleaved(tensor, heads)
        elif name.endswith("k_proj.weight"):
            tensor = _interleaved(tensor, kv_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    from gguf import TokenType

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    parts = (tokenizer["pre_tokenizer"] or {}).get("pretokenizers") or [{}]
    split = (parts[0].get("pattern") or {}).get("Regex")
    if tokenizer["model"]["type"] != "BPE" or split != SPLIT:
        raise ConfigurationError(
            f"Only a BPE that splits words as the bundled models' can be written; that in '{folder}' does not."
        )
    size = config["vocab_size"]
    texts = [f"<|unused_{i}|>" for i in range(size)]  # of rows that pad the embedding and are no token
    types = [TokenType.UNUSED] * size
    for text, i in tokenizer["model"]["vocab"].items():
        texts[i], types[i] = text, TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        texts[token["id"]], types[token["id"]] = token["content"], TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for a byte-level BPE
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows of a projection (heads * head_dim, hidden) in the order of llama.cpp's RoPE, whose pairs are neighbours.

    `transformers` turns the first half of a head against the second.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a bundled model as GGUF, for llama.cpp.")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_gguf(WEIGHTS / arguments.size, arguments.out)


if __name__ == "__main__":
    main()
