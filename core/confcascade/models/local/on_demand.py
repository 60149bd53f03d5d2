"""A local model whose weights are loaded at the first question, and make room for others' within a bound."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack
from weakref import WeakKeyDictionary

from confcascade.asks import Capability
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.gguf import model_name
from confcascade.models.local.adapters import is_adapter
from confcascade.models.local.dequantised import GgufCache, dequantised
from confcascade.models.local.identity import fingerprint_of
from confcascade.models.local.jobs import Job
from confcascade.models.local.loading import chosen_dtype, gguf_in
from confcascade.models.local.model import ModelOptions, TransformersModel
from confcascade.models.local.outline import UntriedDecoder, load_outline, stored_samples
from confcascade.models.memory import MemoryBound, gib

__all__ = ["OnDemandModel"]

_log = logging.getLogger("confcascade")


class OnDemandModel(TransformersModel):
    """A `TransformersModel` that is loaded when it is first asked.

    What a cascade must know before comes from the checkpoint without its weights, so that a folder that is missing, or
    options that its template does not have, are errors at once. Only what a trial of the weights shows, and weights
    that are missing or do not fit, are found when it is loaded: then whoever asked is told.

    Answers, scores and fingerprints are those of the model loaded at once.

    Args:
        name_or_path: A folder, a GGUF file, or a name on the hub. A GGUF file is dequantised at once if it never was,
            so `gguf_cache` cannot be False.
        memory: The bound that it shares with other models; by default its weights stay once they are loaded.
        **options: Those of `TransformersModel`. What `prefix_cache_mb` allows goes with the weights.

    The other arguments are those of `TransformersModel.from_pretrained`.

    Raises:
        MissingExtraError: Without torch and transformers.
        ConfigurationError: With transformers 5.0.
        ConfigurationError: If there is no such model, it is an adapter, it cannot have such options, or it does not fit
            into the bound.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        memory: MemoryBound | None = None,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        gguf_cache: GgufCache = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        if version("transformers").startswith("5.0."):
            raise ConfigurationError(
                "Models are not loaded on demand with transformers 5.0, which shows neither blocks nor size "
                "without weights. Use TransformersModel, or a newer transformers."
            )
        if is_adapter(name_or_path):
            raise ConfigurationError(
                f"'{name_or_path}' is an adapter, and those are not loaded on demand. Use TransformersModel."
            )
        options["name"] = name = options.get("name") or model_name(name_or_path)
        place: str | Path = name_or_path
        if (file := gguf_in(name_or_path)) is not None:
            place = dequantised(file, dtype=chosen_dtype(dtype), cache=gguf_cache)
        checkpoint: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        outline, tokenizer = load_outline(place, **checkpoint)
        super().__init__(outline, tokenizer, **options)
        read = partial(TransformersModel.from_pretrained, name_or_path, **checkpoint, gguf_cache=gguf_cache, **options)
        self._weights = _Weights(name, outline.size, read, memory or MemoryBound())
        self._place, self._revision = place, revision
        self.memory.check_fits(self._weights)

    def _decoder_of(self, model: Any, config: Any) -> Any:
        return UntriedDecoder(model, config)

    @property
    def memory(self) -> MemoryBound:
        """The bound that its weights are within."""
        return self._weights.bound

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory; an estimate, by the checkpoint's sizes, until it is loaded."""
        return self._weights.size

    @property
    def is_loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._weights.model is not None

    @property
    def capability(self) -> Capability:
        """What it can tell; of what only a trial shows, such as batching, the best is hoped for until it is loaded."""
        if (tried := self._weights.capability) is None:
            return self._capability
        shown = {name: getattr(tried, name) for name in ("batch_size", "layers", "hidden_size", "stops")}
        return replace(self._capability, **shown)

    @property
    def architecture(self) -> Architecture | None:  # type: ignore[override]  # of a mixture it is not known before
        """For costs in FLOPs; of a mixture of experts None until it was loaded."""
        return self._weights.architecture or (self._architecture if self._architecture.parameters else None)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of all that its hidden states and greedy answers depend on.

        Read from the checkpoint; where that does not show them (`stored_samples`), the model is loaded.

        Raises:
            ConfigurationError: If a file of weights is damaged.
            ModelError: If it cannot be loaded.
        """
        stored = stored_samples(self.model, self._place, self._revision) if self._weights.model is None else None
        if stored is not None:
            penalties = self._speaker.settings.penalties
            return fingerprint_of(self.model, self.tokenizer, self._prompts.template_options, penalties, stored)
        room = self.memory.acquire(self._weights)
        try:
            room.result()
            return self.with_weights().fingerprint
        finally:
            self.memory.release(self._weights, room)

    def with_weights(self) -> TransformersModel:
        """The model that answers in its place, while its weights are in memory."""
        if (found := self._weights.variants.get(self)) is None:
            assert self._weights.model is not None
            found = self._weights.variants[self] = self._weights.model.with_options(
                name=self._name,
                max_new_tokens=self._speaker.max_new_tokens,
                template_options=self.template_options,
                generation_options=self._generation_options,
            )
        return found

    def _submit(self, job: Job) -> None:
        """Let a job wait for the weights, and then its turn; returns at once."""
        room = self.memory.acquire(self._weights, goes_on=job.continues)

        def start(room: Future[None]) -> None:
            if room.cancelled():
                return
            try:
                room.result()
                model = self.with_weights()
                job.runner = model._runner
                model._submit(job)
            except Exception as error:
                job.end(error)

        job.future.add_done_callback(lambda _: self.memory.release(self._weights, room))
        room.add_done_callback(start)


class _Weights:
    """What models that differ only in how they are asked have in common.

    Args:
        name: Of the first of them.
        size: In bytes, as estimated.
        read: Loads them.
        bound: That they are within.

    Attributes:
        model: While they are in memory.
        variants: It, with the options of each of the models.
        capability: Once a trial has shown it.
        architecture: Likewise.
    """

    def __init__(self, name: str, size: int, read: Callable[[], TransformersModel], bound: MemoryBound) -> None:
        self.name = name
        self.size = size
        self.bound = bound
        self.model: TransformersModel | None = None
        self.variants: WeakKeyDictionary[OnDemandModel, TransformersModel] = WeakKeyDictionary()
        self.capability: Capability | None = None
        self.architecture: Architecture | None = None
        self._read = read

    def load(self) -> None:
        """Bring them into memory.

        Raises:
            ModelError: If that cannot be done.
        """
        _log.info("Loading model '%s' (%s).", self.name, gib(self.size))
        began = time.monotonic()
        try:
            model = self._read()
        except Exception as error:
            raise ModelError(f"Model '{self.name}' cannot be loaded. {error}") from error
        self.size = sum(each.nelement() * each.element_size() for each in model.model.parameters())
        self.capability, self.architecture = model.capability, model.architecture
        self.model = model
        _log.info("Model '%s' is loaded, in %.1f seconds (%s).", self.name, time.monotonic() - began, gib(self.size))

    def unload(self) -> None:
        """Free their memory."""
        self.model = None
        self.variants.clear()
        gc.collect()  # a model and its parts know each other
        _return_memory()

    @property
    def open_prefills(self) -> int:
        """How many prompts have been read that somebody may go on from."""
        return 0 if self.model is None else self.model.open_prefills


def _return_memory() -> None:
    """Give what is free back to the system, or to other users of the GPU: allocators keep it for themselves."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
