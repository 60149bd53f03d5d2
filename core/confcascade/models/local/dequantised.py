"""GGUF files through transformers' dequantising loader; the result is kept, because making it takes half a minute."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias

from confcascade.errors import ConfigurationError, require
from confcascade.models.gguf import GgufFile, model_name

__all__ = ["GgufCache", "dequantised", "load_gguf"]

GgufCache: TypeAlias = str | Path | Literal[False] | None

_log = logging.getLogger("confcascade")
_VARIABLE = "CONFCASCADE_GGUF_CACHE"
# where llama.cpp ends an answer, whatever the file calls its end of text
_TURN_ENDS = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"]
_TURN_ENDS += ["<|return|>", "<|call|>", "<EOT>", "[EOT]", "</s>", "<eos>", "<end_of_utterance>"]


def load_gguf(path: Path, *, dtype: Any, cache: GgufCache, **loading: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The model of a GGUF file with plain weights, its tokenizer, and what transformers says of the loading.

    Args:
        path: The file.
        dtype: Of the weights, a `torch.dtype`; "auto" is float32.
        cache: The folder in which results are kept; by default ``CONFCASCADE_GGUF_CACHE``, or
            ``~/.cache/confcascade/gguf``. False, or "off" in the variable, keeps nothing.
        **loading: Further arguments of ``from_pretrained``, such as `device_map`.

    Raises:
        MissingExtraError: Without accelerate and gguf.
        ConfigurationError: If the file cannot be read, or transformers has no way to take it.
    """
    require("transformers", "local")
    torch = require("torch", "local")
    require("accelerate", "local")
    require("gguf", "local")
    file = GgufFile(path)
    _check(file)
    dtype = torch.float32 if dtype == "auto" else dtype
    kept = _kept_folder(file, dtype, cache)
    if kept and (kept / "config.json").exists():
        _log.info("'%s' was dequantised before: %s", path.name, kept)
        return _kept(kept, dtype, loading)
    where = f"kept in {kept} for the next load" if kept else f"not kept ({_VARIABLE} or `gguf_cache` names a folder)"
    _log.warning("Dequantising '%s' (%s). This takes a while; the result is %s.", path.name, _mb(file.size), where)
    model, tokenizer, told = _dequantise(path, dtype, {} if kept else loading)
    _end_turns(model, tokenizer, file)
    if kept is None or told["missing_keys"] or told["mismatched_keys"] or not _keep(kept, model, tokenizer, path):
        return model, tokenizer, told
    return _kept(kept, dtype, loading) if loading else (model, tokenizer, told)


def dequantised(path: Path, *, dtype: Any, cache: GgufCache) -> Path:
    """The folder in which the dequantised weights of a GGUF file are kept; they are made if it is not there.

    Args:
        path: The file.
        dtype: As of `load_gguf`.
        cache: Likewise.

    Raises:
        MissingExtraError: Likewise.
        ConfigurationError: Likewise, and if nothing can be kept.
    """
    import torch

    require("gguf", "local")
    file, wanted = GgufFile(path), torch.float32 if dtype == "auto" else dtype
    kept = _kept_folder(file, wanted, cache)
    if kept is not None and not (kept / "config.json").exists():
        load_gguf(path, dtype=dtype, cache=cache)
    if kept is None or not (kept / "config.json").exists():
        raise ConfigurationError(
            f"The dequantised weights of '{path.name}' are not kept, and dequantising them at every load would take "
            f"too long. Name a folder with room for them by {_VARIABLE} or `gguf_cache`."
        )
    return kept


def _kept(folder: Path, dtype: Any, loading: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, output_loading_info=True, **loading
    )
    return model, transformers.AutoTokenizer.from_pretrained(str(folder)), told


