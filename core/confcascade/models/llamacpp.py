"""GGUF models through llama.cpp, in this process: started with the model, stopped with it."""

from __future__ import annotations

import json
import os
import re
import secrets
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from confcascade.asks import Capability, Generate
from confcascade.errors import ConfigurationError, ModelError, require
from confcascade.models.gguf import GgufFile, find_gguf, model_name
from confcascade.models.openai import OpenAICompatibleModel
from confcascade.types import Response

__all__ = ["KvType", "LlamaCppModel"]

KvType: TypeAlias = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]

_KV_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_CONTEXT = 4096  # tokens of a slot, where nothing else is said
_LONGEST_S = 3600.0  # an answer on a slow CPU; nothing of it gets lost on the way
# of a file without a chat template: raw text, as `TransformersModel` completes it
_RAW = "{% for message in messages %}{{ message.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"

_MARK = "find_quince"  # a tool's name that no template has


class LlamaCppModel(OpenAICompatibleModel):
    """A GGUF model that llama.cpp runs in this process, by the wheel `xllamacpp`.

    llama.cpp's own server answers on a free port of 127.0.0.1, behind a key that only this object knows. It stops with
    `close`, at the end of a ``with`` block, when nobody holds the model any more, and at the end of Python.

    Greedy unless a request has a temperature above 0; then it samples from the whole distribution, as
    `TransformersModel` does. It calls tools if the file's chat template shows them to the model, which is tried at the
    start; else such queries go to the next model. Hidden states cannot be seen, so P(IK) needs that class.

    Args:
        path: A GGUF file (of several parts, the first), or a folder with one model.
        name: Shown in records; by default the file's, without its ending.
        max_new_tokens: Most tokens of an answer, where the request does not say.
        context: Most tokens of a prompt and its answer together; by default the model's, but at most 4096.
        slots: How many questions it answers side by side; each has a KV cache of `context` tokens.
        threads: Of computation; by default ``OMP_NUM_THREADS``, or else llama.cpp's own choice. More than are
            idle make it slow.
        gpu_layers: Blocks that run on a GPU; by default all, if the wheel knows one.
        kv_type: Precision of keys and values. In "float32", P(T) differs least from the same weights in
            `TransformersModel`; "float16" takes half the memory, and "q8_0" a quarter.
        flash_attention: Whether attention is computed in half precision with less memory. Caches below half precision
            need it.
        template_options: Further arguments of the chat template, such as ``{"enable_thinking": False}``; one that it
            does not name is refused.
        options: Further parameters of every call, as llama.cpp's server takes them.

    Raises:
        MissingExtraError: Without the packages `xllamacpp` and `openai`.
        ConfigurationError: If there is no such file, llama.cpp cannot load it, or a setting is out of its range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        max_new_tokens: int = 512,
        context: int | None = None,
        slots: int = 4,
        threads: int | None = None,
        gpu_layers: int | None = None,
        kv_type: KvType = "float32",
        flash_attention: bool = False,
        template_options: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "path", "__class__")}
        require("xllamacpp", "llamacpp")
        require("openai", "llamacpp")
        given = Path(path).expanduser()
        file = GgufFile(find_gguf(given) or given)
        for key, least in {"max_new_tokens": 1, "context": 1, "slots": 1, "threads": 1, "gpu_layers": 0}.items():
            value = settings[key]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigurationError(f"`{key}` must be a whole number of at least {least}. Got {value!r}.")
        if kv_type not in _KV_TYPES:
            raise ConfigurationError(f"`kv_type` must be one of {', '.join(_KV_TYPES)}. Got {kv_type!r}.")
        if kv_type.startswith("q") and not flash_attention:
            raise ConfigurationError(f'`kv_type="{kv_type}"` needs `flash_attention=True`.')
        if context is not None and file.context_length is not None and context > file.context_length:
            raise ConfigurationError(
                f"The context of '{file.path.name}' holds {file.context_length} tokens. Got `context={context}`."
            )
        for option in template_options or ():
            if not re.search(rf"\b{re.escape(option)}\b", file.chat_template or ""):
                raise ConfigurationError(
                    f"`template_options` has {option!r}, which the chat template of '{file.path.name}' does not read."
                )
        context = context or min(_CONTEXT, file.context_length or _CONTEXT)
        key = secrets.token_urlsafe(24)
        parameters = _parameters(
            file,
            context=context,
            slots=slots,
            threads=threads,
            gpu_layers=gpu_layers,
            kv_type=kv_type,
            flash_attention=flash_attention,
            template_options=template_options or {},
        )
        parameters.n_predict = max_new_tokens
        parameters.api_keys = [key]
        self._held = [_started(parameters, file)]
        self._closing = weakref.finalize(self, self._held.clear)  # at the end of Python, too
        self._tools, self._tool_history = _tools(self._held[0].listening_address, key)
        super().__init__(
            model_name(file.path),
            base_url=f"{self._held[0].listening_address}/v1",
            api_key=key,
            timeout_s=_LONGEST_S,
            max_retries=0,
            name=name,
            architecture=file.architecture,
            options=options,
            continues="llama.cpp",
        )
        self._file = file
        self._settings = settings
        self._slots = slots
        self._context = context

    def __repr__(self) -> str:
        return f"LlamaCppModel({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self._file.path, **{**self._settings, "options": dict(self._options)}), ()

    def __enter__(self) -> LlamaCppModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop llama.cpp and free the weights; what is asked afterwards fails."""
        self._closing()

    @property
    def capability(self) -> Capability:
        return replace(
            super().capability,
            logprobs=True,
            tools=self._tools,
            tool_history=self._tool_history,
            batch_size=self._slots,
            context_window=self._context,
            in_process=True,
        )

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the file's contents (its head, and a sample of each tensor) and the settings
        that decide answers."""
        deciding = {key: self._settings[key] for key in ("kv_type", "flash_attention", "template_options")}
        return self._fingerprint_with(self._file.digest, deciding)

    # ------------------------------------------------------------------ calls

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        """Answers side by side, as many as there are slots."""
        if len(asks) == 1:
            return [self._one(asks[0])]
        with ThreadPoolExecutor(self._slots, "confcascade-llamacpp") as threads:
            return list(threads.map(self._one, asks))

    def _one(self, ask: Generate) -> Response | Exception:
        try:
            (answer,) = super().generate([ask])
        except Exception as error:  # one answer's, not its batch's
            return error
        return answer

    def _http_client(self, kind: Callable[..., Any]) -> Any:
        return kind(trust_env=False)  # llama.cpp is in this process: prompts and key have no business with a proxy

    def _call(self, ask: Generate, *, streamed: bool = False) -> Any:
        if not self._closing.alive:
            raise ModelError(f"Model '{self.name}' was closed.")
        return super()._call(ask, streamed=streamed)


def _parameters(
    file: GgufFile,
    *,
    context: int,
    slots: int,
    threads: int | None,
    gpu_layers: int | None,
    kv_type: str,
    flash_attention: bool,
    template_options: Mapping[str, Any],
) -> Any:
    """llama.cpp's settings."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file.parts[0])
    parameters.model_alias = {model_name(file.path)}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # any free one
    parameters.n_parallel = slots
    parameters.n_ctx = context * slots
    parameters.n_threads_http = max(64, 4 * slots)  # at least as many as clients keep connections open
    threads = threads or _whole(os.environ.get("OMP_NUM_THREADS"))
    if threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{_KV_TYPES[kv_type]}")
    parameters.cache_type_k = parameters.cache_type_v = kind
    flash = xllamacpp.llama_flash_attn_type
    parameters.flash_attn_type = (
        flash.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    if gpu_layers is None:
        gpu_layers = 999 if any("CPU" not in str(device["type"]) for device in xllamacpp.get_device_info()) else 0
    parameters.n_gpu_layers = gpu_layers
    parameters.use_jinja = parameters.offline = True
    parameters.warmup = parameters.fit_params = parameters.ui = parameters.endpoint_slots = False
    parameters.verbosity = -1
    # greedy, and where a request has a temperature, from the whole distribution
    sampling = parameters.sampling
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 0.0, 0, 1.0, 0.0
    if file.chat_template is None:
        parameters.chat_template = _RAW
    if template_options:
        parameters.default_template_kwargs = {key: json.dumps(value) for key, value in template_options.items()}
    return parameters


def _started(parameters: Any, file: GgufFile) -> Any:
    """llama.cpp's server, once it has answered."""
    import xllamacpp

    answers: list[Any] = []
    try:
        server = xllamacpp.Server(parameters)
        # one that is stopped before its first task waits for its own end for ever
        server.handle_completions({"prompt": "a", "n_predict": 1}, answers.append)
    except Exception as error:
        raise ConfigurationError(
            f"llama.cpp cannot load '{file.path}' (architecture '{file.architecture_name}', "
            f"{file.size / 1e6:,.0f} MB). The file may be damaged, its architecture newer than the installed "
            "xllamacpp, or memory too small: download it again, upgrade xllamacpp, or give a smaller `context` or "
            "fewer `slots`."
        ) from error
    if not answers or "choices" not in answers[0]:
        raise ConfigurationError(
            f"llama.cpp loads '{file.path}' (architecture '{file.architecture_name}'), but it does not generate text."
        )
    return server


def _tools(address: str, key: str) -> tuple[bool, bool]:
    """Whether tools reach the prompt, and the calls of a conversation: a template may leave them out without a word."""
    asked = {"role": "user", "content": "Where?"}
    tool = {"name": _MARK, "description": "Finds it.", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": _MARK, "arguments": "{}"}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "There."}
    told = (
        {"messages": [asked], "tools": [{"type": "function", "function": tool}]},
        {"messages": [asked, called, result]},
    )
    offered, held = (_MARK in _rendered(address, key, body) for body in told)
    return offered, held


def _rendered(address: str, key: str, body: Mapping[str, Any]) -> str:
    """The prompt that llama.cpp makes of a request; empty if the template refuses it."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/apply-template", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    try:
        with opener.open(request, timeout=60) as answer:
            return str(json.load(answer)["prompt"])
    except urllib.error.HTTPError:
        return ""


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
