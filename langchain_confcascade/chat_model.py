"""A cascade wherever LangChain takes a chat model: convert, call the core, convert back."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from operator import is_not, itemgetter
from typing import Any, Literal

from confcascade import (
    Audit,
    Batching,
    Cascade,
    ConfigurationError,
    Outcome,
    Request,
    Stage,
    Steps,
    StepwiseCascade,
)
from confcascade.extending import (
    LanguageModel,
    Mode,
    OnCut,
    OnError,
    OnExhausted,
    Signal,
    Threshold,
    cascade_of,
    settings_digest,
)
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field, PrivateAttr, SkipValidation
from typing_extensions import override

from langchain_confcascade.answers import chunks_of, message_of, out_of_a_cache
from langchain_confcascade.convert import PER_CALL, Asked, request_from
from langchain_confcascade.given import loaded, wrapping
from langchain_confcascade.model import LangChainModel
from langchain_confcascade.profile import profile_of
from langchain_confcascade.runs import CascadeRun, areported, feeds_stream, reported, under
from langchain_confcascade.structured import Structured, StructuredOutputParser, is_lost
from langchain_confcascade.tools import bound_tool

__all__ = ["ConfidenceCascadeLLM"]

_MAX_CONCURRENCY = 16  # of calls to APIs in a batch, where the caller does not say
_batching: ContextVar[Batching | None] = ContextVar("confcascade_batching", default=None)
# the fields of which the core's cascade is built
_cascade_fields = itemgetter(
    *("models", "stages", "threshold", "signals", "policy", "group", "mode", "steps"),
    *("on_error", "on_exhausted", "on_cut", "audit"),
)


class ConfidenceCascadeLLM(BaseChatModel):
    """A chat model that lets smaller models answer what they are likely enough to get right, and larger ones the rest.

    Every answer says what happened in ``response_metadata["confcascade"]``, on `invoke` and on the last chunk of a
    stream alike; where no message survives, `confcascade.trace` collects the same records.  ``usage_metadata`` counts
    every attempt that was paid for.  A stream shows no token of an answer that may still be withdrawn.

    Callbacks see one call of a model, the cascade's, and under it each attempt as a run of type chain, with what it
    said, its scores and the decision.  Those of the stages' own objects see the stages.

    Args:
        models: Smallest first; the last always answers. LangChain chat models (also with `bind`), core models, or
            strings such as ``"openai:gpt-4o-mini"``.
        stages: The same, with signals and thresholds of their own.
        threshold: With `models`: a number for the one signal, or numbers by signal name.
        signals: With `models`: what judges every stage but the last; by default P(T) of the answer.
        policy: With `models`: one that ``confcascade fit`` made of them, or its file, in the place of a threshold.
        group: With a `policy` that has thresholds of its own for each group of questions: which group is asked here.
        mode: With "stepwise", a small and a large model write each answer in turn, step by step
            (`confcascade.StepwiseCascade`): core models, and LangChain's where `LangChainModel(continues=...)` says
            how. The large one alone answers requests with tools, structured output or images. With "query", the first
            model that is sure enough gives the whole answer.
        steps: With ``mode="stepwise"``: what a step is, and who may end the answer.
        on_error: With "escalate", a query whose model failed goes to the next stage; "raise" raises its error.
        on_exhausted: If the last stage fails, "raise" raises `CascadeExhaustedError`, which is an instance of its
            error's class, too; "best" returns the last complete earlier answer in words, flagged ``degraded``, although
            it was rejected. A cascade of one stage raises that stage's own error.
        on_cut: What happens to a text that was cut off at the token limit. With "escalate" it goes to the next model,
            which may finish; with "keep" it is judged as it stands.
        audit: The share of kept answers that the largest model is asked about in the background, or an `Audit`. A
            share with a `policy` guards that policy's promise.
        **parameters: Those of every LangChain chat model, such as ``callbacks``, ``tags`` or ``cache``.

    Raises:
        ConfigurationError: If the cascade cannot work.

    >>> from confcascade.testing import ScriptedModel
    >>> small, large = ScriptedModel("small", {"2+2?": ("4", 0.99)}), ScriptedModel("large")
    >>> answer = ConfidenceCascadeLLM(models=[small, large], threshold=0.9).invoke("2+2?")
    >>> answer.content, answer.response_metadata["confcascade"]["answered_by"]
    ('4', 'small')
    """

    # checked by the core, whose messages are one line, and not by pydantic
    # and not dumped: a stage's headers may hold a key
    models: SkipValidation[Sequence[Any] | None] = Field(default=None, exclude=True)
    stages: SkipValidation[Sequence[Stage] | None] = Field(default=None, exclude=True)
    threshold: SkipValidation[Threshold | Mapping[str, Threshold] | None] = None
    signals: SkipValidation[Sequence[Signal] | None] = None
    policy: SkipValidation[Any] = None  # confcascade.policy.Policy | str | Path | None
    group: SkipValidation[str | None] = None
    mode: SkipValidation[Mode] = "query"
    steps: Any = None  # Steps | None, a dataclass that pydantic would take apart
    on_error: SkipValidation[OnError] = "escalate"
    on_exhausted: SkipValidation[OnExhausted] = "raise"
    on_cut: SkipValidation[OnCut] = "escalate"
    audit: Any = 0.0  # float | Audit, a dataclass that pydantic would take apart

    _built: tuple[tuple[Any, ...], Cascade] | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        models: Sequence[BaseChatModel | LanguageModel | str | Any] | None = None,
        stages: Sequence[Stage] | None = None,
        threshold: Threshold | Mapping[str, Threshold] | None = None,
        signals: Sequence[Signal] | None = None,
        policy: Any = None,
        group: str | None = None,
        mode: Mode = "query",
        steps: Steps | None = None,
        on_error: OnError = "escalate",
        on_exhausted: OnExhausted = "raise",
        on_cut: OnCut = "escalate",
        audit: float | Audit = 0.0,
        **parameters: Any,
    ) -> None:
        own: dict[str, Any] = {"models": loaded(models), "stages": loaded(stages), "threshold": threshold}
        own |= {"signals": signals, "policy": policy, "group": group, "mode": mode, "steps": steps}
        own |= {"on_error": on_error, "on_exhausted": on_exhausted, "on_cut": on_cut, "audit": audit}
        if unknown := sorted(parameters.keys() - type(self).model_fields.keys()):
            warnings.warn(
                f"ConfidenceCascadeLLM has no parameter {', '.join(map(repr, unknown))}, and ignores it. "
                "What is for the models goes to the stages' own objects, or along with a call.",
                stacklevel=2,
            )
        super().__init__(**own, **parameters)
        _ = self.cascade  # built now, for errors to show now

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # tracers keep the repr of a model that is not serializable: names, never the stages' settings
        cascade = self.cascade
        told = [("stages", [stage.model.name for stage in cascade.stages]), ("policy_id", cascade.policy_id)]
        return [*told, ("steps", cascade.steps)] if isinstance(cascade, StepwiseCascade) else told

    @property
    def cascade(self) -> Cascade:
        """The core's cascade, which answers. Built anew after `model_copy`, unpickling or assignment to a field."""
        given = _cascade_fields(self.__dict__)  # for every call, and an attribute of a pydantic model takes its time
        built: tuple[tuple[Any, ...], Cascade] | None = (self.__pydantic_private__ or {}).get("_built")
        if built is None or any(map(is_not, given, built[0])):
            cascade = cascade_of(
                self.mode,
                steps=self.steps,
                models=self.models,
                stages=self.stages,
                threshold=self.threshold,
                signals=self.signals,
                policy=self.policy,
                group=self.group,
                wrap=wrapping(),
                on_error=self.on_error,
                on_exhausted=self.on_exhausted,
                on_cut=self.on_cut,
                audit=self.audit,
                on_ended=_note,
            )
            built = self._built = given, cascade
        return built[1]

    # ------------------------------------------------------------------ what it is

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        cascade = self.cascade
        in_turn = isinstance(cascade, StepwiseCascade)
        return profile_of([stage.model for stage in cascade.stages], in_turn=in_turn)

    @property
    def model_name(self) -> str:
        """A name of its own: under a stage's, callbacks would count that stage's tokens twice."""
        return f"confcascade-{self.cascade.policy_id}"

    @property
    def _llm_type(self) -> str:
        return "confcascade"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        cascade = self.cascade
        return {
            "model_name": f"confcascade-{cascade.policy_id}",
            "policy_id": cascade.policy_id,
            "stages": [stage.model.name for stage in cascade.stages],
            "on_error": cascade.on_error,
            "on_exhausted": cascade.on_exhausted,
            "on_cut": cascade.on_cut,
            **({"steps": asdict(cascade.steps)} if isinstance(cascade, StepwiseCascade) else {}),
        }

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # as inherited, but for the way through the deprecated `dict`, whose warnings are caught for every call
        return {**self.asdict(), "stop": stop, **kwargs}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's cache: cascades that may answer differently differ here."""
        settings = [settings_digest(stage.model) for stage in self.cascade.stages]
        return f"{super()._get_llm_string(stop=stop, **kwargs)} {settings}"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        # as inherited, but for looking for fields that a cascade does not have
        parameters = LangSmithParams(ls_provider="confcascade", ls_model_type="chat", ls_model_name=self.model_name)
        if stop:
            parameters["ls_stop"] = stop
        if isinstance(temperature := kwargs.get("temperature"), int | float):
            parameters["ls_temperature"] = temperature
        if isinstance(max_tokens := kwargs.get("max_tokens"), int):
            parameters["ls_max_tokens"] = max_tokens
        if isinstance(model := kwargs.get("model"), str):
            parameters["ls_model_name"] = model
        return parameters

    @override
    def get_token_ids(self, text: str) -> list[int]:
        # the last stage answers whatever is left, so its prompts must fit
        return self._last.get_token_ids(text) if self._last is not None else super().get_token_ids(text)

    @override
    def get_num_tokens(self, text: str) -> int:
        return self._last.get_num_tokens(text) if self._last is not None else super().get_num_tokens(text)

    @property
    def _last(self) -> BaseChatModel | None:
        """The last stage's chat model; None if it is none of LangChain's."""
        model = self.cascade.stages[-1].model
        return model.chat if isinstance(model, LangChainModel) else None

    # ------------------------------------------------------------------ tools and structured output

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the models tools, each in its own provider's form when it is called.

        A call that cannot be used (an unknown tool, arguments that do not fit, none where one is forced) passes the
        query on, and so does a stage whose model cannot call tools.  With ``mode="stepwise"`` the large model answers.

        Args:
            tools: Functions, pydantic classes, `BaseTool` objects, mappings in OpenAI's form or a provider's own.
            tool_choice: "auto", "none", "any", the name of a tool, or a provider's own form.
            **kwargs: What the stages' own `bind_tools` take, and parameters of their calls.

        Raises:
            ConfigurationError: If the last stage, which always answers, cannot call tools.
            ValueError: If LangChain cannot read a tool.
        """
        self._require("tools", "call tools")
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=[bound_tool(tool) for tool in tools], **choice, **kwargs)

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["function_calling", "json_mode", "json_schema"] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answer in the form of a schema, each model asked for it in its own way.

        Output that does not validate escalates; the last stage fails as it would alone.  With ``mode="stepwise"`` it
        is the only one that is asked.  A stream gives one object, at its end.

        Args:
            schema: A pydantic class, a TypedDict, a JSON Schema or a function in OpenAI's form.
            include_raw: Give ``{"raw": message, "parsed": object, "parsing_error": error}`` and never raise.
            method: By default each model's own; core models are always asked with a JSON Schema.
            strict: See the models' own.
            **kwargs: What else the models' own `with_structured_output` take; and ``stage`` and ``threshold``, which
                are the cascade's.

        Raises:
            ConfigurationError: If the last stage, which always answers, cannot give structured output.
                Or the schema cannot be read.
            ValueError: And what else that stage's own `with_structured_output` raises.
        """
        self._require("structured", "give structured output")
        chosen = {name: kwargs.pop(name) for name in PER_CALL if name in kwargs}
        options = {"method": method, "strict": strict, **kwargs}
        structured = Structured(schema, {key: value for key, value in options.items() if value is not None})
        if isinstance(last := self.cascade.stages[-1].model, LangChainModel):
            last.check_structured(structured)
        llm = self.bind(
            structured_output=structured,
            ls_structured_output_format={"kwargs": {"method": method, "strict": strict}, "schema": schema},
            **chosen,
        )
        return llm | StructuredOutputParser(structured=structured, include_raw=include_raw)

    def _require(self, capability: Literal["tools", "structured"], what: str) -> None:
        model = self.cascade.stages[-1].model
        if not getattr(model.capability, capability):
            raise ConfigurationError(
                f"The last stage, '{model.name}', always answers, and cannot {what}. Put a model that can last."
            )

    # ------------------------------------------------------------------ calls

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        keeps_logprobs: bool = False,
        **kwargs: Any,
    ) -> ChatResult:
        run, request = CascadeRun.under_way(run_manager), request_from(messages, stop, kwargs)
        with reported(run, request.native):
            outcome = self._answering.run(request)
        return _result(outcome, keeps_logprobs)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        keeps_logprobs: bool = False,
        **kwargs: Any,
    ) -> ChatResult:
        run, request = CascadeRun.under_way(run_manager), request_from(messages, stop, kwargs)
        async with areported(run, request.native):
            outcome = await self._answering.arun(request)
        return _result(outcome, keeps_logprobs)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        keeps_logprobs: bool = False,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        run, request = CascadeRun.under_way(run_manager), request_from(messages, stop, kwargs)
        with reported(run, request.native), closing(self.cascade.stream(request)) as items:  # type: ignore[type-var]
            if run is not None:
                run.streams(items, request.native)
            for item in items:
                if run is not None and isinstance(item, Outcome):
                    run.report(request.native)
                for message in chunks_of(item, keeps_logprobs=keeps_logprobs):
                    yield ChatGenerationChunk(message=message)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        keeps_logprobs: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        run, request = CascadeRun.under_way(run_manager), request_from(messages, stop, kwargs)
        async with areported(run, request.native), aclosing(self.cascade.astream(request)) as items:  # type: ignore[type-var]
            if run is not None:
                run.streams(items, request.native)
            async for item in items:
                if run is not None and isinstance(item, Outcome):
                    await run.areport(request.native)
                for message in chunks_of(item, keeps_logprobs=keeps_logprobs):
                    yield ChatGenerationChunk(message=message)

    # ------------------------------------------------------------------ batches

    @override
    def batch(
        self, inputs: list[Any], config: RunnableConfig | list[RunnableConfig] | None = None, **kwargs: Any
    ) -> list[Any]:
        with self._grouped(len(inputs), config) as configs:
            return super().batch(inputs, configs, **kwargs)

    @override
    async def abatch(
        self, inputs: list[Any], config: RunnableConfig | list[RunnableConfig] | None = None, **kwargs: Any
    ) -> list[Any]:
        with self._grouped(len(inputs), config) as configs:
            return await super().abatch(inputs, configs, **kwargs)

    @contextmanager
    def _grouped(
        self, count: int, config: RunnableConfig | list[RunnableConfig] | None
    ) -> Iterator[RunnableConfig | list[RunnableConfig] | None]:
        """While LangChain invokes each input by itself, with its callbacks and its cache: let their local calls meet.

        A cascade without a local model needs no meeting: as it is, LangChain calls APIs concurrently.
        """
        local = [s.model.capability.batch_size for s in self.cascade.stages if s.model.capability.local]
        if count < 2 or not local:
            yield config
            return
        configs = get_config_list(config, count)
        limit = configs[0].get("max_concurrency") or _MAX_CONCURRENCY
        token = _batching.set(self.cascade.batching(max_concurrency=limit))
        try:
            # enough of them wait to fill a batch while another is computed; calls to APIs keep to the limit
            yield [{**each, "max_concurrency": limit + 2 * max(local)} for each in configs]
        finally:
            _batching.reset(token)

    @property
    def _answering(self) -> Cascade | Batching:
        cascade, batching = self.cascade, _batching.get()
        return cascade if batching is None or batching.cascade is not cascade else batching

    # ------------------------------------------------------------------ the way to `_stream`, which is not told its run

    @override
    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        run, config = CascadeRun.to_begin(ensure_config(config))
        with closing(super().stream(input, config, **kwargs)) as chunks:  # type: ignore[type-var]
            with under(run):
                first = next(chunks, None)
            if first is None:
                return
            try:
                yield first
                # `yield from` would end LangChain's run before its attempts are reported
                for chunk in chunks:  # noqa: UP028
                    yield chunk
            except GeneratorExit:
                if run is not None:
                    run.leave()
                raise

    @override
    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        run, config = CascadeRun.to_begin(ensure_config(config))
        async with aclosing(super().astream(input, config, **kwargs)) as chunks:  # type: ignore[type-var]
            with under(run):
                first = await anext(chunks, None)
            if first is None:
                return
            try:
                yield first
                async for chunk in chunks:
                    yield chunk
            except GeneratorExit:
                if run is not None:
                    await run.aleave()
                raise

    @override
    def _generate_with_cache(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        # streams where a handler wants tokens (`astream_events`, LangGraph), though the caller invokes
        with under(CascadeRun.of(run_manager)):
            result = super()._generate_with_cache(messages, stop, run_manager, **kwargs)
        if is_lost(result.generations[0].message):  # type: ignore[arg-type]  # a chat model's
            # what a client refused to hand out fails alike only if it is asked for again
            return self.model_copy(update={"cache": False})._generate_with_cache(messages, stop, run_manager, **kwargs)
        return result

    @override
    async def _agenerate_with_cache(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        with under(CascadeRun.of(run_manager)):
            result = await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        if is_lost(result.generations[0].message):  # type: ignore[arg-type]
            uncached = self.model_copy(update={"cache": False})
            return await uncached._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        return result

    @override
    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        # as inherited, but for looking anew into every handler of every call
        fed = run_manager is not None and any(feeds_stream(handler) for handler in run_manager.handlers)
        return super()._should_stream(async_api=async_api, run_manager=run_manager if fed else None, **kwargs)

    @override
    def _convert_cached_generations(self, cache_val: list[Any]) -> list[ChatGeneration]:
        converted = super()._convert_cached_generations(cache_val)
        # new ones, for what a cache in this process holds is not to change
        return [ChatGeneration(message=out_of_a_cache(each.message)) for each in converted]  # type: ignore[arg-type]


def _note(request: Request, ended: Any) -> None:
    """Keeps how a query ended where its caller finds it, even if it raises."""
    if isinstance(request.native, Asked):
        request.native.ended = ended


def _result(outcome: Outcome, keeps_logprobs: bool) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message_of(outcome, keeps_logprobs=keeps_logprobs))])


# LangChain looks for `run_manager` among their parameters in every call; to find these out takes a tenth of it
for _way in ("_generate", "_agenerate"):
    vars(ConfidenceCascadeLLM)[_way].__signature__ = inspect.signature(vars(ConfidenceCascadeLLM)[_way])
