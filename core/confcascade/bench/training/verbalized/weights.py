"""Which weights are trained: those of a LoRA, or all; and their folders."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confcascade.errors import ConfigurationError, require
from confcascade.models.local import TransformersModel

__all__ = ["Weights"]


class Weights:
    """The trainable weights of a local model, which answers with them as they are at any time.

    Args:
        model: Changed: with a LoRA, its layers are put into it; without, its own weights are trained.
        base: Where the model was loaded from, for who loads the adapter later; "" if that is unknown.
        rank: Of the LoRA, on all linear layers; 0 trains all weights.

    Raises:
        MissingExtraError: Without peft.
        ConfigurationError: If the model already has an adapter, or quantised weights and no LoRA is wanted.
    """

    def __init__(self, model: TransformersModel, *, base: str = "", rank: int = 16) -> None:
        if any(".lora_" in name for name, _ in model.model.named_parameters()):
            raise ConfigurationError(
                f"Model '{model.name}' has an adapter already. Merge it into its weights before training another."
            )
        if rank == 0 and getattr(model.model, "quantization_method", None) is not None:
            raise ConfigurationError(f"The weights of '{model.name}' are quantised: train a LoRA, with a rank above 0.")
        self.rank = rank
        self.base = base
        self._model = model
        self._peft: Any = None
        configs = (model.model.config, model.model.generation_config)
        self._configs = [(each, copy.deepcopy(vars(each))) for each in configs]

    @property
    def tokenizer(self) -> Any:
        """One that a trainer may change."""
        return copy.deepcopy(self._model.tokenizer)

    def fresh(self) -> Any:
        """What a trainer trains, untrained: with a LoRA a model of peft."""
        if not self.rank:
            return self._model.model.requires_grad_(True)
        peft = require("peft", "local")
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=2 * self.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self._leave()
        self._peft = peft.get_peft_model(self._model.model, config)
        self._peft.peft_config["default"].base_model_name_or_path = self.base or None
        return self._peft

    def load(self, folder: Path) -> Any:
        """What a trainer trains, with the weights of a folder."""
        if self.rank:
            peft = require("peft", "local")
            self._leave()
            self._peft = peft.PeftModel.from_pretrained(self._model.model, str(folder), is_trainable=True)
            return self._peft
        from safetensors.torch import load_model

        load_model(self._model.model, folder / "model.safetensors", device=str(self._model.model.device))
        self._model.model.config._name_or_path = str(folder)  # whence TRL takes the reference of its KL penalty
        return self._model.model.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """The adapter, or the model with its tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        with _no_bars():
            if self.rank:
                self._peft.save_pretrained(folder, selected_adapters=["default"])
                return
            self._model.model.save_pretrained(folder)
            self._model.tokenizer.save_pretrained(folder)

    def asked(self, name: str) -> TransformersModel:
        """The model that answers with the weights as they are now."""
        self._restore()
        return self._model.with_options(name=name)

    def _restore(self) -> None:
        """The model's configuration, in which trainers switch caches off and change tokens."""
        for config, loaded in self._configs:
            vars(config).update(copy.deepcopy(loaded))

    def _leave(self) -> None:
        if self._peft is not None:
            self._peft.unload()
            self._peft = None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' own, which would tear the command's apart."""
    logging = require("transformers.utils.logging", "local")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
