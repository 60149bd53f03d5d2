"""What a checkpoint says of a model without its weights: blocks, sizes, tokenizer, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confcascade.errors import ConfigurationError, require
from confcascade.models.local.compute import MultipliedWeights
from confcascade.models.local.decoder import Capture
from confcascade.models.local.loading import chosen_device, chosen_dtype, refused

__all__ = ["Outline", "UntriedDecoder", "outlined"]

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
        return sum(each.nelement() for each in self._model.parameters()) * int(self.dtype.itemsize)


class UntriedDecoder:
    """What a `Decoder` knows of a model, as far as it can be known without weights.

    Args:
        model: Without weights.
        config: Of its decoder.

    Attributes:
        blocks: As of `Decoder`.
        multiplied: Likewise; 0 where only a pass with weights can tell, as where tokens choose among experts.
        batches: That is not known before a trial.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self.blocks, self.multiplied = _passed(model, config)
        self.batches = True
        self.separable = self.shares = False
        self.extends = True


def outlined(
    place: str | Path, *, device: str | None, dtype: Any, revision: str | None, trust_remote_code: bool
) -> tuple[Outline, Any]:
    """A model without weights, and its tokenizer.

    Args:
        place: A folder, or a name on the hub.
        device: As of `TransformersModel.from_pretrained`, as are the others.
        dtype: Likewise.
        revision: Likewise.
        trust_remote_code: Likewise.

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
    model.config._name_or_path = str(place)
    return Outline(model, torch.device(device), dtype), tokenizer


def _generation_config(place: str, common: dict[str, Any]) -> Any:
    """What the checkpoint says of generating; None if it says nothing."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(place, **common)
    except OSError:
        return None


def _passed(model: Any, config: Any) -> tuple[Sequence[Any], int]:
    """The blocks, and the weights that a token is multiplied with, by a pass over one token that has no numbers."""
    import torch
    from torch.nn import ModuleList

    lists = [each for each in model.modules() if isinstance(each, ModuleList) and len(each) == config.num_hidden_layers]
    captures = [Capture(blocks, whole=True) for blocks in lists]
    weights = MultipliedWeights(model, None)
    ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
    for capture in captures:
        capture.__enter__()
    try:
        with torch.inference_mode(), weights:
            model(input_ids=ids)
    except Exception:  # whatever looks at numbers: where tokens are sent to experts, say
        return (lists[0] if lists else ()), 0
    finally:
        for capture in captures:
            capture.__exit__()
    shape = (1, 1, config.hidden_size)
    fit = [each.blocks for each in captures if all(getattr(state, "shape", None) == shape for state in each.states)]
    return (fit[0] if fit else ()), weights.count
