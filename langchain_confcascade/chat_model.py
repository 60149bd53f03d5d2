"""A cascade wherever LangChain takes a chat model: convert, call the core, convert back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from operator import is_not
from typing import Any

from confcascade import (
    Cascade,
    Chunk,
    ConfigurationError,
    LanguageModel,
    OnError,
    OnExhausted,
    Outcome,
    Signal,
    Stage,
    Threshold,
    build_stages,
    from_string,
)
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import PrivateAttr, SkipValidation
from typing_extensions import override

from langchain_confcascade.convert import request_from, shown, usage_metadata
from langchain_confcascade.model import LangChainModel

__all__ = ["ConfidenceCascadeLLM"]

# fields of which the core's cascade is built
_DECIDING = ("models", "stages", "threshold", "signals", "on_error", "on_exhausted")


class ConfidenceCascadeLLM(BaseChatModel):
    """A chat model that lets smaller models answer what they are likely enough to get right, and larger ones the rest.

    Every answer says what happened in ``response_metadata["confcascade"]``, on `invoke` and on the last chunk of a
    stream alike; where no message survives, `confcascade.trace` collects the same records.  ``usage_metadata`` counts
    every attempt that was paid for.  A stream shows no token of an answer that may still be withdrawn.

    Callbacks see one call, the cascade's; those of the stages' own objects see the stages.

    Args:
        models: Smallest first; the last always answers. LangChain chat models (also with `bind`), core models, or
            strings such as ``"openai:gpt-4o-mini"``.
        stages: The same, with signals and thresholds of their own.
        threshold: With `models`: a number for the one signal, or numbers by signal name.
        signals: With `models`: what judges every stage but the last; by default P(T) of the answer.
        on_error: "escalate" passes a query whose model failed on to the next stage; "raise" raises its error.
        on_exhausted: If the last stage fails, "best" returns the last complete earlier answer, its record flagged
            ``degraded``; "raise" raises `CascadeExhaustedError`.
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
    models: SkipValidation[Sequence[Any] | None] = None
    stages: SkipValidation[Sequence[Stage] | None] = None
    threshold: SkipValidation[Threshold | Mapping[str, Threshold] | None] = None
    signals: SkipValidation[Sequence[Signal] | None] = None
    on_error: SkipValidation[OnError] = "escalate"
    on_exhausted: SkipValidation[OnExhausted] = "best"

    _built: tuple[tuple[Any, ...], Cascade] | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        models: Sequence[BaseChatModel | LanguageModel | str | Any] | None = None,
        stages: Sequence[Stage] | None = None,
        threshold: Threshold | Mapping[str, Threshold] | None = None,
        signals: Sequence[Signal] | None = None,
        on_error: OnError = "escalate",
        on_exhausted: OnExhausted = "best",
        **parameters: Any,
    ) -> None:
        own: dict[str, Any] = {"models": _loaded(models), "stages": _loaded(stages), "threshold": threshold}
        own |= {"signals": signals, "on_error": on_error, "on_exhausted": on_exhausted}
        super().__init__(**own, **parameters)
        _ = self.cascade  # built now, for errors to show now

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # tracers keep the repr of a model that is not serializable: names, never the stages' settings
        return [("stages", [stage.model.name for stage in self.cascade.stages]), ("policy_id", self.cascade.policy_id)]

    @property
    def cascade(self) -> Cascade:
        """The core's cascade, which answers. Built anew after `model_copy`, unpickling or assignment to a field."""
        fields = self.__dict__  # read for every call, and an attribute of a pydantic model takes its time
        given = tuple([fields[name] for name in _DECIDING])
        built = self._built
        if built is None or any(map(is_not, given, built[0])):
            stages = build_stages(
                models=self.models, stages=self.stages, threshold=self.threshold, signals=self.signals, wrap=_wrap
            )
            built = self._built = given, Cascade(stages, on_error=self.on_error, on_exhausted=self.on_exhausted)
        return built[1]

    # ------------------------------------------------------------------ what it is

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
        }

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # as inherited, but for the way through the deprecated `dict`, whose warnings are caught for every call
        return {**self.asdict(), "stop": stop, **kwargs}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's cache: cascades that may answer differently differ here."""
        fingerprints = [getattr(stage.model, "fingerprint", None) for stage in self.cascade.stages]
        return f"{super()._get_llm_string(stop=stop, **kwargs)} {fingerprints}"

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

    # ------------------------------------------------------------------ calls

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(self.cascade.run(request_from(messages, stop, kwargs)))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(await self.cascade.arun(request_from(messages, stop, kwargs)))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(self.cascade.stream(request_from(messages, stop, kwargs))) as items:  # type: ignore[type-var]
            for item in items:
                yield from self._chunks(item)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(self.cascade.astream(request_from(messages, stop, kwargs))) as items:  # type: ignore[type-var]
            async for item in items:
                for chunk in self._chunks(item):
                    yield chunk

    # ------------------------------------------------------------------ answers

    def _result(self, outcome: Outcome) -> ChatResult:
        native = outcome.response.native
        message = native if isinstance(native, AIMessage) else AIMessage(content=outcome.text)
        # a copy, for a cache or a fake may give the same message again; without id, LangChain gives it the run's
        message = message.model_copy(update={"id": None, **self._account(outcome)})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunks(self, item: Chunk | Outcome) -> Iterator[ChatGenerationChunk]:
        if isinstance(item, Outcome):
            yield ChatGenerationChunk(message=AIMessageChunk(content="", chunk_position="last", **self._account(item)))
        elif (message := shown(item)) is not None:
            yield ChatGenerationChunk(message=message)

    def _account(self, outcome: Outcome) -> dict[str, Any]:
        """``usage_metadata`` and ``response_metadata``: of a stream, exactly one chunk may carry them."""
        native = outcome.response.native
        metadata = {"finish_reason": outcome.response.finish_reason}
        return {
            "usage_metadata": usage_metadata(outcome.record.usage),
            "response_metadata": {
                **{key: value for key, value in metadata.items() if value is not None},
                **(native.response_metadata if isinstance(native, AIMessage) else {}),
                "model_name": f"confcascade-{outcome.record.policy_id}",
                "confcascade": outcome.record.as_dict(),
            },
        }


def _loaded(given: Any) -> Any:
    """`models` or `stages` with models in the place of strings: a copy of the cascade must not load them again."""
    if isinstance(given, BaseChatModel | LanguageModel | Stage):
        raise ConfigurationError(
            f"`models` and `stages` must be lists, smallest first. Got one {type(given).__name__}."
        )
    if not isinstance(given, list | tuple):
        return given  # for the core to judge
    return [
        from_string(item)
        if isinstance(item, str)
        else replace(item, model=from_string(item.model))
        if isinstance(item, Stage) and isinstance(item.model, str)
        else item
        for item in given
    ]


def _wrap(model: Any) -> LanguageModel:
    if isinstance(model, BaseChatModel | RunnableBindingBase):
        return LangChainModel(model)
    if isinstance(model, LanguageModel):
        return model
    kind = type(model)
    if any(cls.__module__.startswith("llama_index.") for cls in kind.__mro__):
        raise ConfigurationError(
            f"{kind.__name__} is a model of LlamaIndex: use llamaindex_confcascade.ConfidenceCascadeLLM, "
            "or LangChain's class for the same model."
        )
    raise ConfigurationError(
        f"A stage's model must be a LangChain chat model, a LanguageModel or a string. Got {kind.__name__}."
    )
