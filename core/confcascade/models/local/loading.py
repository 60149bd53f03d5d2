"""Loading a checkpoint, so that what cannot be used is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from confcascade.errors import ConfigurationError, MissingExtraError, require
from confcascade.models.gguf import find_gguf, is_gguf
from confcascade.models.local.adapters import base_of, is_adapter, with_adapter
from confcascade.models.local.dequantised import GgufCache, load_gguf

__all__ = ["DeviceMap", "Quantization", "chosen_device", "chosen_dtype", "gguf_in", "load", "refused"]

DeviceMap: TypeAlias = str | Mapping[str, Any] | None
Quantization: TypeAlias = Literal["8bit", "4bit"] | None

_LONGEST = 300  # characters of what another library says


def load(
    name_or_path: str | Path,
    *,
    device: str | None,
    dtype: Any,
    revision: str | None,
    trust_remote_code: bool,
    adapter: str | Path | None = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    gguf_cache: GgufCache = None,
    **loading: Any,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    The arguments are those of `TransformersModel.from_pretrained`.

    Raises:
        MissingExtraError: Without torch and transformers, or what a way of loading needs.
        ConfigurationError: If nothing can be loaded from there, or weights are missing.
    """
    torch = require("torch", "local")
    require("transformers", "local")
    dtype = chosen_dtype(dtype)
    if device_map is not None:
        if device is not None:
            raise ConfigurationError("`device` and `device_map` exclude each other: the map says where each part runs.")
        require("accelerate", "local")
        loading["device_map"] = device_map
    else:
        device = chosen_device(device)
    if quantization is not None:
        loading["quantization_config"] = _quantized(quantization, loading, dtype, device)
        if device is not None:
            loading["device_map"] = {"": device}
    if adapter is None and is_adapter(name_or_path):
        adapter, name_or_path = name_or_path, base_of(name_or_path)
    common = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        model, tokenizer = _checkpoint(name_or_path, dtype, gguf_cache, common, loading)
        if adapter is not None:
            model, tokenizer = with_adapter(model, tokenizer, adapter, base=name_or_path)
        if model.dtype == torch.float16 and _on_cpu(model, device):
            model = model.float()  # half precision is slow on most CPUs, and some operations lack it
        if device is not None and not _placed(model):
            model = model.to(device)
        return model.eval(), tokenizer
    except ConfigurationError:
        raise
    except Exception as error:  # of transformers, torch, safetensors, and what they call
        raise refused(name_or_path, error, loading) from error


def refused(place: str | Path, error: Exception, loading: Mapping[str, Any]) -> ConfigurationError:
    """What another library's error about a checkpoint means, and what to do."""
    return ConfigurationError(
        f"No causal language model can be loaded from '{place}': {_said(error)} {_remedy(error, loading)}"
    )


# ---------------------------------------------------------------------- the checkpoint


def _checkpoint(
    name_or_path: str | Path, dtype: Any, cache: GgufCache, common: dict[str, Any], loading: dict[str, Any]
) -> tuple[Any, Any]:
    import transformers

    loading = dict(loading)
    if (path := gguf_in(name_or_path, loading.pop("gguf_file", None), common["revision"])) is not None:
        model, tokenizer, told = load_gguf(path, dtype=dtype, cache=cache, **loading)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(name_or_path), **common)
        loading["ignore_mismatched_sizes"] = True  # they are refused below, by name
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            str(name_or_path), dtype=dtype, output_loading_info=True, **common, **loading
        )
    if other := sorted(told["mismatched_keys"]):
        name, stored, wanted = other[0]
        raise ConfigurationError(
            f"{len(other)} weights of the checkpoint '{name_or_path}' do not have the shapes of its config.json, such "
            f"as {name}: {tuple(stored)} instead of {tuple(wanted)}. Save or download it again."
        )
    if absent := sorted(map(str, told["missing_keys"])):
        raise ConfigurationError(
            f"The checkpoint '{name_or_path}' lacks {len(absent)} of the model's weights, such as {absent[0]}, and "
            "transformers would fill them with random numbers. Save or download it again."
        )
    return model, tokenizer


def gguf_in(place: str | Path, named: str | None = None, revision: str = "main") -> Path | None:
    """The GGUF file that is meant; None if it is none."""
    path = Path(place).expanduser()
    if named is None:
        return path if is_gguf(path) else find_gguf(path)
    if (path / named).is_file() or path.is_dir():
        return path / named
    from transformers.utils import cached_file

    return Path(cached_file(str(place), named, revision=revision))


# ---------------------------------------------------------------------- what was asked for


def chosen_dtype(dtype: Any) -> Any:
    """The `torch.dtype` of that name; "auto" stays."""
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return dtype if dtype == "auto" else found
    raise ConfigurationError(f'`dtype` must be "auto", "float32", "bfloat16" or "float16". Got {dtype!r}.')


def chosen_device(device: str | None) -> str:
    """The same, if this machine has it; by default a GPU if there is one."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if torch.device(device).type == "meta":
            raise ValueError("it holds no weights")  # noqa: TRY301
        torch.empty(1, device=device).fill_(0)
    except Exception as error:
        raise ConfigurationError(
            f'`device="{device}"` cannot be used here: {_said(error)} '
            "Leave it out for a GPU if there is one, else the CPU."
        ) from error
    return device


def _quantized(quantization: str, loading: Mapping[str, Any], dtype: Any, device: str | None) -> Any:
    """transformers' words for weights in fewer bits."""
    import torch
    import transformers

    if quantization not in ("8bit", "4bit"):
        raise ConfigurationError(f'`quantization` must be "8bit" or "4bit". Got {quantization!r}.')
    if "quantization_config" in loading:
        raise ConfigurationError("`quantization` and `quantization_config` exclude each other.")
    require("accelerate", "local")
    try:
        require("bitsandbytes", "quantized")
    except MissingExtraError as error:
        raise MissingExtraError(f'`quantization="{quantization}"`: {error}') from error
    if quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    computing = dtype if dtype != "auto" else torch.float32 if device == "cpu" else torch.bfloat16
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computing
    )


def _placed(model: Any) -> bool:
    """Whether its parts have their places already, by a device map or a quantised checkpoint's own rules."""
    return bool(getattr(model, "hf_device_map", None)) or bool(getattr(model, "is_quantized", False))


def _on_cpu(model: Any, device: str | None) -> bool:
    """Whether all of a model with plain weights runs on the CPU."""
    there = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return there and device in ("cpu", None) and not getattr(model, "is_quantized", False)


# ---------------------------------------------------------------------- what was said


def _said(error: Exception) -> str:
    """What an error says, as the beginning of one line that ends with a full stop."""
    text = " ".join(str(error).split()).partition(" Model type should be one of ")[0] or type(error).__name__
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} ..."
    named = text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
    return named if named.endswith((".", "...")) else f"{named}."


def _remedy(error: Exception, loading: Mapping[str, Any]) -> str:
    """What to do about an error, by its kind."""
    import torch

    kind = type(error)
    if kind.__name__ == "SafetensorError" or kind.__module__.startswith(("pickle", "zipfile")):
        return "A file of weights is cut off or damaged: download or save it again."
    if isinstance(error, ImportError):
        return "Install what it names, or leave out the argument that asks for it."
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return 'Use `dtype="bfloat16"`, `quantization="4bit"`, `device_map="auto"` or a smaller model.'
    if isinstance(error, OSError) or not loading:
        return "Give a folder with config.json, weights and tokenizer, a GGUF file, or the name of one on the hub."
    return f"Check the arguments of loading: {', '.join(f'`{name}`' for name in loading)}."
