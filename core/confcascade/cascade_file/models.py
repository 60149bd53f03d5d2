"""The models of a cascade file: a string such as ``openai:gpt-4o-mini``, a mapping with options, or two as one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from confcascade.asks import LanguageModel
from confcascade.cost import Architecture, Prices, parameter_count
from confcascade.errors import ConfigurationError
from confcascade.models.body import options_problem
from confcascade.models.continuing import Continues
from confcascade.models.gguf import is_gguf, model_name
from confcascade.models.llamacpp import KvType
from confcascade.models.memory import MemoryBound
from confcascade.models.openai import Unsupported
from confcascade.models.planned import PlannedModel
from confcascade.models.reading import Reads
from confcascade.models.served_states import Engine, engine_problem
from confcascade.schema import SECRET, Entry, existing, located, suggestion

__all__ = [
    "ArchitectureEntry",
    "BundledModelEntry",
    "CascadeModelEntry",
    "LlamaCppModelEntry",
    "LocalModelEntry",
    "ModelEntry",
    "OpenAIModelEntry",
    "PlannedModelEntry",
    "PricesEntry",
    "loaded",
    "parts_of",
]


def _size(value: Any) -> Any:
    """A number of parameters as people write it, as a whole number: 494e6, "494M", "0.5B"."""
    if isinstance(value, str):  # YAML reads 494e6 as a text
        try:
            return parameter_count(value)
        except ValueError as error:
            raise located(f"{error}. Got {value!r}") from None
    return int(value) if isinstance(value, float) and value.is_integer() else value


class PricesEntry(Entry):
    """US dollars per million tokens (`Prices`)."""

    input_usd: float = Field(ge=0, allow_inf_nan=False)
    output_usd: float = Field(ge=0, allow_inf_nan=False)
    cached_input_usd: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Of what the provider reads from its cache; by default as input.",
    )


class ArchitectureEntry(Entry):
    """The numbers of a decoder that decide its compute (`Architecture`)."""

    parameters: Annotated[int, BeforeValidator(_size, json_schema_input_type=float | str)] = Field(
        gt=0, description='Such as 494e6, "494M" or "0.5B".'
    )
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)


class OpenAIModelEntry(Entry):
    """A model behind an OpenAI-compatible server (`OpenAICompatibleModel`)."""

    openai: str = Field(min_length=1, description="Name of the model, as the server knows it.")
    base_url: str | None = Field(None, description="The server; by default OpenAI's, or OPENAI_BASE_URL.")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the key; by default OPENAI_API_KEY."
    )
    timeout_s: float = Field(60.0, gt=0, description="Longest wait for an answer, in seconds.")
    max_retries: int = Field(2, ge=0, description="Retries on connection errors, 429 and 5xx.")
    architecture: ArchitectureEntry | None = Field(None, description="If known, for costs in FLOPs.")
    options: dict[str, Any] = Field({}, description="Parameters of every call, such as {reasoning_effort: low}")
    unsupported: list[Unsupported] = Field(
        [], description="What the server is known to refuse; otherwise it is learned from its refusals."
    )
    continues: Continues | None = Field(
        None, description="How the server continues an answer that has been begun; by default it cannot."
    )
    reads: Reads | None = Field(
        None, description="How the server tells what it makes of a text of another's; by default it does not."
    )
    hidden_states: Engine | None = Field(
        None, description="How the server gives hidden states, for P(IK); by default it does not. Needs `architecture`."
    )
    states_layers: list[int] = Field([], description="The blocks that vLLM gives them of, in its order.")
    states_folder: str | None = Field(
        None, min_length=1, description="The folder of vLLM's files with them, relative to the file."
    )
    name: str | None = Field(None, min_length=1, description="Shown in records; by default the model's.")

    @field_validator("options")
    @classmethod
    def _can_be_kept(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("api_key", "extra_headers"):
            if name in options:
                raise located(SECRET, name)
        if (cannot := options_problem(options)) is not None:
            raise located(cannot)
        return options

    @model_validator(mode="after")
    def _gives_states(self) -> Self:
        wrong = engine_problem(self.hidden_states, self.states_layers, self.states_folder, self._architecture)
        if wrong is not None:
            raise located(wrong[1], wrong[0])
        return self

    @property
    def _architecture(self) -> Architecture | None:
        return None if self.architecture is None else Architecture(**self.architecture.model_dump())

    def called(self, folder: Path) -> str:
        """The model's name in records."""
        del folder
        return self.name or self.openai

    def load(self, folder: Path) -> LanguageModel:
        """The model; its server is not asked yet."""
        from confcascade.models.openai import OpenAICompatibleModel

        return OpenAICompatibleModel(
            self.openai,
            base_url=self.base_url,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout_s,
            max_retries=self.max_retries,
            architecture=self._architecture,
            options=self.options,
            unsupported=self.unsupported,
            continues=self.continues,
            reads=self.reads,
            hidden_states=self.hidden_states,
            states_layers=self.states_layers,
            states_folder=None if self.states_folder is None else existing(folder, self.states_folder),
            name=self.called(folder),
        )


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


