"""What a local model is: all that its hidden states and greedy answers depend on, in twelve digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["SAMPLED", "digest_of_words", "fingerprint_of"]

SAMPLED = 256  # numbers of every tensor


def fingerprint_of(
    model: Any,
    tokenizer: Any,
    template_options: Mapping[str, Any],
    penalties: Mapping[str, Any],
    weights: Iterable[Any] | None = None,
) -> str:
    """Twelve hexadecimal digits of all that a model's hidden states and greedy answers depend on.

    Configuration (with its quantisation), precision, tokenizer, chat template with its options, the scales of adapters
    in use, what is penalised or forbidden in answers, and a sample of the weights, of a quantised model with those that
    are kept as buffers. To be taken after a first pass: in it, bitsandbytes packs weights anew.

    Args:
        model: A `transformers` model.
        tokenizer: Its tokenizer.
        template_options: Further arguments of its chat template.
        penalties: What of its generation_config changes greedy answers.
        weights: At least the first `SAMPLED` numbers of each of its weights, where it has none itself.
    """
    config = model.config.to_dict()
    for volatile in ("transformers_version", "_name_or_path"):
        config.pop(volatile, None)
    described = [
        json.dumps(config, sort_keys=True, default=str),
        str(model.dtype),
        str(tokenizer.chat_template),
        _words(tokenizer),
    ]
    if template_options:
        described.append(json.dumps(template_options, sort_keys=True, default=str))
    if penalties:
        described.append(json.dumps(penalties, sort_keys=True, default=str))
    if scales := _scales(model):
        described.append(json.dumps(scales))
    digest = hashlib.sha256("\n".join(described).encode())
    for weight in _weights(model, packed="quantization_config" in config) if weights is None else weights:
        digest.update(_first_numbers(weight))
    return digest.hexdigest()[:12]


def digest_of_words(tokenizer: Any) -> str:
    """Twelve hexadecimal digits of how text becomes tokens."""
    return hashlib.sha256(_words(tokenizer).encode()).hexdigest()[:12]


def _words(tokenizer: Any) -> str:
    """How text becomes tokens: normalizer, added tokens, vocabulary, merges; without how a call last padded or cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one written in Python
        return json.dumps([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.get_added_vocab().items())])
    whole: str = backend.to_str()
    head, mark, rest = whole.partition('"added_tokens":')  # truncation and padding stand before
    return mark + rest if mark else head


def _scales(model: Any) -> list[list[float]]:
    """By what PEFT's layers multiply what they add, layer by layer: it is in none of their weights."""
    return [
        [] if module.disable_adapters else [float(scaling[name]) for name in module.active_adapters if name in scaling]
        for module in model.modules()
        if isinstance(scaling := getattr(module, "scaling", None), dict) and hasattr(module, "active_adapters")
    ]


def _weights(model: Any, *, packed: bool) -> Iterator[Any]:
    """All weights; of a model that is packed, with buffers, in which GPTQ and AWQ keep theirs."""
    offloaded = {}
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_meta:
                offloaded[f"{path}.{name}" if path else name] = _kept_elsewhere(module, name)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, weight in model.named_parameters():
        if not (name in offloaded and name in tied):  # offloading gives what is tied two tensors
            yield offloaded.get(name, weight)
    if packed:
        yield from model.buffers()


def _kept_elsewhere(module: Any, name: str) -> Any:
    """A weight that accelerate brings from memory or disk for each pass."""
    hook = getattr(module, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        if (kept := getattr(each, "weights_map", None)) is not None:
            return kept[name]
    raise NotImplementedError(f"weight '{name}' of {type(module).__name__} is on no device")


def _first_numbers(weight: Any) -> bytes:
    """Of a tensor, or of the tensors that a packed one is made of."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    weight = weight.detach()
    if is_traceable_wrapper_subclass(weight):
        names, _ = weight.__tensor_flatten__()
        return b"".join(_first_numbers(getattr(weight, name)) for name in names)
    numbers: bytes = weight.flatten()[:SAMPLED].float().cpu().numpy().tobytes()
    return numbers
