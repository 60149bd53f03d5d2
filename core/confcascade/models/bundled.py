"""The models that come with the package: where their weights lie, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from confcascade.models.local import TransformersModel
    from confcascade.models.memory import MemoryBound

__all__ = ["SIZES", "WEIGHTS", "bundled_folder", "bundled_model"]

SIZES = ("small", "medium", "large")
WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"


def bundled_folder(size: str) -> Path:
    """Where a bundled model lies, with its probe in ``probe``.

    Raises:
        ConfigurationError: For any size but "small", "medium" and "large".
    """
    if size not in SIZES:
        raise ConfigurationError(f"The bundled models are {', '.join(SIZES)}. Got '{size}'.")
    return WEIGHTS / size


def bundled_model(size: str, memory: MemoryBound | None = None) -> TransformersModel:
    """The bundled model called "small", "medium" or "large".

    Args:
        size: Which.
        memory: A bound that it is loaded within, when it is first asked; by default it is loaded at once.
    """
    from confcascade.models.local import OnDemandModel, TransformersModel

    folder, options = bundled_folder(size), {"name": size, "max_new_tokens": 64, "batch_size": 64}
    if memory is not None:
        return OnDemandModel(folder, memory=memory, **options)  # type: ignore[arg-type]
    return TransformersModel.from_pretrained(folder, **options)  # type: ignore[arg-type]
