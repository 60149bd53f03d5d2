"""How a chat model is called, of which no handler is to be told: as far below `invoke` and `stream` as nothing is lost.

LangChain's `invoke` finds out handlers, makes a run, tells it, and then looks answers up, waits for the rate limiter,
streams where that is wanted, and calls `_generate`, which the model's class writes itself. Of a stage nobody is told:
a call enters where there is something to do for it. Whatever is bound around a model, overrides or patches one of these
methods, or has handlers of its own, is called as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_core.globals import get_debug, get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import _gen_info_and_msg_metadata
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig

__all__ = ["ainvoked", "astreamed", "invoked", "streamed"]


def _methods(names: str) -> dict[str, Any]:
    return {name: getattr(BaseChatModel, name) for name in names.split()}


# by which `invoke` and `stream` come to what a class writes itself, as LangChain has them: tracers patch them
_INVOKE = _methods("invoke ainvoke generate_prompt agenerate_prompt generate agenerate _convert_input")
_STREAM = _methods("stream astream _convert_input")
_GENERATE = _methods("_generate_with_cache")
_AGENERATE = _methods("_agenerate_with_cache")
# parameters that are for handlers, and do not reach the model
_HANDLER_PARAMETERS = ("ls_structured_output_format", "structured_output_format")

Messages = Sequence[BaseMessage]
Parameters = Mapping[str, Any]


def invoked(chat: BaseChatModel, runnable: Any, messages: Messages, parameters: Parameters) -> Any:
    """The message of a whole answer.

    Args:
        chat: The model.
        runnable: It, with what is bound to it.
        messages: What it is asked; it is given a list of its own.
        parameters: Of the call.
    """
    if _is_watched(chat, runnable, messages, parameters, _INVOKE):
        # LangChain's `invoke` makes a list of its own of the messages
        return runnable.invoke(messages, _config(), **parameters)
    if _only_generates(chat, "_generate", _GENERATE, parameters, is_async=False):
        return _finished(chat._generate(list(messages), **_given(type(chat)._generate, parameters)))
    return chat._generate_with_cache(list(messages), **parameters).generations[0].message


async def ainvoked(chat: BaseChatModel, runnable: Any, messages: Messages, parameters: Parameters) -> Any:
    """`invoked`, asynchronously."""
    if _is_watched(chat, runnable, messages, parameters, _INVOKE):
        return await runnable.ainvoke(messages, _config(), **parameters)
    if _only_generates(chat, "_agenerate", _AGENERATE, parameters, is_async=True):
        return _finished(await chat._agenerate(list(messages), **_given(type(chat)._agenerate, parameters)))
    return (await chat._agenerate_with_cache(list(messages), **parameters)).generations[0].message


def streamed(
    chat: BaseChatModel, runnable: Any, messages: Messages, parameters: Parameters
) -> Generator[Any, None, None]:
    """The messages of an answer that comes in pieces; arguments as of `invoked`."""
    if _only_streams(chat, runnable, messages, parameters, is_async=False):
        return _pieces(chat._stream(list(messages), **{"stop": None, **parameters}))
    return runnable.stream(messages, _config(), **parameters)  # type: ignore[no-any-return]


def astreamed(chat: BaseChatModel, runnable: Any, messages: Messages, parameters: Parameters) -> AsyncGenerator[Any]:
    """`streamed`, asynchronously."""
    if _only_streams(chat, runnable, messages, parameters, is_async=True):
        return _apieces(chat._astream(list(messages), **{"stop": None, **parameters}))
    return runnable.astream(messages, _config(), **parameters)  # type: ignore[no-any-return]


def _config() -> RunnableConfig:
    return {"callbacks": []}


def _is_watched(
    chat: BaseChatModel, runnable: Any, messages: Messages, parameters: Parameters, methods: Mapping[str, Any]
) -> bool:
    """Whether a call needs the whole of a public method, and not only what is left of it where nobody is to be told.

    Telling is most of its time.
    """
    return (
        runnable is not chat
        or not _is_langchains(chat, methods)
        or bool(chat.callbacks or chat.verbose)
        or get_debug()
        or not parameters.keys().isdisjoint(_HANDLER_PARAMETERS)
        or any(isinstance(message.content, list) for message in messages)  # blocks are normalised on the way
    )


def _is_langchains(chat: BaseChatModel, methods: Mapping[str, Any]) -> bool:
    """Whether none of these methods is overridden or patched."""
    kind = type(chat)
    for name, its in methods.items():
        if getattr(kind, name) is not its:
            return False
    return methods.keys().isdisjoint(vars(chat))


def _only_generates(
    chat: BaseChatModel, method: str, methods: Mapping[str, Any], parameters: Parameters, *, is_async: bool
) -> bool:
    """Whether all that LangChain would do is to call `method`, with nothing to look up, to wait for or to stream.

    On its way it looks anew, for every call, at what the method's signature is, which takes as long as a quick client.
    """
    return not (
        not _is_langchains(chat, methods)
        or method in vars(chat)
        or chat.rate_limiter is not None
        or chat.output_version == "v1"  # of which blocks are made
        or chat.cache
        or (chat.cache is None and get_llm_cache() is not None)
        or chat._should_stream(async_api=is_async, **parameters)
    )


def _only_streams(
    chat: BaseChatModel, runnable: Any, messages: Messages, parameters: Parameters, *, is_async: bool
) -> bool:
    """Whether all that LangChain would do is to hand on what the class's own `_stream` yields."""
    return not (
        _is_watched(chat, runnable, messages, parameters, _STREAM)
        or chat.rate_limiter is not None
        or chat.output_version == "v1"
        or not chat._should_stream(async_api=is_async, **{**parameters, "stream": True})
    )


