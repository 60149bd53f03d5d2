"""How a cascade was asked, and so how each stage is asked: for a chat, for a completion, or with a prompt template.

LlamaIndex's `predict` and `stream` write the prompt for the LLM that they are called on: by its template for chats or
for completions, with its system prompt.  In a cascade each stage's prompt is written for that stage, as if it were
asked directly.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeVar

from confcascade import Cascade, Message, Request
from confcascade.extending import Generate
from llama_index.core.base.llms.generic_utils import (
    completion_response_to_chat_response,
)
from llama_index.core.base.llms.generic_utils import (
    messages_to_prompt as generic_messages_to_prompt,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import LLM, default_completion_to_prompt
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.types import PydanticProgramMode

from llamaindex_confcascade.bare import bare
from llamaindex_confcascade.closing import aclose, close
from llamaindex_confcascade.made import copied, text_of
from llamaindex_confcascade.tools import call_blocks

__all__ = [
    "Asked",
    "AskedPrompt",
    "Template",
    "Way",
    "as_chat",
    "asked_messages",
    "cascade_in",
    "core_messages",
    "owner_of",
    "seen_from",
    "settings_of_caller",
    "wanting",
    "ways_of",
]

L = TypeVar("L", bound=LLM)

# what an LLM holds where its user has set nothing
_UNSET: dict[str, Any] = {
    "system_prompt": None,
    "query_wrapper_prompt": None,
    "output_parser": None,
    "messages_to_prompt": generic_messages_to_prompt,
    "completion_to_prompt": default_completion_to_prompt,
    "pydantic_program_mode": PydanticProgramMode.DEFAULT,
}


# parameters of a call that are the cascade's own
_OWN = ("stage", "threshold")


_METHODS = {
    (is_async, streams, kind): f"{'a' * is_async}{'stream_' * streams}{kind}"
    for is_async in (False, True)
    for streams in (False, True)
    for kind in ("chat", "complete")
}


@dataclass(frozen=True)
class Template:
    """A prompt template and the values for its variables.

    Attributes:
        parameters: Those of the call that came among the values: what the cascade alone takes, and the template does
            not.
    """

    prompt: BasePromptTemplate
    values: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> Self:
        """From what `predict` and its like are given."""
        own = {name: given[name] for name in _OWN if name in given and not _takes(prompt, name)}
        return cls(prompt, {name: value for name, value in given.items() if name not in own}, own)


def _takes(prompt: BasePromptTemplate, name: str) -> bool:
    """Whether a template, or one of those that it selects from, has a variable of that name."""
    if prompt.function_mappings:  # its functions are given every value
        return True
    selected = [template for _, template in getattr(prompt, "conditionals", None) or ()]
    if hasattr(prompt, "default_template"):
        selected.append(prompt.default_template)
    if any(_takes(template, name) for template in selected):
        return True
    return name in prompt.template_vars or name in (prompt.template_var_mappings or {})


class Asked(list[ChatMessage]):
    """The messages of a request, or those that stand for its prompt, and how the cascade was asked.

    Attributes:
        template: What they were written from; None if the caller wrote them.
        completion: The prompt and whether it is formatted; None if a chat was asked for.
        settings: The cascade's own, which replace each stage's: see `settings_of_caller`.
        top_logprobs: How many alternatives the caller wants with the log-probabilities of whichever stage answers; None
            if it wants no log-probabilities. A cascade wants them that is judged by another.
    """

    template: Template | None = None
    completion: tuple[str, bool] | None = None
    settings: Mapping[str, Any] = {}  # never changed
    top_logprobs: int | None = None

    @classmethod
    def of(cls, told: Any, messages: Sequence[ChatMessage], **attributes: Any) -> Self:
        """`messages` with some attributes, and what `told`, by which the caller asks, says of the others."""
        asked = cls(messages)
        if isinstance(told, Asked | AskedPrompt):
            asked.template, asked.top_logprobs = told.template, told.top_logprobs
        if attributes:
            vars(asked).update(attributes)
        return asked


class AskedPrompt(str):
    """A prompt for a completion; its attributes are those of `Asked`."""

    template: Template | None = None
    top_logprobs: int | None = None


def asked_messages(prompt: str) -> list[ChatMessage]:
    """A prompt as a chat."""
    return [ChatMessage(role=MessageRole.USER, content=prompt)]


def core_messages(request: Request) -> list[ChatMessage]:
    """The core's messages as LlamaIndex's, with their tool calls and results."""
    return _core_messages(request.messages)


def _core_messages(told: Sequence[Message]) -> list[ChatMessage]:
    messages = []
    for message in told:
        beside = {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
        text = [TextBlock(text=message.content)] if message.content or not message.tool_calls else []
        blocks = [*text, *call_blocks(message.tool_calls)]
        messages.append(ChatMessage(role=MessageRole(message.role), blocks=blocks, additional_kwargs=beside))
    return messages


def settings_of_caller(llm: LLM) -> dict[str, Any]:
    """What the user of an LLM has set of the fields by which LlamaIndex writes and reads prompts."""
    values = llm.__dict__
    return {name: value for name, unset in _UNSET.items() if (value := values[name]) is not unset and value != unset}


def seen_from(llm: L, replaced: Mapping[str, Any]) -> L:
    """`llm` as it is at this moment, its clients shared, with some methods or fields replaced. It is not changed."""
    if not replaced:
        return llm
    seen = copy.copy(llm)
    object.__setattr__(seen, "__pydantic_private__", llm.__pydantic_private__)
    seen.__dict__.update(replaced)
    return seen


def cascade_in(llm: LLM) -> Cascade | None:
    """The cascade that an LLM is; None if it is none."""
    if not (_may_be_one(type(llm)) or "cascade" in vars(llm)):  # pydantic takes long to find nothing
        return None
    found = getattr(llm, "cascade", None)
    return found if isinstance(found, Cascade) else None


@lru_cache(maxsize=512)
def _may_be_one(kind: type) -> bool:
    return any("cascade" in vars(cls) for cls in kind.__mro__)


def wanting(ask: Generate) -> Generate:
    """The same, with log-probabilities if the cascade's caller wants them of whichever stage answers."""
    top = getattr(ask.request.native, "top_logprobs", None)
    if top is None or (ask.logprobs and ask.top_logprobs >= top):
        return ask
    return replace(ask, logprobs=True, top_logprobs=max(ask.top_logprobs, top))


