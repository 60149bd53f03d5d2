"""`ConfidenceCascadeLLM`: a cascade as a LlamaIndex LLM. Convert, call, convert back."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import copy_context
from typing import Any, Literal, TypeVar

from confcascade import (
    Cascade,
    Chunk,
    ConfigurationError,
    LanguageModel,
    Message,
    Outcome,
    Request,
    Response,
    Signal,
    Stage,
    Threshold,
    Token,
    build_stages,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.instrumentation import TracedCascade
from llamaindex_confcascade.model import LlamaIndexModel

__all__ = ["ConfidenceCascadeLLM"]

T = TypeVar("T")

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


class ConfidenceCascadeLLM(LLM):
    """An LLM that asks small models first and larger ones where the small are not sure.

    Use it as any LLM: in `Settings.llm`, a query engine or a chat engine. Every answer carries the record of how it
    came about in ``additional_kwargs["confcascade"]``; where no response survives, `confcascade.trace` collects it.
    Callbacks, events and spans tell of one call, the cascade's, and a span below it of each attempt; the stages are
    silent, whatever callback manager they have. Tokens count over all attempts, once.

    Args:
        models: Smallest first; the last always answers. LlamaIndex LLMs, core models, or strings ("openai:gpt-4o").
        stages: In place of `models`: `confcascade.Stage` objects with signals and thresholds of their own.
        threshold: With `models`: what an answer's score must reach to be kept; one number, or numbers by signal.
        signals: With `models`: what judges an answer; by default P(T), `confcascade.TokenProbability`.
        on_error: "escalate" passes a query whose model failed on to the next stage; "raise" raises its error.
        on_exhausted: If the last model fails, "best" returns the last complete earlier answer, flagged as degraded in
            the record; "raise" raises `confcascade.CascadeExhaustedError`.
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
        on_error: Literal["escalate", "raise"] = "escalate",
        on_exhausted: Literal["best", "raise"] = "best",
        **fields: Any,
    ) -> None:
        if unknown := sorted(set(fields) - set(type(self).model_fields)):
            raise ConfigurationError(f"ConfidenceCascadeLLM has no parameter {', '.join(map(repr, unknown))}.")
        built = build_stages(models=models, stages=stages, threshold=threshold, signals=signals, wrap=_wrap)
        cascade = TracedCascade(built, on_error=on_error, on_exhausted=on_exhausted)
        super().__init__(**{name: value for name, value in fields.items() if value is not None})
        self._cascade = cascade

    @classmethod
    def class_name(cls) -> str:
        return "ConfidenceCascadeLLM"

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield "stages", [stage.model.name for stage in self._cascade.stages]
        yield "policy_id", self._cascade.policy_id

    @property
    def metadata(self) -> LLMMetadata:
        """What holds for every stage: the smallest known window and output. The name is the cascade's own."""
        models = [stage.model for stage in self._cascade.stages]
        known = [metadata for model in models if isinstance(model, LlamaIndexModel) and (metadata := model.metadata)]
        ours = LLMMetadata(
            is_chat_model=True,
            is_function_calling_model=False,
            model_name=f"confcascade-{self._cascade.policy_id}",
        )
        ours.context_window = min((theirs.context_window for theirs in known), default=ours.context_window)
        # -1 is LlamaIndex's word for "not set"
        ours.num_output = min((theirs.num_output for theirs in known if theirs.num_output > 0), default=ours.num_output)
        return ours

    # ------------------------------------------------------------------ the eight methods

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _response(self._cascade.run(_request(messages, kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _response(await self._cascade.arun(_request(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream(_request(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return self._astream(_request(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        del formatted
        return _completion(_response(self._cascade.run(_request(_asked(prompt), kwargs))))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        del formatted
        return _completion(_response(await self._cascade.arun(_request(_asked(prompt), kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        del formatted
        chunks = self._stream(_request(_asked(prompt), kwargs))
        return (_completion(chunk) for chunk in chunks)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        del formatted
        chunks = self._astream(_request(_asked(prompt), kwargs))
        return (_completion(chunk) async for chunk in chunks)

    def _stream(self, request: Request) -> ChatResponseGen:
        def chunks() -> ChatResponseGen:
            text = ""
            for item in self._cascade.stream(request):
                if isinstance(item, Chunk):
                    text += item.text
                    yield _chunk(item, text)
                else:
                    yield _response(item, delta="")

        # wherever it is consumed, it belongs to the traces and spans that are open here
        return _in_this_context(chunks())

    def _astream(self, request: Request) -> ChatResponseAsyncGen:
        return _apieces(_ain_this_context(self._cascade.astream(request)))


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
                yield _chunk(item, text)
            else:
                yield _response(item, delta="")


def _wrap(model: Any) -> Any:
    if isinstance(model, LLM):
        return LlamaIndexModel(model)
    origins = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if not isinstance(model, LanguageModel) and any(origin.startswith("langchain") for origin in origins):
        raise ConfigurationError(
            f"{type(model).__name__} is a model of LangChain; use langchain_confcascade.ConfidenceCascadeLLM, "
            "or give its LlamaIndex counterpart."
        )
    return model


def _asked(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=prompt)]


def _request(messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Request:
    if not all(isinstance(message, ChatMessage) for message in messages):
        raise ConfigurationError(
            f"`messages` must be a list of ChatMessage; a text goes into `complete`. Got {type(messages).__name__}."
        )
    options = dict(kwargs)
    stop = options.pop("stop", None) or ()
    return Request(
        tuple(Message(_ROLES.get(message.role, "user"), message.content or "") for message in messages),
        max_tokens=options.pop("max_tokens", None),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        temperature=options.pop("temperature", None),
        options=options,
        native=list(messages),
    )


def _response(outcome: Outcome, delta: str | None = None) -> ChatResponse:
    usage, tokens = outcome.record.usage, outcome.response.tokens
    counts = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    native = _native(outcome.response)
    raw = outcome.response.native if native is None else native.raw
    return ChatResponse(
        message=_message(native, outcome.text),
        raw={"usage": counts} if raw is None else {"usage": counts, "native": raw},
        delta=delta,
        logprobs=None if tokens is None else [_logprobs(token) for token in tokens],
        # not on the message: from there it would leak into prompts and memories
        additional_kwargs={
            **(native.additional_kwargs if native else {}),
            **counts,
            "confcascade": outcome.record.as_dict(),
        },
    )


def _chunk(chunk: Chunk, text: str) -> ChatResponse:
    return ChatResponse(message=_message(_native(chunk), text), delta=chunk.text)


def _native(answer: Response | Chunk) -> ChatResponse | None:
    """What the stage itself returned, if it is a LlamaIndex LLM."""
    return answer.native if isinstance(answer.native, ChatResponse) else None


def _message(native: ChatResponse | None, text: str) -> ChatMessage:
    """A copy of the stage's message, if it is LlamaIndex's: some LLMs return shared objects."""
    if native is None:
        return ChatMessage(role=MessageRole.ASSISTANT, content=text)
    message = native.message.model_copy(
        update={"blocks": list(native.message.blocks), "additional_kwargs": dict(native.message.additional_kwargs)}
    )
    if (message.content or "") != text and all(isinstance(block, TextBlock) for block in message.blocks):
        message.blocks = [TextBlock(text=text)]  # some streams repeat the increment where the whole belongs
    return message


def _logprobs(token: Token) -> list[Any]:
    """The chosen token and its alternatives, as `LogProb` is built: all at once, which takes half the time."""
    told = [(token.text, token.logprob), *(other for other in token.top if other[0] != token.text)]
    return [
        {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}
        for text, logprob in told
    ]


def _completion(chat: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=chat.message.content or "",
        additional_kwargs=chat.additional_kwargs,
        raw=chat.raw,
        logprobs=chat.logprobs,
        delta=chat.delta,
    )


def _in_this_context(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """`items`, each step of it run in a copy of the context of this call, whoever consumes them."""
    context = copy_context()

    def run() -> Generator[T, None, None]:
        try:
            while (item := context.run(next, items, None)) is not None:
                yield item
        finally:
            context.run(items.close)

    return run()


def _ain_this_context(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """`_in_this_context` for an asynchronous generator: whoever consumes it keeps a context of their own."""
    context, unset = copy_context(), object()

    async def run() -> AsyncIterator[T]:
        async with aclosing(items):  # type: ignore[type-var]  # an async generator
            while True:
                # for this step alone: it is the consumer's task that takes it
                changed = [(var, var.set(value)) for var, value in context.items() if var.get(unset) is not value]
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                finally:
                    for var, token in changed:
                        var.reset(token)
                yield item

    return run()
