"""What a model must offer to take part in a cascade, and how a string becomes one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from confcascade.asks import Generate, Prefill, Verdict, Watch
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError
from confcascade.types import Prefilled, Response, Token

__all__ = ["Blocking", "Capability", "Chunk", "LanguageModel", "Watcher", "from_string"]


@dataclass(frozen=True)
class Capability:
    """What a model can tell about itself and its answers, as far as it is known before asking.

    Attributes:
        logprobs: Log-probabilities of the tokens it generates; None if only an answer will tell.
        top_logprobs: Most alternatives it tells at each position.
        layers: Number of blocks whose hidden states it gives; 0 means none.
        hidden_size: Their dimension.
        prompt_labels: Whether it answers `Prefill` even if it gives no hidden states: with labels' log-probabilities.
        batch_size: How many asks it answers in one call. A model of 1 that does not prefill is behind an API, and asked
            for many answers at once; any other computes in this process, one call at a time.
        tools: Whether it can be given tools; one that cannot is never asked without them instead.
        structured: Whether it can be asked for structured output.
        media: Whether it is given the framework's own messages, and so what they hold beyond text.
        context_window: Most tokens of prompt and answer together; None if unknown.
    """

    logprobs: bool | None = False
    top_logprobs: int = 0
    layers: int = 0
    hidden_size: int = 0
    prompt_labels: bool = False
    batch_size: int = 1
    tools: bool = False
    structured: bool = False
    media: bool = False
    context_window: int | None = None

    @property
    def prefill(self) -> bool:
        """Whether it answers `Prefill`: only a model whose hidden states or logits can be seen does."""
        return self.layers > 0 or self.prompt_labels

    @property
    def local(self) -> bool:
        """Whether it computes in this process, and so shares the machine with all others that do."""
        return self.batch_size > 1 or self.prefill


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer.

    Attributes:
        text: What it adds to the answer.
        tokens: Its tokens, where the model tells their log-probabilities.
        released: Nothing can withdraw it, nor what follows: it may be shown.
        calls_tool: It adds to a call of a tool, which is an answer even without text.
        native: The framework's own chunk, carried through untouched.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    released: bool = False
    calls_tool: bool = False
    native: Any = None


@runtime_checkable
class LanguageModel(Protocol):
    """A model as the drivers see it: lists of asks in, lists of answers out, in the same order.

    A method may raise for all asks of a call, or return an exception in the place of one answer.  The stream methods
    yield `Chunk` objects and, last, the `Response`.  Whoever generates obeys the ask's watch (`Watcher`).
    """

    @property
    def name(self) -> str:
        """Shown in records, and part of a policy's id."""

    @property
    def capability(self) -> Capability:
        """What it can tell."""

    @property
    def architecture(self) -> Architecture | None:
        """For costs in FLOPs; None if unknown."""

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        """Read prompts, no more than `Capability.batch_size` of them; only called if it can prefill."""

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        """Answer, no more than `Capability.batch_size` asks."""

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        """Answer piece by piece: the same answer as `generate` gives."""

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        """`prefill`, without blocking the event loop."""

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        """`generate`, without blocking the event loop."""

    def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        """`stream`, without blocking the event loop."""


class Watcher:
    """Asks a `Watch` after every token and remembers a final verdict."""

    def __init__(self, ask: Generate) -> None:
        self._watch: Watch | None = ask.watch
        self.verdict: Verdict = "release" if ask.live else "hold"

    @property
    def undecided(self) -> bool:
        """Whether `see` can still change anything; once it cannot, nothing need be prepared for it."""
        return self._watch is not None and self.verdict == "hold"

    def see(self, tokens: Sequence[Token]) -> Verdict:
        """The verdict on an answer that begins with `tokens`."""
        if self.verdict == "hold" and self._watch is not None:
            self.verdict = self._watch(tokens)
        return self.verdict


class Blocking:
    """The asynchronous half of a model that computes in this process: its synchronous half, in threads."""

    prefill: Callable[[Sequence[Prefill]], Sequence[Prefilled | Exception]]
    generate: Callable[[Sequence[Generate]], Sequence[Response | Exception]]
    stream: Callable[[Generate], Iterator[Chunk | Response]]

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return await asyncio.to_thread(self.prefill, asks)

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return await asyncio.to_thread(self.generate, asks)

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        stream = self.stream(ask)
        while (item := await asyncio.to_thread(next, stream, None)) is not None:
            yield item


def from_string(model: str) -> LanguageModel:
    """A model from ``"local:NAME"`` (a folder or a name on the hub), ``"openai:NAME"`` or ``"bundled:SIZE"``.

    Raises:
        ConfigurationError: For any other string.
        MissingExtraError: If the extra that brings it is not installed.
    """
    provider, _, name = model.partition(":")
    if name and provider == "local":
        from confcascade.models.transformers import TransformersModel

        return TransformersModel.from_pretrained(name)
    if name and provider == "openai":
        from confcascade.models.openai import OpenAICompatibleModel

        return OpenAICompatibleModel(name)
    if name and provider == "bundled":
        from confcascade.models.bundled import bundled_model

        return bundled_model(name)
    raise ConfigurationError(
        f'A model string must be "bundled:SIZE", "local:FOLDER_OR_NAME" or "openai:NAME". Got "{model}". '
        "Any other model is passed as an object of its framework."
    )