def _check(file: GgufFile) -> None:
    """Refuse what transformers would load as something else, or not at all."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    instead = f"Use llama.cpp, which reads it in this process: llamacpp:{file.path}"
    # its words for them differ from llama.cpp's, "qwen2_moe" for "qwen2moe"
    known = {_plain(name) for name in GGUF_SUPPORTED_ARCHITECTURES} | _newer_architectures()
    if _plain(file.architecture_name) not in known:
        raise ConfigurationError(
            f"transformers cannot dequantise the architecture '{file.architecture_name}' of '{file.path.name}'. "
            f"{instead}"
        )
    if len(file.parts) > 1:
        raise ConfigurationError(
            f"transformers cannot read a GGUF model in {len(file.parts)} files ('{file.path.name}'). {instead} "
            "(or merge them with llama.cpp's llama-gguf-split)"
        )
    last = max(file.tensors, key=lambda tensor: tensor.offset)
    per_block, bytes_per_block = GGML_QUANT_SIZES[GGMLQuantizationType(last.kind)]
    if last.offset + last.size // per_block * bytes_per_block > file.size:
        raise ConfigurationError(f"The GGUF file '{file.path}' is cut off in its last tensor. Download it again.")
    scaled = file.of_model("rope.scaling.type", "none") != "none" or file.of_model("rope.scaling.factor", 1.0) != 1.0
    if scaled or any(tensor.name.startswith(("rope_freqs", "rope_factors")) for tensor in file.tensors):
        raise ConfigurationError(
            f"'{file.path.name}' scales its rotary positions, and transformers drops that when it reads a GGUF: the "
            f"answers would be another model's. {instead}"
        )


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "")


def _newer_architectures() -> set[str]:
    """Those that transformers from 5.23 on reads by its second loader."""
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        return set()
    return set(map(_plain, GGUF_CONFIG_ARCHS))


def _dequantise(path: Path, dtype: Any, loading: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    import transformers

    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if config := getattr(transformers, "GgufConfig", None):  # else some architectures stay packed
        loading = {"quantization_config": config(dequantize=True), **loading}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        **place, dtype=dtype, output_loading_info=True, **loading
    )
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:  # its weights are plain by now
        quantizer.remove_quantization_config(model)
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.architectures = [type(model).__name__]  # as saving writes it: kept or not, one fingerprint
    return model, tokenizer, told


def _end_turns(model: Any, tokenizer: Any, file: GgufFile) -> None:
    """Answers end where llama.cpp ends them: a chat model's file often names its end of text only."""
    known = tokenizer.get_vocab()
    named = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ends = {*named, *(known[text] for text in _TURN_ENDS if text in known and text in special)} - {None}
    if ends and model.generation_config is not None:
        model.generation_config.eos_token_id = sorted(ends)


# ---------------------------------------------------------------------- keeping


def _folder(cache: GgufCache) -> Path | None:
    """Where results are kept; None to keep nothing."""
    if cache is None:
        cache = os.environ.get(_VARIABLE) or None
    if cache is False or cache == "off":
        return None
    if cache is not None:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confcascade" / "gguf"


def _kept_folder(file: GgufFile, dtype: Any, cache: GgufCache) -> Path | None:
    """Where the result for a file is kept; None to keep nothing."""
    import transformers

    folder = _folder(cache)
    return folder and folder / f"{model_name(file.path)}-{file.digest}-{_suffix(dtype, transformers)}"


def _suffix(dtype: Any, transformers: Any) -> str:
    """What else decides the result: a later transformers may read a file better."""
    return f"{str(dtype).removeprefix('torch.')}-transformers-{transformers.__version__}"


def _keep(folder: Path, model: Any, tokenizer: Any, path: Path) -> bool:
    """Save the model into `folder`, all of it or nothing; False, with a warning, if that failed."""
    making: str | None = None
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder.parent).free) < needed + 2**28:
            raise OSError(f"it needs {_mb(needed)}, and {_mb(free)} are free")  # noqa: TRY301
        making = tempfile.mkdtemp(prefix=".making-", dir=folder.parent)
        model.save_pretrained(making)
        tokenizer.save_pretrained(making)
        (Path(making) / "source.json").write_text(json.dumps({"gguf": str(path.resolve())}))
        os.rename(making, folder)
        making = None
    except OSError as error:
        if not (folder / "config.json").exists():  # else another process was quicker
            _log.warning("The dequantised '%s' cannot be kept in %s: %s.", path.name, folder, error)
            return False
    finally:
        if making is not None:
            shutil.rmtree(making, ignore_errors=True)
    return True


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
