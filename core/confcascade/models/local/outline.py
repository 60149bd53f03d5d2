"""What a checkpoint says of a model without its weights: blocks, sizes, tokenizer, settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from confcascade.errors import ConfigurationError, require
from confcascade.models.local.compute import MultipliedWeights
from confcascade.models.local.decoder import Capture
from confcascade.models.local.identity import SAMPLED
from confcascade.models.local.loading import chosen_device, chosen_dtype, refused
from confcascade.models.local.stopping import RowArguments

__all__ = ["Outline", "UntriedDecoder", "load_outline", "stored_samples"]

_WEIGHTS = ("*.safetensors", "*.bin")


class Outline:
    """A `transformers` model without weights, which says of itself what it would say with them.

    Args:
        model: On the device "meta".
        device: Where it is going to compute.
        dtype: What its weights are going to be.
    """

    def __init__(self, model: Any, device: Any, dtype: Any) -> None:
        self._model = model
        self.device = device
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        """A pass in which there are shapes, and no numbers."""
        return self._model(**inputs)

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return int(sum(each.nelement() for each in self._model.parameters()) * self.dtype.itemsize)


class UntriedDecoder:
    """What a `Decoder` knows of a model, as far as it can be known without weights.

    Args:
        model: Without weights.
        config: Of its decoder.

    Attributes:
        blocks: As of `Decoder`.
        multiplied: Likewise; 0 where only a pass with weights can tell, as where tokens choose among experts.
        outside_blocks: Likewise.
        stops: As of `Decoder`.
        batches: Hoped for, as only a trial of the weights can show it.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self.blocks: Sequence[Any] = ()
        self.multiplied = self.outside_blocks = self.token_bytes = 0
        self.row_arguments = None
        self.stops = self.separable = self.shares = False
        self.batches = self.extends = True
        with suppress(Exception):  # whatever looks at numbers, and there are none
            self._pass(model, config)

    def _pass(self, model: Any, config: Any) -> None:
        """Read one token that has no numbers: shapes, and the way through the modules, are as ever."""
        import torch
        from torch.nn import ModuleList

        ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
        shape = (1, 1, config.hidden_size)
        for blocks in model.modules():
            if isinstance(blocks, ModuleList) and len(blocks) == config.num_hidden_layers and not self.blocks:
                called = RowArguments(blocks, 1)
                with torch.inference_mode(), Capture(blocks, whole=True) as captured, called:
                    model(input_ids=ids)
                if all(getattr(state, "shape", None) == shape for state in captured.states):
                    self.blocks, self.stops = blocks, called.in_turn
        with torch.inference_mode(), MultipliedWeights(model, None, self.blocks) as weights:
            model(input_ids=ids)
        self.multiplied, self.outside_blocks = weights.count, weights.outside


def load_outline(
    place: str | Path, *, device: str | None, dtype: Any, revision: str | None, trust_remote_code: bool
) -> tuple[Outline, Any]:
    """A model without weights, and its tokenizer.

    Args:
        place: A folder, or a name on the hub.

    The other arguments are those of `TransformersModel.from_pretrained`.

    Raises:
        MissingExtraError: Without torch and transformers.
        ConfigurationError: If no causal language model lies there.
    """
    torch, transformers = require("torch", "local"), require("transformers", "local")
    dtype, device = chosen_dtype(dtype), chosen_device(device)
    folder = Path(place).expanduser()
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise ConfigurationError(f"The folder '{place}' has no weights: neither *.safetensors nor *.bin.")
    common = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(place), **common)
        config = transformers.AutoConfig.from_pretrained(str(place), **common)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).eval()
        model.generation_config = _generation_config(str(place), common) or model.generation_config
    except Exception as error:  # of transformers, torch, and what they call
        raise refused(place, error, {}) from error
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
        if dtype == torch.float16 and device == "cpu":  # as `load` does
            dtype = torch.float32
    else:
        model.config.dtype = dtype
    model.config._name_or_path = str(place)
    return Outline(model, torch.device(device), dtype), tokenizer


def stored_samples(outline: Outline, place: str | Path, revision: str | None) -> list[Any] | None:
    """The first `SAMPLED` numbers of each weight, as they are once it is loaded, read from its files.

    None where that cannot be told: files that are not here or are not safetensors, and checkpoints whose weights are
    not stored one by one as the model has them, as of most mixtures.

    Args:
        outline: Of the model.
        place: Where it lies.
        revision: Branch, tag or commit on the hub.

    Raises:
        ConfigurationError: If a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    folder = _on_disk(place, revision)
    if folder is None or _is_converted(outline.config):
        return None
    found: dict[str, Any] = {}
    names = {name: weight.shape for name, weight in outline.named_parameters()}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in names.keys() & set(file.keys()):
                    stored = file.get_slice(name)
                    if tuple(stored.get_shape()) == tuple(names[name]):
                        found[name] = _beginning(stored).to(outline.dtype)
    except SafetensorError as error:
        raise refused(place, error, {}) from error
    return [found[name] for name in names] if found.keys() == names.keys() else None


def _beginning(stored: Any) -> Any:
    """The first numbers of a stored tensor: as few rows as have them, and no row longer than that."""
    shape = stored.get_shape()
    if len(shape) < 2:
        return stored[:SAMPLED] if shape else stored[...]
    row = math.prod(shape[1:])
    return stored[: -(-SAMPLED // row)]


def _on_disk(place: str | Path, revision: str | None) -> Path | None:
    """The folder of a checkpoint, also of one of the hub that was downloaded before."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), revision=revision, local_files_only=True))
    except Exception:  # it was not, or is no name of the hub
        return None


def _is_converted(config: Any) -> bool:
    """Whether transformers makes weights of this kind of model out of others; True where it does not tell."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # before transformers 5
        return True
    return get_checkpoint_conversion_mapping(config.model_type) is not None


def _generation_config(place: str, common: dict[str, Any]) -> Any:
    """What the checkpoint says of generating; None if it says nothing."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(place, **common)
    except OSError:
        return None