def _given(method: Any, parameters: Parameters) -> dict[str, Any]:
    """As `_generate` takes them: with what LangChain always gives."""
    return {"stop": None, **({"run_manager": None} if _is_told_of_a_run(method) else {}), **parameters}


@lru_cache(maxsize=512)
def _is_told_of_a_run(method: Any) -> bool:
    """Whether a class's `_generate` takes the manager of its run."""
    return "run_manager" in inspect.signature(method).parameters


def _finished(result: ChatResult) -> BaseMessage:
    """The message of a result, with what the result says beside it, as LangChain puts it there."""
    generation = result.generations[0]
    metadata = _gen_info_and_msg_metadata(generation)
    if len(result.generations) == 1 and result.llm_output is not None:
        metadata = {**result.llm_output, **metadata}
    generation.message.response_metadata = metadata
    return generation.message


def _pieces(chunks: Iterator[ChatGenerationChunk]) -> Generator[BaseMessage, None, None]:
    """The messages of a stream, as LangChain's `stream` hands them out, but for the id of the run that there is not."""
    message: BaseMessage | None = None
    for chunk in chunks:
        yield (message := _piece(chunk))
    yield from _closing(message)


async def _apieces(chunks: AsyncIterator[ChatGenerationChunk]) -> AsyncGenerator[BaseMessage]:
    """`_pieces`, asynchronously."""
    message: BaseMessage | None = None
    async for chunk in chunks:
        yield (message := _piece(chunk))
    for each in _closing(message):
        yield each


def _piece(chunk: ChatGenerationChunk) -> BaseMessage:
    chunk.message.response_metadata = _gen_info_and_msg_metadata(chunk)
    return chunk.message


def _closing(last: BaseMessage | None) -> Iterator[BaseMessage]:
    """What follows the last piece: a mark of the end, if it is none."""
    if last is None:
        raise ValueError("No generation chunks were returned")
    if isinstance(last, AIMessageChunk) and not last.chunk_position:
        yield AIMessageChunk(content="" if isinstance(last.content, str) else [], chunk_position="last")
