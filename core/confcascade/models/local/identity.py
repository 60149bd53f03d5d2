"""What a local model is: the numbers that decide its compute, and what its hidden states hang on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from confcascade.cost import Architecture

__all__ = ["architecture_of", "fingerprint_of"]


def architecture_of(model: Any) -> Architecture:
    """The numbers of a `transformers` model that decide its compute."""
    config = model.config.get_text_config(decoder=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:  # an input embedding is looked up, not multiplied
        parameters -= model.get_input_embeddings().weight.numel()
    return Architecture(parameters, config.num_hidden_layers, config.hidden_size)


def fingerprint_of(model: Any, tokenizer: Any, template_options: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of all that a model's hidden states hang on.

    Configuration (with its quantisation), precision, chat template with its options, and a sample of the weights,
    of a quantised model with those that are kept as buffers.
    """
    config = model.config.to_dict()
    for volatile in ("transformers_version", "_name_or_path"):
        config.pop(volatile, None)
    described = [
        json.dumps(config, sort_keys=True, default=str),
        str(model.dtype),
        str(tokenizer.chat_template),
    ]
    if template_options:
        described.append(json.dumps(template_options, sort_keys=True, default=str))
    weights = list(model.parameters())
    if "quantization_config" in config:  # GPTQ and AWQ pack what they quantise into buffers
        weights += model.buffers()
    digest = hashlib.sha256("\n".join(described).encode())
    for weight in weights:  # the first 256 numbers of every tensor
        digest.update(weight.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
