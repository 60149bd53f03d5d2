"""The models of a cascade file that run in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError
from confcascade.models.body import options_problem
from confcascade.models.gguf import is_gguf, model_name
from confcascade.models.llamacpp import KvType
from confcascade.models.memory import MemoryBound
from confcascade.schema import Entry, existing, located

__all__ = ["BundledModelEntry", "LlamaCppModelEntry", "LocalModelEntry"]


class LocalModelEntry(Entry):
    """A causal language model in this process (`TransformersModel.from_pretrained`)."""

    local: str = Field(
        min_length=1,
        description="A folder or GGUF file, relative to the file, a PEFT adapter's folder, or a name on the hub.",
    )
    adapter: str | None = Field(
        None, min_length=1, description="A PEFT adapter of it: a folder, relative to the file, or a name on the hub."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; by default the newest.")
    device: str | None = Field(None, description="Where it runs; by default a GPU if there is one.")
    device_map: str | dict[str, str | int] | None = Field(
        None, description="Instead of `device`, where each part runs: auto, or a place by the part's name."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="Precision of the weights.")
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="Weights in fewer bits, by bitsandbytes.")
    gguf_cache: str | Literal[False] | None = Field(
        None,
        description="Folder, relative to the file, for the dequantised weights of a GGUF file; false keeps none.",
    )
    batch_size: int = Field(32, ge=1, description="Most queries in one forward pass.")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of an answer, where the request does not say; by default the model's, or 512.",
    )
    prefix_cache_mb: float | None = Field(
        None,
        ge=0,
        description="Most memory, in MiB, for what prompts have in common; by default a tenth of the weights, or 256.",
    )
    template_options: dict[str, Any] = Field({}, description="Arguments of the chat template: {enable_thinking: false}")
    generation_options: dict[str, Any] = Field(
        {}, description="What replaces settings of its generation_config: {repetition_penalty: 1.0}"
    )
    name: str | None = Field(None, min_length=1, description="Shown in records; by default the folder's or the hub's.")

    def called(self, folder: Path) -> str:
        """The model's name in records."""
        return self.name or model_name(os.path.abspath(_place(folder, self.adapter or self.local)))

    def on_demand(self, folder: Path, memory: MemoryBound) -> LanguageModel:
        """The model, loaded within a bound when it is first asked."""
        from confcascade.models.local import OnDemandModel

        for key in ("adapter", "quantization", "device_map"):
            if getattr(self, key) is not None:
                raise ConfigurationError(
                    f"A model with `{key}` is loaded at once, and not within `memory_gib`. Drop one of the two."
                )
        options = self.model_dump(exclude={"local", "name", "adapter", "gguf_cache", "quantization", "device_map"})
        return OnDemandModel(
            _place(folder, self.local),
            memory=memory,
            name=self.called(folder),
            gguf_cache=self._cache(folder),
            **options,
        )

    def load(self, folder: Path) -> LanguageModel:
        """The model, loaded."""
        from confcascade.models.local import TransformersModel

        options = self.model_dump(exclude={"local", "name", "adapter", "gguf_cache"})
        return TransformersModel.from_pretrained(
            _place(folder, self.local),
            name=self.called(folder),
            adapter=self.adapter and _place(folder, self.adapter),
            gguf_cache=self._cache(folder),
            **options,
        )

    def _cache(self, folder: Path) -> Path | Literal[False] | None:
        return existing(folder, self.gguf_cache) if self.gguf_cache else self.gguf_cache  # type: ignore[return-value]

    def shares_weights(self, other: Entry) -> bool:
        """Whether it is another model of the same loaded weights: only asked in another way."""
        asked = {"name", "max_new_tokens", "template_options", "generation_options"}
        return isinstance(other, LocalModelEntry) and self.model_dump(exclude=asked) == other.model_dump(exclude=asked)

    def like(self, loaded: LanguageModel, folder: Path) -> LanguageModel:
        """The model, of the weights of another that shares them."""
        from confcascade.models.local import TransformersModel

        assert isinstance(loaded, TransformersModel)
        return loaded.with_options(
            name=self.called(folder),
            template_options=self.template_options,
            generation_options=self.generation_options,
            max_new_tokens=self.max_new_tokens,
        )


class LlamaCppModelEntry(Entry):
    """A GGUF file that llama.cpp runs in this process (`LlamaCppModel`)."""

    llamacpp: str = Field(min_length=1, description="A GGUF file, or a folder with one model, relative to the file.")
    max_new_tokens: int = Field(512, ge=1, description="Most tokens of an answer, where the request does not say.")
    context: int | None = Field(
        None, ge=1, description="Most tokens of a prompt and its answer; by default the model's, but at most 4096."
    )
    slots: int = Field(4, ge=1, description="Questions answered side by side, each with a context of its own.")
    threads: int | None = Field(
        None, ge=1, description="Of computation; by default OMP_NUM_THREADS or llama.cpp's choice."
    )
    gpu_layers: int | None = Field(None, ge=0, description="Blocks on a GPU; by default all, if there is one.")
    kv_type: KvType = Field("float32", description="Precision of keys and values.")
    flash_attention: bool = Field(False, description="Attention in half precision, with less memory.")
    template_options: dict[str, Any] = Field({}, description="Arguments of the chat template: {enable_thinking: false}")
    options: dict[str, Any] = Field({}, description="Further parameters of every call, such as {repeat_penalty: 1.1}")
    name: str | None = Field(None, min_length=1, description="Shown in records; by default the file's.")

    @field_validator("options")
    @classmethod
    def _can_be_sent(cls, options: dict[str, Any]) -> dict[str, Any]:
        if (cannot := options_problem(options)) is not None:
            raise located(cannot)
        return options

    def called(self, folder: Path) -> str:
        """The model's name in records."""
        return self.name or model_name(os.path.abspath(existing(folder, self.llamacpp)))

    def load(self, folder: Path) -> LanguageModel:
        """The model, started."""
        from confcascade.models.llamacpp import LlamaCppModel

        options = self.model_dump(exclude={"llamacpp", "name"})
        return LlamaCppModel(existing(folder, self.llamacpp), name=self.called(folder), **options)


class BundledModelEntry(Entry):
    """One of the tiny models that come with the package (`confcascade.demo`)."""

    bundled: Literal["small", "medium", "large"]

    def called(self, folder: Path) -> str:
        """The model's name in records."""
        del folder
        return self.bundled

    def on_demand(self, folder: Path, memory: MemoryBound) -> LanguageModel:
        """The model, loaded within a bound when it is first asked."""
        from confcascade.models.bundled import bundled_model

        del folder
        return bundled_model(self.bundled, memory)

    def load(self, folder: Path) -> LanguageModel:
        """The model, loaded."""
        from confcascade.models.bundled import bundled_model

        del folder
        return bundled_model(self.bundled)


def _place(folder: Path, place: str) -> str:
    """A path, if there is one beside the file, or what can only be one; else a name on the hub."""
    path = existing(folder, place)
    is_path = path.exists() or place.startswith((".", "~", "/")) or Path(place).is_absolute() or is_gguf(place)
    return str(path) if is_path else place