# ---------------------------------------------------------------------- how a stage is asked


class Way(NamedTuple):
    """One way to ask an LLM: by its methods for chats, or by those for completions.

    Attributes:
        llm: It, or a view of it.
        kind: "chat" or "complete".
        messages: For a chat.
        prompt: For a completion.
        formatted: Whether `prompt` needs no formatting by the LLM.
    """

    llm: LLM
    kind: str
    messages: Sequence[ChatMessage] = ()
    prompt: str = ""
    formatted: bool = False

    def method(self, *, streams: bool = False, is_async: bool = False) -> str:
        """The name of the method by which it is asked."""
        return _METHODS[is_async, streams, self.kind]

    def whole(self, **parameters: Any) -> ChatResponse:
        prompt = self._completed_prompt("chat")
        if prompt is not None:
            return as_chat(bare(self.llm, "complete")(prompt, formatted=True, **parameters))
        return self._read(self._called(self.method(), parameters))

    async def awhole(self, **parameters: Any) -> ChatResponse:
        return self._read(await self._called(self.method(is_async=True), parameters))

    def streamed(self, **parameters: Any) -> Iterator[ChatResponse]:
        prompt = self._completed_prompt("stream_chat")
        read: Any = self._read
        if prompt is not None:
            read, pieces = as_chat, bare(self.llm, "stream_complete")(prompt, formatted=True, **parameters)
        else:
            pieces = self._called(self.method(streams=True), parameters)
        try:
            yield from map(read, pieces)
        finally:
            close(pieces)

    async def astreamed(self, **parameters: Any) -> AsyncGenerator[ChatResponse]:
        opened = self._called(self.method(streams=True, is_async=True), parameters)
        pieces = await opened if hasattr(opened, "__await__") else opened
        try:
            async for piece in pieces:
                yield self._read(piece)
        finally:
            await aclose(pieces)

    def _called(self, method: str, parameters: dict[str, Any]) -> Any:
        call = bare(self.llm, method)
        if self.kind == "chat":
            return call(_copied(self.messages), **parameters)
        return call(self.prompt, **({"formatted": True} if self.formatted else {}), **parameters)

    def _read(self, response: Any) -> ChatResponse:
        return response if self.kind == "chat" else _completed(response)

    def _completed_prompt(self, method: str) -> str | None:
        """The prompt that `CustomLLM` makes of a chat, whose own way drops log-probabilities; None if it does not."""
        if self.kind != "chat" or owner_of(type(self.llm), method).__name__ != CustomLLM.__name__:
            return None
        assert self.llm.messages_to_prompt is not None
        return self.llm.messages_to_prompt(_copied(self.messages))


