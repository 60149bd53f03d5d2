"""The models of a cascade file: a string such as ``openai:gpt-4o-mini``, a mapping with options, or two as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

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
from confcascade.cascade_file.local_models import BundledModelEntry, LlamaCppModelEntry, LocalModelEntry
from confcascade.cost import Architecture, Prices, parameter_count
from confcascade.errors import ConfigurationError
from confcascade.models.body import options_problem
from confcascade.models.continuing import Continues
from confcascade.models.gguf import is_gguf
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
    "is_greedy",
    "loaded",
    "own_decoding",
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

    def load(self) -> Prices:
        """As a stage takes them."""
        return Prices(**self.model_dump())


class ArchitectureEntry(Entry):
    """The numbers of a decoder that decide its compute (`Architecture`)."""

    parameters: Annotated[int, BeforeValidator(_size, json_schema_input_type=float | str)] = Field(
        gt=0, description='Such as 494e6, "494M" or "0.5B".'
    )
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)

    def load(self) -> Architecture:
        """As a model tells it."""
        return Architecture(**self.model_dump())


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
        return None if self.architecture is None else self.architecture.load()

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
            prices={name: each.load() for name, each in self.prices.items()},
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


def is_greedy(entry: ModelEntry) -> bool:
    """Whether it decodes greedily by itself, unless asked otherwise."""
    if isinstance(entry, PlannedModelEntry):
        return is_greedy(entry.plan) and is_greedy(entry.execute)
    return isinstance(entry, LocalModelEntry | BundledModelEntry)


def own_decoding(entry: ModelEntry) -> dict[str, Any]:
    """That the temperature is a model's own affair: its options say one, or its server takes none."""
    if isinstance(entry, PlannedModelEntry):
        return own_decoding(entry.plan) | own_decoding(entry.execute)
    if isinstance(entry, CascadeModelEntry):
        return {"temperature": None}  # its own models', as its file says
    own = "temperature" in getattr(entry, "options", ()) or "temperature" in getattr(entry, "unsupported", ())
    return {"temperature": None} if own else {}