def _place(folder: Path, place: str) -> str:
    """A path, if there is one beside the file, or what can only be one; else a name on the hub."""
    path = existing(folder, place)
    is_path = path.exists() or place.startswith((".", "~", "/")) or Path(place).is_absolute() or is_gguf(place)
    return str(path) if is_path else place


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


class CascadeModelEntry(Entry):
    """A cascade of another file as a model (`CascadeModel`)."""

    cascade: str = Field(min_length=1, description="Its file, relative to this one.")
    name: str | None = Field(None, min_length=1, description="Shown in records; by default its models', joined by +.")

    _file: Any = PrivateAttr(None)  # a CascadeFile

    @model_validator(mode="after")
    def _read(self, info: ValidationInfo) -> Self:
        from confcascade.cascade_file import CascadeFile

        folder = getattr(info.context, "folder", Path())
        path = existing(folder, self.cascade).resolve()
        inside = _inside.get()
        if path in inside:
            raise located(f"'{self.cascade}' would contain itself", "cascade")
        token = _inside.set((*inside, path))
        try:
            self._file = CascadeFile.load(existing(folder, self.cascade))
        except ConfigurationError as error:
            raise located(str(error).rstrip("."), "cascade") from None
        finally:
            _inside.reset(token)
        return self

    def called(self, folder: Path) -> str:
        """The model's name in records."""
        del folder
        return self.name or "+".join(self._file.thresholds)

    def load(self, folder: Path) -> LanguageModel:
        """The model, all of its models loaded."""
        from confcascade.cascade_model import CascadeModel

        return CascadeModel(self._file.cascade(), name=self.called(folder))


_inside: ContextVar[tuple[Path, ...]] = ContextVar("confcascade_files_inside", default=())

_KINDS = ("openai", "local", "llamacpp", "bundled")
_PLANNED = ("plan", "execute")


def _mapping(value: Any) -> Any:
    """A model string as a mapping; what is neither of the two is an error."""
    if isinstance(value, str):
        provider, _, name = value.partition(":")
        if provider in _KINDS and name:
            return {provider: name}
        raise located(
            'must be "openai:NAME", "local:FOLDER_OR_NAME", "llamacpp:FILE.gguf", "bundled:SIZE" or a mapping. '
            + _meant(provider, name)
        )
    if not isinstance(value, Mapping):
        raise located('must be a string such as "openai:gpt-4o-mini", or a mapping such as {openai: gpt-4o-mini}')
    own = (*_KINDS, "cascade")
    found = [kind for kind in own if kind in value]
    if any(key in value for key in _PLANNED):
        if found:
            raise located(f"is a model of its own by `{found[0]}`, or made of two by `plan` and `execute`; drop one")
        return value
    if len(found) != 1:
        close = [kind for key in value if key not in own for kind in get_close_matches(str(key), own, n=1)]
        told = f"; did you mean `{close[0]}`?" if close else ""
        raise located(
            "must have exactly one of the keys `openai`, `local`, `llamacpp`, `bundled` and `cascade`, or `plan` and "
            "`execute`" + told
        )
    return value


def _plain(value: Any) -> Any:
    """`_mapping` of a model that is not made of two."""
    if isinstance(value, Mapping) and any(key in value for key in _PLANNED):
        raise located("is a part of a model that is made of two, and cannot be made of two itself")
    return _mapping(value)


def _meant(provider: str, name: str) -> str:
    if is_gguf(provider):
        return f'Did you mean "llamacpp:{provider}", or "local:{provider}" with hidden states?'
    if name:
        return f"There is no provider `{provider}`; {suggestion(provider, list(_KINDS))}"
    return f'Did you mean "openai:{provider}"?' if provider not in _KINDS else "The name after the colon is missing"


def _kind(value: Any) -> str:
    mapping = value if isinstance(value, Mapping) else vars(value)
    return next((f"<{kind}>" for kind in (*_KINDS, "cascade") if kind in mapping), "<planned>")


