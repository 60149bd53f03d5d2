"""Adapters in PEFT's form: low-rank changes of a base model's layers, in a folder of their own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from confcascade.errors import ConfigurationError, require

__all__ = ["base_of", "is_adapter", "with_adapter"]

_CONFIG = "adapter_config.json"


def is_adapter(place: str | Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    folder = Path(place).expanduser()
    return (folder / _CONFIG).is_file() and not (folder / "config.json").exists()


def base_of(adapter: str | Path) -> str:
    """The base model that an adapter's folder names.

    Raises:
        ConfigurationError: If it names none, or a folder that is not there.
    """
    folder = Path(adapter).expanduser()
    base = _settings(folder).get("base_model_name_or_path")
    if not base:
        raise ConfigurationError(
            f"The adapter '{adapter}' does not say which base it was made for. Load the base, with `adapter=` this."
        )
    beside = folder / base
    if not Path(base).exists() and beside.exists():
        return str(beside)
    if Path(base).is_absolute() and not Path(base).exists():
        raise ConfigurationError(
            f"The adapter '{adapter}' was made for the base '{base}', which is not there. "
            "Load the base from where it is, with `adapter=` this."
        )
    return str(base)


def with_adapter(model: Any, tokenizer: Any, adapter: str | Path, *, base: str | Path) -> tuple[Any, Any]:
    """The model with an adapter's layers in it, not merged, and the adapter's tokenizer if it brings one.

    Args:
        model: The base; changed.
        tokenizer: The base's.
        adapter: A folder, or a name on the hub.
        base: The base's name, for errors.

    Raises:
        MissingExtraError: Without peft.
        ConfigurationError: If it is no adapter, one that does not change layers, or one for another base.
    """
    peft = require("peft", "local")
    import transformers

    folder = Path(adapter).expanduser()
    place = str(folder) if folder.exists() else str(adapter)
    if folder.is_dir() and not (folder / _CONFIG).is_file():
        raise ConfigurationError(f"'{adapter}' is not an adapter: it has no {_CONFIG}.")
    try:
        config = peft.PeftConfig.from_pretrained(place)
        weights = peft.load_peft_weights(place, device="cpu")
    except Exception as error:  # of the hub, of safetensors, of JSON
        raise ConfigurationError(
            f"No adapter can be read from '{adapter}' ({type(error).__name__}). Give a folder with {_CONFIG} and "
            "adapter_model.safetensors, or the name of one on the hub."
        ) from error
    if config.is_prompt_learning:
        raise ConfigurationError(
            f"The adapter '{adapter}' is of the type {config.peft_type.value}, which writes into the prompt. "
            "Adapters that change layers can be used, such as LoRA."
        )
    if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would do nothing
            adapted = peft.PeftModel.from_pretrained(model, place, config=config)
        taken = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if spare := [name for name in weights if ".lora_" in name and name not in taken]:
            raise ValueError(f"{len(spare)} weights of layers that the base does not have")  # noqa: TRY301
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        made_for = config.base_model_name_or_path
        raise ConfigurationError(
            f"The adapter '{adapter}' does not fit the base '{base}'"
            f"{f': it was made for {made_for!r}' if made_for else ''}. Load the base that it was trained on."
        ) from error
    return adapted.get_base_model(), tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The adapter's file '{folder / _CONFIG}' cannot be read as JSON.") from error
    return settings
