"""Loading a checkpoint, so that what cannot be used is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from confcascade.errors import ConfigurationError, require

__all__ = ["load"]


def load(
    name_or_path: str | Path,
    *,
    device: str | None,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    **loading: Any,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    The arguments are those of `TransformersModel.from_pretrained`.

    Raises:
        MissingExtraError: Without torch and transformers.
        ConfigurationError: If nothing can be loaded from there, or weights are missing.
    """
    torch = require("torch", "local")
    transformers = require("transformers", "local")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        common = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(name_or_path), **common)
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            str(name_or_path), dtype=dtype, output_loading_info=True, **common, **loading
        )
    except (OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"No causal language model can be loaded from '{name_or_path}': {why} "
            "Give a folder with config.json, weights and tokenizer, or the name of one on the hub."
        ) from error
    if absent := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        raise ConfigurationError(
            f"The checkpoint '{name_or_path}' lacks {len(absent)} of the model's weights, such as {absent[0]}, and "
            "transformers would fill them with random numbers. Save or download it again."
        )
    if device == "cpu" and model.dtype == torch.float16:
        model = model.float()  # half precision is slow on most CPUs, and some operations lack it
    return model.to(device).eval(), tokenizer