# the tags are no keys, so that they can be told from keys in the place of an error
_OneModel: TypeAlias = Annotated[
    Annotated[OpenAIModelEntry, Tag("<openai>")]
    | Annotated[LocalModelEntry, Tag("<local>")]
    | Annotated[LlamaCppModelEntry, Tag("<llamacpp>")]
    | Annotated[BundledModelEntry, Tag("<bundled>")],
    Discriminator(_kind),
]
_PlainEntry: TypeAlias = Annotated[_OneModel, BeforeValidator(_plain, json_schema_input_type=str | _OneModel)]


class PlannedModelEntry(Entry):
    """A model made of two: the first plans, the second answers by the plan (`PlannedModel`)."""

    plan: _PlainEntry = Field(description="Who plans.")
    execute: _PlainEntry = Field(description="Who answers.")
    plan_prompt: str | None = Field(
        None, description="What the planner is asked, {question} standing for the user's last message."
    )
    execute_prompt: str | None = Field(None, description="What the other is asked, with {question} and {plan}.")
    plan_tokens: int | None = Field(256, ge=1, description="Most tokens of a plan; null leaves it to the planner.")
    prices: dict[str, PricesEntry] = Field({}, description="Of the two, by their names, per million tokens.")
    name: str | None = Field(None, min_length=1, description="Shown in records; by default PLANNER+EXECUTOR.")

    @field_validator("plan_prompt", "execute_prompt")
    @classmethod
    def _has_places(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        places = ("{question}",) if info.field_name == "plan_prompt" else ("{question}", "{plan}")
        if missing := [place for place in places if prompt is not None and place not in prompt]:
            raise located(f"must have a place for {' and '.join(missing)}")
        return prompt

    def called(self, folder: Path) -> str:
        """The model's name in records."""
        return self.name or f"{self.plan.called(folder)}+{self.execute.called(folder)}"

    def load(self, folder: Path) -> LanguageModel:
        """The model, both of its parts loaded."""
        return loaded(self, folder)

    def of(self, planner: LanguageModel, executor: LanguageModel, folder: Path) -> PlannedModel:
        """The model, of its parts."""
        prompts = {"plan_prompt": self.plan_prompt, "execute_prompt": self.execute_prompt}
        return PlannedModel(
            planner,
            executor,
            plan_tokens=self.plan_tokens,
            name=self.called(folder),
            prices={name: Prices(**each.model_dump()) for name, each in self.prices.items()},
            **{key: prompt for key, prompt in prompts.items() if prompt is not None},
        )


_AnyModel: TypeAlias = Annotated[
    Annotated[OpenAIModelEntry, Tag("<openai>")]
    | Annotated[LocalModelEntry, Tag("<local>")]
    | Annotated[LlamaCppModelEntry, Tag("<llamacpp>")]
    | Annotated[BundledModelEntry, Tag("<bundled>")]
    | Annotated[CascadeModelEntry, Tag("<cascade>")]
    | Annotated[PlannedModelEntry, Tag("<planned>")],
    Discriminator(_kind),
]
ModelEntry: TypeAlias = Annotated[_AnyModel, BeforeValidator(_mapping, json_schema_input_type=str | _AnyModel)]


def loaded(
    entry: ModelEntry,
    folder: Path,
    known: Sequence[tuple[ModelEntry, LanguageModel]] = (),
    memory: MemoryBound | None = None,
) -> LanguageModel:
    """The model of an entry, made of what is loaded already wherever it can be.

    Args:
        entry: Of the file.
        folder: What its paths are relative to.
        known: Models that are loaded, with their entries.
        memory: The bound within which models in this process are loaded on demand; without one they are at once.
    """
    if isinstance(entry, PlannedModelEntry):
        planner = loaded(entry.plan, folder, known, memory)
        executor = loaded(entry.execute, folder, [*known, (entry.plan, planner)], memory)
        return entry.of(planner, executor, folder)
    same = next((model for other, model in known if other == entry), None)
    if same is not None:
        return same
    for other, model in known:
        if isinstance(entry, LocalModelEntry) and entry.shares_weights(other):
            return entry.like(model, folder)
    if memory is not None and isinstance(entry, LocalModelEntry | BundledModelEntry):
        return entry.on_demand(folder, memory)
    return entry.load(folder)


def parts_of(entry: ModelEntry, model: LanguageModel) -> Iterator[tuple[ModelEntry, LanguageModel]]:
    """A loaded model that is not made of two, or the two, with their entries."""
    if isinstance(entry, PlannedModelEntry) and isinstance(model, PlannedModel):
        yield entry.plan, model.planner
        yield entry.execute, model.executor
    else:
        yield entry, model
