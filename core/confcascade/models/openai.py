"""Models behind an OpenAI-compatible server: OpenAI, vLLM, llama.cpp, Ollama, SGLang and others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from confcascade.asks import Generate, Prefill
from confcascade.cost import Architecture
from confcascade.errors import ModelError, require
from confcascade.models import Capability, Chunk, Watcher
from confcascade.types import Prefilled, Response, Token, Usage

if TYPE_CHECKING:
    from pydantic import SecretStr

__all__ = ["OpenAICompatibleModel"]


class OpenAICompatibleModel:
    """A chat model behind ``/v1/chat/completions``.

    Log-probabilities are asked for with every call that a signal needs them in; a server that refuses them is asked
    again without, and the answer then has none (the attempt escalates with that reason).

    Args:
        model: Name of the model, as the server knows it.
        base_url: The server, such as ``"http://127.0.0.1:8000/v1"``; by default OpenAI's, or ``OPENAI_BASE_URL``.
        api_key: By default ``OPENAI_API_KEY``. Never shown, pickled or recorded.
        timeout_s: Longest wait for an answer.
        max_retries: Retries of the client on connection errors, 429 and 5xx.
        name: Shown in records; by default `model`.
        architecture: If known, for costs in FLOPs.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 2,
        name: str | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        from pydantic import SecretStr

        require("openai", "openai")
        self._model = model
        self._base_url = base_url
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._name = name or model
        self._architecture = architecture
        self._refuses_logprobs = False

    def __repr__(self) -> str:
        return f"OpenAICompatibleModel({self._model!r}, base_url={self._base_url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # clients hold sockets, keys are read from the environment again
        return {k: v for k, v in self.__dict__.items() if k not in ("_client", "_aclient")} | {"_api_key": None}

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return Capability(logprobs=False if self._refuses_logprobs else None, top_logprobs=20)

    @property
    def architecture(self) -> Architecture | None:
        return self._architecture

    # ------------------------------------------------------------------ LanguageModel

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        raise ModelError(f"Model '{self._name}' is behind an API: its hidden states cannot be seen.")

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return self.prefill(asks)

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return [self._generate(ask) for ask in asks]

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return await asyncio.gather(*map(self._agenerate, asks))

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        reading = _Reading(ask)
        with self._create(ask, stream=True, stream_options={"include_usage": True}) as events:
            for event in events:
                yield from reading.add(event)
                if reading.watcher.verdict == "abort":
                    break
        yield reading.response()

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        reading = _Reading(ask)
        async with await self._acreate(ask, stream=True, stream_options={"include_usage": True}) as events:
            async for event in events:
                for chunk in reading.add(event):
                    yield chunk
                if reading.watcher.verdict == "abort":
                    break
        yield reading.response()

    # ------------------------------------------------------------------ calls

    def _generate(self, ask: Generate) -> Response:
        if ask.watch is None:
            return _response(self._create(ask), ask)
        *_, last = self.stream(ask)
        assert isinstance(last, Response)
        return last

    async def _agenerate(self, ask: Generate) -> Response:
        if ask.watch is None:
            return _response(await self._acreate(ask), ask)
        last: Chunk | Response | None = None
        async for last in self.astream(ask):
            pass
        assert isinstance(last, Response)
        return last

    def _create(self, ask: Generate, **more: Any) -> Any:
        import openai

        try:
            return self._client.chat.completions.create(**self._payload(ask), **more)
        except openai.BadRequestError as error:
            self._note_refusal(ask, error)
            return self._client.chat.completions.create(**self._payload(ask), **more)

    async def _acreate(self, ask: Generate, **more: Any) -> Any:
        import openai

        try:
            return await self._aclient.chat.completions.create(**self._payload(ask), **more)
        except openai.BadRequestError as error:
            self._note_refusal(ask, error)
            return await self._aclient.chat.completions.create(**self._payload(ask), **more)

    def _note_refusal(self, ask: Generate, error: Exception) -> None:
        """Remember a server that refuses log-probabilities; raise any other error."""
        if not ask.logprobs or self._refuses_logprobs or "logprobs" not in str(error):
            raise error
        self._refuses_logprobs = True

    def _payload(self, ask: Generate) -> dict[str, Any]:
        request = ask.request
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            **request.options,
        }
        if request.max_tokens is not None:
            payload["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            payload["temperature"] = request.temperature
        if request.stop:
            payload["stop"] = list(request.stop)
        if ask.logprobs and not self._refuses_logprobs:
            # some servers answer top_logprobs=0 with no log-probabilities at all
            payload |= {"logprobs": True, "top_logprobs": max(1, ask.top_logprobs)}
        return payload

    def _options(self) -> dict[str, Any]:
        key = None if self._api_key is None else self._api_key.get_secret_value()
        return {"base_url": self._base_url, "api_key": key, "timeout": self._timeout_s, "max_retries": self._max_retries}

    @cached_property
    def _client(self) -> Any:
        import openai

        return openai.OpenAI(**self._options())

    @cached_property
    def _aclient(self) -> Any:
        import openai

        return openai.AsyncOpenAI(**self._options())


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    """The visible tokens of a ``logprobs`` object; end-of-text entries, which have no bytes, are left out."""
    if logprobs is None or logprobs.content is None:
        return None
    return tuple(
        Token(
            entry.token,
            min(0.0, entry.logprob),
            tuple((other.token, min(0.0, other.logprob)) for other in entry.top_logprobs or ()),
        )
        for entry in logprobs.content
        if entry.bytes != [] and entry.token != ""
    )


def _usage(usage: Any) -> Usage:
    if usage is None:
        return Usage(estimated=True)
    return Usage(usage.prompt_tokens, usage.completion_tokens)


def _response(completion: Any, ask: Generate) -> Response:
    if not completion.choices:
        raise ModelError(f"Model '{ask.model.name}' answered without a choice.")
    choice = completion.choices[0]
    return Response(
        text=choice.message.content or "",
        tokens=_tokens(choice.logprobs),
        usage=_usage(completion.usage),
        finish_reason=choice.finish_reason,
        native=completion,
    )


class _Reading:
    """A streamed answer as it comes in."""

    def __init__(self, ask: Generate) -> None:
        self.watcher = Watcher(ask)
        self._ask = ask
        self._text = ""
        self._tokens: list[Token] | None = None
        self._usage: Any = None
        self._finish_reason: str | None = None

    def add(self, event: Any) -> Iterator[Chunk]:
        self._usage = event.usage or self._usage
        if not event.choices:
            return
        choice = event.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        tokens = _tokens(choice.logprobs)
        if tokens is not None:
            self._tokens = [*(self._tokens or ()), *tokens]
            if tokens:
                self.watcher.see(self._tokens)
        text = choice.delta.content or ""
        self._text += text
        if text or tokens:
            yield Chunk(text, tokens or (), released=self.watcher.verdict == "release", native=event)

    def response(self) -> Response:
        aborted = self.watcher.verdict == "abort"
        if not aborted and self._finish_reason is None:
            raise ModelError(f"The stream of model '{self._ask.model.name}' ended before the answer did.")
        usage = _usage(self._usage)
        if self._usage is None:  # closed before the server told: what was seen is what is known
            usage = Usage(0, len(self._tokens or ()), estimated=True)
        return Response(
            text=self._text,
            tokens=None if self._tokens is None else tuple(self._tokens),
            usage=usage,
            finish_reason="aborted" if aborted else self._finish_reason,
        )
