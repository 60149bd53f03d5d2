"""Models behind an OpenAI-compatible server: OpenAI, vLLM, llama.cpp, Ollama, SGLang and others."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from confcascade.asks import Capability, Chunk, Generate, Prefill
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError, ModelError, require
from confcascade.models.body import Body, deciding, options_problem, unsupported_problem
from confcascade.models.calls import CallParameters, Refusals
from confcascade.models.completions import Reading, check_sent, is_json, read
from confcascade.models.continuing import (
    Continues,
    as_completion,
    continued,
    continues_problem,
    in_turn,
    is_repeated,
    to_render,
)
from confcascade.models.logprobs import LEAST_LISTED
from confcascade.models.masking import masked
from confcascade.models.reading import Reads, read_prompt, reads_problem, remember, to_read
from confcascade.models.remote import Remote, as_stream, check_continues
from confcascade.models.served_states import Engine, ServedStates, engine_problem
from confcascade.types import Prefilled, Response, Usage

if TYPE_CHECKING:
    from pydantic import SecretStr

__all__ = ["OpenAICompatibleModel"]

Unsupported: TypeAlias = Literal["max_tokens", "temperature", "logprobs", "stream_options"]

_PATIENCE_S = 10.0  # for what a server says of itself
# what calls may have to do without, by the words of an error that refuses it
_REFUSALS = {
    "logprobs": ("logprobs",),
    "stream_options": ("stream_options",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
}


class OpenAICompatibleModel(Remote):
    """A chat model behind ``/v1/chat/completions``.

    Log-probabilities are asked for with every call that a signal needs them in. A server that refuses them is asked
    again without, and the answer then has none (the attempt escalates with that reason). That is remembered for that
    kind of call (streamed, with tools, an object, its options), and a draft whose stream is refused them comes whole.
    Where the server does not report the usage (of an answer that was ended early, say), it is estimated at four
    characters to a token, and marked.

    OpenAI's reasoning models take ``max_completion_tokens`` instead of ``max_tokens``, and no temperature but their
    own. Both are learned from the refusal, at the price of one call for each kind of call: the limit is then sent
    under the other name, and the temperature is left out, with a warning (logger ``confcascade``), because greedy
    answers were asked for and are not given. `unsupported` says so from the start. Any other parameter that the server
    refuses is an error of the call.

    Args:
        model: Name of the model, as the server knows it.
        base_url: The server, such as ``"http://127.0.0.1:8000/v1"``; by default OpenAI's, or ``OPENAI_BASE_URL``.
        api_key: By default ``OPENAI_API_KEY``; a server of your own may need none. Never shown, pickled or recorded:
            in the errors of a server that repeats it, it is ``***``.
        api_key_env: Instead, the environment variable that holds it, there too where a pickled model is read.
        timeout_s: Longest wait for an answer.
        max_retries: Retries of the client on connection errors, 429 and 5xx.
        name: Shown in records; by default `model`.
        architecture: If known, for costs in FLOPs.
        options: Parameters of every call, under the server's names: ``{"reasoning_effort": "low"}``,
            ``{"chat_template_kwargs": {"enable_thinking": False}}``. Those that the client does not know are sent in
            its ``extra_body``. A request's own `max_tokens`, `temperature` and options come first. Never recorded;
            they are part of `fingerprint`.
        unsupported: What the server is known to refuse, of "max_tokens", "temperature", "logprobs" and
            "stream_options".
        continues: How the server goes on writing an answer that has been begun, for cascades that write step by step:
            "llama.cpp", "continue_final_message" (vLLM, SGLang), "prefix" (Mistral, DeepSeek's beta), or "trailing" for
            one that continues a last message of the assistant by itself.
        reads: How the server tells what it makes of a text that another has written, which `Lookback` needs:
            "prompt_logprobs", with vLLM. Each reading is a call that the prompt is paid for.
        hidden_states: The server gives the hidden state of a prompt's last token, which `KnowledgeProbe` needs:
            "sglang", started with ``--enable-return-hidden-states``, that of the last block, behind the final norm;
            "vllm", started with the method ``extract_hidden_states``, those of `states_layers`, before any norm. A
            prompt is read by a call for one token, and the answer, if it is wanted, by another, which reads the prompt
            again, from the server's prefix cache where it has one: `Attempt.usage` counts both. `architecture` is
            needed.
        states_layers: The blocks that vLLM was started with, in the order of its ``eagle_aux_hidden_state_layer_ids``.
        states_folder: vLLM's ``shared_storage_path`` as this machine sees it. Its files are removed once they are read.

    Raises:
        MissingExtraError: Without the package `openai`.
        ConfigurationError: Without a key for OpenAI's own server, if `api_key_env` is not set, if `options` set what
            each call sets (messages, tools, streaming, log-probabilities) or are no mapping, if `unsupported` is no
            list or names anything else, or if `continues`, `reads` or `hidden_states` is none of these, or one setting
            does not go with the other.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 2,
        name: str | None = None,
        architecture: Architecture | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
        unsupported: Collection[Unsupported] = (),
        continues: Continues | None = None,
        reads: Reads | None = None,
        hidden_states: Engine | None = None,
        states_layers: Sequence[int] = (),
        states_folder: str | Path | None = None,
    ) -> None:
        from pydantic import SecretStr

        require("openai", "openai")
        if api_key_env is not None and (api_key is not None or not os.environ.get(api_key_env)):
            problem = "and `api_key` exclude each other" if api_key is not None else "names no variable that is set"
            raise ConfigurationError(f"`api_key_env` of model '{model}' {problem}; give it the name of one, not a key.")
        if (
            base_url is None
            and api_key is None
            and api_key_env is None
            and not {"OPENAI_API_KEY", "OPENAI_BASE_URL"} & set(os.environ)
        ):
            raise ConfigurationError(
                f"Model '{model}' of OpenAI needs a key, and there is none. Set OPENAI_API_KEY, or give `api_key` "
                "or `api_key_env`, or `base_url` for a server of your own."
            )
        if (cannot := options_problem(options)) is not None:
            raise ConfigurationError(f"`options` of model '{model}' {cannot}.")
        if (cannot := unsupported_problem(unsupported, _REFUSALS)) is not None:
            raise ConfigurationError(f"`unsupported` of model '{model}' {cannot}.")
        if (cannot := continues_problem(continues)) is not None:
            raise ConfigurationError(f"`continues` of model '{model}' {cannot}.")
        if (cannot := reads_problem(reads, continues)) is not None:
            raise ConfigurationError(f"`reads` of model '{model}' {cannot}.")
        if (wrong := engine_problem(hidden_states, states_layers, states_folder, architecture)) is not None:
            raise ConfigurationError(f"`{wrong[0]}` of model '{model}' {wrong[1]}.")
        self._model = model
        self._base_url = base_url
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._name = name or model
        self._architecture = architecture
        self._options = dict(options)
        self._unsupported = frozenset(unsupported)
        self._continues = continues
        self._reads = reads
        self._states: ServedStates | None = None
        if hidden_states is not None and architecture is not None:
            self._states = ServedStates.of(hidden_states, architecture, states_layers, states_folder)
        self._refusals = Refusals(self._name, _REFUSALS, unsupported=self._unsupported)
        self._async: tuple[asyncio.AbstractEventLoop, Any] | None = None

    def __repr__(self) -> str:
        return f"OpenAICompatibleModel({self._model!r}, base_url={self._base_url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # clients hold sockets, keys are read from the environment again
        return {k: v for k, v in self.__dict__.items() if k != "_client"} | {"_api_key": None, "_async": None}

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        logprobs = False if "logprobs" in self._unsupported else None
        told = Capability(
            logprobs=logprobs,
            top_logprobs=20,
            tools=True,
            structured=True,
            continues=self._continues is not None,
            reads=self._reads is not None,
        )
        return told if self._states is None else self._states.added_to(told)

    @property
    def architecture(self) -> Architecture | None:
        return self._architecture

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of its name on the server and its options, none of which can be read from them.

        Which weights the server runs under that name is not known, nor is its address part of it: a server may move.
        """
        return self._fingerprint_with()

    def _fingerprint_with(self, *further: Any) -> str:
        told = json.dumps([self._model, deciding(self._options), *further], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def own_decoding(self) -> dict[str, Any]:
        """The settings of decoding among its options."""
        return self._options | {
            "max_tokens": self._options.get("max_tokens", self._options.get("max_completion_tokens"))
        }

    @property
    def refused(self) -> frozenset[str]:
        """What its server is known to refuse, in some kind of call at least: of those that `unsupported` may name."""
        return self._refusals.surely

    @property
    def timeout_s(self) -> float:
        """Longest wait for an answer, in seconds."""
        return self._timeout_s

    def unretried(self) -> OpenAICompatibleModel:
        """The same model, whose client tries each call once: for whoever repeats calls with more patience."""
        model = copy.copy(self)
        model.__dict__.pop("_client", None)
        model._max_retries, model._async = 0, None
        return model

    def slots(self) -> int | None:
        """How many answers its server writes at a time, where it reports that, as llama.cpp's does; else None."""
        client = self._client.with_options(timeout=_PATIENCE_S, max_retries=0)
        if client.base_url.host == "api.openai.com":
            return None
        try:
            told = client.get(self._at_root("props"), cast_to=object)
        except Exception:  # it has no such page, or is not there, which the first call will say
            return None
        slots = told.get("total_slots") if isinstance(told, dict) else None
        return slots if isinstance(slots, int) and not isinstance(slots, bool) and slots > 0 else None

    def _at_root(self, path: str) -> str:
        """The address of what llama.cpp's server has beside ``/v1``."""
        root = str(self._client.base_url).rstrip("/").removesuffix("/v1")
        return f"{root}/{path}"

    # ------------------------------------------------------------------ LanguageModel

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        reading, call = Reading(ask, repeated=self._repeated), self._call(ask, streamed=True)
        with self._unsaid():
            while not ask.layers and (opened := self._create(call)) is not None:
                try:
                    with opened as events:
                        if is_json(events):
                            events.response.read()
                        for event in events:
                            call.answered()
                            yield from reading.take(event)
                            if reading.ended:
                                break
                except Exception as error:  # some servers refuse in the stream itself
                    call.retry_without(error)
                else:
                    if not call.is_answered:
                        check_sent(events, ask)
                    yield self._answered(call, reading.response())
                    return
            yield from as_stream(call.came_whole(self.answer(ask)), live=ask.live)

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        reading, call = Reading(ask, repeated=self._repeated), self._call(ask, streamed=True)
        with self._unsaid():
            while not ask.layers and (opened := await self._acreate(call)) is not None:
                try:
                    async with opened as events:
                        if is_json(events):
                            await events.response.aread()
                        async for event in events:
                            call.answered()
                            for chunk in reading.take(event):
                                yield chunk
                            if reading.ended:
                                break
                except Exception as error:
                    call.retry_without(error)
                else:
                    if not call.is_answered:
                        check_sent(events, ask)
                    yield self._answered(call, reading.response())
                    return
            for item in as_stream(call.came_whole(await self.aanswer(ask)), live=ask.live):
                yield item

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        """Hidden states (`hidden_states`), and what it makes of what was written (`reads`), one call for each ask."""
        return [self._prefilled(ask) for ask in asks] if self._reads_prompts else super().prefill(asks)

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        if not self._reads_prompts:
            return await super().aprefill(asks)
        return await asyncio.gather(*map(self._aprefilled, asks))

    # ------------------------------------------------------------------ calls

    @property
    def _reads_prompts(self) -> bool:
        return self._reads is not None or self._states is not None

    def _prefilled(self, ask: Prefill) -> Prefilled:
        if (call := self._reading(ask)) is None:
            return Prefilled(Usage())
        with self._unsaid(), self._states_explained():
            return self._was_read(self._create(call), call, ask)

    async def _aprefilled(self, ask: Prefill) -> Prefilled:
        if (call := self._reading(ask)) is None:
            return Prefilled(Usage())
        with self._unsaid(), self._states_explained():
            completion = await self._acreate(call)
            if self._states is not None and self._states.folder is not None:  # a file may have to be waited for
                return await asyncio.to_thread(self._was_read, completion, call, ask)
            return self._was_read(completion, call, ask)

    def _reading(self, ask: Prefill) -> CallParameters | None:
        """The call that reads a prompt, and what was written behind it; None if nothing of that is asked for."""
        request = to_read(ask, self._reads, self._states)
        return None if request is None else self._call(Generate(self, request, logprobs=False))

    def _states_explained(self) -> AbstractContextManager[None]:
        return nullcontext() if self._states is None else self._states.explained(self._name)

    def _was_read(self, completion: Any, call: CallParameters, ask: Prefill) -> Prefilled:
        usage = ask.progress.paid = read(completion, call.ask, repeated=self._repeated).usage
        call.answered()
        return read_prompt(completion, ask, usage, reads=self._reads, states=self._states, patience_s=self._patience_s)

    @property
    def _patience_s(self) -> float:
        """Longest wait for what a server says beside its answers."""
        return min(self._timeout_s, _PATIENCE_S)

    def _answered(self, call: CallParameters, response: Response) -> Response:
        """An answer, once it is whole; with what is known of those that are written in turn."""
        if self._reads is not None:
            # what it told no log-probabilities of, it can still be asked to read
            remember(call.ask.session, call.ask.request.written, response.text if response.tokens else "")
        response = call.explained(response)
        if self._states is None:
            return response
        if not call.ask.layers:
            self._states.forget(response.native)
            return response
        call.ask.progress.paid = response.usage
        found = self._states.read(response.native, response.usage, self._name, self._patience_s)
        return response.replace(hidden_states=found)

    def answer(self, ask: Generate) -> Response:
        """One answer, in one piece."""
        call = self._call(ask)
        with self._unsaid():
            response = read(self._create(call), ask, repeated=self._repeated)
            call.answered()
            return self._answered(call, response)

    async def aanswer(self, ask: Generate) -> Response:
        """`answer`, without blocking the event loop."""
        call = self._call(ask)
        with self._unsaid():
            response = read(await self._acreate(call), ask, repeated=self._repeated)
            call.answered()
            if ask.layers:  # a file may have to be waited for
                return await asyncio.to_thread(self._answered, call, response)
            return self._answered(call, response)

    def _create(self, call: CallParameters) -> Any:
        """What the server answers; None if it should be asked for a whole answer instead."""
        told: Any = None
        if self._completes(call.ask):
            told = self._client.post(self._at_root("apply-template"), body=to_render(call.parameters), cast_to=object)
        while not call.whole:
            try:
                if told is not None:
                    return self._client.completions.create(**self._completion(call, told))
                return self._client.chat.completions.create(**call.parameters)
            except Exception as error:
                call.retry_without(error)
        return None

    async def _acreate(self, call: CallParameters) -> Any:
        told: Any = None
        if self._completes(call.ask):
            body, client = to_render(call.parameters), self._aclient
            told = await client.post(self._at_root("apply-template"), body=body, cast_to=object)
        while not call.whole:
            try:
                if told is not None:
                    return await self._aclient.completions.create(**self._completion(call, told))
                return await self._aclient.chat.completions.create(**call.parameters)
            except Exception as error:
                call.retry_without(error)
        return None

    def _completes(self, ask: Generate) -> bool:
        """Whether an ask is for raw text of an answer that is written in turn, and its server completes texts."""
        return self._continues == "llama.cpp" and in_turn(ask)

    def _completion(self, call: CallParameters, told: Any) -> dict[str, Any]:
        prompt = told.get("prompt") if isinstance(told, Mapping) else None
        if not isinstance(prompt, str):
            raise ModelError(
                f"The server of model '{self._name}' renders no prompt: is it llama.cpp's? If it continues a last "
                'message of the assistant, set `continues="trailing"`.'
            )
        return as_completion(call.parameters, prompt + call.ask.request.written, call.ask)

    @property
    def _repeated(self) -> bool | None:
        return is_repeated(self._continues)

    @contextmanager
    def _unsaid(self) -> Iterator[None]:
        """An error of the block is raised without the key, which a server may repeat in it."""
        try:
            yield
        except Exception as error:
            clients = (self.__dict__.get("_client"), self._async and self._async[1])
            masked(error, [client.api_key.strip() for client in clients if client is not None])
            raise

    def _call(self, ask: Generate, *, streamed: bool = False) -> CallParameters:
        check_continues(ask)
        body = Body.of(self._model, ask.request, self._options)
        if self._continues is not None:
            continued(body, ask, self._continues)
        added: dict[str, dict[str, Any]] = {}
        if ask.logprobs:
            # some servers answer top_logprobs=0 with no log-probabilities at all
            added["logprobs"] = {"logprobs": True, "top_logprobs": max(LEAST_LISTED, ask.top_logprobs)}
        if streamed:
            body.given["stream"] = True
            added["stream_options"] = {"stream_options": {"include_usage": True}}
            if ask.until and self._continues == "continue_final_message":  # the stream is left before its end
                added["stream_options"]["stream_options"]["continuous_usage_stats"] = True
        return CallParameters(
            ask, body.given, added, self._refusals, streamed=streamed, asked=body.asked, instead=body.instead
        )

    def _client_options(self) -> dict[str, Any]:
        key = None if self._api_key is None else self._api_key.get_secret_value()
        if self._api_key_env is not None:
            key = os.environ.get(self._api_key_env)
            if not key:  # the client would send OPENAI_API_KEY to whatever server this is
                raise ConfigurationError(f"The environment variable of model '{self._model}' with its key is not set.")
        if key is None and self._base_url is not None and "OPENAI_API_KEY" not in os.environ:
            key = "none"  # the client wants one even where the server does not
        return {
            "base_url": self._base_url,
            "api_key": key,
            "timeout": self._timeout_s,
            "max_retries": self._max_retries,
        }

    def _http_client(self, kind: Callable[..., Any]) -> Any:
        """What carries the calls, by OpenAI's own class for it; None for its defaults."""
        del kind
        return None

    @cached_property
    def _client(self) -> Any:
        import openai

        return openai.OpenAI(**self._client_options(), http_client=self._http_client(openai.DefaultHttpxClient))

    @property
    def _aclient(self) -> Any:
        """A client for the running event loop: connections of another loop cannot be used in it."""
        import openai

        loop = asyncio.get_running_loop()
        if self._async is None or self._async[0] is not loop:
            http = self._http_client(openai.DefaultAsyncHttpxClient)
            self._async = loop, openai.AsyncOpenAI(**self._client_options(), http_client=http)
        return self._async[1]
