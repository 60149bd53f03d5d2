"""`ConfidenceCascadeLLM`: a cascade as a LlamaIndex LLM. Convert, call, convert back."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import asdict
from typing import Any, Literal, Self, TypeVar

from confcascade import (
    Audit,
    Cascade,
    ConfigurationError,
    Outcome,
    Request,
    RetrievalScore,
    Stage,
    Steps,
    StepwiseCascade,
    checking,
)
from confcascade.extending import Chunk, Mode, Signal, Threshold, cascade_of, settings_digest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import (
    BaseModel,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index_instrumentation import get_dispatcher

from llamaindex_confcascade.asking import Asked, AskedPrompt, Template, asked_messages, settings_of_caller
from llamaindex_confcascade.convert import chunk_of, completion_of, request_from, response_of
from llamaindex_confcascade.given import wrapping
from llamaindex_confcascade.huggingface import HuggingFaceModel
from llamaindex_confcascade.instrumentation import report
from llamaindex_confcascade.model import LlamaIndexModel, settings_of
from llamaindex_confcascade.retrieval import watch_retrievals
from llamaindex_confcascade.steps import ain_this_context, in_this_context
from llamaindex_confcascade.structured import BoundSchema, Structured, parsed_from
from llamaindex_confcascade.tools import (
    bound_tool,
    keep_first_call,
    selections,
)

__all__ = ["ConfidenceCascadeLLM"]

T = TypeVar("T")
Object = TypeVar("Object", bound=BaseModel)

dispatcher = get_dispatcher(__name__)
_UNTOLD = LLMMetadata()
_TELLING = (LlamaIndexModel, HuggingFaceModel)  # models with `metadata`


class ConfidenceCascadeLLM(FunctionCallingLLM):
    """An LLM that asks small models first and larger ones where the small are not sure.

    Use it as any LLM: in `Settings.llm`, a query engine, a chat engine or an agent. Every answer carries the record of
    how it came about in ``additional_kwargs["confcascade"]``; where no response survives, `confcascade.trace` collects
    it.
    Callbacks, events and spans tell of one call, the cascade's, and a span below it of each attempt; the stages are
    silent, whatever callback manager they have. Tokens count over all attempts, once.

    Tools and structured output are asked of each stage in its own LLM's way. A call of an unknown tool, arguments that
    do not fit, or an object that does not validate escalate; what the last stage says is yours to handle, as it would
    be alone. Objects come whole, also from `stream_structured_predict`.

    Args:
        models: Smallest first; the last always answers. LlamaIndex LLMs, core models, or strings ("openai:gpt-4o").
        stages: In place of `models`: `confcascade.Stage` objects with signals and thresholds of their own.
        threshold: With `models`: what an answer's score must reach to be kept; one number, or numbers by signal.
        signals: With `models`: what judges an answer; by default P(T), `confcascade.TokenProbability`.
        policy: With `models`: one that ``confcascade fit`` made of them, or its file, in the place of a threshold.
        group: With a `policy` that has thresholds of its own for each group of questions: which group is asked here.
        mode: With "stepwise", a small and a large model write each answer in turn, step by step
            (`confcascade.StepwiseCascade`): core models, and LlamaIndex's where `LlamaIndexModel(continues=...)` says
            how. The large one alone answers requests with tools, structured output or images. With "query", the first
            model that is sure enough gives the whole answer.
        steps: With ``mode="stepwise"``: what a step is, and who may end the answer.
        on_error: With "escalate", a query whose model failed goes to the next stage; "raise" raises its error.
        on_exhausted: If the last stage fails, "raise" raises `confcascade.CascadeExhaustedError`, which is an instance
            of its error's class, too; "best" returns the last complete earlier answer in words, flagged as degraded in
            the record, although it was rejected. A cascade of one stage raises that stage's own error.
        on_cut: What happens to a text that was cut off at the token limit. With "escalate" it goes to the next model,
            which may finish; with "keep" it is judged as it stands.
        audit: The share of kept answers that the largest model is asked about in the background, or a
            `confcascade.Audit`. A share with a `policy` guards that policy's promise.
        **fields: Those of every LlamaIndex LLM, such as ``system_prompt`` or ``callback_manager``.

    Raises:
        ConfigurationError: If the cascade cannot work as configured.

    >>> from confcascade.testing import ScriptedModel
    >>> small, large = ScriptedModel("small", {"2+2?": ("4", 0.99)}), ScriptedModel("large")
    >>> response = ConfidenceCascadeLLM(models=[small, large], threshold=0.9).complete("2+2?")
    >>> response.text, response.additional_kwargs["confcascade"]["answered_by"]
    ('4', 'small')
    """

    _cascade: Cascade = PrivateAttr()  # private, so that no key of a stage is ever serialized

    def __init__(
        self,
        *,
        models: Sequence[Any] | None = None,
        stages: Sequence[Stage] | None = None,
        threshold: Threshold | Mapping[str, Threshold] | None = None,
        signals: Sequence[Signal] | None = None,
        policy: Any = None,
        group: str | None = None,
        mode: Mode = "query",
        steps: Steps | None = None,
        on_error: Literal["escalate", "raise"] = "escalate",
        on_exhausted: Literal["best", "raise"] = "raise",
        on_cut: Literal["escalate", "keep"] = "escalate",
        audit: float | Audit = 0.0,
        **fields: Any,
    ) -> None:
        if unknown := sorted(set(fields) - set(type(self).model_fields)):
            warnings.warn(
                f"ConfidenceCascadeLLM has no parameter {', '.join(map(repr, unknown))}, and ignores it. "
                "What is for the models goes to the stages' own objects, or along with a call.",
                stacklevel=2,
            )
        cascade = cascade_of(
            mode,
            steps=steps,
            models=models,
            stages=stages,
            threshold=threshold,
            signals=signals,
            policy=policy,
            group=group,
            wrap=wrapping(),
            on_error=on_error,
            on_exhausted=on_exhausted,
            on_cut=on_cut,
            audit=audit,
            on_ended=report,
        )
        known = {name: value for name, value in fields.items() if value is not None and name not in unknown}
        super().__init__(**known)
        self._cascade = cascade
        self._check_parsers()
        self._watch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()  # in another process, nobody does yet

    def _check_parsers(self) -> None:
        """An LLM's own parser reads what `predict` returns, and the cascade's `predict` returns it."""
        for stage in self._cascade.stages:
            parser = getattr(getattr(stage.model, "native", None), "output_parser", None)
            if parser is not None and self.output_parser is None:
                raise ConfigurationError(
                    f"The LLM of stage '{stage.model.name}' has an output_parser, which would not be applied: "
                    "LlamaIndex applies that of the LLM that it asks. Give it to the cascade: "
                    "ConfidenceCascadeLLM(..., output_parser=...)."
                )

    def _watch(self) -> None:
        """See retrievals, if a signal wants to."""
        if any(isinstance(signal, RetrievalScore) for stage in self._cascade.stages for signal in stage.signals):
            watch_retrievals()

    @classmethod
    def class_name(cls) -> str:
        return "ConfidenceCascadeLLM"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Not supported.

        Raises:
            ConfigurationError: Always. What `to_dict` holds are names; it is a key for caches.
        """
        del data, kwargs
        raise ConfigurationError(
            "A cascade cannot be made from `to_dict` or `to_json`: they hold the names of its models, not the models. "
            "Pickle it, or build it from its models."
        )

    @property
    def cascade(self) -> Cascade:
        """The core's cascade, which answers: its `stages`, `policy_id` and `auditor`."""
        private = self.__pydantic_private__  # pydantic finds a private attribute only where no other is of its name
        assert private is not None
        cascade: Cascade = private["_cascade"]
        return cascade

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # the stages, which hold clients that cannot be copied, are never changed and so can be shared
        return super().__deepcopy__({**(memo or {}), id(self._cascade): self._cascade})

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """What `to_dict` holds: all that decides answers, under names, and no key of a model.

        LlamaIndex keys caches by it: an ingestion pipeline hands out what it cached for transformations that are alike.
        The settings of stages, such as a temperature or a prompt, are there as digests.
        """
        told = super().custom_model_dump(handler, info)
        cascade = self._cascade
        return told | {
            "stages": [stage.model.name for stage in cascade.stages],
            "settings": [settings_digest(stage.model, settings_of(stage.model)) for stage in cascade.stages],
            "policy_id": cascade.policy_id,
            "on_error": cascade.on_error,
            "on_exhausted": cascade.on_exhausted,
            "on_cut": cascade.on_cut,
            **({"steps": asdict(cascade.steps)} if isinstance(cascade, StepwiseCascade) else {}),
        }

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield "stages", [stage.model.name for stage in self._cascade.stages]
        yield "policy_id", self._cascade.policy_id
        if isinstance(self._cascade, StepwiseCascade):
            yield "steps", self._cascade.steps

    @property
    def metadata(self) -> LLMMetadata:
        """What holds for every stage: the smallest known window and output. The name is the cascade's own.

        Whether it chats is the last stage's, and so is function calling: others that cannot call tools are skipped when
        tools are asked for, so each such request is answered if the last can; if it cannot, LlamaIndex's agents and
        programs ask in words.
        """
        windows, outputs = [], []
        cascade = self.cascade
        for stage in cascade.stages:
            model = stage.model
            theirs = model.metadata if isinstance(model, _TELLING) else None
            chats = theirs is None or theirs.is_chat_model
            if theirs is not None:
                windows.append(theirs.context_window)
                if theirs.num_output > 0:  # -1 is LlamaIndex's word for "not set"
                    outputs.append(theirs.num_output)
            if (capability := model.capability).context_window is not None:
                windows.append(capability.context_window)
        window = min(windows, default=_UNTOLD.context_window)
        # LlamaIndex's default may be more than a small window holds
        output = min(outputs, default=min(_UNTOLD.num_output, window // 4))
        return LLMMetadata(
            context_window=window,
            num_output=output,
            is_chat_model=chats,
            is_function_calling_model=capability.tools,
            model_name=f"confcascade-{cascade.policy_id}",
        )

    # ------------------------------------------------------------------ the eight methods

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return response_of(self.cascade.run(self._request(messages, kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return response_of(await self.cascade.arun(self._request(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream(self._request(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return self._astream(self._request(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return completion_of(response_of(self.cascade.run(self._completion(prompt, formatted, kwargs))))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return completion_of(response_of(await self.cascade.arun(self._completion(prompt, formatted, kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        chunks = self._stream(self._completion(prompt, formatted, kwargs))
        return (completion_of(chunk) for chunk in chunks)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        chunks = self._astream(self._completion(prompt, formatted, kwargs))
        return (completion_of(chunk) async for chunk in chunks)

    def _request(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Request:
        return request_from(Asked.of(messages, messages, settings=settings_of_caller(self)), kwargs)

    def _completion(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> Request:
        how = {"completion": (str(prompt), formatted), "settings": settings_of_caller(self)}
        return request_from(Asked.of(prompt, asked_messages(str(prompt)), **how), kwargs)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        template = Template.of(prompt, prompt_args)
        return Asked.of(None, super()._get_messages(prompt, **template.values), template=template)

    def _get_prompt(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        template = Template.of(prompt, prompt_args)
        written = AskedPrompt(super()._get_prompt(prompt, **template.values))
        written.template = template
        return written

    # ------------------------------------------------------------------ tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        del verbose
        messages = list(chat_history or ())
        if user_msg:
            messages += asked_messages(user_msg) if isinstance(user_msg, str) else [user_msg]
        if not tools:
            return {"messages": messages, **kwargs}
        last = self._cascade.stages[-1].model
        if not last.capability.tools:
            raise ConfigurationError(
                f"The last stage, '{last.name}', always answers, and cannot call tools. "
                "Put a model that can last, or use an agent that asks in words, such as ReActAgent."
            )
        return {
            "messages": messages,
            "tools": [bound_tool(tool) for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        del tools, kwargs
        if not allow_parallel_tool_calls:  # the first call alone, as LlamaIndex's OpenAI does it
            keep_first_call(response.message)
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of an answer, or of what has been streamed of it.

        Raises:
            ValueError: If there is none, unless `error_on_no_tool_call` is False.
        """
        calls = selections(response.message)
        if not calls and response.message.additional_kwargs.get("tool_calls"):
            # of a form that only the LLM itself can read; what is shown before the record is the last stage's
            record = response.additional_kwargs.get("confcascade", {"stage": -1})
            model = self._cascade.stages[record["stage"]].model
            if isinstance(model, LlamaIndexModel) and isinstance(model.native, FunctionCallingLLM):
                calls = model.native.get_tool_calls_from_response(response, error_on_no_tool_call=False, **kwargs)
        if not calls and error_on_no_tool_call:
            raise ValueError("Expected at least one tool call, but got 0 tool calls.")
        return calls

    # ------------------------------------------------------------------ structured output

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """As any LLM's; what the prompt's own parser cannot read goes to the next stage.

        `stage` and `threshold` are the parameters of the call, unless the template has a variable of that name; so they
        are in `stream`, `structured_predict` and their twins.

        Raises:
            ConfigurationError: If no stage is called so, or it is no threshold.
            CascadeExhaustedError: If no stage gave an answer.
        """
        with self._parsing(prompt):
            return super().predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """`predict`, without blocking the event loop."""
        with self._parsing(prompt):
            return await super().apredict(prompt, **prompt_args)

    def _parsing(self, prompt: BasePromptTemplate) -> AbstractContextManager[None]:
        """While it is open, only what the parsers of `predict` can read, and find something in, is kept."""
        parsers = [parser for parser in (prompt.output_parser, self.output_parser) if parser is not None]
        if not parsers:
            return nullcontext()

        def check(text: str) -> bool:
            told = [parser.parse(text) for parser in parsers]
            return all(getattr(parsed, "parsed_output", parsed) not in (None, []) for parsed in told)

        return checking(check)

    def structured_predict(
        self,
        output_cls: type[Object],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Object:
        """An object of `output_cls`, as each stage's own `structured_predict` gives it.

        Raises:
            CascadeExhaustedError: If no stage gave an answer.
            Exception: What the last stage's LLM raises alone, if its answer gives no object.
        """
        event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        dispatcher.event(event)
        response = self.chat(**self._wanting(output_cls, prompt, llm_kwargs, prompt_args))
        value = parsed_from(response, output_cls)
        dispatcher.event(LLMStructuredPredictEndEvent(output=value))
        return value  # type: ignore[no-any-return]

    async def astructured_predict(
        self,
        output_cls: type[Object],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Object:
        """`structured_predict`, without blocking the event loop."""
        event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        dispatcher.event(event)
        response = await self.achat(**self._wanting(output_cls, prompt, llm_kwargs, prompt_args))
        value = parsed_from(response, output_cls)
        dispatcher.event(LLMStructuredPredictEndEvent(output=value))
        return value  # type: ignore[no-any-return]

    def _structured_stream_call(
        self,
        output_cls: type[Object],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Object, None, None]:
        yield parsed_from(self.chat(**self._wanting(output_cls, prompt, llm_kwargs, prompt_args)), output_cls)

    async def _structured_astream_call(
        self,
        output_cls: type[Object],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Object, None]:
        async def objects() -> AsyncGenerator[Object, None]:
            response = await self.achat(**self._wanting(output_cls, prompt, llm_kwargs, prompt_args))
            yield parsed_from(response, output_cls)

        return objects()

    def _wanting(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None,
        prompt_args: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The parameters of a chat that is to give an object."""
        # tools are a stage's own means to it: LlamaIndex's programs drop what is said of them, too
        unwanted = ("tool_choice", "tool_required", "allow_parallel_tool_calls")
        template = Template.of(prompt, prompt_args)
        messages = self._extend_messages(prompt.format_messages(llm=self, **template.values))
        return {
            "messages": Asked.of(None, messages, template=template),
            "response_format": BoundSchema(Structured(output_cls)),
            **{key: value for key, value in (llm_kwargs or {}).items() if key not in unwanted},
        }

    # ------------------------------------------------------------------ streams

    def _stream(self, request: Request) -> ChatResponseGen:
        def chunks() -> ChatResponseGen:
            text = ""
            for item in self._cascade.stream(request):
                if isinstance(item, Chunk):
                    text += item.text
                    yield chunk_of(item, text)
                else:
                    yield response_of(item, delta="")

        # wherever it is consumed, it belongs to the traces and spans that are open here
        return in_this_context(chunks())

    def _astream(self, request: Request) -> ChatResponseAsyncGen:
        return _apieces(ain_this_context(self._cascade.astream(request)))


# LlamaIndex binds the arguments of every call for its spans; to find a signature out takes a fifth of such a call
for _name in (f"{a}{stream}{what}" for a in ("", "a") for stream in ("", "stream_") for what in ("chat", "complete")):
    _method: Any = vars(ConfidenceCascadeLLM)[_name]
    _method = getattr(_method, "__wrapped__", _method)
    _method.__signature__ = inspect.signature(_method)


async def _apieces(answered: AsyncIterator[Chunk | Outcome]) -> ChatResponseAsyncGen:
    text = ""
    async with aclosing(answered) as items:  # type: ignore[type-var]  # an async generator
        async for item in items:
            if isinstance(item, Chunk):
                text += item.text
                yield chunk_of(item, text)
            else:
                yield response_of(item, delta="")