def ways_of(llm: LLM, request: Request, top_logprobs: int | None = None) -> list[Way]:
    """How an LLM is asked a request, and then how else, where its class lacks those methods.

    Args:
        top_logprobs: With how many alternatives log-probabilities are wanted; None if none are.
    """
    asked = request.native
    if not isinstance(asked, Asked):  # the core asks
        return [Way(llm, "chat", _told(core_messages(request), top_logprobs, llm))]
    if (more := _more(request, asked)) is not None:
        template = asked.template
        own = asked if template is None or not llm.metadata.is_chat_model else _written(llm, template)
        return [Way(llm, "chat", _told(_asked_more(own, *more), top_logprobs, llm))]
    chat = Way(llm, "chat", _told(list(asked), top_logprobs, llm))
    if request.tools:
        return [chat]
    if asked.template is not None:
        written, values = asked.template.prompt, asked.template.values
        if llm.metadata.is_chat_model:
            return [Way(llm, "chat", _told(_written(llm, asked.template), top_logprobs, llm))]
        prompt = _told(llm._get_prompt(written, **values), top_logprobs, llm)
        return [Way(llm, "complete", prompt=prompt, formatted=True), chat]
    if asked.completion is not None:
        prompt, formatted = asked.completion
        return [Way(llm, "complete", prompt=_told(prompt, top_logprobs, llm), formatted=formatted), chat]
    return [chat]


def _written(llm: LLM, template: Template) -> list[ChatMessage]:
    return list(llm._get_messages(template.prompt, **template.values))


def _more(request: Request, asked: Asked) -> tuple[str, str, Sequence[ChatMessage]] | None:
    """What the core asks beyond the caller's messages; None if nothing.

    Returns:
        What is said before and behind the last message of the user's, and messages that follow.
    """
    before = after = ""
    last = user = len(asked) - 1
    while user > 0 and request.messages[user].role != "user":
        user -= 1
    for i in {last, user}:
        was, now = text_of(asked[i]), request.messages[i].content
        if was != now:
            before, _, after = now.partition(was) if was else (now, "", "")
    if not (before or after) and len(request.messages) == len(asked):
        return None
    return before, after, _core_messages(request.messages[len(asked) :])


def _asked_more(
    messages: Sequence[ChatMessage], before: str, after: str, further: Sequence[ChatMessage]
) -> list[ChatMessage]:
    fresh = list(messages)
    at = max((i for i, message in enumerate(fresh) if message.role == MessageRole.USER), default=-1)
    if at >= 0 and (before or after):
        message = fresh[at].model_copy()
        texts = [i for i, block in enumerate(message.blocks) if isinstance(block, TextBlock)]
        if len(message.blocks) == len(texts) == 1:
            blocks: list[Any] = [TextBlock(text=before + (message.content or "") + after)]
        else:
            blocks = [
                *([TextBlock(text=before)] if before else []),
                *message.blocks,
                *([TextBlock(text=after)] if after else []),
            ]
        message.blocks = blocks
        fresh[at] = message
    return [*fresh, *further]


def _told(what: Any, top_logprobs: int | None, llm: LLM) -> Any:
    """Messages or a prompt; a cascade that is a stage is told that its answer will be judged."""
    if top_logprobs is None or cascade_in(llm) is None:
        return what
    told = AskedPrompt(what) if isinstance(what, str) else Asked(what)
    told.template, told.top_logprobs = getattr(what, "template", None), top_logprobs
    return told


def owner_of(kind: type, method: str) -> type:
    """The class that defines a method. Spans wrap methods, so functions cannot be compared."""
    for cls in kind.__mro__:
        if method in cls.__dict__:
            return cls
    raise AttributeError(f"{kind.__name__} has no method {method}.")


def _copied(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Messages that an LLM may edit: some append to their list, or change a message."""
    fresh: list[ChatMessage] = [] if type(messages) is list else Asked.of(messages, ())
    fresh += [copied(message, blocks=True) for message in messages]
    return fresh


# ---------------------------------------------------------------------- what it answers


def as_chat(completion: CompletionResponse) -> ChatResponse:
    """As `CustomLLM` makes a chat's response of it, with the log-probabilities, which LlamaIndex drops."""
    response = completion_response_to_chat_response(completion)
    response.logprobs, response.delta = completion.logprobs, completion.delta
    return response


def _completed(completion: CompletionResponse) -> ChatResponse:
    """A completion, to be handed out as one."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=completion.text),
        raw=completion.raw,
        delta=completion.delta,
        logprobs=completion.logprobs,
        additional_kwargs=completion.additional_kwargs,
    )
